"""Exported model files: written whole or not at all, loaded with errors that say what is wrong.

ExecuTorch names an error by its number and writes the reason to the process's standard error; TorchScript's and
ONNX Runtime's messages speak of archives and protocol buffers. The loaders here say what the file is instead, and
what was wrong with an input.
"""

import contextlib
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from qhelpers import atomic, engines, guards, metrics

FORMATS = {".pte": "ExecuTorch", ".ptl": "lite interpreter", ".onnx": "ONNX"}
ONNX_TYPES = {torch.float32: "float", torch.float64: "double", torch.float16: "float16", torch.uint8: "uint8"}
ONNX_TYPES |= {torch.int8: "int8", torch.int32: "int32", torch.int64: "int64", torch.bool: "bool"}
LEAST_SQNR_DB = 10.0  # a file whose outputs are further from what they should be is not kept


class ExportError(RuntimeError):
    """An exported file cannot be written, or is not what it should be."""


class FileFormatError(ExportError):
    """The file is missing, cut off, damaged, or of another format."""


class InputError(ExportError):
    """The exported file takes inputs of another shape or type."""


@dataclass(frozen=True)
class Loaded:
    """A model read from an exported file; call it with one float32 tensor."""

    name: str  # of the file
    shape: tuple[int | None, ...] | None  # of its input; None for any size, or where only the runtime knows
    run: Callable[..., Tensor]  # the first output, without these checks; takes all inputs
    outputs: Callable[..., tuple[Tensor, ...]]  # all of them
    again: Callable[[], "Loaded"] | None = None  # in another process it is loaded anew

    def __reduce__(self) -> tuple[Any, ...]:
        if self.again is None:
            raise ExportError(f"{self.name} does not know how to be loaded again.")
        return self.again, ()

    def __call__(self, images: Tensor) -> Tensor:
        """The file's output for ``images``.

        Raises:
            InputError: if the type is not float32, or the shape is not that of the file.
        """
        if images.dtype != torch.float32:
            raise InputError(f"{self.name} takes float32, got {str(images.dtype).removeprefix('torch.')}.")
        if self.shape is not None and not _fits(images.shape, self.shape):
            raise _wrong_shape(self.name, images.shape, self.shape)
        return self.run(images)


def _fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(w in (None, s) for s, w in zip(shape, wanted, strict=True))


def _wrong_shape(name: str, shape: Sequence[int], wanted: Sequence[int | None]) -> InputError:
    shown = ", ".join("any" if size is None else str(size) for size in wanted)
    hint = ""
    if len(shape) == len(wanted) and _fits(shape[1:], wanted[1:]):
        hint = f" It was exported for a batch of {wanted[0]}: split the batch, or export a dynamic one."
    return InputError(f"{name} takes ({shown}), got {tuple(shape)}.{hint}")


def _past_bound(name: str, shape: Sequence[int], most: Sequence[int]) -> InputError:
    if _fits(shape[1:], most[1:]) and shape[0] > most[0]:
        cure = "Split the batch, or export again with a larger max in torch.export.Dim."
        return InputError(
            f"{name} takes batches of up to {most[0]}, got {shape[0]}: its memory was planned for that bound. {cure}"
        )
    return InputError(
        f"{name} takes at most ({', '.join(map(str, most))}), got {tuple(shape)};"
        " only dimensions that were exported as dynamic may be smaller."
    )


# --- writing -----------------------------------------------------------------------------------------


def save_checked(
    path: Path,
    write: Callable[[Path], Any],
    load: Callable[[Path], Callable[[Tensor], Tensor]],
    example: Tensor,
    expected: Tensor,
) -> float:
    """Write an exported file, load it, run it, and only then replace an older one.

    Args:
        path: the file; its folder must exist.
        write: writes the file to the path that it is given.
        load: reads it, such as :func:`load_pte`.
        example: an input.
        expected: the output expected for it, from the model that was exported.

    Returns:
        Size of the file in MB (1 MB = 1e6 bytes).

    Raises:
        ExportError: if it cannot be written there, or its outputs differ in shape from the expected ones, are
            not finite, or differ by more than noise (an SQNR below 10 dB). An older file is still there then.
        FileFormatError: if what was written cannot be read back.

    >>> def write(path):
    ...     torch.save(torch.ones(2), path)
    >>> def load(path):
    ...     return lambda x: x * torch.load(path, weights_only=True)
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_checked(Path(folder) / "m.pt2", write, load, torch.ones(2), expected=-torch.ones(2))
    Traceback (most recent call last):
        ...
    qhelpers.check.files.ExportError: m.pt2 was not kept: its outputs are not those of the model (SQNR -6.0 dB).
    """
    if not path.parent.is_dir():
        raise ExportError(f"{path.name} cannot be written: there is no folder {path.parent}.")
    try:
        with atomic.replacing(path) as part:
            try:
                write(part)
            except (OSError, RuntimeError) as error:  # PyTorch's writers raise the second kind on a full disk
                raise ExportError(f"{path.name} cannot be written: {_reason(error)}.") from error
            with torch.inference_mode():
                found = load(part)(example)
            if found.shape != expected.shape:
                raise ExportError(
                    f"{path.name} was not kept: it gives {tuple(found.shape)}, the model {tuple(expected.shape)}."
                )
            decibels = -math.inf if bool(found.isinf().any()) else metrics.sqnr_db(expected, found)
            if not decibels >= LEAST_SQNR_DB:  # also if it is no number
                raise ExportError(
                    f"{path.name} was not kept: its outputs are not those of the model (SQNR {decibels:.1f} dB)."
                )
    except atomic.WriteError as error:
        raise ExportError(str(error)) from error
    return path.stat().st_size / 1e6


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or guards.first_line(error)


# --- loading -----------------------------------------------------------------------------------------


def load_pte(path: Path, threads: int | None = None) -> Loaded:
    """Load a file of ExecuTorch with its runtime.

    Args:
        path: the ``.pte`` file, with tensors as inputs and outputs. What it is given is refused with an
            :class:`InputError` where a size is not the file's, or is past its bound if it was exported as dynamic.
        threads: of the runtime, for this and every other file in the process; if None, as many as PyTorch has.

    Raises:
        FileFormatError: if it is missing, cut off, damaged or no such file; with the runtime's own reason.
        ExportError: if the runtime lacks a backend or an operator that the file needs.
        GuardError: if ExecuTorch is not installed.

    >>> load_pte(Path("no-such-file.pte"))
    Traceback (most recent call last):
        ...
    qhelpers.check.files.FileFormatError: no-such-file.pte cannot be loaded: there is no such file.
    """
    _check_file(path, ".pte", lambda head: head[4:6] == b"ET")
    guards.require_packages("deploy", "executorch")
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    with listening():
        _unsafe_reset_threadpool(threads or torch.get_num_threads())  # says so
    try:
        with listening() as said:
            program = Runtime.get().load_program(path)
    except RuntimeError as error:
        raise FileFormatError(f"{path.name} is cut off or damaged: {said.reason or error}") from error
    try:
        with listening() as said:
            method = program.load_method("forward")
            meta = program.metadata("forward")
            wanted = [tuple(meta.input_tensor_meta(n).sizes()) for n in range(meta.num_inputs())]  # at most, if dynamic
    except RuntimeError as error:
        there = ", ".join(Runtime.get().backend_registry.registered_backend_names)
        raise ExportError(
            f"{path.name} cannot be prepared: {said.reason or error} This runtime has the backends {there}."
        ) from error
    assert method is not None

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        given = list(zip(inputs, wanted, strict=False))
        try:
            with listening() as said:
                outputs: Sequence[Tensor] = method.execute([dense(value) for value in inputs])
        except RuntimeError as error:
            for value, sizes in given:
                if tuple(value.shape) != sizes:
                    static = "static tensor" in said.reason or value.ndim != len(sizes)
                    refuse = _wrong_shape if static else _past_bound
                    raise refuse(path.name, value.shape, sizes) from error
            raise ExportError(f"{path.name} failed: {said.reason or error}") from error
        for value, sizes in given:  # the runtime counts the values, and takes a batch of 9 smaller images for 8
            if any(size > most for size, most in zip(value.shape, sizes, strict=True)):
                raise _past_bound(path.name, value.shape, sizes)
        return tuple(one.clone() for one in outputs)  # the runtime writes the next ones to the same place

    return _loaded(path.name, None, run, partial(load_pte, path.absolute(), threads))


def dense(value: Tensor) -> Tensor:
    """A tensor as ExecuTorch takes it: contiguous, or channels_last.

    >>> dense(torch.ones(2, 3).T).stride()
    (2, 1)
    """
    channels_last = value.ndim == 4 and value.is_contiguous(memory_format=torch.channels_last)
    return value if channels_last else value.contiguous()


def load_onnx(path: Path, threads: int | None = None, settings: Mapping[str, str] | None = None) -> Loaded:
    """Load an ONNX file with ONNX Runtime, on the CPU.

    Args:
        path: the ``.onnx`` file; its inputs are tensors.
        threads: of the session; if None, as many as PyTorch has.
        settings: entries of the session's configuration, by key.

    Raises:
        FileFormatError: if it is missing, cut off, damaged or no such file.
        ExportError: if ONNX Runtime has no kernel for an operator that the file needs, or its sizes do not fit.
        GuardError: if ONNX Runtime is not installed.

    >>> load_onnx(Path("no-such-file.onnx"))
    Traceback (most recent call last):
        ...
    qhelpers.check.files.FileFormatError: no-such-file.onnx cannot be loaded: there is no such file.
    """
    _check_file(path, ".onnx", lambda head: head[:1] == b"\x08")  # the first field: the version, a varint
    guards.require_packages("deploy", "onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3  # errors
    for key, value in (settings or {}).items():
        options.add_session_config_entry(key, value)
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own exception types have no common base
        if "External data" in str(error):
            words = "keeps its weights in a file of their own, which is missing beside it"
            raise FileFormatError(f"{path.name} {words}: {guards.first_line(error)}") from error
        if "NOT_IMPLEMENTED" in str(error) or "ShapeInferenceError" in str(error):
            raise ExportError(f"{path.name} cannot be prepared: {guards.first_line(error)}") from error
        raise FileFormatError(f"{path.name} is cut off or damaged: {guards.first_line(error)}") from error
    takes = [(one.name, one.type) for one in session.get_inputs()]
    entry = session.get_inputs()[0] if takes else None
    shape = tuple(size if isinstance(size, int) else None for size in entry.shape) if entry else None

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        given = [f"tensor({ONNX_TYPES.get(value.dtype, value.dtype)})" for value in inputs]
        if given != [kind for _, kind in takes]:
            wanted = ", ".join(f"{name} ({kind})" for name, kind in takes) or "nothing"
            raise InputError(f"{path.name} takes {wanted}; it was given {', '.join(given) or 'nothing'}.")
        fed = {name: value.detach().numpy() for (name, _), value in zip(takes, inputs, strict=True)}
        return tuple(map(torch.from_numpy, session.run(None, fed)))

    return _loaded(path.name, shape, run, partial(load_onnx, path.absolute(), threads, settings))


def load_lite(path: Path, engine: str | None = None, shape: Sequence[int | None] | None = None) -> Loaded:
    """Load a file of the lite interpreter; its int8 weights are packed for an engine while they are read.

    Args:
        path: the ``.ptl`` file.
        engine: to pack for, and to run under; if None, the one that is set.
        shape: of its input, which the file does not tell, None for any size; if it is None itself, not checked.

    Raises:
        FileFormatError: if it is missing, cut off, damaged or no such file.
        EngineError: if this build lacks the engine.

    >>> load_lite(Path("no-such-file.ptl"))
    Traceback (most recent call last):
        ...
    qhelpers.check.files.FileFormatError: no-such-file.ptl cannot be loaded: there is no such file.
    """
    from torch.jit.mobile import _load_for_lite_interpreter

    chosen = engines.check_engine(engine or torch.backends.quantized.engine)
    _check_file(path, ".ptl", lambda head: head[:2] == b"PK")
    try:
        with engines.using_engine(chosen):
            module = _load_for_lite_interpreter(str(path))  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise FileFormatError(f"{path.name} is cut off or damaged: {guards.first_line(error)}") from error

    def run(images: Tensor) -> tuple[Tensor]:
        with engines.using_engine(chosen):
            return (module(images),)

    fixed = None if shape is None else tuple(shape)
    return _loaded(path.name, fixed, run, partial(load_lite, path.absolute(), chosen, fixed))


def _loaded(
    name: str,
    shape: tuple[int | None, ...] | None,
    run: Callable[..., tuple[Tensor, ...]],
    again: Callable[[], Loaded],
) -> Loaded:
    return Loaded(name, shape, lambda *inputs: run(*inputs)[0], run, again)


def _check_file(path: Path, wanted: str, is_one: Callable[[bytes], bool]) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError as error:
        raise FileFormatError(f"{path.name} cannot be loaded: there is no such file.") from error
    except OSError as error:
        raise FileFormatError(f"{path.name} cannot be loaded: {error.strerror}.") from error
    if not is_one(head):
        _refuse_format(path, wanted, head)


def _refuse_format(path: Path, wanted: str, head: bytes) -> NoReturn:
    kinds = {b"PK": "a zip archive, as .ptl, .pt and .pt2 are", b"\x08": "an ONNX file, perhaps"}
    seen = "empty" if not head else next((kind for start, kind in kinds.items() if head.startswith(start)), "")
    seen = "an ExecuTorch file" if head[4:6] == b"ET" else seen or "something else, or damaged"
    raise FileFormatError(f"{path.name} is no {FORMATS[wanted]} file ({wanted}): it is {seen}.")


@dataclass
class Said:
    """What a block of the runtime's calls wrote to standard error."""

    reason: str = ""


@contextlib.contextmanager
def listening() -> Iterator[Said]:
    """Take what ExecuTorch's runtime writes to standard error; its first line is ``reason`` afterwards."""
    said, caught = Said(), io.StringIO()
    try:
        with contextlib.redirect_stderr(caught):  # the runtime's C++ writes to Python's stream
            yield said
    finally:
        lines = [line for line in caught.getvalue().splitlines() if "cpuinfo" not in line]
        said.reason = lines[0].partition("] ")[2] if lines else ""
