"""Exported files: written whole or not at all, and refused with a reason that a reader understands."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qhelpers import atomic, engines, guards
from qhelpers.check import files, packages

IMAGES = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LOADERS = {".pte": files.load_pte, ".onnx": files.load_onnx, ".ptl": files.load_lite}


class Small(nn.Module):
    """A convolution, a batch norm and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.body(images)
        return outputs


def small() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Small().eval()


def write_pte(model: nn.Module, path: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = to_edge_transform_and_lower(torch.export.export(model, (IMAGES,)), partitioner=[XnnpackPartitioner()])
    path.write_bytes(program.to_executorch().buffer)


def write_onnx(model: nn.Module, path: Path) -> None:
    torch.onnx.export(model, (IMAGES,), path, dynamo=True, verbose=False, external_data=False)


def write_lite(model: nn.Module, path: Path) -> None:
    torch.jit.freeze(torch.jit.trace(model, IMAGES))._save_for_lite_interpreter(str(path))


WRITERS = {".pte": write_pte, ".onnx": write_onnx, ".ptl": write_lite}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The small model in every format."""
    import warnings

    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters announce all sorts of things
        for suffix, write in WRITERS.items():
            path = tmp_path_factory.mktemp("files") / f"model{suffix}"
            write(small(), path)
            found[suffix] = path.read_bytes()
    return found


@pytest.fixture
def path_of(exported: dict[str, bytes], tmp_path: Path) -> Callable[[str], Path]:
    def write(suffix: str) -> Path:
        path = tmp_path / f"model{suffix}"
        path.write_bytes(exported[suffix])
        return path

    return write


every_format = pytest.mark.parametrize("suffix", list(LOADERS))
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@every_format
def test_a_loaded_file_gives_the_outputs_of_its_model(suffix: str, path_of: Callable[[str], Path]) -> None:
    with torch.inference_mode():
        expected = small()(IMAGES)
        found = LOADERS[suffix](path_of(suffix))(IMAGES)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_an_output_of_executorch_survives_the_next_call(path_of: Callable[[str], Path]) -> None:
    model = files.load_pte(path_of(".pte"))
    first = model(IMAGES)
    kept = first.clone()
    model(2 * IMAGES)
    assert torch.equal(first, kept)


@every_format
@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_file_that_was_cut_off_is_refused_by_name(suffix: str, share: float, path_of: Callable[[str], Path]) -> None:
    path = path_of(suffix)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(files.FileFormatError, match=rf"model\{suffix} is (cut off or damaged|no .* file)"):
        LOADERS[suffix](path)


def test_a_short_file_is_refused_with_the_reason_of_the_runtime(path_of: Callable[[str], Path]) -> None:
    path = path_of(".pte")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(files.FileFormatError, match="cut off or damaged: File size is too small"):
        files.load_pte(path)


@every_format
@pytest.mark.parametrize("other", [".pte", ".onnx", ".ptl", ".txt"])
def test_a_file_of_another_format_is_refused(
    suffix: str, other: str, exported: dict[str, bytes], tmp_path: Path
) -> None:
    if other == suffix:
        return
    path = tmp_path / f"model{suffix}"
    path.write_bytes(exported.get(other, b"not a model at all" * 10))
    seen = {".pte": "an ExecuTorch file", ".onnx": "an ONNX file", ".ptl": "a zip archive", ".txt": "something else"}
    with pytest.raises(files.FileFormatError, match=f"is no .* file .*: it is {seen[other]}"):
        LOADERS[suffix](path)


@every_format
def test_a_missing_file_is_named(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(files.FileFormatError, match=r"gone\..* cannot be loaded: there is no such file"):
        LOADERS[suffix](tmp_path / f"gone{suffix}")


@every_format
def test_a_folder_is_no_file(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(files.FileFormatError, match="Is a directory"):
        LOADERS[suffix](tmp_path)


@every_format
@pytest.mark.parametrize("dtype", [torch.float64, torch.uint8])
def test_another_type_is_refused(suffix: str, dtype: torch.dtype, path_of: Callable[[str], Path]) -> None:
    with pytest.raises(files.InputError, match=rf"model\{suffix} takes float32, got {str(dtype)[6:]}"):
        LOADERS[suffix](path_of(suffix))(IMAGES.to(dtype))


@pytest.mark.parametrize("suffix", [".pte", ".onnx"])
def test_another_batch_than_the_exported_one_is_refused(suffix: str, path_of: Callable[[str], Path]) -> None:
    model = LOADERS[suffix](path_of(suffix))
    with pytest.raises(files.InputError, match=r"takes \(1, 3, 8, 8\), got \(2, 3, 8, 8\).* a batch of 1: split"):
        model(IMAGES.repeat(2, 1, 1, 1))


@pytest.mark.parametrize("suffix", [".pte", ".onnx"])
@pytest.mark.parametrize("shape", [(1, 3, 9, 9), (3, 8, 8), (1, 1, 8, 8)])
def test_another_size_is_refused(suffix: str, shape: tuple[int, ...], path_of: Callable[[str], Path]) -> None:
    with pytest.raises(files.InputError, match=r"takes \(1, 3, 8, 8\), got") as caught:
        LOADERS[suffix](path_of(suffix))(torch.zeros(shape))
    assert "batch" not in str(caught.value)


def test_a_lite_file_checks_the_shape_that_it_is_told(path_of: Callable[[str], Path]) -> None:
    model = files.load_lite(path_of(".ptl"), shape=(None, 3, 8, 8))
    assert len(model(IMAGES.repeat(2, 1, 1, 1))) == 2
    with pytest.raises(files.InputError, match=r"takes \(any, 3, 8, 8\), got \(1, 3, 9, 9\)"):
        model(torch.zeros(1, 3, 9, 9))
    fixed = files.load_lite(path_of(".ptl"), shape=(1, 3, 8, 8))
    with pytest.raises(files.InputError, match="exported for a batch of 1"):
        fixed(IMAGES.repeat(2, 1, 1, 1))


def test_a_file_for_any_batch_takes_any(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    shapes = ({0: torch.export.Dim("batch")},)
    example = (IMAGES.repeat(2, 1, 1, 1),)
    torch.onnx.export(small(), example, path, dynamo=True, verbose=False, dynamic_shapes=shapes, external_data=False)
    model = files.load_onnx(path)
    assert model.shape == (None, 3, 8, 8)
    assert [len(model(IMAGES.repeat(n, 1, 1, 1))) for n in (1, 5)] == [1, 5]


def test_a_file_of_executorch_for_several_batches_takes_them_up_to_its_largest(tmp_path: Path) -> None:
    from executorch.exir import to_edge_transform_and_lower

    shapes = ({0: torch.export.Dim("batch", max=4)},)
    exported = torch.export.export(small(), (IMAGES.repeat(2, 1, 1, 1),), dynamic_shapes=shapes)
    path = tmp_path / "model.pte"
    path.write_bytes(to_edge_transform_and_lower(exported).to_executorch().buffer)
    model = files.load_pte(path)
    assert [len(model(IMAGES.repeat(n, 1, 1, 1))) for n in (1, 4)] == [1, 4]
    past = r"takes batches of up to 4, got 9: its memory was planned for that bound\. Split the batch, or export again"
    with pytest.raises(files.InputError, match=past):
        model(IMAGES.repeat(9, 1, 1, 1))
    with pytest.raises(files.InputError, match=r"takes at most \(4, 3, 8, 8\), got \(2, 3, 9, 9\)"):
        model(torch.ones(2, 3, 9, 9))
    assert len(model(IMAGES.repeat(4, 1, 1, 1))) == 4  # a refusal leaves it usable


def test_a_batch_past_the_bound_of_images_that_are_too_small_is_refused(tmp_path: Path) -> None:
    """The runtime compares the number of values only: five images of 7 by 7 take less room than four of 8 by 8."""
    from executorch.exir import to_edge_transform_and_lower

    shapes = ({0: torch.export.Dim("batch", max=4)},)
    exported = torch.export.export(nn.ReLU(), (IMAGES.repeat(2, 1, 1, 1),), dynamic_shapes=shapes)
    path = tmp_path / "model.pte"
    path.write_bytes(to_edge_transform_and_lower(exported).to_executorch().buffer)
    model = files.load_pte(path)
    past = r"takes at most \(4, 3, 8, 8\), got \(5, 3, 7, 7\); only dimensions that were exported as dynamic may be"
    with pytest.raises(files.InputError, match=past):
        model(torch.ones(5, 3, 7, 7))


def test_an_engine_that_the_build_lacks_is_named_at_load_time(
    path_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "available_engines", lambda: ["qnnpack"])
    with pytest.raises(engines.EngineError, match="has no engine 'onednn'; it has qnnpack"):
        files.load_lite(path_of(".ptl"), "onednn")


def test_a_backend_that_the_runtime_lacks_is_named(
    path_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = path_of(".pte")
    content = path.read_bytes()
    assert content.count(b"XnnpackBackend") == 1
    path.write_bytes(content.replace(b"XnnpackBackend", b"ElsewhereChips"))
    with pytest.raises(files.ExportError, match=r"cannot be prepared: .*ElsewhereChips.*has the backends .*Xnnpack"):
        files.load_pte(path)


class Sum(nn.Module):
    """It takes two inputs."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left + 2 * right


def test_a_file_of_executorch_is_run_with_all_its_inputs(tmp_path: Path) -> None:
    from executorch.exir import to_edge_transform_and_lower

    left, right = torch.ones(2, 3), torch.arange(6.0).reshape(3, 2).T
    path = tmp_path / "sum.pte"
    program = to_edge_transform_and_lower(torch.export.export(Sum(), (left, right.contiguous())))
    path.write_bytes(program.to_executorch().buffer)
    model = files.load_pte(path)
    torch.testing.assert_close(model.run(left, right), left + 2 * right)
    with pytest.raises(files.InputError, match=r"sum\.pte takes \(2, 3\), got \(2, 9\)\."):
        model.run(left, torch.ones(2, 9))


@pytest.mark.parametrize("suffix", [".pte", ".onnx"])
def test_images_that_require_gradients_are_taken(suffix: str, path_of: Callable[[str], Path]) -> None:
    model = LOADERS[suffix](path_of(suffix))
    assert torch.equal(model(IMAGES.clone().requires_grad_()), model(IMAGES))


# --- writing -----------------------------------------------------------------------------------------


def save(path: Path, model: nn.Module, expected_of: nn.Module | None = None) -> float:
    with torch.inference_mode():
        expected = (expected_of or model)(IMAGES)
    return files.save_checked(path, lambda part: write_lite(model, part), files.load_lite, IMAGES, expected)


def test_a_good_file_is_kept_and_nothing_else(tmp_path: Path) -> None:
    megabytes = save(tmp_path / "model.ptl", small())
    assert [path.name for path in tmp_path.iterdir()] == ["model.ptl"]
    assert megabytes == (tmp_path / "model.ptl").stat().st_size / 1e6


def broken(part: Path) -> None:
    part.write_bytes(b"PK half of an archive")


def fails(part: Path) -> None:
    part.write_bytes(b"half")
    raise OSError(28, "No space left on device")


def fails_in_pytorch(part: Path) -> None:
    raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")


@pytest.mark.parametrize(
    ("write", "words"),
    [(broken, "cut off or damaged"), (fails, "No space left"), (fails_in_pytorch, "cannot be written: PytorchStream")],
)
def test_a_good_file_is_not_replaced_by_a_bad_one(
    write: Callable[[Path], None], words: str, path_of: Callable[[str], Path]
) -> None:
    path = path_of(".ptl")
    before = path.read_bytes()
    with pytest.raises(files.ExportError, match=words):
        files.save_checked(path, write, files.load_lite, IMAGES, torch.zeros(1, 5))
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_a_file_with_outputs_of_another_model_is_not_kept(path_of: Callable[[str], Path]) -> None:
    path = path_of(".ptl")
    before = path.read_bytes()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        other = Small().eval()
    with pytest.raises(files.ExportError, match="was not kept: its outputs are not those of the model"):
        save(path, other, expected_of=small())
    assert path.read_bytes() == before


def test_outputs_that_are_no_numbers_are_not_kept(tmp_path: Path) -> None:
    model = small()
    expected = model(IMAGES).detach()
    model.body[0].weight.data.fill_(float("nan"))
    with pytest.raises(files.ExportError, match="SQNR nan"):
        files.save_checked(tmp_path / "m.ptl", lambda part: write_lite(model, part), files.load_lite, IMAGES, expected)
    assert not (tmp_path / "m.ptl").exists()


def test_outputs_that_are_infinite_are_not_kept(path_of: Callable[[str], Path]) -> None:
    path = path_of(".ptl")
    before = path.read_bytes()
    model = small()
    expected = model(IMAGES).detach()
    model.body[4].bias.data.fill_(float("inf"))
    with pytest.raises(files.ExportError, match="not those of the model"):
        files.save_checked(path, lambda part: write_lite(model, part), files.load_lite, IMAGES, expected)
    assert path.read_bytes() == before


def test_outputs_of_another_shape_are_not_kept(tmp_path: Path) -> None:
    with pytest.raises(files.ExportError, match=r"it gives \(1, 5\), the model \(1, 10\)"):
        files.save_checked(
            tmp_path / "m.ptl", lambda part: write_lite(small(), part), files.load_lite, IMAGES, torch.zeros(1, 10)
        )


def test_no_permission_to_write_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(atomic.tempfile, "mkdtemp", refuse)  # root may write everywhere
    with pytest.raises(files.ExportError, match=r"model\.ptl cannot be written into .*: Permission denied"):
        save(tmp_path / "model.ptl", small())


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="there is no folder that refuses even root")
def test_a_folder_that_takes_no_files_is_named() -> None:
    folder = Path("/proc/self")  # not even root can make a file there
    with pytest.raises(files.ExportError, match=r"model\.ptl cannot be written into /proc/self"):
        save(folder / "model.ptl", small())


def test_a_folder_in_the_place_of_the_file_stays(tmp_path: Path) -> None:
    (tmp_path / "model.ptl").mkdir()
    with pytest.raises(files.ExportError, match=r"model\.ptl cannot be written into .*: something else has that name"):
        save(tmp_path / "model.ptl", small())
    assert (tmp_path / "model.ptl").is_dir()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(files.ExportError, match="there is no folder"):
        save(tmp_path / "no" / "model.ptl", small())


# --- what PyTorch passes over ------------------------------------------------------------------------


def test_a_model_in_training_mode_is_exported_in_silence_and_the_guard_refuses_it() -> None:
    model = small().train()
    exported = torch.export.export(model, (IMAGES.repeat(4, 1, 1, 1),)).module()
    batch = torch.cat([IMAGES, torch.zeros(3, 3, 8, 8)])
    assert not torch.allclose(exported(batch), small()(batch), atol=1e-2), "batch statistics were exported"
    with pytest.raises(guards.GuardError, match=r"call \.eval"):
        guards.require_eval(model)


def test_without_a_compiler_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(guards.GuardError, match=r"there is no (g|clang)\+\+ on the PATH: install one"):
        packages.require_compiler()


def test_the_compiler_named_in_the_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(guards.GuardError, match="no no-such-compiler on the PATH"):
        packages.require_compiler()


def test_what_is_said_without_a_compiler_is_what_pytorch_would_meet(tmp_path: Path) -> None:
    code = """
import torch
model = torch.compile(torch.nn.Linear(2, 2).eval())
with torch.inference_mode():
    model(torch.zeros(1, 2))
"""
    environment = os.environ | {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode != 0
    assert "InvalidCxxCompiler" in done.stderr


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ((torch.ones(1, 3), torch.ones(1, 3)), r"takes .+, .+; it was given tensor\(float\)"),
        ((torch.ones(1, 3).half(),), r"takes .+ \(tensor\(float16\)\); it was given tensor"),
    ],
)
def test_an_onnx_file_with_other_inputs_says_what_it_takes(
    inputs: tuple[Tensor, ...], words: str, tmp_path: Path
) -> None:
    model, path = Sum() if len(inputs) == 2 else nn.ReLU(), tmp_path / "a.onnx"
    with torch.random.fork_rng(devices=[]):
        torch.onnx.export(model, inputs, path, dynamo=True, verbose=False, external_data=False)
    loaded = files.load_onnx(path)
    with pytest.raises(files.InputError, match=words):
        loaded(torch.ones(1, 3))


def onnx_file(path: Path, inputs: list[Any]) -> Path:
    """A file that gives the constant 1, whatever it takes."""
    import onnx

    one = onnx.numpy_helper.from_array(np.ones(1, np.float32), "one")
    node = onnx.helper.make_node("Constant", [], ["y"], value=one)
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([node], "g", inputs, [output])
    onnx.save(onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 18)]), path)
    return path


def test_an_onnx_file_without_inputs_says_so(tmp_path: Path) -> None:
    loaded = files.load_onnx(onnx_file(tmp_path / "a.onnx", []))
    with pytest.raises(files.InputError, match=r"a\.onnx takes nothing; it was given tensor\(float\)"):
        loaded(torch.ones(3))


def test_another_number_of_dimensions_is_no_other_batch(tmp_path: Path) -> None:
    import onnx

    scalar = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [])
    loaded = files.load_onnx(onnx_file(tmp_path / "a.onnx", [scalar]))
    with pytest.raises(files.InputError, match=r"takes \(\), got \(3,\)\.$"):
        loaded(torch.ones(3))


def test_an_onnx_file_with_an_operator_that_has_no_kernel_is_not_called_damaged(tmp_path: Path) -> None:
    import onnx

    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.BFLOAT16, [1]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Mul", ["x", "x"], ["y"])], "g", [x], [y])
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, ir_version=8, opset_imports=opset), tmp_path / "a.onnx")
    with pytest.raises(files.ExportError, match=r"a\.onnx cannot be prepared: .* Could not find an implementation for"):
        files.load_onnx(tmp_path / "a.onnx")


@pytest.mark.filterwarnings("ignore")
def test_missing_external_data_are_named(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        model = nn.Linear(64, 64)
        torch.onnx.export(model, (torch.ones(1, 64),), tmp_path / "a.onnx", dynamo=True, verbose=False)
    (tmp_path / "a.onnx.data").unlink()
    with pytest.raises(files.FileFormatError, match="keeps its weights in a file of their own, which is missing"):
        files.load_onnx(tmp_path / "a.onnx")
