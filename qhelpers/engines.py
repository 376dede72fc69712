"""Quantized engines: the library that packs int8 weights and runs int8 operators.

PyTorch keeps the choice in a global, ``torch.backends.quantized.engine``. It is read when a model is
converted or loaded (to pack its weights) and again by some operators at run time.
"""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

KNOWN_ENGINES = ("x86", "fbgemm", "onednn", "qnnpack")


class EngineError(ValueError):
    """The engine is unknown, or this build of PyTorch was made without it."""


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
