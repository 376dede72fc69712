"""The workflows' scripts, run as a reader runs them: alone, in an empty folder."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
FOLDERS = (HERE / "scripts", HERE.parents[1] / "book" / "scripts")  # in an installed package, in a checkout
PROGRESS = re.compile(r"^\[torch\.onnx\].*\n", re.MULTILINE)
FIGURES = {
    "smaller": r"([\d.]+) times smaller",
    "speed": r"([\d.]+) times float's",
    "sqnr_db": r"SQNR +([\d.]+) dB",
    "right_float": r"right +([\d.]+) %",
    "right_int8": r"right .* -> ([\d.]+) %",
    "before_db": r"repaired \[\]: ([\d.]+) dB",
    "after_db": r"repaired \['.*'\]: ([\d.]+) dB",
}


class ScriptError(Exception):
    """There is no such script, or it failed."""


def run(name: str) -> dict[str, float]:
    """Run a script in its own process, print its output, and return the figures in it.

    It downloads nothing: weights that are in torch's cache are used. It computes on one thread.

    Args:
        name: its file name without ending.

    Returns:
        Those of ``FIGURES`` that it printed: sizes and speeds are ratios to float.

    Raises:
        ScriptError: if there is no such script, or it fails; with the last line of its error.

    >>> run("static.py")
    Traceback (most recent call last):
        ...
    qhelpers.book.standalone.ScriptError: There is no script static.py; choose one of: diagnose, dynamic, mobile, \
onnx_runtime, pretrained, pt2e, qat, static.
    """
    scripts = {path.stem: path for folder in FOLDERS for path in sorted(folder.glob("*.py"))}
    if name not in scripts:
        raise ScriptError(f"There is no script {name}; choose one of: {', '.join(sorted(scripts))}.")
    nowhere = {"HTTPS_PROXY": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    settings = os.environ | nowhere | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "ignore", str(scripts[name])]
        done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True)
    if done.returncode != 0:
        raise ScriptError(f"{name}.py failed: {(done.stderr.strip() or 'it ended without a word').splitlines()[-1]}")
    printed = PROGRESS.sub("", done.stdout)
    print(printed, end="")
    found = {figure: re.search(pattern, printed) for figure, pattern in FIGURES.items()}
    return {figure: float(match[1]) for figure, match in found.items() if match}
