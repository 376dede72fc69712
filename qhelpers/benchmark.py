"""Honest latency: candidates take turns in one run, and are compared by ratios with their spread."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

import torch

from qhelpers import engines
from qhelpers.progress import progress_bar


@dataclass(frozen=True)
class Latency:
    """One candidate's times over all rounds, in milliseconds, and its speed against the baseline."""

    name: str
    median_ms: float
    quartiles_ms: tuple[float, float]
    ratio: float  # median over the rounds of baseline time / own time; above 1 is faster
    ratio_quartiles: tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """Result of :func:`compare_latency`; prints as a table."""

    baseline: str
    rows: list[Latency]
    rounds: int
    setting: str  # CPU, threads and engine

    def __getitem__(self, name: str) -> Latency:
        return next(row for row in self.rows if row.name == name)

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = [f"{'':{width}}  median ms  times {self.baseline} (quartiles)"]
        for row in self.rows:
            slow, fast = row.ratio_quartiles
            lines.append(f"{row.name:{width}}  {row.median_ms:9.2f}  {row.ratio:5.2f} ({slow:.2f} to {fast:.2f})")
        return "\n".join([*lines, f"above 1 is faster; {self.rounds} rounds; {self.setting}"])


def compare_latency(
    candidates: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 60,
    warmup: int = 3,
    progress: bool | None = None,
) -> Comparison:
    """Time callables that do the same job, each once a round, in a changing order.

    A machine that slows down for a while slows all candidates alike, so the ratio within a round stays
    meaningful where the times of two separate runs are not.

    The number of threads is the process's own. Choose it with ``torch.set_num_threads`` before the first
    model runs: qnnpack's thread pool keeps the number that it found then, so a later change would compare
    one thread with several.

    Args:
        candidates: name to callable without arguments; the first one is the baseline.
        rounds: how often each is timed.
        warmup: how often each runs untimed before.
        progress: show a progress bar; if None, unless TQDM_DISABLE is set.

    Raises:
        ValueError: if there is no candidate, or ``rounds`` is below 2 (a spread needs two).

    >>> result = compare_latency({"a": lambda: sum(range(1000)), "b": lambda: sum(range(1000))}, progress=False)
    >>> result.baseline, len(result.rows), result["a"].ratio
    ('a', 2, 1.0)
    """
    if not candidates:
        raise ValueError("There is nothing to time: give at least one candidate.")
    if rounds < 2:
        raise ValueError(f"rounds must be at least 2, since a spread needs two; got {rounds}.")
    if warmup < 0:
        raise ValueError(f"warmup cannot be negative; got {warmup}.")
    names = list(candidates)
    times: dict[str, list[float]] = {name: [] for name in names}
    with torch.inference_mode(), _no_garbage_collection():
        for name in names:
            for _ in range(warmup):
                candidates[name]()
        for i in progress_bar(range(rounds), doing="timing", unit="round", show=progress):
            shift = i % len(names)
            for name in names[shift:] + names[:shift]:
                start = time.perf_counter()
                candidates[name]()
                times[name].append(time.perf_counter() - start)
    threads = torch.get_num_threads()
    setting = f"{engines.cpu_name()}, {threads} thread{'s' * (threads > 1)}, engine {torch.backends.quantized.engine}"
    rows = [_row(name, times[name], times[names[0]]) for name in names]
    return Comparison(names[0], rows, rounds, setting)


def _row(name: str, own: list[float], baseline: list[float]) -> Latency:
    # inclusive: the quartiles of few rounds stay within what was measured, and are not extrapolated past it
    low, middle, high = quantiles([1e3 * value for value in own], n=4, method="inclusive")
    ratios = [base / value for base, value in zip(baseline, own, strict=True)]
    slow, ratio, fast = quantiles(ratios, n=4, method="inclusive")
    return Latency(name, middle, (low, high), ratio, (slow, fast))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
