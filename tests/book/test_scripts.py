"""The scripts of the workflows: each runs alone, on plain PyTorch, and prints figures that make sense."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.common import ROOT
from tools.imports import imported_names

FOLDER = ROOT / "book" / "scripts"
SCRIPTS = sorted(FOLDER.glob("*.py"))
MOST_LINES = 60
LEAST_DB = {"diagnose": 35, "mobile": 30, "onnx_runtime": 30, "pt2e": 30, "static": 25, "dynamic": 25}

every_script = pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)


def foreign(code: str) -> list[str]:
    """Imports of this project: a script that an engineer copies has none."""
    names = {name.split(".")[0] for name in imported_names(code)}
    return sorted(names & {"qhelpers", "tools", "experiments", "tests"})


@every_script
def test_a_script_is_short_and_needs_nothing_of_this_project(path: Path) -> None:
    code = path.read_text()
    assert len(code.splitlines()) <= MOST_LINES
    assert not foreign(code)
    assert f"python {path.name}" in code.split('"""')[1], "it says how to run it, and what it needs"


@pytest.mark.parametrize("code", ["import qhelpers", "from qhelpers import size", "def f():\n    import tools.common"])
def test_a_script_that_imports_from_this_project_is_found(code: str) -> None:
    assert len(foreign(code)) == 1
    assert not foreign("import torch\nfrom torch import nn")


def test_every_workflow_has_its_script() -> None:
    found = {path.stem for path in SCRIPTS}
    workflows = {"dynamic", "static", "qat", "pretrained", "pt2e", "onnx_runtime", "mobile", "diagnose"}
    assert found == workflows


def run(path: Path, folder: Path, **environment: str) -> str:
    """What a script prints in an empty folder, where no module of this project can be imported."""
    hidden = folder / "qhelpers.py"
    hidden.write_text("raise ImportError('a script must not import qhelpers')")
    settings = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, "-W", "ignore", str(path)]
    done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def numbers(pattern: str, printed: str) -> list[float]:
    found = re.search(pattern, printed)
    assert found, printed
    return [float(one) for one in found.groups()]


@pytest.mark.parametrize("path", [path for path in SCRIPTS if path.stem != "diagnose"], ids=lambda path: path.stem)
def test_a_script_prints_size_speed_and_quality(path: Path, tmp_path: Path) -> None:
    cut = {"NO_NETWORK": "refused", "NO_NETWORK_LOG": str(tmp_path / "log"), "TORCH_HOME": str(tmp_path)}
    if path.stem == "pretrained":  # as on a machine without a network
        cut["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(ROOT / "tools" / "no_network")])
    printed = run(path, tmp_path, **cut)
    float_mb, int8_mb, smaller = numbers(r"size +([\d.]+) MB -> ([\d.]+) MB: ([\d.]+) times smaller", printed)
    assert abs(float_mb / int8_mb - smaller) < 0.1
    assert 3.4 < smaller < 4.1
    assert min(numbers(r"speed +([\d.]+) ms -> ([\d.]+) ms: ([\d.]+) times float's", printed)) > 0
    if path.stem in LEAST_DB:
        assert LEAST_DB[path.stem] < numbers(r"SQNR +([\d.]+) dB", printed)[0] < 60
    if path.stem == "qat":
        before, after = numbers(r"right +([\d.]+) % -> ([\d.]+) %", printed)
        assert before > 85
        assert after > before - 3
    if path.stem == "pretrained":
        assert "Random weights, as the download failed" in printed
        assert "SQNR" not in printed


def test_the_diagnosis_finds_the_wide_channel_and_repairs_it(tmp_path: Path) -> None:
    printed = run(FOLDER / "diagnose.py", tmp_path)
    alone = {name: float(db) for name, db in re.findall(r"only (\w+): ([\d.]+) dB", printed)}
    assert min(alone, key=lambda name: alone[name]) == "2"
    (before, _, _), (after, float_mb, int8_mb) = [
        [float(one) for one in row] for row in re.findall(r"repaired .*: ([\d.]+) dB; ([\d.]+) MB -> ([\d.]+)", printed)
    ]
    assert after > max(before + 10, LEAST_DB["diagnose"])
    assert 3.9 < float_mb / int8_mb <= 4
