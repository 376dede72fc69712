"""Run every notebook where eager quantization is hidden, and compare with what its metadata says that it needs.

The old calls, dtypes and kernels are hidden from the notebooks and from qhelpers (``tools/no_eager``). A notebook that
declares a need (``metadata.book.needs``) must stop for lack of it, any other must run to its end.

    python -m tools.check_no_eager [NOTEBOOK ...]
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools import needs
from tools.common import BUILD, environment_with, notebooks
from tools.run_notebooks import run

HIDDEN = re.compile(
    r"(?:module named '(?P<module>[\w.]+)'|'(?P<of>[\w.]+)' has no attribute '(?P<last>\w+)') \(hidden"
    rf"|has no attribute '(?P<method>{needs.METHOD})'"
    r"|cannot import name '(?P<part>\w+)' from '(?P<package>[\w.]+)'"
)


@dataclass(frozen=True)
class Stop:
    """Where a notebook stopped, and why: the hidden name, or an error that names none."""

    cell: str
    name: str
    error: str

    def __str__(self) -> str:
        return f"stops at cell {self.cell}{f' for lack of {self.name}' if self.name else f': {self.error}'}"


def stop_of(notebook: dict[str, Any]) -> Stop:
    """The first cell of a notebook that failed; its reason may be in what the notebook printed before (a report)."""
    printed = ""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                error = f"{output['ename']}: {output['evalue']}"
                return Stop(cell["id"], _hidden_name(error) or _hidden_name(printed), error.partition("\n")[0])
            printed += "".join(output.get("text", ""))
    return Stop("?", "", "failed outside its cells")


def _stop_in(executed: Path) -> Stop:
    try:
        return stop_of(json.loads(executed.read_text(encoding="utf-8")))
    except ValueError as error:
        return Stop("?", "", f"left a damaged notebook ({error})")


def _hidden_name(text: str) -> str:
    for found in HIDDEN.finditer(text):
        if not found["part"]:
            return found["module"] or found["method"] or f"{found['of']}.{found['last']}"
        if needs.kinds_of(name := f"{found['package']}.{found['part']}"):  # Python says so of any missing name
            return name
    return ""


def disagreement(declared: list[str], stop: Stop | None) -> str:
    """In which way metadata and run disagree; "" if they agree."""
    if stop is None:
        return f"it runs, but declares {', '.join(declared)}" if declared else ""
    if not declared:
        return "it declares that it needs nothing"
    if not stop.name:
        return "it did not stop for lack of what is hidden"
    missing = needs.kinds_of(stop.name) - {*declared}
    return f"it does not declare {', '.join(sorted(missing))}" if missing else ""


def check(chosen: list[Path]) -> Iterator[tuple[str, str, str]]:
    """Run the notebooks, and go on after failures; of each its name, what happened, and how metadata disagrees."""
    declared = {notebook: needs.declared(notebook) for notebook in chosen}  # before anything runs
    for notebook in chosen:
        folder = BUILD / "no-eager" / notebook.stem
        code, _, _ = run(notebook, folder, environment_with("no_eager"))
        stop = None if code == 0 else _stop_in(folder / notebook.name)
        yield notebook.stem, str(stop or "runs"), disagreement(declared[notebook], stop)


def main() -> int:
    """Check the notebooks that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path)
    lines, failed = [], []
    for name, happened, wrong in check(parser.parse_args().notebooks or notebooks()):
        lines.append(f"{name}: {happened}{f'  DISAGREES: {wrong}' if wrong else ''}")
        print(lines[-1], flush=True)
        failed += [name] if wrong else []
    print("\nWith eager quantization hidden:", *lines, sep="\n")
    print(f"{len(lines)} notebooks; metadata and run disagree: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
