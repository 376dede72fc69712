"""Run a notebook with an empty torch hub and no network: it must wait briefly, go on, and make a good page.

python -m tools.check_offline NOTEBOOK refused|hanging
"""

import argparse
import json
import os
import shutil
from pathlib import Path

from tools.build_site import build, stage
from tools.build_site import check as check_pages
from tools.common import BUILD
from tools.run_notebooks import run

LONGEST_WAIT_S = 30


def check(notebook: Path, mode: str) -> str:
    """Run the notebook, build the book around it, and return a line that says how it went.

    Raises:
        SystemExit: if it failed, did not try the network, found weights all the same, or waited too long.
    """
    folder = BUILD / "offline" / mode
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log = folder / "attempts.txt"
    code, seconds = run(
        notebook,
        folder / "run",
        {
            "TORCH_HOME": str(folder / "torch_home"),
            "PYTHONPATH": os.pathsep.join(
                [str(Path(__file__).parent / "no_network"), os.environ.get("PYTHONPATH", "")]
            ),
            "NO_NETWORK": mode,
            "NO_NETWORK_LOG": str(log),
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
    stage({notebook.stem: folder / "run" / notebook.name})
    check_pages(build())
    return f"{notebook.stem}, network {mode}: waited {weights['waited_s']:.1f} s, passed in {seconds:.0f} s"


def main() -> None:
    """Check one notebook in one mode."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("mode", choices=["refused", "hanging"])
    arguments = parser.parse_args()
    print(check(arguments.notebook, arguments.mode))


if __name__ == "__main__":
    main()
