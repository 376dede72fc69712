"""An ONNX file's types of activations: chosen by the processor, told from the file, and refused where they are slow."""

import contextlib
import io
import platform
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qhelpers import census, metrics
from qhelpers.check import files, kernels, onnx_scheme

LAYERS = ["conv1", "conv2", "conv3", "head"]
IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """Three convolutions, a way around two of them, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1(images).relu()
        logits: Tensor = self.head((self.conv3(self.conv2(x).relu()) + x).relu().mean((2, 3)))
        return logits


class Reader:
    def __init__(self, name: str) -> None:
        self.left = iter([{name: IMAGES.numpy()}])

    def get_next(self) -> Any:
        return next(self.left, None)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Residual().eval()
    with torch.no_grad():
        for layer in (model.conv2, model.conv3):
            layer.weight[:, 0, 0, 0] += 2  # most codes are small, so that a wrong zero point hides the weight
    return model


@pytest.fixture(scope="module")
def folder(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The net as a file of each kind."""
    import onnx
    from onnxruntime import quantization as oq

    place = tmp_path_factory.mktemp("files")
    plain, ready = place / "float.onnx", place / "ready.onnx"
    write(net, plain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oq.shape_inference.quant_pre_process(plain, ready)
        name = onnx.load(ready).graph.input[0].name
        types = {"unsigned": oq.QuantType.QUInt8, "signed": oq.QuantType.QInt8}
        for word, kind in types.items():
            for form in oq.QuantFormat:
                path = place / f"{word}-{form.name}.onnx"
                oq.quantize_static(
                    *(ready, path, Reader(name)),
                    quant_format=form,
                    activation_type=kind,
                    weight_type=oq.QuantType.QInt8,
                )
        oq.quantize_dynamic(ready, place / "dynamic.onnx", op_types_to_quantize=["MatMul", "Gemm"])
    weights_alone(place / "signed-QDQ.onnx", place / "weights.onnx")
    return place


def write(model: nn.Module, path: Path) -> None:
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (IMAGES,), path, dynamo=True, verbose=False, external_data=False)


def weights_alone(source: Path, path: Path) -> None:
    """Take the quantize and dequantize steps of activations out of a file; its int8 weights stay."""
    import onnx

    model = onnx.load(source)
    made = {node.output[0]: node for node in model.graph.node}
    passed = {}
    for node in [*model.graph.node]:
        before = made.get(node.input[0]) if node.input else None
        if node.op_type == "DequantizeLinear" and before is not None and before.op_type == "QuantizeLinear":
            passed[node.output[0]] = before.input[0]
            model.graph.node.remove(node)
    for node in [*model.graph.node]:
        if node.op_type == "QuantizeLinear":
            model.graph.node.remove(node)
        for at, name in enumerate(node.input):
            node.input[at] = passed.get(name, name)
    results = {one.name for one in model.graph.output}
    for old, new in passed.items():
        if old in results:
            made[new].output[0] = old
    onnx.save(model, path)


def test_x86_gets_unsigned_and_arm_signed_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    assert onnx_scheme.activation_dtype("x86") == torch.uint8
    assert onnx_scheme.activation_dtype("arm") == torch.int8
    for machine, dtype in (("x86_64", torch.uint8), ("AMD64", torch.uint8), ("aarch64", torch.int8)):
        monkeypatch.setattr(platform, "machine", lambda machine=machine: machine)
        assert onnx_scheme.activation_dtype() == dtype
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(onnx_scheme.SchemeError, match="neither x86 nor 64-bit ARM, but riscv64: name the target"):
        onnx_scheme.activation_dtype()
    assert onnx_scheme.activation_dtype("arm") == torch.int8


def test_a_target_that_does_not_exist_is_refused() -> None:
    with pytest.raises(onnx_scheme.SchemeError, match="There is no target 'gpu'; choose one of: here, x86, arm"):
        onnx_scheme.activation_dtype("gpu")


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_the_types_are_read_from_the_file(form: str, folder: Path) -> None:
    unsigned, signed = (onnx_scheme.of_file(folder / f"{word}-{form}.onnx") for word in ("unsigned", "signed"))
    assert set(unsigned.activations) == {torch.uint8}
    assert set(signed.activations) == {torch.int8}
    assert unsigned.weights == signed.weights == 4


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_a_file_for_arm_is_refused_on_x86(form: str, folder: Path) -> None:
    with pytest.raises(
        onnx_scheme.SchemeError, match=r"activations in signed-.* are signed.* for ARM.*QuantType.QUInt8"
    ):
        onnx_scheme.require_scheme(folder / f"signed-{form}.onnx", "x86")
    onnx_scheme.require_scheme(folder / f"unsigned-{form}.onnx", "x86")


def test_on_arm_a_file_for_x86_is_warned_of_and_runs(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"are unsigned, the scheme for x86.*QuantType.QInt8"):
        onnx_scheme.require_scheme(folder / "unsigned-QDQ.onnx", "arm")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        onnx_scheme.require_scheme(folder / "signed-QDQ.onnx", "arm")


@pytest.mark.parametrize("target", ["x86", "arm"])
@pytest.mark.parametrize("name", ["dynamic", "weights"])
def test_a_file_without_fixed_activations_suits_every_processor(name: str, target: str, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = onnx_scheme.require_scheme(folder / f"{name}.onnx", target)
    assert not found.activations
    assert found.weights == (1 if name == "dynamic" else 4)
    assert bool(found.dynamic) == (name == "dynamic")


@pytest.mark.parametrize("target", ["x86", "arm"])
def test_a_float_file_is_refused(target: str, folder: Path) -> None:
    with pytest.raises(onnx_scheme.SchemeError, match=r"float.onnx is a float file: nothing in it is quantized"):
        onnx_scheme.require_scheme(folder / "float.onnx", target)


def test_what_is_no_onnx_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(files.FileFormatError, match=r"a\.onnx is no ONNX file"):
        onnx_scheme.require_scheme(tmp_path / "a.onnx", "x86")


def test_int8_weights_without_int8_kernels_are_quantized_nothing(net: nn.Module, folder: Path) -> None:
    with pytest.raises(census.CensusError, match="Quantized nothing: 0 of 4 layers in int8"):
        census.require_int8(kernels.of_onnx(net, folder / "weights.onnx"))


@pytest.mark.skipif(onnx_scheme.this_machine() != "x86", reason="it is about x86")
def test_unsigned_activations_bring_every_layer_and_addition_into_int8_on_x86(net: nn.Module, folder: Path) -> None:
    unsigned = kernels.of_onnx(net, folder / "unsigned-QDQ.onnx")
    assert unsigned.named("int8") == LAYERS
    assert unsigned.kernels["QLinearAdd"] == 1
    signed = kernels.of_onnx(net, folder / "signed-QDQ.onnx")
    assert "conv1" in signed.named("float")
    assert "QLinearAdd" not in signed.kernels
    as_on_arm = kernels.of_onnx(net, folder / "signed-QDQ.onnx", onnx_scheme.AS_ON_ARM)
    assert as_on_arm.named("int8") == LAYERS


def test_a_weight_is_known_beside_a_zero_point_of_the_same_type(net: nn.Module, folder: Path) -> None:
    found = kernels.of_onnx(net, folder / "signed-QOperator.onnx")
    assert found.named("absent") == []
    assert [layer.how for layer in found.layers[:3]] == ["QLinearConv"] * 3


def test_zero_points_of_channels_are_no_weights(tmp_path: Path) -> None:
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Conv2d(2, 4, 1, bias=False), nn.BatchNorm2d(4)).eval()  # the norm's weights are ones
    codes = np.random.default_rng(0).integers(-90, 90, (4, 2, 1, 1)).astype(np.int8)
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.from_numpy(codes) * 0.01)
    one, minus = np.float32(0.01), np.int8(-1)
    constants = {"s": one, "z": minus, "w": codes, "ws": np.full(4, one), "wz": np.zeros(4, np.int8)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("QLinearConv", ["xq", "s", "z", "w", "ws", "wz", "s", "z"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "s", "z"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, n, 1, 1]) for name, n in (("x", 2), ("y", 4))
    ]
    kept = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], initializer=kept)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "a.onnx")
    found = kernels.of_onnx(model, tmp_path / "a.onnx")
    assert [layer.computes for layer in found.layers] == ["int8", "folded"]


def test_settings_reach_the_session_and_its_copy_in_another_process(folder: Path) -> None:
    path = folder / "signed-QDQ.onnx"
    asked = files.load_onnx(path, 1, onnx_scheme.AS_ON_ARM)
    again = asked.again() if asked.again else None
    assert again is not None
    assert again.again is not None
    assert again.again.args[2] == onnx_scheme.AS_ON_ARM  # type: ignore[attr-defined]
    assert metrics.sqnr_db(files.load_onnx(folder / "float.onnx")(IMAGES), asked(IMAGES)) > 20


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", ["x86", "arm"])
def test_a_graph_of_the_xnnpack_quantizer_gets_the_types_of_the_target(
    target: str, net: nn.Module, tmp_path: Path
) -> None:
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    dtype = onnx_scheme.activation_dtype(target)
    config = onnx_scheme.with_activations(xnnpack.get_symmetric_quantization_config(is_per_channel=True), dtype)
    with torch.random.fork_rng(devices=[]):
        captured = torch.export.export(net, (IMAGES,)).module()
        prepared = prepare_pt2e(captured, xnnpack.XNNPACKQuantizer().set_global(config))
        prepared(IMAGES)
        graph = convert_pt2e(prepared)
    write(graph, tmp_path / "graph.onnx")
    assert set(onnx_scheme.require_scheme(tmp_path / "graph.onnx", target).activations) == {dtype}
    loaded = files.load_onnx(tmp_path / "graph.onnx")
    assert metrics.sqnr_db(graph(IMAGES).detach(), loaded(IMAGES)) > 20


def test_a_type_of_another_width_is_refused() -> None:
    with pytest.raises(onnx_scheme.SchemeError, match=r"torch\.uint8 or torch\.int8; got torch\.int16"):
        onnx_scheme.with_activations(None, torch.int16)
