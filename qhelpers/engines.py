"""Quantized engines: the library that packs int8 weights and runs int8 operators.

PyTorch keeps the choice in a global, ``torch.backends.quantized.engine``. It is read when a model is
converted or loaded (to pack its weights) and again by some operators at run time.
"""

import difflib
import importlib
import io
import pickle
import platform
import types
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import cloudpickle
import torch
from torch import nn

KNOWN_ENGINES = ("x86", "fbgemm", "onednn", "qnnpack")
# Whether the default qconfig leaves one bit of the activations unused; a test compares it with PyTorch.
REDUCES_RANGE = {"x86": True, "fbgemm": True, "onednn": False, "qnnpack": False}

# What decides the speed of int8, strongest first: PyTorch's name of the capability, and the usual one.
INSTRUCTIONS = {
    "amx_int8": "AMX",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX-VNNI",
    "i8mm": "NEON i8mm",
    "dot": "NEON dot product",
    "avx512_bw": "AVX-512",
    "avx2": "AVX2",
    "neon": "NEON",
}
DOT_PRODUCT = ("AMX", "AVX-512 VNNI", "AVX-VNNI", "NEON i8mm", "NEON dot product")


class EngineError(ValueError):
    """The engine is unknown, this build of PyTorch was made without it, or a qconfig was made for another one."""


def available_engines() -> list[str]:
    """Engines of this build of PyTorch, best known first.

    >>> "qnnpack" in available_engines()
    True
    """
    built = torch.backends.quantized.supported_engines
    return [name for name in KNOWN_ENGINES if name in built]


def default_engine() -> str:
    """The engine to choose on this machine: ``x86`` where the build has it, else ``qnnpack``.

    Linux on 64-bit ARM has qnnpack, too, though PyTorch sets ``onednn`` there: emulated, qnnpack gave x86's bits, and
    onednn, which adds in 16-bit fixed point, was less accurate (``make arm`` records it). Their speed was not measured.

    Raises:
        EngineError: if the build has no quantized engine at all.

    >>> default_engine() in available_engines()
    True
    """
    engines = available_engines()
    if chosen := [name for name in ("x86", "qnnpack") if name in engines]:
        return chosen[0]
    raise EngineError(f"This build of PyTorch has no quantized engine (it lists {engines}).")


def check_engine(name: str) -> str:
    """Return ``name`` if this build has that engine.

    Raises:
        EngineError: if no engine has that name (the nearest is offered), or the build lacks it.

    >>> check_engine("x87")
    Traceback (most recent call last):
        ...
    qhelpers.engines.EngineError: There is no quantized engine 'x87'. Did you mean 'x86'?
    """
    if name not in KNOWN_ENGINES:
        near = difflib.get_close_matches(str(name), KNOWN_ENGINES, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known engines: {', '.join(KNOWN_ENGINES)}."
        raise EngineError(f"There is no quantized engine {name!r}. {hint}")
    if name not in available_engines():
        raise EngineError(
            f"This build of PyTorch has no engine {name!r}; it has {', '.join(available_engines()) or 'none'}. "
            f"Use default_engine() to take what is there."
        )
    return name


def int8_instructions(capabilities: Mapping[str, Any] | None = None) -> list[str]:
    """The processor's vector instructions that matter for int8, strongest first.

    Those in ``DOT_PRODUCT`` multiply int8 pairs and add them up in one step; the others need nearly as many as float.

    Args:
        capabilities: as ``torch.cpu.get_capabilities`` gives them; if None, those of this machine.

    Raises:
        EngineError: if they cannot be read, so that no page relies on instructions that were not read.

    >>> int8_instructions({"architecture": "x86_64", "avx2": True, "avx512_vnni": False})
    ['AVX2']
    """
    found = _capabilities() if capabilities is None else capabilities
    if not any(name in found for name in INSTRUCTIONS):
        raise EngineError(f"The instructions of {cpu_name()} cannot be read: PyTorch names none that this book knows.")
    return [label for name, label in INSTRUCTIONS.items() if found.get(name)]


def _capabilities() -> Mapping[str, Any]:
    try:
        return torch.cpu.get_capabilities()
    except (RuntimeError, AttributeError) as error:  # another architecture, or an older PyTorch
        raise EngineError(f"The instructions of {cpu_name()} cannot be read: {error}") from error


def may_saturate(name: str, instructions: Collection[str]) -> bool:
    """Whether an engine's kernels may add int8 products in 16 bits on a processor, so that sums can be cut off.

    qnnpack never does. FBGEMM, and ``x86`` with it, needs AVX-512 VNNI to avoid it; oneDNN also uses AVX-VNNI.

    Args:
        name: of the engine.
        instructions: as :func:`int8_instructions` lists them.

    >>> may_saturate("fbgemm", ["AVX2"]), may_saturate("qnnpack", ["AVX2"])
    (True, False)
    """
    wide = {"AMX", "AVX-512 VNNI"} | ({"AVX-VNNI"} if name == "onednn" else set())
    return name != "qnnpack" and "NEON" not in instructions and wide.isdisjoint(instructions)


def has_int8_dot_product() -> bool:
    """Whether this processor has an instruction for int8 dot products.

    >>> has_int8_dot_product() == any(name in DOT_PRODUCT for name in int8_instructions())
    True
    """
    return not set(DOT_PRODUCT).isdisjoint(int8_instructions())


def has_bf16() -> bool:
    """Whether this processor multiplies bf16, which halves a float model without quantization.

    Raises:
        EngineError: if its instructions cannot be read.

    >>> has_bf16() in (True, False)
    True
    """
    found = _capabilities()
    return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


@contextmanager
def using_engine(name: str) -> Iterator[str]:
    """Select a quantized engine inside a ``with`` block and restore the previous one after it.

    Raises:
        EngineError: as :func:`check_engine`; nothing has been changed then.

    >>> before = torch.backends.quantized.engine
    >>> with using_engine("qnnpack"):
    ...     torch.backends.quantized.engine
    'qnnpack'
    >>> torch.backends.quantized.engine == before
    True
    """
    check_engine(name)
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield name
    finally:
        torch.backends.quantized.engine = before


@contextmanager
def preserved_engine() -> Iterator[None]:
    """Undo whatever the block does to the global engine (torchvision's builders set it).

    >>> before = torch.backends.quantized.engine
    >>> with preserved_engine():
    ...     torch.backends.quantized.engine = "qnnpack"
    >>> torch.backends.quantized.engine == before
    True
    """
    before = torch.backends.quantized.engine
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


class UnderEngine:
    """A model that runs under one engine, whichever is set; in another process its weights are packed for it again.

    Args:
        engine: a name, as in :func:`available_engines`.
        model: whose int8 weights, if any, were packed for that engine.

    Raises:
        EngineError: as :func:`check_engine`.

    >>> UnderEngine("qnnpack", lambda x: torch.backends.quantized.engine)(torch.ones(1))
    'qnnpack'
    """

    def __init__(self, engine: str, model: Callable[..., Any]) -> None:
        self.engine = check_engine(engine)
        self.model = model

    def __call__(self, *inputs: Any) -> Any:
        """The model's output."""
        with using_engine(self.engine):
            return self.model(*inputs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _under, (self.engine, pickled(self.model))


def _under(engine: str, model: bytes) -> UnderEngine:
    with using_engine(engine):
        return UnderEngine(engine, pickle.loads(model))


def pickled(value: Any) -> bytes:
    """Anything that holds int8 models, as bytes for a process of this same installation; ``pickle.loads`` reads them.

    Python alone cannot write packed weights. Here they are written unpacked, and packed for the engine that is set
    while they are read. Read only bytes that you have written yourself: a pickle may run any code.

    >>> from torch.ao.nn.quantized import Linear
    >>> pickle.loads(pickled(Linear(2, 3))).weight().shape
    torch.Size([3, 2])
    """
    file = io.BytesIO()
    _Pickler(file).dump(value)
    return file.getvalue()


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.ScriptObject):  # packed weights
            return _read_packed, (_write_packed(value),)
        if isinstance(value, nn.Module) and type(value).__module__.startswith("torch.ao.nn"):
            state = getattr(type(value), "__setstate__", None)
            if state is not nn.Module.__setstate__:  # it relies on an initialized module, which pickle does not give
                return _revived, (type(value), value.__getstate__())  # type: ignore[no-untyped-call]
        if isinstance(value, types.ModuleType) and type(value) is not types.ModuleType:  # such as torch.backends.mha
            return importlib.import_module, (value.__name__,)
        return super().reducer_override(value)


class _Holder(nn.Module):
    def __init__(self, packed: torch.ScriptObject) -> None:
        super().__init__()
        self.packed = packed


def _write_packed(packed: torch.ScriptObject) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (DeprecationWarning, FutureWarning))  # TorchScript's own
        torch.jit.save(torch.jit.script(_Holder(packed)), file)
    return file.getvalue()


def _read_packed(data: bytes) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (DeprecationWarning, FutureWarning))
        return torch.jit.load(io.BytesIO(data)).packed  # type: ignore[no-untyped-call]


def _revived(kind: type[nn.Module], state: Any) -> nn.Module:
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    module.__setstate__(state)  # type: ignore[no-untyped-call]
    return module


@cache
def cpu_name() -> str:
    """The processor's name as the system gives it.

    >>> len(cpu_name()) > 0
    True
    """
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
