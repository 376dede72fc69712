"""Verdicts on the statements of the source documents: settled in a chapter, gathered on one page."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from IPython.display import HTML, display

from qhelpers.book import chapter

VERDICTS = ("holds", "holds if", "changed", "does not hold")


class ClaimError(ValueError):
    """A claim's id or verdict does not exist, its explanation is missing, or its record is damaged."""


@cache
def statements() -> dict[str, dict[str, str]]:
    """The sources' checkable statements in the book's own words: id to statement and chapter.

    Those whose verdict teaches something where it is measured have ``teaches``, too: see :func:`settle`.

    >>> len(statements())
    57
    """
    loaded: dict[str, dict[str, str]] = json.loads((Path(__file__).parent / "claims.json").read_text())
    return loaded


def settle(name: str, *, measured: str, verdict: str, because: str = "") -> None:
    """Give a verdict on one statement of the sources: keep it for the page of verdicts.

    The box of a verdict that teaches is shown in its chapter as well.

    Args:
        name: the statement's id, such as ``"R10"``.
        measured: what this run found, in words and figures.
        verdict: ``"holds"``, ``"holds if"``, ``"changed"`` or ``"does not hold"``.
        because: the condition, the change or the truth; needed unless the claim holds.

    Raises:
        ClaimError: for an id or verdict that does not exist, or an explanation that is missing. Nothing is kept then.
        WriteError: if the results folder cannot be written.

    >>> settle("R100", measured="nothing", verdict="holds")
    Traceback (most recent call last):
        ...
    qhelpers.book.claims.ClaimError: There is no claim 'R100'; the ids are R1 to R27 and V1 to V30.
    """
    if name not in statements():
        raise ClaimError(f"There is no claim {name!r}; the ids are R1 to R27 and V1 to V30.")
    if verdict not in VERDICTS:
        raise ClaimError(f"{verdict!r} is no verdict; choose one of: {', '.join(VERDICTS)}.")
    if not measured.strip():
        raise ClaimError(f"Claim {name} says nothing about what was measured.")
    if verdict != "holds" and not because.strip():
        raise ClaimError(f"Claim {name} with the verdict {verdict!r} needs because=….")
    claim = {"id": name, "measured": measured, "verdict": verdict, "because": because}
    chapter.record(f"claim-{name}", claim)
    if "teaches" in statements()[name]:
        display(HTML(claim_box(claim)))  # type: ignore[no-untyped-call]


def claim_box(claim: dict[str, str], footer: str = "") -> str:
    """The box in which a claim is shown, as HTML.

    Args:
        claim: what :func:`settle` keeps of it.
        footer: more HTML for the end of the box.

    >>> "R10 · holds" in claim_box({"id": "R10", "measured": "yes", "verdict": "holds", "because": ""})
    True
    """
    name, verdict, because = claim["id"], claim["verdict"], claim["because"]
    statement = chapter.as_html(statements()[name]["statement"])
    explained = f"<p><b>{verdict.capitalize()}:</b> {chapter.as_html(because)}</p>" if because else ""
    return (
        f'<div class="qb-claim qb-{verdict.replace(" ", "-")}">'
        f'<p><span class="qb-verdict">{name} · {verdict}</span> <i>{statement}</i></p>'
        f"<p><b>Measured:</b> {chapter.as_html(claim['measured'])}</p>{explained}{footer}</div>"
    )


def settled(folders: Sequence[Path] | None = None) -> dict[str, dict[str, str]]:
    """The claims that the chapters have settled: id to record, in the order of the statements.

    Args:
        folders: where the chapters left their results; if None, those that this page may gather from.

    Raises:
        ClaimError: if a file among the results is no record of a claim.

    >>> settled()
    {}
    """
    found = {}
    folders = chapter.gathered_folders() if folders is None else folders
    for path in (path for folder in folders for path in sorted(folder.glob("claim-*.json"))):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            found[record["id"]] = {name: str(record[name]) for name in ("id", "measured", "verdict", "because")}
            VERDICTS.index(record["verdict"])  # must be one
        except (ValueError, KeyError, TypeError) as error:
            raise ClaimError(f"{path.name} is no record of a claim ({error}): run its chapter again.") from error
    return {name: found[name] for name in statements() if name in found}
