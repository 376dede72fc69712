"""The index of symptoms: rows that cannot be read or have no cure are refused, and messages are raised somewhere."""

import ast
import json
import re
from functools import cache
from pathlib import Path

import jsonschema
import pytest

from qhelpers.book import gallery
from tools import common, results, symptoms
from tools.common import ROOT
from tools.run_notebooks import EXECUTED

TABLE = "## What can go wrong\n\n| You see | Because | Do |\n|---|---|---|\n"
CURED = ("it is small", "make it larger")
# Messages that chapters quote and no cell raises: of a phone, of the network, of another version, or of a large model.
QUOTED = {
    "Backend … is not registered",
    "Could not find an implementation for ConvInteger(10)",
    "Could not guard on data-dependent expression",
    "Could not run 'aten::mm…' … 'QuantizedCPU'",
    "error: 0x23",
    "expect N to be dividable by 16",
    "Expected more than 1 value per channel",
    "Following ops cannot be found",
    "'Graph' object has no attribute 'outputs'",
    "mat1 and mat2 must have the same dtype",
    "no attribute '_backward_hooks'",
    "torch.inf detected in input tensor",
    "URLError",
}


def notebook(*cells: str) -> str:
    """A notebook: each text that begins with ``#`` is a Markdown cell."""
    kinds = [("markdown", cell) if cell.startswith("#") else ("code", cell) for cell in cells]
    made = [{"cell_type": kind, "source": [cell], "outputs": [], "metadata": {}} for kind, cell in kinds]
    return json.dumps({"cells": made, "metadata": {}})


def page(folder: Path, *cells: str) -> symptoms.Page:
    path = folder / "chapter.ipynb"
    path.write_text(notebook(*cells))
    return symptoms.Page(path)


@cache
def rows() -> list[symptoms.Symptom]:
    return symptoms.index(ROOT)


def test_from_page_one_each_entry_of_the_gallery_is_two_clicks_away() -> None:
    (first,) = [json.loads(path.read_text()) for path in common.toc_pages()[:1]]
    prose = "\n".join("".join(cell["source"]) for cell in first["cells"])
    assert "(symptoms.md)" in prose
    linked = {place.target for row in rows() for place in row.places}
    assert {f"#gallery-{number}" for number in gallery.records()} <= linked


def test_each_row_of_each_chapter_is_in_the_index() -> None:
    made = list(symptoms.of_chapters([symptoms.Page(path) for path in common.notebooks()]))
    assert len(made) > 190
    assert not [row.seen for row in made if not any(symptoms.same(row, other) for other in rows())]


def test_a_message_of_several_pages_is_one_row_with_several_links() -> None:
    row = next(row for row in rows() if "__obj_flatten__" in row.seen)
    assert len(row.places) >= 4
    assert row.code


def test_messages_come_first_and_in_order() -> None:
    kinds = [row.kind for row in rows()]
    assert kinds == sorted(kinds, key=[*symptoms.TITLES].index)
    assert set(kinds) == set(symptoms.TITLES)
    words = [re.sub(r"^\W+", "", row.words).lower() for row in rows() if row.kind == "message"]
    assert words == sorted(words)


@pytest.mark.parametrize("cure", ["", "[](backends.ipynb)", "see [](backends.ipynb)", "`eager_mode.require_stubs`"])
def test_a_row_without_a_plain_cure_is_refused(cure: str) -> None:
    with pytest.raises(symptoms.SymptomError, match=r"'too small' has no (plain )?cure"):
        symptoms.Symptom("too small", ("it is small",), (cure,), ())
    assert symptoms.Symptom("too small", ("it is small",), ("stubs (`eager_mode.require_stubs`)",), ())


@pytest.mark.parametrize(("cause", "cure"), [("the same", "x"), ("small", "as the loop above"), (" ", "larger")])
def test_a_row_that_cannot_be_read_alone_is_refused(cause: str, cure: str) -> None:
    with pytest.raises(symptoms.SymptomError, match=r"cannot be read alone|has no cause"):
        symptoms.Symptom("too small", (cause,), (cure,), ())


@pytest.mark.parametrize("code", ["a\nb\nc\nd", "from qhelpers import guards"])
def test_code_that_is_long_or_needs_helpers_is_refused(code: str) -> None:
    with pytest.raises(symptoms.SymptomError, match="too long, or needs this book's helpers"):
        symptoms.Symptom("too small", CURED[:1], CURED[1:], (), code)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("## What can go wrong\n\n| Symptom | Because | Do |\n|---|---|---|\n| a | b | c |\n", "You see, Because, Do"),
        ("## What can go wrong\n\nNothing.\n", "You see, Because, Do"),
        (f"{TABLE}| a | b |\n", "a row of 'What can go wrong' has 2 cells: a | b"),
    ],
)
def test_a_table_with_another_header_or_other_cells_is_refused(tmp_path: Path, table: str, words: str) -> None:
    with pytest.raises(symptoms.SymptomError, match=re.escape(words)):
        page(tmp_path, "# T", table)


def test_a_row_leads_to_the_section_that_raises_it(tmp_path: Path) -> None:
    found = page(
        tmp_path,
        "# Chapter: a case",
        "## First `step`!",
        "x = 1",
        "## Second step",
        "with chapter.expected_error(ValueError, 'is too small'):\n    check(1)",
        f"{TABLE}| `1 … is too small` | it is | larger |\n| slow | a `b\\|c` | faster |\n",
    )
    message, symptom = symptoms.of_chapters([found])
    assert message.places[0] == symptoms.Place("chapter.ipynb#second-step", "Chapter", "Second step")
    assert symptom.places[0] == symptoms.Place(
        "chapter.ipynb#what-can-go-wrong", "Chapter", symptoms.HEADING, raises=False
    )
    assert (message.kind, symptom.kind) == ("message", "slow")


def test_guards_that_are_not_there_or_raise_something_else_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {"guards": ["guards.require_eval"], "words": "in training mode", "because": "b", "do": "d", "check": "c"}
    calling = page(tmp_path, "# T", "guards.require_eval(model)")
    for change, words in (
        ({"guards": ["guards.require_sleep"]}, "There is no guard guards.require_sleep"),
        ({"words": "asleep"}, "raises nothing with the words 'asleep'"),
        ({"called": "require_sleep"}, "No page calls guards.require_eval"),
    ):
        monkeypatch.setattr(symptoms, "GUARDS", tmp_path / "guards.json")
        symptoms.GUARDS.write_text(json.dumps([record | change]))
        with pytest.raises(symptoms.SymptomError, match=words):
            list(symptoms.of_guards([calling]))
    symptoms.GUARDS.write_text(json.dumps([record]))
    (row,) = symptoms.of_guards([calling])
    assert row.seen == "`The model is in training mode (…)`"
    assert row.guard == "guards.require_eval"


# --- what the index quotes is raised somewhere ---------------------------------------------------


@cache
def own_messages() -> list[str]:
    """All texts in the code of the package, with an … for what varies, and the scripts of the pages."""
    found = [path.read_text() for path in (ROOT / "book" / "_static").glob("*.js")]
    for path in (ROOT / "qhelpers").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.JoinedStr, ast.Constant)):
                found.append(symptoms.template(node))
    return found


def is_raised(message: str, pages: list[symptoms.Page]) -> bool:
    """Whether a cell or the package's own code has the words of a message, or a page has printed them."""
    parts = symptoms.fragments(message)
    whole = symptoms.pattern(parts)
    texts = [*own_messages(), *(record.message for record in gallery.records().values())]
    return any(page.raising(parts) for page in pages) or any(whole.search(text) for text in texts)


def test_a_message_that_no_cell_raises_any_more_is_found() -> None:
    pages = [symptoms.Page(path) for path in common.notebooks()]
    pages += [symptoms.Page(path) for path in EXECUTED.glob("*.ipynb")]
    quoted = [message for row in rows() for message in symptoms.messages(row.seen)]
    assert len(quoted) > 130
    assert {message for message in quoted if not is_raised(message, pages)} <= QUOTED
    assert {message for message in QUOTED if message not in quoted} == set()
    assert not is_raised("Could not find the words of a message", pages)


# --- the page and the file -----------------------------------------------------------------------

INTRO = "# T\n\n{place}\n"


@pytest.fixture
def small_book(tmp_path: Path) -> Path:
    (tmp_path / "book").mkdir()
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: book/chapter\nchapters:\n- file: book/symptoms\n")
    (tmp_path / "book" / "symptoms.md").write_text(INTRO.format(place=symptoms.PLACE))
    (tmp_path / "book" / "chapter.ipynb").write_text(notebook("# T", f"{TABLE}| too slow | it is small | larger |\n"))
    return tmp_path


@pytest.fixture(autouse=True)
def few_records(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "small_book" in request.fixturenames:
        monkeypatch.setattr(symptoms, "of_gallery", lambda: iter(()))
        monkeypatch.setattr(symptoms, "of_guards", lambda pages: iter(()))


def test_the_tables_are_put_into_the_page(small_book: Path) -> None:
    symptoms.fill(small_book)
    text = (small_book / "book" / "symptoms.md").read_text()
    assert (
        "* - too slow\n  - it is small\n  - larger\n  - T: [What can go wrong](chapter.ipynb#what-can-go-wrong)\n"
        in text
    )


@pytest.mark.parametrize("place", ["", f"{symptoms.PLACE}{symptoms.PLACE}"])
def test_a_page_without_a_place_for_the_tables_is_refused(small_book: Path, place: str) -> None:
    (small_book / "book" / "symptoms.md").write_text(INTRO.format(place=place))
    with pytest.raises(SystemExit, match="there the tables are put"):
        symptoms.fill(small_book)


def test_a_row_without_a_cure_stops_the_build(small_book: Path) -> None:
    (small_book / "book" / "chapter.ipynb").write_text(notebook("# T", f"{TABLE}| too slow | it is small | |\n"))
    with pytest.raises(SystemExit, match="cannot be made: The symptom 'too slow' has no cure"):
        symptoms.fill(small_book)


def built(*addresses: str) -> str:
    links = "".join(f'<a href="{address}">T</a>' for address in addresses)
    return f"<table class='qb-symptoms'><tbody><tr><td>too slow</td><td>{links}</td></tr></tbody></table>"


def test_the_rows_are_published_with_the_addresses_of_the_page(small_book: Path, tmp_path: Path) -> None:
    (tmp_path / "book" / "symptoms.html").write_text(built("chapter.html#what-can-go-wrong"))
    symptoms.write(tmp_path, small_book)
    document = json.loads((tmp_path / "symptoms.json").read_text())
    jsonschema.validate(document, results.schema("symptoms"))
    jsonschema.Draft202012Validator.check_schema(results.schema("symptoms"))
    (row,) = document["rows"]
    place = {"page": "T", "section": symptoms.HEADING, "address": "book/chapter.html#what-can-go-wrong"}
    assert row["places"] == [{**place, "raises": False}]
    assert (tmp_path / "symptoms.schema.json").is_file()


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("<p>", "The page has 0 rows, and there are 1"),
        (built(), "Of the 1 links of 'too slow', 0 lead somewhere"),
        (built("chapter.html"), "breaks its schema at"),
    ],
)
def test_another_page_or_a_link_to_no_section_is_not_published(small_book: Path, page: str, words: str) -> None:
    (small_book / "book" / "symptoms.html").write_text(page)
    with pytest.raises(SystemExit, match=words):
        symptoms.write(small_book, small_book)
