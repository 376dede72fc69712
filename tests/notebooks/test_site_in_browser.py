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
    ],
)
def test_the_search_leads_to_the_section(browser: Any, served: str, words: str, section: str) -> None:
    found = found_by(browser, served, words)
    assert any(section in link.partition("#")[2] for link in found[:2]), found[:5]


def test_words_that_are_nowhere_are_said_to_be(browser: Any, served: str) -> None:
    assert found_by(browser, served, "жжж") == []


def test_opened_from_disk_the_search_is_that_of_sphinx(browser: Any) -> None:
    assert any("gallery" in link for link in found_by(browser, SITE.as_uri(), "Missing out variants"))
