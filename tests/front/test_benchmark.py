"""Latency: the order, the blocks, the copies, the intervals. No test waits for a clock: time is told to them."""

import math
import os
import random
import signal
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qhelpers import benchmark, engines
from qhelpers.benchmark import BenchmarkError, Comparison, Times, compare_latency
from qhelpers.tasks import checkpoints


class Clock:
    """A clock that only candidates move; each call of one takes its seconds, and more when another ran before it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def candidate(self, name: str, seconds: Callable[[], float], cold: float = 0.0) -> Callable[[], None]:
        def call() -> None:
            self.now += seconds() + (cold if self.calls[-1:] != [name] else 0.0)
            self.calls.append(name)

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    told = Clock()
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: told.now)
    return told


def compare(candidates: dict[str, Callable[[], object]], **arguments: int) -> Comparison:
    return compare_latency(candidates, progress=False, **arguments)


def turns(calls: list[str]) -> list[str]:
    return [name for place, name in enumerate(calls) if place == 0 or calls[place - 1] != name]


def test_every_round_has_an_order_of_its_own_and_a_seed_repeats_it() -> None:
    def order(seed: int) -> list[str]:
        clock = Clock()
        candidates = {name: clock.candidate(name, lambda: 0.0) for name in "abcd"}
        compare(candidates, rounds=40, calls=1, warmup=0, seed=seed)
        return clock.calls[5:]  # behind one call of each that is not timed

    calls = order(0)
    assert calls == order(0) != order(1)
    rounds = [calls[i : i + 10] for i in range(0, 400, 10)]  # five entrants, twice each
    assert len({tuple(one) for one in rounds}) > 20
    before_b = {one[one.index("b") - 1] for one in rounds if one.index("b")}
    assert before_b == {"a", "c", "d"}, "nobody always runs behind the same one"


def test_the_baseline_takes_part_twice() -> None:
    clock = Clock()
    compare(
        {"a": clock.candidate("a", lambda: 0.0), "b": clock.candidate("b", lambda: 0.0)}, rounds=5, calls=3, warmup=0
    )
    assert (clock.calls.count("a"), clock.calls.count("b")) == (2 * (5 * 4 + 1), 5 * 4 + 1)


def test_cold_and_steady_are_told_apart(clock: Clock) -> None:
    found = compare(
        {name: clock.candidate(name, lambda: 1e-3, cold=5e-3) for name in ("a", "b")}, rounds=5, calls=4, warmup=1
    )
    assert found["b"].steady_ms == pytest.approx(1)
    assert found["b"].cold_ms == pytest.approx(6)


def test_warmup_runs_are_not_timed(clock: Clock) -> None:
    costs = iter([5.0, 5.0, *[1e-3] * 100])
    found = compare({"a": clock.candidate("a", lambda: next(costs))}, rounds=2, calls=1, warmup=1)
    assert found["a"].steady_ms == pytest.approx(1)


def test_a_ratio_is_the_rival_s_time_over_the_own_in_the_same_round(clock: Clock) -> None:
    drift = iter(x for i in range(1000) for x in [1 + i / 10])  # the machine becomes slower and slower
    slow = clock.candidate("slow", lambda: 3e-3 * next(drift))
    fast = clock.candidate("fast", lambda: 1e-3 * next(drift))
    found = compare({"slow": slow, "fast": fast}, rounds=60, calls=1, warmup=0)
    ratio = found.ratio("fast")
    assert ratio.low <= ratio.value <= ratio.high
    assert ratio.value == pytest.approx(3, rel=0.1)
    assert found.ratio("slow", over="fast").value == pytest.approx(1 / 3, rel=0.1)
    assert "bootstrap" in ratio.kind
    assert found.ratio("slow").value == 1


def test_what_two_copies_differ_by_is_printed(clock: Clock) -> None:
    class Copied:
        def __init__(self, seconds: float) -> None:
            self.call = clock.candidate(str(seconds), lambda: seconds)

        def __call__(self) -> None:
            self.call()

        def __deepcopy__(self, _: object) -> "Copied":
            return Copied(1.1e-3)

    found = compare({"float": Copied(1e-3)}, rounds=3)
    assert found.noise_percent == pytest.approx(100 * (1 - 1 / 1.1))
    assert "Two copies of float differ by 9.1 %." in str(found)


def test_a_model_s_second_copy_has_memory_of_its_own() -> None:
    model, images = nn.PReLU(), torch.ones(1, 2)
    copied = benchmark._second_copy(partial(model, images))
    assert isinstance(copied, partial)
    assert copied.func.weight.data_ptr() != model.weight.data_ptr()
    assert benchmark._second_copy(iter_of := (i for i in ())) is iter_of  # type: ignore[arg-type]


def test_the_table_says_how_it_was_measured() -> None:
    said = str(compare({"a": lambda: None, "b": lambda: None}, rounds=4, calls=2))
    for words in ("one process, 4 rounds in random order, 2 calls a block", " thread", ", engine ", "95 % bootstrap"):
        assert words in said


def test_the_table_says_that_a_ratio_is_taken_in_each_round() -> None:
    """A machine that slows down between two rounds changes the quotient of the medians, not the ratio."""
    times = benchmark.Times({"a": [1.0, 4.0, 9.0], "b": [2.0, 3.0, 18.0], "a, second copy": [1.0, 4.0, 9.0]}, {})
    found = benchmark.Comparison(("a", "b"), (times,), 1, "a CPU")
    assert found.ratio("a", over="b").value == 2
    assert found.steady_ms("b") / found.steady_ms("a") == 0.75
    assert "Ratios are taken round by round, so they need not equal the quotient of two columns." in found.method
    assert found.fastest(["a", "b"]) == "a"  # whose median is the longer one


# --- intervals between processes ---------------------------------------------------------------------


def of_processes(*ratios: float) -> Comparison:
    runs = tuple(Times({"a": [r, r], "a, second copy": [r, r], "b": [1.0, 1.0]}, {"a": [1], "b": [1]}) for r in ratios)
    return Comparison(("a", "b"), runs, 3, "a CPU, 1 thread, engine x86")


def test_few_processes_give_their_range() -> None:
    ratio = of_processes(2.0, 3.0, 2.5).ratio("b")
    assert (ratio.low, ratio.high, ratio.kind) == (2.0, 3.0, "range of 3 processes")
    assert ratio.value == pytest.approx((2.0 * 3.0 * 2.5) ** (1 / 3))


def test_five_processes_give_a_prediction_interval() -> None:
    logs = [0.9, 1.0, 1.1, 1.0, 1.0]
    ratio = of_processes(*map(math.exp, logs)).ratio("b")
    chance = 2.776445 * math.sqrt(0.005) * math.sqrt(1 + 1 / 5)  # t of 4 degrees, the sample's spread
    half = math.hypot(chance, 1.959964 * benchmark.OCCASION_SD)
    assert math.log(ratio.low) == pytest.approx(1 - half, abs=1e-5)
    assert math.log(ratio.high) == pytest.approx(1 + half, abs=1e-5)
    assert "prediction interval for a fresh process on another occasion, from 5" in ratio.kind


def test_processes_that_agree_still_do_not_know_another_occasion() -> None:
    ratio = of_processes(*[2.0] * 5).ratio("b")
    assert ratio.high / ratio.low == pytest.approx(math.exp(2 * 1.959964 * benchmark.OCCASION_SD))


def train(net: nn.Module, inputs: Tensor) -> None:
    with torch.inference_mode(False):
        net(inputs).sum().backward()


def test_a_candidate_of_a_fresh_process_may_train() -> None:
    with torch.random.fork_rng(devices=[]):
        net = nn.Linear(4, 2)
    found = compare({"a step": partial(train, net, torch.ones(2, 4))}, rounds=2, across_processes=1)
    assert found.steady_ms("a step") > 0


@pytest.mark.parametrize("processes", [1, 3, 5])
def test_a_candidate_is_exactly_as_fast_as_itself(processes: int) -> None:
    table = of_processes(*[2.0] * processes)
    for name in table.names:
        ratio = table.ratio(name, name)
        assert (ratio.low, ratio.value, ratio.high) == (1, 1, 1)


@pytest.mark.parametrize("spread", [0.01, 0.05, 0.2])
def test_a_prediction_interval_holds_a_process_of_another_occasion_in_19_of_20(spread: float) -> None:
    chance, inside = random.Random(0), 0
    for _ in range(2000):
        here, there = (chance.gauss(0.7, benchmark.OCCASION_SD / math.sqrt(2)) for _ in range(2))
        seen = [math.exp(chance.gauss(here, spread)) for _ in range(5)]
        ratio = of_processes(*seen).ratio("b")
        inside += ratio.low <= math.exp(chance.gauss(there, spread)) <= ratio.high
    assert 0.93 < inside / 2000 < 0.98


def test_an_unknown_candidate_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(BenchmarkError, match="no candidate 'c'; there are a, b"):
        of_processes(1.0).ratio("c")
    with pytest.raises(BenchmarkError, match="no candidate 'c'"):
        of_processes(1.0).ratio("a", over="c")
    for ask in (Comparison.steady_ms, Comparison.cold_ms, Comparison.__getitem__):
        with pytest.raises(BenchmarkError, match="no candidate 'c'; there are a, b"):
            ask(of_processes(1.0), "c")
    with pytest.raises(BenchmarkError, match="no candidate 'c'; there are a, b"):
        of_processes(1.0).fastest(["c"])
    with pytest.raises(BenchmarkError, match="No candidate is named; there are a, b"):
        of_processes(1.0).fastest([])


@pytest.mark.parametrize(
    "numbers",
    [(2.0, 0.9, 1.1), (1.0, 1.1, 0.9), (1.0, 0.0, 1.1), (-1.0, -2.0, 1.1), (1.0, 0.9, math.inf), (math.nan, 0.9, 1.1)],
)
def test_an_impossible_ratio_is_refused(numbers: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="A ratio needs 0 < low <= value <= high, all finite; got "):
        benchmark.Ratio(*numbers, "range")
    with pytest.raises(ValueError, match="noise nan"):
        benchmark.Ratio(1.0, 1.0, 1.0, "range", math.nan)


def test_rounding_does_not_lead_out_of_the_range_of_processes() -> None:
    for hundredths in range(1, 100):
        value = hundredths / 100
        assert of_processes(value, value, value).ratio("b").value == value


# --- fresh processes ---------------------------------------------------------------------------------


def in_a_process_of_its_own(parent: int, threads: int) -> None:
    if os.getpid() == parent or torch.get_num_threads() != threads:
        raise AssertionError(f"process {os.getpid()}, {torch.get_num_threads()} threads")


def give_up() -> None:
    os._exit(3)


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class FailsAt:
    """Does its job until a call."""

    def __init__(self, call: int, failure: Callable[[], object] = lambda: 1 // 0) -> None:
        self.left, self.failure = call, failure

    def __call__(self) -> Tensor:
        self.left -= 1
        if not self.left:
            self.failure()
        return torch.ones(2)


def equals(model: Callable[[Tensor], Tensor], images: Tensor, expected: Tensor) -> Tensor:
    found = model(images)
    if not torch.equal(found, expected):
        raise AssertionError("other outputs than before")
    return found


def test_each_process_is_fresh_and_has_its_threads() -> None:
    found = compare({"a": partial(in_a_process_of_its_own, os.getpid(), 2)}, rounds=2, across_processes=2, threads=2)
    assert len(found.processes) == 2
    assert "2 threads" in found.setting
    assert "2 fresh processes" in found.method


def test_an_int8_model_is_the_same_in_another_process_on_every_engine() -> None:
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    candidates: dict[str, Callable[[], object]] = {}
    for engine in engines.available_engines():
        model = engines.UnderEngine(engine, checkpoints.load_digits_int8(engine))
        with torch.inference_mode():
            candidates[engine] = partial(equals, model, images, model(images))
    compare(candidates, rounds=2, calls=1, warmup=1, across_processes=1)


def test_what_a_notebook_defines_goes_along() -> None:
    class Local(nn.Module):  # as in a notebook's cell: no process can import it
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    found = compare(
        {"lambda": lambda: torch.ones(2), "class": partial(Local(), torch.ones(2))}, across_processes=1, rounds=2
    )
    assert found.names == ("lambda", "class")


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        (lambda: 1 // 0, "In a fresh process, slow one fails: ZeroDivisionError"),
        (FailsAt(2), "In a fresh process, slow one fails: ZeroDivisionError"),  # in the warm-up
        (FailsAt(6), "In a fresh process, slow one fails: ZeroDivisionError"),  # while it is timed
        (give_up, "The fresh process ended with exit code 3, in the first call of slow one: without a word."),
        (be_killed, "The fresh process ended with signal 9, in the first call of slow one: without a word."),
        (partial(sys.exit, "good bye."), "ended with exit code 1, in the first call of slow one: good bye."),
        (FailsAt(2, give_up), "The fresh process ended with exit code 3: without a word."),
        ((i for i in ()).__next__, "slow one cannot be handed to a fresh process: "),
        (lambda: torch.ones(3), "slow one gives (3,), fast one gives (2,): they do not do the same job"),
    ],
)
def test_a_candidate_that_fails_in_its_process_is_named(candidate: Callable[[], object], words: str) -> None:
    with pytest.raises(BenchmarkError) as raised:
        compare(
            {"fast one": lambda: torch.ones(2), "slow one": candidate, "last one": lambda: torch.ones(2)},
            rounds=2,
            across_processes=1,
        )
    assert words in str(raised.value)


@pytest.mark.parametrize("call", [1, 6])  # in the warm-up, and while it is timed
def test_a_candidate_that_fails_in_this_process_is_named(call: int) -> None:
    with pytest.raises(BenchmarkError, match=r"^guilty fails: ZeroDivisionError: ") as raised:
        compare({"a": lambda: torch.ones(2), "guilty": FailsAt(call), "b": lambda: torch.ones(2)}, rounds=2)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_a_candidate_may_print_bytes_that_are_no_text() -> None:
    found = compare({"a": lambda: os.write(1, b"\xff") + os.write(2, b"\xff")}, rounds=2, across_processes=1)
    assert found.names == ("a",)

    def fail() -> None:
        os.write(2, b"\xff\n")
        os._exit(3)

    with pytest.raises(BenchmarkError, match="exit code 3, in the first call of a: \ufffd"):
        compare({"a": fail}, rounds=2, across_processes=1)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ((torch.ones(1, 2), None), torch.ones(1, 3), r"b gives (1, 3), a gives (1, 2): they do not do the same job"),
        ({"logits": torch.ones(2)}, {"logits": torch.ones(3)}, "b gives (3,), a gives (2,)"),
        (torch.ones(2), np.ones(3), "b gives (3,), a gives (2,)"),
        (torch.ones(2), None, "b gives no tensor, a gives (2,)"),
        (None, torch.ones(2), "b gives (2,), a gives no tensor"),
    ],
)
@pytest.mark.parametrize("warmup", [0, 1])
def test_candidates_with_outputs_of_other_shapes_are_refused(
    first: object, second: object, words: str, warmup: int
) -> None:
    with pytest.raises(BenchmarkError) as raised:
        compare({"a": lambda: first, "b": lambda: second}, rounds=2, warmup=warmup)
    assert words in str(raised.value)


def test_the_state_beside_an_output_may_be_shaped_otherwise() -> None:
    compare({"lstm": lambda: (torch.ones(2), torch.ones(1, 5)), "loop": lambda: [torch.ones(2), torch.ones(5)]})


@pytest.mark.parametrize("across_processes", [0, 1])
def test_a_candidate_that_changes_what_the_others_run_under_is_named(across_processes: int) -> None:
    before = torch.backends.quantized.engine, torch.get_num_threads()

    def other_engine() -> None:
        torch.backends.quantized.engine = "qnnpack"

    def other_threads() -> None:
        torch.set_num_threads(torch.get_num_threads() + 1)

    try:
        for change in (other_engine, other_threads):
            torch.backends.quantized.engine = engines.default_engine()
            with pytest.raises(BenchmarkError, match="b changes engine and threads from "):
                compare({"a": lambda: None, "b": change}, rounds=2, across_processes=across_processes)
    finally:
        torch.backends.quantized.engine = before[0]
        torch.set_num_threads(before[1])


def test_a_candidate_cannot_have_the_second_copy_s_name() -> None:
    with pytest.raises(ValueError, match="'a, second copy' is the name of the baseline's second copy"):
        compare({"a": lambda: None, "a, second copy": lambda: None})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rounds": 0}, "rounds must be at least 2"),
        ({"rounds": 1}, "got 1"),
        ({"warmup": -1}, "warmup cannot be negative"),
        ({"calls": 0}, "calls must be at least 1"),
        ({"across_processes": -1}, "across_processes cannot be negative"),
        ({"threads": 2}, "fresh processes only"),
        ({"threads": 0, "across_processes": 1}, "threads must be at least 1; got 0."),
        ({"threads": -1, "across_processes": 1}, "threads must be at least 1; got -1."),
    ],
)
def test_impossible_repetitions_are_rejected(arguments: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compare({"a": lambda: None}, **arguments)


def test_no_candidate_is_rejected() -> None:
    with pytest.raises(ValueError, match="at least one candidate"):
        compare({})


def test_a_progress_bar_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    compare_latency({"a": lambda: None}, rounds=2, progress=True)
    assert "timing" in capsys.readouterr().err


def test_a_run_whose_speeds_nobody_reads_is_cut_short(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QHELPERS_ROUNDS", "3")
    assert len(compare({"a": clock.candidate("a", lambda: 1.0)}, rounds=9).processes[0].steady["a"]) == 3
    assert len(compare({"a": clock.candidate("a", lambda: 1.0)}, rounds=2).processes[0].steady["a"]) == 2
