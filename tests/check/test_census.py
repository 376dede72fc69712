"""What computes in int8: each layer by name, in each runtime, whatever became of its name and layout."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization as tq
from torch.fx import GraphModule

from qhelpers import engines
from qhelpers.check import census, files, kernels
from qhelpers.tasks import checkpoints

IMAGE = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Small(nn.Module):
    """A convolution with batch norm, a depthwise one and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.depthwise(self.first(images)).mean((2, 3)))
        return logits


@pytest.fixture
def small() -> Small:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Small().eval()


def verdicts(found: census.Census) -> dict[str, str]:
    return {layer.name: layer.computes for layer in found.layers}


def static(model: nn.Module, without: str) -> nn.Module:
    fused = tq.fuse_modules(copy.deepcopy(model), [["first.0", "first.1", "first.2"]])
    wrapped = tq.QuantWrapper(fused)
    wrapped.qconfig = tq.get_default_qconfig(torch.backends.quantized.engine)
    model_to_leave = wrapped.get_submodule(f"module.{without}")
    model_to_leave.qconfig = None
    setattr(wrapped.module, without, nn.Sequential(tq.DeQuantStub(), model_to_leave))
    prepared = tq.prepare(wrapped)
    prepared(IMAGE)
    return tq.convert(prepared)


@pytest.mark.filterwarnings("ignore")
def test_an_eager_model_is_told_layer_by_layer(small: Small) -> None:
    found = census.of_eager(small, static(small, without="head"), IMAGE)
    assert verdicts(found) == {"first.0": "int8", "first.1": "folded", "depthwise": "int8", "head": "float"}
    assert found.conversions == 2
    assert found.summary == "2 of 3 layers in int8; float: head; 2 conversions"
    assert "depthwise  int8    Conv2d, quantized::conv2d" in str(found)


def test_a_model_that_was_trained_further_is_still_known() -> None:
    float_model, engine = checkpoints.load_digits_float(), engines.default_engine()
    with engines.using_engine(engine):
        int8 = checkpoints.load_digits_int8(engine)
        found = census.of_eager(float_model.eval(), int8, torch.rand(1, 3, 96, 96, generator=torch.Generator()))
    assert (len(found.named("int8")), found.named("float"), found.named("absent")) == (53, [], [])


class Language(nn.Module):
    """An embedding that shares its weight with the output layer, around an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm, self.out = nn.Embedding(20, 16), nn.LSTM(16, 16, 2), nn.Linear(16, 20, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, codes: Tensor) -> Tensor:
        logits: Tensor = self.out(self.lstm(self.embedding(codes))[0])
        return logits


def test_layers_that_share_a_weight_are_told_apart() -> None:
    with torch.random.fork_rng(devices=[]):
        model = Language().eval()
        int8 = tq.quantize_dynamic(model, {nn.LSTM, nn.Linear})
    found = verdicts(census.of_eager(model, int8, torch.zeros(3, 1, dtype=torch.long)))
    assert found.pop("embedding") == "float"
    assert set(found.values()) == {"int8"}
    assert len(found) == 5  # two matrices in each layer of the LSTM, and the output layer


@pytest.mark.parametrize("whole", [True, False])
def test_weights_that_are_only_kept_as_int8_compute_in_float(whole: bool) -> None:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8)).eval()
    int8 = copy.deepcopy(model)
    quantize_(int8, Int8DynamicActivationInt8WeightConfig() if whole else Int8WeightOnlyConfig())
    found = census.of_eager(model, int8, torch.ones(1, 32))
    assert verdicts(found) == dict.fromkeys(("0", "2"), "int8" if whole else "float")
    if not whole:
        assert "its int8 weights are unpacked and multiplied in float" in found.layers[0].how


def test_what_quantized_nothing_is_refused(small: Small) -> None:
    found = census.of_eager(small, small, IMAGE)
    with pytest.raises(
        census.CensusError, match=r"Quantized nothing: 0 of 4 layers in int8; float: first\.0, first\.1"
    ):
        census.require_int8(found)


def test_a_model_without_weights_is_refused() -> None:
    with pytest.raises(census.CensusError, match="The float model has no weights"):
        census.of_eager(nn.ReLU(), nn.ReLU(), IMAGE)


class Product(nn.Module):
    """A layer that multiplies by a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(4, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.table


def test_a_product_is_a_use_and_no_preparation() -> None:
    model = Product().eval()
    assert census.of_eager(model, model, torch.ones(1, 4)).named("float") == ["table"]


def test_a_weight_in_pieces_is_found() -> None:
    with torch.random.fork_rng(devices=[]):
        attention = nn.MultiheadAttention(8, 2)
    query, key, value = attention.in_proj_weight.detach().chunk(3)
    used = [census.Used("linear", one, True) for one in (query, key, value)]
    found = census.taken(attention, used, {}, 0)
    assert verdicts(found) == {"in_proj_weight": "int8", "out_proj": "absent"}


def graph(model: nn.Module, only: type[nn.Module] | None = None) -> Any:
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xq
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    config = xq.get_symmetric_quantization_config(is_per_channel=True)
    quantizer = xq.XNNPACKQuantizer()
    quantizer = quantizer.set_module_type(only, config) if only else quantizer.set_global(config)
    with torch.random.fork_rng(devices=[]):
        prepared: GraphModule = prepare_pt2e(torch.export.export(model, (IMAGE,)).module(), quantizer)
        prepared(IMAGE)
        return torch.export.export(convert_pt2e(prepared), (IMAGE,))


def write_pte(exported: Any, path: Path) -> Path:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with torch.random.fork_rng(devices=[]):  # exporters draw numbers when they are first used
        lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)
    return path


@pytest.mark.filterwarnings("ignore")
def test_a_file_of_executorch_is_told_layer_by_layer(small: Small, tmp_path: Path) -> None:
    whole = kernels.of_pte(small, write_pte(graph(small), tmp_path / "whole.pte"))
    assert verdicts(whole) == {"first.0": "int8", "first.1": "folded", "depthwise": "int8", "head": "int8"}
    assert whole.conversions == whole.kernels["XNNPACK Convert"] >= 2
    part = kernels.of_pte(small, write_pte(graph(small, only=nn.Linear), tmp_path / "part.pte"))
    assert verdicts(part) == {"first.0": "float", "first.1": "folded", "depthwise": "float", "head": "int8"}
    with torch.random.fork_rng(devices=[]):
        exported = torch.export.export(small, (IMAGE,))
    none = kernels.of_pte(small, write_pte(exported, tmp_path / "none.pte"))
    assert none.named("float") == ["first.0", "depthwise", "head"]


@pytest.mark.filterwarnings("ignore")
def test_an_onnx_file_is_told_as_the_runtime_rewrites_it(small: Small, tmp_path: Path) -> None:
    from onnxruntime import quantization as oq

    plain, ready, int8 = (tmp_path / f"{name}.onnx" for name in ("float", "ready", "int8"))
    with torch.random.fork_rng(devices=[]):
        torch.onnx.export(small, (IMAGE,), plain, dynamo=True, verbose=False, external_data=False)
    assert kernels.of_onnx(small, plain).named("float") == ["first.0", "depthwise", "head"]
    oq.shape_inference.quant_pre_process(plain, ready)
    oq.quantize_dynamic(ready, int8, op_types_to_quantize=["MatMul", "Gemm"])
    found = kernels.of_onnx(small, int8)
    assert verdicts(found) == {"first.0": "float", "first.1": "folded", "depthwise": "float", "head": "int8"}


@pytest.mark.parametrize(("of", "name"), [(kernels.of_pte, "a.pte"), (kernels.of_onnx, "a.onnx")])
def test_a_file_that_is_none_is_refused(of: Any, name: str, small: Small, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"nothing of the kind")
    with pytest.raises(files.FileFormatError, match=f"{name} is no"):
        of(small, tmp_path / name)
