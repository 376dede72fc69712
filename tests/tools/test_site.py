"""What is added to the site that Sphinx builds: the index of sections, and what helps a screen reader."""

import asyncio
from pathlib import Path

import pytest

from qhelpers.book import widgets
from tools import check_site, site_access, site_frames, site_search

PAGE = """<html><head><title>T</title></head><body><article><section id="page"><h1>Page<a class="headerlink">#</a></h1>
<p>first</p><div class="cell tag_hide-input"><div class="cell_input">folded</div></div>
<section id="part"><h2>Part</h2><div class="cell"><div class="cell_input">shown</div></div></section>
<section id="bare"><p>no heading</p></section></section></article></body></html>"""


def test_each_section_is_a_record_without_those_inside_it() -> None:
    page, part = site_search.sections(PAGE)
    assert (page.id, page.title, part.id, part.page, part.title) == ("page", "Page", "part", "Page", "Part")
    assert "first" in page.content
    assert "Part" not in page.content


def test_folded_code_is_not_searched_and_shown_code_weighs_less() -> None:
    page, part = site_search.sections(PAGE)
    assert "folded" not in page.content
    assert f'data-pagefind-weight="{site_search.CODE_WEIGHT}"' in part.content


def test_the_index_of_symptoms_weighs_less_than_what_it_quotes() -> None:
    page = '<article><section id="a"><h1>A</h1><table class="qb-symptoms docutils"></table></section></article>'
    (section,) = site_search.sections(page)
    assert f'data-pagefind-weight="{site_search.INDEX_WEIGHT}"' in section.content


def test_a_page_without_an_article_has_no_sections() -> None:
    assert list(site_search.sections("<html><body><p>moved</p></body></html>")) == []


def test_the_index_has_what_the_search_page_asks_for_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "page.html").write_text(PAGE)
    assert site_search.write(tmp_path) == 2
    names = {path.name for path in (tmp_path / site_search.FOLDER).iterdir()}
    assert all(path.stat().st_size for path in (tmp_path / site_search.FOLDER).rglob("*") if path.is_file())
    assert {"pagefind.js", "pagefind-entry.json", "pagefind-worker.js", "index", "fragment"} <= names
    assert not any("ui" in name for name in names)


def test_an_index_with_empty_files_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_search, "PAUSE_S", 0.001)
    (tmp_path / "pagefind-entry.json").write_text("")
    with pytest.raises(SystemExit, match=r"not written whole; empty: pagefind-entry\.json"):
        asyncio.run(site_search._settled(tmp_path))
    (tmp_path / "pagefind-entry.json").write_text("{}")
    asyncio.run(site_search._settled(tmp_path))


def test_roles_and_empty_headers_are_mended_and_the_rest_is_left() -> None:
    assert site_access.mended('<th class="stub"> </th><th>A</th>') == '<td class="stub"></td><th>A</th>'
    assert site_access.mended('<div role="list" class="citation-list">') == '<div class="citation-list">'
    assert "aria-hidden" in site_access.mended('<input class="task-list-item-checkbox" disabled="disabled">')


def slider(*frames: str) -> str:
    labels = [f'frame "{i}"' for i in range(len(frames))]
    return str(widgets.frame_slider(list(frames), labels, "Numbers.", "a number").data)


def test_frames_after_the_first_leave_the_page_and_nothing_else_does() -> None:
    frames = ["<svg>1</svg>", "<div><svg>2</svg><div>é</div></div>", "<svg>3</svg>"]
    page = f"<p>before</p>{slider(*frames)}<p>between</p>{slider('<svg>4</svg>')}<p>after</p>"
    body, later = site_frames.moved(page)
    assert [*later.values()] == [frames[1:], []]
    whole = body
    for frame, label in zip(frames[1:], ("frame &quot;1&quot;", "frame &quot;2&quot;"), strict=True):
        assert frame not in body
        whole = whole.replace(f'data-label="{label}" hidden></div>', f'data-label="{label}" hidden>{frame}</div>')
    assert whole == page
    assert site_frames.frames_of(site_frames.script("s1", frames[1:])) == frames[1:]


def site_with(folder: Path, body: str) -> list[str]:
    (folder / "index.html").write_text("x")
    (folder / "p.html").write_text(f"<html><body><article><h1>T</h1>{body}</article></body></html>")
    return check_site.problems(folder, [Path("p.md")])


def test_a_moved_frame_without_alt_text_is_found(tmp_path: Path) -> None:
    (tmp_path / site_frames.FOLDER).mkdir()
    file = tmp_path / site_frames.FOLDER / "s1.js"
    file.write_text(site_frames.script("s1", ['<svg role="img" aria-label="A cat in two greys."></svg>']))
    assert site_with(tmp_path, "") == []
    file.write_text(site_frames.script("s1", ['<svg role="img"></svg>']))
    assert "no useful alt text" in site_with(tmp_path, "")[0]


def test_a_page_that_is_too_heavy_with_its_pictures_is_found(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(bytes(900_000))
    image = '<figure><img src="cat.png" alt="A cat that is asleep."><figcaption>A cat.</figcaption></figure>'
    assert site_with(tmp_path, image + image) == []
    found = site_with(tmp_path, image + "x" * 100_000)
    assert found == ["p.md: weighs 1.00 MB with its pictures, more than 1"]
