"""Honest latency: random order, blocks of calls, the baseline twice, and fresh processes for headline ratios.

A single time says little: machines slow down, caches are warm or cold, each process has its own luck with memory.
"""

import copy
import gc
import json
import os
import pickle
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch.utils._pytree import tree_leaves

from qhelpers import engines, guards
from qhelpers.progress import progress_bar

Candidate = Callable[[], Any]
ENOUGH_PROCESSES = 5  # for a prediction interval; fewer give a range
RESAMPLES = 2_000
OCCASION_SD = 0.05  # of a log ratio from one occasion to another, estimated from 209 ratios with tools/remeasure
COPIES_DIFFER = 3.0  # percent that copies of one model differ by on a quiet machine (tools/benchmark_itself)


class BenchmarkError(RuntimeError):
    """A candidate is unknown, fails, does a different job from the others, or changes what they run under."""


@dataclass(frozen=True)
class Ratio:
    """How many times as fast one candidate is as another, from ``low`` to ``high``; ``kind`` says what these cover."""

    value: float
    low: float
    high: float
    kind: str
    noise: float = 0.0  # percent by which two copies of one candidate differed beside it

    def __post_init__(self) -> None:
        if not (0 < self.low <= self.value <= self.high < np.inf and 0 <= self.noise < np.inf):  # false of NaN, too
            raise ValueError(f"A ratio needs 0 < low <= value <= high, all finite; got {self}, noise {self.noise}.")

    @property
    def standing(self) -> str:
        """What may be claimed: ``faster``, ``slower`` or ``neither faster nor slower``.

        The interval must exclude 1, and the value must differ from 1 by more than copies of one model do.

        >>> Ratio(1.1, 1.05, 1.2, "", noise=2).standing, Ratio(1.1, 1.05, 1.2, "", noise=12).standing
        ('faster', 'neither faster nor slower')
        """
        margin = 1 + max(self.noise, COPIES_DIFFER) / 100
        if self.low > 1 and self.value > margin:
            return "faster"
        return "slower" if self.high < 1 and self.value < 1 / margin else "neither faster nor slower"

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Times:
    """What one process has measured: for each candidate the seconds of a call, round by round.

    ``steady`` is the mean of a block of calls in a row; ``cold`` is the call before it, which finds the caches as the
    previous candidate left them.
    """

    steady: dict[str, list[float]]
    cold: dict[str, list[float]]


@dataclass(frozen=True)
class Latency:
    """One candidate's row: milliseconds a call, and its speed against the baseline."""

    name: str
    steady_ms: float
    cold_ms: float
    ratio: Ratio


@dataclass(frozen=True)
class Comparison:
    """Result of :func:`compare_latency`; prints as a table."""

    names: tuple[str, ...]  # the first one is the baseline
    processes: tuple[Times, ...]
    calls: int  # in each block
    setting: str  # CPU, threads and engine

    def ratio(self, name: str, over: str | None = None) -> Ratio:
        """How many times as fast a candidate is as another, above 1 if it is faster; from steady times.

        In one process it is the median over the rounds, with a 95 % bootstrap interval; it covers chance within the
        process, not the luck of the process. In fewer than five processes it is the geometric mean of their medians,
        with the range of these; in five or more, with a 95 % prediction interval for the median of another fresh
        process on another occasion (Student's t on the logarithms, and ``OCCASION_SD`` added in quadrature).

        Args:
            name: of the candidate; over itself it is exactly 1.
            over: of the other one; if None, the baseline.

        Raises:
            BenchmarkError: if there is no such candidate, naming those that exist.
        """
        over = over or self.names[0]
        self._require_known(name, over)
        rounds = [
            [base / own for base, own in zip(run.steady[over], run.steady[name], strict=True)] for run in self.processes
        ]
        if len(rounds) == 1:
            found = _bootstrapped(rounds[0], self.noise_percent)
        else:
            found = _between_processes([median(one) for one in rounds], self.noise_percent)
        return replace(found, low=1.0, high=1.0) if name == over else found

    def steady_ms(self, name: str) -> float:
        """Milliseconds of a call in a block of calls, median over all rounds of all processes."""
        self._require_known(name)
        return 1e3 * median(seconds for run in self.processes for seconds in run.steady[name])

    def cold_ms(self, name: str) -> float:
        """Milliseconds of a first call after another candidate, median over all rounds of all processes."""
        self._require_known(name)
        return 1e3 * median(seconds for run in self.processes for seconds in run.cold[name])

    def fastest(self, names: Iterable[str]) -> str:
        """The name, among those given, of the candidate that gains most over the baseline, round by round."""
        if not (given := list(names)):
            raise BenchmarkError(f"No candidate is named; there are {', '.join(self.names)}.")
        return max(given, key=lambda name: self.ratio(name).value)

    def _require_known(self, *names: str) -> None:
        for wanted in names:
            if wanted not in (*self.names, self.copy_name):
                raise BenchmarkError(f"There is no candidate {wanted!r}; there are {', '.join(self.names)}.")

    def __getitem__(self, name: str) -> Latency:
        return Latency(name, self.steady_ms(name), self.cold_ms(name), self.ratio(name))

    @property
    def rows(self) -> list[Latency]:
        """A row for each candidate, in their order."""
        return [self[name] for name in self.names]

    @property
    def copy_name(self) -> str:
        """The name of the second copy of the baseline in the times."""
        return f"{self.names[0]}, second copy"

    @property
    def noise_percent(self) -> float:
        """By how much two copies of the baseline differ, in percent: the largest of all processes."""
        base = self.names[0]
        gaps = [
            median(one / two for one, two in zip(run.steady[base], run.steady[self.copy_name], strict=True)) - 1
            for run in self.processes
        ]
        return 100 * max(abs(gap) for gap in gaps)

    @property
    def method(self) -> str:
        """How it was measured, and the noise floor: a few sentences to put under a table."""
        count, rounds = len(self.processes), len(self.processes[0].steady[self.names[0]])
        where = f"{count} fresh processes" if count > 1 else "one process"
        return (
            f"{where}, {rounds} rounds in random order, {self.calls} call{'s' * (self.calls != 1)} a block; "
            f"{self.setting}. Ratios are taken round by round, so they need not equal the quotient of two columns. "
            f"In brackets: {self.ratio(self.names[-1]).kind}. "
            f"Two copies of {self.names[0]} differ by {self.noise_percent:.1f} %."
        )

    def __str__(self) -> str:
        width = max(len(name) for name in self.names)
        lines = [f"{'':{width}}  steady ms  cold ms  times {self.names[0]} (above 1 is faster)"]
        lines += [
            f"{row.name:{width}}  {row.steady_ms:9.2f}  {row.cold_ms:7.2f}  {row.ratio!s:>20}" for row in self.rows
        ]
        return "\n".join([*lines, self.method])


def compare_latency(
    candidates: Mapping[str, Candidate],
    *,
    rounds: int = 120,
    calls: int = 3,
    warmup: int = 3,
    across_processes: int = 0,
    threads: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Comparison:
    """Time callables that do the same job, in random order in every round.

    In its turn a candidate is called once (cold), then ``calls`` times in a row (steady). The baseline takes part
    twice: the difference between its two copies is the noise floor.

    With ``across_processes`` the candidates are written to files once, and each of that many fresh interpreters, one
    after another, reads them and times the whole table. Models then need files that outlive this process, or must be
    picklable: ``functools.partial(model, images)`` is; a runtime's session is, if its loader is called inside.

    Choose the number of threads before the first model runs: qnnpack's thread pool keeps what it found then.

    Args:
        candidates: name to callable without arguments; the first one is the baseline.
        rounds: how often each has its turn, at most ``QHELPERS_ROUNDS``; with 60, copies of one model differed by 4 %.
        calls: timed in a row in each turn, after the cold one.
        warmup: how often each runs untimed first; at least once, to see its output.
        across_processes: how many fresh interpreters measure; 0 for this one.
        threads: of the fresh interpreters; if None, as many as here.
        seed: of the order.
        progress: show a progress bar; if None, unless TQDM_DISABLE is set.

    Raises:
        ValueError: if there is no candidate, or a name or number is invalid.
        BenchmarkError: if a candidate fails, cannot be written, changes the engine or the number of threads, or does
            another job: its first output differs in shape from the baseline's.

    >>> same = lambda: sum(range(100))
    >>> result = compare_latency({"a": same, "b": same}, rounds=2, progress=False)
    >>> [row.name for row in result.rows], result["a"].ratio.value
    (['a', 'b'], 1.0)
    """
    if not candidates:
        raise ValueError("There is nothing to time: give at least one candidate.")
    if (taken := f"{next(iter(candidates))}, second copy") in candidates:
        raise ValueError(f"{taken!r} is the name of the baseline's second copy: choose another name.")
    rounds = min(rounds, int(os.environ.get("QHELPERS_ROUNDS", rounds)))
    if rounds < 2:
        raise ValueError(f"rounds must be at least 2, since a spread needs two; got {rounds}.")
    if calls < 1:
        raise ValueError(f"calls must be at least 1; got {calls}.")
    if warmup < 0:
        raise ValueError(f"warmup cannot be negative; got {warmup}.")
    if across_processes < 0:
        raise ValueError(f"across_processes cannot be negative; got {across_processes}.")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1; got {threads}.")
    if threads is not None and not across_processes:
        raise ValueError("threads are chosen for fresh processes only; here, call torch.set_num_threads first.")
    threads = threads or torch.get_num_threads()
    measured = partial(_measure, rounds=rounds, calls=calls, warmup=warmup)
    if across_processes:
        processes = _in_fresh_processes(candidates, measured, across_processes, threads, seed, progress)
    else:
        processes = [measured(candidates, seed=seed, progress=progress)]
    setting = f"{engines.cpu_name()}, {threads} thread{'s' * (threads > 1)}, engine {torch.backends.quantized.engine}"
    return Comparison(tuple(candidates), tuple(processes), calls, setting)


def _measure(
    candidates: Mapping[str, Candidate], *, rounds: int, calls: int, warmup: int, seed: int, progress: bool | None
) -> Times:
    baseline = next(iter(candidates))
    entrants = {**candidates, f"{baseline}, second copy": _second_copy(candidates[baseline])}
    steady: dict[str, list[float]] = {name: [] for name in entrants}
    cold: dict[str, list[float]] = {name: [] for name in entrants}
    order, chance = list(entrants), random.Random(seed)
    with torch.inference_mode(), _no_garbage_collection():
        _require_same_job({name: _warmed_up(name, candidate, warmup) for name, candidate in entrants.items()})
        for _ in progress_bar(range(rounds), doing="timing", unit="round", show=progress):
            chance.shuffle(order)
            for name in order:
                candidate = entrants[name]
                with _answering(name):
                    start = time.perf_counter()
                    candidate()
                    between = time.perf_counter()
                    for _ in range(calls):
                        candidate()
                    end = time.perf_counter()
                cold[name].append(between - start)
                steady[name].append((end - between) / calls)
    return Times(steady, cold)


def _second_copy(candidate: Candidate) -> Candidate:
    """A copy with its own memory where Python can make one; else the same object again."""
    try:
        return copy.deepcopy(candidate)
    except Exception:  # a runtime's session or a traced module: each type has its own refusal
        return candidate


@contextmanager
def _answering(name: str) -> Iterator[None]:
    """What fails inside, or changes what the others run under, goes by this candidate's name."""
    before = torch.backends.quantized.engine, torch.get_num_threads()
    try:
        yield
    except Exception as error:  # the candidate is the reader's
        raise BenchmarkError(f"{name} fails: {type(error).__name__}: {guards.first_line(error)}") from error
    if (after := (torch.backends.quantized.engine, torch.get_num_threads())) != before:
        raise BenchmarkError(f"{name} changes engine and threads from {before} to {after}, also for the others.")


def _warmed_up(name: str, candidate: Candidate, warmup: int) -> Any:
    with _answering(name):
        for _ in range(warmup - 1):
            candidate()
        return candidate()


def _require_same_job(outputs: Mapping[str, Any]) -> None:
    """Refuse candidates whose outputs differ in shape from the baseline's; the caller judges the values."""
    first, *others = outputs
    wanted = _shape(outputs[first])
    for name in others:
        if (found := _shape(outputs[name])) != wanted:
            raise BenchmarkError(f"{name} gives {found}, {first} gives {wanted}: they do not do the same job.")


def _shape(output: Any) -> str:
    """Of the first tensor; a runtime may omit further outputs, and an LSTM in parts shapes its state differently."""
    shapes = (str(tuple(leaf.shape)) for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor | np.ndarray))
    return next(shapes, "no tensor")


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


# --- fresh processes ---------------------------------------------------------------------------------


def _in_fresh_processes(
    candidates: Mapping[str, Candidate],
    measured: "partial[Times]",
    count: int,
    threads: int,
    seed: int,
    progress: bool | None,
) -> list[Times]:
    with tempfile.TemporaryDirectory(prefix="timing-") as name:
        folder = Path(name)
        files = {candidate: f"{place}.pickle" for place, candidate in enumerate(candidates)}
        for candidate, file in files.items():
            try:
                (folder / file).write_bytes(engines.pickled(candidates[candidate]))
            except Exception as error:  # whatever a class says about being copied
                raise BenchmarkError(
                    f"{candidate} cannot be handed to a fresh process: {guards.first_line(error)} Write it to a file, "
                    f"and give a callable that loads that file."
                ) from error
        job = {"files": files, "threads": threads, "engine": torch.backends.quantized.engine, **measured.keywords}
        runs = []
        for i in progress_bar(range(count), doing="timing", unit="process", show=progress):
            (folder / "job.json").write_text(json.dumps({**job, "seed": seed + i}), encoding="utf-8")
            runs.append(_run_job(folder, threads))
        return runs


def _run_job(folder: Path, threads: int) -> Times:
    code = f"from pathlib import Path; from qhelpers.benchmark import do_job; do_job(Path({str(folder)!r}))"
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore"}
    environment.pop("OMP_WAIT_POLICY", None)  # threads wait as they do in a reader's process,
    environment.setdefault("GOMP_SPINCOUNT", "10000")  # but not so long that a busy machine stands still
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    answer, running = folder / "times.json", folder / "running"
    if not answer.is_file():
        said = done.stderr.decode(errors="replace").strip().rstrip(".").splitlines()
        how = f"exit code {done.returncode}" if done.returncode >= 0 else f"signal {-done.returncode}"
        when = f", in the first call of {running.read_text(encoding='utf-8')}" if running.is_file() else ""
        raise BenchmarkError(f"The fresh process ended with {how}{when}: {said[-1] if said else 'without a word'}.")
    found = json.loads(answer.read_text(encoding="utf-8"))
    answer.unlink()
    if "error" in found:
        raise BenchmarkError(f"In a fresh process, {found['error']}")
    return Times(found["steady"], found["cold"])


def do_job(folder: Path) -> None:
    """What a fresh process does: read the candidates, time them, and leave the times, or what failed, in the folder.

    Args:
        folder: where :func:`compare_latency` has left ``job.json`` and a file for each candidate.
    """
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    torch.set_num_threads(job.pop("threads"))
    torch.backends.quantized.engine = job.pop("engine")
    running = folder / "running"  # left behind where the process dies
    try:
        candidates: dict[str, Candidate] = {}
        for name, file in job.pop("files").items():
            running.write_text(name, encoding="utf-8", errors="backslashreplace")
            with _answering(name):
                candidates[name] = pickle.loads((folder / file).read_bytes())  # its tensors may be trained on
                with torch.inference_mode():
                    candidates[name]()
        running.unlink()
        times = _measure(candidates, progress=False, **job)
        answer: dict[str, Any] = {"steady": times.steady, "cold": times.cold}
    except BenchmarkError as error:
        answer = {"error": str(error)}
    (folder / "part").write_text(json.dumps(answer), encoding="utf-8")
    os.replace(folder / "part", folder / "times.json")


# --- intervals ---------------------------------------------------------------------------------------


def _bootstrapped(ratios: list[float], noise: float) -> Ratio:
    found = stats.bootstrap(
        (np.array(ratios),), np.median, n_resamples=RESAMPLES, method="percentile", rng=0, vectorized=True
    ).confidence_interval
    kind = "95 % bootstrap interval within one process"
    return Ratio(median(ratios), float(found.low), float(found.high), kind, noise)


def _between_processes(ratios: list[float], noise: float) -> Ratio:
    count, logs = len(ratios), np.log(ratios)
    middle = float(np.clip(np.exp(logs.mean()), min(ratios), max(ratios)))  # rounding may lead out of their range
    if count < ENOUGH_PROCESSES:
        return Ratio(middle, min(ratios), max(ratios), f"range of {count} processes", noise)
    chance = stats.t.ppf(0.975, count - 1) * logs.std(ddof=1) * np.sqrt(1 + 1 / count)
    half = float(np.hypot(chance, stats.norm.ppf(0.975) * OCCASION_SD))
    kind = f"95 % prediction interval for a fresh process on another occasion, from {count}"
    return Ratio(middle, middle * float(np.exp(-half)), middle * float(np.exp(half)), kind, noise)
