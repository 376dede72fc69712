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


MOST_PIXELS = 16_000  # a page's height at 1,280 pixels, everything closed


@pytest.mark.parametrize("source", toc_pages(), ids=lambda path: path.stem)
@pytest.mark.parametrize("width", [1280, 320])
def test_no_request_leaves_nothing_overflows_and_no_page_is_too_high(page: Any, source: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(address(source))
    page.wait_for_load_state("load")
    page.wait_for_timeout(300)
    assert page.asked == []
    assert page.errors == []
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(overflow) <= 1
    assert width < 1280 or page.evaluate("document.documentElement.scrollHeight") <= MOST_PIXELS


ARRIVED = "it => [...it.querySelectorAll('[data-frame]')].every(frame => frame.innerHTML)"


@pytest.mark.parametrize("source", toc_pages(), ids=lambda path: path.stem)
def test_sliders_and_switches_move(page: Any, source: Any) -> None:
    page.goto(address(source))
    for slider in page.query_selector_all(".qb-slider"):
        seen = []
        handle = slider.query_selector("input")
        handle.focus()  # which brings the slider near, so that its later frames are read
        page.wait_for_function(ARRIVED, arg=slider)
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


def test_later_frames_follow_the_theme_and_are_asked_for_when_the_slider_is_near(page: Any) -> None:
    page.set_viewport_size({"width": 1280, "height": 600})
    page.goto(address(ROOT / "book" / "what-an-int8-number-is.ipynb"))
    slider = page.query_selector(".qb-slider")
    assert not page.evaluate(ARRIVED, slider)
    slider.query_selector("input").focus()
    page.wait_for_function(ARRIVED, arg=slider)
    slider.query_selector("input").press("End")
    colors = {}
    for theme in ("light", "dark"):
        page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
        page.wait_for_timeout(300)
        last = "it => getComputedStyle([...it.querySelectorAll('[data-frame] svg')].at(-1)).fill"
        colors[theme] = [page.evaluate(last, slider), page.evaluate("getComputedStyle(document.body).color")]
    assert colors["light"][0] != colors["dark"][0]
    assert all(drawn == written for drawn, written in colors.values())


CONTROLS = """() => {
  const all = document.querySelectorAll("a[href], button, input, select, summary, [tabindex='0']");
  const open = (it) => it.tabIndex >= 0 && !it.disabled && it.checkVisibility({visibilityProperty: true});
  const reached = [...all].filter((it) => open(it) && (it.type !== "radio" || it.checked));
  reached.forEach((it, i) => { it.dataset.control = i; });
  return reached.length;
}"""
FOCUSED = """() => {
  const it = document.activeElement, box = it.getBoundingClientRect();
  const ring = [it, it.querySelector(":scope > rect")].filter(Boolean).map((one) => getComputedStyle(one)).some(
    ({outlineStyle, outlineWidth, strokeWidth}) =>
      outlineStyle === "solid" && parseFloat(outlineWidth) >= 3 || parseFloat(strokeWidth) >= 3);
  let opacity = 1;
  for (let one = it; one; one = one.parentElement) opacity *= getComputedStyle(one).opacity;
  const across = box.width > 0 && box.right > 0 && box.left < innerWidth;
  const down = box.height > 0 && box.bottom > 0 && box.top < innerHeight;
  return {control: it.dataset.control, seen: ring && opacity > 0.5 && across && down, html: it.outerHTML.slice(0, 120)};
}"""


@pytest.mark.parametrize("source", toc_pages(), ids=lambda path: path.stem)
def test_the_keyboard_reaches_every_control_and_shows_where_it_is(page: Any, source: Any) -> None:
    page.set_viewport_size({"width": 1280, "height": 900})
    page.emulate_media(reduced_motion="reduce")
    page.goto(address(source))
    if source.stem != "intro":  # the contents are the same on every page
        page.evaluate("document.querySelectorAll('.bd-sidebar-primary a').forEach((it) => { it.tabIndex = -1; })")
    expected = page.evaluate(CONTROLS)
    reached, unseen = set(), []
    for _ in range(3 * expected + 20):  # a browser adds stops of its own, such as boxes that scroll
        page.keyboard.press("Tab")
        focused = page.evaluate(FOCUSED)
        if focused["control"] in reached:
            break
        if focused["control"] is not None:
            reached.add(focused["control"])
            unseen += [] if focused["seen"] else [focused["html"]]
    assert unseen == []
    assert len(reached) == expected


@pytest.mark.parametrize("source", toc_pages(), ids=lambda path: path.stem)
def test_nothing_moves_for_readers_who_asked_for_that(page: Any, source: Any) -> None:
    page.emulate_media(reduced_motion="reduce")
    page.goto(address(source))
    moving = """[...document.querySelectorAll("*")].filter((it) => {
      const {transitionDuration, animationDuration, scrollBehavior} = getComputedStyle(it);
      const longest = Math.max(parseFloat(transitionDuration), parseFloat(animationDuration));
      return longest > 0.001 || scrollBehavior === "smooth";
    }).map((it) => it.outerHTML.slice(0, 100))"""
    assert page.evaluate(moving) == []


@pytest.mark.parametrize("source", toc_pages(), ids=lambda path: path.stem)
def test_on_paper_there_is_the_article_alone_with_first_frames(page: Any, source: Any) -> None:
    page.goto(address(source))
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_timeout(300)
    assert page.locator("h1").first.is_visible()
    gone = (
        ".bd-sidebar, input[type=search], .qb-filter, .prev-next-footer, button, input[type=range], input[type=radio]"
    )
    assert [
        one.evaluate("it => it.outerHTML.slice(0, 100)") for one in page.locator(gone).all() if one.is_visible()
    ] == []
    assert page.locator("article details[open]").count() == 0
    assert not any(one.is_visible() for one in page.locator(".cell.tag_hide-input .cell_input").all())
    for slider in page.query_selector_all(".qb-slider"):
        frames = slider.query_selector_all("[data-frame]")
        assert [frame.is_visible() for frame in frames] == [True] + [False] * (len(frames) - 1)
    for switch in page.query_selector_all(".qb-switcher"):
        panels = switch.query_selector_all(".qb-panel")
        assert [panel.is_visible() for panel in panels] == [True] + [False] * (len(panels) - 1)
    pale = """[...document.querySelectorAll("article :is(p, a, li, td, th, h1, h2, h3, pre)")].filter((it) => {
      const channels = getComputedStyle(it).color.match(/[\\d.]+/g).map(Number);
      return it.checkVisibility() && Math.max(...channels.slice(0, 3)) > 170;
    }).map((it) => it.outerHTML.slice(0, 100))"""
    assert page.evaluate(pale) == []
    links = page.locator("article p a.external")
    if links.count():
        address_of = "it => getComputedStyle(it, '::after').content"
        assert links.first.get_attribute("href") in links.first.evaluate(address_of)


def test_the_book_has_widgets_for_these_tests() -> None:
    pages = [(SITE / source.relative_to(ROOT).with_suffix(".html")).read_text() for source in toc_pages()]
    assert all(any(kind in page for page in pages) for kind in ('"qb-figure qb-slider"', '"qb-figure qb-switcher"'))


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
    # The contents and the colours of code are the same on every page; the theme matters to the rule of contrast alone.
    whole = source.stem in ("intro", "static-quantization")
    where = "document" if whole else "{exclude: [['.bd-sidebar-primary'], ['.highlight pre']]}"
    for theme, rules in (("light", ""), ("dark", ", runOnly: ['color-contrast']")):
        page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
        found = page.evaluate(f"axe.run({where}, {{resultTypes: ['violations']{rules}}})")["violations"]
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
    page.fill("#qb-filter", "zyzzyva")
    assert page.text_content(".qb-filter [role=status]") == f"0 of {len(rows)} rows"
    page.fill("#qb-filter", "")
    assert not any(row.is_visible() for row in rows)
    assert all(page.query_selector_all(".bd-article h2")[i].is_visible() for i in range(5))
    assert page.evaluate("document.documentElement.scrollHeight") <= 16_000


@pytest.mark.parametrize(
    ("line", "row"),
    [
        (
            "NotImplementedError: Could not run 'aten::add.out' with arguments from the 'QuantizedCPU' backend.",
            "add.out",
        ),
        ("NotImplementedError: Could not run 'aten::silu.out' with arguments from the 'QuantizedCPU' backend.", "silu"),
        (
            "Could not run 'quantized::linear' with arguments from the 'CPU' backend. This could be because",
            "quantized::",
        ),
        ("RuntimeError: Input type (c10::quint8) and bias type (float) should be the same", "c10::quint8"),
        ("""NotImplementedError: "rms_norm" not implemented for 'QUInt8'""", "rms_norm"),
    ],
)
def test_the_whole_last_line_of_a_traceback_leads_to_its_row(page: Any, line: str, row: str) -> None:
    page.goto(address(SYMPTOMS))
    page.fill("#qb-filter", line)
    visible = [one.text_content() for one in page.query_selector_all(".qb-symptoms tbody tr") if one.is_visible()]
    assert 1 <= len(visible) <= 10
    assert any(row in text for text in visible)


def test_without_script_the_index_of_symptoms_opens(browser: Any) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(address(SYMPTOMS))
    assert tab.query_selector(".qb-filter") is None
    for summary in tab.query_selector_all(".bd-article details > summary"):
        summary.click()
    assert all(row.is_visible() for row in tab.query_selector_all(".qb-symptoms tbody tr"))
    context.close()


VERDICTS = ROOT / "book" / "verdicts.ipynb"


def test_verdicts_are_filtered_by_the_keyboard(page: Any) -> None:
    page.goto(address(VERDICTS))
    boxes = page.query_selector_all(".qb-claim")
    assert len(boxes) == 57
    assert all(box.is_visible() for box in boxes)
    page.focus(".qb-filter input[name=verdict]")
    page.keyboard.press("ArrowDown")
    visible = [box.text_content() for box in boxes if box.is_visible()]
    assert 0 < len(visible) < 57
    assert all("· does not hold" in text for text in visible)
    assert page.text_content(".qb-filter [role=status]") == f"{len(visible)} of 57 statements"
    page.focus(".qb-filter input[name=document]")
    page.keyboard.press("ArrowDown")
    assert all(text.startswith("R") for text in (box.text_content() for box in boxes if box.is_visible()))
    page.keyboard.press("ArrowDown")
    assert all(text.startswith("V") for text in (box.text_content() for box in boxes if box.is_visible()))


def test_without_script_all_verdicts_are_shown(browser: Any) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(address(VERDICTS))
    assert tab.query_selector(".qb-filter") is None
    assert all(box.is_visible() for box in tab.query_selector_all(".qb-claim"))
    context.close()


def test_a_section_that_has_moved_is_followed(page: Any) -> None:
    page.goto(address(ROOT / "book" / "intro.ipynb") + "#three-promises-checked-against-the-table")
    page.wait_for_url("**/all-models.html#three-promises-checked-against-the-table")


def test_on_a_phone_a_row_of_the_index_is_a_block(page: Any) -> None:
    page.set_viewport_size({"width": 320, "height": 900})
    page.goto(address(SYMPTOMS))
    page.fill("#qb-filter", "mslk")
    cells = page.query_selector_all(".qb-symptoms tbody tr:not([hidden]) td")
    assert len({cell.bounding_box()["x"] for cell in cells}) == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
