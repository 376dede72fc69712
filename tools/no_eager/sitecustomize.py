"""Loaded by every Python process whose PYTHONPATH names this folder: it hides eager quantization from the book's code.

Upstream plans to delete ``torch.ao.quantization`` (ao issue 2259) and the dtypes quint8, qint8 and qint32, with the
functions that make them and their kernels (pytorch issue 184982). Notebooks and helpers no longer find them here, nor
torchvision's int8 models, which are built with them. Other packages still do: torch and torchao would change with it.
"""

import builtins
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

MODULES = (
    "torch.ao.quantization",
    "torch.ao.nn",
    "torch.ao.ns",
    "torch.quantization",
    "torch.nn.quantized",
    "torch.nn.intrinsic",
    "torch.nn.qat",
    "torchvision.models.quantization",
)
NAMES = {"ao", "quantization", "quint8", "qint8", "qint32", "quint4x2", "quint2x4"}
NAMES |= {"quantize_per_tensor", "quantize_per_tensor_dynamic", "quantize_per_channel"}
KERNELS = {"quantized"}  # of torch.ops
OF_THE_BOOK = ("__main__", "qhelpers", "experiments")


def of_the_book(name: object) -> bool:
    """Whether code in a module of this name is a notebook's or the package's."""
    return str(name).split(".")[0] in OF_THE_BOOK


def _hidden_import(
    name: str,
    globals: Mapping[str, object] | None = None,
    locals: Mapping[str, object] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    if level == 0 and of_the_book((globals or {}).get("__name__")):
        asked = [name, *(f"{name}.{part}" for part in fromlist or ())]
        for module in MODULES:
            if any(one == module or one.startswith(f"{module}.") for one in asked):
                raise ModuleNotFoundError(f"No module named {module!r} (hidden here)", name=module)
    return _real_import(name, globals, locals, fromlist or (), level)


_real_import = builtins.__import__
builtins.__import__ = _hidden_import


def hide(module: Any, names: set[str]) -> None:
    """Let code of the book no longer find these attributes of a module."""

    class Hiding(type(module)):  # type: ignore[misc]
        def __getattribute__(self, name: str) -> Any:
            if name in names and of_the_book(sys._getframe(1).f_globals.get("__name__")):
                raise AttributeError(f"module {module_name!r} has no attribute {name!r} (hidden here)")
            return super().__getattribute__(name)

        def __getattr__(self, name: str) -> Any:  # is asked next, and torch.ops would make what is not there
            if name in names and of_the_book(sys._getframe(1).f_globals.get("__name__")):
                raise AttributeError(f"module {module_name!r} has no attribute {name!r} (hidden here)")
            return super().__getattr__(name)

    module_name = module.__name__
    module.__class__ = Hiding


class AfterTorch(importlib.abc.MetaPathFinder):
    """Finds torch as usual, and hides what will go when its module has been executed."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """The usual spec of torch, with a loader that does the usual and then hides."""
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_hide(module: ModuleType) -> None:
            execute(module)
            hide(module, NAMES)
            hide(module.ops, KERNELS)

        spec.loader.exec_module = execute_and_hide  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, AfterTorch())
