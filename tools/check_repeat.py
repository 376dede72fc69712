"""Run chapters a second time, by a plain ``jupyter-book build``: what they measure must repeat, except speed.

Without ``--all`` each chapter is due after every 24th commit, and those whose notebooks have changed in the last twenty
commits, up to two in all. Pages that only gather what the others leave are due with ``--all``, since then there is
something to gather. A due chapter that loads published weights also runs once without a network.

    python -m tools.check_repeat [--all]
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from tools import check_offline
from tools.build_site import build, check, stage
from tools.common import BUILD, ROOT, SPEEDS_UNSEEN, gathers_results, notebooks
from tools.run_notebooks import RESULTS, all_stale

STAGE = BUILD / "alone"
REPEATED = ("model", "size_mb", "metric", "value", "interval", "n", "paired", "agreement")
ONE_IN = 24
RECENT_COMMITS = 20
MOST_DUE = 2


def due(names: list[str], commits: int, changed: list[str]) -> list[str]:
    """The names whose place in the list has the turn after so many commits, and those that changed lately.

    At most ``MOST_DUE``, so that continuous integration ends in time: of the changed ones, those that did last.

    Args:
        names: of all chapters.
        commits: how many there are.
        changed: names of changed files, the last first.
    """
    turn = [name for place, name in enumerate(names) if place % ONE_IN == commits % ONE_IN]
    chosen = [*dict.fromkeys([*turn, *(name for name in changed if name in names)])][: max(MOST_DUE, len(turn))]
    return [name for name in names if name in chosen]


def due_now(names: list[str]) -> list[str]:
    """As :func:`due`, for the commits of this checkout; all names where git cannot tell, or not far enough."""
    try:
        top, shallow = _git("rev-parse", "--show-toplevel", "--is-shallow-repository").splitlines()
        if Path(top) != ROOT.resolve() or shallow == "true":
            return names
        commits = int(_git("rev-list", "--count", "HEAD"))
        files = _git("log", f"--max-count={RECENT_COMMITS}", "--format=", "--name-only").split()
    except (OSError, subprocess.CalledProcessError):
        return names
    return due(names, commits, [Path(file).stem for file in files if Path(file).match("book/*.ipynb")])


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def run_again(chosen: list[Path]) -> Path:
    """Build the site with the chosen chapters executed by jupyter-book itself; return where they left their results.

    Raises:
        SystemExit: if the build fails or warns, or a page has problems.
    """
    others = [f"book/{path.name}" for path in notebooks() if path not in chosen]
    stage({path.stem: path for path in chosen}, STAGE, {"exclude_patterns": others})
    environment = {name: value for name, value in os.environ.items() if not name.startswith("QHELPERS_")}
    check(build(STAGE, environment | SPEEDS_UNSEEN))
    return STAGE / "book" / "qhelpers-results"


def differences(first: Path, second: Path, names: list[str]) -> tuple[list[str], int]:
    """What differs between two runs, and how many chapters had rows to compare.

    Args:
        first: the runner's results, a folder for each chapter.
        second: the results of the second run, all in one folder.
        names: of the chapters that ran twice.
    """
    found, compared = [], 0
    for name in names:
        rows = first / name / f"rows-{name}.json"
        again = second / rows.name
        if rows.is_file() != again.is_file():
            found.append(f"{name}: the {'second' if rows.is_file() else 'first'} run left no rows")
        elif rows.is_file():
            compared += 1
            found += _row_differences(name, json.loads(rows.read_text())["rows"], json.loads(again.read_text())["rows"])
    return found, compared


def _row_differences(name: str, before: list[dict[str, object]], after: list[dict[str, object]]) -> list[str]:
    found = [f"{name}: {len(before)} rows, then {len(after)}"] if len(before) != len(after) else []
    for one, other in zip(before, after, strict=False):
        changes = [f"{key} {one[key]} then {other[key]}" for key in REPEATED if one[key] != other[key]]
        found += [f"{name}, {one['model']}: {change}" for change in changes]
    return found


def main() -> int:
    """Run what is due again, and print what differs; fail if something does, or if nothing ran."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="the whole book")
    whole = parser.parse_args().all
    everything = {path.stem: path for path in notebooks()}
    chapters = [name for name, path in everything.items() if not gathers_results(path)]
    names = [*everything] if whole else due_now(chapters)
    if stale := all_stale():
        raise SystemExit(f"Run the notebooks first (make book does): {', '.join(stale)}.")
    print(f"a second time: {', '.join(names)}", flush=True)
    results = run_again([everything[name] for name in names])
    found, compared = differences(RESULTS, results, names)
    for name in names:
        if check_offline.loads_weights(everything[name]):
            print(check_offline.check(everything[name], "refused", whole=True), flush=True)
    print("\n".join([*found, f"{len(names)} chapters ran twice, {compared} with rows; {len(found)} differences"]))
    return 1 if found or not names or (whole and not compared) else 0


if __name__ == "__main__":
    sys.exit(main())
