"""Groups of weights: what has to fit, and PyTorch's int4 kernel."""

import dataclasses

import pytest
import torch
from torch import Tensor

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


@pytest.mark.parametrize("columns", [0, -256, True, 256.0])
def test_a_row_has_a_whole_number_of_weights(columns: int) -> None:
    with pytest.raises(groups.GroupError, match=r"A row of .* weights cannot be"):
        groups.require_groups(columns, 32)


@pytest.mark.parametrize("bits", [1, 9, 2.5, True, 0])
def test_unknown_bits_are_refused(bits: int) -> None:
    with pytest.raises(groups.GroupError, match="2 to 8"):
        groups.require_groups(256, 32, bits)


def test_a_missing_kernel_is_named_with_its_fallback() -> None:
    with pytest.raises(groups.GroupError, match=r"no kernel aten::no_such for this processor. Instead: a slow one"):
        groups.require_kernel("aten::no_such", "a slow one")


@pytest.mark.parametrize("name", ["aten::linear", "aten::zeros_like", "quantized::linear", "aten::add.Tensor"])
def test_what_an_operator_is_composed_of_counts_as_its_kernel(name: str) -> None:
    assert groups.require_kernel(name, "") == name


@pytest.mark.parametrize("name", ["aten::_weight_int4pack_mm", "aten::_cslt_sparse_mm"])
def test_a_kernel_of_other_processors_does_not_count(name: str) -> None:
    with pytest.raises(groups.GroupError, match="no kernel"):
        groups.require_kernel(name, "")


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


@pytest.mark.parametrize("dtype", groups.INPUTS)
def test_scales_follow_the_type_of_the_inputs(dtype: torch.dtype) -> None:
    packed = groups.pack_int4(*layer(), 32)
    inputs = torch.randn(2, 3, 128, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = groups.linear_int4(inputs, packed)
    assert (found.dtype, found.shape) == (dtype, (2, 3, 32))
    apart = torch.cat([groups.linear_int4(row[None], packed) for row in inputs.flatten(0, 1)])
    assert torch.allclose(found.flatten(0, 1), apart, rtol=0.02)
    turned = inputs[0].T.contiguous().T  # not contiguous
    assert torch.allclose(groups.linear_int4(turned, packed), found[0], rtol=0.02)


def test_inputs_that_the_kernel_has_no_code_for_are_named() -> None:
    packed = groups.pack_int4(*layer(), 32)
    with pytest.raises(groups.GroupError, match=r"no code for torch.int32 inputs: take torch.bfloat16"):
        groups.linear_int4(torch.ones(1, 128, dtype=torch.int32), packed)
    with pytest.raises(groups.GroupError, match=r"of shape \(…, 128\), as the weights are; got \(1, 64\)"):
        groups.linear_int4(torch.ones(1, 64).bfloat16(), packed)


def test_what_the_kernel_cannot_pack_is_named() -> None:
    with pytest.raises(groups.GroupError, match="here are 0: pad to 16"):
        groups.pack_int4(*(part[:0] for part in layer()), 32)
    with pytest.raises(groups.GroupError, match=r"shape \(rows, columns\), got \(128,\)"):
        groups.pack_int4(*(part[0] for part in layer()), 32)
    codes, scale, zero_point = layer()
    with pytest.raises(groups.GroupError, match="must be finite"):
        groups.pack_int4(codes, scale / 0, zero_point, 32)
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
