"""The book as one PDF: nothing points out of it that is in it, and what paper cannot do is said."""

import os
import re
import shutil
from io import BytesIO
from pathlib import Path

import pytest
from bs4 import BeautifulSoup, Tag
from pypdf import PdfReader, PdfWriter

from tools import pdf

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
PAGE = """<html><head><link rel="stylesheet" href="../_static/book.css?v=1"><script src="theme.js"></script>
<script src="../_static/mathjax/tex.js"></script></head><body><nav>menu</nav><article class="bd-article">
<section id="one"><h1>One: the <em>first</em><a class="headerlink" href="#one">#</a></h1>
<p><a href="two.html#part">there</a> <a href="two.html">page</a> <a href="#one">here</a>
<a href="playground.html#w=3">w</a>
<a href="../_downloads/a.py">file</a> <a href="https://pytorch.org/#x">out</a></p>
<svg aria-labelledby="a b"><g id="a"></g><g id="b" clip-path="url(#a)"></g><use xlink:href="#b"></use></svg>
<details class="hide"><summary>Show code</summary><div class="cell_input">seed()</div></details>
<details><summary>More</summary><p>Folded.</p></details>
<div class="cell_output"><style>p { color: red }</style>done</div>
<figure class="qb-figure qb-slider" id="s"><div data-frame="0" data-label="4 bits">drawn</div>
<div data-frame="1" data-label="8 bits" hidden></div><label hidden><input type="range"></label>
<figcaption>Bits.</figcaption><script>move()</script></figure>
<figure class="qb-switcher"><style>p {}</style><input id="w-0"><label for="w-0">cat</label><input id="w-1">
<label for="w-1">dog</label><div class="qb-panels">
<div class="qb-panel">a cat</div><div class="qb-panel">a dog</div></div>
</figure>
<div class="exercise admonition" id="bits"><p>Try.</p></div>
<div class="solution dropdown admonition" id="book/one-solution-1"><p class="admonition-title">Solution to
<a href="#bits">Exercise 1</a></p><p>Forty-two.</p></div></section></article></body></html>"""
OTHER = """<html><body><article><section id="two"><h1>Two</h1><section id="part"><h2>Part</h2><p>Text.</p>
<div class="qb-playground"><link href="a.css"><figure><svg></svg></figure><p id="app">Press here.</p></div></section>
</section></article></body></html>"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with a book of three pages, and its site."""
    (tmp_path / "_toc.yml").write_text(
        "root: book/one\nparts: [{caption: Rest, chapters: [{file: book/two}, {file: book/playground}]}]"
    )
    (tmp_path / "_config.yml").write_text("title: A book\nrepository: {url: ''}")
    (tmp_path / "site" / "book").mkdir(parents=True)
    (tmp_path / "site" / "index.html").write_text("")
    for name, text in {"one": PAGE, "two": OTHER, "playground": OTHER}.items():
        (tmp_path / "site" / "book" / f"{name}.html").write_text(text)
    return tmp_path


@pytest.fixture
def whole(root: Path) -> BeautifulSoup:
    return BeautifulSoup(pdf.document(root / "site", root), "html.parser")


def one(soup: BeautifulSoup | Tag, selector: str) -> Tag:
    (found,) = soup.select(selector)
    return found


def test_each_id_has_its_page_s_name_and_every_reference_follows(whole: BeautifulSoup) -> None:
    names = [str(tag["id"]) for tag in whole.select("[id]")]
    assert len(names) == len(set(names))
    assert {"one", "two", "one--one", "two--two", "playground--two"} <= set(names)
    figure = one(whole, "svg[aria-labelledby]")
    assert figure["aria-labelledby"] == "one--a one--b"
    assert one(figure, "[clip-path]")["clip-path"] == "url(#one--a)"
    assert one(figure, "use")["xlink:href"] == "#one--b"


def test_links_between_pages_stay_inside_and_those_to_files_become_text(whole: BeautifulSoup) -> None:
    first = one(whole, "#one--one > p:first-of-type")
    assert [link["href"] for link in first.select("a")] == [
        "#two--part",
        "#two",
        "#one--one",
        "#playground",
        "https://pytorch.org/#x",
    ]
    assert "file" in first.get_text()


def test_addresses_may_be_quoted_and_a_host_may_be_written_in_any_way() -> None:
    pages, folder = {"one", "two"}, Path("/site/book")
    assert pdf.address("two.html#a%2Bb", "one", pages, folder) == "#two--a+b"
    for outside in ("HTTPS://pytorch.org/a%20b", "//pytorch.org/", "mailto:a@b.org"):
        assert pdf.address(outside, "one", pages, folder) == outside


def test_links_to_files_lead_to_the_published_site_if_there_is_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf, "site_url", lambda: "https://me.github.io/q/")
    assert 'href="https://me.github.io/q/_downloads/a.py"' in pdf.document(root / "site", root)


def test_a_link_that_leads_nowhere_is_named(root: Path) -> None:
    (root / "site" / "book" / "two.html").write_text(OTHER.replace('id="part"', ""))
    with pytest.raises(SystemExit, match=r"Links lead nowhere in the document: two--part\."):
        pdf.document(root / "site", root)


def test_parts_hold_pages_and_pages_hold_sections(whole: BeautifulSoup) -> None:
    levels = [(tag.name, tag.get_text()) for tag in whole.find_all(re.compile("h[1-6]"))]
    assert levels[:5] == [
        ("h1", "Contents"),
        ("h1", "The book"),
        ("h2", "One: the first"),
        ("h1", "Rest"),
        ("h2", "Two"),
    ]
    assert levels[5] == ("h3", "Part")
    entries = [(link["href"], link.get_text()) for link in whole.select(".pdf-contents ol a")]
    assert entries == [("#one", "One: the first"), ("#two", "Two"), ("#playground", "Two")]


def test_the_site_s_styles_and_mathematics_come_along_and_its_other_scripts_do_not(whole: BeautifulSoup) -> None:
    assert one(whole, "link")["href"].endswith("/site/_static/book.css")
    assert one(whole, "script")["src"].endswith("/site/_static/mathjax/tex.js")
    assert one(whole, "article style").get_text() == "@scope (#one) { p { color: red } }"


def test_code_is_open_and_what_works_on_a_screen_only_is_gone(whole: BeautifulSoup) -> None:
    assert one(whole, "details").has_attr("open")
    assert "seed()" in whole.get_text()
    assert "Show code" not in whole.get_text()
    assert "menu" not in whole.get_text()
    assert not whole.select("a.headerlink, button, input, label")


def test_widgets_keep_their_first_frame_and_say_so(whole: BeautifulSoup) -> None:
    slider, switcher = one(whole, ".qb-slider"), one(whole, ".qb-switcher")
    assert len(slider.select("[data-frame]")) == 1
    assert "On the site this figure has a slider with 2 steps. This is the first: 4 bits." in slider.get_text()
    assert "a dog" not in switcher.get_text()
    assert "On the site this figure switches between cat; dog. This is the first." in switcher.get_text()
    assert "On the site this is a playground" in one(whole, "#playground .qb-playground figure").get_text()
    assert "Press here" not in whole.get_text()


def test_solutions_are_at_the_end_with_links_both_ways(whole: BeautifulSoup) -> None:
    assert "Forty-two" not in one(whole, "#one").get_text()
    solution = one(whole, "#solutions div.solution")
    assert "Forty-two" in solution.get_text()
    there, back = one(whole, "#one .pdf-solution a"), one(solution, ".admonition-title a")
    assert there["href"] == f"#{solution['id']}"
    assert one(there, "[data-of]")["data-of"] == solution["id"]
    assert back["href"] == "#one--bits"
    assert one(back, "[data-of]")["data-of"] == "one--bits"


def test_a_page_that_was_not_executed_is_refused(root: Path) -> None:
    (root / "site" / "book" / "one.html").write_text(PAGE.replace("cell_output", "cell"))
    with pytest.raises(SystemExit, match=r"book/one has code but no output.*make book"):
        pdf.document(root / "site", root)


@pytest.mark.parametrize("missing", ["index.html", "book/two.html"])
def test_a_site_that_was_not_built_is_named(root: Path, missing: str) -> None:
    (root / "site" / missing).unlink()
    with pytest.raises(SystemExit, match=r"There is no (site|page) .*: make book builds"):
        pdf.document(root / "site", root)


def test_without_a_browser_the_error_says_what_to_install(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match=r"There is no Chromium .*apt install chromium"):
        pdf.printed(root / "book.html", "A book")


def test_numbers_of_pages_count_from_one() -> None:
    writer, written = PdfWriter(), BytesIO()
    for _ in range(3):
        writer.add_blank_page(100, 100)
    for name, page in {"/first": 0, "last": 2}.items():
        writer.add_named_destination(name, page)
    writer.write(written)
    assert pdf.page_numbers(written.getvalue()) == {"first": 1, "last": 3}


@pytest.mark.skipif(BROWSER is None and not os.environ.get("REQUIRE_BROWSER"), reason="no Chromium on this machine")
def test_the_printed_book_has_an_outline_links_and_right_numbers(root: Path) -> None:
    (root / "book.html").write_text(pdf.document(root / "site", root))
    reader = PdfReader(BytesIO(pdf.printed(root / "book.html", "A book")))
    texts = [page.extract_text() for page in reader.pages]
    contents = dict(re.findall(r"^(.+?) ?(\d+)$", texts[0], re.MULTILINE))
    for title in ("One: the first", "Two", "Solutions of the exercises"):
        found = [number for number, text in enumerate(texts, 1) if number > 1 and title in text]
        assert int(contents[title]) in found
    titles = [entry.title for entry in reader.outline if not isinstance(entry, list)]
    assert titles == ["Contents", "The book", "Rest", "Solutions of the exercises"]
    assert {"/one", "/two--part", "/solutions"} <= set(reader.named_destinations)
