"""Packages for servers: a graph compiled ahead of time into one ``.pt2``, with what a loader must know about it.

A package is machine code and weights in a zip archive. PyTorch loads it without asking which version it is from or
whether its bytes are those that were written, and calls it without asking for the shape of an input. Here a manifest
says these, and the loader compares.
"""

import hashlib
import importlib
import json
import multiprocessing
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
import warnings
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from qhelpers import atomic, census, engines, guards

MANIFEST = "extra/qhelpers.json"  # the folder in which PyTorch's format keeps what others add
MARK = "archive_format"  # the file that every .pt2 has
CODE = "data/aotinductor/"


class PackageError(RuntimeError):
    """A package cannot be written, is not what it should be, was made for something else, or gets other inputs."""


def require_compiler() -> str:
    """The C++ compiler that ``torch.compile`` will call for a model on the CPU.

    Raises:
        guards.GuardError: if there is none. ``torch.compile`` itself says so only when the compiled model is
            called for the first time, at the end of a long traceback.

    >>> bool(require_compiler())
    True
    """
    wanted = os.environ.get("CXX", {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++"))
    if found := shutil.which(wanted):
        return found
    raise guards.GuardError(
        f"torch.compile needs a C++ compiler, and there is no {wanted} on the PATH: install one (apt install g++; "
        f"xcode-select --install), name another in the variable CXX, or export the model instead."
    )


# --- writing -----------------------------------------------------------------------------------------


def write(model: nn.Module, program: torch.export.ExportedProgram, path: Path | str) -> census.Census:
    """Compile an exported program ahead of time, with frozen weights, and write the package, whole or not at all.

    It is made for this kind of processor, for the shapes that the program was exported with, and for the number of
    threads that is set. Gradients are switched off here: with them inductor does not freeze weights, finds no int8
    pattern, and compiles a quantized graph in float without a word.

    Args:
        model: the float model, by whose layers the census is taken.
        program: exported from it, or from its converted PT2E graph; its inputs are tensors.
        path: of the package, ending with ``.pt2``; missing folders are made.

    Returns:
        The census, from the generated code; :func:`read_census` gives it again from the file.

    Raises:
        GuardError: if there is no C++ compiler, or a quantized program needs torchao, which is not installed.
        PackageError: if the path has another ending; or the program takes other things than tensors, in an unusual
            layout, or with a size that follows from another.
        CensusError: if a quantized program was compiled without one int8 kernel.
        WriteError: if the file cannot be written there.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise PackageError(f"A package ends with .pt2, {path.name} does not.")
    compiler = require_compiler()
    inputs = _inputs(program)
    quantized = any("quantize" in str(node.target) for node in program.graph.nodes if node.op == "call_function")
    if quantized:
        guards.require_packages("deploy", "torchao")
        importlib.import_module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")  # registers patterns
    from qhelpers.check import compiled

    lowered = compiled.Lowered()
    options = {"freezing": True, "post_grad_custom_post_pass": lowered}
    with atomic.replacing(path) as part:
        with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch._inductor.aoti_compile_and_package(program, package_path=str(part), inductor_configs=options)
        found = compiled.taken(model, lowered, _code(part))
        if quantized:
            census.require_int8(found)
        with zipfile.ZipFile(part, "a") as archive:
            files = {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}
            manifest = {
                "torch": torch.__version__,
                "system": _system(),
                "instructions": _instructions(archive),
                "compiler": Path(compiler).name,
                "threads": torch.get_num_threads(),
                "inputs": [one._asdict() for one in inputs],
                "census": asdict(found),
                "files": files,
            }
            archive.writestr(f"{_root(archive)}/{MANIFEST}", json.dumps(sealed(manifest), indent=1))
    return found


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest with the SHA-256 of all that it says, so that it is not changed by accident.

    >>> sealed({"threads": 2})["sha256"] == sealed({"threads": 3})["sha256"]
    False
    """
    said = {key: value for key, value in manifest.items() if key != "sha256"}
    return said | {"sha256": hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()}


class Input(NamedTuple):
    """What a package takes: sizes (a pair where any from one to the other will do), type, layout, names of sizes."""

    sizes: tuple[int | tuple[int, int], ...]
    dtype: str
    channels_last: bool
    names: tuple[str, ...]  # of sizes that are open; those with one name have to be equal

    def fits(self, value: Tensor) -> bool:
        """Whether a tensor has the type and, dimension by dimension, one of the sizes."""
        if str(value.dtype) != self.dtype or value.ndim != len(self.sizes):
            return False
        ends = ((size, size) if isinstance(size, int) else size for size in self.sizes)
        return all(low <= size <= high for (low, high), size in zip(ends, value.shape, strict=True))

    def __str__(self) -> str:
        shown = ", ".join(str(size) if isinstance(size, int) else f"{size[0]} to {size[1]}" for size in self.sizes)
        return f"{self.dtype.removeprefix('torch.')} ({shown})"


def _inputs(program: torch.export.ExportedProgram) -> list[Input]:
    wanted = set(program.graph_signature.user_inputs)
    found = []
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in wanted:
            value = node.meta["val"]
            if not isinstance(value, Tensor):
                raise PackageError(
                    f"The program takes a {type(value).__name__} ({node.name}); a package takes tensors."
                )
            sizes = tuple(_size(program, size) for size in value.shape)
            last = value.ndim == 4 and not value.is_contiguous()
            if not (value.is_contiguous() or (last and value.is_contiguous(memory_format=torch.channels_last))):
                raise PackageError(f"The input {node.name} is neither contiguous nor channels_last: export it so.")
            names = tuple("" if isinstance(size, int) else str(size.node.expr) for size in value.shape)
            if computed := [name for name in names if name and not name.isidentifier()]:
                raise PackageError(
                    f"The input {node.name} has a size that follows from another ({computed[0]}), which no call of a "
                    f"package compares: export it with a fixed size, or make that input in forward."
                )
            found.append(Input(sizes, str(value.dtype), last, names))
    return found


def _size(program: torch.export.ExportedProgram, size: Any) -> int | tuple[int, int]:
    if isinstance(size, int):
        return size
    bounds = program.range_constraints.get(size.node.expr)
    if bounds is None:  # a size that was given no range
        return 0, sys.maxsize
    return int(bounds.lower), int(min(bounds.upper, sys.maxsize))  # without a bound it is a symbol for infinity


def _code(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        return "\n".join(archive.read(name).decode() for name in archive.namelist() if name.endswith(".wrapper.cpp"))


def _system() -> str:
    return f"{platform.system()} {platform.machine()}"


# What inductor calls the instructions that it compiles for, and what PyTorch calls a processor's abilities.
ABILITY = {"avx512": "avx512_f", "asimd": "neon", "avx2": "avx2", "avx512_vnni": "avx512_vnni", "amx_tile": "amx_tile"}


def _instructions(archive: zipfile.ZipFile) -> list[str]:
    names = [name for name in archive.namelist() if name.endswith(".wrapper_metadata.json")]
    said = json.loads(archive.read(names[0])).get("AOTI_CPU_ISA", "") if names else ""
    return sorted(one for one in said.lower().split() if not one.startswith("invalid"))  # without vectors


# --- loading -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Package:
    """A package, loaded; call it with its inputs."""

    path: Path
    inputs: tuple[Input, ...]
    census: census.Census
    threads: int
    run: Callable[..., Any]  # without the checks

    def __call__(self, *inputs: Tensor) -> Any:
        """The model's output.

        Raises:
            PackageError: for another number of inputs, another type or another shape. PyTorch checks none of them:
                a package for one image answers two with one row.
        """
        if len(inputs) != len(self.inputs):
            raise PackageError(
                f"{self.path.name} takes another number of inputs: {len(self.inputs)}, not {len(inputs)}."
            )
        ready, sizes = [], dict[str, int]()
        for wanted, value in zip(self.inputs, inputs, strict=True):
            if not isinstance(value, Tensor):
                raise PackageError(f"{self.path.name} takes tensors, got {type(value).__name__}.")
            if not wanted.fits(value):
                given = f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
                raise PackageError(
                    f"{self.path.name} takes {wanted}, got {given}: "
                    f"bring it to that shape, or export for a range of sizes and compile again."
                )
            for name, size in zip(wanted.names, value.shape, strict=True):
                if name and sizes.setdefault(name, size) != size:
                    raise PackageError(
                        f"{self.path.name} takes inputs of one common size, got {sizes[name]} and {size}: "
                        f"it was exported with one Dim for both."
                    )
            kind = torch.channels_last if wanted.channels_last else torch.contiguous_format
            ready.append(value.contiguous(memory_format=kind))
        return self.run(*ready)

    def __reduce__(self) -> tuple[Any, ...]:
        return load, (self.path,)  # in another process it is loaded anew


def load(path: Path | str, sha256: str | None = None) -> Package:
    """Load a package that :func:`write` has written, if it is whole, unchanged and made for this place.

    It needs neither a compiler nor the model's class nor torchao. A package is machine code: load only those whose
    author you trust, and compare the hash that the author gives you.

    Args:
        path: the ``.pt2`` file.
        sha256: of the file, as :func:`digest` gives it where the file was written; if None, not compared.

    Raises:
        PackageError: if there is no such file; it is cut off, changed or no package; another version of PyTorch,
            another system or a processor with more instructions compiled it; or PyTorch cannot load it.

    >>> load(Path("no-such-file.pt2"))
    Traceback (most recent call last):
        ...
    qhelpers.check.packages.PackageError: no-such-file.pt2 cannot be loaded: there is no such file.
    """
    path = _file(path)
    if sha256 is not None and digest(path) != sha256:
        raise PackageError(f"{path.name} is not the file whose SHA-256 was given: copy it again.")
    manifest = _checked(path)
    _require_same_place(path.name, manifest)
    threads = torch.get_num_threads()
    if threads != manifest["threads"]:
        warnings.warn(
            f"{path.name} was compiled for another number of threads ({manifest['threads']}) than is set ({threads}): "
            f"it may be slow. Call torch.set_num_threads before it is compiled, as where it will run.",
            stacklevel=2,
        )
    run = open_unchecked(path)
    inputs = tuple(
        Input(_tuples(one["sizes"]), one["dtype"], one["channels_last"], tuple(one["names"]))
        for one in manifest["inputs"]
    )
    return Package(path.absolute(), inputs, _census(manifest), manifest["threads"], run)


def read_census(path: Path | str) -> census.Census:
    """The census of a package, as it was taken from the generated code when the package was written.

    Raises:
        PackageError: if the file is missing, cut off, changed, or was not written by :func:`write`.
    """
    return _census(_checked(_file(path)))


def digest(path: Path) -> str:
    """SHA-256 of a file, to be handed on beside it.

    >>> len(digest(Path(__file__)))
    64
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _file(path: Path | str) -> Path:
    path = Path(path)
    if not path.is_file():
        why = "it is a folder" if path.is_dir() else "there is no such file"
        raise PackageError(f"{path.name} cannot be loaded: {why}.")
    return path


def _checked(path: Path) -> dict[str, Any]:
    """The manifest, once every file in the archive has been compared with it."""
    with path.open("rb") as file:
        head = file.read(2)
    if head != b"PK":
        raise PackageError(f"{path.name} is no package (.pt2): it is {'something else' if head else 'empty'}.")
    damaged = f"{path.name} is cut off or damaged: copy it again."
    try:
        with zipfile.ZipFile(path) as archive:
            names, root = archive.namelist(), _root(archive)
            if not any(name.startswith(f"{root}/{CODE}") for name in names):
                raise PackageError(
                    f"{path.name} holds no compiled code: it may be a graph of torch.export.save, to be compiled first."
                )
            if f"{root}/{MANIFEST}" not in names:
                raise PackageError(
                    f"{path.name} does not say what it was compiled for: write it with packages.write, or load it "
                    f"unchecked with torch._inductor.aoti_load_package."
                )
            read = json.loads(archive.read(f"{root}/{MANIFEST}"))
            files = {name: archive.read(name) for name in names if name != f"{root}/{MANIFEST}"}
    except PackageError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError) as error:  # a zip's own errors
        raise PackageError(damaged) from error
    changed = f"{path.name} was changed after it was written ({{}} file): copy it again."
    manifest: dict[str, Any] = read if isinstance(read, dict) else {}
    if manifest.get("sha256") != sealed(manifest)["sha256"]:
        raise PackageError(changed.format(Path(MANIFEST).suffix))
    found = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    if found != manifest["files"]:
        other = sorted({*found.items()} ^ {*manifest["files"].items()})[0][0]
        raise PackageError(changed.format(Path(other).suffix))
    return manifest


def _root(archive: zipfile.ZipFile) -> str:
    """The folder inside, which has the package's first name; ``/`` where there is none."""
    roots = (name.partition("/")[0] for name in archive.namelist() if name.endswith(f"/{MARK}"))
    return next(roots, "/")


def _require_same_place(name: str, manifest: Mapping[str, Any]) -> None:
    again = "compile it again here, from the exported program"
    if manifest["torch"] != torch.__version__:
        raise PackageError(
            f"{name} was compiled by torch {manifest['torch']}, and this is {torch.__version__}: {again}."
        )
    if manifest["system"] != _system():
        raise PackageError(f"{name} was compiled for {manifest['system']}, and this is {_system()}: {again}.")
    able = torch.cpu.get_capabilities()
    if missing := [one for one in manifest["instructions"] if not able.get(ABILITY.get(one, one))]:
        raise PackageError(f"{name} needs {', '.join(missing)}, which {engines.cpu_name()} lacks: {again}.")


def _tuples(sizes: Sequence[Any]) -> tuple[int | tuple[int, int], ...]:
    return tuple(size if isinstance(size, int) else (size[0], size[1]) for size in sizes)


def _census(manifest: Mapping[str, Any]) -> census.Census:
    kept = manifest["census"]
    layers = tuple(census.Layer(**layer) for layer in kept["layers"])
    return census.Census(layers, kept["kernels"], kept["conversions"])


def open_unchecked(path: Path) -> Callable[..., Any]:
    """PyTorch's own runtime of a package, which checks nothing; its files are unpacked into a folder that goes with it.

    ``torch._inductor.aoti_load_package`` uses the same runtime, but reads the structure of the output anew at every
    call, and asks a compiler for the processor's instructions: without one it says that the package is outdated.

    Returns:
        The model: it takes tensors.

    Raises:
        PackageError: if it cannot be loaded, with PyTorch's reason.
    """
    unpacked = tempfile.mkdtemp(prefix="unpacked-")  # by default it would stay in /tmp for ever
    try:
        with _temporary_folder(unpacked):
            loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)
    except Exception as error:  # the C++ of the package can raise anything
        shutil.rmtree(unpacked, ignore_errors=True)
        raise PackageError(f"{path.name} cannot be loaded: {guards.first_line(error)}") from error
    run = partial(_run, loader, pytree.treespec_loads(loader.get_call_spec()[1]))
    weakref.finalize(run, shutil.rmtree, unpacked, ignore_errors=True)
    return run


def _run(loader: Any, output: pytree.TreeSpec, *inputs: Tensor) -> Any:
    return pytree.tree_unflatten(loader.boxed_run([*inputs]), output)


@contextmanager
def _temporary_folder(name: str) -> Iterator[None]:
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = name
    try:
        yield
    finally:
        os.environ.pop("TMPDIR") if before is None else os.environ.update(TMPDIR=before)


# --- concurrent callers ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Throughput:
    """What concurrent callers got from a package: calls a second, and the time of a call in milliseconds."""

    calls: int
    per_second: float
    median_ms: float
    p99_ms: float


class Workers:
    """Processes that each load packages, and answer the calls of several threads; close them, or use ``with``.

    Python calls a package with the interpreter's lock held (pytorch issue 197516), so threads of one process wait for
    each other, and only processes use several cores.

    Args:
        processes: how many.

    Raises:
        PackageError: if there is to be none.
    """

    def __init__(self, processes: int) -> None:
        if processes < 1:
            raise PackageError(f"There must be at least one process, got {processes}.")
        self.processes = processes
        context = multiprocessing.get_context("spawn")  # a fork would inherit the locks of PyTorch's threads
        together = (context.Barrier(processes),)
        self._pool = ProcessPoolExecutor(processes, context, initializer=_begin_worker, initargs=together)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def throughput(self, path: Path, *inputs: Tensor, callers: int, seconds: float = 1.0) -> Throughput:
        """Let callers, spread over the processes, call a package on one thread each, again and again, and time them.

        Args:
            path: of the package.
            inputs: of every call.
            callers: how many; at least one for each process.
            seconds: how long they go on.

        Raises:
            PackageError: if a number cannot be, the package is refused, or a call fails.
        """
        if callers < self.processes or not seconds > 0:
            raise PackageError(f"{callers} callers cannot be spread over {self.processes} processes for {seconds} s.")
        shares = [len(range(i, callers, self.processes)) for i in range(self.processes)]
        jobs = [self._pool.submit(_answer, path, inputs, share, seconds) for share in shares]
        ends = [own for job in jobs for own in job.result()]
        took = max(own[-1] for own in ends) - min(own[0] for own in ends)  # the clock is the system's
        every = 1e3 * np.concatenate([np.diff(own) for own in ends])
        return Throughput(len(every), len(every) / took, float(np.median(every)), float(np.quantile(every, 0.99)))


_together: Any = None  # in a worker: the barrier at which all begin


def _begin_worker(together: Any) -> None:
    global _together
    _together = together
    torch.set_num_threads(1)


def _answer(path: Path, inputs: Sequence[Tensor], callers: int, seconds: float) -> list[list[float]]:
    """For each caller of this process when it began and when each of its calls ended."""
    ends: list[list[float]] = [[] for _ in range(callers)]
    failed: list[Exception] = []

    def call(own: list[float]) -> None:
        try:
            torch.set_num_threads(1)  # OpenMP keeps a number for each thread that calls it
            own.append(time.monotonic())
            with torch.inference_mode():
                while own[-1] < own[0] + seconds:
                    package(*inputs)
                    own.append(time.monotonic())
        except Exception as error:  # raised again below, in the process's own thread
            failed.append(error)

    try:
        package = load(path)
        package(*inputs)  # what is made at the first call is not timed
    except Exception as error:
        failed.append(error)
    _together.wait(timeout=60)  # also where it failed, since the others wait
    if failed:
        raise failed[0]
    workers = [threading.Thread(target=call, args=(own,)) for own in ends]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failed:
        raise failed[0]
    return ends
