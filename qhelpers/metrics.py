"""Quality of a model: top-1 with its interval, agreement, signal to quantization noise."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
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


def _count(
    loader: Iterable[tuple[Tensor, Tensor]], hits: Callable[[Tensor, Tensor], Tensor], *used: Classifier
) -> Share:
    for model in used:
        if isinstance(model, nn.Module):
            guards.require_eval(model)
    found = n = 0
    with torch.inference_mode():
        for images, labels in progress_bar(loader, doing="measuring", unit="batch"):
            found += int(hits(images, labels).sum())
            n += len(images)
    if n == 0:
        raise ValueError("The loader yielded no image: there is nothing to measure.")
    return Share(found, n)


def top1(model: Classifier, loader: Iterable[tuple[Tensor, Tensor]]) -> Share:
    """How often the class with the highest logit is the label.

    Args:
        model: maps ``(n, …)`` to logits ``(n, classes)``.
        loader: yields ``(images, labels)``.

    Raises:
        ValueError: if the loader is empty.
        guards.GuardError: if a module is in training mode; its figures would be of another model.

    >>> print(top1(lambda x: x, [(torch.eye(4), torch.tensor([0, 1, 2, 0]))]))
    75.0 % (30.1 to 95.4, n = 4)
    """
    return _count(loader, lambda images, labels: model(images).argmax(1) == labels, model)


def agreement(one: Classifier, other: Classifier, loader: Iterable[Any]) -> Share:
    """How often two models choose the same class, right or wrong.

    Raises:
        ValueError: if the loader is empty.
        guards.GuardError: if a module is in training mode; its figures would be of another model.

    >>> agreement(lambda x: x, lambda x: -x, [(torch.eye(2), None)]).percent
    0.0
    """
    return _count(loader, lambda images, _: one(images).argmax(1) == other(images).argmax(1), one, other)


def sqnr_db(reference: Tensor, approximation: Tensor) -> float:
    """Signal-to-quantization-noise ratio, 10 log10(sum(reference²) / sum((reference - approximation)²)), in dB.

    Source: Nagel et al. 2021, "A White Paper on Neural Network Quantization". Infinite for equal tensors.

    Raises:
        ValueError: if the shapes differ.

    >>> round(sqnr_db(torch.ones(10), 0.9 * torch.ones(10)), 3)
    20.0
    """
    if reference.shape != approximation.shape:
        raise ValueError(f"Shapes differ: {tuple(reference.shape)} and {tuple(approximation.shape)}.")
    exact, rounded = reference.detach().double(), approximation.detach().double()
    signal = float(exact.square().sum())
    noise = float((exact - rounded).square().sum())
    return math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal else -math.inf
