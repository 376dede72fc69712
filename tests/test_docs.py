"""Every public name of qhelpers is documented and has an example that the doctests run."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest

import qhelpers


def public() -> Iterator[Any]:
    for module in pkgutil.iter_modules(qhelpers.__path__):
        loaded = importlib.import_module(f"qhelpers.{module.name}")
        for name, value in vars(loaded).items():
            if inspect.isfunction(inspect.unwrap(value)) if callable(value) else False:
                function = inspect.unwrap(value)
                if function.__module__ == loaded.__name__ and not name.startswith("_"):
                    yield pytest.param(function, id=f"{module.name}.{name}")


@pytest.mark.parametrize("function", list(public()))
def test_public_functions_have_an_example_and_types(function: Any) -> None:
    assert ">>>" in (inspect.getdoc(function) or "")
    assert "return" in function.__annotations__


@pytest.mark.parametrize("module", [module.name for module in pkgutil.iter_modules(qhelpers.__path__)])
def test_modules_are_readable_in_one_sitting(module: str) -> None:
    source = inspect.getsource(importlib.import_module(f"qhelpers.{module}"))
    code = [line for line in source.splitlines() if line.strip()]
    assert len(code) <= 250
