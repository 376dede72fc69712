"""All models in one plot: how much smaller, how much faster, and as good? A line for each model, and two rivals.

The plot is SVG written here, with a script of thirty lines beside this file, about 1.5 kB a model. Libraries would take
most of the megabyte that a page may have, or more: plotly.js's basic bundle (4.1.1) 1,192 kB minified, vega with
vega-lite and vega-embed (6.4.0, 6.4.3, 7.3.0) 832 kB, altair's inline renderer (6.3.0) 899 kB in a page. None of them
lets the keyboard reach a mark, and none shows anything without JavaScript.

All positions across are percentages, so the plot fits a phone without shrinking its letters.
"""

import functools
import html
import math
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from IPython.display import HTML

from qhelpers import benchmark
from qhelpers.book import chapter, figures, table

WINS = figures.ENGINE_COLORS["x86"]  # the palette's green
FRACTIONS = {0.125: "⅛", 0.25: "¼", 0.5: "½"}
HINT = "Point to a row or tap it to read it; on the keyboard, Tab leads to the plot and the arrow keys to its rows."
ROW, TRACK = 44, 24  # heights in pixels: of a model, and of the part of it that is below its name
HEAD, GAP = 60, 16  # of what stands above a task's first model, and between two tasks


@dataclass(frozen=True)
class Scale:
    """How a metric's difference to float is drawn: to the right is better."""

    sign: int  # -1 where less is better
    low: float  # what is drawn, and what a model may lose and still count as as good: in the metric's unit
    high: float
    budget: float
    digits: int
    title: str


SCALES = {
    "top-1 in %": Scale(1, -3.0, 1.5, 1.0, 1, "top-1, points"),
    "bits a character": Scale(-1, -0.02, 0.01, 0.01, 3, "bits"),
}


class CompareError(ValueError):
    """A model cannot be compared, or there is none."""


@dataclass(frozen=True)
class Model:
    """A row of the comparison table, with what the plot needs besides.

    Raises:
        CompareError: naming the model and what it lacks.
    """

    row: table.Row
    chapter: str  # name of the notebook, without ending
    task: str  # models of one task are drawn together
    float_mb: float  # the size of the float model, in the same file format if it was written in that

    def __post_init__(self) -> None:
        for rival, ratio in (("float in the same runtime", self.row.speed), ("the best float path", self.row.best)):
            if not isinstance(ratio, benchmark.Ratio):
                raise CompareError(f"{self.row.model!r} has no speed against {rival}: time it beside that path.")
        if not (math.isfinite(self.float_mb) and self.float_mb > 0):
            raise CompareError(f"{self.row.model!r}: the float model cannot have {self.float_mb} MB.")
        if self.row.metric not in SCALES:
            raise CompareError(f"{self.row.model!r}: SCALES does not say how to draw {self.row.metric!r}.")
        if not (self.chapter.strip() and self.task.strip()):
            raise CompareError(f"{self.row.model!r} needs the name of its chapter and of its task.")

    @property
    def scale(self) -> Scale:
        """How its metric is drawn."""
        return SCALES[self.row.metric]

    @property
    def times_smaller(self) -> float:
        """Than the float model; below 1 it is larger."""
        return self.float_mb / self.row.size_mb

    @property
    def gain(self) -> tuple[float, float, float] | None:
        """The paired difference to float and its 95 % interval, above 0 if better; None if nothing could be paired."""
        if self.row.paired is None:
            return None
        low, high = sorted(self.scale.sign * end for end in self.row.paired.interval)
        return self.scale.sign * self.row.paired.difference, low, high

    @property
    def as_good(self) -> bool:
        """Whether no loss is shown, and the whole interval lies within the budget."""
        return self.gain is not None and self.gain[1] >= -self.scale.budget and not self.worse

    @property
    def wins(self) -> bool:
        """Whether it is smaller, as good, and faster than the best float path."""
        return self.times_smaller > 1 and self.as_good and self.row.best.standing == "faster"

    @property
    def worse(self) -> bool:
        """Whether the paired test shows a loss."""
        return self.row.paired is not None and self.row.paired.worse

    @property
    def verdict(self) -> str:
        """Size, quality and speed in words."""
        times = self.times_smaller
        size = f"{times:.2f} times smaller" if times > 1 else "not smaller"
        quality = "as good" if self.as_good else "worse" if self.worse else "too few cases to tell the quality"
        return f"{size}; {quality}; {self.row.best.standing} than the best float path"


def in_order(models: Sequence[Model]) -> list[Model]:
    """The models task by task; in a task those that win come first, then the faster ones.

    Raises:
        CompareError: if there is none, or those of one task have different metrics.
    """
    _require(models)
    for task in dict.fromkeys(model.task for model in models):
        metrics = dict.fromkeys(model.row.metric for model in models if model.task == task)
        if len(metrics) > 1:
            raise CompareError(f"The models of {task!r} have different metrics: {', '.join(metrics)}.")
    tasks = [*dict.fromkeys(model.task for model in models)]
    return sorted(models, key=lambda model: (tasks.index(model.task), not model.wins, -model.row.best.value))


def _require(models: Sequence[Model]) -> None:
    if not models:
        raise CompareError("There is no model to compare: run the chapters first.")


def frame(models: Sequence[Model]) -> pd.DataFrame:
    """The table behind the plot: the cells of :func:`table.as_frame`, the best float path and the chapter.

    Where no runner says that the rows are current, each has its date.
    """
    shown = table.as_frame([model.row for model in models], dated=not chapter.has_runner())
    shown.insert(3, "best float", [model.row.best_float for model in models])
    shown.insert(0, "chapter", [model.chapter for model in models])
    shown.columns.name = "model"
    return shown


def show_table(models: Sequence[Model], label: str) -> HTML:
    """:func:`frame` on the page, with links to the chapters; it scrolls by itself, by keyboard, too.

    Raises:
        CompareError: if there is no model.
    """
    _require(models)
    shown = frame(models).map(html.escape)
    shown.index = pd.Index([html.escape(name) for name in shown.index])
    shown["chapter"] = [f'<a href="{model.chapter}.html">{model.chapter.replace("-", " ")}</a>' for model in models]
    body = shown.to_html(escape=False, border=0)
    return HTML(  # type: ignore[no-untyped-call]
        f'<div class="qb-table" role="region" tabindex="0" aria-label="{html.escape(label)}">{body}</div>'
    )


def plot(models: Sequence[Model], alt: str, caption: str) -> HTML:
    """Size, speed and quality of models against float, a line for each, to be read by pointer, finger and keyboard.

    Without JavaScript it is a picture. The table of :func:`show_table` is its text alternative.

    Args:
        models: without the float models, which the vertical lines stand for.
        alt: what the plot shows, for those who do not see it.
        caption: what to look for in it.

    Raises:
        CompareError: if there is no model, or those of one task have different metrics.
        FigureError: if the alt text or the caption is empty.
    """
    ordered = in_order(models)
    speeds = [ratio for model in ordered for ratio in (model.row.speed, model.row.best)]
    sizes = [model.times_smaller for model in ordered]
    size = _log_panel(1, 23, min(sizes), max(sizes))
    speed = _log_panel(29, 66, min(ratio.low for ratio in speeds), max(ratio.high for ratio in speeds))
    cells = (row for _, row in frame(ordered).iterrows())
    parts: list[str] = []
    top = 0
    for task in dict.fromkeys(model.task for model in ordered):
        members = [model for model in ordered if model.task == task]
        scale = members[0].scale
        quality = _Panel(72, 99, scale.low, scale.high, log=False)
        bottom = top + HEAD + ROW * len(members)
        parts += _panels(f"{task} ({members[0].row.metric})", scale, (size, speed, quality), top, bottom)
        for i, model in enumerate(members):
            words = "; ".join(f"{name}: {cell}" for name, cell in next(cells).items())
            parts += _mark(model, words, (size, speed, quality), top + HEAD + ROW * i)
        top = bottom + GAP
    height = top - GAP
    picture = (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="group" aria-label="{html.escape(alt)}" width="760" '
        f'height="{height}" fill="currentColor" font-size="11" font-family="sans-serif" '
        f'style="width:100%;max-width:760px;height:{height}px">{"".join(parts)}</svg>'
    )
    key = (
        f'<p class="qb-key"><b>Right is better; shaded: int8 loses.</b> '
        f'<span style="color:{figures.INT8}">●</span> speed against the best float path, '
        f'<span style="color:{figures.INT8}">○</span> against float in the same runtime. '
        f'<span style="color:{WINS}">✓</span> smaller, as good, and faster than the best float path. '
        f'<span class="qb-hint" hidden>{html.escape(HINT)}</span></p>'
    )
    name = f"c{uuid.uuid4().hex[:8]}"
    body = f'<div class="qb-compare" id="{name}">{key}{picture}<output></output></div>'
    return figures.show(f'{body}<script>{_script()}(document.getElementById("{name}"));</script>', alt, caption)


@functools.cache
def _script() -> str:
    return Path(__file__).with_name("compare_plot.js").read_text(encoding="utf-8").strip()


@dataclass(frozen=True)
class _Panel:
    """A part of the plot's width, in percent of it, and the values that its ends stand for."""

    left: float
    right: float
    low: float
    high: float
    log: bool

    def at(self, value: float) -> float:
        """Where a value is drawn; what does not fit is drawn at the end."""
        low, here, high = (math.log(x) if self.log else x for x in (self.low, value, self.high))
        return self.left + (self.right - self.left) * min(max((here - low) / (high - low), 0), 1)


def _log_panel(left: float, right: float, low: float, high: float) -> _Panel:
    """A panel of ratios that has 1 and a little room on both sides of it and of what is drawn."""
    return _Panel(left, right, 0.93 * min(low, 0.9), 1.07 * max(high, 1.1), log=True)


def _line(x1: float, x2: float, y1: float, y2: float, more: str = "") -> str:
    return f'<line x1="{x1:.1f}%" x2="{x2:.1f}%" y1="{y1}" y2="{y2}" stroke="currentColor" {more}/>'


def _text(x: float, y: float, words: str, more: str = "") -> str:
    return f'<text x="{x:.1f}%" y="{y}" {more}>{html.escape(words)}</text>'


def _panels(task: str, scale: Scale, panels: tuple[_Panel, _Panel, _Panel], top: int, bottom: int) -> Iterator[str]:
    """What stands behind the models of one task: titles, ticks, the rivals' lines and the side on which int8 loses."""
    yield _text(0, top + 16, task, 'font-size="14" font-weight="bold"')
    start = top + HEAD
    above = ROW - TRACK  # where a model's name is, which no line may cross
    for panel, title in zip(panels, ("times smaller", "times as fast", scale.title), strict=True):
        neutral = 1 if panel.log else 0
        width = panel.at(neutral) - panel.left
        yield _text(panel.left, top + 36, title)
        yield f'<rect x="{panel.left}%" width="{width:.1f}%" y="{start}" height="{bottom - start}" opacity=".09"/>'
        yield _line(
            panel.at(neutral),
            panel.at(neutral),
            start,
            bottom,
            f'stroke-width="1.5" stroke-dasharray="0 {above} {TRACK} 0"',
        )
        for value, words in _ticks(panel, scale):
            yield _text(panel.at(value), top + 51, words, 'text-anchor="middle"')
            if value != neutral:
                dots = "2 3 " * (TRACK // 5 - 1) + f"2 {3 + TRACK % 5}"
                yield _line(
                    panel.at(value), panel.at(value), start, bottom, f'opacity=".3" stroke-dasharray="0 {above} {dots}"'
                )


def _ticks(panel: _Panel, scale: Scale) -> list[tuple[float, str]]:
    if panel.log:
        doubled = [2.0**i for i in range(-5, 6)]
        return [(x, FRACTIONS.get(x, f"{x:g}×")) for x in doubled if panel.low <= x <= panel.high]
    budget = scale.budget
    return [(0.0, "0"), (-budget, f"{-scale.sign * budget:+g}".replace("-", "−"))]


def _mark(model: Model, words: str, panels: tuple[_Panel, _Panel, _Panel], top: int) -> Iterator[str]:
    """One model: what is read when it is pointed at or reached, its name, and its marks in the three panels."""
    size, speed, quality = panels
    name, where = model.row.model, f"{model.row.model}, {model.chapter}"
    label, row = html.escape(f"{where}: {model.verdict}"), html.escape(f"{name}; {words}")
    yield f'<g class="qb-mark" tabindex="0" role="img" aria-label="{label}" data-row="{row}">'
    fill = f'fill="{WINS}" fill-opacity=".18"' if model.wins else 'fill="none"'
    yield f'<rect x="0" width="100%" y="{top}" height="{ROW}" rx="3" pointer-events="all" {fill}/>'
    weight = ' font-weight="bold"' if model.wins else ""
    yield f'<text x="0.8%" y="{top + 15}" font-size="13"{weight}>{"✓ " if model.wins else ""}{html.escape(name)}'
    yield f'<tspan class="qb-from" dx="8" font-size="11" opacity=".75">{html.escape(model.chapter)}</tspan></text>'
    middle = top + ROW - TRACK // 2
    yield f'<circle cx="{size.at(model.times_smaller):.1f}%" cy="{middle}" r="4.5" fill="{figures.INT8}"/>'
    ring, dot = f'fill="none" stroke="{figures.INT8}" stroke-width="1.8"', f'fill="{figures.INT8}"'
    for y, ratio, kind in ((middle - 5, model.row.speed, ring), (middle + 5, model.row.best, dot)):
        yield _line(speed.at(ratio.low), speed.at(ratio.high), y, y)
        yield f'<circle cx="{speed.at(ratio.value):.1f}%" cy="{y}" r="4" {kind}/>'
    if model.gain is None:
        yield _text(quality.left, middle + 4, "not paired")
    elif model.gain[0] < model.scale.low:
        lost = f"{model.scale.sign * model.gain[0]:+.{model.scale.digits}f}".replace("-", "−")
        yield _text(quality.left, middle + 4, f"◂ {lost}", f'fill="{figures.INT8}" font-size="13" font-weight="bold"')
    else:
        difference, low, high = model.gain
        yield _line(quality.at(low), quality.at(high), middle, middle)
        yield f'<circle cx="{quality.at(difference):.1f}%" cy="{middle}" r="4.5" fill="{figures.INT8}"/>'
    yield "</g>"
