"""What each notebook needs of eager quantization, which PyTorch plans to delete: from its metadata, and from its code.

``metadata.book.needs`` lists some of :data:`KINDS`, and is empty for a notebook that needs none. Where a chapter shows
the new calls for what the notebook does, ``metadata.book.taken_over_by`` names it.
"""

import ast
import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tools import common
from tools.imports import code_of

PAGE = Path("book/when-eager-is-gone.md")
PLACE = "<!-- the list of needs is made when the book is laid out -->"
CALLS, DTYPES, KERNELS = KINDS = ("eager calls", "old dtypes", "int8 kernels")
NAMES = {  # how the full names of each kind begin, or look
    CALLS: r"torch\.(ao\.)?(quantization|ns)\b|torch\.(ao\.)?nn\.(quantized|intrinsic|qat|quantizable)\b|torch\.ao$"
    r"|torchvision\.models\.quantization\b",
    DTYPES: r"torch\.(qint\d+|quint\w+|quantize_per_\w+)$",
    KERNELS: r"torch\.ops\.quantized\b|torch\.(ao\.)?nn\.quantized\b",
}
# These make int8 models, which hold the old dtypes and run the old kernels.
MAKES_INT8 = r"torch\.(ao\.)?quantization\.(\w+\.)?(convert|convert_fx|quantize|quantize_dynamic|quantize_qat)$"
METHOD = "fuse_model"  # of torchvision's quantizable models


def kinds_of(name: str) -> set[str]:
    """The kinds of things that a full name, or :data:`METHOD`, needs.

    >>> sorted(kinds_of("torch.ao.quantization.prepare")), sorted(kinds_of("torch.int8"))
    (['eager calls'], [])
    """
    if name == METHOD:
        return {CALLS}
    if re.match(MAKES_INT8, name):
        return {*KINDS}
    return {kind for kind, pattern in NAMES.items() if re.match(pattern, name)}


def full_names(code: str) -> set[str]:
    """The full names that Python code imports and uses, also in strings that are Python (code for another process).

    >>> sorted(full_names("from torch.ao import quantization as tq; tq.prepare(net)"))
    ['torch.ao.quantization', 'torch.ao.quantization.prepare']

    Raises:
        SyntaxError: if it is no Python.
    """
    tree = ast.parse(code)
    imports = [*_imports(tree)]
    found = {full for _, full in imports}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found |= {METHOD} & {node.attr}
            first, _, rest = ast.unparse(node).partition(".")
            if re.fullmatch(r"[\w.]+", rest):
                found |= {f"{full}.{rest}" for bound, full in imports if bound == first}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "import" in node.value:
            with contextlib.suppress(SyntaxError, ValueError):  # what is prose
                found |= full_names(node.value)
    return found


def _imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """The names that imports bind, each with its full name; a name that is bound twice comes twice."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name, alias.name
                if not alias.asname:
                    yield alias.name.partition(".")[0], alias.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def named(code: str) -> set[str]:
    """The kinds of things that code names itself; what helpers need for it only a run shows."""
    return {kind for name in full_names(code) for kind in kinds_of(name)}


def declared(notebook: Path) -> list[str]:
    """What a notebook's metadata says that it needs.

    Raises:
        SystemExit: if it does not say, or names something else than :data:`KINDS`, in their order.
    """
    needs = _book(notebook).get("needs")
    if not isinstance(needs, list) or needs != [kind for kind in KINDS if kind in needs]:
        words = ", ".join(KINDS)
        raise SystemExit(f"{notebook.name}: metadata.book.needs must list, in this order, what it needs of: {words}.")
    return [*needs]


def _book(notebook: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(notebook.read_text(encoding="utf-8"))["metadata"].get("book", {})
    return found


def undeclared(notebook: Path) -> set[str]:
    """What a notebook's own code names and its metadata does not."""
    return named(code_of(notebook)) - {*declared(notebook)}


def successor(notebook: Path) -> str:
    """The name of the chapter that takes over what a notebook shows; "" if its metadata names none.

    Raises:
        SystemExit: if there is no such notebook, or the notebook needs nothing that will go.
    """
    name = str(_book(notebook).get("taken_over_by", ""))
    if name and (not declared(notebook) or not notebook.with_name(f"{name}.ipynb").is_file()):
        raise SystemExit(f"{notebook.name}: metadata.book.taken_over_by must name a notebook, and only if needs does.")
    return name


def listed(notebooks: Iterable[Path]) -> str:
    """The pages by what they need, each with the chapter that takes it over, as a list in Markdown."""
    pages: dict[str, list[str]] = {"nothing old": []}
    for notebook in notebooks:
        later = f" (taken over by []({name}.ipynb))" if (name := successor(notebook)) else ""
        needed = ", ".join(declared(notebook)) or "nothing old"
        pages.setdefault(needed, []).append(f"[]({notebook.stem}.ipynb){later}")
    return "\n".join(f"- **{needed}**, {len(found)}: {'; '.join(found)}." for needed, found in pages.items())


def fill(folder: Path, notebooks: Iterable[Path]) -> None:
    """Put the list into its page, where a book that is laid out has one.

    Raises:
        SystemExit: if the page lacks its place, or a notebook does not say what it needs.
    """
    common.fill(folder / PAGE, PLACE, lambda: listed(notebooks))
