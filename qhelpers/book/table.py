"""One table for the whole book: what each chapter's models weigh, how fast they are, and how good.

A chapter writes its rows while it runs; the page of all models reads those of all chapters, and refuses what is missing
or damaged. Whether a chapter's rows are current is the runner's business; without one, rows are shown with their date.
"""

import datetime
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd
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
    speed: benchmark.Ratio  # times the float model in the same runtime, prepared as well; above 1 is faster
    best: benchmark.Ratio  # times the best float path of the same run
    best_float: str  # which one that was
    metric: str  # a key of METRICS
    value: float
    interval: tuple[float, float]  # 95 %
    n: int  # images or characters behind the value
    paired: (
        metrics.Paired | None
    )  # with the float model; None for that model itself, and where no answer differs in kind
    sqnr_db: float | None  # of the outputs against the float model's; None for that model itself
    agreement: float  # with the float model, in %
    setting: str  # CPU, threads, engine
    measured_on: str = field(default_factory=lambda: datetime.date.today().isoformat())

    def __post_init__(self) -> None:
        numbers = {"size_mb": self.size_mb, "value": self.value, "agreement": self.agreement}
        if self.sqnr_db is not None:
            numbers["sqnr_db"] = self.sqnr_db
        for name, number in numbers.items():
            if not math.isfinite(number):
                raise RowError(f"Row {self.model!r}: {name} is {number}.")
        if self.metric not in METRICS:
            raise RowError(f"Row {self.model!r}: there is no metric {self.metric!r}; known: {', '.join(METRICS)}.")
        least, most = METRICS[self.metric]
        checks = {
            "model": bool(self.model.strip()),
            "size_mb": self.size_mb > 0,
            "best_float": bool(self.best_float.strip()),
            "interval": least <= self.interval[0] <= self.value <= self.interval[1] <= most,
            "n": type(self.n) is int and self.n > 0,
            "paired": self.paired is None or _possible(self.paired),
            "agreement": 0 <= self.agreement <= 100,
            "setting": bool(self.setting.strip()),
        }
        for name, good in checks.items():
            if not good:
                raise RowError(f"Row {self.model!r}: {name} cannot be {getattr(self, name)!r}.")


def _possible(paired: metrics.Paired) -> bool:
    counts = (paired.lost, paired.won, paired.n)
    low, high = paired.interval
    numbers = (paired.difference, low, high, paired.bound, paired.p_value)
    if not all(type(count) is int and count >= 0 for count in counts) or paired.lost + paired.won > paired.n:
        return False
    return all(isinstance(x, int | float) and math.isfinite(x) for x in numbers) and 0 <= paired.p_value <= 1


def compare(
    candidates: Mapping[str, nn.Module],
    loader: Iterable[tuple[Tensor, Tensor]],
    latency: benchmark.Comparison,
    *,
    floats: Sequence[str],
    own: str | Mapping[str, str],
    engine_of: Mapping[str, str] | None = None,
    sizes: Mapping[str, float] | None = None,
) -> list[Row]:
    """Size, speed, top-1 and difference to float of classifiers that do the same job.

    Args:
        candidates: name to model in evaluation mode, or to any callable; the first one is the float model that the
            others are compared with.
        loader: labelled batches.
        latency: in which each candidate was timed under its name, beside the float paths.
        floats: names of the float paths in ``latency``: the fastest of them is the best float.
        own: the float path of a candidate's own runtime, by its name, or one for all.
        engine_of: the engine under which a model runs, by its name; if it is not named, the one that is set.
        sizes: in MB, by name, of candidates that are no modules.

    Raises:
        ValueError: if there is no candidate or no image, ``engine_of`` or ``sizes`` names no candidate, the size or own
            float path of one is unknown, the labels have not the shape ``(n,)``, or a candidate gives no finite logits
            of the first one's shape.
        BenchmarkError: if ``latency`` has no such candidate or float path.
        EngineError: if this build lacks an engine.
        GuardError: if a model is in training mode.

    >>> model = nn.Linear(4, 2).eval()
    >>> timed = benchmark.compare_latency({"float": lambda: model(torch.eye(4))}, rounds=2, progress=False)
    >>> rows = compare({"float": model}, [(torch.eye(4), torch.zeros(4))], timed, floats=["float"], own="float")
    >>> [(row.model, row.agreement, row.best.value) for row in rows]
    [('float', 100.0, 1.0)]
    """
    chosen, megabytes = dict(engine_of or {}), dict(sizes or {})
    for argument, named in (("engine_of", chosen), ("sizes", megabytes)):
        if unknown := set(named) - set(candidates):
            raise ValueError(f"{argument} names no candidate: {', '.join(sorted(unknown))}.")
    if not candidates:
        raise ValueError("There is nothing to compare: give at least one candidate.")
    batches = list(loader)
    if not any(len(wanted) for _, wanted in batches):
        raise ValueError("The loader yielded no image: there is nothing to compare on.")
    labels = torch.cat([wanted for _, wanted in batches])
    if labels.ndim != 1:
        raise ValueError(f"The labels must have the shape (n,); got {tuple(labels.shape)}.")
    for name, model in candidates.items():
        if isinstance(model, nn.Module):
            guards.require_eval(model)
        elif name not in megabytes:
            raise ValueError(f"{name} is no module, so its size is not known: give it in sizes.")
        if not isinstance(own, str) and name not in own:
            raise ValueError(f"own names no float path for {name}.")

    def logits(name: str) -> Tensor:
        with engines.using_engine(chosen[name]) if name in chosen else nullcontext():
            return _logits(name, candidates[name], batches)

    with torch.inference_mode():
        outputs = {name: logits(name) for name in candidates}
    first, exact = next(iter(outputs.items()))
    for name, found in outputs.items():
        if found.shape != exact.shape:
            raise ValueError(f"{name} gives {found.shape[1]} classes, {first} gives {exact.shape[1]}.")
    where = latency.setting.rsplit(", engine", 1)[0]
    best_float = latency.fastest(floats)
    rows = []
    for name, model in candidates.items():
        answers = outputs[name].argmax(1)
        share = metrics.Share(int((answers == labels).sum()), len(labels))
        rows.append(
            Row(
                model=name,
                size_mb=megabytes[name] if name in megabytes else size.size_mb(model),
                speed=latency.ratio(name, own if isinstance(own, str) else own[name]),
                best=latency.ratio(name, best_float),
                best_float=best_float,
                metric="top-1 in %",
                value=share.percent,
                interval=share.interval,
                n=share.n,
                paired=paired_or_none(exact, outputs[name], labels),
                sqnr_db=None if torch.equal(outputs[name], exact) else metrics.sqnr_db(exact, outputs[name]),
                agreement=100 * float((answers == exact.argmax(1)).double().mean()),
                setting=f"{where}, engine {chosen.get(name, torch.backends.quantized.engine)}",
            )
        )
    return rows


def _logits(name: str, model: Callable[[Tensor], Any], batches: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """A model's answers to all images; its name appears in errors about answers that are none."""
    outputs = []
    for images, labels in batches:
        found = model(images)
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(labels):
            what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise ValueError(f"{name} gives {what} for {len(labels)} images, not logits of shape (images, classes).")
        if not torch.isfinite(found).all():
            raise ValueError(f"{name} gives logits that are not finite.")
        outputs.append(found)
    return torch.cat(outputs)


def paired_or_none(exact: Tensor, found: Tensor, labels: Tensor) -> metrics.Paired | None:
    """The paired comparison of two outputs; None of the float model with itself, or where all pairs end alike."""
    try:
        return None if found is exact else metrics.paired(exact, found, labels)
    except ValueError:
        if not len(exact) == len(found) == len(labels):
            raise
        return None


def speeds(
    name: str, label: str, latency: benchmark.Comparison, *, floats: Sequence[str], own: str | Mapping[str, str | None]
) -> pd.DataFrame:
    """A table of speed with both ratios, to be shown; its ratios are recorded, so that they can be measured again.

    Args:
        name: of the chapter's notebook, without ending: several chapters may leave their results in one folder.
        label: what sets this table apart from others of the chapter, in words with hyphens, such as ``one-image``.
        latency: as measured.
        floats: names of the float paths: the fastest of them is the best float.
        own: the float path of the same runtime for each candidate that is no float path, by its name, or one for all;
            None where it has none.

    Raises:
        ValueError: if ``name`` or ``label`` cannot be part of a file's name.
        BenchmarkError: if ``latency`` has no such candidate or float path.
        WriteError: if the results folder cannot be written.

    >>> same = lambda: None
    >>> timed = benchmark.compare_latency({"float": same, "int8": same}, rounds=2, progress=False)
    >>> list(speeds("doctest", "one-image", timed, floats=["float"], own="float").columns)
    ['ms', 'cold ms', '× float in this runtime', '× best float here']
    """
    for text in (name, label):
        if not re.fullmatch(r"[\w-]+", text):  # a slash would lead out of the results folder
            raise ValueError(f"A table is kept in a file called after {text!r}: use letters, digits and hyphens only.")
    best = latency.fastest(floats)
    own_of = _own_paths(own, latency.names, floats)
    lines: dict[str, dict[str, str]] = {}
    kept: list[dict[str, Any]] = []
    for one in latency.names:
        ratios = {"× float in this runtime": None if one in floats else own_of.get(one)}
        ratios["× best float here"] = best
        lines[one] = {"ms": f"{latency.steady_ms(one):.2f}", "cold ms": f"{latency.cold_ms(one):.2f}"}
        rivals = dict.fromkeys([*floats, *filter(None, ratios.values())])  # another one may be the best next time
        against = {over: latency.ratio(one, over) for over in rivals if over != one}
        for column, over in ratios.items():
            lines[one][column] = "–" if over is None else "1 (the best)" if one == over else str(against[over])
        for over, ratio in against.items():
            kept.append({"name": one, "over": over, "printed": over in ratios.values(), **asdict(ratio)})
    processes = len(latency.processes)
    chapter.record(f"speeds-{name}-{label}", {"label": label, "processes": processes, "ratios": kept})
    frame = pd.DataFrame(lines).T
    frame.columns.name = f"times faster; best float: {best}"
    return frame


def _own_paths(
    own: str | Mapping[str, str | None], names: Sequence[str], floats: Sequence[str]
) -> Mapping[str, str | None]:
    of_each = dict.fromkeys(names, own) if isinstance(own, str) else own
    for name, path in of_each.items():
        if name not in names:
            raise benchmark.BenchmarkError(f"own names no candidate: {name}; there are {', '.join(names)}.")
        if path is not None and path not in floats:
            raise benchmark.BenchmarkError(f"own names no float path: {path}; there are {', '.join(floats)}.")
    return of_each


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


def read_rows(name: str, expected: Sequence[str] | None = None) -> list[Row]:
    """The rows that a chapter has left where this page may gather them, checked.

    Args:
        name: the notebook's name without ending.
        expected: names of the models that must be there, in this order; all that are there if None.

    Raises:
        RowError: if the chapter has not run, is not current (where the runner says so), or lacks an expected row;
            if the file is damaged or a row is impossible.

    >>> read_rows("no-such-chapter", ["float"])
    Traceback (most recent call last):
        ...
    qhelpers.book.table.RowError: The chapter no-such-chapter has left no current rows: run it first.
    """
    path = _gathered(name, f"rows-{name}.json")
    if path is None:
        raise RowError(f"The chapter {name} has left no current rows: run it first.")
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        rows = [Row(**{own.name: _value(own.name, row[own.name]) for own in fields(Row)}) for row in kept["rows"]]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise RowError(f"{path.name} is damaged ({type(error).__name__}: {error}): run {name} again.") from error
    found = {row.model: row for row in rows}
    expected = [*found] if expected is None else expected
    if missing := [model for model in expected if model not in found]:
        raise RowError(f"The chapter {name} has left no row for {', '.join(missing)}.")
    return [found[model] for model in expected]


def read_speeds(name: str, label: str) -> dict[tuple[str, str], benchmark.Ratio]:
    """The ratios of a table of speed that a chapter has left where this page may gather them.

    Args:
        name: of the notebook, without ending.
        label: of the table, as the chapter gave it to :func:`speeds`.

    Returns:
        For each candidate and float path, such as ``("int8, x86", "float ONNX Runtime")``, how many times faster the
        first is.

    Raises:
        RowError: if the chapter has not run or is not current, or the file is damaged.

    >>> read_speeds("no-such-chapter", "one-image")
    Traceback (most recent call last):
        ...
    qhelpers.book.table.RowError: The chapter no-such-chapter has left no current speeds one-image: run it first.
    """
    path = _gathered(name, f"speeds-{name}-{label}.json")
    if path is None:
        raise RowError(f"The chapter {name} has left no current speeds {label}: run it first.")
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return {
            (one["name"], one["over"]): benchmark.Ratio(
                one["value"], one["low"], one["high"], one["kind"], one["noise"]
            )
            for one in kept["ratios"]
        }
    except (ValueError, KeyError, TypeError) as error:
        raise RowError(f"{path.name} is damaged ({type(error).__name__}: {error}): run {name} again.") from error


def _gathered(name: str, file: str) -> Path | None:
    """Where a chapter has left a file; a runner gives each chapter a folder of its own, named after it."""
    folders = chapter.gathered_folders()
    if chapter.has_runner():
        folders = [folder for folder in folders if folder.name == name]
    return next((folder / file for folder in folders if (folder / file).is_file()), None)


def _value(name: str, value: Any) -> Any:
    if name in ("speed", "best"):
        return benchmark.Ratio(**value)
    if name == "paired" and value is not None:
        return metrics.Paired(**{key: _value(key, one) for key, one in value.items()})
    return tuple(value) if isinstance(value, list) else value


def as_frame(rows: Sequence[Row], dated: bool = False) -> pd.DataFrame:
    """The rows as a pandas DataFrame to be shown.

    Args:
        rows: of one chapter.
        dated: with the day on which each was measured.

    >>> one = benchmark.Ratio(1.0, 1.0, 1.0, "range of 2 processes")
    >>> row = Row("float", 9.2, one, one, "float", "top-1 in %", 99.3, (98.6, 99.7), 1000, None, None, 100.0, "a CPU")
    >>> as_frame([row]).loc["float", "top-1 in % (95 %)"]
    '99.3 (98.6 to 99.7)'
    """
    same_metric = len({row.metric for row in rows}) == 1
    lines = []
    for row in rows:
        low, high = (_shown(row, value) for value in row.interval)
        quality, unit = (row.metric, "") if same_metric else ("quality", f" {row.metric}")
        line = {
            "MB": f"{row.size_mb:.2f}",
            "× float in this runtime": str(row.speed),
            "× best float here": str(row.best),
            f"{quality} (95 %)": f"{_shown(row, row.value)} ({low} to {high}){unit}",
            "difference to float (paired 95 %)": str(row.paired) if row.paired else "–",
            "SQNR in dB": "–" if row.sqnr_db is None else f"{row.sqnr_db:.1f}",
            "engine or runtime": row.setting.rsplit("engine ", 1)[-1],
        }
        if dated:
            line["measured on"] = row.measured_on
        lines.append(line)
    return pd.DataFrame(lines, index=[row.model for row in rows])  # two chapters may have a model of one name


def under_table(rows: Sequence[Row]) -> str:
    """What the intervals of the speeds cover, and which float path was the best: a sentence to put under the table.

    >>> one = benchmark.Ratio(1.0, 1.0, 1.0, "range of 2 processes")
    >>> row = Row("a", 9.2, one, one, "ORT", "top-1 in %", 99.3, (98.6, 99.7), 1000, None, None, 100.0, "a CPU")
    >>> under_table([row])
    'a CPU. Speed in brackets: range of 2 processes. Best float: ORT.'
    """
    settings = " | ".join(dict.fromkeys(row.setting.rsplit(", engine", 1)[0] for row in rows))
    kinds = " | ".join(dict.fromkeys(row.speed.kind for row in rows))
    best = " | ".join(dict.fromkeys(row.best_float for row in rows))
    return f"{settings}. Speed in brackets: {kinds}. Best float: {best}."


def _shown(row: Row, value: float) -> str:
    return f"{value:.1f}" if row.metric.endswith("%") else f"{value:.3f}"
