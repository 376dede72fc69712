"""Loaded by every Python process whose PYTHONPATH names this folder: it hides eager quantization from the book's code.

Upstream plans to delete ``torch.ao.quantization`` (ao issue 2259) and the dtypes quint8, qint8 and qint32, with the
functions that make them and their kernels (pytorch issue 184982). Notebooks and helpers no longer find them here, nor
torchvision's int8 models, which are built with them. Other packages still do: torch and torchao would change with it.
"""

import builtins
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = str(Path(__file__).parents[2])
sys.path.insert(0, ROOT)  # only for this import
from tools.after_torch import AfterTorch  # noqa: E402

sys.path.remove(ROOT)

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


def hide_what_will_go(torch: ModuleType) -> None:
    """Hide the names of torch, and the kernels."""
    hide(torch, NAMES)
    hide(torch.ao, {"quantization", "nn", "ns"})  # which `from torch import ao` still finds
    hide(torch.ops, KERNELS)


sys.meta_path.insert(0, AfterTorch(hide_what_will_go))
