"""Measure every recorded speed once more, in fresh kernels, and count those that leave the interval that was printed.

The chapters must have been executed with five processes (``make book PROCESSES=5``). Here each runs again with one, and
each of its ratios is held against the 95 % prediction interval that the page gives for a fresh process. About 95 % must
lie inside; the median width of the intervals is printed too, since one that nothing can leave is no answer, and the
root mean square of the moves, from which ``benchmark.OCCASION_SD`` was estimated.

    python -m tools.remeasure [NOTEBOOK ...]
"""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from qhelpers import benchmark
from tools.common import BUILD, notebooks
from tools.run_notebooks import RESULTS, run

AGAIN = BUILD / "remeasured"


@dataclass(frozen=True)
class Held:
    """A recorded ratio with its interval, and the same ratio measured again."""

    where: str
    low: float
    value: float
    high: float
    again: float

    @property
    def inside(self) -> bool:
        """Whether the interval holds the second measurement."""
        return self.low <= self.again <= self.high

    @property
    def moved(self) -> float:
        """Logarithm of the second measurement over the first."""
        return math.log(self.again / self.value)

    @property
    def width_percent(self) -> float:
        """Width of the interval, in percent of its middle."""
        return 100 * 2 * (self.high - self.low) / (self.high + self.low)

    def __str__(self) -> str:
        return f"{self.where}: {self.again:.3f}, printed {self.low:.3f} to {self.high:.3f}"


Ratios = dict[tuple[str, str, str], dict[str, Any]]


def recorded(folder: Path, least_processes: int = 1) -> Ratios:
    """The ratios in a chapter's results, by table, candidate and rival; each knows how many processes measured it.

    Raises:
        SystemExit: if a table was measured by fewer processes than wanted, or its file is damaged.
    """
    found: Ratios = {}
    for path in sorted(folder.glob("speeds-*.json")):
        try:
            processes, ratios = _read(path)
        except (ValueError, KeyError, TypeError) as error:
            raise SystemExit(
                f"{path.name} is damaged or of another version ({type(error).__name__}: {error}): "
                f"make book PROCESSES=5 first."
            ) from error
        if processes < least_processes:
            raise SystemExit(f"{path.name} was measured by {processes} processes: make book PROCESSES=5 first.")
        found |= ratios
    return found


def _read(path: Path) -> tuple[int, Ratios]:
    table = json.loads(path.read_text(encoding="utf-8"))
    processes, ratios = int(table["processes"]), {}
    for ratio in table["ratios"]:
        benchmark.Ratio(ratio["value"], ratio["low"], ratio["high"], "")  # refuses what cannot be
        if not isinstance(ratio["printed"], bool):
            raise TypeError("printed must be true or false")
        key = (table["label"], ratio["name"], ratio["over"])
        ratios[key] = {"label": table["label"], "processes": processes, **ratio}
    return processes, ratios


def held(chapter: str, first: Ratios, second: Ratios) -> tuple[list[Held], list[str]]:
    """Each printed ratio with its second measurement; and those that only one of both runs has."""
    pairs = [
        Held(
            f"{chapter}, {': '.join(key[:2])} over {key[2]}",
            ratio["low"],
            ratio["value"],
            ratio["high"],
            second[key]["value"],
        )
        for key, ratio in first.items()
        if key in second and ratio["printed"]
    ]
    single = sorted(key for key in set(first) ^ set(second) if (first | second)[key]["printed"])
    return pairs, [f"{chapter}, {label}: {name} over {over}" for label, name, over in single]


def main() -> int:
    """Run the chapters that have recorded speeds again, and print what left its interval.

    Raises:
        SystemExit: if a notebook that is named has no recorded speeds.
    """
    wanted = sys.argv[1:]
    chosen = [path for path in notebooks() if [*(RESULTS / path.stem).glob("speeds-*.json")]]
    stems = [path.stem for path in chosen]
    if unknown := [name for name in wanted if name not in stems]:
        raise SystemExit(f"No speeds are recorded for {', '.join(unknown)}; they are for {', '.join(stems) or 'none'}.")
    chosen = [path for path in chosen if not wanted or path.stem in wanted]
    pairs: list[Held] = []
    # Read before anything runs, so that too few processes are met then.
    before = {path.stem: recorded(RESULTS / path.stem, benchmark.ENOUGH_PROCESSES) for path in chosen}
    for notebook in chosen:
        folder = AGAIN / notebook.stem
        code, seconds, _ = run(notebook, folder, {"QHELPERS_PROCESSES": "1"})  # one fresh process
        if code:
            print(f"{notebook.stem}: FAILED")
            return 1
        found, single = held(notebook.stem, before[notebook.stem], recorded(folder / "results"))
        pairs += found
        out = [pair for pair in found if not pair.inside]
        print(f"{notebook.stem}: {len(found) - len(out)} of {len(found)} ratios inside; {seconds:.0f} s", flush=True)
        print(
            "\n".join([*(f"  {pair}" for pair in out), *(f"  in one run only: {name}" for name in single)]), flush=True
        )
    if not pairs:
        print("No chapter has recorded speeds: run make book PROCESSES=5 first.")
        return 1
    inside = sum(pair.inside for pair in pairs)
    width = median(pair.width_percent for pair in pairs)
    moved = 100 * math.sqrt(mean(pair.moved**2 for pair in pairs))
    print(
        f"{inside} of {len(pairs)} ratios ({100 * inside / len(pairs):.1f} %) lie inside; median width {width:.1f} %;"
        f" they moved by {moved:.1f} % (root mean square)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
