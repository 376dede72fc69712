"""The house: which room may import from which, how large the front room is, and that every name is documented."""

import ast
import importlib
import inspect
import json
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import qhelpers
from tools.common import ROOT
from tools.imports import imported_names, module_files

PACKAGE = ROOT / "qhelpers"
FRONT = "front"
ROOMS = (FRONT, "tasks", "check", "book")  # each may import from the front room and from itself
MOST_FRONT_LINES, MOST_FRONT_MODULES = 1_600, 9


def room_of(path: Path) -> str:
    """The room of a module's file."""
    inside = path.relative_to(PACKAGE).parts
    return inside[0] if len(inside) > 1 else FRONT


def modules(room: str) -> list[Path]:
    """The files of a room's modules, without its ``__init__``."""
    found = PACKAGE.glob("*.py") if room == FRONT else (PACKAGE / room).rglob("*.py")
    return sorted(path for path in found if path.name != "__init__.py")


def wrong_arrows(path: Path, code: str) -> list[str]:
    """Imports of a module that lead into a room that its own room may not know."""
    reached = {
        file for name in imported_names(code) for file in module_files(name, ROOT) if file.is_relative_to(PACKAGE)
    }
    rooms = {room_of(file) for file in reached} - {FRONT, room_of(path)}
    return [f"{room_of(path)}/{path.stem} imports from {room}" for room in sorted(rooms)]


@pytest.mark.parametrize("room", ROOMS)
def test_no_import_leads_back(room: str) -> None:
    found = [arrow for path in modules(room) for arrow in wrong_arrows(path, path.read_text())]
    assert not found


@pytest.mark.parametrize(
    ("place", "code"),
    [
        ("size.py", "from qhelpers.book import chapter"),
        ("size.py", "def f():\n    import qhelpers.tasks.digits"),
        ("check/folding.py", "from qhelpers.tasks import networks"),
        ("check/folding.py", "from qhelpers.book.figures import show"),
        ("tasks/digits.py", "import qhelpers.check.simulate as s"),
    ],
)
def test_an_import_that_leads_back_is_found(place: str, code: str) -> None:
    assert len(wrong_arrows(PACKAGE / place, code)) == 1
    assert not wrong_arrows(PACKAGE / place, "from qhelpers import guards")


def test_nothing_outside_the_package_is_imported_by_it() -> None:
    names = {name for room in ROOMS for path in modules(room) for name in imported_names(path.read_text())}
    assert not {name for name in names if name.split(".")[0] in ("tools", "experiments", "tests")}


def test_experiments_know_the_tasks_and_the_loop_and_no_tool() -> None:
    names = {name for path in (ROOT / "experiments").glob("*.py") for name in imported_names(path.read_text())}
    assert any(name.startswith("qhelpers.tasks") for name in names)
    assert not {name for name in names if name.startswith(("tools", "tests"))}
    files = (ROOT / "experiments").glob("*.py")
    knows_check = {
        path.stem for path in files if any("qhelpers.check" in name for name in imported_names(path.read_text()))
    }
    # one repeats the diagnosis of a chapter on more networks, the other writes and counts the files of every target
    assert knows_check == {"dead_channels", "bert_calls"}


def test_the_front_room_stays_small() -> None:
    found = modules(FRONT)
    assert len(found) <= MOST_FRONT_MODULES
    assert sum(len(path.read_text().splitlines()) for path in found) <= MOST_FRONT_LINES


def test_every_room_has_its_mirror_in_the_tests() -> None:
    for room in (*ROOMS, "experiments", "tools"):
        assert list((ROOT / "tests" / room).glob("test_*.py")), room


def test_a_module_has_one_exception_type_unless_a_caller_tells_two_apart() -> None:
    """``check`` is left out until it is rewritten."""
    several = {}
    for path in [*modules(FRONT), *modules("tasks"), *modules("book")]:
        classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
        names = [node.name for node in classes if node.name.endswith("Error")]
        if len(names) > 1:
            several[path.stem] = names
    assert not several


def public() -> Iterator[Any]:
    """Every public function and class that a module of the package defines."""
    for module in pkgutil.walk_packages(qhelpers.__path__, "qhelpers."):
        loaded = importlib.import_module(module.name)
        for name, value in vars(loaded).items():
            defined = inspect.unwrap(value) if callable(value) else None
            if not name.startswith("_") and getattr(defined, "__module__", "") == module.name:
                yield pytest.param(defined, id=f"{module.name}.{name}")


@pytest.mark.parametrize("defined", list(public()))
def test_public_names_have_docstrings_and_types(defined: Any) -> None:
    assert (defined.__doc__ or "").strip()
    if inspect.isfunction(defined):
        assert "return" in defined.__annotations__


def test_claims_are_the_package_s_own_data() -> None:
    assert len(json.loads((PACKAGE / "book" / "claims.json").read_text())) == 57
