"""Paths, the table of contents and hashes, for the tools beside this file."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
SPEEDS_UNSEEN = {"QHELPERS_PROCESSES": "1"}  # the environment of a run whose speeds nobody looks at
BUILD = ROOT / "build"  # not "_build": nbmake passes over paths that contain that
LEFT_BY_USE = ("__pycache__", "qhelpers-results", "worksheet-results")  # the last two: of notebooks run where they lie


def toc_pages(root: Path = ROOT) -> list[Path]:
    """The book's pages as source files, in the order of ``_toc.yml``.

    Raises:
        FileNotFoundError: if an entry has no ``.ipynb`` or ``.md`` file.
    """
    toc = yaml.safe_load((root / "_toc.yml").read_text())
    return [_source(root, name) for name in _entries(toc)]


def _entries(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("root", "file"):
                yield value
            else:
                yield from _entries(value)
    elif isinstance(node, list):
        for value in node:
            yield from _entries(value)


def _source(root: Path, name: str) -> Path:
    for ending in (".ipynb", ".md"):
        path = root / f"{name}{ending}"
        if path.is_file():
            return path
    raise FileNotFoundError(f"_toc.yml names {name}, but there is no {name}.ipynb and no {name}.md.")


def notebooks(root: Path = ROOT) -> list[Path]:
    """The book's notebooks in the order in which they are run: those that gather results come last."""
    found = [path for path in toc_pages(root) if path.suffix == ".ipynb"]
    return sorted(found, key=gathers_results)  # a stable sort


def gathers_results(notebook: Path) -> bool:
    """Whether the notebook reads what the other chapters leave behind (its metadata says so)."""
    metadata = json.loads(notebook.read_text())["metadata"]
    return bool(metadata.get("book", {}).get("gathers_results", False))


def hash_files(paths: Iterable[Path], *extra: str) -> str:
    """SHA-256 over the names and bytes of files, and some strings."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    for text in extra:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def files_below(folder: Path) -> list[Path]:
    """All files under a folder but what use leaves there: caches, checkpoints, results, unfinished writes."""
    return [
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") or part in LEFT_BY_USE for part in path.relative_to(folder).parts)
        and path.suffix not in (".pyc", ".part")
    ]
