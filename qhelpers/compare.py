"""One table for the whole book: what each chapter's models weigh, how fast they are, and how good.

A chapter writes its rows while it runs; the introduction reads those of all chapters and refuses rows that
are missing, damaged, or older than what they were made from.
"""

import hashlib
import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from qhelpers import benchmark, engines, metrics, models, reports, size, text

BOOK = Path(__file__).parents[1] / "book"
METRICS = {"top-1 in %": (0.0, 100.0), "bits a character": (0.0, 64.0)}


class RowError(ValueError):
    """A row of the comparison table is incomplete or impossible."""


class MissingRowsError(RowError):
    """A chapter has not left the rows that are expected of it."""


class StaleRowsError(RowError):
    """A chapter, the helpers or PyTorch have changed since the rows were made."""


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
        TrainingModeError: if a model is in training mode.

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
        models.require_eval(model)

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


def sources_hash(chapter: str) -> str:
    """Hash of what a chapter's rows follow from: cells, helpers, checkpoints, text, versions and processor.

    >>> sources_hash("static-quantization") == sources_hash("dynamic-quantization")
    False
    """
    versions = f"{platform.python_version()} {torch.__version__} {torchvision.__version__}"
    digest = hashlib.sha256(f"{chapter} {versions} {reports.cpu_name()} {text.text_sha256()}".encode())
    notebook = BOOK / f"{chapter}.ipynb"
    if notebook.is_file():  # only the cells: a notebook that is open in JupyterLab is saved with its outputs
        digest.update(json.dumps([cell["source"] for cell in json.loads(notebook.read_text())["cells"]]).encode())
    package = Path(__file__).parent
    for path in sorted([*package.glob("*.py"), package / "weights" / "SHA256SUMS"]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def write_rows(chapter: str, rows: Sequence[Row]) -> None:
    """Keep a chapter's rows in its results folder.

    Raises:
        MissingRowsError: if there is none.
        RowError: if two have the same name.

    >>> write_rows("doctest", [])
    Traceback (most recent call last):
        ...
    qhelpers.compare.MissingRowsError: The chapter doctest gives no rows for the comparison table.
    """
    if not rows:
        raise MissingRowsError(f"The chapter {chapter} gives no rows for the comparison table.")
    names = [row.model for row in rows]
    if len(set(names)) < len(names):
        raise RowError(f"Two rows of {chapter} have the same name: {', '.join(names)}.")
    kept = {"chapter": chapter, "sources": sources_hash(chapter), "rows": [asdict(row) for row in rows]}
    reports.write_whole(reports.results_folder() / f"rows-{chapter}.json", json.dumps(kept, indent=1))


def read_rows(chapter: str, expected: Sequence[str], folder: Path = reports.ALL_RESULTS) -> list[Row]:
    """The rows that a chapter has left, checked.

    What a notebook run by hand has left counts only where the book's runner has not run that chapter, and
    never on the pages that the runner makes.

    Args:
        chapter: the notebook's name without ending.
        expected: names of the models that must be there, in this order.
        folder: of all results.

    Raises:
        MissingRowsError: if the chapter has not run, or lacks an expected row.
        StaleRowsError: if the rows come from other sources than those that are there now.
        RowError: if the file is damaged or a row is impossible.

    >>> read_rows("no-such-chapter", ["float"])
    Traceback (most recent call last):
        ...
    qhelpers.compare.MissingRowsError: The chapter no-such-chapter has left no rows: run it first.
    """
    places = [chapter] if "QHELPERS_RESULTS" in os.environ else [chapter, "by-hand"]
    path = next((p for place in places if (p := folder / place / f"rows-{chapter}.json").is_file()), None)
    if path is None:
        raise MissingRowsError(f"The chapter {chapter} has left no rows: run it first.")
    try:
        kept: dict[str, Any] = json.loads(path.read_text())
        rows = [Row(**{field.name: _value(row[field.name]) for field in fields(Row)}) for row in kept["rows"]]
        stale = kept["sources"] != sources_hash(chapter)
    except (json.JSONDecodeError, KeyError, TypeError, IndexError) as error:
        raise RowError(f"{path.name} is damaged ({type(error).__name__}: {error}): run {chapter} again.") from error
    if stale:
        raise StaleRowsError(f"The rows of {chapter} come from other sources than the present ones: run it again.")
    found = {row.model: row for row in rows}
    if missing := [name for name in expected if name not in found]:
        raise MissingRowsError(f"The chapter {chapter} has left no row for {', '.join(missing)}.")
    return [found[name] for name in expected]


def _value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def as_frame(rows: Sequence[Row]) -> Any:
    """The rows as a pandas DataFrame to be shown.

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
    return pd.DataFrame(lines).T


def _shown(row: Row, value: float) -> str:
    return f"{value:.1f}" if row.metric.endswith("%") else f"{value:.3f}"
