"""Compare two runs of the chapters: sizes, accuracies and agreement must repeat, speed need not.

The first run is the book's own, the second what a plain ``jupyter-book build`` has left under ``by-hand``.

    python -m tools.check_repeat
"""

import json
import sys
from pathlib import Path
from typing import Any

from tools.run_notebooks import RESULTS

REPEATED = ("model", "size_mb", "metric", "value", "interval", "n", "agreement")


def quality(path: Path) -> list[dict[str, Any]]:
    """What must repeat of each row in a file."""
    return [{name: row[name] for name in REPEATED} for row in json.loads(path.read_text())["rows"]]


def differences(results: Path) -> tuple[list[str], int]:
    """What differs between the two runs, and how many chapters were compared."""
    found, compared = [], 0
    for second in sorted((results / "by-hand").glob("rows-*.json")):
        chapter = second.stem.removeprefix("rows-")
        first = results / chapter / second.name
        if not first.is_file():
            found.append(f"{chapter}: the first run left no rows")
            continue
        compared += 1
        before, after = quality(first), quality(second)
        if len(before) != len(after):
            found.append(f"{chapter}: {len(before)} rows, then {len(after)}")
        for one, other in zip(before, after, strict=False):
            changes = [f"{name} {one[name]} then {other[name]}" for name in REPEATED if one[name] != other[name]]
            found += [f"{chapter}, {one['model']}: {change}" for change in changes]
    return found, compared


def main() -> int:
    """Print what differs; fail if something does, or if there was nothing to compare."""
    found, compared = differences(RESULTS)
    print("\n".join([*found, f"{compared} chapters ran twice; {len(found)} differences"]))
    return 1 if found or not compared else 0


if __name__ == "__main__":
    sys.exit(main())
