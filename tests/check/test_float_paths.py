"""The float rivals of a model: each computes what the model does, or is named with the reason why it is not there."""

import logging
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qhelpers import engines, guards, metrics
from qhelpers.check import float_paths, rivals

ROWS = torch.linspace(-1, 1, 8).reshape(2, 4)
IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
EVERY = {
    float_paths.EAGER,
    float_paths.TORCHSCRIPT,
    float_paths.COMPILED,
    float_paths.ONNX,
    float_paths.PTE,
    float_paths.BF16,
    float_paths.BF16_EAGER,
}


class Small(nn.Module):
    """A convolution, a batch norm with statistics of its own, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
        self.body[1].running_mean.fill_(0.3)
        self.body[1].running_var.fill_(0.25)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.body(images)
        return outputs


class Untraceable(Small):
    """No exporter can follow it: what it does next depends on the values."""

    def forward(self, images: Tensor) -> Tensor:
        if float(images.sum()) > 1e9:
            return images
        return super().forward(images)


def made(kind: Callable[[], nn.Module]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind()
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rivals")


@pytest.fixture(scope="module")
def found(folder: Path) -> float_paths.Rivals:
    return rivals(made(Small), IMAGES, folder=folder)


def test_every_path_is_there_or_named(found: float_paths.Rivals) -> None:
    there, missing = set(found.candidates), set(found.missing)
    assert not there & missing
    assert there | missing == EVERY
    assert there >= {float_paths.EAGER, float_paths.TORCHSCRIPT, float_paths.ONNX, float_paths.PTE}
    for name in there | missing:
        assert name in str(found)


def test_each_path_computes_what_the_model_does(found: float_paths.Rivals) -> None:
    with torch.inference_mode():
        expected = made(Small)(IMAGES)
        for name, run in found.candidates.items():
            assert metrics.sqnr_db(expected, run()) > (20 if "bf16" in name else 60), name


def test_batch_norms_are_folded() -> None:
    with torch.inference_mode():
        twin = float_paths.fused_copy(made(Small), IMAGES)
        assert not [layer for layer in twin.modules() if isinstance(layer, nn.BatchNorm2d)]
        assert torch.allclose(twin(IMAGES), made(Small)(IMAGES), atol=1e-5)


def test_each_path_can_be_handed_to_another_process(found: float_paths.Rivals) -> None:
    with torch.inference_mode():
        for name, run in found.candidates.items():
            again = pickle.loads(engines.pickled(run))
            assert torch.equal(again(), run()), name


@pytest.mark.skipif(not engines.has_bf16(), reason="one path less")
def test_a_compiled_path_is_made_for_each_number_of_threads(folder: Path, found: float_paths.Rivals) -> None:
    made_for = torch.get_num_threads() + 1
    compiled = found.candidates.get(float_paths.COMPILED)
    if compiled is None:
        pytest.skip("no compiler")
    with (
        float_paths.using_threads(made_for),
        pytest.raises(float_paths.RivalsError, match=f"not compiled for this number of threads, {made_for}"),
    ):
        pickle.loads(pickle.dumps(compiled))
    more = rivals(made(Small), IMAGES, folder=folder, threads=[made_for])
    assert set(more.candidates) == set(found.candidates)
    with float_paths.using_threads(made_for), torch.inference_mode():
        again = pickle.loads(pickle.dumps(more.candidates[float_paths.COMPILED]))
        assert torch.allclose(again(), made(Small)(IMAGES), atol=1e-5)
    assert torch.get_num_threads() == made_for - 1


def test_files_are_written_once_and_not_taken_for_another_model(
    found: float_paths.Rivals, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("written again")

    for writer in ("_write_torchscript", "_compile_side_by_side", "_write_onnx", "_write_pte"):
        monkeypatch.setattr(float_paths, writer, refuse)
    assert set(rivals(made(Small), IMAGES, folder=folder).candidates) == set(found.candidates)
    other = made(Small)
    with torch.no_grad():
        other.body[0].weight.mul_(2)
    for model, images in ((other, IMAGES), (made(Small), IMAGES[:1])):
        missing = rivals(model, images, folder=folder).missing
        assert "written again" in missing[float_paths.ONNX]


def test_a_path_that_cannot_be_built_is_named_with_its_reason(folder: Path) -> None:
    found = rivals(made(Untraceable), IMAGES, folder=folder)
    assert float_paths.EAGER in found.candidates
    for name in (float_paths.COMPILED, float_paths.ONNX, float_paths.PTE):
        assert name not in found.candidates
        assert len(found.missing[name]) > 20
        assert f"{name}: not here. {found.missing[name]}" in str(found)


def test_a_path_with_other_outputs_is_no_rival(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(path: Path, inputs: Sequence[Tensor]) -> float_paths.Run:
        return lambda: torch.ones(2, 5)

    monkeypatch.setattr(float_paths, "_compile_side_by_side", lambda *arguments: None)
    monkeypatch.setattr(float_paths, "open_onnx", wrong)
    found = rivals(made(Small), IMAGES, folder=tmp_path)
    assert float_paths.ONNX not in found.candidates
    assert "Its outputs are not those of the float model (SQNR" in found.missing[float_paths.ONNX]


def test_a_compiler_that_fails_in_its_process_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    found = rivals(made(Small), IMAGES, folder=tmp_path)
    assert "The compiler failed: " in found.missing[float_paths.COMPILED]
    assert "no-such-compiler" in found.missing[float_paths.COMPILED]
    assert float_paths.ONNX in found.candidates


def test_without_the_runtime_its_path_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(extra: str, *packages: str) -> None:
        raise guards.GuardError(f"{packages[0]} is not installed")

    monkeypatch.setattr(guards, "require_packages", absent)
    monkeypatch.setattr(engines, "has_bf16", lambda: False)
    found = rivals(made(Small), IMAGES, folder=tmp_path)
    assert "onnx is not installed" in found.missing[float_paths.ONNX]
    assert "executorch is not installed" in found.missing[float_paths.PTE]
    for name in (float_paths.BF16, float_paths.BF16_EAGER):
        assert found.missing[name] == "This processor has no instructions for bf16."


def test_a_model_that_cannot_be_timed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(guards.GuardError, match="training mode"):
        rivals(made(Small).train(), IMAGES, folder=tmp_path)
    with pytest.raises(float_paths.RivalsError, match="fails on these inputs"):
        rivals(made(Small), IMAGES[:, :1], folder=tmp_path)


# --- without the compiler, which takes half a minute -------------------------------------------------


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise float_paths.RivalsError("It is not compiled in this test.")

    monkeypatch.setattr(float_paths, "_compile_side_by_side", refuse)


class Calls(nn.Module):
    """A function of some layers and of the inputs, whatever they are."""

    def __init__(self, function: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)
        for layer in layers:
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.running_mean = torch.linspace(-1, 1, layer.num_features)
                layer.running_var = torch.linspace(0.1, 4, layer.num_features)
        self.eval()

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self.layers, *inputs)


class CallsOne(Calls):
    """The same of one input: what torch.fx can trace."""

    def forward(self, images: Tensor) -> Any:  # type: ignore[override]
        return self.function(self.layers, images)


def twice(layers: nn.ModuleList, images: Tensor) -> Tensor:
    first: Tensor = layers[1](layers[0](images))
    second: Tensor = layers[1](layers[0](images.flip(3)))
    return first - second / 2


def two_norms(layers: nn.ModuleList, images: Tensor) -> tuple[Tensor, Tensor]:
    return layers[0](images), layers[1](layers[0](images)) + layers[2](layers[0](images))


def other_dimension(layers: nn.ModuleList, rows: Tensor) -> Tensor:
    found: Tensor = layers[1](layers[0](rows))
    return found


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (lambda: CallsOne(twice, nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), IMAGES),
        (lambda: CallsOne(two_norms, nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)), IMAGES),
        (lambda: CallsOne(other_dimension, nn.Linear(8, 8), nn.BatchNorm1d(8)), IMAGES[:, 0]),
    ],
    ids=["called twice", "two norms", "other dimension"],
)
def test_batch_norms_stay_where_folding_them_would_change_any_output(
    kind: Callable[[], nn.Module], value: Tensor
) -> None:
    model = made(kind)
    twin = float_paths.fused_copy(model, value)
    assert [layer for layer in twin.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    with torch.inference_mode():
        torch.testing.assert_close(twin(value), model(value))


def test_a_fuse_model_that_cannot_be_called_leaves_the_model_as_it_is() -> None:
    class OwnFusion(Small):
        def fuse_model(self, is_qat: bool) -> None:
            raise AssertionError

    with torch.inference_mode():
        assert torch.equal(float_paths.fused_copy(made(OwnFusion), IMAGES)(IMAGES), made(Small)(IMAGES))


def several(layers: nn.ModuleList, rows: Tensor, other: Tensor) -> tuple[Tensor, list[Tensor]]:
    first: Tensor = layers[0](rows)
    return first, [layers[0](other), first.argmax(1)]


def test_a_model_in_bf16_computes_every_output() -> None:
    model = float_paths.InBFloat16(made(lambda: Calls(several, nn.Linear(4, 3))))
    first, (second, third) = model(ROWS, ROWS[:1])
    assert (first.dtype, second.dtype, third.dtype) == (torch.float32, torch.float32, torch.int64)
    assert second.shape == (1, 3)


class Constant(nn.Module):
    """It takes no input."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.ones(3))

    def forward(self) -> Tensor:
        return self.values * 2


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        (lambda: Calls(several, nn.Linear(4, 3)), (ROWS, ROWS[:1])),
        (Constant, ()),
        (lambda: nn.Sequential(nn.Linear(4, 3)), (ROWS.reshape(4, 2).T,)),
        (lambda: nn.Sequential(nn.Linear(4, 3)), (ROWS.clone().requires_grad_(),)),
        (lambda: nn.Sequential(nn.Conv2d(3, 3, 1)), (IMAGES.contiguous(memory_format=torch.channels_last),)),
    ],
    ids=["two inputs", "no input", "transposed", "requires grad", "channels last"],
)
@pytest.mark.usefixtures("uncompiled")
def test_no_path_is_missing_for_the_kind_of_inputs(
    kind: Callable[[], nn.Module], inputs: tuple[Tensor, ...], tmp_path: Path
) -> None:
    missing = rivals(made(kind), *inputs, folder=tmp_path).missing
    compiled = {float_paths.COMPILED, float_paths.BF16} | (set() if engines.has_bf16() else {float_paths.BF16_EAGER})
    assert set(missing) == compiled, missing


@pytest.mark.usefixtures("uncompiled")
def test_damaged_files_are_written_again(tmp_path: Path) -> None:
    there = set(rivals(made(Small), IMAGES, folder=tmp_path).candidates)
    files = [path for path in tmp_path.rglob("float.*") if path.is_file()]
    assert len(files) == 3
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = rivals(made(Small), IMAGES, folder=tmp_path)
    assert set(found.candidates) == there, found.missing


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.usefixtures("uncompiled")
def test_a_file_that_holds_another_model_is_written_again(tmp_path: Path) -> None:
    rivals(made(Small), IMAGES, folder=tmp_path)
    (path,) = tmp_path.rglob("float.ts")
    torch.jit.trace(made(Small).body[:4], IMAGES).save(str(path))
    found = rivals(made(Small), IMAGES, folder=tmp_path)
    assert float_paths.TORCHSCRIPT in found.candidates, found.missing


def test_a_package_stays_when_it_is_another_that_cannot_be_compiled(tmp_path: Path) -> None:
    good, missing = tmp_path / "float-1.pt2", tmp_path / "float-2.pt2"
    good.write_bytes(b"good")

    def build() -> float_paths.Run:
        raise float_paths.RivalsError("The compiler failed.")

    found = float_paths.Rivals({}, {}, {})
    float_paths._try(float_paths.COMPILED, build, [good, missing], torch.ones(1), found)
    assert good.read_bytes() == b"good"
    assert found.missing == {float_paths.COMPILED: "RivalsError: The compiler failed."}


def test_the_name_of_the_files_stands_for_strides_and_for_buffers_outside_the_state() -> None:
    def held(value: float) -> nn.Module:
        layer = made(lambda: nn.Linear(4, 4))
        layer.register_buffer("scale", torch.tensor([value]), persistent=False)
        return layer

    square = torch.ones(4, 4)
    keys = [float_paths._key(held(1), [square]), float_paths._key(held(1), [square.T.contiguous().T])]
    assert len({*keys, float_paths._key(held(2), [square])}) == 3
    assert float_paths._key(held(1), [square.clone()]) == keys[0]


@pytest.mark.usefixtures("uncompiled")
def test_where_instructions_cannot_be_read_both_bf16_paths_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable() -> bool:
        raise engines.EngineError("The instructions of this processor cannot be read.")

    monkeypatch.setattr(engines, "has_bf16", unreadable)
    missing = rivals(made(Small), IMAGES, folder=tmp_path).missing
    for name in (float_paths.BF16, float_paths.BF16_EAGER):
        assert missing[name] == "The instructions of this processor cannot be read."


@pytest.mark.usefixtures("uncompiled")
def test_files_are_found_again_from_another_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = rivals(made(Small), IMAGES, folder="relative").candidates[float_paths.TORCHSCRIPT]
    monkeypatch.chdir("/")
    with torch.inference_mode():
        assert torch.equal(pickle.loads(pickle.dumps(run))(), run())


def locked() -> nn.Module:
    model = made(Small)
    model.lock = threading.Lock()  # type: ignore[assignment]
    return model


REFUSED: dict[str, tuple[Any, tuple[Any, ...], str]] = {
    "no module": (lambda images: images, (IMAGES,), "The float model must be an nn.Module, got function."),
    "tuple": (made(Small), ((IMAGES,),), "The inputs of the float model must be tensors, got tuple."),
    "number": (made(Small), (IMAGES, 2), "The inputs of the float model must be tensors, got int."),
    "dict": (
        Calls(lambda _, images: {"logits": images}),
        (IMAGES,),
        "The model's first output must be a tensor, got dict.",
    ),
    "None": (Calls(lambda _, images: None), (IMAGES,), "The model's first output must be a tensor, got NoneType."),
    "nothing": (Calls(lambda _, images: ()), (IMAGES,), "The model's first output must be a tensor, got tuple."),
    "lock": (locked(), (IMAGES,), "The float model cannot be prepared: cannot pickle '_thread.lock' object"),
}


@pytest.mark.parametrize(("model", "inputs", "message"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_paths_is_refused_in_words(
    model: Any, inputs: tuple[Any, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(float_paths.RivalsError) as caught:
        rivals(model, *inputs, folder=tmp_path)
    assert str(caught.value) == message


def test_paths_are_compared_by_the_first_output_that_has_numbers() -> None:
    model = Calls(lambda _, images: (images[:, :0], [images > 0, images], images + 1))
    assert torch.equal(float_paths._expected(model.eval(), (IMAGES,)), IMAGES)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os.kill(os.getpid(), 9)", "The compiler failed: it ended with -9, without a word."),
        ("import os; os.write(2, b'no \\xff here'); os._exit(1)", "The compiler failed: no \ufffd here"),
    ],
    ids=["killed", "no UTF-8"],
)
def test_how_a_compiler_ended_is_said(code: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda _, **options: start([sys.executable, "-c", code], **options))
    with pytest.raises(float_paths.RivalsError) as caught:
        float_paths._compile_side_by_side(tmp_path / "exported.pt2", {1: tmp_path / "float-1.pt2"})
    assert str(caught.value) == message


def test_a_package_that_does_not_load_leaves_no_folder_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "float-1.pt2").write_bytes(b"PK and nothing else")
    with pytest.raises(RuntimeError, match="zip archive"):
        float_paths.open_pt2(tmp_path / "float-1.pt2", [])
    assert [path.name for path in tmp_path.iterdir()] == ["float-1.pt2"]


def test_what_libraries_log_while_it_is_quiet_leaves_no_log_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    with float_paths.quiet():
        logging.warning("This makes a handler, which would write to what is thrown away, as would all logs after it.")
    assert not logging.root.handlers
