"""Paths, the table of contents and hashes, for the tools beside this file."""

import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
# The environment of a run whose speeds nobody looks at.
SPEEDS_UNSEEN = {"QHELPERS_PROCESSES": "1", "QHELPERS_ROUNDS": "3"}
SITE = ROOT / "_build" / "html"  # the published one
BUILD = ROOT / "build"  # not "_build": nbmake passes over paths that contain that
LEFT_BY_USE = ("__pycache__", "qhelpers-results", "checked")  # the last two: of notebooks run where they lie


def toc_pages(root: Path = ROOT) -> list[Path]:
    """The book's pages as source files, in the order of ``_toc.yml``.

    Raises:
        FileNotFoundError: if an entry has no ``.ipynb`` or ``.md`` file.
    """
    toc = yaml.safe_load((root / "_toc.yml").read_text())
    return [source_of(root, name) for name in _entries(toc)]


def toc_parts(root: Path = ROOT) -> list[tuple[str, list[str]]]:
    """The parts of ``_toc.yml`` with the names of their pages; the first page is a part of its own."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    parts = toc.get("parts") or [{"caption": "Chapters", "chapters": toc["chapters"]}]
    return [("The book", [toc["root"]])] + [(part["caption"], [*_entries(part["chapters"])]) for part in parts]


def repository_url(root: Path = ROOT) -> str:
    """Where the project lies on GitHub, from ``repository.url`` in ``_config.yml``; "" as long as it is nowhere.

    Raises:
        ValueError: for another host: Colab opens notebooks of GitHub only, and the site's address follows from it.
    """
    config = yaml.safe_load((root / "_config.yml").read_text())
    address = str((config.get("repository") or {}).get("url") or "").rstrip("/").removesuffix(".git")
    if address and not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", address):
        raise ValueError(
            f"repository.url in _config.yml is {address}, but buttons and addresses are made for "
            "https://github.com/OWNER/NAME only. Leave it empty for a site without a launch button."
        )
    return address


def site_url(root: Path = ROOT) -> str:
    """The site's address on GitHub Pages, with a slash at its end; "" without a repository."""
    address = repository_url(root)
    if not address:
        return ""
    owner, name = address.split("/")[-2:]
    pages = f"{owner.lower()}.github.io"
    return f"https://{pages}/" if name.lower() == pages else f"https://{pages}/{name}/"


def fill(path: Path, place: str, made: Callable[[], str]) -> None:
    """Put what is made into the place that a page keeps for it, where a book that is laid out has the page.

    Raises:
        SystemExit: if the page does not have the place once.
    """
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8")
    if text.count(place) != 1:
        raise SystemExit(f"{path.parent.name}/{path.name} must have the line {place} once: there the tables are put.")
    path.write_text(text.replace(place, made()), encoding="utf-8")


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


def source_of(root: Path, name: str) -> Path:
    """The source of a page that ``_toc.yml`` names without its ending.

    Raises:
        FileNotFoundError: if there is none.
    """
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


def environment_with(folder: str) -> dict[str, str]:
    """The environment of runs that load a folder's ``sitecustomize``, and whose speeds nobody looks at.

    Args:
        folder: its name beside this file.
    """
    path = os.pathsep.join([str(Path(__file__).parent / folder), os.environ.get("PYTHONPATH", "")])
    return {"PYTHONPATH": path, **SPEEDS_UNSEEN}


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


def commit(root: Path = ROOT) -> str:
    """The commit that is checked out, with ``-dirty`` behind it if tracked files differ; "unknown" outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    if not (root / ".git").exists():  # git would look further up, and find another project
        return "unknown"
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def require_writable(*folders: Path) -> None:
    """Make folders, and see that files can be written there, before anything runs for an hour.

    Raises:
        SystemExit: naming the folder, the cause and the cure.
    """
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            reason = f"{folder} cannot be written: {(error.strerror or str(error)).lower()}."
            raise SystemExit(f"{reason} Give it to the user who runs make, or remove it.") from error
