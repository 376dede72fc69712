"""Run notebooks where qnnpack is the only engine, and make a good page of each.

The other engines are hidden from every process (``tools/qnnpack_only``), on this machine and its processor, so it says
nothing about ARM: chapters must choose through ``default_engine``, and leave out, with a word, what needs an engine
that is not there.

    python -m tools.check_qnnpack_only [NOTEBOOK ...]
"""

import argparse
import shutil
import sys
from pathlib import Path

from tools.build_site import build, stage
from tools.build_site import check as check_pages
from tools.common import BUILD, environment_with, gathers_results, notebooks
from tools.run_notebooks import run

PROOF = "quantized engine qnnpack"  # in the line that every chapter prints first; without hiding it says x86


def check(chosen: list[Path]) -> list[str]:
    """Run the notebooks, build the book around them, and return the names of those that fail."""
    folder = BUILD / "qnnpack-only"
    shutil.rmtree(folder, ignore_errors=True)
    failed, copies = [], {}
    for notebook in chosen:
        code, seconds, _ = run(notebook, folder / notebook.stem, environment_with("qnnpack_only"))
        copy = folder / notebook.stem / notebook.name
        good = code == 0 and PROOF in copy.read_text()
        if not good:
            failed.append(notebook.stem)
        copies[notebook.stem] = copy
        print(f"{notebook.stem}, other engines hidden: {'passed' if good else 'FAILED'}, {seconds:.0f} s", flush=True)
    if not failed:
        stage(copies)
        check_pages(build())
    return failed


def main() -> int:
    """Check the notebooks that are named, or all but the pages that gather the others' results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path)
    chosen = parser.parse_args().notebooks or [path for path in notebooks() if not gathers_results(path)]
    failed = check(chosen)
    print(f"{len(chosen)} notebooks with the other engines hidden; failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
