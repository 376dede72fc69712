"""The gallery: its records, what a page must raise to keep a row, and that pages and records agree."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from qhelpers.book import chapter, gallery
from tools.common import ROOT, gathers_results, toc_pages

GOOD: dict[str, Any] = {
    "number": 1,
    "kind": "error",
    "type": "RuntimeError",
    "message": "too small",
    "question": "a small thing",
    "cause": "It is small.",
    "do": "make it larger",
    "cure": "x = 2 * x",
    "page": "gallery-run",
    "threads": [{"url": "https://github.com/pytorch/pytorch/issues/1", "people": 2}],
    "reported": "2020",
}
PUBLISHED = json.loads((ROOT / "qhelpers" / "book" / "gallery.json").read_text())
MOST_ENTRIES, MOST_VISIBLE = 16, 35  # of a page
UNSEEN = {"hide-input", "hide-cell", "remove-input", "remove-cell", "setup", "exercise-solution"}


@pytest.fixture
def one_record(monkeypatch: pytest.MonkeyPatch, fresh_results: Path) -> Path:
    found = gallery.checked([GOOD])
    monkeypatch.setattr(gallery, "records", lambda: found)
    return fresh_results


def test_there_are_at_least_forty_records_each_with_its_number() -> None:
    assert list(gallery.records()) == list(range(1, len(gallery.records()) + 1))
    assert len(gallery.records()) >= 40


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"threads": []}, "Entry 1 has no thread"),
        ({"threads": [{"url": "pytorch 1", "people": 1}]}, "a thread that cannot be"),
        ({"threads": [{"url": "https://github.com/a/b/issues/1", "people": -1}]}, "a thread that cannot be"),
        ({"cure": " "}, "Entry 1 has no cure"),
        ({"cure": "a = 1\n" * 4}, "a cure of 4 lines"),
        ({"cure": "from qhelpers import guards"}, "needs this book's helpers"),
        ({"cure": "use the stubs"}, "a cure that is no Python"),
        ({"page": "gallery-nowhere"}, "a page that does not exist: 'gallery-nowhere'"),
        ({"kind": "hint"}, "of the kind 'hint'"),
        ({"kind": "silent"}, "is silent, but its type is RuntimeError"),
        ({"message": ""}, "Entry 1 has no message"),
        ({"colour": "red"}, "fields that nobody reads: colour"),
    ],
)
def test_a_record_that_cannot_be_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(gallery.GalleryError, match=re.escape(words)):
        gallery.checked([GOOD | change])


def test_a_record_without_a_field_or_with_a_doubled_number_is_refused() -> None:
    with pytest.raises(gallery.GalleryError, match="Entry 1 has no threads"):
        gallery.checked([{name: value for name, value in GOOD.items() if name != "threads"}])
    with pytest.raises(gallery.GalleryError, match="Entry 1 is there twice"):
        gallery.checked([GOOD, GOOD])


def test_people_are_those_of_all_threads() -> None:
    threads = [{"url": f"https://github.com/pytorch/pytorch/issues/{i}", "people": i} for i in (1, 2)]
    assert gallery.checked([GOOD | {"threads": threads}])[1].people == 3


def test_authors_of_fixes_are_not_counted_as_people_who_have_the_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    thread = {"url": "https://github.com/microsoft/Olive/pull/1597", "people": 0}
    found = gallery.checked([GOOD | {"threads": [thread]}])
    monkeypatch.setattr(gallery, "records", lambda: found)
    assert found[1].people == 0
    assert "2020, by authors of fixes" in gallery.table({})
    counted = {one.url: one.people for record in gallery.checked(PUBLISHED).values() for one in record.threads}
    assert counted["https://github.com/pytorch/ao/issues/2919"] == counted[thread["url"]] == 0


def test_what_is_raised_as_the_record_says_leaves_a_row(one_record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = chapter.ExpectedError("RuntimeError", "A number. The scale is too small for {'a', 'b'}. Ask.")
    gallery.exhibit(1, seen)
    assert "entry 1: seen, cured; torch" in capsys.readouterr().out
    row = gallery.exhibited()[1]
    assert row["message"] == "The scale is too small for {…}"
    assert row["here"].startswith("torch 2")


@pytest.mark.parametrize(
    ("number", "seen", "words"),
    [
        (2, "anything", "There is no entry 2"),
        (1, chapter.ExpectedError("ValueError", "too small"), "seen was ValueError"),
        (1, chapter.ExpectedError("RuntimeError", "too large"), "seen was RuntimeError: 'too large'"),
        (1, "too small", "seen was symptom"),
    ],
)
def test_what_is_raised_otherwise_is_refused_and_leaves_nothing(
    number: int, seen: chapter.ExpectedError | str, words: str, one_record: Path
) -> None:
    with pytest.raises(gallery.GalleryError, match=re.escape(words)):
        gallery.exhibit(number, seen)
    assert not list(one_record.glob("*"))


def test_a_build_refuses_an_entry_that_no_cell_raises_any_more(
    one_record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gallery.exhibited() == {}, "a reader without a runner sees the records"
    monkeypatch.setenv("QHELPERS_CURRENT", json.dumps([str(one_record)]))
    with pytest.raises(gallery.GalleryError, match="No cell has shown the entries 1: run gallery-run first"):
        gallery.exhibited()
    gallery.exhibit(1, chapter.ExpectedError("RuntimeError", "too small"))
    (one_record / "gallery-1.json").replace(one_record / "gallery-01.json")
    assert list(gallery.exhibited([one_record])) == [1]


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"number": "x"}'])
def test_a_damaged_row_is_named(content: str, fresh_results: Path) -> None:
    fresh_results.mkdir(parents=True, exist_ok=True)
    (fresh_results / "gallery-1.json").write_text(content)
    with pytest.raises(gallery.GalleryError, match=r"gallery-1.json is no row of an entry"):
        gallery.exhibited()


def test_each_row_of_the_table_has_its_old_address_and_leads_to_its_entry(one_record: Path) -> None:
    shown = gallery.table({1: {"message": "it is <too small>", "here": "torch 2"}})
    assert '<tr id="gallery-1"' in shown
    assert 'href="gallery-run.html#gallery-1"' in shown
    assert "it is &lt;too small&gt;" in shown
    assert "2020, by at least 2 people" in shown
    assert "this page has not run" in gallery.table({})


# --- pages and records -------------------------------------------------------------------------------


def cells(page: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((ROOT / "book" / f"{page}.ipynb").read_text())["cells"]
    return found


def exhibits(page: str) -> list[int]:
    """The entries that the cells of a page exhibit."""
    code = ["".join(cell["source"]) for cell in cells(page) if cell["cell_type"] == "code"]
    calls = [node for text in code for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    called = [call for call in calls if ast.unparse(call.func) == "gallery.exhibit"]
    return [call.args[0].value for call in called if isinstance(call.args[0], ast.Constant)]  # type: ignore[misc]


@pytest.mark.parametrize("page", gallery.PAGES)
def test_each_record_is_exhibited_by_one_cell_of_its_page_and_no_other(page: str) -> None:
    owned = [number for number, record in gallery.records().items() if record.page == page]
    assert sorted(exhibits(page)) == owned


@pytest.mark.parametrize("page", gallery.PAGES)
def test_each_entry_has_its_label_and_links_its_threads(page: str) -> None:
    prose = [("".join(cell["source"])) for cell in cells(page) if cell["cell_type"] == "markdown"]
    for number, record in gallery.records().items():
        if record.page == page:
            (entry,) = [text for text in prose if text.startswith(f"(gallery-{number})=\n## {number}. ")]
            assert "**Cause.**" in entry
            assert not [thread.url for thread in record.threads if f"({thread.url})" not in entry], number


@pytest.mark.parametrize("page", gallery.PAGES)
def test_a_page_of_the_gallery_is_read_in_one_sitting(page: str) -> None:
    code = [cell for cell in cells(page) if cell["cell_type"] == "code"]
    assert len(exhibits(page)) <= MOST_ENTRIES
    assert len([cell for cell in code if UNSEEN.isdisjoint(cell["metadata"].get("tags", []))]) <= MOST_VISIBLE


def test_the_index_comes_first_and_gathers_what_the_pages_leave() -> None:
    names = [path.stem for path in toc_pages()]
    first = names.index("error-gallery")
    assert names[first + 1 : first + 1 + len(gallery.PAGES)] == [*gallery.PAGES]
    assert gathers_results(ROOT / "book" / "error-gallery.ipynb")
