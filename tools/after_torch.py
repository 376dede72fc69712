"""Change torch right after its import, in every process that loads a ``sitecustomize`` of these tools."""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class AfterTorch(importlib.abc.MetaPathFinder):
    """Finds torch as usual, and changes its module when it has been executed.

    Args:
        change: is given the module.
    """

    def __init__(self, change: Callable[[ModuleType], None]) -> None:
        self.change = change

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """The usual spec of torch, with a loader that does the usual and then makes the change."""
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_change(module: ModuleType) -> None:
            execute(module)
            self.change(module)

        spec.loader.exec_module = execute_and_change  # type: ignore[method-assign]
        return spec
