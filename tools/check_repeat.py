"""Compare two runs of the chapters: sizes, accuracies and agreement must repeat, speed need not.

The first run is the book's own, the second what a plain ``jupyter-book build`` has left under ``by-hand``.

    python -m tools.check_repeat
"""

import json
import sys
from pathlib import Path

from tools.run_notebooks import RESULTS

REPEATED = ("model", "size_mb", "metric", "value", "interval", "n", "agreement")


def differences(results: Path) -> tuple[list[str], int]:
    """What differs between the two runs, and how many chapters were compared."""
    found, compared = [], 0
    for first in sorted(path for path in results.glob("*/rows-*.json") if path.parent.name != "by-hand"):
        chapter, second = first.parent.name, results / "by-hand" / first.name
        if not second.is_file():
            found.append(f"{chapter}: the second run left no rows")
            continue
        compared += 1
        before, after = json.loads(first.read_text()), json.loads(second.read_text())
        if before["sources"] != after["sources"]:
            found.append(f"{chapter}: the two runs had different sources")
        if len(before["rows"]) != len(after["rows"]):
            found.append(f"{chapter}: {len(before['rows'])} rows, then {len(after['rows'])}")
        for one, other in zip(before["rows"], after["rows"], strict=False):
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
