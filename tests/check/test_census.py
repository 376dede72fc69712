"""What computes in int8: each layer by name, in each runtime, whatever became of its name and layout."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization as tq
from torch.fx import GraphModule

from qhelpers import census, engines
from qhelpers.check import compiled, files, kernels
from qhelpers.tasks import checkpoints

IMAGE = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


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
def test_an_eager_model_is_told_layer_by_layer(small: nn.Module) -> None:
    found = kernels.of_eager(small, static(small, without="head"), IMAGE)
    assert verdicts(found) == {"first.0": "int8", "first.1": "folded", "depthwise": "int8", "head": "float"}
    assert found.conversions == 2
    assert found.summary == "2 of 3 layers in int8; float: head; 2 conversions"
    assert "depthwise  int8    Conv2d, quantized::conv2d" in str(found)


def test_a_model_that_was_trained_further_is_still_known() -> None:
    float_model, engine = checkpoints.load_digits_float(), engines.default_engine()
    with engines.using_engine(engine):
        int8 = checkpoints.load_digits_int8(engine)
        found = kernels.of_eager(float_model.eval(), int8, torch.rand(1, 3, 96, 96, generator=torch.Generator()))
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
    found = verdicts(kernels.of_eager(model, int8, torch.zeros(3, 1, dtype=torch.long)))
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
    found = kernels.of_eager(model, int8, torch.ones(1, 32))
    assert verdicts(found) == dict.fromkeys(("0", "2"), "int8" if whole else "float")
    if not whole:
        assert "its int8 weights are unpacked and multiplied in float" in found.layers[0].how


def test_a_zero_points_correction_is_no_layer() -> None:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.LayerNorm(32), *(nn.Linear(32, 32) for _ in range(8))).eval()
    int8 = copy.deepcopy(model)
    quantize_(int8, Int8DynamicActivationInt8WeightConfig(set_inductor_config=False))
    found = kernels.of_eager(model, int8, torch.ones(2, 32))  # each weight is also summed up, beside its product
    assert {layer.how for layer in found.layers if layer.kind == "Linear"} == {"aten::_int_mm"}


def test_a_kernel_that_unpacks_int8_weights_multiplies_in_float() -> None:
    assert compiled.INTEGER.search("_int_mm")
    assert compiled.INTEGER.search("onednn.qlinear_pointwise")
    assert not compiled.INTEGER.search("_weight_int8pack_mm")  # as the code calls it
    assert not compiled.INTEGER.search("functools.partial(<function woq_int8>)")  # as it stands in the graph


def test_what_quantized_nothing_is_refused(small: nn.Module) -> None:
    found = kernels.of_eager(small, small, IMAGE)
    with pytest.raises(
        census.CensusError, match=r"Quantized nothing: 0 of 4 layers in int8; float: first\.0, first\.1"
    ):
        census.require_int8(found)


def test_a_model_without_weights_is_refused() -> None:
    with pytest.raises(census.CensusError, match="The float model has no weights"):
        kernels.of_eager(nn.ReLU(), nn.ReLU(), IMAGE)


class Product(nn.Module):
    """A layer that multiplies by a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(4, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.table


def test_a_product_is_a_use_and_no_preparation() -> None:
    model = Product().eval()
    assert kernels.of_eager(model, model, torch.ones(1, 4)).named("float") == ["table"]


def test_a_weight_in_pieces_is_found() -> None:
    for seed in range(60):  # a small weight is never taken for a piece by chance
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            attention = nn.MultiheadAttention(8, 2)
        query, key, value = attention.in_proj_weight.detach().chunk(3)
        used = [census.Used("linear", one, True) for one in (query, key, value)]
        found = census.taken(attention, used, {}, 0)
        assert verdicts(found) == {"in_proj_weight": "int8", "out_proj": "absent"}


def test_of_a_large_weight_the_longest_rows_tell() -> None:
    generator = torch.Generator().manual_seed(0)
    mostly_dead = [torch.zeros(1024, 256) for _ in range(2)]  # the rows that are alike, zero, tell nothing
    for one in mostly_dead:
        one[-64:] = torch.randn(64, 256, generator=generator)
    with torch.random.fork_rng(devices=[]):
        net = nn.Sequential(*(nn.Linear(256, 1024) for _ in mostly_dead))
    for layer, weight in zip(net, mostly_dead, strict=True):
        layer.weight = nn.Parameter(weight)
    gates = mostly_dead[0].reshape(4, 256, 256)[[0, 3, 1, 2]].reshape(1024, 256)  # as ONNX has those of an LSTM
    found = census.taken(net, [census.Used("linear", gates.t() * 2, True)], {}, 0)
    assert verdicts(found) == {"0": "int8", "1": "absent"}


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
def test_a_file_of_executorch_is_told_layer_by_layer(small: nn.Module, tmp_path: Path) -> None:
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
def test_the_times_of_a_file_name_its_kernels(small: nn.Module, tmp_path: Path) -> None:
    path = write_pte(graph(small, only=nn.Linear), tmp_path / "part.pte")
    with torch.random.fork_rng(devices=[]):
        found = kernels.pte_times(path, IMAGE, runs=3)
    convolutions = [one for one in found.kernels if "Convolution" in one.kernel]
    assert {one.integer for one in convolutions} == {False}
    assert sum(one.calls for one in convolutions) == 2
    assert [one.kernel for one in found.kernels if one.integer] == ["Fully Connected (NC, QS8, QC8W) GEMM"]
    assert found.pieces >= 1
    assert all(one.ms >= 0 for one in found.kernels)
    assert sum(one.ms for one in found.kernels) <= 2 * found.whole_ms
    assert str(found).endswith(f"of {found.whole_ms:.3f} ms outside")
    with pytest.raises(files.InputError, match=r"part\.pte takes \(1, 3, 8, 8\), got \(1, 3, 9, 9\)"):
        kernels.pte_times(path, torch.ones(1, 3, 9, 9))


class Sums(nn.Module):
    """XNNPACK has no kernel for its sums."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cumsum(inputs, dim=1).relu()


@pytest.mark.filterwarnings("ignore")
def test_the_times_of_what_was_not_delegated_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.random.fork_rng(devices=[]):
        exported = torch.export.export(Sums(), (torch.ones(1, 4),))
    found = kernels.pte_times(write_pte(exported, tmp_path / "sums.pte"), torch.ones(1, 4), runs=2)
    outside = [one for one in found.kernels if not one.delegated]
    assert [(one.kernel, one.calls) for one in outside] == [("aten::cumsum", 1)]
    assert found.outside_ms == outside[0].ms
    monkeypatch.setattr(kernels, "_dumped", lambda program: None)
    with pytest.raises(files.ExportError, match="This build of ExecuTorch records no times"):
        kernels.pte_times(tmp_path / "sums.pte", torch.ones(1, 4))


@pytest.mark.filterwarnings("ignore")
def test_an_onnx_file_is_told_as_the_runtime_rewrites_it(small: nn.Module, tmp_path: Path) -> None:
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
def test_a_file_that_is_none_is_refused(of: Any, name: str, small: nn.Module, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"nothing of the kind")
    with pytest.raises(files.FileFormatError, match=f"{name} is no"):
        of(small, tmp_path / name)


# --- models that others bring ------------------------------------------------------------------------


class Scaled(nn.Module):
    """A layer whose parameter multiplies the activations, in front of an int8 layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.fc = nn.Parameter(torch.rand(1, 8)), nn.Linear(8, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.fc(inputs * self.gate)
        return logits


def test_a_product_with_activations_is_no_preparation_of_the_weight(random_weights: None) -> None:
    model = Scaled().eval()
    found = kernels.of_eager(model, tq.quantize_dynamic(model, {nn.Linear}), torch.ones(1, 8))
    assert verdicts(found) == {"gate": "float", "fc": "int8"}


@pytest.mark.parametrize("which", ["0", "2"])
@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_layers_with_equal_weights_are_told_apart_by_their_names(
    which: str, factor: float, random_weights: None
) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).eval()
    model[2].load_state_dict({name: factor * value for name, value in model[0].state_dict().items()})
    found = kernels.of_eager(model, tq.quantize_dynamic(model, {which}), torch.ones(1, 8))
    assert found.named("int8") == [which]


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.b(self.a(inputs).relu())
        return logits


@pytest.mark.parametrize("which", ["a", "b"])
def test_of_two_layers_with_one_weight_the_right_one_is_named(which: str, random_weights: None) -> None:
    model = Tied().eval()
    found = kernels.of_eager(model, tq.quantize_dynamic(model, {which}), torch.ones(1, 8))
    assert found.named("int8") == [which]


def test_parameters_that_share_their_memory_are_known(random_weights: None) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(model.parameters()), model.parameters())
    assert kernels.of_eager(model, model, torch.ones(1, 8)).named("float") == ["0", "2"]


@pytest.mark.parametrize("rows", [6, 8])
def test_weights_of_zeros_are_known(rows: int, random_weights: None) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    nn.init.zeros_(model[0].weight[:rows])
    found = kernels.of_eager(model, tq.quantize_dynamic(model, {"0"}), torch.ones(1, 8))
    assert verdicts(found) == {"0": "int8", "2": "float"}


def test_a_layer_that_computes_its_weight_counts_once(random_weights: None) -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 4)), nn.Linear(4, 2)).eval()
    assert kernels.of_eager(model, model, torch.ones(1, 8)).named("float") == ["0", "1"]


def test_an_embedding_in_int8_is_found(random_weights: None) -> None:
    model = nn.Sequential(nn.Embedding(10, 8)).eval()
    model.qconfig = tq.float_qparams_weight_only_qconfig
    int8 = tq.convert(tq.prepare(copy.deepcopy(model)))
    assert kernels.of_eager(model, int8, torch.tensor([[1, 2]])).named("int8") == ["0"]


def test_int8_weights_times_float_activations_are_no_int8_arithmetic(random_weights: None) -> None:
    class WeightOnly(nn.Module):
        def __init__(self, weight: Tensor) -> None:
            super().__init__()
            self.scale = weight.abs().amax(1) / 127
            self.codes = nn.Buffer((weight / self.scale[:, None]).round().to(torch.int8))

        def forward(self, inputs: Tensor) -> Tensor:
            return torch._weight_int8pack_mm(inputs, self.codes, self.scale)

    model = nn.Linear(32, 16, bias=False).eval()
    found = kernels.of_eager(model, WeightOnly(model.weight.detach()), torch.ones(1, 32))
    assert found.named("float") == ["the model itself"]


class Spare(nn.Module):
    """A convolution and a head of one number, and a layer that is not called; its size is that of a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head, self.spare = nn.Conv2d(3, 16, 3), nn.Linear(16, 1), nn.Linear(16, 1)

    def forward(self, images: Tensor) -> Tensor:
        score: Tensor = self.head(self.conv(images).relu().mean((2, 3)))
        return score


@pytest.mark.filterwarnings("ignore")
def test_a_layer_that_is_not_called_is_absent_and_one_of_one_output_is_not(
    random_weights: None, tmp_path: Path
) -> None:
    model, path = Spare().eval(), tmp_path / "spare.onnx"
    with torch.random.fork_rng(devices=[]):
        torch.onnx.export(model, (IMAGE,), path, dynamo=True, verbose=False, external_data=False)
    assert verdicts(kernels.of_onnx(model, path)) == {"conv": "float", "head": "float", "spare": "absent"}
    found = kernels.of_pte(model, write_pte(graph(model), tmp_path / "spare.pte"))
    assert verdicts(found) == {"conv": "int8", "head": "int8", "spare": "absent"}


@pytest.mark.filterwarnings("ignore")
def test_the_gates_of_an_lstm_are_found_in_the_order_of_onnx(random_weights: None, tmp_path: Path) -> None:
    model, path = nn.LSTM(8, 8, batch_first=True).eval(), tmp_path / "lstm.onnx"
    with torch.random.fork_rng(devices=[]):
        torch.onnx.export(model, (torch.ones(1, 4, 8),), path, dynamo=True, verbose=False, external_data=False)
    assert kernels.of_onnx(model, path).named("float") == ["weight_ih_l0", "weight_hh_l0"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_a_file_of_executorch_is_float(
    dtype: torch.dtype, random_weights: None, tmp_path: Path
) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    half = copy.deepcopy(model).to(dtype)
    with torch.random.fork_rng(devices=[]):
        exported = torch.export.export(half, (torch.ones(1, 8, dtype=dtype),))
    assert kernels.of_pte(model, write_pte(exported, tmp_path / "half.pte")).named("float") == ["0", "2"]
