"""Recorded results: what runs that are too long for a chapter have measured, with date and versions."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


class RecordedError(ValueError):
    """A recorded result is missing, damaged, or of another version, or lacks a run."""


def results(name: str, folder: Path = RESULTS, made_with: str = torch.__version__) -> dict[str, Any]:
    """What a script in ``experiments/`` has recorded: its script, date, versions and rows.

    Args:
        name: of the file, without ending.
        folder: where it lies; the package brings its own.
        made_with: the version of PyTorch that it must have been made with, of which the first two parts count.

    Raises:
        RecordedError: if there is no such file, it is damaged, or another version of PyTorch made it. Where the book
            is run beside another version on purpose (the variable ``QHELPERS_LANE`` is set), such a file is read.

    >>> results("no-such-run")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    qhelpers.book.recorded.RecordedError: There is no recorded result no-such-run.json among ...
    """
    path = folder / f"{name}.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        script, version = found["script"], str(found["versions"]["torch"])
        found["rows"], found["date"]  # must be there
    except FileNotFoundError as error:
        there = ", ".join(sorted(file.stem for file in folder.glob("*.json"))) or "none"
        raise RecordedError(
            f"There is no recorded result {path.name} among those of this installation ({there}): install qhelpers "
            f"anew, or run the script of the book's experiments/ that makes it."
        ) from error
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise RecordedError(f"{path.name} is damaged ({type(error).__name__}: {error}).") from error
    if _minor(version) != _minor(made_with) and not os.environ.get("QHELPERS_LANE"):
        raise RecordedError(
            f"{path.name} was made with torch {version}, this is {made_with}: install that version, or run {script} of "
            f"the book again."
        )
    return found


def rows_where(found: Mapping[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    """The rows of results whose fields have the wanted values; a field that a row lacks counts as None.

    Raises:
        RecordedError: if there is none, such as for a seed that was not run.

    >>> rows_where({"script": "a.py", "rows": [{"seed": 0, "top1": 98.0}]}, seed=7)
    Traceback (most recent call last):
        ...
    qhelpers.book.recorded.RecordedError: a.py has left no row with seed=7.
    """
    rows = [row for row in found["rows"] if all(row.get(key) == value for key, value in wanted.items())]
    if not rows:
        said = ", ".join(f"{key}={value!r}" for key, value in wanted.items())
        raise RecordedError(f"{found['script']} has left no row with {said}.")
    return rows


def _minor(version: str) -> list[str]:
    return version.split("+")[0].split(".")[:2]
