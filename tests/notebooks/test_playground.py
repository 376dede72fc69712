"""The playground in a real browser: its numbers are PyTorch's, and no input brings it down."""

import ast
import json
import os
import re
import shutil
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qhelpers.tasks import networks
from tools.common import ROOT

NOTEBOOK = ROOT / "book" / "playground.ipynb"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]

if not os.environ.get("REQUIRE_BROWSER"):
    pytestmark = [pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")]


@pytest.fixture(scope="module")
def chapter_names() -> dict[str, Any]:
    """What the chapter's setup cells define, and its page; the random state and the threads are restored."""
    names: dict[str, Any] = {"__name__": "__main__"}
    threads, random_state = torch.get_num_threads(), torch.get_rng_state()
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if "setup" in cell["metadata"].get("tags", []):
            exec("".join(cell["source"]), names)
        if cell["id"] == "play":
            *lines, last = ast.parse("".join(cell["source"])).body
            exec(compile(ast.Module(lines, []), "play", "exec"), names)
            assert isinstance(last, ast.Expr)
            names["HTML_OF_PAGE"] = eval(compile(ast.Expression(last.value), "play", "eval"), names).data
    torch.set_num_threads(threads)
    torch.set_rng_state(random_state)
    return names


@pytest.fixture(scope="module")
def site(chapter_names: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page and its files, as they lie in the built site."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "book" / "_static", folder / "_static")
    (folder / "book").mkdir()
    page = folder / "book" / "playground.html"
    page.write_text(f"<!doctype html><html lang=en><meta charset=utf-8><body>{chapter_names['HTML_OF_PAGE']}")
    return page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    opened = browser.new_page()
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    yield opened
    opened.close()
    assert errors == []


READY = (
    "'milliseconds' in document.getElementById('pg').dataset && !('counting' in document.getElementById('pg').dataset)"
)


def settled(tab: Any) -> str:
    """Wait for the count; what the page then says to a screen reader."""
    tab.wait_for_function(READY, timeout=120_000)
    return str(tab.inner_text("#pg-said"))


def opened(tab: Any, site: Path, address: str = "") -> str:
    tab.goto("about:blank")
    tab.goto(site.as_uri() + address)
    return settled(tab)


# --- its numbers -------------------------------------------------------------------------------------

SETTINGS: dict[str, dict[str, Any]] = {
    "eight bits": {},
    "few bits per channel": {"w": 4, "a": 5, "scale": "channel"},
    "groups, symmetric": {"w": 3, "scale": "group", "act": "symmetric"},
    "large groups, float head": {"w": 2, "a": 2, "scale": "group", "group": 49, "float": ["head"]},
    "huge channel": {"huge": 1, "a": 7},
    "huge channel, equalized": {"huge": 1, "eq": 1, "scale": "channel"},
    "not calibrated": {"skip": 1},
    "16 bits": {"acc": 16},
    "16 bits, groups": {"acc": 16, "scale": "group", "w": 6, "a": 6},
    "float seams": {"float": ["conv1", "dw2"], "w": 5},
    "percentiles": {"wr": "percentile", "wv": 99, "ar": "percentile", "av": 99.5, "act": "symmetric"},
    "free ranges": {"wr": "free", "wv": 60, "ar": "free", "av": 70, "a": 4},
    "every weight 0": {"w": 2, "wr": "free", "wv": 250},
}
IMAGES = range(0, 500, 5)  # of the page's test digits

CALCULATE = """([changes, images]) => {
  const P = window.playground, s = { ...P.defaults(), ...changes }, net = P.variant(P.base, s, P.packed.huge);
  const model = P.quantize(net, P.calibrate(net, P.calibration), s);
  const packed = (arrays) => {
    const joined = Float64Array.from(arrays.flatMap((array) => [...array])), bytes = new Uint8Array(joined.buffer);
    let text = "";
    for (let i = 0; i < bytes.length; i += 4096) text += String.fromCharCode(...bytes.subarray(i, i + 4096));
    return btoa(text);
  };
  const given = images.map((n) => {
    const keep = [], image = Float64Array.from({ length: 785 }, (_, i) => (i < 784 ? P.digits[n][i] / 255 : 0));
    P.run(net, model, image, keep);
    return { outputs: keep.map((x) => x.subarray(0, x.length - 1)), float: P.run(net, null, image) };
  });
  return {
    layers: model.layers.map((q) => ({
      codes: packed([q.codes]), scales: packed([q.scale]), bias: packed([q.bias]),
      input: packed([[q.input.scale, q.input.zero, q.input.low, q.input.high]]),
    })),
    outputs: net.map((_, i) => packed(given.map(({ outputs }) => outputs[i]))),
    float: packed(given.map(({ float }) => float)),
    kilobytes: net.reduce((sum, layer, i) => sum + P.bytesOf(layer, model.layers[i], s), 0) / 1000,
  };
}"""


def numbers(packed: str) -> Any:
    return np.frombuffer(b64decode(packed))


@pytest.fixture(scope="module")
def ready(browser: Any, site: Path) -> Iterator[Any]:
    page = browser.new_page()
    opened(page, site)
    yield page
    page.close()


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
def test_the_page_computes_what_pytorch_does(
    chapter_names: dict[str, Any], ready: Any, changes: dict[str, Any], one_thread: None
) -> None:
    """Codes, scales, biases, every layer's output and the logits are equal; not one bit differs."""
    twin, s = chapter_names, chapter_names["DEFAULTS"] | changes
    page = ready.evaluate(CALCULATE, [changes, list(IMAGES)])
    images = twin["as_input"](twin["TEST"][0][list(IMAGES)])
    with torch.no_grad():
        net = twin["variant"](s)
        model = twin["quantize"](net, s, twin["as_input"](twin["CALIBRATION"]))
        keep: dict[str, torch.Tensor] = {}
        logits = twin["run"](net, model, s, images, keep)
        exact = networks.load_playground_net()(images.float())
    for q, of_page in zip(model.values(), page["layers"], strict=True):
        for key in ("codes", "scales", "bias"):
            assert np.array_equal(q[key].numpy().ravel(), numbers(of_page[key])), key
        assert list(q["input"]) == numbers(of_page["input"]).tolist()
    children = [name for name, _ in net.named_children()]
    for name, packed in zip(model, page["outputs"], strict=True):
        after = children[children.index(name) + 1]
        kept = keep[after if isinstance(net.get_submodule(after), nn.ReLU) else name].numpy().ravel()
        if after.startswith("relu") or name in ("pw1", "head"):
            compare = np.testing.assert_allclose if name in s["float"] else np.testing.assert_array_equal
            compare(kept, numbers(packed), err_msg=name)
    if "head" not in s["float"]:
        assert np.array_equal(logits.numpy().ravel(), numbers(page["outputs"][-1]))
    assert np.abs(exact.numpy().ravel() - numbers(page["float"])).max() < 1e-4
    assert page["kilobytes"] == pytest.approx(twin["kilobytes"](**changes))


@pytest.mark.parametrize("address", ["", "#huge=1", "#acc=16&w=7&a=7"])
def test_the_page_counts_what_the_chapter_counts(
    chapter_names: dict[str, Any], tab: Any, site: Path, address: str, one_thread: None
) -> None:
    changes = {key: int(value) for key, value in (part.split("=") for part in address[1:].split("&") if part)}
    right = chapter_names["right"](chapter_names["TEST"], **changes)
    float_right = chapter_names["right"](chapter_names["TEST"], **chapter_names["FLOAT"])
    assert f"of 500 test digits: float {float_right}, quantized {right}." in opened(tab, site, address)


# --- drawing -----------------------------------------------------------------------------------------


def box_of(tab: Any) -> dict[str, float]:
    tab.locator("#pg-box").scroll_into_view_if_needed()
    found: dict[str, float] = tab.locator("#pg-box").bounding_box()
    return found


def stroke(tab: Any, *points: tuple[float, float]) -> None:
    """Draw along points, in shares of the box."""
    box = box_of(tab)
    for i, (x, y) in enumerate(points):
        tab.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=5)
        if i == 0:
            tab.mouse.down()
    tab.mouse.up()


def test_a_drawn_one_is_read_wherever_it_is_drawn(tab: Any, site: Path) -> None:
    opened(tab, site)
    for x in (0.2, 0.5, 0.8):
        tab.click("#pg-clear")
        stroke(tab, (x + 0.02, 0.2), (x, 0.8))
        assert "Float says 1, quantized says 1." in settled(tab)
    assert tab.inner_text("#pg-what") == "Your drawing: float says 1, quantized says 1."


def test_an_empty_box_is_not_read(tab: Any, site: Path) -> None:
    opened(tab, site)
    tab.click("#pg-clear")
    said = settled(tab)
    assert "The box is empty" in said
    assert "says" not in said
    assert [tab.inner_text(f"#pg-{kind}-answer") for kind in ("float", "int8")] == ["–", "–"]
    assert set(tab.locator(".pg-answers td").all_inner_texts()) == {"–"}
    assert tab.locator(".pg-answers .pg-best").count() == 0


def test_what_is_drawn_outside_the_box_does_not_count(tab: Any, site: Path) -> None:
    opened(tab, site)
    stroke(tab, (0.5, 0.3), (0.5, 0.9), (0.5, 1.3), (1.5, 1.3))
    assert "outside the box does not count" in settled(tab)
    tab.click("#pg-clear")
    stroke(tab, (0.5, 0.2), (0.5, 0.8))
    assert "outside" not in settled(tab)


def test_a_digit_is_drawn_with_keys_alone(tab: Any, site: Path) -> None:
    opened(tab, site)
    tab.focus("#pg-box")
    tab.keyboard.press("Delete")
    for _ in range(16):
        tab.keyboard.press("Shift+ArrowDown")
    assert "Float says 1, quantized says 1." in settled(tab)
    tab.keyboard.press("Backspace")
    assert "The box is empty" in settled(tab)
    tab.keyboard.press("Space")
    assert "says" in settled(tab)


def test_the_cursor_s_place_is_told_while_keys_draw(tab: Any, site: Path) -> None:
    opened(tab, site)
    tab.focus("#pg-box")
    tab.keyboard.press("Delete")
    tab.keyboard.press("ArrowDown")
    assert tab.inner_text("#pg-cursor") == "Column 15, row 8: empty."
    tab.keyboard.press("Space")
    assert tab.inner_text("#pg-cursor") == "Column 15, row 8: inked."
    tab.focus("#pg-clear")
    assert tab.inner_text("#pg-cursor") == ""


@pytest.mark.parametrize("allowed", [True, False])
def test_the_link_to_the_settings_is_copied_or_shown(allowed: bool, tab: Any, site: Path) -> None:
    opened(tab, site, "#w=3")
    tab.evaluate(
        """allowed => Object.defineProperty(navigator, "clipboard", {value: {
          writeText: text=>(window.copiedText=text, allowed ? Promise.resolve() : Promise.reject(Error("no")))}})""",
        allowed,
    )
    tab.click("#pg-copy")
    tab.wait_for_function("document.getElementById('pg-copied').textContent")
    assert tab.evaluate("copiedText").endswith("#w=3")
    assert ("is copied" if allowed else "#w=3") in tab.inner_text("#pg-copied")


def test_a_finger_draws_without_scrolling_the_page(browser: Any, site: Path) -> None:
    context = browser.new_context(has_touch=True, viewport={"width": 390, "height": 800})
    tab = context.new_page()
    opened(tab, site)
    box = box_of(tab)
    tab.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    settled(tab)
    assert tab.inner_text("#pg-what").startswith("Your drawing: float says")
    assert tab.evaluate("getComputedStyle(document.getElementById('pg-box')).touchAction") == "none"
    context.close()


# --- settings and the address ------------------------------------------------------------------------


def test_settings_are_in_the_address_and_come_back(tab: Any, site: Path) -> None:
    opened(tab, site)
    assert "#" not in tab.url
    tab.select_option("[data-key=scale][id], select[data-key=scale]", "group")
    tab.locator("#pg-group").fill("49")
    tab.check("input[value=head]")
    tab.click("text=One channel with a huge range")
    before = settled(tab)
    assert tab.url.endswith("#scale=group&group=49&float=head&huge=1")
    assert opened(tab, site, tab.url[tab.url.index("#") :]) == before
    assert tab.is_checked("input[value=head]")
    tab.click("text=Start again")
    settled(tab)
    assert "#" not in tab.url


def test_a_changed_address_changes_the_page(tab: Any, site: Path) -> None:
    opened(tab, site)
    tab.evaluate("location.hash = '#w=3'")
    tab.wait_for_function("document.getElementById('pg-w-said').textContent === '3 bits'")
    assert "quantized 493" not in settled(tab)


def test_a_link_to_a_heading_leaves_the_settings_alone(tab: Any, site: Path) -> None:
    said = opened(tab, site, "#pg-what")
    assert "Not understood" not in said
    tab.evaluate("location.hash = '#w=3'")
    tab.wait_for_function("document.getElementById('pg-w-said').textContent === '3 bits'")
    tab.evaluate("location.hash = '#pg-layer'")
    assert "Not understood" not in settled(tab)
    assert tab.inner_text("#pg-w-said") == "3 bits"


def test_a_digit_that_is_not_there_is_named(tab: Any, site: Path) -> None:
    opened(tab, site)
    tab.locator("input[data-key=digit]").fill("900")
    assert "The test digits are 0 to 499." in settled(tab)
    assert tab.inner_text("#pg-what").startswith("Test digit 0,")
    tab.locator("input[data-key=digit]").fill("499")
    assert "The test digits" not in settled(tab)
    assert tab.inner_text("#pg-what").startswith("Test digit 499, a 9:")


def test_reducing_the_range_raises_no_bits(tab: Any, site: Path) -> None:
    opened(tab, site, "#w=4&a=8")
    tab.get_by_role("button", name="Reduce the range").click()
    settled(tab)
    assert tab.url.endswith("#w=4&a=7")


def test_digits_that_int8_loses_are_found(tab: Any, site: Path) -> None:
    opened(tab, site, "#w=3")
    for _ in range(2):
        before = tab.inner_text("#pg-what")
        tab.click("#pg-lost")
        settled(tab)
        assert tab.inner_text("#pg-what") != before
        digit, float_says, int8_says = re.findall(r"(?:, a|says) (\d)", tab.inner_text("#pg-what"))
        assert digit == float_says != int8_says


@pytest.mark.parametrize(
    "nonsense",
    ["w=99", "w=", "scale=banana", "group=10", "float=conv9", "__proto__=1", "digit=500", "%00%ff", "wv=1e9"],
)
def test_nonsense_in_the_address_is_named_and_the_default_used(tab: Any, site: Path, nonsense: str) -> None:
    said = opened(tab, site, f"#{nonsense}&a=6")
    assert f"Not understood in the address: {nonsense}." in said
    assert tab.url.endswith("#a=6")
    assert "NaN" not in tab.inner_text("#pg-app")


@pytest.mark.parametrize("kind", ["w", "a"])
def test_a_percentile_that_the_slider_does_not_have_is_refused(tab: Any, site: Path, kind: str) -> None:
    said = opened(tab, site, f"#{kind}r=percentile&{kind}v=300")
    assert f"Not understood in the address: {kind}v=300." in said
    assert tab.url.endswith(f"#{kind}r=percentile")
    assert "NaN" not in tab.inner_text("#pg-app")


def test_an_address_may_have_its_commas_escaped(tab: Any, site: Path) -> None:
    opened(tab, site, "#float=dw1%2Chead")
    assert tab.url.endswith("#float=dw1,head")


def test_the_words_about_a_group_go_with_the_field(tab: Any, site: Path) -> None:
    opened(tab, site, "#scale=group&group=32")
    tab.locator("#pg-group").fill("10")
    tab.locator("#pg-reset").click()
    settled(tab)
    assert tab.inner_text("#pg-group-said") == ""


def test_a_group_that_does_not_divide_is_refused_and_the_last_kept(tab: Any, site: Path) -> None:
    opened(tab, site, "#scale=group&group=32")
    refused = {"10": "10 does not divide the 16 weights of a channel of pw1.", "": "whole number", "9999": "1568"}
    for text, words in refused.items():
        tab.locator("#pg-group").fill(text)
        assert words in tab.inner_text("#pg-group-said")
        assert "32 stays." in tab.inner_text("#pg-group-said")
        settled(tab)
        assert tab.url.endswith("#scale=group&group=32")
    tab.locator("#pg-group").fill("98")
    assert tab.inner_text("#pg-group-said") == ""


def test_a_setting_that_makes_every_weight_zero_says_so(tab: Any, site: Path) -> None:
    said = opened(tab, site, "#w=2&wr=free&wv=250")
    assert "Every weight of conv1, dw1, pw1, dw2, pw2, head has the code 0" in said
    assert "NaN" not in tab.inner_text("#pg-app")
    assert "Infinity" not in tab.inner_text("#pg-app")


def test_of_fast_changes_the_last_one_wins_and_nothing_freezes(tab: Any, site: Path) -> None:
    opened(tab, site)
    longest = tab.evaluate("""async () => {
      const slider = document.querySelector("[data-key=w]"), pause = () => new Promise((done) => setTimeout(done));
      let longest = 0, before = performance.now();
      for (let i = 0; i < 40; i++) {
        slider.value = 2 + (i % 7);
        slider.dispatchEvent(new Event("input", { bubbles: true }));
        if (i % 2) await pause();
        longest = Math.max(longest, performance.now() - before);
        before = performance.now();
      }
      slider.value = 3;
      slider.dispatchEvent(new Event("input", { bubbles: true }));
      return longest;
    }""")
    said = settled(tab)
    assert tab.url.endswith("#w=3")
    assert said == opened(tab, site, "#w=3")
    assert longest < 5000, "milliseconds in which the page did not react, on a machine that does other things, too"


BUTTONS = {
    "One channel with a huge range": ("One scale per channel", "Equalize the channels"),
    "Skip calibration": ("Calibrate",),
    "Accumulate in 16 bits": ("Reduce the range",),
}


@pytest.mark.parametrize("breaks", BUTTONS)
def test_each_button_breaks_the_network_and_each_cure_mends_it(tab: Any, site: Path, breaks: str) -> None:
    def right() -> int:
        return int(settled(tab).rsplit("quantized ", 1)[1].rstrip("."))

    for cure in BUTTONS[breaks]:
        opened(tab, site)
        tab.get_by_role("button", name=breaks).click()
        assert right() < 380
        tab.get_by_role("button", name=cure).click()
        assert right() > 480


# --- where it cannot run -----------------------------------------------------------------------------


def assert_only_the_picture(tab: Any) -> None:
    assert tab.is_visible("#pg-still svg")
    assert "With scripts" in tab.inner_text("#pg-still figcaption")
    assert not tab.is_visible("#pg-app")


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("HTMLCanvasElement.prototype.getContext = () => null", "no canvas to draw on"),
        (
            "const read = CanvasRenderingContext2D.prototype.getImageData;"
            "CanvasRenderingContext2D.prototype.getImageData = function (...place) {"
            " const found = read.apply(this, place); found.data[0] ^= 1; return found; }",
            "changes the pixels",
        ),
    ],
)
def test_a_browser_that_cannot_show_it_says_why(tab: Any, site: Path, broken: str, words: str) -> None:
    tab.add_init_script(broken)
    tab.goto(site.as_uri())
    tab.wait_for_function("document.getElementById('pg-why').textContent")
    assert words in tab.inner_text("#pg-why")
    assert_only_the_picture(tab)


def test_without_scripts_the_page_says_what_it_would_show(browser: Any, site: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(site.as_uri())
    assert "needs JavaScript" in tab.inner_text("#pg")
    assert_only_the_picture(tab)
    context.close()


def test_a_copy_without_the_site_s_files_shows_the_picture(browser: Any, site: Path, tmp_path: Path) -> None:
    shutil.copy(site, tmp_path / "playground.html")
    tab = browser.new_page()
    tab.goto((tmp_path / "playground.html").as_uri())
    assert_only_the_picture(tab)
    tab.close()


# --- its looks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1280, 390, 320])
def test_nothing_needs_sideways_scrolling(tab: Any, site: Path, width: int) -> None:
    tab.set_viewport_size({"width": width, "height": 800})
    opened(tab, site)
    assert tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0


def test_every_control_has_a_name_and_is_reached_by_the_tab_key(tab: Any, site: Path) -> None:
    opened(tab, site, "#scale=group&wr=free&ar=free")
    controls = tab.locator("#pg-app :is(button, select, input, canvas):not([disabled])")
    unnamed = [
        control.evaluate("element => element.outerHTML")
        for control in controls.all()
        if not control.evaluate("e => e.getAttribute('aria-label') || e.labels?.length || e.textContent.trim()")
    ]
    assert unnamed == []
    tab.evaluate("document.querySelectorAll('#pg-app *').forEach((e, i) => e.dataset.number = i)")
    reached = set()
    tab.locator("#pg-box").focus()
    for _ in range(controls.count() + 2):
        reached.add(tab.evaluate("document.activeElement.dataset.number"))
        tab.keyboard.press("Tab")
    assert {control.get_attribute("data-number") for control in controls.all()} <= reached


def test_the_page_weighs_at_most_400_kb(chapter_names: dict[str, Any]) -> None:
    """With the frame that the site puts around it and the chapter's cells, which take less than 120 kB."""
    files = [ROOT / "book" / "_static" / name for name in ("playground.js", "playground-page.js", "playground.css")]
    assert len(chapter_names["HTML_OF_PAGE"].encode()) + sum(path.stat().st_size for path in files) <= 280_000
    assert len(files[0].read_text().splitlines()) <= 300
