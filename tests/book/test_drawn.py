"""Shapes of diagrams: words stay inside, places are inches, and the page's own colour is kept."""

import re

import pytest

from qhelpers.book import drawn, figures


def test_a_sheet_keeps_its_size_in_inches() -> None:
    figure, _ = drawn.canvas(5, 2)
    markup = figures.svg(figure, "An empty sheet.")
    assert 'viewBox="0 0 360 144"' in markup


def test_a_diagram_has_no_colour_of_its_own_for_ink() -> None:
    figure, axes = drawn.canvas()
    drawn.box(axes, 0.2, 0.2, 2, 0.6, "convolution", note="in float")
    drawn.arrow(axes, (2.2, 0.5), (3.2, 0.5), "then")
    markup = figures.svg(figure, "A box and an arrow.")
    assert drawn.INK not in markup
    assert not re.search(r"(fill|stroke): ?#(000000|ffffff)", markup)


def test_a_box_with_a_note_writes_both_inside() -> None:
    _, axes = drawn.canvas()
    drawn.box(axes, 0.2, 0.2, 2, 0.6, "convolution", figures.INT8, note="with codes")
    text, note = axes.texts
    assert text.get_position()[1] > 0.5 > note.get_position()[1]
    assert text.get_fontsize() > note.get_fontsize()


@pytest.mark.parametrize("words", ["one\ntwo\nthree\nfour", "a very long line of words"])
def test_words_that_leave_their_box_are_refused(words: str) -> None:
    _, axes = drawn.canvas()
    with pytest.raises(figures.FigureError, match="does not fit"):
        drawn.box(axes, 1, 1, 1, 0.5, words)


@pytest.mark.parametrize("place", [(0.1, 0.5), (1.9, 0.5), (1, 0.01), (1, 0.99)])
def test_words_that_leave_the_sheet_are_refused(place: tuple[float, float]) -> None:
    _, axes = drawn.canvas(2, 1)
    with pytest.raises(figures.FigureError, match="out of the sheet"):
        drawn.write(axes, *place, "words")


def test_an_arrow_keeps_its_text_beside_it() -> None:
    _, axes = drawn.canvas()
    drawn.arrow(axes, (1, 1), (3, 1), "along")
    drawn.arrow(axes, (1, 2), (1, 1), "down")
    along, down = (text for text in axes.texts if text.get_text())
    assert drawn._inches(axes, along)[1] > 1
    assert drawn._inches(axes, down)[0] > 1


def test_cells_read_from_the_top_left() -> None:
    _, axes = drawn.canvas()
    drawn.cells(axes, 0.5, 0.5, [[1, 2], [3, 4]], [figures.FLOAT, figures.INT8])
    first, *_, last = axes.texts
    assert (first.get_text(), last.get_text()) == ("1", "4")
    assert first.get_position()[1] > last.get_position()[1]


def test_a_number_line_needs_a_label_for_each_tick_or_none() -> None:
    _, axes = drawn.canvas()
    drawn.codes(axes, 1, [1, 2, 3])
    drawn.codes(axes, 1, [1, 2, 3], ["a", "", "c"])
    with pytest.raises(ValueError, match="zip"):
        drawn.codes(axes, 1, [1, 2, 3], ["a"])
