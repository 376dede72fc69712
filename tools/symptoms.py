"""The index of symptoms: what a reader sees, why, what to do, and where the book executes it.

Its rows are the "What can go wrong" tables of the chapters, the entries of the error gallery, and the messages of the
guards. They are gathered whenever the book is laid out for jupyter-book, and are published as ``symptoms.json``, too.
"""

import ast
import html
import importlib
import inspect
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup
from markdown_it import MarkdownIt
from mdit_py_plugins.myst_role import myst_role_plugin

from qhelpers.book import gallery
from tools import common, results
from tools.common import ROOT, toc_pages

PAGE = Path("book") / "symptoms.md"
PLACE = "<!-- the tables are made when the book is laid out -->"
GUARDS = ROOT / "qhelpers" / "book" / "guards.json"
HEADING = "What can go wrong"
HEADER = ["You see", "Because", "Do"]
HELPERS = re.compile(r"`(?:guards|eager_mode|graphs|groups|engines|files|packages|published|minilm)\.\w+")
LEANING = re.compile(r"^(?:often )?the same\b|\babove\b")  # a cell that needs another row, or another section
KINDS = {  # of rows without a message, by words of the symptom; what has none of them is "wrong"
    "slow": r"slow|fast|speed|hangs|most of the time|no more requests",
    "big": r"smaller|larger|as large|got small",
    "float": r"float graph|in float|plain float|stays float|not quantized|is int8\b|passed over|no fake quantizer",
}
TITLES = {
    "message": "Messages",
    "slow": "Slow, or too fast to be true",
    "big": "Not smaller",
    "float": "Left in float",
    "wrong": "Wrong outputs, lost accuracy, and the rest",
}
TAG = re.compile(r"<(?:style|script|svg).*?</(?:style|script|svg)>|<[^>]*>", re.DOTALL)
MOST_ROWS = 40  # of a group of messages
MOST_PLACES = 2  # of a guard


class SymptomError(ValueError):
    """A row cannot be read, has no cure, or names a section or a guard that is not there."""


@dataclass(frozen=True)
class Place:
    """Where a row is executed."""

    target: str  # what a link of MyST leads to
    page: str  # the beginning of its title
    section: str
    raises: bool = True  # there; else it is only named there


@dataclass(frozen=True)
class Symptom:
    """A row of the index; texts are Markdown.

    Raises:
        SymptomError: if it has no cure, or one that is a helper of this book, or leans on another place.
    """

    seen: str
    because: tuple[str, ...]
    do: tuple[str, ...]  # as many
    places: tuple[Place, ...]
    code: str = ""  # at most three lines of Python that need no helper of this book
    guard: str = ""  # that raises the message; the code is then the same check

    def __post_init__(self) -> None:
        for cause, cure in zip(self.because, self.do, strict=True):
            if not cause.strip() or not cure.strip():
                raise SymptomError(f"The symptom {self.seen!r} has no {'cure' if cause.strip() else 'cause'}.")
            plain = re.sub(r"\([^()]*\)", "", re.sub(r"\[[^]]*\]\([^()]*\)", "", cure))
            if HELPERS.search(plain) or not re.sub(r"\W|see", "", plain):
                raise SymptomError(f"The symptom {self.seen!r} has no plain cure: {cure!r}. Helpers go in brackets.")
            if LEANING.search(cause) or LEANING.search(cure):
                raise SymptomError(f"The symptom {self.seen!r} cannot be read alone: {cause!r}, {cure!r}.")
        if "qhelpers" in self.code or len(self.code.splitlines()) > gallery.MOST_CURE_LINES:
            raise SymptomError(f"The code beside {self.seen!r} is too long, or needs this book's helpers.")

    @property
    def kind(self) -> str:
        """One of ``TITLES``."""
        if messages(self.seen):
            return "message"
        return next((kind for kind, words in KINDS.items() if re.search(words, self.seen)), "wrong")

    @property
    def initial(self) -> str:
        """Its first letter."""
        return next(letter for letter in self.words if letter.isalnum()).upper()

    @property
    def words(self) -> str:
        """What is seen as plain text."""
        return "".join(token.content for token in _inline(self.seen) if token.type in ("text", "code_inline"))


@cache
def _markdown() -> MarkdownIt:
    return MarkdownIt("commonmark").use(myst_role_plugin)


def _inline(text: str) -> list[Any]:
    return [child for token in _markdown().parseInline(text) for child in token.children or []]


def messages(seen: str) -> list[str]:
    """The messages at the beginning of a cell: code that has several words, or names an error.

    >>> messages("`Missing key(s)`, or `KeyError` while loading"), messages("`torch.fx` cannot trace the model")
    (['Missing key(s)', 'KeyError'], [])
    """
    found = []
    for token in _inline(seen):
        if token.type == "code_inline" and re.search(r"\s|Error$", token.content):
            found.append(token.content.strip())
        elif token.type != "text" or token.content.strip(", ") not in ("", "or"):
            break
    return found


def fragments(message: str) -> list[str]:
    """The parts of a message between what differs from case to case, without an exception's type.

    >>> fragments("NotImplementedError: Could not run 'aten::mm…' … 'QuantizedCPU'")
    ["Could not run 'aten::mm", "'QuantizedCPU'"]
    """
    bare = re.sub(r"^\w+Error:? (?=\S)", "", message)
    return [part for part in (part.strip(" :.") for part in bare.split("…")) if len(part) > 2] or [message]


def pattern(parts: Sequence[str]) -> re.Pattern[str]:
    """What a text matches that has the parts in this order.

    >>> bool(pattern(["a", "c"]).search("a b c"))
    True
    """
    return re.compile(".*?".join(re.escape(part) for part in parts), re.DOTALL)


class Page:
    """A notebook's sections, what its code says and has printed, and the rows of its table."""

    def __init__(self, path: Path) -> None:
        self.name, self.title = path.stem, ""
        self.rows: list[list[str]] = []
        self._sections: list[Place] = []
        self._cells: list[tuple[Place, str, str, list[str]]] = []  # section, code, output, words of expected errors
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "code":
                self._cells.append((self._sections[-1], source, _printed(cell), expected(source)))
            else:
                self._read(source)

    def _read(self, source: str) -> None:
        for token, inside in itertools.pairwise(_markdown().parse(source)):
            if token.type == "heading_open":
                words = [child.content for child in inside.children or [] if child.type in ("text", "code_inline")]
                slug = re.sub(r"[^\w\- ]", "", "".join(words).lower().replace(" ", "-"))
                self.title = self.title or inside.content
                short = self.title.partition(":")[0]
                self._sections.append(Place(f"{self.name}.ipynb#{slug}", short, inside.content))
        if f"## {HEADING}\n" in source:
            self.rows = rows_of(self.name, source.partition(f"## {HEADING}\n")[2])

    @property
    def table(self) -> Place:
        """The section of its table."""
        return replace(next(place for place in self._sections if place.section == HEADING), raises=False)

    def raising(self, parts: Sequence[str], function: str = "") -> Place | None:
        """The section whose code expects an error with these words, by most of them; else prints or has them.

        Args:
            parts: of the message.
            function: of this package that raises it; then a section has to call it, and expect the error.
        """
        expecting = [
            (len(word), -at, section)
            for at, (section, code, _, words) in enumerate(self._cells)
            for word in words
            if len(word) > 3 and any(word in part for part in parts) and f"{function}(" in code
        ]
        if expecting or function:
            return max(expecting, key=lambda found: found[:2])[2] if expecting else None
        whole = pattern(parts)
        printing = (section for section, _, printed, _ in self._cells if whole.search(printed))
        having = (section for section, code, _, _ in self._cells if whole.search(code))
        return next(itertools.chain(printing, having), None)

    def calling(self, function: str) -> Iterator[Place]:
        """The sections whose code calls a function of this name."""
        called = re.compile(rf"\b{re.escape(function)}\(")
        yield from dict.fromkeys(section for section, code, _, _ in self._cells if called.search(code))


def _printed(cell: dict[str, Any]) -> str:
    outputs = cell.get("outputs", [])
    texts = [output.get("text", "") for output in outputs]
    data = [output["data"] for output in outputs if "data" in output]
    texts += [one.get("text/plain", "") for one in data]
    texts += [html.unescape(TAG.sub("", "".join(one.get("text/html", "")))) for one in data]
    return "\n".join("".join(text) for text in texts)


def expected(code: str) -> list[str]:
    """The words that ``expected_error`` is given in a cell.

    >>> expected("with chapter.expected_error(ValueError, 'no bits') as seen: ...")
    ['no bits']
    """
    try:
        tree = ast.parse(code)
    except SyntaxError:  # a magic of IPython
        return []
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    calls = [call for call in calls if ast.unparse(call.func).endswith("expected_error") and len(call.args) == 2]
    return [str(call.args[1].value) for call in calls if isinstance(call.args[1], ast.Constant)]


def rows_of(name: str, markdown: str) -> list[list[str]]:
    """The rows of the table with which a chapter ends.

    Raises:
        SymptomError: if there is no table, one with another header, or a row that has not three cells.
    """
    lines = [line for line in markdown.split("\n## ")[0].splitlines() if line.startswith("|")]
    header, *rows = [re.split(r"(?<!\\)\|", line.strip().strip("|")) for line in lines] or [[""]]
    rows = [[cell.strip() for cell in row] for row in rows[1:]]
    if [cell.strip() for cell in header] != HEADER or not rows:
        raise SymptomError(f"{name}: under {HEADING!r} there must be a table with the columns {', '.join(HEADER)}.")
    for row in rows:
        if len(row) != len(HEADER):
            raise SymptomError(f"{name}: a row of {HEADING!r} has {len(row)} cells: {' | '.join(row)}.")
    return rows


def of_chapters(pages: Iterable[Page]) -> Iterator[Symptom]:
    """The rows of the chapters' tables; one that begins with several messages is several."""
    for page in pages:
        of_gallery_itself = any(page.calling("exhibited"))  # its symptoms are those of a search that found nothing
        for seen, because, do in page.rows:
            if of_gallery_itself and not messages(seen):
                continue
            for alone in _alone(seen):
                quoted = messages(alone)
                place = page.raising(fragments(quoted[0])) if quoted else None
                yield Symptom(alone, (because,), (do,), (place or page.table,))


def _alone(seen: str) -> list[str]:
    """Each message of a cell with what is behind them all."""
    if len(messages(seen)) < 2:
        return [seen]
    last = messages(seen)[-1]
    rest = seen[seen.index(last) + len(last) :].lstrip("` ")
    return [f"`{message}` {rest}".strip() for message in messages(seen)]


def of_gallery() -> Iterator[Symptom]:
    """The entries of the gallery."""
    for record in gallery.records().values():
        silent = record.kind == "silent"
        seen = record.question if silent else f"`{record.message}`"
        place = Place(f"#gallery-{record.number}", "Error gallery", f"entry {record.number}")
        yield Symptom(seen, (record.cause,), (record.do,), (place,), record.cure)


def templates(guard: str) -> list[str]:
    """The messages with which a function of the package raises or, if it is private, returns; what varies is an "…".

    Args:
        guard: such as ``guards.require_eval``.

    Raises:
        SymptomError: if there is no such function.
    """
    module, _, name = guard.rpartition(".")
    try:
        function = getattr(importlib.import_module(f"qhelpers.{module}"), name)
    except (ImportError, AttributeError) as error:
        raise SymptomError(f"There is no guard {guard}.") from error
    found = []
    for node in ast.walk(ast.parse(inspect.getsource(function))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            found.append(node.exc.args[0])
        elif isinstance(node, ast.Return) and name.startswith("_") and isinstance(node.value, ast.JoinedStr):
            found.append(node.value)
    return [template(node) for node in found]


def template(node: ast.expr) -> str:
    """The text of an expression, with an … for what varies.

    >>> template(ast.parse("f'{n} bits'", mode="eval").body)
    '… bits'
    """
    if isinstance(node, ast.JoinedStr):
        parts = [str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values]
        return re.sub("…+", "…", "".join(parts))
    return str(node.value) if isinstance(node, ast.Constant) else "…"


def of_guards(pages: Sequence[Page]) -> Iterator[Symptom]:
    """The messages of the guards, each with the same check in plain PyTorch.

    Raises:
        SymptomError: if a guard does not raise what its record says, or no page calls it.
    """
    for record in json.loads(GUARDS.read_text(encoding="utf-8")):
        full, raising, calling = "", [], []
        for guard in record["guards"]:
            full = next((text for text in templates(guard) if record["words"] in text), "")
            if not full:
                raise SymptomError(f"{guard} raises nothing with the words {record['words']!r}.")
            name = record.get("called", guard.rpartition(".")[2])
            raising += [place for page in pages if (place := page.raising(fragments(full), name))]
            calling += [place for page in pages for place in page.calling(name)]
        places = tuple(dict.fromkeys([*raising, *calling]))[:MOST_PLACES]
        if not places:
            raise SymptomError(f"No page calls {record['guards'][0]}.")
        shown = re.match(r".{20,}?(?=: |\. |, with|$)", full)
        yield Symptom(
            f"`{(shown[0] if shown else full).rstrip('.')}`",
            (record["because"],),
            (record["do"],),
            places,
            record["check"],
            _shown_name(record),
        )


def _shown_name(record: dict[str, Any]) -> str:
    """The guard's name behind that of its module, as pages call it."""
    module, _, name = record["guards"][0].rpartition(".")
    return f"{module.rpartition('.')[2]}.{record.get('called', name)}"


def merged(rows: Iterable[Symptom]) -> list[Symptom]:
    """One row for each message; of several, that of the gallery or of a guard tells cause and cure, else each does."""
    found: list[Symptom] = []
    for row in rows:
        at = next((i for i, other in enumerate(found) if same(row, other)), None)
        if at is None:
            found.append(row)
            continue
        other = found[at]
        places = tuple(dict.fromkeys([*other.places, *row.places]))
        pairs = [*zip(other.because, other.do, strict=True)]
        if not other.code:
            pairs = [*dict.fromkeys([*pairs, *zip(row.because, row.do, strict=True)])]
        because, do = zip(*pairs, strict=True)
        found[at] = replace(other, because=because, do=do, places=places)
    return found


def same(row: Symptom, other: Symptom) -> bool:
    """Whether two rows are about one message, or have the same words."""
    if row.guard and other.guard:
        return False
    if row.kind != "message" or other.kind != "message":
        return row.words == other.words
    first, second = messages(row.seen)[0], messages(other.seen)[0]
    begin, other_begin = fragments(first)[0], fragments(second)[0]
    if min(len(begin), len(other_begin)) > 20 and (begin in other_begin or other_begin in begin):
        return True
    return bool(pattern(fragments(first)).search(second) or pattern(fragments(second)).search(first))


def index(root: Path) -> list[Symptom]:
    """All rows in the order of the page: messages by their first words, then the other kinds.

    Args:
        root: the folder with ``_toc.yml``; with outputs in its notebooks, more sections are found.

    Raises:
        SymptomError: for a row that cannot be read, or has no cure.
    """
    pages = [Page(path) for path in toc_pages(root) if path.suffix == ".ipynb"]
    rows = merged([*of_gallery(), *of_guards(pages), *of_chapters(pages)])
    order = [*TITLES]
    return sorted(rows, key=lambda row: (order.index(row.kind), re.sub(r"^\W+", "", row.words).lower()))


def cells(row: Symptom) -> list[str]:
    """The four cells of a row as blocks of MyST."""
    do = _numbered(row.do)
    if row.code:
        check = "\n\nThe same check in plain PyTorch:" if row.guard else ""
        do += f"{check}\n\n```python\n{row.code}\n```"
    by = f"\n\nThis book's `{row.guard}`." if row.guard else ""
    links = [f"{place.page}: [{place.section}]({place.target})" for place in row.places]
    return [row.seen + by, _numbered(row.because), do, "\n\n".join(links)]


def _numbered(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else "\n".join(f"{i}. {text}" for i, text in enumerate(texts, start=1))


def groups(rows: Sequence[Symptom]) -> list[list[Symptom]]:
    """Rows in their order, in groups of at most ``MOST_ROWS`` as long as no letter is torn apart."""
    found: list[list[Symptom]] = []
    for _, same_letter in itertools.groupby(rows, key=lambda row: row.initial):
        together = list(same_letter)
        if found and (len(found[-1]) + len(together) <= MOST_ROWS or together[0].kind != "message"):
            found[-1] += together
        else:
            found.append(together)
    return found


def page(rows: Sequence[Symptom]) -> str:
    """The tables of the index in MyST, behind a heading for each kind."""
    parts = []
    for kind, title in TITLES.items():
        own = [row for row in rows if row.kind == kind]
        parts += [f"## {title}\n"] if own else []
        for group in groups(own):
            letters = f"{group[0].initial} to {group[-1].initial}: " if kind == "message" else ""
            parts.append(
                f"``````{{dropdown}} {letters}{len(group)} rows\n\n`````{{list-table}}\n:header-rows: 1\n"
                f":class: qb-symptoms\n:widths: 21 22 42 15\n\n{_table(group)}\n`````\n``````\n"
            )
    return "\n".join(parts)


def _table(rows: Iterable[Symptom]) -> str:
    lines = ["* - You see", "  - Because", "  - Do", "  - Executed in"]
    for row in rows:
        texts = [re.sub(r"\n(?!\n)", "\n    ", cell) for cell in cells(row)]
        lines += [f"{'  - ' if place else '* - '}{text}" for place, text in enumerate(texts)]
    return "\n".join(lines)


def fill(folder: Path) -> None:
    """Put the tables into the page of the index, where a book that is laid out has one.

    Raises:
        SystemExit: for a row that cannot be read, has no cure, or leads nowhere.
    """
    try:
        common.fill(folder / PAGE, PLACE, lambda: page(index(folder)))
    except SymptomError as error:
        raise SystemExit(f"The index of symptoms cannot be made: {error}") from error


def document(rows: Sequence[Symptom], built: str) -> dict[str, Any]:
    """The rows in the form of ``symptoms.json``, with the addresses that they have in the built page.

    Raises:
        SymptomError: if the page has other rows, or links that lead nowhere.
    """
    found = BeautifulSoup(built, "html.parser").select("table.qb-symptoms tbody tr")
    if len(found) != len(rows):
        raise SymptomError(f"The page has {len(found)} rows, and there are {len(rows)}.")
    records = []
    for row, shown in zip(rows, found, strict=True):
        links = shown.select("td:last-child a[href]")
        if len(links) != len(row.places):
            raise SymptomError(f"Of the {len(row.places)} links of {row.seen!r}, {len(links)} lead somewhere.")
        places = [
            {
                "page": place.page,
                "section": place.section,
                "address": f"{PAGE.parent.as_posix()}/{link['href']}",
                "raises": place.raises,
            }
            for place, link in zip(row.places, links, strict=True)
        ]
        cures = [{"because": because, "do": do} for because, do in zip(row.because, row.do, strict=True)]
        texts = {"kind": row.kind, "seen": row.seen, "messages": messages(row.seen), "code": row.code}
        records.append({**texts, "guard": row.guard, "cures": cures, "places": places})
    return {"schema": results.name_of("symptoms"), "rows": records}


def write(site: Path, folder: Path) -> None:
    """Lay the rows and their schema beside the pages of a built site, if it has the index.

    Args:
        site: the folder of the built site.
        folder: of the book as it was laid out.

    Raises:
        SystemExit: if the page is another, or the file would break its schema.
    """
    built = (site / PAGE).with_suffix(".html")
    if not built.is_file():
        return
    try:
        rows = document(index(folder), built.read_text(encoding="utf-8"))
    except SymptomError as error:
        raise SystemExit(f"symptoms.json was not published: {error}") from error
    results.publish(site, "symptoms", rows)
