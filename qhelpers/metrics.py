"""Quality of a model: top-1 with its interval, two models on the same data in pairs, signal to quantization noise."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from scipy import optimize
from scipy.stats import binomtest
from torch import Tensor, nn

from qhelpers import guards
from qhelpers.progress import progress_bar

Classifier = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Share:
    """A share of n cases, with its 95 % interval."""

    hits: int
    n: int

    @property
    def percent(self) -> float:
        """The share in percent."""
        return 100 * self.hits / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval in percent."""
        return wilson_interval(self.hits, self.n)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.percent:.1f} % ({low:.1f} to {high:.1f}, n = {self.n:,})"


def wilson_interval(hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a proportion, in percent (Wilson 1927; computed by SciPy).

    Raises:
        ValueError: if ``n`` is not positive or ``hits`` does not lie between 0 and ``n``.

    >>> low, high = wilson_interval(990, 1000)
    >>> f"{low:.1f} {high:.1f}"
    '98.2 99.5'
    """
    if n < 1 or not 0 <= hits <= n:
        raise ValueError(f"An interval needs 0 <= hits <= n and n >= 1; got hits={hits}, n={n}.")
    bounds = binomtest(hits, n).proportion_ci(confidence, method="wilson")
    return 100 * float(bounds.low), 100 * float(bounds.high)


@dataclass(frozen=True)
class Paired:
    """Two models on the same cases: what the second one lost and won against the first."""

    lost: int  # cases on which only the first is right, or is better
    won: int
    n: int
    difference: float  # second minus first: of shares in points, of means in their unit
    interval: tuple[float, float]  # 95 %
    bound: float  # one-sided 95 %: the second is not worse than by this
    p_value: float  # of an exact test of "no difference"
    unit: str = "points"

    def __str__(self) -> str:
        digits, (low, high) = 1 if self.unit == "points" else 3, self.interval
        return (
            f"{self.difference:+.{digits}f} {self.unit} ({low:+.{digits}f} to {high:+.{digits}f}); "
            f"{self.lost} lost, {self.won} won of {self.n:,}, {self.p}"
        )

    @property
    def p(self) -> str:
        """The p value as it is printed."""
        return "p < 0.001" if self.p_value < 0.001 else f"p = {self.p_value:.{3 if self.p_value < 0.1 else 2}f}"

    @property
    def shown(self) -> bool:
        """Whether the test shows a difference, at 5 %."""
        return self.p_value < 0.05

    @property
    def worse(self) -> bool:
        """Whether the test shows, at 5 %, that the second one is worse."""
        return self.shown and self.lost > self.won


def paired(
    first: Tensor, second: Tensor, labels: Tensor, ids: tuple[Sequence[int], Sequence[int]] | None = None
) -> Paired:
    """Compare two classifiers on the same images, in pairs.

    The p value is McNemar's in its exact form, the interval of the difference Tango's score interval, which holds at
    few or no discordant pairs, too.
    Source: McNemar 1947; Tango 1998, "Equivalence test and confidence interval for the difference in proportions for
    the paired-sample design".

    Args:
        first: classes ``(n,)``, or logits ``(n, classes)``, usually the float model's.
        second: the same for the other model, of the same images in the same order.
        labels: the right classes ``(n,)``.
        ids: which images the first and the second answers belong to, where that is known.

    Raises:
        ValueError: if the lengths, the shapes or the ids differ, or there is no image; if all pairs have the same
            outcome, such as both right, which can show no difference: a ceiling is no evidence.

    >>> labels = torch.arange(10)
    >>> print(paired(labels, torch.where(labels < 3, 9, labels), labels))
    -30.0 points (-60.3 to +6.1); 3 lost, 0 won of 10, p = 0.25
    """
    if len({len(first), len(second), len(labels)}) > 1:
        raise ValueError(
            f"Pairs need the same images in the same order; got {len(first)}, {len(second)} answers and {len(labels)} "
            f"labels."
        )
    if ids is not None:
        if {len(ids[0]), len(ids[1])} != {len(labels)}:
            raise ValueError(f"{len(labels)} pairs need as many ids; got {len(ids[0])} and {len(ids[1])}.")
        if places := [i for i, (a, b) in enumerate(zip(*ids, strict=True)) if a != b]:
            raise ValueError(f"The answers are in another order: first at place {places[0]}. Pairs need the same one.")
    one, other = (_right(answers, labels) for answers in (first, second))
    n, lost, won = len(labels), int((one & ~other).sum()), int((other & ~one).sum())
    outcomes = {"both right": int((one & other).sum()), "both wrong": int((~one & ~other).sum())}
    outcomes |= {"lost": lost, "won": won}
    seen = [name for name, count in outcomes.items() if count]
    if len(seen) < 2:
        raise ValueError(
            f"All {n} pairs have the same outcome ({', '.join(seen) or 'there is none'}): no difference can be tested. "
            f"Take more or harder images, or compare the logits."
        )
    return Paired(
        lost=lost,
        won=won,
        n=n,
        difference=100 * (won - lost) / n,
        interval=(100 * _tango(won, lost, n, -1.959964), 100 * _tango(won, lost, n, 1.959964)),
        bound=100 * _tango(won, lost, n, -1.644854),
        p_value=float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0,
    )


def _right(answers: Tensor, labels: Tensor) -> Tensor:
    """Which of the answers, classes ``(n,)`` or logits ``(n, classes)``, are the labels ``(n,)``."""
    chosen = answers.argmax(1) if answers.ndim == 2 else answers
    if chosen.ndim != 1 or chosen.shape != labels.shape:
        raise ValueError(
            f"Each answer needs one label: answers of shape {tuple(answers.shape)} and labels of shape "
            f"{tuple(labels.shape)} do not go together."
        )
    return chosen == labels


def _tango(won: int, lost: int, n: int, z: float) -> float:
    """The difference of two paired proportions at which the score statistic is ``-z``: a limit of the interval."""

    def excess(difference: float) -> float:
        middle = (2 * n - won + lost) * difference - won - lost
        product = lost * difference * (1 - difference)
        rest = (math.sqrt(max(middle**2 + 8 * n * product, 0.0)) - middle) / (4 * n)
        variance = n * (2 * rest + difference * (1 - difference))
        gap = won - lost - n * difference
        return gap / math.sqrt(variance) + z if variance > 0 else math.copysign(math.inf, gap)

    edge = 1 - 1e-12
    low, high = excess(-edge), excess(edge)
    if low * high > 0:  # all pairs are lost, or all won
        return math.copysign(1.0, z)
    return float(optimize.brentq(excess, -edge, edge, xtol=1e-10))


def top1(model: Classifier, loader: Iterable[tuple[Tensor, Tensor]]) -> Share:
    """How often the class with the highest logit is the label.

    Args:
        model: maps ``(n, …)`` to logits ``(n, classes)``.
        loader: yields ``(images, labels)``.

    Raises:
        ValueError: if the loader is empty, or a batch does not have one label for each image.
        guards.GuardError: if a module is in training mode; its figures would be another model's.

    >>> print(top1(lambda x: x, [(torch.eye(4), torch.tensor([0, 1, 2, 0]))]))
    75.0 % (30.1 to 95.4, n = 4)
    """
    if isinstance(model, nn.Module):
        guards.require_eval(model)
    hits = n = 0
    with torch.inference_mode():
        for images, labels in progress_bar(loader, doing="measuring", unit="batch"):
            outcomes = _right(model(images), labels)
            if outcomes.shape != (len(images),):
                raise ValueError(f"{len(images)} images need as many answers; got {tuple(outcomes.shape)}.")
            hits += int(outcomes.sum())
            n += len(images)
    if n == 0:
        raise ValueError("The loader yielded no image: there is nothing to measure.")
    return Share(hits, n)


def sqnr_db(reference: Tensor, approximation: Tensor) -> float:
    """Signal-to-quantization-noise ratio, 10 log10(sum(reference²) / sum((reference - approximation)²)), in dB.

    Source: Nagel et al. 2021, "A White Paper on Neural Network Quantization". Infinite for equal tensors.

    Raises:
        ValueError: if the shapes differ, the tensors are empty, or their numbers are complex.

    >>> round(sqnr_db(torch.ones(10), 0.9 * torch.ones(10)), 3)
    20.0
    """
    if reference.shape != approximation.shape:
        raise ValueError(f"Shapes differ: {tuple(reference.shape)} and {tuple(approximation.shape)}.")
    if reference.numel() == 0 or reference.is_complex() or approximation.is_complex():
        raise ValueError(f"SQNR needs real numbers, at least one; got {reference.numel()} of {reference.dtype}.")
    exact, rounded = reference.detach().double(), approximation.detach().double()
    signal = float(exact.square().sum())
    noise = float((exact - rounded).square().sum())
    if noise == 0:
        return math.inf
    return 10 * (math.log10(signal) - math.log10(noise)) if signal and not math.isinf(noise) else -math.inf
