"""How good a file is compared with its float model: by classes, by the reader's own score, or by outputs."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from qhelpers import guards, metrics
from qhelpers.check import calls, find, reports
from qhelpers.check.adapter import Flat
from qhelpers.check.calls import Call
from qhelpers.check.errors import CannotRunError, CheckError, DataError
from qhelpers.check.inputs import Data
from qhelpers.progress import progress_bar

TOP1, AGREEMENT, SCORE, SQNR = "top-1", "agreement", "score", "SQNR"
UNITS = {TOP1: "points", AGREEMENT: "points", SCORE: "of the score", SQNR: "dB"}
POINTS, LEAST_DB = 0.5, 20.0  # the budgets, if none is given
SCORE_SHARE = 0.01  # of float's own score
DEAD_DB = 10.0  # an output channel below it holds little but noise
KEPT_VALUES = 40_000_000  # outputs that are kept for the SQNR, in numbers: 160 MB

Run = Callable[..., tuple[Tensor, ...]]
Evaluate = Callable[[Callable[..., Any]], Any]


class EvaluateError(CheckError):
    """The reader's own ``evaluate`` fails, gives something that is not a score, or a different one each time."""


@dataclass(frozen=True)
class Answers:
    """What a model answers on some data: the class of each sample, and the outputs of the first samples."""

    classes: Tensor | None  # (n,) where the first output is (n, classes)
    outputs: list[Tensor]  # of each output, as many samples as are kept
    scores: list[float] = field(default_factory=list)  # one, or one for each sample


@dataclass(frozen=True)
class Quality:
    """An int8 model beside its float model on the same samples."""

    n: int
    exact: float | None  # float's figure: percent, or the score
    found: float | None
    lost: float | None  # points, or of the score; for an SQNR there is none
    interval: tuple[float, float] | None  # of 95 %, for what is lost
    bound: float | None  # of what is lost: with 95 % confidence no more, by data on which no choice was made
    same_percent: float | None
    sqnr_db: float  # of all outputs, the lowest
    worst_db: float  # of all channels of all outputs
    channels: list[dict[str, Any]]  # the five worst: output, channel, SQNR in dB, largest deviation (None: not finite)
    dead: list[dict[str, Any]]  # channels whose own variation is lost, where that of others is not


def collect(run: Run, flat: Flat, data: Data, doing: str, show: bool | None) -> Answers:
    """Run a model on all samples, in pieces of the example's size."""
    kept: list[list[Tensor]] = [[] for _ in flat.names]
    classes: list[Tensor] = []
    values = 0
    with torch.inference_mode():
        for call in progress_bar(data.calls(), doing=doing, unit="batch", show=show):
            for found in _in_pieces(run, flat, call.tensors):
                if found[0].ndim == 2 and found[0].shape[1] > 1 and found[0].is_floating_point():
                    classes.append(found[0].argmax(1))
                if values <= KEPT_VALUES:
                    values += sum(one.numel() for one in found)
                    for place, one in enumerate(found):
                        kept[place].append(one.clone())
    outputs = [torch.cat(parts) if parts[0].ndim else torch.stack(parts) for parts in kept]
    return Answers(torch.cat(classes) if classes else None, outputs)


def _in_pieces(run: Run, flat: Flat, tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    size = flat.example.n
    for part, real in calls.pieces(tuple(tensors), flat.example.shapes):
        outputs = run(*part)
        if (shapes := [one.shape for one in outputs]) != flat.shapes:
            raise CannotRunError(
                f"The outputs' shapes depend on the values of the inputs, and those of a file are fixed: they are "
                f"{_listed(flat.shapes)} for one input and {_listed(shapes)} for another. Return all values, and "
                f"choose among them after the model."
            )
        yield [one[:real] if real < size and one.ndim and len(one) == size else one for one in outputs]


def _listed(shapes: Sequence[torch.Size]) -> str:
    return ", ".join(str(tuple(shape)) for shape in shapes)


class Judge:
    """Compares models with the float model on one set of data; answers of the float model are taken once.

    Args:
        flat: the float model.
        data: the samples.
        evaluate: the reader's own score, from a function that is called as the model is; higher is better. It may
            give one number, or one for each sample.
        budget: what int8 may cost; if None, half a point of top-1 or of agreement, a hundredth of float's score, or
            20 dB that every channel of the outputs must have.

    Raises:
        EvaluateError: if evaluate fails, gives NaN, or differs between two calls on the float model; if there is none,
            and no output holds floating-point numbers.
        DataError: if labels are no classes of this model.
    """

    def __init__(
        self,
        flat: Flat,
        data: Data,
        evaluate: Evaluate | None = None,
        budget: float | None = None,
        show: bool | None = None,
    ) -> None:
        self.flat, self.data, self.evaluate, self.show = flat, data, evaluate, show
        self.exact = self._answers(self._float, "float model")
        if evaluate and not _same(self.exact.scores, again := self._scores(self._float)):
            raise EvaluateError(
                f"evaluate gives the float model {_shown(self.exact.scores)}, and the second time {_shown(again)}: "
                f"take the same data in the same order, without random augmentation."
            )
        self.kind = self._kind()
        self.budget: float = self._default() if budget is None else budget

    def _float(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        outputs = self.flat.outputs(*tensors)
        for name, one in zip(self.flat.names, outputs, strict=False):
            if not bool(torch.isfinite(one).all()):
                raise CannotRunError(
                    f"{self.data.name}: the float model gives NaN or infinity in {name}; check the inputs for them."
                )
        return outputs

    def _kind(self) -> str:
        if self.evaluate:
            return SCORE
        if not any(one.is_floating_point() and one.numel() for one in self.exact.outputs):
            kinds = {str(one.dtype).removeprefix("torch.") if one.numel() else "empty" for one in self.exact.outputs}
            raise EvaluateError(
                f"The model's outputs are {', '.join(sorted(kinds))}, of which no distance can be taken: return the "
                f"floating-point numbers from which they are made, or give evaluate=…"
            )
        if self.exact.classes is None:
            return SQNR
        if self.data.labels is None:
            return AGREEMENT
        count, most = self.exact.outputs[0].shape[1], int(self.data.labels.max())
        if most >= count or int(self.data.labels.min()) < 0:
            raise DataError(
                f"{self.data.name}: labels from {int(self.data.labels.min())} to {most}, and the model has {count} "
                f"outputs: labels count the model's classes from 0. If it is no classifier, give evaluate=…"
            )
        return TOP1

    def _default(self) -> float:
        if self.kind == SCORE:
            return SCORE_SHARE * abs(statistics.fmean(self.exact.scores))
        return LEAST_DB if self.kind == SQNR else POINTS

    def _answers(self, run: Run, doing: str) -> Answers:
        found = collect(run, self.flat, self.data, f"{self.data.name}, {doing}", self.show)
        return Answers(found.classes, found.outputs, self._scores(run)) if self.evaluate else found

    def _scores(self, run: Run) -> list[float]:
        assert self.evaluate is not None

        def predict(*args: Any, **kwargs: Any) -> Any:
            tensors = self.flat.inputs(Call(args, kwargs))
            if not len(tensors[0]):
                raise DataError("predict was given no sample.")
            with torch.inference_mode():
                parts = [*_in_pieces(run, self.flat, tensors)]
            return self.flat.restore(
                [torch.cat(ones) if ones[0].ndim else ones[0] for ones in zip(*parts, strict=True)]
            )

        try:
            given = self.evaluate(predict)
        except Exception as error:  # whatever a stranger's code raises
            raise EvaluateError(f"evaluate failed: {type(error).__name__}: {guards.first_line(error)}") from error
        try:
            scores = [float(one) for one in torch.as_tensor(given).flatten().tolist()]
        except (TypeError, ValueError, RuntimeError) as error:
            kind = type(given).__name__
            raise EvaluateError(f"evaluate must return a number, or one for each sample; it gave {kind}.") from error
        if not scores or not all(map(math.isfinite, scores)):
            raise EvaluateError(
                f"evaluate must return numbers; it gave {'nothing' if not scores else 'NaN or infinity'}."
            )
        return scores

    def judge(self, run: Run, doing: str = "int8 file", chosen_on: bool = True) -> Quality:
        """Compare a model with the float model.

        Args:
            run: takes the tensors of a call, gives all outputs.
            doing: for the progress bar.
            chosen_on: whether a choice was made on these data: then no bound is given.
        """
        found, exact = self._answers(run, doing), self.exact
        per_output: list[float] = []
        channels: list[dict[str, Any]] = []
        for name, one, other in zip(self.flat.names, exact.outputs, found.outputs, strict=True):
            if not one.is_floating_point() or not one.numel():
                continue
            per_output.append(sqnr_db(one, other))
            channels += [
                {"output": name, "channel": c, "sqnr_db": db, "deviation": d if math.isfinite(d) else None}
                for c, db, d in find.channels(one, other)
            ]
        channels.sort(key=lambda row: float(row["sqnr_db"]))
        worst = float(channels[0]["sqnr_db"]) if channels else math.inf
        same = None
        if exact.classes is not None and found.classes is not None:
            same = 100 * float((exact.classes == found.classes).double().mean())
        n, lost, interval, bound = self.data.n, None, None, None
        before: float | None = None
        after: float | None = None
        if self.kind == SCORE:
            if len(exact.scores) != len(found.scores):
                raise EvaluateError(
                    f"evaluate gives {len(exact.scores)} scores for the float model and {len(found.scores)} for the "
                    f"{doing}: it must return a number, or one for each sample."
                )
            n = len(exact.scores) if len(exact.scores) > 1 else n
            before, after = statistics.fmean(exact.scores), statistics.fmean(found.scores)
            lost, interval = before - after, _interval(exact.scores, found.scores)
        elif self.kind == AGREEMENT:
            assert same is not None
            before, after, lost = 100.0, same, 100 - same
            interval, bound = _changed(round(n * lost / 100), n)
        elif self.kind == TOP1:
            assert exact.classes is not None
            assert found.classes is not None
            assert self.data.labels is not None
            answers = exact.classes, found.classes
            before, after = (100 * float((one == self.data.labels).double().mean()) for one in answers)
            lost = before - after
            interval, bound = _paired(*answers, self.data.labels)
        if chosen_on:
            bound = None
        return Quality(
            n,
            before,
            after,
            lost,
            interval,
            bound,
            same,
            min(per_output, default=math.inf),
            worst,
            channels[:5],
            self._dead(found, channels),
        )

    def keeps(self, quality: Quality) -> bool:
        """Whether what is lost is within the budget; without labels no output channel may be dead, either."""
        if self.kind == SQNR:
            return quality.worst_db >= self.budget
        assert quality.lost is not None
        return quality.lost <= self.budget + reports.SLACK and not quality.dead

    def _dead(self, found: Answers, channels: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Channels that hold little but noise, where no labels and no score say that this does not matter.

        A channel's signal is what it varies by, not where it lies; and where all channels vary by little more than the
        noise, as those of an untrained network do, none stands out. (Of a detector's, most may be dead.)
        """
        if self.kind != AGREEMENT:
            return []
        broken = [row for row in channels if row["deviation"] is None]
        exact, other = self.exact.outputs[0].double(), found.outputs[0].double()
        noise = (other - exact).square().mean(0)
        varies = 10 * torch.log10((exact - exact.mean(0)).square().mean(0) / noise.clamp(min=1e-30))
        if not float(varies.nan_to_num(nan=-math.inf).max()) >= 2 * DEAD_DB:
            return broken
        lost = {c for c, db in enumerate(varies.tolist()) if db < DEAD_DB and noise[c] > 0}
        rows = [row for row in channels if row["output"] == self.flat.names[0] and row["channel"] in lost]
        return broken or [row for row in rows if row["sqnr_db"] < DEAD_DB]

    def better(self, one: Quality, other: Quality) -> bool:
        """Whether one is better than the other: within the budget, then less lost, then more decibels."""
        return self._rank(one) > self._rank(other)

    def _rank(self, quality: Quality) -> tuple[float, ...]:
        lost = 0.0 if quality.lost is None else quality.lost
        worst = quality.worst_db if self.kind == SQNR or quality.dead else math.inf
        return self.keeps(quality), -lost, worst, quality.sqnr_db


def sqnr_db(exact: Tensor, found: Tensor) -> float:
    """SQNR of an output in dB; minus infinity where it holds NaN or infinity."""
    return metrics.sqnr_db(exact, found) if bool(torch.isfinite(found).all()) else -math.inf


def _same(scores: Sequence[float], others: Sequence[float]) -> bool:
    """Whether scores are equal but for the last digits, which depend on the order of sums."""
    return len(scores) == len(others) and all(
        math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9) for one, other in zip(scores, others, strict=True)
    )


def _shown(scores: Sequence[float]) -> str:
    return f"{statistics.fmean(scores):.7g}" + (f" on average of {len(scores)}" if len(scores) > 1 else "")


def _paired(exact: Tensor, found: Tensor, labels: Tensor) -> tuple[tuple[float, float] | None, float | None]:
    """The interval of the points lost and their upper bound.

    Where all pairs have one outcome there is no interval; that none of n is lost bounds the share that would be.
    """
    try:
        pair = metrics.paired(exact, found, labels)
    except ValueError:
        return None, _changed(0, len(labels))[1] if torch.equal(exact == labels, found == labels) else None
    return (-pair.interval[1], -pair.interval[0]), max(0.0, -pair.bound)


def _changed(count: int, n: int) -> tuple[tuple[float, float], float]:
    """The interval of the share of answers that change, and its upper bound, in percent (Clopper and Pearson 1934)."""
    test = stats.binomtest(count, n)
    low, high = test.proportion_ci(0.95, method="exact")
    return (100 * float(low), 100 * float(high)), 100 * float(test.proportion_ci(0.9, method="exact").high)


def _interval(exact: Sequence[float], found: Sequence[float]) -> tuple[float, float] | None:
    """A bootstrap interval of the mean loss in pairs; None of a single score, and where all samples lose the same."""
    lost = np.subtract(exact, found)
    if np.ptp(lost) == 0:
        return None
    done = stats.bootstrap((lost,), np.mean, n_resamples=2000, rng=np.random.default_rng(0), method="percentile")
    return float(done.confidence_interval.low), float(done.confidence_interval.high)
