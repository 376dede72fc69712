"""Quantized engines: the library that packs int8 weights and runs int8 operators.

PyTorch keeps the choice in a global, ``torch.backends.quantized.engine``. It is read when a model is
converted or loaded (to pack its weights) and again by some operators at run time.
"""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

KNOWN_ENGINES = ("x86", "fbgemm", "onednn", "qnnpack")
# Whether the default qconfig leaves one bit of the activations unused; a test compares it with PyTorch.
REDUCES_RANGE = {"x86": True, "fbgemm": True, "onednn": False, "qnnpack": False}


class EngineError(ValueError):
    """The engine is unknown, or this build of PyTorch was made without it."""


class EngineMismatchError(EngineError):
    """A qconfig was made for other engines than the one that is set."""


def available_engines() -> list[str]:
    """Engines of this build of PyTorch, best known first.

    >>> "qnnpack" in available_engines()
    True
    """
    built = torch.backends.quantized.supported_engines
    return [name for name in KNOWN_ENGINES if name in built]


def default_engine() -> str:
    """The engine to choose on this machine: ``x86`` where the build has it, else ``qnnpack``.

    Raises:
        EngineError: if the build has no quantized engine at all.

    >>> default_engine() in available_engines()
    True
    """
    engines = available_engines()
    for name in ("x86", "qnnpack"):
        if name in engines:
            return name
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
        near = difflib.get_close_matches(name, KNOWN_ENGINES, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known engines: {', '.join(KNOWN_ENGINES)}."
        raise EngineError(f"There is no quantized engine {name!r}. {hint}")
    if name not in available_engines():
        raise EngineError(
            f"This build of PyTorch has no engine {name!r}; it has {', '.join(available_engines()) or 'none'}. "
            f"Use default_engine() to take what is there."
        )
    return name


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


def require_matching_engine(model: nn.Module) -> nn.Module:
    """Return the model if its qconfigs suit the engine that is set; call it before ``convert``.

    The default qconfigs differ in one thing that an engine depends on: those of ``x86`` and ``fbgemm`` leave
    one bit of the activations unused (``reduce_range``), because their kernels may add products in 16 bits;
    those of ``qnnpack`` and ``onednn`` do not.

    Raises:
        EngineMismatchError: if a static qconfig was made for others. PyTorch says nothing.

    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> model.qconfig = torch.ao.quantization.get_default_qconfig("x86")
    >>> with using_engine("qnnpack"):
    ...     require_matching_engine(model)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    qhelpers.engines.EngineMismatchError: The qconfig suits x86 or fbgemm (reduce_range=True), but ...
    """
    engine = torch.backends.quantized.engine
    for module in model.modules():
        wanted = _reduce_range(getattr(module, "qconfig", None))
        if wanted is not None and wanted != REDUCES_RANGE.get(engine, wanted):
            suits = " or ".join(name for name, value in REDUCES_RANGE.items() if value == wanted)
            raise EngineMismatchError(
                f"The qconfig suits {suits} (reduce_range={wanted}), but the engine is {engine}: "
                f"set the engine, or take get_default_qconfig({engine!r})."
            )
    return model


def _reduce_range(config: Any) -> bool | None:
    made_with = getattr(getattr(config, "activation", None), "p", None)  # the partial that makes the observer
    return made_with.keywords.get("reduce_range") if made_with else None
