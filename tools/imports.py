"""What a notebook or a module imports of this project, followed to every file that it reaches.

Import statements are followed, also those inside functions and in strings that are Python (code for another process).
Not followed: names that are put together at run time (``importlib``, f-strings), and commands of a shell.
"""

import ast
import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from IPython.core.inputtransformer2 import TransformerManager

from tools.common import files_below


def code_of(notebook: Path) -> str:
    """A notebook's code cells as one piece of Python; IPython's own syntax becomes the calls that it stands for."""
    cells = [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    return "\n".join(_as_python("".join(cell["source"])) for cell in cells)


@functools.cache  # asked for each notebook, and again for the pages that gather
def _as_python(cell: str) -> str:
    manager: Any = TransformerManager()  # type: ignore[no-untyped-call]
    return str(manager.transform_cell(cell))


@functools.cache  # every chapter reaches the same modules
def imported_names(code: str) -> frozenset[str]:
    """Dotted names that Python code imports; ``from a import b`` gives ``a.b``, which may be no module.

    Raises:
        SyntaxError: if it is no Python.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "import" in node.value:
            with contextlib.suppress(SyntaxError, ValueError):  # what is prose
                found |= imported_names(node.value)
    return frozenset(found)


@functools.cache
def strings(code: str) -> frozenset[str]:
    """The strings that Python code holds."""
    nodes = ast.walk(ast.parse(code))
    return frozenset(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


def module_files(name: str, root: Path) -> list[Path]:
    """The files of this project that importing a dotted name executes, its packages included."""
    parts = name.split(".")
    candidates = []
    for end in range(1, len(parts) + 1):
        place = root.joinpath(*parts[:end])
        candidates += [place / "__init__.py", place.with_suffix(".py")]
    return [path for path in candidates if path.is_file()]


def reached_files(notebook: Path, root: Path) -> set[Path]:
    """The modules of this project that a notebook's imports lead to, and the data files that these name.

    A module names data by a string that is the name of a file or folder beside it, such as ``"weights"``. Where
    something is no Python, everything below ``qhelpers`` counts, and running the notebook will show why.
    """
    try:
        return _follow(set(imported_names(code_of(notebook))), root)
    except (SyntaxError, ValueError):
        return set(files_below(root / "qhelpers"))


def _follow(todo: set[str], root: Path) -> set[Path]:
    found: set[Path] = set()
    while todo:
        for path in module_files(todo.pop(), root):
            if path not in found:
                code = path.read_text(encoding="utf-8")
                found |= {path, *_data_beside(path, code)}
                todo |= imported_names(code)
    return found


def _data_beside(module: Path, code: str) -> Iterator[Path]:
    beside = {path.name: path for path in module.parent.iterdir() if not _is_code(path)}
    for name in strings(code) & beside.keys():
        path = beside[name]
        yield from files_below(path) if path.is_dir() else [path]


def _is_code(path: Path) -> bool:
    return path.suffix in (".py", ".pyc") or (path / "__init__.py").is_file()
