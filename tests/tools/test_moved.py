"""Old addresses: pages and sections that have moved still lead somewhere, and prose links to what is there."""

import json
import re
from pathlib import Path

import pytest

from tools import moved
from tools.common import ROOT, toc_pages

LINK = re.compile(r"\]\(([\w-]+)\.(?:ipynb|md|html)(?:#[^)]*)?\)|href=\\?[\"']([\w-]+)\.html")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "new.html").write_text('<html><head></head><body><h2 id="here">H</h2></body></html>')
    (tmp_path / "book" / "short.html").write_text('<html><head></head><body><h2 id="kept">K</h2></body></html>')
    return tmp_path


def test_a_page_that_is_gone_forwards_with_a_link(site: Path) -> None:
    moved.write(site, {"old": "new.html#here"})
    page = (site / "book" / "old.html").read_text()
    assert 'content="0; url=new.html#here"' in page
    assert '<a href="new.html#here">' in page


def test_a_section_that_has_left_its_page_is_forwarded_by_a_script(site: Path) -> None:
    moved.write(site, {"short#gone": "new.html#here"})
    page = (site / "book" / "short.html").read_text()
    assert '{"gone": "new.html#here"}' in page
    assert page.index("<script>") < page.index("</head>")
    assert "location" not in (site / "book" / "new.html").read_text()


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("old", "nowhere.html", "leads to nowhere.html, which is not there"),
        ("old", "new.html#nowhere", "has no such section"),
        ("short", "new.html", "the page is there"),
        ("short#kept", "new.html", "the section is there"),
        ("old#part", "new.html", "so has its whole page"),
    ],
)
def test_an_address_that_has_not_moved_or_leads_nowhere_is_refused(
    site: Path, old: str, new: str, problem: str
) -> None:
    with pytest.raises(SystemExit, match=re.escape(problem)):
        moved.write(site, {old: new})
    assert not (site / "book" / "old.html").exists()


def test_what_an_earlier_site_had_is_listed(site: Path, tmp_path: Path) -> None:
    earlier = tmp_path / "earlier" / "book"
    earlier.mkdir(parents=True)
    (earlier / "gone.html").write_text("x")
    (earlier / "short.html").write_text('<section class="a" id="kept"></section><section id="lost"></section>')
    assert list(moved.lost(earlier.parent, site, {})) == ["gone", "short#lost"]
    assert list(moved.lost(earlier.parent, site, {"gone": "new.html", "short#lost": "new.html"})) == []


def broken(text: str, pages: set[str], forwarded: set[str]) -> list[str]:
    """The pages that a text links to and that are neither there nor forwarded."""
    names = [first or second for first, second in LINK.findall(text)]
    return [name for name in names if name not in pages | forwarded]


def test_prose_links_to_pages_that_are_there_or_forwarded() -> None:
    pages, forwarded = {path.stem for path in toc_pages()}, set(moved.mapping())
    for path in (ROOT / "book").glob("*.*"):
        if path.suffix == ".md":
            assert not broken(path.read_text(), pages, forwarded), path.name
        elif path.suffix == ".ipynb":
            cells = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]
            assert not broken("\n".join(cells), pages, forwarded), path.name


def test_a_link_to_a_page_that_has_moved_is_found_unless_it_is_forwarded() -> None:
    for link in ("[](gone.ipynb)", "[words](gone.ipynb#part)", "<a href='gone.html#part'>words</a>"):
        assert broken(link, {"here"}, set()) == ["gone"]
        assert not broken(link, {"here"}, {"gone"})
    assert not broken("[](here.ipynb)", {"here"}, set())
