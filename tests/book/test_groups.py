"""Groups of weights: what has to fit, and PyTorch's int4 kernel."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from qhelpers.book import groups


def test_a_group_has_to_divide_the_row() -> None:
    assert groups.require_groups(1024, 128) == 8
    with pytest.raises(groups.GroupError, match=r"Groups of 96 do not divide rows of 256 weights; .* 32, 64, 128, 256"):
        groups.require_groups(256, 96)
    with pytest.raises(groups.GroupError, match="Groups of 32 do not divide rows of 50 weights; these do: 50"):
        groups.require_groups(50, 32)


@pytest.mark.parametrize("group", [0, -32, True, 32.0])
def test_a_group_is_a_whole_number(group: int) -> None:
    with pytest.raises(groups.GroupError, match="cannot be"):
        groups.require_groups(256, group)


@pytest.mark.parametrize("bits", [1, 9, 2.5, True, 0])
def test_unknown_bits_are_refused(bits: int) -> None:
    with pytest.raises(groups.GroupError, match="2 to 8"):
        groups.require_groups(256, 32, bits)


def test_a_layer_that_torchao_skips_is_named() -> None:
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    from torchao.quantization import quantize_

    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 32)).bfloat16().eval()
    quantize_(model, PrototypeInt4WeightOnlyConfig(group_size=64, set_inductor_config=False))
    assert groups.require_changed(model, ["0"]) == ["0"]
    with pytest.raises(groups.GroupError, match=r"1 of 2 layers kept their float weights: 1 \(rows of 32\)"):
        groups.require_changed(model, ["0", "1"])


def test_a_missing_kernel_is_named_with_its_fallback() -> None:
    with pytest.raises(groups.GroupError, match=r"no kernel aten::no_such for this processor. Instead: a slow one"):
        groups.require_kernel("aten::no_such", "a slow one")


def test_scalar_code_is_refused_with_its_cost() -> None:
    with pytest.raises(groups.GroupError, match=r"no vector code for DEFAULT: .* 9 times as long"):
        groups.require_fast_int4(torch.bfloat16, 9.2, used="DEFAULT")
    with pytest.raises(groups.GroupError, match=r"no vector code for torch.float32 inputs: .* 40 times"):
        groups.require_fast_int4(torch.float32, 40, used="AVX512")
    with pytest.raises(groups.GroupError, match="ZVECTOR"):
        groups.require_fast_int4(torch.bfloat16, 2, used="ZVECTOR")


def layer(rows: int = 32, columns: int = 128, group: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(16, (rows, columns), generator=draw)
    scale = torch.rand(rows, columns // group, generator=draw) + 0.5
    return codes, scale.bfloat16().float(), torch.randint(16, scale.shape, generator=draw).float()


@pytest.mark.parametrize("group", [32, 64, 128])
def test_the_kernel_computes_what_the_codes_say(group: int) -> None:
    codes, scale, zero_point = layer(group=group)
    weight = ((codes.view(32, -1, group) - zero_point[..., None]) * scale[..., None]).view(32, -1)
    inputs = torch.randn(3, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    found = groups.linear_int4(inputs, groups.pack_int4(codes, scale, zero_point, group)).float()
    expected = inputs.float() @ weight.T
    assert float((found - expected).norm() / expected.norm()) < 0.02


def test_what_the_kernel_cannot_pack_is_named() -> None:
    with pytest.raises(groups.GroupError, match="multiple of 16 rows, here are 17: pad to 32"):
        groups.pack_int4(*layer(rows=17), 32)
    with pytest.raises(groups.GroupError, match="no groups of 16"):
        groups.pack_int4(*layer(group=16), 16)
    with pytest.raises(groups.GroupError, match="Groups of 48 do not divide rows of 128"):
        groups.pack_int4(*layer(), 48)


def test_weights_packed_for_other_instructions_are_refused() -> None:
    packed = dataclasses.replace(groups.pack_int4(*layer(), 32), packed_for="OTHER")
    with pytest.raises(groups.GroupError, match="packed for OTHER, and this process uses"):
        groups.linear_int4(torch.ones(1, 128).bfloat16(), packed)


@pytest.mark.parametrize("codes", [torch.full((16, 32), -1), torch.full((16, 32), 16), torch.full((16, 32), 3.7)])
def test_codes_that_four_bits_do_not_have_are_refused(codes: torch.Tensor) -> None:
    one = torch.ones(16, 1)
    with pytest.raises(groups.GroupError, match="whole numbers from 0 to 15"):
        groups.pack_int4(codes, one, one, group=32)


def test_scales_of_another_grouping_are_refused() -> None:
    codes, one = torch.full((16, 256), 9), torch.ones(16, 1)
    with pytest.raises(groups.GroupError, match=r"of shape \(16, 8\), got \(16, 1\)"):
        groups.pack_int4(codes, one, one, group=32)
