"""Refuse to publish what was not tested as it is: run on the machine that built the site, right before it is handed on.

python -m tools.check_publish
"""

import json
import sys

from qhelpers import benchmark
from tools import build_site, weights
from tools.common import ROOT, SITE, commit, notebooks
from tools.run_notebooks import all_stale, stamp_file

AGAIN = f"make book PROCESSES={benchmark.ENOUGH_PROCESSES} FORCE=1 executes and builds all of it."


def problems() -> list[str]:
    """Why the site is not to be published, one sentence each; an empty list if it may be."""
    origin = SITE / "commit.txt"
    if not origin.is_file():
        return ["There is no site, or one that does not say where it comes from: make book builds it."]
    return [*_commits(origin.read_text()), *_notebooks(), *_site(), *_weights()]


def _commits(origin: str) -> list[str]:
    """Site, notebooks and checkout must be one commit, without changes."""
    head, found = commit(ROOT), []
    built = [line.split()[1] for line in origin.splitlines() if line.startswith("site ")]
    executed = [line.split()[1] for line in origin.splitlines() if line.startswith("notebooks ")]
    if head == "unknown":
        found.append(
            "This is no git checkout, or one that git refuses (git status says why), so no commit can be named."
        )
    elif head.endswith("-dirty"):
        found.append("Files differ from the commit that is checked out: commit them, or take them back.")
    if built != [head]:
        found.append(f"The site was built from commit {', '.join(built) or 'unknown'}, checked out is {head}. {AGAIN}")
    if executed != built:
        words = f"Notebooks were executed at commit {', '.join(executed) or 'unknown'}"
        found.append(f"{words}, the site was built from {', '.join(built) or 'unknown'}. {AGAIN}")
    return found


def _notebooks() -> list[str]:
    if stale := all_stale():
        return [f"Not executed in their present state: {', '.join(stale)}. {AGAIN}"]
    stamps = {notebook.stem: json.loads(stamp_file(notebook).read_text()) for notebook in notebooks()}
    few = [stem for stem, stamp in stamps.items() if stamp["processes"] < benchmark.ENOUGH_PROCESSES]
    return [f"Timed in fewer than {benchmark.ENOUGH_PROCESSES} processes: {', '.join(few)}. {AGAIN}"] if few else []


def _site() -> list[str]:
    checked = build_site.STAMP.is_file() and build_site.STAMP.read_text().endswith(f" {build_site.published_files()}")
    return [] if checked else ["Files of the site differ from those that were checked when it was built: make book."]


def _weights() -> list[str]:
    found = weights.problem(weights.cached())
    return [f"The published weights are not in the cache that the chapters read. {found}"] if found else []


def main() -> int:
    """Print what speaks against publishing, or the commit that may be."""
    found = problems()
    print("\n".join([f"Not to be published: {one}" for one in found] or [f"to be published: commit {commit(ROOT)}"]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
