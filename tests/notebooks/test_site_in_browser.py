"""The built site in a real browser: no request to another host, no error, widgets that move, a search that finds."""

import importlib.util
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tools import serve
from tools.common import ROOT, toc_pages

SITE = ROOT / "_build" / "html"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]

if not os.environ.get("REQUIRE_BROWSER"):
    pytestmark = [
        pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine"),
        pytest.mark.skipif(not (SITE / "index.html").is_file(), reason="the site has not been built: make book"),
    ]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that refuses the network, and remembers what was asked and what went wrong."""
    tab = browser.new_page()
    tab.asked, tab.errors = [], []

    def answer(route: Any) -> None:
        if route.request.url.startswith(("file:", "data:", "blob:")):
            route.continue_()
        else:
            tab.asked.append(route.request.url)
            route.abort()

    tab.route("**/*", answer)
    tab.on("pageerror", lambda error: tab.errors.append(str(error)))
    tab.on("console", lambda message: tab.errors.append(message.text) if message.type == "error" else None)
    yield tab
    tab.close()


def address(page_source: Any) -> str:
    return (SITE / page_source.relative_to(ROOT).with_suffix(".html")).as_uri()


@pytest.mark.parametrize("source", toc_pages(), ids=lambda path: path.stem)
@pytest.mark.parametrize("width", [1280, 390])
def test_no_request_leaves_and_nothing_overflows(page: Any, source: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(address(source))
    page.wait_for_load_state("load")
    page.wait_for_timeout(300)
    assert page.asked == []
    assert page.errors == []
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(overflow) <= 1


@pytest.mark.parametrize("source", toc_pages(), ids=lambda path: path.stem)
def test_sliders_and_switches_move(page: Any, source: Any) -> None:
    page.goto(address(source))
    for slider in page.query_selector_all(".qb-slider"):
        seen = []
        handle = slider.query_selector("input")
        handle.focus()
        for _ in range(int(handle.get_attribute("max")) + 1):
            visible = [one for one in slider.query_selector_all("[data-frame]") if one.is_visible()]
            assert len(visible) == 1
            assert slider.query_selector("output").text_content() == visible[0].get_attribute("data-label")
            seen.append(visible[0].get_attribute("data-frame"))
            handle.press("ArrowRight")
        assert seen == [str(i) for i in range(len(seen))]
    for switch in page.query_selector_all(".qb-switcher"):
        for i, label in enumerate(switch.query_selector_all("label")):
            label.click()
            panels = switch.query_selector_all(".qb-panel")
            assert [panel.is_visible() for panel in panels] == [j == i for j in range(len(panels))]


def test_widgets_show_their_first_frame_without_script(browser: Any) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    for source in toc_pages():
        tab.goto(address(source))
        for slider in tab.query_selector_all(".qb-slider"):
            frames = slider.query_selector_all("[data-frame]")
            assert [frame.is_visible() for frame in frames] == [True] + [False] * (len(frames) - 1)
            assert not slider.query_selector("label").is_visible()
    context.close()


def test_the_book_has_widgets_for_these_tests(page: Any) -> None:
    found = {".qb-slider": 0, ".qb-switcher": 0}
    for source in toc_pages():
        page.goto(address(source))
        for kind in found:
            found[kind] += len(page.query_selector_all(kind))
    assert min(found.values()) >= 1


@pytest.fixture(scope="module")
def axe() -> str:
    """The source of axe-core, which looks for what keeps readers out."""
    spec = importlib.util.find_spec("axe_playwright_python")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "axe.min.js").read_text()


@pytest.mark.parametrize("source", toc_pages(), ids=lambda path: path.stem)
def test_axe_finds_nothing_serious(page: Any, axe: str, source: Any) -> None:
    page.goto(address(source))
    page.evaluate(axe)
    for theme in ("light", "dark"):
        page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        serious = [
            (theme, violation["id"], violation["nodes"][0]["html"])
            for violation in found
            if violation["impact"] in ("serious", "critical")
        ]
        assert serious == []


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """The address of the site as a web server gives it."""
    with serve.server(SITE, 8750) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def found_by(browser: Any, where: str, words: str) -> list[str]:
    """Addresses of what the search page lists for some words."""
    tab = browser.new_page()
    tab.goto(f"{where}/search.html")
    tab.fill("main input[type=search]", words)
    tab.press("main input[type=search]", "Enter")
    tab.wait_for_url("**/search.html?q=*")
    results = "ul.search" if where.startswith("file:") else ".qb-search"
    tab.wait_for_selector(f"main {results}", state="attached")
    tab.wait_for_timeout(500 if where.startswith("file:") else 0)  # Sphinx lists one page after the other
    links = [link.get_attribute("href") for link in tab.query_selector_all(f"main {results} li > a")]
    tab.close()
    return links


@pytest.mark.parametrize(
    ("words", "section"),
    [
        ("Could not run 'quantized::conv2d.new' with arguments from the 'CPU' backend", "quantized-conv2d-new"),
        ("Could not run 'aten::add.out'", "aten-add-out"),
        ("Didn't find engine for operation quantized::linear_prepack NoQEngine", "noqengine"),
        ("Unexpected key(s) in state_dict", "unexpected-key"),
        ("Weights only load failed", "weights-only-load-failed"),
        ("must run observer before calling calculate_qparams", "must-run-observer"),
        ("Missing out variants", "missing-out-variants"),
        ("quantized model on GPU", "on-a-gpu"),
        ("int8 slower than float", "slower-than-float"),
        ("torchao slow", "torchao-is-slower"),
        ("MobileNetV2 near 0 after quantization", "mobilenetv2-near-0"),
        ("saturate", "saturat"),
        ("Per channel weight observer is not supported yet for ConvTranspose", "convtranspose"),
        ("qat.Linear.from_float only works for Linear", "from-float-only-works"),
        ("Embedding quantization is only supported with float_qparams_weight_only_qconfig", "embedding-quantization"),
        ("'function' object has no attribute 'device'", "has-no-attribute-device"),
        ("Quantize only works on Float Tensor, got Half", "quantize-only-works"),
        ("failed with error 0x10", "error-0x10"),
        ("Requires mslk", "requires-mslk"),
        ("Histogram has not been collected", "histogram-has-not-been-collected"),
    ],
)
def test_the_search_leads_to_the_section(browser: Any, served: str, words: str, section: str) -> None:
    found = found_by(browser, served, words)
    assert any(section in link.partition("#")[2] for link in found[:2]), found[:5]
    assert "symptoms.html" not in found[0], "the index only quotes"


def test_words_that_are_nowhere_are_said_to_be(browser: Any, served: str) -> None:
    assert found_by(browser, served, "жжж") == []


def test_opened_from_disk_the_search_is_that_of_sphinx(browser: Any) -> None:
    assert any("gallery" in link for link in found_by(browser, SITE.as_uri(), "Missing out variants"))


COMPARED = ROOT / "book" / "all-models.ipynb"


def row_of_the_table(page: Any, place: int) -> str:
    """A row of the page's table in the words in which a mark reads it out."""
    names = [heading.text_content() for heading in page.query_selector_all(".qb-table thead tr:first-child th")]
    row = page.query_selector_all(".qb-table tbody tr")[place]
    model, chapter, *cells = [cell.text_content() for cell in row.query_selector_all("th, td")]
    values = zip(names[1:], [chapter.replace(" ", "-"), *cells], strict=True)
    return "; ".join([model, *(f"{name}: {value}" for name, value in values)])


@pytest.mark.parametrize("width", [1280, 320])
def test_the_keyboard_reaches_every_model_and_reads_its_row(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 700})
    page.goto(address(COMPARED))
    marks = page.query_selector_all(".qb-mark")
    stops = [mark for mark in marks if mark.get_attribute("tabindex") == "0"]
    assert len(stops) == 1, "the plot is one stop for Tab"
    detail = page.locator(".qb-compare output")
    assert page.locator(".qb-hint").is_visible()
    assert detail.text_content() == ""
    page.locator(".qb-compare").evaluate("it => { it.tabIndex = -1; it.focus() }")
    page.keyboard.press("Tab")
    for place, mark in enumerate(marks):
        assert mark.evaluate("it => it === document.activeElement")
        assert detail.text_content() == mark.get_attribute("data-row")
        assert detail.text_content() == row_of_the_table(page, place)
        box = mark.bounding_box()
        assert 0 <= box["y"] <= detail.bounding_box()["y"] - box["height"] + 1, "the line hides no row that it reads"
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Home")
    assert detail.text_content() == marks[0].get_attribute("data-row")
    page.keyboard.press("Escape")
    assert detail.text_content() == ""


@pytest.mark.parametrize("width", [1280, 320])
def test_a_row_that_is_pointed_at_or_tapped_is_read_where_it_is_seen(browser: Any, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 700}, has_touch=True)
    tab = context.new_page()
    tab.goto(address(COMPARED))
    detail = tab.locator(".qb-compare output")
    marks = tab.locator(".qb-mark")
    marks.nth(2).hover()
    assert detail.text_content() == marks.nth(2).get_attribute("data-row")
    marks.nth(5).tap()
    assert detail.text_content() == marks.nth(5).get_attribute("data-row")
    box = detail.bounding_box()
    assert 0 <= box["y"] <= 700 - box["height"]
    assert box["width"] <= width
    context.close()


def test_the_plot_of_all_models_is_a_picture_without_script(browser: Any) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(address(COMPARED))
    assert tab.locator(".qb-compare svg").is_visible()
    assert not tab.locator(".qb-hint").is_visible()
    assert tab.locator(".qb-table tbody tr").count() > tab.locator(".qb-mark").count()
    context.close()


SYMPTOMS = ROOT / "book" / "symptoms.md"


@pytest.mark.parametrize("width", [1280, 320])
def test_the_index_of_symptoms_is_filtered_by_the_keyboard(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(address(SYMPTOMS))
    rows = page.query_selector_all(".qb-symptoms tbody tr")
    assert len(rows) > 200
    assert not any(row.is_visible() for row in rows), "the groups are closed"
    page.focus("#qb-filter")
    page.keyboard.type("state_dict MISSING")
    visible = [row.text_content() for row in rows if row.is_visible()]
    assert len(visible) >= 1
    assert all("Missing key" in text for text in visible)
    assert page.text_content(".qb-filter [role=status]") == f"{len(visible)} of {len(rows)} rows"
    page.keyboard.press("Enter")
    page.keyboard.type(" nowhere")
    assert page.text_content(".qb-filter [role=status]") == f"0 of {len(rows)} rows"
    page.fill("#qb-filter", "")
    assert not any(row.is_visible() for row in rows)
    assert all(page.query_selector_all(".bd-article h2")[i].is_visible() for i in range(5))
    assert page.evaluate("document.documentElement.scrollHeight") <= 16_000


def test_without_script_the_index_of_symptoms_opens(browser: Any) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(address(SYMPTOMS))
    assert tab.query_selector(".qb-filter") is None
    for summary in tab.query_selector_all(".bd-article details > summary"):
        summary.click()
    assert all(row.is_visible() for row in tab.query_selector_all(".qb-symptoms tbody tr"))
    context.close()


def test_on_a_phone_a_row_of_the_index_is_a_block(page: Any) -> None:
    page.set_viewport_size({"width": 320, "height": 900})
    page.goto(address(SYMPTOMS))
    page.fill("#qb-filter", "mslk")
    cells = page.query_selector_all(".qb-symptoms tbody tr:not([hidden]) td")
    assert len({cell.bounding_box()["x"] for cell in cells}) == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
