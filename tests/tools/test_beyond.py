"""The page on life without Jupyter Book: its configuration says what Jupyter Book makes of ``_config.yml``."""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from jupyter_book.config import get_final_config

from tools.common import ROOT

PAGE = ROOT / "book" / "beyond-jupyter-book-1.md"
# What Jupyter Book's own builder and its LaTeX need, and what repeats a default of Sphinx or of an extension.
OF_JUPYTER_BOOK = {"jupyter_book", "sphinx_jupyterbook_latex", "sphinx_multitoc_numbering"}


def test_the_configuration_on_the_page_says_what_jupyter_book_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, tmp_path)
    (code,) = re.findall(r"^```python\n(.+?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    monkeypatch.setattr(sys, "path", [*sys.path])
    ours: dict[str, Any] = {"__file__": str(tmp_path / "conf.py")}
    exec(code, ours)
    asked = {"latex_individualpages": False}
    theirs, _ = get_final_config(user_yaml=tmp_path / "_config.yml", cli_config=asked, sourcedir=tmp_path)
    assert [name for name in theirs["extensions"] if name not in OF_JUPYTER_BOOK] == ours["extensions"]
    assert set(ours["exclude_patterns"]) <= set(theirs["exclude_patterns"])
    assert ours["html_theme_options"].items() <= theirs["html_theme_options"].items()
    same = set(ours) & set(theirs) - {"extensions", "exclude_patterns", "html_theme_options"}
    assert len(same) > 10
    assert {name: ours[name] for name in same} == {name: theirs[name] for name in same}
