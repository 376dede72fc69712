"""What the chapters measured, as files beside the published site, each with its JSON schema.

``results.json`` holds for each chapter the machine, the rows of the comparison table and the ratios of its tables of
speed; ``verdicts.json`` holds the verdicts on the sources' statements,
``gallery.json`` the errors that users reported.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema

from qhelpers.book import claims, gallery
from tools.remeasure import recorded

SCHEMAS = Path(__file__).parent / "schemas"
KINDS = ("results", "verdicts")
Document = dict[str, Any]


def schema(kind: str) -> Document:
    """The JSON schema of one of ``KINDS``."""
    loaded: Document = json.loads((SCHEMAS / f"{kind}.schema.json").read_text())
    return loaded


def name_of(kind: str) -> str:
    """What a file of this kind names as its schema."""
    return str(schema(kind)["properties"]["schema"]["const"])


def fault(document: Any, kind: str) -> str:
    """Where and how a document breaks the schema of its kind, in words; empty if it does not."""
    try:
        json.dumps(document, allow_nan=False)
    except ValueError as error:
        return f"a number that JSON lacks ({error})"
    worst = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema(kind)).iter_errors(document))
    return f"{worst.json_path}: {worst.message[:200]}" if worst else ""


def of_chapters(folder: Path) -> Document:
    """The figures of the chapters in a results folder, in the form of ``results.json``.

    Raises:
        SystemExit: if a chapter's results are damaged, or do not say on which machine they were measured.
    """
    found = {path.name: _of_chapter(path) for path in _chapters(folder)}
    return {"schema": name_of("results"), "chapters": {name: one for name, one in found.items() if one}}


def _of_chapter(folder: Path) -> Document | None:
    rows = _read(folder / f"rows-{folder.name}.json").get("rows", [])
    speeds = [*recorded(folder).values()]
    if not rows and not speeds:
        return None
    machine = _read(folder / "environment.json")
    if not machine:
        raise SystemExit(f"The results of {folder.name} do not say on which machine they were measured: run it again.")
    # Where the published weights could not be had, some tables are about other networks.
    weights = _read(folder / "weights.json").get("source")
    source = {} if weights is None else {"weights": "built-in" if weights == "built-in" else "published"}
    return {"machine": machine, **source, "rows": rows, "speeds": speeds}


def of_claims(folder: Path) -> Document:
    """The verdicts of the chapters in a results folder, in the form of ``verdicts.json``.

    Raises:
        SystemExit: if a claim's record is damaged.
    """
    try:
        settled = claims.settled([*_chapters(folder)])
    except claims.ClaimError as error:
        raise SystemExit(str(error)) from error
    stated = claims.statements()
    found = [
        {"id": name, "statement": stated[name]["statement"], "chapter": stated[name]["chapter"], **claim}
        for name, claim in settled.items()
    ]
    return {"schema": name_of("verdicts"), "claims": found}


def of_gallery() -> Document:
    """The entries of the gallery, in the form of ``gallery.json``."""
    entries = [dataclasses.asdict(record) for record in gallery.records().values()]
    return json.loads(json.dumps({"schema": name_of("gallery"), "entries": entries}))  # type: ignore[no-any-return]


def _chapters(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from sorted(path for path in folder.iterdir() if path.is_dir())


def _read(path: Path) -> Document:
    """A JSON object; an empty one if there is no such file."""
    if not path.is_file():
        return {}
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
        return dict(loaded)
    except (ValueError, TypeError) as error:
        raise SystemExit(f"{path.name} in {path.parent.name} is damaged ({error}): run the chapter again.") from error


def write(site: Path, folder: Path) -> None:
    """Lay the files and their schemas beside the pages of a site.

    Raises:
        SystemExit: if the results are damaged, or one of the files would break its schema.
    """
    for kind, document in zip(KINDS, (of_chapters(folder), of_claims(folder)), strict=True):
        publish(site, kind, document)
    publish(site, "gallery", of_gallery())


def publish(site: Path, kind: str, document: Document) -> None:
    """Lay a document and its schema beside the pages of a site.

    Raises:
        SystemExit: if it would break its schema.
    """
    if words := fault(document, kind):
        raise SystemExit(f"{kind}.json was not published, since it breaks its schema at {words}")
    text = json.dumps(document, indent=1, ensure_ascii=False)
    (site / f"{kind}.json").write_text(text + "\n", encoding="utf-8")
    shutil.copy(SCHEMAS / f"{kind}.schema.json", site)
