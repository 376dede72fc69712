"""Run a notebook with an empty torch hub and no network: it must wait briefly, and go on with what it has.

It is run up to the last cell tagged ``loads-weights``; with ``--whole`` to its end, and the book is built around it.

    python -m tools.check_offline NOTEBOOK refused|hanging [--whole]
"""

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

from tools.build_site import build, stage
from tools.build_site import check as check_pages
from tools.common import BUILD, SPEEDS_UNSEEN
from tools.run_notebooks import run

LONGEST_WAIT_S = 30


def loads_weights(notebook: Path) -> int:
    """How many cells of a notebook belong to the part that loads published weights; 0 if it has no such part."""
    cells = json.loads(notebook.read_text())["cells"]
    tagged = [i + 1 for i, cell in enumerate(cells) if "loads-weights" in cell["metadata"].get("tags", [])]
    return max(tagged, default=0)


def first_part(notebook: Path, folder: Path) -> Path:
    """A copy of a notebook that ends with the last cell that loads published weights.

    Raises:
        SystemExit: if no cell does.
    """
    count = loads_weights(notebook)
    if not count:
        raise SystemExit(f"{notebook.name} has no cell tagged loads-weights.")
    content = json.loads(notebook.read_text())
    copy = folder / notebook.name
    copy.write_text(json.dumps(content | {"cells": content["cells"][:count]}))
    return copy


def check(notebook: Path, mode: str, whole: bool = False) -> str:
    """Run the notebook or its first part, and return a line that says how it went.

    Raises:
        SystemExit: if it failed or complained, did not try the network, found weights all the same, or waited too long.
    """
    folder = BUILD / "offline" / f"{notebook.stem}-{mode}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log = folder / "attempts.txt"
    code, seconds, _ = run(
        notebook if whole else first_part(notebook, folder),
        folder / "run",
        {
            "TORCH_HOME": str(folder / "torch_home"),
            "PYTHONPATH": os.pathsep.join(
                [str(Path(__file__).parent / "no_network"), os.environ.get("PYTHONPATH", "")]
            ),
            "NO_NETWORK": mode,
            "NO_NETWORK_LOG": str(log),
            **SPEEDS_UNSEEN,
        },
    )
    if code != 0:
        raise SystemExit(f"{notebook.name} failed with the network {mode}.")
    if not log.is_file():
        raise SystemExit(f"{notebook.name} never asked for the network, so this run shows nothing.")
    attempts = log.read_text().splitlines()
    if len(attempts) > 1 and mode == "hanging":
        raise SystemExit(f"{notebook.name} waited for the network more than once: {', '.join(attempts)}.")
    weights = json.loads((folder / "run" / "results" / "weights.json").read_text())
    if weights["source"] != "built-in":
        raise SystemExit(f"{notebook.name} found weights without a network: {weights['source']}.")
    if weights["waited_s"] > LONGEST_WAIT_S:
        raise SystemExit(f"{notebook.name} waited {weights['waited_s']} s for the network.")
    executed = folder / "run" / notebook.name
    if words := _complaints(json.loads(executed.read_text())):
        raise SystemExit(f"{notebook.name} writes to standard error with the network {mode}: {words}")
    if whole:
        stage({notebook.stem: executed})
        check_pages(build())
    part = "" if whole else " up to its weights"
    return f"{notebook.stem}{part}, network {mode}: waited {weights['waited_s']:.1f} s, passed in {seconds:.0f} s"


def _complaints(executed: dict[str, Any]) -> str:
    outputs = [output for cell in executed["cells"] for output in cell.get("outputs", [])]
    return "".join("".join(output["text"]) for output in outputs if output.get("name") == "stderr")


def main() -> None:
    """Check one notebook in one mode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("mode", choices=["refused", "hanging"])
    parser.add_argument("--whole", action="store_true", help="run all of it, and build the book around it")
    arguments = parser.parse_args()
    print(check(arguments.notebook, arguments.mode, arguments.whole))


if __name__ == "__main__":
    main()
