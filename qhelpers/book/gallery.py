"""The error gallery: one record an entry, compared with what its page raises, and the rows of its table."""

import ast
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from qhelpers.book import chapter

PAGES = ("gallery-convert", "gallery-run", "gallery-export", "gallery-slow", "gallery-silent")
KINDS = ("error", "warning", "silent")
MOST_CURE_LINES = 3


class GalleryError(ValueError):
    """A record is incomplete or impossible, or what was raised is not what it says."""


@dataclass(frozen=True)
class Thread:
    """A public thread about an entry.

    ``people`` counts those who say there that they have it, in the part of the thread that was read: a lower bound. The
    author of a report is one of them; the author of a fix is not.
    """

    url: str
    people: int


@dataclass(frozen=True)
class Record:
    """One entry.

    Raises:
        GalleryError: naming the entry and the field that cannot be.
    """

    number: int
    kind: str  # of KINDS
    type: str  # the class of the exception or warning, "logged" for a line of a log, "symptom" for a silent entry
    message: str  # words of the message, as raised; of a symptom, the words in which the page tells it
    question: str
    cause: str
    do: str  # the cure in words
    cure: str  # and in at most three lines that need no helper of this book
    page: str  # of PAGES
    threads: tuple[Thread, ...]  # the first is the main one; the others are duplicates, or report the same elsewhere
    reported: str  # versions or years

    def __post_init__(self) -> None:
        for own in fields(self):
            value = getattr(self, own.name)
            if isinstance(value, str) and not value.strip():
                raise GalleryError(f"Entry {self.number} has no {own.name}.")
        if not self.threads:
            raise GalleryError(f"Entry {self.number} has no thread.")
        for thread in self.threads:
            if not re.fullmatch(r"https://[\w.-]+/\S+", thread.url) or thread.people < 0:
                raise GalleryError(f"Entry {self.number} has a thread that cannot be: {thread}.")
        if self.kind not in KINDS:
            raise GalleryError(f"Entry {self.number} is of the kind {self.kind!r}; choose one of {', '.join(KINDS)}.")
        if (self.kind == "silent") != (self.type == "symptom"):
            raise GalleryError(f"Entry {self.number} is {self.kind}, but its type is {self.type}.")
        if self.page not in PAGES:
            raise GalleryError(f"Entry {self.number} is on a page that does not exist: {self.page!r}.")
        self._check_cure()

    def _check_cure(self) -> None:
        lines = self.cure.splitlines()
        if len(lines) > MOST_CURE_LINES:
            raise GalleryError(f"Entry {self.number} has a cure of {len(lines)} lines; at most {MOST_CURE_LINES}.")
        if "qhelpers" in self.cure:
            raise GalleryError(f"Entry {self.number} has a cure that needs this book's helpers.")
        try:
            ast.parse(self.cure)
        except SyntaxError as error:
            raise GalleryError(f"Entry {self.number} has a cure that is no Python: {error}.") from error

    @property
    def people(self) -> int:
        """How many people say in its threads that they have it: a lower bound."""
        return sum(thread.people for thread in self.threads)


def checked(entries: Iterable[Mapping[str, Any]]) -> dict[int, Record]:
    """Records by number, from what the data file holds.

    Raises:
        GalleryError: for a field that is missing or unknown, one that cannot be, or a number that is there twice.

    >>> checked([{"number": 1}])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    qhelpers.book.gallery.GalleryError: Entry 1 has no kind, type, message, ...
    """
    found: dict[int, Record] = {}
    names = [own.name for own in fields(Record)]
    for entry in entries:
        number = entry.get("number", "?")
        if missing := [name for name in names if name not in entry]:
            raise GalleryError(f"Entry {number} has no {', '.join(missing)}.")
        if unknown := set(entry) - set(names):
            raise GalleryError(f"Entry {number} has fields that nobody reads: {', '.join(sorted(unknown))}.")
        if number in found:
            raise GalleryError(f"Entry {number} is there twice.")
        threads = tuple(Thread(**thread) for thread in entry["threads"])
        found[number] = Record(**(dict(entry) | {"threads": threads}))
    return dict(sorted(found.items()))


@cache
def records() -> dict[int, Record]:
    """The entries by number, as the data file beside this module has them.

    >>> records()[1].type
    'NotImplementedError'
    """
    return checked(json.loads((Path(__file__).parent / "gallery.json").read_text(encoding="utf-8")))


def sentence(message: str, words: str) -> str:
    """The sentence of a message that has the words, without what differs from run to run.

    >>> sentence("A long story. Could not run 'aten::x' with {a, b}. More.", "Could not run")
    "Could not run 'aten::x' with {…}"
    """
    sentences = re.split(r"\.\s", " ".join(message.split()))
    found = next((part for part in sentences if words in part), sentences[0])
    found = re.sub(r"\{[^{}]*,.*\}", "{…}", found)
    found = re.sub(r" \(/\S+\)", "", found)  # the file of a module, in an ImportError
    return re.sub(r'("[^"]*")(, "[^"]*")+', r"\1, …", found).rstrip(". ")


def exhibit(
    number: int,
    seen: chapter.ExpectedError | str,
    *,
    package: str = "torch",
    seen_here: bool = True,
    cured: bool = True,
) -> None:
    """Compare what was raised, or what is told of a symptom, with the entry's record, and keep the row of the table.

    Called when the cure has been tried, by one cell for each entry.

    Args:
        number: of the entry.
        seen: the error, or a sentence with the figures of this run.
        package: the one whose version is stamped on the row.
        seen_here: whether it shows on this machine.
        cured: whether the cure helped, where that is a matter of speed.

    Raises:
        GalleryError: if there is no such entry, or its record names another type or other words.
        WriteError: if the results folder cannot be written.
    """
    if number not in records():
        raise GalleryError(f"There is no entry {number}.")
    record = records()[number]
    type_name, message = ("symptom", seen) if isinstance(seen, str) else (seen.type_name, seen.message)
    told = message if isinstance(seen, str) else sentence(message, record.message)
    if type_name != record.type or record.message not in told:
        raise GalleryError(f"Entry {number} is {record.type}: {record.message!r}; seen was {type_name}: {told!r}.")
    stamp = f"{package} {version(package).split('+')[0]}"
    here = stamp if seen_here else f"not on this machine; seen on x86, {stamp}"
    chapter.record(f"gallery-{number}", {"number": number, "message": told, "here": here})
    outcome = "cured" if cured else "the cure did not help"
    print(f"entry {number}: {'seen, ' * seen_here}{outcome}; {here}")


def exhibited(folders: Sequence[Path] | None = None) -> dict[int, dict[str, Any]]:
    """What the pages have kept of each entry while they ran: number to message and versions.

    Args:
        folders: where the pages left their results; if None, those that this page may gather from.

    Raises:
        GalleryError: if a file among the results is no row of an entry, or if the book is being built and a row is
            missing: its page has not run, or no cell raises it any more.
    """
    found = {}
    folders = chapter.gathered_folders() if folders is None else folders
    for path in (path for folder in folders for path in sorted(folder.glob("gallery-*.json"))):
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            found[int(row["number"])] = {name: str(row[name]) for name in ("message", "here")}
        except (ValueError, KeyError, TypeError) as error:
            raise GalleryError(f"{path.name} is no row of an entry ({error}): run its page again.") from error
    if chapter.has_runner() and (missing := sorted(set(records()) - set(found))):
        pages = ", ".join(dict.fromkeys(records()[number].page for number in missing))
        raise GalleryError(f"No cell has shown the entries {', '.join(map(str, missing))}: run {pages} first.")
    return {number: found[number] for number in records() if number in found}


def table(rows: Mapping[int, Mapping[str, str]]) -> str:
    """The table of all entries as HTML; each row has the address that its entry had before the gallery was split.

    Args:
        rows: what :func:`exhibited` gives; an entry without a row is shown with its record only.

    >>> '<tr id="gallery-1"' in table({})
    True
    """
    widths = {"question": 27, "type, message, versions": 45, "cure": 28}
    header = "".join(
        f'<th scope="col" style="width: {width}%; min-width: 9rem">{words}</th>' for words, width in widths.items()
    )
    body = "".join(_row(record, rows.get(number)) for number, record in records().items())
    caption = f"<caption>The {len(records())} entries.</caption>"
    return f'<table class="qb-code-table">{caption}<thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>'


def _row(record: Record, row: Mapping[str, str] | None) -> str:
    message, here = (row["message"], row["here"]) if row else (record.message, "this page has not run")
    tag = "i" if record.kind == "silent" else "code"
    people = f"by at least {record.people} {'person' if record.people == 1 else 'people'}"
    people = people if record.people else "by authors of fixes"
    link = f'<a href="{record.page}.html#gallery-{record.number}">{chapter.as_html(record.question)}</a>'
    plain = 'style="border-bottom: 0; font-weight: normal"'
    return (
        f'<tr id="gallery-{record.number}" style="border-top: 2px solid var(--pst-color-border)">'
        f'<th scope="row" {plain}>{record.number}. {link}</th>'
        f"<td {plain}><b>{record.type}</b><br><{tag}>{html.escape(message)}</{tag}><br>"
        f"<small>reported: {chapter.as_html(record.reported)}, {people}; here: {here}</small></td>"
        f"<td {plain}>{chapter.as_html(record.do)}</td></tr>"
    )
