"""Latency: candidates take turns, and the figures follow from the times."""

import itertools
import time

import pytest

from qhelpers import benchmark


def test_candidates_take_turns() -> None:
    calls: list[str] = []
    candidates = {name: lambda name=name: calls.append(name) for name in "abc"}  # type: ignore[misc]
    benchmark.compare_latency(candidates, rounds=6, warmup=0, progress=False)
    rounds = [tuple(calls[i : i + 3]) for i in range(0, 18, 3)]
    assert {frozenset(one) for one in rounds} == {frozenset("abc")}
    assert {one[0] for one in rounds} == {"a", "b", "c"}, "no candidate is always first"


def test_warmup_runs_are_not_timed() -> None:
    calls = itertools.count()

    def slow_at_first() -> None:
        if next(calls) < 2:
            time.sleep(0.05)

    result = benchmark.compare_latency({"a": slow_at_first}, rounds=2, warmup=2, progress=False)
    assert result["a"].median_ms < 20


def test_ratio_is_baseline_over_own_time() -> None:
    candidates = {"slow": lambda: time.sleep(0.03), "fast": lambda: time.sleep(0.01)}
    result = benchmark.compare_latency(candidates, rounds=5, warmup=1, progress=False)
    assert result["slow"].ratio == 1
    assert 2 < result["fast"].ratio < 4
    low, high = result["fast"].ratio_quartiles
    assert low <= result["fast"].ratio <= high


def test_the_table_names_cpu_threads_and_engine() -> None:
    result = benchmark.compare_latency({"a": lambda: None}, rounds=2, progress=False)
    assert " thread" in str(result)
    assert ", engine " in str(result)
    assert "2 rounds" in str(result)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"rounds": 0}, "rounds must be at least 2"), ({"rounds": 1}, "got 1"), ({"warmup": -1}, "cannot be negative")],
)
def test_impossible_repetitions_are_rejected(arguments: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        benchmark.compare_latency({"a": lambda: None}, progress=False, **arguments)


def test_no_candidate_is_rejected() -> None:
    with pytest.raises(ValueError, match="at least one candidate"):
        benchmark.compare_latency({})


def test_a_progress_bar_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.compare_latency({"a": lambda: None}, rounds=2, progress=True)
    assert "timing" in capsys.readouterr().err


def test_quartiles_of_two_rounds_stay_within_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 1.0, 10.0, 11.0, 20.0, 29.0, 30.0, 31.0])  # one second, but nine of them once
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(ticks))
    busy = benchmark.compare_latency({"a": lambda: None, "b": lambda: None}, rounds=2, warmup=0, progress=False)["b"]
    assert 1 / 9 <= busy.ratio_quartiles[0] <= busy.ratio <= busy.ratio_quartiles[1] <= 1
