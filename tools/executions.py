"""How each notebook of the site was executed: a table in a page of the book, and ``executions.json``."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tools import common, results
from tools.run_notebooks import stamp_file

PAGE = Path("book/executions.md")
PLACE = "<!-- the table is made when the book is laid out -->"
KEYS = ("seconds", "peak_mb", "date", "commit", "processor", "versions")


def document(notebooks: Iterable[Path]) -> dict[str, Any]:
    """What the runner kept of each notebook's last complete run, in the form of ``executions.json``.

    Raises:
        SystemExit: for a notebook whose run left nothing of it.
    """
    found = []
    for notebook in notebooks:
        try:
            kept = json.loads(stamp_file(notebook).read_text())
            found.append({"name": notebook.stem, **{key: kept[key] for key in KEYS}})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SystemExit(f"How {notebook.stem} was executed is not known ({error!r}): run it again.") from error
    return {"schema": results.name_of("executions"), "notebooks": found}


def table(found: dict[str, Any]) -> str:
    """The records as a table in Markdown; what all notebooks share is said once, above it."""
    rows = found["notebooks"]
    same: dict[str, Any] = {
        key: rows[0][key] for key in ("date", "processor", "versions") if len({str(row[key]) for row in rows}) == 1
    }
    words: dict[str, Callable[[dict[str, Any]], str]] = {
        "date": lambda row: row["date"],
        "processor": lambda row: row["processor"],
        "versions": lambda row: ", ".join(f"{name} {version}" for name, version in row["versions"].items()),
    }
    columns = [key for key in words if key not in same]
    shared = "; ".join(words[key](same) for key in words if key in same)
    lines = [f"All of them: {shared}."] if shared else []
    lines += ["", f"| notebook | seconds | peak memory in MB | {' | '.join([*columns, 'commit'])} |"]
    lines.append(f"|{'---|' * (4 + len(columns))}")
    for row in rows:
        peak = "–" if row["peak_mb"] is None else f"{row['peak_mb']:,}"
        own = [words[key](row) for key in columns]
        cells = [f"[]({row['name']}.ipynb)", f"{row['seconds']:.0f}", peak, *own, f"`{row['commit'][:7]}`"]
        lines.append(f"| {' | '.join(cells)} |")
    seconds = sum(row["seconds"] for row in rows)
    return "\n".join([*lines, "", f"In all {seconds / 60:.0f} minutes of {len(rows)} notebooks."]).strip()


def fill(folder: Path, notebooks: Iterable[Path]) -> None:
    """Put the table into its page, where a book that is laid out has one.

    Raises:
        SystemExit: if the page lacks the table's place, or a run is not known.
    """
    common.fill(folder / PAGE, PLACE, lambda: table(document(notebooks)))


def write(site: Path, notebooks: Iterable[Path]) -> None:
    """Lay the records and their schema beside the pages of a site."""
    results.publish(site, "executions", document(notebooks))
