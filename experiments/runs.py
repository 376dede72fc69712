"""Run many short trainings on two cores, keep each as it finishes, and write them as one results file."""

import datetime
import hashlib
import json
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
import torchvision

from experiments import loop
from qhelpers import atomic, engines
from qhelpers.book.recorded import RESULTS
from qhelpers.tasks import digits

Run = dict[str, Any]  # what decides a run: every field that the result follows from


def one_thread() -> None:
    """Before each worker's first run: two workers of one thread beat one of two."""
    torch.set_num_threads(1)


def run_all(
    function: Callable[[Run], Run], runs: Sequence[Run], state_file: Path, workers: int = 2
) -> list[dict[str, Any]]:
    """Each run's fields and what the function measured, in the order of ``runs``.

    Finished runs are kept in ``state_file``, so that an interrupted call goes on where it was.

    Raises:
        SystemExit: if the state was made by another version of the script, the loop or PyTorch.
    """
    maker = _maker(function)
    kept = json.loads(state_file.read_text()) if state_file.is_file() else {"maker": maker, "rows": []}
    if kept["maker"] != maker:
        raise SystemExit(f"{state_file} was made by another version of the code or of PyTorch: delete it.")
    finished = {_key(row["run"]): row for row in kept["rows"]}
    runs = list({_key(run): run for run in runs}.values())
    todo = [run for run in runs if _key(run) not in finished]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), one_thread) as pool:
        waiting = {pool.submit(function, run): run for run in todo}
        for done in as_completed(waiting):
            row = {"run": waiting[done], "measured": done.result()}
            finished[_key(row["run"])] = row
            atomic.write_text(state_file, json.dumps({"maker": maker, "rows": [*finished.values()]}))
            print(f"{len(finished)} of {len(runs)}: {row['run']} {_short(row['measured'])}", flush=True)
    rows = [finished[_key(run)] for run in runs]
    return [row["run"] | row["measured"] for row in rows]


def write_results(name: str, script: str, measured: str, rows: Sequence[Any], **more: Any) -> None:
    """Write ``qhelpers/book/results/<name>.json``: what made it, with what, when, ``more``, and a line for each row."""
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    head = {"script": script, "date": datetime.date.today().isoformat(), "versions": versions}
    head |= {"cpu": engines.cpu_name(), **more, "measured": measured}
    lines = json.dumps(head, indent=1)[:-2]
    listed = ",\n  ".join(json.dumps(row) for row in rows)
    atomic.write_text(RESULTS / f"{name}.json", f'{lines},\n "rows": [\n  {listed}\n ]\n}}\n')


def _maker(function: Callable[[Run], Run]) -> str:
    digest = hashlib.sha256(torch.__version__.encode() + torchvision.__version__.encode())
    for path in (Path(function.__code__.co_filename), Path(loop.__file__), Path(digits.__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _key(run: Run) -> str:
    return json.dumps(run, sort_keys=True)


def _short(measured: Run) -> Run:
    return {name: value for name, value in measured.items() if not isinstance(value, (list, str))}
