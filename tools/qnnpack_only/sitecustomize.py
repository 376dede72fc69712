"""Loaded by every Python process whose PYTHONPATH names this folder: it hides all engines of PyTorch but qnnpack.

What is left is the list of a build without oneDNN and FBGEMM, ``['qnnpack', 'none']``, as PyTorch 2.2.2 printed it on a
Mac with Apple silicon (pytorch issue 123507). Wheels for Linux on ARM have ``['qnnpack', 'onednn']``, as
``experiments/arm_emulated.py`` records. The processor stays what it is, so the kernels that run are qnnpack's for x86;
only the choice of an engine is that of such a build.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import Any

ENGINES = ("none", "qnnpack")


def hide_engines(torch: ModuleType) -> None:
    """Let the build list two engines, accept no other, and start with qnnpack."""
    real = torch._C
    set_engine, get_id = real._set_qengine, torch.backends.quantized._get_qengine_id
    allowed = [get_id(name) for name in ENGINES]

    def set_allowed(number: int) -> None:
        if number not in allowed:
            name = torch.backends.quantized._get_qengine_str(number)
            raise RuntimeError(f"quantized engine {name} is not supported")
        if number != get_id("none"):  # this build cannot set it; the real ones can
            set_engine(number)

    set_engine(get_id("qnnpack"))
    real._set_qengine = set_allowed
    real._supported_qengines = lambda: [get_id("qnnpack"), get_id("none")]


class AfterTorch(importlib.abc.MetaPathFinder):
    """Finds torch as usual, and hides the engines when its module has been executed."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """The usual spec of torch, with a loader that does the usual and then hides the engines."""
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_hide(module: ModuleType) -> None:
            execute(module)
            hide_engines(module)

        spec.loader.exec_module = execute_and_hide  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, AfterTorch())
