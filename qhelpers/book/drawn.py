"""The shapes that the book's diagrams are drawn with: boxes, arrows, cells and number lines, placed in inches."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from qhelpers.book import figures

INK: str = figures.STYLE["text.color"]
TEXT, NOTE = 11.0, 9.5  # sizes in points: legible where the page is a phone's
_PAD, _FILL = 0.06, 0.16  # inches around a text, opacity of a box


def canvas(width: float = 6.4, height: float = 2.6) -> tuple[Figure, Any]:
    """An empty sheet and its axes, whose unit is an inch, from (0, 0) at the lower left.

    >>> canvas(6, 2)[0].get_size_inches().tolist()
    [6.0, 2.0]
    """
    figure, axes = figures.new_figure(width, height)
    figure.set_layout_engine("none")
    axes.set(position=(0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def write(axes: Any, x: float, y: float, words: str, size: float = TEXT, **style: Any) -> Any:
    """Words around a point.

    Raises:
        FigureError: if they reach out of the sheet.

    >>> write(canvas(2, 1)[1], 1.9, 0.5, "too long")
    Traceback (most recent call last):
        ...
    qhelpers.book.figures.FigureError: 'too long' reaches out of the sheet.
    """
    text = axes.text(x, y, words, **{"ha": "center", "va": "center", "color": INK, "fontsize": size} | style)
    left, bottom, right, top = _inches(axes, text)
    if min(left, bottom) < 0 or right > axes.get_xlim()[1] or top > axes.get_ylim()[1]:
        raise figures.FigureError(f"{words!r} reaches out of the sheet.")
    return text


def box(
    axes: Any, x: float, y: float, width: float, height: float, text: str, color: str = INK, note: str = ""
) -> None:
    """A box with its lower left corner at (x, y), a text in it and a smaller note under the text.

    Raises:
        FigureError: if the words do not fit into the box.

    >>> box(canvas()[1], 0.2, 0.2, 0.5, 0.4, "convolution")
    Traceback (most recent call last):
        ...
    qhelpers.book.figures.FigureError: 'convolution' does not fit into its box.
    """
    face, corners = to_rgba(color, 0 if color == INK else _FILL), f"round,pad=0,rounding_size={_PAD}"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=corners, fc=face, ec=color, lw=1.4))
    rows = [(text, TEXT, "bold" if note else "normal")] + [(note, NOTE, "normal")] * bool(note)
    heights = [size / 60 * (words.count("\n") + 1) for words, size, _ in rows]  # lines are 1.2 sizes apart
    top = y + (height + sum(heights)) / 2
    for (words, size, weight), own in zip(rows, heights, strict=True):
        put = write(axes, x + width / 2, top - own / 2, words, size, weight=weight)
        left, bottom, right, upper = _inches(axes, put)
        if left < x or right > x + width or bottom < y or upper > y + height:
            raise figures.FigureError(f"{words!r} does not fit into its box.")
        top -= own


def arrow(
    axes: Any, start: tuple[float, float], end: tuple[float, float], text: str = "", color: str = INK, **style: Any
) -> None:
    """An arrow from point to point, its text above it, or on the right of it if it is steep.

    Args:
        style: of the arrow, for matplotlib's ``arrowprops``: ``connectionstyle="arc3,rad=0.3"`` bends it.
    """
    drawn = {"arrowstyle": "-|>", "color": color, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 12, "lw": 1.4}
    axes.annotate("", end, start, arrowprops=drawn | style)
    middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
    if text and abs(end[0] - start[0]) > abs(end[1] - start[1]):
        write(axes, middle[0], middle[1] + _PAD, text, NOTE, va="bottom")
    elif text:
        write(axes, middle[0] + _PAD, middle[1], text, NOTE, ha="left")


def cells(axes: Any, x: float, y: float, values: Any, color: str | Sequence[str], side: float = 0.4) -> None:
    """A row or table of numbers in squares, its lower left corner at (x, y).

    Args:
        values: of shape ``(columns,)`` or ``(rows, columns)``; the first row is the uppermost.
        color: of all squares, or of each row.
        side: of a square, in inches.
    """
    table = np.atleast_2d(np.asarray(values, dtype=object))
    colors = [color] * len(table) if isinstance(color, str) else color
    for (i, j), value in np.ndenumerate(table):
        corner = (x + j * side, y + (len(table) - 1 - i) * side)
        axes.add_patch(Rectangle(corner, side, side, fc=to_rgba(colors[i], _FILL), ec=colors[i], lw=1))
        write(axes, corner[0] + side / 2, corner[1] + side / 2, str(value), NOTE)


def codes(
    axes: Any, y: float, at: Sequence[float], labels: Sequence[str] = (), color: str = figures.INT8, size: float = 0.14
) -> None:
    """A number line at height y with a tick at each x, and labels under the ticks ("" for none)."""
    axes.plot([min(at), max(at)], [y, y], color=color, lw=1.4)
    axes.plot([at, at], [[y - size / 2] * len(at), [y + size / 2] * len(at)], color=color, lw=1)
    for x, words in zip(at, labels, strict=bool(labels)):
        write(axes, x, y - size / 2 - 0.03, words, NOTE, va="top")


def _inches(axes: Any, text: Any) -> Any:
    """Left, bottom, right and top of a text on the sheet."""
    return text.get_window_extent().extents / axes.figure.dpi
