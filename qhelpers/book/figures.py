"""The book's figures: one palette, legible in light and dark pages, each with alt text and a caption."""

import html
import io
import re
import uuid
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from IPython.display import HTML
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

# Okabe and Ito's palette, safe for colour-blind readers: the same colour for the same thing everywhere.
FLOAT = "#0072B2"
INT8 = "#D55E00"
ENGINE_COLORS = {"qnnpack": "#CC79A7", "x86": "#009E73", "fbgemm": "#E69F00", "onednn": "#56B4E9"}
NEUTRAL = "#8C8C8C"

_INK = "#010203"  # stands for the page's text colour until the SVG is written

STYLE: Any = {
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "path",
}


class FigureError(ValueError):
    """A figure lacks the words that make it usable without seeing it."""


def new_figure(width: float = 7.0, height: float = 3.0, **subplots: Any) -> tuple[Figure, Any]:
    """An empty figure in the book's style and its axes.

    Args:
        width, height: in inches.
        subplots: passed on to ``Figure.subplots``.

    >>> figure, axes = new_figure(4, 3, ncols=2)
    >>> len(axes)
    2
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        return figure, figure.subplots(**subplots)


def svg(figure: Figure, alt: str) -> str:
    """The figure as inline SVG in the page's text colour, with unique ids.

    Raises:
        FigureError: if the alt text is empty.

    >>> "currentColor" in svg(new_figure()[0], "An empty plot.")
    True
    """
    _require(alt, "alt text")
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    mark = f"f{uuid.uuid4().hex[:8]}-"
    text = re.sub(r'(\bid="|href="#|url\(#)', lambda match: match.group(1) + mark, text)
    width = float(figure.get_figwidth()) * 96
    # Black text has no colour of its own in the SVG, so the root's decides.
    style = f"width:100%;max-width:{width:.0f}px;height:auto"
    opening = f'<svg fill="currentColor" role="img" aria-label="{html.escape(alt)}" style="{style}" '
    head, rest = text.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head).replace("<svg ", opening)
    return f"{head}>{rest}"


def photo(pixels: np.ndarray, alt: str, width: int = 320) -> str:
    """An image as an inline WebP at twice its width on the page.

    Args:
        pixels: uint8 of shape ``(height, width)`` or ``(height, width, 3)``.
        alt: what it shows.
        width: on the page, in CSS pixels.

    Raises:
        FigureError: if the alt text is empty.

    >>> photo(np.zeros((8, 8), np.uint8), "A black square.")[:26]
    '<img alt="A black square."'
    """
    _require(alt, "alt text")
    picture = Image.fromarray(pixels).convert("RGB")
    height = round(2 * width * picture.height / picture.width)
    method = Image.Resampling.NEAREST if picture.width < width else Image.Resampling.LANCZOS
    buffer = io.BytesIO()
    picture.resize((2 * width, height), method).save(buffer, "WEBP", quality=80)
    encoded = b64encode(buffer.getvalue()).decode()
    size = f'width="{width}" height="{height // 2}"'
    return f'<img alt="{html.escape(alt)}" src="data:image/webp;base64,{encoded}" {size}>'


def show(content: Figure | str, alt: str, caption: str) -> HTML:
    """A figure with its caption.

    Args:
        content: a matplotlib figure, or HTML whose images already have their alt text.
        alt: what the figure shows, for those who do not see it.
        caption: what to look for in it.

    Raises:
        FigureError: if the alt text or the caption is empty.

    >>> figure, axes = new_figure()
    >>> show(figure, alt="", caption="An empty plot.")
    Traceback (most recent call last):
        ...
    qhelpers.book.figures.FigureError: A figure needs its alt text.
    """
    _require(alt, "alt text")
    _require(caption, "caption")
    body = svg(content, alt) if isinstance(content, Figure) else content
    return HTML(  # type: ignore[no-untyped-call]
        f'<figure class="qb-figure">{body}<figcaption>{html.escape(caption)}</figcaption></figure>'
    )


def _require(words: str, what: str) -> None:
    if not words.strip():
        raise FigureError(f"A figure needs its {what}.")


def horizontal_bars(
    names: Sequence[str],
    values: Sequence[float],
    colors: Sequence[str],
    *,
    label: str,
    errors: Sequence[tuple[float, float]] | None = None,
    digits: int = 2,
    reference: float | None = None,
    width: float = 7.0,
) -> Figure:
    """Bars from top to bottom, each with its value written after it.

    Args:
        names, values, colors: one for each bar.
        label: the x axis, with its unit.
        errors: lower and upper end of each bar's interval, in the unit of ``values``.
        digits: decimals of the written values.
        reference: where to draw a dashed line.
        width: of the figure in inches.

    >>> figure = horizontal_bars(["float", "int8"], [1.0, 2.0], [FLOAT, INT8], label="speed")
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['1.00', '2.00']
    """
    figure, axes = new_figure(width, 0.6 + 0.38 * len(names))
    positions = range(len(names))
    axes.barh(positions, values, color=list(colors), height=0.7)
    ends = list(values)
    if errors is not None:
        low = [value - interval[0] for value, interval in zip(values, errors, strict=True)]
        high = [interval[1] - value for value, interval in zip(values, errors, strict=True)]
        axes.errorbar(values, positions, xerr=[low, high], fmt="none", ecolor=_INK, capsize=3, linewidth=1)
        ends = [interval[1] for interval in errors]
    widest = max(ends)
    for position, value, end in zip(positions, values, ends, strict=True):
        axes.text(end + 0.015 * widest, position, f"{value:.{digits}f}", va="center", color=_INK)
    if reference is not None:
        axes.axvline(reference, color=_INK, linestyle="--", linewidth=1)
    axes.set_yticks(list(positions), labels=list(names))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * widest)
    axes.set_xlabel(label)
    return figure


def stacked_bars(rows: Mapping[str, Mapping[str, float]], *, unit: str, digits: int = 2, width: float = 5.5) -> Figure:
    """What two totals or more consist of: a bar each, its parts from dark to pale, the first row's named.

    Args:
        rows: by name, the size of each part, in the same order in each row; int8 rows begin with "int8".
        unit: written behind each total.
        digits: decimals of the parts.
        width: of the figure in inches.

    >>> parts = {"float": {"weights": 8.0, "code": 2.0}, "int8": {"weights": 2.0, "code": 2.0}}
    >>> figure = stacked_bars(parts, unit="MB")
    >>> [text.get_text() for text in figure.axes[0].texts][:5]
    ['8.00', 'weights', '2.00', '  code', '  10.0 MB']
    """
    figure, axes = new_figure(width, 0.1 + 0.9 * len(rows))
    whole = max(sum(parts.values()) for parts in rows.values())
    places = [-1.0 * i for i in range(len(rows))]
    for y, (row, parts) in zip(places, rows.items(), strict=True):
        left, color = 0.0, INT8 if row.startswith("int8") else FLOAT
        for i, (name, value) in enumerate(parts.items()):
            axes.barh(y, value, left=left, color=color, alpha=0.9 / (1 + i), height=0.5)
            if value > 0.03 * whole:
                axes.text(left + value / 2, y - 0.28, f"{value:.{digits}f}", ha="center", va="top", color=_INK)
            if y == 0 and i + 1 < len(parts):
                axes.text(left + value / 2, y + 0.28, name, ha="center", va="bottom", color=_INK)
            elif y == 0:  # the last and often the smallest: room on the right
                axes.text(left, y + 0.28, f"  {name}", va="bottom", color=_INK)
            left += value
        axes.text(left, y, f"  {left:.1f} {unit}", va="center", fontsize=11, weight="bold", color=_INK)
    axes.set_yticks(places, labels=list(rows), fontsize=11)
    axes.set(xlim=(0, 1.2 * whole), ylim=(places[-1] - 0.55, 0.6), xticks=[])
    axes.tick_params(length=0)
    axes.spines["bottom"].set_visible(False)
    return figure


def weight_histogram(codes: np.ndarray, title: str, note: str) -> Figure:
    """How often each int8 code occurs in a weight tensor.

    Args:
        codes: integers from -128 to 127, any shape.
        title, note: written above the plot.

    >>> figure = weight_histogram(np.array([-128, 0, 127]), "three", "codes")
    >>> sum(round(bar.get_height()) for bar in figure.axes[0].patches)
    99
    """
    figure, axes = new_figure(7, 2.6)
    counts, edges = np.histogram(codes, bins=np.arange(-128, 130, 4))
    axes.bar(edges[:-1], 100 * counts / codes.size, width=3.6, align="edge", color=INT8)
    axes.set_xlim(-132, 132)
    axes.set_xlabel("int8 code (bars of 4 codes)")
    axes.set_ylabel("share of the weights in %")
    axes.set_title(f"{title}\n{note}", fontsize=10, color=_INK, loc="left")
    return figure


def ratio_map(axes: Any, ratios: np.ndarray, columns: Sequence[str], rows: Sequence[str]) -> None:
    """Draw speed ratios as a heat map: the colour of float where it is faster, else that of int8.

    Args:
        axes: where to draw.
        ratios: float time / int8 time, of shape ``(rows, columns)``; above 1, int8 is faster.
        columns, rows: labels.

    >>> figure, axes = new_figure()
    >>> ratio_map(axes, np.array([[0.5, 2.0]]), ["1", "64"], ["1"])
    >>> [text.get_text() for text in axes.texts]
    ['0.50', '2.00']
    """
    strength = np.clip(np.abs(np.log2(ratios)) / 2, 0.05, 1) * 0.65  # full from four times on
    pixels = np.array([[to_rgba(INT8 if value >= 1 else FLOAT) for value in row] for row in ratios])
    pixels[..., 3] = strength
    axes.imshow(pixels, aspect="auto")
    for (i, j), value in np.ndenumerate(ratios):
        axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=_INK)
    axes.set_xticks(range(len(columns)), labels=columns)
    axes.set_yticks(range(len(rows)), labels=rows)
    axes.tick_params(length=0)


def module_tree(model: nn.Module) -> str:
    """A model's modules as indented text, in HTML; int8 modules with their scale and zero point.

    >>> print(module_tree(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())))
    <pre class="qb-tree">Sequential
      0: Conv2d
      1: ReLU</pre>
    """

    def lines(module: nn.Module, label: str, depth: int) -> list[str]:
        numbers = [getattr(module, name, None) for name in ("scale", "zero_point")]
        known = None not in numbers and not hasattr(module, "fake_quant_enabled")  # those are not final
        note = f"  scale {float(numbers[0]):.4f}, zero_point {int(numbers[1])}" if known else ""  # type: ignore[arg-type]
        found = [f"{'  ' * depth}{label}{type(module).__name__}{note}"]
        for name, child in module.named_children():
            found += lines(child, f"{name}: ", depth + 1)
        return found

    return f'<pre class="qb-tree">{html.escape(chr(10).join(lines(model, "", 0)))}</pre>'
