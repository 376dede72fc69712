"""Run every notebook of the book once, with ``pytest --nbmake`` over a copy.

A notebook is run again only if it has changed, or something that it depends on: the files that its imports reach, the
requirements, Python, PyTorch or the processor, the source of the published weights and, where it gathers results, those
of the chapters before it. An executed copy replaces the previous one when it is complete, so a run that is cut off
loses nothing.

    python -m tools.run_notebooks [--force] [--jobs N] [NOTEBOOK ...]

One runs after another, since chapters measure time. With two jobs two run side by side, where nobody looks at speeds.
"""

import argparse
import datetime
import importlib.metadata
import inspect
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from qhelpers import atomic, engines
from qhelpers.book import chapter
from tools.common import (
    BUILD,
    ROOT,
    commit,
    files_below,
    gathers_results,
    hash_files,
    notebooks,
    require_writable,
)
from tools.imports import reached_files

EXECUTED = BUILD / "executed"
RESULTS = BUILD / "results"
VERSIONS = {"Python": platform.python_version()} | {
    name: importlib.metadata.version(name) for name in ("torch", "torchvision")
}
CELL_TIMEOUT_S = 900  # a cell that times a table in five processes takes minutes, on a busy machine more


def weights_source() -> str:
    """What stands in torch's hub cache: it decides which weights a chapter shows."""
    home = os.environ.get("TORCH_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "torch"
    )
    return hash_files((Path(home) / "hub" / "checkpoints").glob("*mobilenet_v2*.pth"))


def inputs_hash(notebook: Path, known: dict[str, bool] | None = None) -> str:
    """Hash of everything that decides what a notebook's outputs are."""
    return f"{project_hash(notebook, known)} {weights_source()}"


def project_hash(notebook: Path, known: dict[str, bool] | None = None) -> str:
    """The part of the inputs that belongs to the project and its environment."""
    paths = [notebook, ROOT / "requirements.txt", *reached_files(notebook, ROOT)]
    text = notebook.read_text(encoding="utf-8")
    paths += [path for path in (ROOT / "book" / "scripts").glob("*.py") if f"scripts/{path.name}" in text]
    for folder in results_to_gather(notebook, known):
        paths += files_below(folder)
    versions = [importlib.metadata.version(name) for name in ("torch", "torchvision")]
    return hash_files(paths, platform.python_version(), *versions, engines.cpu_name(), inspect.getsource(run))


def results_to_gather(notebook: Path, known: dict[str, bool] | None = None) -> list[Path]:
    """The results folders of the current chapters before a page that gathers results; none for a chapter."""
    if not gathers_results(notebook):
        return []
    order = notebooks()
    before = order[: [path.stem for path in order].index(notebook.stem)]
    return [RESULTS / path.stem for path in before if is_current(path, known)]


def stamp_file(notebook: Path) -> Path:
    """Where hash and duration of the last complete run are kept."""
    return EXECUTED / f"{notebook.stem}.json"


def is_current(notebook: Path, known: dict[str, bool] | None = None) -> bool:
    """Whether the executed copy comes from the present inputs.

    Args:
        notebook: the chapter.
        known: what was found of others, by name, in a moment in which nothing is executed; what is found is added.
    """
    known = {} if known is None else known
    if notebook.stem not in known:
        known[notebook.stem] = _is_current(notebook, known)
    return known[notebook.stem]


def _is_current(notebook: Path, known: dict[str, bool]) -> bool:
    stamp = stamp_file(notebook)
    if not stamp.is_file() or not (EXECUTED / notebook.name).is_file():
        return False
    try:
        kept = json.loads(stamp.read_text())
        results_are_there = (RESULTS / notebook.stem).is_dir() or not kept["has_results"]
        enough = kept["processes"] >= chapter.processes()
        enough = enough and kept["most_rounds"] in (None, os.environ.get("QHELPERS_ROUNDS"))
        return bool(results_are_there and enough and kept["hash"] == inputs_hash(notebook, known))
    except (ValueError, KeyError, TypeError):  # a stamp that was cut off or written over
        return False


def all_stale() -> list[str]:
    """The names of the notebooks whose executed copies are not current."""
    known: dict[str, bool] = {}
    return [notebook.stem for notebook in notebooks() if not is_current(notebook, known)]


def run(notebook: Path, folder: Path, extra_env: dict[str, str] | None = None) -> tuple[int, float, float | None]:
    """Copy a notebook into an empty folder and run it there.

    Its results go to ``folder / "results"``.

    Returns:
        pytest's exit code, the seconds it took, and the peak of resident memory of its largest process in MB (None
        where the system does not tell).
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    copy = folder / notebook.name
    shutil.copy(notebook, copy)
    (folder / "pytest.ini").write_text("[pytest]\n")  # the project's own settings are not for notebooks
    command = [sys.executable, "-m", "pytest", "--nbmake", "--overwrite", f"--nbmake-timeout={CELL_TIMEOUT_S}"]
    command += ["-q", "--no-header", "--tb=short", "-p", "no:cacheprovider", "--rootdir", str(folder), copy.name]
    environment = {name: value for name, value in os.environ.items() if name != "QHELPERS_CURRENT"}
    environment |= {"QHELPERS_RESULTS": str(folder / "results"), "JUPYTER_PREFER_ENV_PATH": "1"}
    environment["TQDM_DISABLE"] = "1"  # a page cannot show a bar move
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads stall each other on a busy machine
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=folder, env=environment | (extra_env or {}))
    code, peak_mb = waited_for(process)
    return code, time.monotonic() - started, peak_mb


def waited_for(process: "subprocess.Popen[bytes]") -> tuple[int, float | None]:
    """A process's exit code, and the peak of memory in MB of the largest among it and those that it waited for."""
    if not hasattr(os, "wait4"):  # Windows
        return process.wait(), None
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.kill()
        process.wait()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def run_and_keep(notebook: Path) -> bool:
    """Run a notebook and, if it passes, let its copy and results replace the previous ones."""
    before, at = project_hash(notebook), commit(ROOT)
    folder = BUILD / "running" / notebook.stem
    gathered = results_to_gather(notebook)
    handed = {"QHELPERS_CURRENT": json.dumps([*map(str, gathered)])} if gathers_results(notebook) else None
    code, seconds, peak_mb = run(notebook, folder, handed)
    if code != 0:
        return False
    stamp_file(notebook).unlink(missing_ok=True)
    EXECUTED.mkdir(parents=True, exist_ok=True)
    os.replace(folder / notebook.name, EXECUTED / notebook.name)
    shutil.rmtree(RESULTS / notebook.stem, ignore_errors=True)
    has_results = (folder / "results").is_dir()
    if has_results:
        RESULTS.mkdir(parents=True, exist_ok=True)
        os.replace(folder / "results", RESULTS / notebook.stem)
    # A notebook may fill the hub cache itself; that must not make its copy stale.
    stamp: dict[str, Any] = {"hash": f"{before} {weights_source()}", "seconds": round(seconds, 1)}
    stamp["has_results"] = has_results
    stamp["commit"] = at  # a copy serves later commits that change nothing for it; publishing asks for the same one
    stamp |= {"peak_mb": peak_mb and round(peak_mb), "date": datetime.date.today().isoformat()}
    stamp |= {"processor": engines.cpu_name(), "versions": VERSIONS}
    stamp["most_rounds"] = os.environ.get("QHELPERS_ROUNDS")  # of a timing, if it was cut short
    stamp["processes"] = chapter.processes()  # a page that was measured by more of them serves those who want fewer
    atomic.write_text(stamp_file(notebook), json.dumps(stamp))
    return True


def remove_leftovers(current: list[Path]) -> None:
    """Forget executed copies and results of notebooks that the book no longer has."""
    stems = {notebook.stem for notebook in current}
    for path in list(EXECUTED.glob("*")) + list(RESULTS.glob("*")):
        if path.stem not in stems:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def bring_up_to_date(notebook: Path, force: bool) -> float | None:
    """Run a notebook unless it is current, and say so; the seconds it took, None if it failed."""
    if not force and is_current(notebook):
        print(f"{notebook.stem}: unchanged, its executed copy is reused", flush=True)
        return 0.0
    if not run_and_keep(notebook):
        print(f"{notebook.stem}: FAILED", flush=True)
        return None
    seconds = float(json.loads(stamp_file(notebook).read_text())["seconds"])
    print(f"{notebook.stem}: executed in {seconds:.1f} s", flush=True)
    return seconds


def main() -> int:
    """Run what has to be run; print each notebook's time and the total."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--force", action="store_true", help="run all again")
    parser.add_argument("--jobs", type=int, default=1, choices=(1, 2), help="how many run side by side")
    parser.add_argument("names", nargs="*", metavar="NOTEBOOK", help="only these, by name without ending")
    arguments = parser.parse_args()
    everything = notebooks()
    unknown = set(arguments.names) - {notebook.stem for notebook in everything}
    if unknown:
        parser.error(f"no such notebook: {', '.join(sorted(unknown))}")
    require_writable(BUILD)
    remove_leftovers(everything)
    chosen = [notebook for notebook in everything if not arguments.names or notebook.stem in arguments.names]
    chapters = [notebook for notebook in chosen if not gathers_results(notebook)]  # they come first
    with ThreadPoolExecutor(arguments.jobs) as side_by_side:
        done = list(side_by_side.map(lambda notebook: bring_up_to_date(notebook, arguments.force), chapters))
    done += [bring_up_to_date(notebook, arguments.force) for notebook in chosen[len(chapters) :]]
    failed = [notebook.stem for notebook, seconds in zip(chosen, done, strict=True) if seconds is None]
    total = sum(seconds or 0.0 for seconds in done)
    print(f"notebooks: {total:.1f} s in all{'; failed: ' + ', '.join(failed) if failed else ''}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
