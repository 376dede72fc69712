"""The rivals of an int8 model: what its float model can do on this machine, in each runtime, prepared just as well."""

import contextlib
import copy
import hashlib
import importlib.metadata
import inspect
import io
import logging
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import platformdirs
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from qhelpers import atomic, engines, guards, metrics
from qhelpers.check import packages

EAGER = "float eager, fused, channels_last"
TORCHSCRIPT = "float TorchScript, frozen"
COMPILED = "float compiled, frozen"
BF16 = "bf16 compiled, frozen"
BF16_EAGER = "bf16 eager, channels_last"
ONNX = "float ONNX Runtime"
PTE = "float XNNPACK (.pte)"
LEAST_SQNR_DB = {BF16: 20.0, BF16_EAGER: 20.0}  # of bf16's 8 bits of mantissa something is lost
LEAST_SQNR_FLOAT_DB = 60.0

INDUCTOR = {"freezing": True}

Run = Callable[[], Any]


class RivalsError(RuntimeError):
    """A float path of a model cannot be built or loaded here, or does not compute what the model does."""


@dataclass(frozen=True)
class Rivals:
    """The float paths of a model, each ready to be timed on the same inputs."""

    candidates: dict[str, Run]
    missing: dict[str, str]  # a path that is not there, and why
    sqnr_db: dict[str, float]  # of its outputs against those of the float model

    @property
    def names(self) -> list[str]:
        """Names of the paths that can be timed."""
        return [*self.candidates]

    @property
    def noted(self) -> str:
        """What belongs under a table of speeds: how far bf16 is from float, and which paths are missing, and why.

        >>> Rivals({}, {"float compiled": "There is no compiler."}, {BF16: 38.2}).noted
        'bf16 compiled, frozen: logits 38 dB from float. Not here: float compiled (There is no compiler.).'
        """
        near = [
            f"{name}: logits {self.sqnr_db[name]:.0f} dB from float." for name in LEAST_SQNR_DB if name in self.sqnr_db
        ]
        absent = [f"{name} ({why})" for name, why in self.missing.items()]
        return " ".join([*near, f"Not here: {'; '.join(absent)}." if absent else "All paths were timed."])

    def __str__(self) -> str:
        lines = [f"{name}: {self.sqnr_db[name]:.0f} dB to float eager" for name in self.candidates]
        return "\n".join([*lines, *(f"{name}: not here. {why}" for name, why in self.missing.items())])


class FromFile:
    """A model in a file, loaded, with its inputs; in another process it is loaded anew."""

    def __init__(self, load: Callable[[Path, Sequence[Tensor]], Run], path: Path, inputs: Sequence[Tensor]) -> None:
        self.arguments = (load, path, inputs)
        self.run = load(path, inputs)

    def __call__(self) -> Any:
        """The output for the inputs."""
        return self.run()

    def __reduce__(self) -> tuple[Any, ...]:
        return FromFile, self.arguments


def rivals(model: nn.Module, *inputs: Tensor, threads: Sequence[int] = (), folder: Path | str | None = None) -> Rivals:
    """The float paths that a reader has without int8, each checked against the float model on the inputs.

    Eager with batch norms fused and channels_last; TorchScript, frozen and optimized; compiled ahead of time with
    frozen weights; the same in bf16, where the processor computes in it; ONNX Runtime; ExecuTorch's XNNPACK. Exporting
    and compiling takes about half a minute, so the files are kept, under a name that stands for the model's graph and
    weights, the inputs' shapes and strides, the versions and the processor. A file that fails is written again.

    Args:
        model: in float, in evaluation mode.
        inputs: that it is called with, and that will be timed.
        threads: numbers that the compiled paths are made for, besides the one that is set: a package keeps the
            layout of weights that suited the number it was compiled with, and is several times as slow on another.
        folder: where the files are kept; if None, the user's cache.

    Returns:
        The candidates, and the reason for each path that cannot be built here.

    Raises:
        GuardError: if the model is in training mode.
        RivalsError: if the model itself cannot be called with the inputs, does not give a tensor first, or cannot be
            copied.

    >>> found = rivals(nn.Sequential(nn.Linear(4, 2)).eval(), torch.ones(1, 4))  # doctest: +SKIP
    """
    expected = _expected(model, inputs)
    fused, place = _prepared(model, inputs, folder)
    counts = sorted({torch.get_num_threads(), *threads})
    builders, files = _float_paths(fused, inputs, place, counts)
    found = Rivals({}, {}, {})
    if reason := _why_no_bf16():
        found.missing.update({BF16: reason, BF16_EAGER: reason})
    else:
        builders |= _bf16_paths(fused, inputs, place, counts)
        files[BF16] = [for_threads(place / "bf16", count) for count in counts]
    for name, build in builders.items():
        _try(name, build, files.get(name, []), expected, found)
    return found


def _expected(model: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    """What every path has to compute."""
    if not isinstance(model, nn.Module):
        raise RivalsError(f"The float model must be an nn.Module, got {type(model).__name__}.")
    for value in inputs:
        if not isinstance(value, Tensor):
            raise RivalsError(f"The inputs of the float model must be tensors, got {type(value).__name__}.")
    guards.require_eval(model)
    try:
        with torch.inference_mode():
            output = model(*inputs)
    except Exception as error:  # the model is the reader's
        raise RivalsError(f"The float model fails on these inputs: {guards.first_line(error)}") from error
    return _first(output)


def _prepared(model: nn.Module, inputs: Sequence[Tensor], folder: Path | str | None) -> tuple[nn.Module, Path]:
    """The model with batch norms folded, and the folder of its files: absolute, as they are loaded again later."""
    root = Path(folder or Path(platformdirs.user_cache_dir("qhelpers")) / "rivals").resolve()
    try:
        with quiet():
            fused = fused_copy(model, *inputs)
            return fused, root / _key(fused, inputs)
    except Exception as error:  # some models hold what cannot be copied, or has no bytes
        raise RivalsError(f"The float model cannot be prepared: {guards.first_line(error)}") from error


def _float_paths(
    fused: nn.Module, inputs: Sequence[Tensor], place: Path, counts: Sequence[int]
) -> tuple[dict[str, Callable[[], Run]], dict[str, list[Path]]]:
    """The paths in float, each with its builder, and the files of those that have some."""
    ts, onnx, pte = place / "float.ts", place / "float.onnx", place / "float.pte"
    builders: dict[str, Callable[[], Run]] = {
        EAGER: partial(_eager, fused, inputs),
        TORCHSCRIPT: partial(_file, ts, partial(_write_torchscript, fused, inputs), open_ts, inputs),
        COMPILED: partial(_compiled, place / "float", fused, inputs, counts),
        ONNX: partial(_file, onnx, partial(_write_onnx, fused, inputs), open_onnx, inputs),
        PTE: partial(_file, pte, partial(_write_pte, fused, inputs), open_pte, inputs),
    }
    packages = [for_threads(place / "float", count) for count in counts]
    return builders, {TORCHSCRIPT: [ts], COMPILED: packages, ONNX: [onnx], PTE: [pte]}


def _bf16_paths(
    fused: nn.Module, inputs: Sequence[Tensor], place: Path, counts: Sequence[int]
) -> dict[str, Callable[[], Run]]:
    return {  # the copies in bf16 are made by the builders: where one fails, only its own path is missing
        BF16: lambda: _compiled(place / "bf16", InBFloat16(fused).eval(), inputs, counts),
        BF16_EAGER: lambda: _eager(InBFloat16(fused).eval(), inputs),
    }


def _why_no_bf16() -> str:
    try:
        return "" if engines.has_bf16() else "This processor has no instructions for bf16."
    except engines.EngineError as error:
        return str(error)


def _try(name: str, build: Callable[[], Run], files: Sequence[Path], expected: Tensor, found: Rivals) -> None:
    """Add the path to those found, or to those missing."""
    older = [path for path in files if path.is_file()]
    reason = _attempt(name, build, expected, found)
    if reason and older and all(path.is_file() for path in files):  # else it was the writing that failed
        for path in older:  # damaged, or of a model that the key does not tell from this one
            path.unlink(missing_ok=True)
        reason = _attempt(name, build, expected, found)
    if reason:
        found.missing[name] = reason


def _attempt(name: str, build: Callable[[], Run], expected: Tensor, found: Rivals) -> str:
    """Why the path is no candidate; nothing if it has become one."""
    try:
        with quiet(), torch.random.fork_rng(devices=[]):  # exporters draw numbers when they are first used
            run = build()
        with torch.inference_mode():
            output = _first(run())
        decibels = metrics.sqnr_db(expected, output.float())
    except Exception as error:  # each exporter and runtime has errors of its own
        return f"{type(error).__name__}: {guards.first_line(error)}"
    if not decibels >= LEAST_SQNR_DB.get(name, LEAST_SQNR_FLOAT_DB):  # also if it is no number
        return f"Its outputs are not those of the float model (SQNR {decibels:.0f} dB)."
    found.candidates[name] = run
    found.sqnr_db[name] = decibels
    return ""


def fused_copy(model: nn.Module, *inputs: Tensor) -> nn.Module:
    """A copy of a float model with each batch norm folded into the convolution before it, where that can be done.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    >>> [type(layer).__name__ for layer in fused_copy(net, torch.ones(1, 3, 2, 2)).children()]
    ['Conv2d']
    """
    twin = copy.deepcopy(model)
    try:
        fused = _folded(model)
        with torch.inference_mode():
            pairs = zip(_tensors(model(*inputs)), _tensors(fused(*inputs)), strict=True)
        decibels = [metrics.sqnr_db(*pair) for pair in pairs]
    except Exception:  # not every model can be traced; it is left as it is then
        return twin
    # torch.fx also folds what must not be: norms behind a layer that is called twice, or over another dimension
    return fused if all(one >= LEAST_SQNR_FLOAT_DB for one in decibels) else twin


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.numel()]


def _folded(model: nn.Module) -> nn.Module:
    from torch.fx.experimental import optimization

    if not hasattr(model, "fuse_model"):
        folded: nn.Module = optimization.fuse(model)  # a copy
        return folded
    twin = copy.deepcopy(model)
    twin.fuse_model()  # type: ignore[operator]  # torchvision's quantizable networks have it
    return twin.eval()


class InBFloat16(nn.Module):
    """A model that computes in bf16, with floats going in and coming out.

    >>> InBFloat16(nn.Linear(2, 2))(torch.ones(1, 2)).dtype
    torch.float32
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).bfloat16()

    def forward(self, *inputs: Tensor) -> Any:
        output = self.model(*_cast(inputs, torch.bfloat16))
        return _cast(output, torch.float32)  # all of it: a compiler leaves out what is not returned


def _cast(values: Any, dtype: torch.dtype) -> Any:
    return pytree.tree_map(
        lambda value: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value, values
    )


def _first(output: Any) -> Tensor:
    """The first output that can be compared: numbers, and at least one."""
    leaves = pytree.tree_leaves(output, is_leaf=lambda one: not isinstance(one, tuple | list))
    numbers = [one for one in leaves if isinstance(one, Tensor) and one.is_floating_point() and one.numel()]
    first = next(iter(numbers or leaves), output)
    if not isinstance(first, Tensor):
        raise RivalsError(f"The model's first output must be a tensor, got {type(first).__name__}.")
    return first


def _eager(model: nn.Module, inputs: Sequence[Tensor]) -> Run:
    return partial(_channels_last_model(model), *(_channels_last(value) for value in inputs))


def _channels_last(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value


def _channels_last_model(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to(memory_format=torch.channels_last)


def _key(model: nn.Module, inputs: Sequence[Tensor]) -> str:
    """Stands for all that decides what the files hold."""
    try:
        with torch.no_grad():
            computed = torch.export.export(model, tuple(inputs)).graph_module.code
    except Exception:  # it cannot be exported; what is left to tell models apart is their source
        computed = f"{model} {_source(model)}"
    shapes = [(tuple(value.shape), value.stride(), value.dtype) for value in inputs]
    versions = [torch.__version__, *map(_version, ("executorch", "onnx", "onnxscript"))]
    digest = hashlib.sha256(f"{computed} {shapes} {versions} {engines.cpu_name()}".encode())
    digest.update(HOW_WRITTEN.encode())
    for name, value in {**model.state_dict(), **dict(model.named_buffers())}.items():  # some buffers are in no state
        digest.update(name.encode())
        if isinstance(value, Tensor):
            plain = value.detach().cpu().clone(memory_format=torch.contiguous_format).reshape(-1)
            digest.update(plain.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:24]


def _source(model: nn.Module) -> str:
    try:
        return inspect.getsource(type(model))
    except (OSError, TypeError):  # defined where no file is
        return ""


@contextlib.contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Inside, PyTorch computes, and compiles, with so many threads.

    >>> with using_threads(1):
    ...     torch.get_num_threads()
    1
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide the warnings and logs of exporters and compilers."""
    before, handlers = logging.root.manager.disable, [*logging.root.handlers]
    logging.disable(logging.ERROR)
    silent = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        logging.root.handlers[:] = handlers  # a log without one makes one, which would write to what is thrown away


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


# --- files -------------------------------------------------------------------------------------------


def _file(
    path: Path,
    write: Callable[[Path], None],
    load: Callable[[Path, Sequence[Tensor]], Run],
    inputs: Sequence[Tensor],
) -> Run:
    if not path.is_file():
        with atomic.replacing(path) as part:
            write(part)
    return FromFile(load, path, tuple(inputs))


def _write_torchscript(model: nn.Module, inputs: Sequence[Tensor], path: Path) -> None:
    with torch.inference_mode(False), torch.no_grad():
        traced = torch.jit.trace(model, tuple(value.clone() for value in inputs))  # type: ignore[no-untyped-call]
    torch.jit.freeze(traced).save(str(path))


def _compiled(path: Path, model: nn.Module, inputs: Sequence[Tensor], counts: Sequence[int]) -> Run:
    if missing := [count for count in counts if not for_threads(path, count).is_file()]:
        with tempfile.TemporaryDirectory(prefix="exported-") as name:
            file = Path(name) / "exported.pt2"
            with torch.no_grad():
                torch.export.save(torch.export.export(model, tuple(inputs)), file)
            _compile_side_by_side(file, {count: for_threads(path, count) for count in missing})
    return FromFile(open_compiled, path, tuple(inputs))


def _compile_side_by_side(exported: Path, packages: dict[int, Path]) -> None:
    """Each number of threads in its own process: the compiler keeps one core busy for half a minute."""
    code = "import sys; from qhelpers.check.float_paths import write_compiled; write_compiled(*sys.argv[1:])"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(exported), str(count), str(path)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",  # a compiler may speak in another encoding
        )
        for count, path in packages.items()
    ]
    endings = [(process.communicate()[1], process.returncode) for process in processes]
    for said, code_of_exit in endings:
        if code_of_exit:
            silent = f"it ended with {code_of_exit}, without a word."  # -9: killed, as for want of memory
            raise RivalsError(f"The compiler failed: {(said.strip().splitlines() or [silent])[-1]}")


def write_compiled(exported: str, threads: str, package: str) -> None:
    """What such a process does: compile an exported program ahead for a number of threads, and write the package."""
    torch.set_num_threads(int(threads))
    with torch.no_grad(), atomic.replacing(Path(package)) as part:
        program = torch.export.load(exported)
        torch._inductor.aoti_compile_and_package(program, package_path=str(part), inductor_configs=INDUCTOR)


def _write_onnx(model: nn.Module, inputs: Sequence[Tensor], path: Path) -> None:
    guards.require_packages("deploy", "onnx", "onnxscript")
    torch.onnx.export(model, tuple(inputs), path, dynamo=True, verbose=False, external_data=False)


def _write_pte(model: nn.Module, inputs: Sequence[Tensor], path: Path) -> None:
    guards.require_packages("deploy", "executorch")
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    from qhelpers.check import files

    exported = torch.export.export(model, tuple(files.dense(value) for value in inputs))
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    path.write_bytes(lowered.buffer)


def open_ts(path: Path, inputs: Sequence[Tensor]) -> Run:
    """A TorchScript file, optimized for inference."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (DeprecationWarning, FutureWarning))
        module = torch.jit.optimize_for_inference(torch.jit.load(path).eval())  # type: ignore[no-untyped-call]
    return partial(module, *inputs)


WRITERS = (
    _write_torchscript,
    _compiled,
    write_compiled,
    _write_onnx,
    _write_pte,
    fused_copy,
    _folded,
    InBFloat16,
    _cast,
)
HOW_WRITTEN = "".join(inspect.getsource(how) for how in WRITERS)  # files of another version are not taken for these


def for_threads(path: Path, count: int) -> Path:
    """The package among those of one model that is made for so many threads.

    >>> for_threads(Path("int8"), 2).name
    'int8-2.pt2'
    """
    return path.with_name(f"{path.name}-{count}.pt2")


def open_compiled(path: Path, inputs: Sequence[Tensor]) -> Run:
    """Of the packages that :func:`for_threads` names, the one for the number of threads that is set.

    Raises:
        RivalsError: if none was compiled for it.
    """
    count = torch.get_num_threads()
    if not for_threads(path, count).is_file():
        raise RivalsError(f"{path.name} was not compiled for this number of threads, {count}: name it in threads=.")
    return open_pt2(for_threads(path, count), inputs)


def open_pt2(path: Path, inputs: Sequence[Tensor]) -> Run:
    """A package that was compiled ahead of time."""
    return partial(packages.open_unchecked(path), *inputs)


def open_onnx(path: Path, inputs: Sequence[Tensor]) -> Run:
    """An ONNX file in a session of ONNX Runtime, with as many threads as PyTorch has."""
    guards.require_packages("deploy", "onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    fed = {entry.name: value.detach().numpy() for entry, value in zip(session.get_inputs(), inputs, strict=True)}
    return lambda: torch.from_numpy(session.run(None, fed)[0])


def open_pte(path: Path, inputs: Sequence[Tensor]) -> Run:
    """A file of ExecuTorch in its runtime, with as many threads as PyTorch has."""
    guards.require_packages("deploy", "executorch")
    from qhelpers.check import files

    loaded = files.load_pte(path, torch.get_num_threads())
    return partial(loaded.run, *inputs)
