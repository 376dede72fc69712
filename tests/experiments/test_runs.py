"""Many runs: what is kept of an interrupted call, and the results that are written and committed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import qat_runs, runs, transfer_runs
from qhelpers.book import recorded
from qhelpers.tasks import checkpoints, digits


def test_finished_runs_survive_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []

    class Now:
        """Runs in this process what would run in a worker."""

        def __init__(self, *_: Any) -> None: ...
        def __enter__(self) -> "Now":
            return self

        def __exit__(self, *_: Any) -> None: ...
        def submit(self, function: Callable[[Any], Any], run: Any) -> "Future":
            return Future(function, run)

    class Future:
        def __init__(self, function: Callable[[Any], Any], run: Any) -> None:
            self.function, self.run = function, run

        def result(self) -> Any:
            done.append(self.run["n"])
            return self.function(self.run)

    monkeypatch.setattr(runs, "ProcessPoolExecutor", Now)
    monkeypatch.setattr(runs, "as_completed", list)
    state, wanted = tmp_path / "state.json", [{"n": n} for n in (1, 2, 3, 1)]
    fails = True

    def work(run: dict[str, Any]) -> dict[str, Any]:
        if run["n"] == 3 and fails:
            raise RuntimeError("interrupted")
        return {"square": run["n"] ** 2}

    with pytest.raises(RuntimeError, match="interrupted"):
        runs.run_all(work, wanted, state)
    fails = False
    rows = runs.run_all(work, wanted, state)
    assert rows == [{"n": 1, "square": 1}, {"n": 2, "square": 4}, {"n": 3, "square": 9}]
    assert done == [1, 2, 3, 3]
    kept = json.loads(state.read_text())
    state.write_text(json.dumps(kept | {"maker": "another version"}))
    with pytest.raises(SystemExit, match="made by another version of the code or of PyTorch"):
        runs.run_all(work, wanted, state)


def test_results_are_written_so_that_they_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    runs.write_results(
        "b", "experiments/b.py", "in %", [{"seed": 0, "top1": 98.0}, {"seed": 1, "top1": 97.0}], batch=32
    )
    found = recorded.results("b", tmp_path)
    assert recorded.rows_where(found, seed=1) == [{"seed": 1, "top1": 97.0}]
    assert (found["script"], found["measured"], found["batch"]) == ("experiments/b.py", "in %", 32)


def test_silencing_dead_channels_leaves_the_function() -> None:
    before, after = checkpoints.load_digits_float(), qat_runs.silence_dead_channels(checkpoints.load_digits_float())
    images, _ = next(iter(digits.loader("validation", batch_size=50)))  # dead is dead for digits
    with torch.inference_mode():
        torch.testing.assert_close(after(images), before(images), atol=1e-3, rtol=1e-3)
    with torch.random.fork_rng(devices=[]):  # for the dropout
        outputs = qat_runs.prepared(silenced=True)(images[:4])
    assert bool(outputs.isfinite().all())  # QAT divides by the factor
    factor_of = [net.features[1].conv[0][1].weight[13].item() for net in (before, after)]
    assert factor_of[0] != 0
    assert 0 < factor_of[1] < 1e-5


PARTS = qat_runs.PARTS | {"transfer_runs": transfer_runs.RUNS}


@pytest.mark.parametrize(("name", "wanted"), PARTS.items(), ids=PARTS)
def test_committed_results_have_every_run_of_their_script(name: str, wanted: list[runs.Run]) -> None:
    found = recorded.results(name)
    assert all(len(recorded.rows_where(found, **run)) >= 1 for run in wanted)
    assert {row["seed"] for row in found["rows"]} >= {0, 1, 2}
