"""Figures and widgets: words for those who do not see them, ids that never clash, no other host."""

import re

import numpy as np
import pytest
from bs4 import BeautifulSoup
from matplotlib.colors import to_hex

from qhelpers.book import figures, widgets


def bars() -> str:
    figure = figures.horizontal_bars(["a", "b"], [1.0, 2.0], [figures.FLOAT, figures.INT8], label="ms")
    return figures.svg(figure, "Two bars, the second twice as long.")


def ids(markup: str) -> set[str]:
    return set(re.findall(r'\bid="([^"]+)"', markup))


def test_text_takes_the_colour_of_the_page() -> None:
    assert "currentColor" in bars()
    assert figures._INK not in bars()
    assert not re.search(r"(fill|stroke): ?#(000000|ffffff)", bars())


def test_text_without_a_colour_takes_that_of_the_page() -> None:
    figure, axes = figures.new_figure()
    axes.text(0.5, 0.5, "drawn after the style")
    element = BeautifulSoup(figures.svg(figure, "A word in the middle of a plot."), "html.parser").svg
    assert element is not None
    assert element["fill"] == "currentColor"
    assert not element.find_all(style=re.compile(r"fill: ?#000"))


def test_figures_do_not_share_ids() -> None:
    one, two = bars(), bars()
    assert ids(one)
    assert not ids(one) & ids(two)
    for reference in re.findall(r'(?:href="#|url\(#)([^")]+)', one):
        assert reference in ids(one)


def test_a_figure_is_labelled_and_scales() -> None:
    element = BeautifulSoup(bars(), "html.parser").svg
    assert element is not None
    assert element["aria-label"] == "Two bars, the second twice as long."
    assert element["role"] == "img"
    assert not element.has_attr("width")


@pytest.mark.parametrize(("alt", "caption", "words"), [(" ", "c", "alt text"), ("a", "", "caption")])
def test_a_figure_without_words_is_refused(alt: str, caption: str, words: str) -> None:
    with pytest.raises(figures.FigureError, match=words):
        figures.show("<b></b>", alt=alt, caption=caption)


def test_alt_text_is_escaped() -> None:
    assert 'alt="a &quot;b&quot;"' in figures.photo(np.zeros((4, 4), np.uint8), 'a "b"')


def test_slider_shows_its_first_frame_without_script() -> None:
    soup = BeautifulSoup(widgets.frame_slider([bars(), bars()], ["x", "y"], "c", "layer").data, "html.parser")
    frames = soup.select("[data-frame]")
    assert [frame.has_attr("hidden") for frame in frames] == [False, True]
    assert soup.select_one("label[hidden] input[type=range][max='1'][aria-label=layer]")


def test_two_sliders_on_a_page_do_not_share_ids() -> None:
    one, two = (widgets.frame_slider(["<b>1</b>"], ["x"], "c", "a").data for _ in range(2))
    assert not ids(one) & ids(two)


@pytest.mark.parametrize(("frames", "labels"), [([], []), (["<b></b>"], []), (["<b></b>"], ["a", "b"])])
def test_slider_rejects_frames_without_labels(frames: list[str], labels: list[str]) -> None:
    with pytest.raises(widgets.WidgetError, match="as many labels as frames"):
        widgets.frame_slider(frames, labels, "c", "a")


def test_slider_rejects_empty_words() -> None:
    with pytest.raises(widgets.WidgetError, match="caption and alt"):
        widgets.frame_slider(["<b></b>"], ["a"], " ", "a")


def test_switcher_needs_no_script_and_has_one_choice_on() -> None:
    markup = widgets.switcher({"cat": "<b>1</b>", "dog": "<b>2</b>"}, "Two.").data
    soup = BeautifulSoup(markup, "html.parser")
    assert "<script" not in markup
    assert [radio.has_attr("checked") for radio in soup.select("input")] == [True, False]
    assert {label["for"] for label in soup.select("label")} == {radio["id"] for radio in soup.select("input")}


def test_switcher_rejects_nothing() -> None:
    with pytest.raises(widgets.WidgetError, match="at least one panel"):
        widgets.switcher({}, "c")
    with pytest.raises(widgets.WidgetError, match="caption"):
        widgets.switcher({"a": "b"}, "")


def test_nothing_asks_another_host() -> None:
    everything = bars() + widgets.frame_slider(["<b>1</b>"], ["x"], "c", "a").data
    assert not re.search(r'(src|href)="(https?:)?//', everything)


def test_stacked_bars_have_the_colour_of_their_row_and_paler_parts() -> None:
    rows = {"float": {"weights": 8.0, "code": 2.0}, "int8": {"weights": 2.0, "code": 2.0}}
    bars_of = figures.stacked_bars(rows, unit="MB").axes[0].patches
    assert [to_hex(bar.get_facecolor()).upper() for bar in bars_of] == 2 * [figures.FLOAT] + 2 * [figures.INT8]
    assert bars_of[1].get_facecolor()[3] < bars_of[0].get_facecolor()[3]  # type: ignore[index, operator]
    assert [bar.get_x() for bar in bars_of] == [0, 8, 0, 2]  # type: ignore[attr-defined]
