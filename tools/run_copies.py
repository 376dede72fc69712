"""Run each chapter's copy as a stranger would: in an empty folder, in a fresh environment that has only torch.

    python -m tools.run_copies [--keep] [NOTEBOOK ...]

The environment is lent torch and torchvision, with what these two need, by links and a ``.pth`` line, since they are
large; Jupyter's client and kernel are installed, since a reader has opened the notebook with them. Everything else
comes by the copy's own first cell, which takes the wheel from a server on this machine instead of the published site.
"""

import argparse
import functools
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.common import BUILD, SITE, SPEEDS_UNSEEN, notebooks
from tools.copies import FOLDER

LENT = ("torch", "torchvision")
HIDDEN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "QHELPERS_RESULTS", "QHELPERS_CURRENT")
CELL_TIMEOUT_S = 1800


def needed_by(names: tuple[str, ...]) -> dict[str, importlib.metadata.Distribution]:
    """The installed packages of these names, and those that they need."""
    found: dict[str, importlib.metadata.Distribution] = {}
    todo: list[tuple[str, str]] = [(canonicalize_name(name), "") for name in names]
    done = set(todo)
    while todo:
        name, extra = todo.pop()
        found[name] = distribution = importlib.metadata.distribution(name)
        for line in distribution.requires or []:
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                asked = [(str(canonicalize_name(need.name)), one) for one in ["", *need.extras]]
                todo += [one for one in asked if one not in done]
                done |= set(asked)
    return found


def lend(folder: Path) -> None:
    """Fill a folder with links to torch, torchvision and what they need."""
    folder.mkdir(parents=True)
    for distribution in needed_by(LENT).values():
        tops = {path.parts[0] for path in distribution.files or []} - {"..", "__pycache__"}
        for top in tops:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(distribution.locate_file(top))).resolve())


def environment(folder: Path, lent: Path) -> Path:
    """The Python of a fresh environment with torch, torchvision and what runs a notebook."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    (next(folder.glob("lib/python*/site-packages")) / "lent.pth").write_text(f"{lent}\n")
    quiet = ["-qq", "--disable-pip-version-check"]
    subprocess.run([str(python), "-m", "pip", "install", *quiet, "ipykernel", "nbclient"], check=True)
    return python


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine; the address with a slash at its end."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()


def directed(copy: dict[str, Any], address: str) -> dict[str, Any]:
    """A copy whose first cell takes the wheel from another address.

    Raises:
        SystemExit: if it has no such cell.
    """
    cells = [cell for cell in copy["cells"] if "install" in cell["metadata"].get("tags", [])]
    if len(cells) != 1 or len(re.findall(r"^    site='.*',$", cells[0]["source"], re.MULTILINE)) != 1:
        raise SystemExit("The copy has no first cell that names where its wheel is published.")
    cells[0]["source"] = re.sub(r"^    site='.*',$", f"    site={address!r},", cells[0]["source"], flags=re.MULTILINE)
    return copy


def run(copy: Path, address: str, lent: Path, folder: Path) -> str:
    """Run one copy; "" if it passed, else the last line of its error."""
    empty = folder / "empty"
    empty.mkdir(parents=True)
    content = directed(json.loads(copy.read_text(encoding="utf-8")), address)
    (empty / copy.name).write_text(json.dumps(content), encoding="utf-8")
    python = environment(folder / "environment", lent)
    settings = {name: value for name, value in os.environ.items() if name not in HIDDEN} | SPEEDS_UNSEEN
    settings["PIP_NO_COMPILE"] = "1"  # Python compiles what it imports, pip everything
    settings["PATH"] = f"{python.parent}{os.pathsep}{settings['PATH']}"
    command = [str(python.parent / "jupyter-execute"), "--inplace", f"--timeout={CELL_TIMEOUT_S}", copy.name]
    done = subprocess.run(command, cwd=empty, env=settings, capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    lines = [line for line in re.sub(r"\x1b\[[\d;]*m", "", done.stderr).splitlines() if line.strip()]
    (folder / "log.txt").write_text("\n".join(lines))
    said = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
    return (said or lines or ["it ended without a word"])[-1]


def main() -> int:
    """Run the copies of the built site, and say of each whether it passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="keep folders and environments of those that passed, too")
    parser.add_argument("names", nargs="*", metavar="NOTEBOOK", help="only these, by name without ending")
    arguments = parser.parse_args()
    source = SITE / FOLDER
    if not source.is_dir():
        raise SystemExit("There are no copies yet: make book writes them.")
    names = [notebook.stem for notebook in notebooks()]
    if unknown := set(arguments.names) - set(names):
        parser.error(f"no such notebook: {', '.join(sorted(unknown))}")
    failed = 0
    # each run lends for itself: another one may be under way with other notebooks
    with tempfile.TemporaryDirectory(dir=BUILD, prefix="lent-") as lent, served(source) as address:
        lend(Path(lent) / "packages")
        for name in arguments.names or names:
            start, folder = time.perf_counter(), BUILD / "copies" / name
            shutil.rmtree(folder, ignore_errors=True)
            why = run(source / "cleared" / f"{name}.ipynb", address, Path(lent) / "packages", folder)
            failed += bool(why)
            how = f"FAILED: {why}" if why else "passed"
            print(f"{name}: {how} ({time.perf_counter() - start:.0f} s)", flush=True)
            if not why and not arguments.keep:
                shutil.rmtree(folder)
    print(f"copies: {len(arguments.names or names) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
