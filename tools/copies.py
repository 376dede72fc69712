"""Lay beside the site what a reader takes along: a copy of each chapter, and the wheel that its first cell installs.

The copies with outputs lie in ``notebooks/``, those without in ``notebooks/cleared/``, the wheel beside the former.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from tools import portable
from tools.common import BUILD, ROOT, notebooks, site_url
from tools.imports import code_of, imported_names, reached_files, strings
from tools.run_notebooks import EXECUTED

FOLDER = "notebooks"  # below the site; on the branch of that name the cleared ones lie, for Colab
FIRST_CELL = Path(__file__).with_name("first_cell.py")
PACKED = ("pyproject.toml", "LICENSE", "README.md")  # what the wheel has beside the package
SCRIPTS = ROOT / "book" / "scripts"  # a chapter's copy runs its workflow's script, too
EPOCH = "315532800"  # 1980, the first year that a zip file knows: the same sources give the same wheel


def build_wheel(folder: Path) -> Path:
    """Build the wheel of ``qhelpers`` into a folder; the same sources give the same bytes."""
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as clean:  # setuptools would pack what it finds of an earlier build
        source = Path(clean) / "source"
        left_out = shutil.ignore_patterns("__pycache__", "*.part", "qhelpers-results", "checked")
        shutil.copytree(ROOT / "qhelpers", source / "qhelpers", ignore=left_out)
        shutil.copytree(SCRIPTS, source / "qhelpers" / "book" / "scripts", ignore=left_out)
        for name in PACKED:
            shutil.copy(ROOT / name, source)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        command += ["--disable-pip-version-check", "--wheel-dir", str(folder), str(source)]
        subprocess.run(command, check=True, env=os.environ | {"SOURCE_DATE_EPOCH": EPOCH})
    return next(folder.glob("qhelpers-*.whl"))


def offered() -> dict[str, list[str]]:
    """The packages that each extra of ``qhelpers`` brings."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return {extra: [Requirement(line).name for line in lines] for extra, lines in sorted(declared.items())}


def extras(notebook: Path) -> list[str]:
    """The extras that a chapter needs: ``book``, and each whose packages it, or a module that it reaches, imports.

    A string that is a dotted name counts, too, since such names are looked up.
    """
    codes = [path.read_text(encoding="utf-8") for path in reached_files(notebook, ROOT) if path.suffix == ".py"]
    full = {name for code in [code_of(notebook), *codes] for name in imported_names(code)}
    full |= {words for words in strings(code_of(notebook)) if re.fullmatch(r"\w+(\.\w+)+", words)}
    names = {name.split(".")[0] for name in full}
    return [extra for extra, packages in offered().items() if extra == "book" or names & set(packages)]


def first_cell(notebook: Path, wheel: Path) -> str:
    """The code that installs what a chapter needs, from this wheel only."""
    chosen = extras(notebook)
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    site = site_url(ROOT)
    arguments = {
        "wheel": wheel.name,
        "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "site": site and f"{site}{FOLDER}/",
        "extras": ",".join(chosen),
        "needed": {"qhelpers": ""} | {name: pins[name] for extra in chosen for name in offered()[extra]},
        "tested": {name: pins[name] for name in ("torch", "torchvision")},
    }
    call = "\n".join(f"    {name}={value!r}," for name, value in arguments.items())
    return f"{FIRST_CELL.read_text(encoding='utf-8').strip()}\n\n\ninstall_helpers(\n{call}\n)"


def write(site: Path) -> None:
    """Write the copies of all chapters and the wheel into a site."""
    folder = site / FOLDER
    (folder / "cleared").mkdir(parents=True, exist_ok=True)
    wheel = build_wheel(folder)
    among = portable.book(ROOT)
    for source in notebooks():
        executed = json.loads((EXECUTED / source.name).read_text(encoding="utf-8"))
        copy = portable.portable(executed, source.stem, among, first_cell(source, wheel))
        for target, content in ((folder, copy), (folder / "cleared", portable.cleared(copy))):
            text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
            (target / source.name).write_text(text, encoding="utf-8")


def main() -> None:
    """Build the wheel alone: ``python -m tools.copies FOLDER``."""
    print(build_wheel(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
