"""What stands beside each guard in the index of symptoms: the same check in plain PyTorch, on what is bad and good."""

import ast
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization as tq
from torch.export import Dim

from qhelpers import calibration, census, engines, guards
from qhelpers.book import groups
from qhelpers.check import eager_mode, graphs, onnx_scheme, packages
from tools import symptoms

RECORDS = json.loads(symptoms.GUARDS.read_text())
MODULES = (guards, eager_mode, graphs, calibration, census, engines, onnx_scheme, packages, groups)
UNLISTED = {"require_packages"}  # about the installation of this package, and named by it alone
ROWS = torch.linspace(-1, 1, 8).view(2, 4)
Names = dict[str, Any]

pytestmark = pytest.mark.usefixtures("random_weights")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings(), engines.using_engine("qnnpack"):
        warnings.simplefilter("ignore")
        yield


class Case(NamedTuple):
    """How to call the guard with some names, and the names of a bad and of a good case."""

    guard: Callable[[Names], object]
    bad: Callable[[], Names]
    good: Callable[[], Names]


class Attends(nn.Module):
    def __init__(self, batch_first: bool = False) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=batch_first), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.head(self.attention(x, x, x, need_weights=False)[0])
        return mixed


class OnShape(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] > 1 else x


class OnValues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class ToNumber(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.sum())


class ToNumPy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() * 2)


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 2))


def configured(model: nn.Module, engine: str = "qnnpack") -> nn.Module:
    model.qconfig = tq.get_default_qconfig(engine)  # type: ignore[assignment]
    return model


def int8() -> nn.Module:
    return tq.quantize_dynamic(small())


def prepared(ran: bool) -> nn.Module:
    model = tq.prepare(configured(tq.QuantWrapper(small()).eval()))
    if ran:
        model(ROWS)
    return model


def attention(stage: str, batch_first: bool = False) -> nn.Module:
    model = tq.prepare(configured(Attends(batch_first).eval()))
    model(torch.randn(3, 5, 8))
    return tq.convert(model) if stage == "converted" else model


def qat_attention(excluded: bool) -> nn.Module:
    model = Attends().train()
    model.qconfig = tq.get_default_qat_qconfig("qnnpack")  # type: ignore[assignment]
    if excluded:
        model.attention.qconfig = None
    return model


def graph(annotated: bool = True, ran: bool = True) -> nn.Module:
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer()
    if annotated:
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    found = prepare_pt2e(torch.export.export(small().eval(), (ROWS,)).module(), quantizer)
    if ran:
        found(ROWS)
    return found


def captured(model: nn.Module) -> Names:
    program = torch.export.export(model.eval(), (ROWS,), dynamic_shapes=({0: Dim("batch")},))
    return {"model": model, "inputs": (ROWS,), "captured": program}


def capture(names: Names) -> object:
    shapes = ({0: Dim("batch")},) if "captured" in names else names.get("shapes")
    return graphs.capture(names["model"], names["inputs"], names.get("kwargs"), dynamic_shapes=shapes)


def transformer(**more: bool) -> Names:
    mask = nn.Transformer.generate_square_subsequent_mask(2)
    layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, batch_first=True), 1).eval()
    return {"model": layers, "inputs": (ROWS[None],), "kwargs": {"mask": mask, **more}}


def sized(rows: int) -> Names:
    return {"model": small().eval(), "inputs": (ROWS[:rows],), "shapes": ({0: Dim("batch")},)}


def called(model: nn.Module) -> Names:
    return {"model": model, "inputs": (ROWS,)}


def counted(names: Names) -> object:
    computes = census.INT8 if guards.int8_modules(names["model"]) else census.FLOAT
    return census.require_int8(census.Census((census.Layer("0", "Linear", computes, ""),)))


def onnx_file(*kinds: str) -> Names:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants = [helper.make_node("Relu", ["x"], ["y"])], []
    for kind in kinds:
        zero = torch.zeros((), dtype={"unsigned": torch.uint8, "signed": torch.int8}[kind])
        constants = [numpy_helper.from_array(torch.tensor(0.1).numpy(), "scale")]
        constants.append(numpy_helper.from_array(zero.numpy(), "zero"))
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"]),
            helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["y"]),
        ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    path = Path("model.onnx").resolve()
    made = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(made, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)
    return {"path": path, "onnx": onnx}


def grouped(columns: int) -> Names:
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(columns, 8))
    config = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))
    quantize_(model, config, lambda module, name: isinstance(module, nn.Linear) and module.in_features % 32 == 0)
    return {"model": model}


def group_of(**values: Any) -> Callable[[], Names]:
    return lambda: {"layer": SimpleNamespace(in_features=64), "group": 32, "bits": 4, **values}


def model_of(make: Callable[..., nn.Module], *values: Any) -> Callable[[], Names]:
    return lambda: {"model": make(*values)}


def spec_of(*parts: Any) -> Callable[[], Names]:
    return lambda: {"model": nn.Sequential(nn.Linear(2, 2), nn.Conv2d(1, 1, 1)), "spec": set(parts)}


def loaded(*batches: Any) -> Callable[[], Names]:
    return lambda: {"loader": list(batches), "model": prepared(ran=False)}


def on_model(guard: Callable[[nn.Module], object]) -> Callable[[Names], object]:
    return lambda names: guard(names["model"])


def on_graph(guard: Callable[..., object]) -> Callable[[Names], object]:
    return lambda names: guard(names["prepared"])


def prepared_as(make: Callable[..., nn.Module], *values: Any) -> Callable[[], Names]:
    return lambda: {"prepared": make(*values)}


def patched(change: Callable[[pytest.MonkeyPatch], None], **names: Any) -> Callable[[], Names]:
    return lambda: {"patch": change, **names}


def check_spec(names: Names) -> object:
    return eager_mode.check_dynamic_spec(names["model"], names["spec"])


def check_groups(names: Names) -> object:
    return groups.require_groups(names["layer"].in_features, names["group"], names["bits"])


def calibrate(names: Names) -> object:
    return calibration.calibrate(names["model"], names["loader"], progress=False)


def check_engine(names: Names) -> object:
    return engines.check_engine(names["name"])


def check_scheme(names: Names) -> object:
    return onnx_scheme.require_scheme(names["path"], "x86")


def check_int4(names: Names) -> object:
    return groups.require_fast_int4(names["x"].dtype, 9, torch.backends.cpu.get_cpu_capability())


def without(engine: str) -> Callable[[pytest.MonkeyPatch], None]:
    kept = [name for name in torch.backends.quantized.supported_engines if name != engine]
    kind = type(torch.backends.quantized)
    return lambda patch: patch.setattr(kind, "supported_engines", kept)


def instructions(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: name)


def compiler(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setenv("CXX", name)


good_spec, good_groups = spec_of("0", nn.Linear), group_of()
fast, here = patched(instructions("AVX2"), x=ROWS.bfloat16()), patched(lambda patch: None, name="qnnpack")
int8_attention = model_of(attention, "converted")
CASES = {  # by the words of the record
    "are int8 and cannot be trained": Case(on_model(guards.require_trainable), model_of(int8), model_of(small)),
    "torch.compile needs a C++ compiler": Case(
        lambda names: packages.require_compiler(), patched(compiler("no-such")), patched(compiler("python3"))
    ),
    "The model is in training mode": Case(
        on_model(guards.require_eval),
        model_of(lambda: nn.Sequential(nn.Dropout())),
        model_of(lambda: small().eval()),
    ),
    "holds integer weights": Case(on_model(guards.require_quantized), model_of(small), model_of(int8)),
    "kept their float weights": Case(
        lambda names: guards.require_quantized(names["model"], ["0", "1"]), lambda: grouped(48), lambda: grouped(64)
    ),
    "The model has no module …": Case(check_spec, spec_of("9"), good_spec),
    "The model has no module of type": Case(check_spec, spec_of(nn.LSTM), good_spec),
    "has no dynamic counterpart": Case(check_spec, spec_of(nn.Conv2d), spec_of(nn.Linear)),
    "wrap it in torch.ao.quantization.QuantWrapper": Case(
        on_model(eager_mode.require_stubs), model_of(small), model_of(lambda: tq.QuantWrapper(small()))
    ),
    "prepare_qat cannot train attention in int8": Case(
        on_model(eager_mode.require_attention_excluded), model_of(qat_attention, False), model_of(qat_attention, True)
    ),
    "Attention was left in float": Case(
        on_model(eager_mode.require_int8_attention), model_of(lambda: tq.quantize_dynamic(Attends())), int8_attention
    ),
    "Prepared attention with batch_first=True": Case(
        on_model(eager_mode.require_int8_attention), model_of(attention, "prepared", True), int8_attention
    ),
    "Attention was prepared and still computes in float": Case(
        on_model(eager_mode.require_int8_attention), model_of(attention, "prepared"), int8_attention
    ),
    "The model is in evaluation mode": Case(
        on_model(eager_mode.require_training), model_of(lambda: small().eval()), model_of(lambda: small().train())
    ),
    "The model has no observers": Case(
        on_model(eager_mode.require_calibrated), model_of(small), model_of(prepared, True)
    ),
    "layers with weights have not been calibrated": Case(
        on_model(eager_mode.require_calibrated), model_of(prepared, False), model_of(prepared, True)
    ),
    "The qconfig suits": Case(
        on_model(eager_mode.require_matching_engine),
        model_of(lambda: configured(small(), "x86")),
        model_of(lambda: configured(small())),
    ),
    "Nothing in this graph is observed": Case(
        on_graph(graphs.require_annotated), prepared_as(graph, False), prepared_as(graph)
    ),
    "observers of this graph have seen no data": Case(
        on_graph(graphs.require_observed), prepared_as(graph, True, False), prepared_as(graph)
    ),
    "is no graph": Case(on_graph(graphs.require_observed), prepared_as(small), prepared_as(graph)),
    "The captured graph answers differently": Case(
        capture, lambda: captured(OnShape()), lambda: captured(nn.Linear(4, 4))
    ),
    "nn.Transformer looks at the values of its mask": Case(capture, transformer, lambda: transformer(is_causal=True)),
    "The model turns a tensor into a Python number": Case(capture, lambda: called(ToNumber()), lambda: called(small())),
    "The model branches on values": Case(capture, lambda: called(OnValues()), lambda: called(small())),
    "The model hands a tensor to NumPy": Case(capture, lambda: called(ToNumPy()), lambda: called(small())),
    "A dimension is to be dynamic, and the example has the size": Case(capture, lambda: sized(1), lambda: sized(2)),
    "The loader yielded no sample": Case(calibrate, loaded(), loaded(ROWS)),
    "A batch must be a tensor or": Case(calibrate, loaded({"x": ROWS}), loaded((ROWS, torch.zeros(2)))),
    "Quantized nothing": Case(counted, lambda: called(small()), lambda: called(int8())),
    "There is no quantized engine": Case(check_engine, patched(lambda patch: None, name="x87"), here),
    "This build of PyTorch has no engine": Case(check_engine, patched(without("onednn"), name="onednn"), here),
    "is a float file: nothing in it is quantized": Case(check_scheme, onnx_file, lambda: onnx_file("unsigned")),
    "the scheme for ARM": Case(check_scheme, lambda: onnx_file("signed"), lambda: onnx_file("unsigned")),
    "There are no codes of": Case(check_groups, group_of(bits=1), good_groups),
    "weights cannot be: take a whole number": Case(check_groups, group_of(group=0), good_groups),
    "do not divide rows of": Case(check_groups, group_of(group=48), good_groups),
    "This installation has no kernel": Case(
        lambda names: groups.require_kernel(names["name"], ""),
        patched(lambda patch: None, name="aten::no_such"),
        patched(lambda patch: None, name=groups.KERNEL),
    ),
    "has no vector code for …:": Case(check_int4, patched(instructions("DEFAULT"), x=ROWS.bfloat16()), fast),
    "inputs:": Case(check_int4, patched(instructions("AVX2"), x=ROWS), fast),
}


def test_each_guard_has_a_record_and_each_record_a_case() -> None:
    recorded = {(guard, record["words"]) for record in RECORDS for guard in record["guards"]}
    for module in MODULES:
        tree = ast.parse(Path(str(module.__file__)).read_text())
        own = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        for name in own:
            guard = f"{module.__name__.removeprefix('qhelpers.')}.{name}"
            if name.startswith(("require_", "check_")) and name not in UNLISTED:
                for message in symptoms.templates(guard):
                    assert any(other == guard and words in message for other, words in recorded), (guard, message)
    assert [record["words"] for record in RECORDS] == list(CASES)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record["words"])
def test_the_check_in_plain_pytorch_refuses_what_the_guard_refuses(
    record: Names, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(record["check"].splitlines()) <= 3
    assert "qhelpers" not in record["check"]
    case = CASES[record["words"]]
    message = symptoms.pattern(record["words"].split("…"))
    with monkeypatch.context() as patch:
        names = {"torch": torch, "nn": nn, "tq": tq, **case.good()}
        names.get("patch", lambda patch: None)(patch)
        case.guard(names)
        exec(record["check"], names)
    with monkeypatch.context() as patch:
        names = {"torch": torch, "nn": nn, "tq": tq, **case.bad()}
        names.get("patch", lambda patch: None)(patch)
        with pytest.raises(Exception, match=message):
            case.guard(names)
        with pytest.raises(Exception, match=r"."):
            exec(record["check"], names)
