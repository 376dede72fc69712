"""Mistakes in a quantization workflow that PyTorch passes over, and the guards that name them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.ao import quantization as tq
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torchao import quantization as tao
from torchao.prototype.mx_formats.mx_tensor import MXTensor
from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor
from torchao.prototype.quantization import int4
from torchao.quantization.granularity import PerGroup
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

from qhelpers import engines, guards
from qhelpers.tasks import checkpoints, networks

pytestmark = pytest.mark.usefixtures("random_weights")


def prepared(net: nn.Module) -> nn.Module:
    net.qconfig = tq.get_default_qconfig("qnnpack")
    return tq.prepare(net)


def test_float16_layers_are_not_int8(language_model: networks.CharLSTM) -> None:
    if "fbgemm" not in engines.available_engines():
        pytest.skip("float16 needs fbgemm")
    with engines.using_engine("fbgemm"):
        half = tq.quantize_dynamic(language_model, {nn.LSTM, nn.Linear}, dtype=torch.float16)
    assert guards.int8_modules(half) == []


def test_fusing_in_training_mode_fails_and_is_named() -> None:
    training = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    with pytest.raises(AssertionError, match="Fusion only for eval!"):
        tq.fuse_modules(training, [["0", "1"]])
    assert isinstance(training[1], nn.BatchNorm2d)
    with pytest.raises(guards.GuardError, match=r"call .eval\(\) first"):
        guards.require_eval(training)


def test_int8_norms_and_dropouts_do_not_count_as_training() -> None:
    model = tq.QuantWrapper(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout())).eval()
    ready = prepared(model)
    ready(torch.zeros(1, 3, 4, 4))
    with engines.using_engine("qnnpack"):
        assert guards.require_eval(tq.convert(ready))


def test_a_state_dict_of_the_other_kind_is_named(net: nn.Module, language_model: networks.CharLSTM) -> None:
    ready = prepared(net)
    ready(torch.zeros(1, 3, 8, 8))
    with engines.using_engine("qnnpack"):
        int8 = tq.convert(ready)
        dynamic = tq.quantize_dynamic(language_model, {nn.LSTM})
        for model, state in (
            (int8, net.state_dict()),
            (net, int8.state_dict()),
            (dynamic, language_model.state_dict()),
            (language_model, dynamic.state_dict()),
        ):
            with pytest.raises(checkpoints.CheckpointError, match="other kind does not fit this"):
                checkpoints.load_into(model, state, "other kind")


def test_sequences_of_length_zero_are_refused(language_model: networks.CharLSTM) -> None:
    with engines.using_engine(engines.default_engine()):
        dynamic = tq.quantize_dynamic(language_model, {nn.LSTM})
        for model in (language_model, dynamic):
            with pytest.raises(RuntimeError, match="sequence length to be larger than 0"):
                model(torch.zeros(1, 0, dtype=torch.int64))


def test_torchvision_folds_norms_away_in_evaluation_mode_without_a_word() -> None:
    model = checkpoints.load_digits_float()
    model.fuse_model()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_a_partly_converted_model_is_not_trainable() -> None:
    part = nn.Sequential(checkpoints.load_digits_int8(), nn.Linear(10, 2))
    with pytest.raises(guards.GuardError, match=r"Layers of this Sequential are int8 and cannot be trained .53: "):
        guards.require_trainable(part)


def test_prepare_qat_wants_training_mode(net: nn.Module) -> None:
    net.qconfig = tq.get_default_qat_qconfig("qnnpack")
    with pytest.raises(AssertionError, match="only works on models in training mode"):
        tq.prepare_qat(net)


def test_a_model_converted_in_training_mode_is_not_measured(net: nn.Module) -> None:
    net.train().qconfig = tq.get_default_qat_qconfig("qnnpack")
    trained = tq.prepare_qat(net)
    trained(torch.rand(2, 3, 8, 8))
    with engines.using_engine("qnnpack"):
        converted = tq.convert(trained)
    with pytest.raises(guards.GuardError, match=r"call \.eval"):
        guards.require_eval(converted)


def test_float_model_is_no_int8_model() -> None:
    with pytest.raises(guards.GuardError, match="was a qconfig set before prepare"):
        guards.require_quantized(checkpoints.load_digits_float())


def test_training_mode_names_the_module() -> None:
    model = checkpoints.load_digits_float()
    model.classifier[0].train()
    with pytest.raises(guards.GuardError, match=r"classifier\.0"):
        guards.require_eval(model)


def converted(quantizer: Any, fold: bool = True) -> nn.Module:
    """A PT2E graph of one Linear layer."""
    x, net = torch.randn(2, 32), nn.Sequential(nn.Linear(32, 32), nn.ReLU()).eval()
    ready = prepare_pt2e(torch.export.export(net, (x,)).module(), quantizer)
    ready(x)
    graph: nn.Module = convert_pt2e(ready, fold_quantize=fold)
    return graph


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("dynamic", [True, False])
def test_a_converted_graph_is_quantized(fold: bool, dynamic: bool) -> None:
    config = x86.get_default_x86_inductor_quantization_config(is_dynamic=dynamic)
    graph = converted(x86.X86InductorQuantizer().set_global(config), fold)
    assert guards.require_quantized(graph) is graph
    again = torch.export.export(graph, (torch.randn(2, 32),)).module()
    assert guards.require_quantized(again) is again


def test_a_graph_in_which_the_quantizer_matched_nothing_is_named() -> None:
    with pytest.raises(guards.GuardError, match="Has the quantizer matched nothing"):
        guards.require_quantized(converted(x86.X86InductorQuantizer()))


class Functional(nn.Module):
    """A product without a module, and an addition without a weight."""

    def __init__(self, weights: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8, 8)) if weights else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x if self.weight is None else nn.functional.linear(x, self.weight)


def test_weights_that_fx_packed_for_a_function_count_and_scales_do_not() -> None:
    x = torch.randn(2, 8)
    with engines.using_engine("qnnpack"):
        graphs = []
        for weights in (True, False):
            ready = prepare_fx(Functional(weights).eval(), tq.get_default_qconfig_mapping("qnnpack"), (x,))
            ready(x)
            graphs.append(convert_fx(ready))
    assert guards.require_quantized(graphs[0]) is graphs[0]
    with pytest.raises(guards.GuardError, match="No module of this GraphModule holds integer weights"):
        guards.require_quantized(graphs[1])


QUIET = {"set_inductor_config": False}


@pytest.mark.parametrize(
    "config",
    [
        tao.Int8WeightOnlyConfig(**QUIET),
        tao.IntxWeightOnlyConfig(torch.int4, PerGroup(32)),
        int4.PrototypeInt4WeightOnlyConfig(group_size=32, **QUIET),
    ],
    ids=lambda config: type(config).__name__,
)
def test_integers_in_torchao_s_tensors_count(config: Any) -> None:
    net = nn.Sequential(nn.Linear(64, 32)).bfloat16().eval()
    tao.quantize_(net, config)
    assert guards.require_quantized(net, ["0"]) is net


def test_torchao_s_float8_weights_are_not_integers() -> None:
    net = nn.Sequential(nn.Linear(64, 32)).bfloat16().eval()
    tao.quantize_(net, tao.Float8WeightOnlyConfig(**QUIET))
    assert type(net[0].weight).__name__ == "Float8Tensor"
    with pytest.raises(guards.GuardError, match="No module of this Sequential holds integer weights"):
        guards.require_quantized(net)


@pytest.mark.parametrize(
    "four_bits",
    [NVFP4Tensor.to_nvfp4, partial(MXTensor.to_mx, elem_dtype=torch.float4_e2m1fn_x2, block_size=32)],
    ids=["NVFP4", "MXFP4"],
)
def test_torchao_s_floats_of_four_bits_are_not_integers(four_bits: Callable[[torch.Tensor], Any]) -> None:
    net = nn.Sequential(nn.Linear(64, 32)).bfloat16().eval()
    weight = four_bits(net[0].weight.detach())
    assert weight.qdata.dtype == torch.uint8, "as integers of four bits are held"
    net[0].weight = nn.Parameter(weight, requires_grad=False)
    with pytest.raises(guards.GuardError, match="No module of this Sequential holds integer weights"):
        guards.require_quantized(net)


class Marked(torch.Tensor):
    """A subclass that holds no codes, as some libraries have."""


def test_a_float_tensor_of_another_class_is_no_quantized_one() -> None:
    net = nn.Linear(2, 2)
    net.weight = nn.Parameter(torch.ones(2, 2).as_subclass(Marked))
    with pytest.raises(guards.GuardError, match="holds integer weights"):
        guards.require_quantized(net)


def test_layers_that_torchao_skips_are_named() -> None:
    net = nn.Sequential(nn.Linear(64, 32), *(nn.Linear(32, 32) for _ in range(4))).bfloat16().eval()
    tao.quantize_(net, int4.PrototypeInt4WeightOnlyConfig(group_size=64, **QUIET))
    assert guards.require_quantized(net, ["0"]) is net
    with pytest.raises(guards.GuardError, match=r"4 of 5 layers kept their float weights: 1, 2, 3, …\. Does the group"):
        guards.require_quantized(net, [name for name, _ in net.named_children()])
