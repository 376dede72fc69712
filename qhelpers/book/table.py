"""One table for the whole book: what each chapter's models weigh, how fast they are, and how good.

A chapter writes its rows while it runs; the introduction reads those of all chapters, and refuses what is missing or
damaged. Whether a chapter's rows are current is the runner's business; without one, rows are shown with their date.
"""

import datetime
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qhelpers import benchmark, engines, guards, metrics, size
from qhelpers.book import chapter

METRICS = {"top-1 in %": (0.0, 100.0), "bits a character": (0.0, 64.0)}


class RowError(ValueError):
    """Rows of the comparison table are missing, damaged or impossible."""


@dataclass(frozen=True)
class Row:
    """One model in the table.

    Raises:
        RowError: naming the field that cannot be.
    """

    model: str
    size_mb: float  # of the saved state_dict
    speed: float  # times the float model of the same task, in the same run; above 1 is faster
    speed_quartiles: tuple[float, float]
    metric: str  # a key of METRICS
    value: float
    interval: tuple[float, float]  # 95 %
    n: int  # images or characters behind the value
    agreement: float  # with the float model, in %
    setting: str  # CPU, threads, engine
    measured_on: str = field(default_factory=lambda: datetime.date.today().isoformat())

    def __post_init__(self) -> None:
        numbers = {"size_mb": self.size_mb, "speed": self.speed, "value": self.value, "agreement": self.agreement}
        for name, number in numbers.items():
            if not math.isfinite(number):
                raise RowError(f"Row {self.model!r}: {name} is {number}.")
        if self.metric not in METRICS:
            raise RowError(f"Row {self.model!r}: there is no metric {self.metric!r}; known: {', '.join(METRICS)}.")
        least, most = METRICS[self.metric]
        checks = {
            "model": bool(self.model.strip()),
            "size_mb": self.size_mb > 0,
            "speed_quartiles": 0 < self.speed_quartiles[0] <= self.speed <= self.speed_quartiles[1],
            "interval": least <= self.interval[0] <= self.value <= self.interval[1] <= most,
            "n": self.n > 0,
            "agreement": 0 <= self.agreement <= 100,
            "setting": bool(self.setting.strip()),
        }
        for name, good in checks.items():
            if not good:
                raise RowError(f"Row {self.model!r}: {name} cannot be {getattr(self, name)!r}.")


def compare(
    candidates: Mapping[str, nn.Module],
    loader: Iterable[tuple[Tensor, Tensor]],
    example: Tensor,
    *,
    engine_of: Mapping[str, str] | None = None,
    rounds: int = 60,
) -> list[Row]:
    """Size, speed, top-1 and agreement of classifiers that do the same job.

    Args:
        candidates: name to model in evaluation mode; the first one is the float model that the others are
            compared with.
        loader: labelled batches.
        example: the input whose latency is measured.
        engine_of: the engine under which a model runs, by its name; if it is not named, the one that is set.
        rounds: of the latency measurement.

    Raises:
        ValueError: if there is no candidate or no image, or ``engine_of`` names no candidate.
        EngineError: if this build lacks an engine.
        GuardError: if a model is in training mode.

    >>> model = nn.Linear(4, 2).eval()
    >>> rows = compare({"float": model, "same": model}, [(torch.eye(4), torch.zeros(4))], torch.eye(4), rounds=2)
    >>> [(row.model, row.agreement) for row in rows]
    [('float', 100.0), ('same', 100.0)]
    """
    chosen = dict(engine_of or {})
    if unknown := set(chosen) - set(candidates):
        raise ValueError(f"engine_of names no candidate: {', '.join(sorted(unknown))}.")
    batches = list(loader)
    if not any(len(wanted) for _, wanted in batches):
        raise ValueError("The loader yielded no image: there is nothing to compare on.")
    labels = torch.cat([wanted for _, wanted in batches])
    for model in candidates.values():
        guards.require_eval(model)

    def runner(name: str) -> metrics.Classifier:
        def run(inputs: Tensor) -> Tensor:
            with engines.using_engine(chosen[name]) if name in chosen else nullcontext():
                outputs: Tensor = candidates[name](inputs)
                return outputs

        return run

    runners = {name: runner(name) for name in candidates}
    with torch.inference_mode():
        answers = {name: torch.cat([run(x).argmax(1) for x, _ in batches]) for name, run in runners.items()}
    latency = benchmark.compare_latency({name: partial(run, example) for name, run in runners.items()}, rounds=rounds)
    first = next(iter(answers.values()))
    where = latency.setting.rsplit(", engine", 1)[0]
    rows = []
    for name, model in candidates.items():
        share, timed = metrics.Share(int((answers[name] == labels).sum()), len(labels)), latency[name]
        rows.append(
            Row(
                model=name,
                size_mb=size.size_mb(model),
                speed=timed.ratio,
                speed_quartiles=timed.ratio_quartiles,
                metric="top-1 in %",
                value=share.percent,
                interval=share.interval,
                n=share.n,
                agreement=100 * float((answers[name] == first).double().mean()),
                setting=f"{where}, engine {chosen.get(name, torch.backends.quantized.engine)}",
            )
        )
    return rows


def write_rows(name: str, rows: Sequence[Row]) -> None:
    """Keep a chapter's rows in its results folder.

    Raises:
        RowError: if there is none, or two have the same name.
        WriteError: if the folder cannot be written.

    >>> write_rows("doctest", [])
    Traceback (most recent call last):
        ...
    qhelpers.book.table.RowError: The chapter doctest gives no rows for the comparison table.
    """
    if not rows:
        raise RowError(f"The chapter {name} gives no rows for the comparison table.")
    models = [row.model for row in rows]
    if len(set(models)) < len(models):
        raise RowError(f"Two rows of {name} have the same name: {', '.join(models)}.")
    chapter.record(f"rows-{name}", {"chapter": name, "rows": [asdict(row) for row in rows]})


def read_rows(name: str, expected: Sequence[str]) -> list[Row]:
    """The rows that a chapter has left where this page may gather them, checked.

    Args:
        name: the notebook's name without ending.
        expected: names of the models that must be there, in this order.

    Raises:
        RowError: if the chapter has not run, is not current (where the runner says so), or lacks an expected row;
            if the file is damaged or a row is impossible.

    >>> read_rows("no-such-chapter", ["float"])
    Traceback (most recent call last):
        ...
    qhelpers.book.table.RowError: The chapter no-such-chapter has left no current rows: run it first.
    """
    places = (folder / f"rows-{name}.json" for folder in chapter.gathered_folders())
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise RowError(f"The chapter {name} has left no current rows: run it first.")
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        rows = [Row(**{own.name: _value(row[own.name]) for own in fields(Row)}) for row in kept["rows"]]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise RowError(f"{path.name} is damaged ({type(error).__name__}: {error}): run {name} again.") from error
    found = {row.model: row for row in rows}
    if missing := [model for model in expected if model not in found]:
        raise RowError(f"The chapter {name} has left no row for {', '.join(missing)}.")
    return [found[model] for model in expected]


def _value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def as_frame(rows: Sequence[Row], dated: bool = False) -> Any:
    """The rows as a pandas DataFrame to be shown.

    Args:
        rows: of one chapter.
        dated: with the day on which each was measured.

    >>> row = Row("float", 9.2, 1.0, (1.0, 1.0), "top-1 in %", 99.3, (98.6, 99.7), 1000, 100.0, "a CPU, 1 thread")
    >>> as_frame([row]).loc["float", "top-1 in % (95 %)"]
    '99.3 (98.6 to 99.7)'
    """
    import pandas as pd  # here: slow to import, and only pages need it

    same_metric = len({row.metric for row in rows}) == 1
    lines = {}
    for row in rows:
        low, high = (_shown(row, value) for value in row.interval)
        slow, fast = row.speed_quartiles
        quality, unit = (row.metric, "") if same_metric else ("quality", f" {row.metric}")
        lines[row.model] = {
            "MB": f"{row.size_mb:.2f}",
            "times float (quartiles)": f"{row.speed:.2f} ({slow:.2f} to {fast:.2f})",
            f"{quality} (95 %)": f"{_shown(row, row.value)} ({low} to {high}){unit}",
            "same as float in %": f"{row.agreement:.1f}",
            "engine": row.setting.rsplit("engine ", 1)[-1],
        }
        if dated:
            lines[row.model]["measured on"] = row.measured_on
    return pd.DataFrame(lines).T


def _shown(row: Row, value: float) -> str:
    return f"{value:.1f}" if row.metric.endswith("%") else f"{value:.3f}"
