"""What make lint marks in the book's prose."""

import json
from pathlib import Path

import pytest

from tools import prose
from tools.common import ROOT


@pytest.mark.parametrize(
    ("markdown", "better"),
    [
        ("What a scale is stands in [the chapter](x.md).", "see …"),
        ("What comes out: 3", "the result"),
        ("the values that three of them put out", "output"),
        ("Use it as it comes.", "as shipped"),
        ("On the road to a phone", "workflow"),
        ("Forget that station.", "step"),
        ("The patient is a MobileNet.", "model"),
        ("It is good for nothing.", "useless"),
        ("a type that the model has not", "lacks"),
        ("Many pages advise to switch that off.", "advise …ing"),
        ("It is very, very fast.", "say how much"),
        ("the the scale", "lexical_illusions"),
    ],
)
def test_a_phrase_that_an_editor_would_mark_is_found(markdown: str, better: str) -> None:
    assert any(better in words for _, words in prose.findings(markdown))
    in_a_cell = f"| a | b |\n|---|---|\n| {markdown} | c |"
    assert any(better in words for line, words in prose.findings(in_a_cell) if line == 3)
    assert any(better in words for _, words in prose.findings(f"```{{note}}\n{markdown}\n```"))


@pytest.mark.parametrize(
    "markdown",
    [
        "`roads` and ``the patient`` are code",
        "```python\nroads = 1  # as it comes\n```",
        "````{code-block} python\nroads = 1\n````",
        "It takes {glue:text}`road` ms, $patient$ times.",
        "The broad railroad is in [a table](roads.md).",
        "`a` `b` {glue:text}`c` {glue:text}`d`",
        "# Static attention\n\nAttention is static.",
        "",
    ],
)
def test_code_numbers_and_addresses_are_not_read(markdown: str) -> None:
    assert prose.findings(markdown) == []


def test_a_line_of_a_text_is_found_again() -> None:
    markdown = "# Title\n\n```python\nx = 1\n\n```\n{term}`a\nscale <scale>` and ``two\nlines``\non the road"
    assert [line for line, _ in prose.findings(markdown)] == [10]


def test_files_and_notebooks_are_read_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [
        {"cell_type": "code", "id": "c", "source": ["# the road"]},
        {"cell_type": "markdown", "id": "m", "source": ["x\n", "the road"]},
    ]
    (tmp_path / "page.ipynb").write_text(json.dumps({"cells": cells}))
    (tmp_path / "page.md").write_text("plain words")
    for name, status in (("page.ipynb", 1), ("page.md", 0)):
        monkeypatch.setattr("sys.argv", ["prose", str(tmp_path / name)])
        assert prose.main() == status
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith("page.ipynb:m:2: “road”: workflow, way, path")
    assert printed[1:] == ["prose: 1 findings in 1 files", "prose: 0 findings in 1 files"]


def test_the_page_on_style_shows_what_the_check_finds() -> None:
    rows = [line for line in (ROOT / "STYLE.md").read_text().splitlines() if line.startswith("| ")]
    pairs = [row.strip("| ").split(" | ") for row in rows[1:16]]
    assert len(pairs) == 15
    assert sum(bool(prose.findings(before)) for before, _ in pairs) >= 5
    assert not [after for _, after in pairs if prose.findings(after)]
