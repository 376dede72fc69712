"""A script of a workflow that a chapter runs."""

from pathlib import Path

import pytest

from qhelpers.book import standalone

PRINTED = """
import os, sys
print("[torch.onnx] Translate the graph...")
print("size   4.00 MB -> 1.00 MB: 4.00 times smaller")
print("SQNR   33.1 dB; the same answer for 99.3 % of 1000 inputs")
print("repaired []: 20.1 dB; 2 MB -> 1 MB")
print("repaired ['2']: 40.1 dB; 2 MB -> 1 MB")
assert os.listdir() == [] and os.environ["OMP_NUM_THREADS"] == "1"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(standalone, "FOLDERS", (tmp_path,))
    return tmp_path


def test_what_a_script_prints_is_printed_and_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "small.py").write_text(PRINTED)
    found = standalone.run("small")
    assert found == {"smaller": 4.0, "sqnr_db": 33.1, "before_db": 20.1, "after_db": 40.1}
    assert capsys.readouterr().out.splitlines()[0].startswith("size")


def test_a_script_that_fails_is_told_with_its_error(folder: Path) -> None:
    (folder / "broken.py").write_text("raise ValueError('no model')")
    with pytest.raises(standalone.ScriptError, match=r"broken\.py failed: ValueError: no model"):
        standalone.run("broken")


def test_no_script_downloads(folder: Path) -> None:
    (folder / "greedy.py").write_text("import urllib.request\nurllib.request.urlopen('https://download.pytorch.org')")
    with pytest.raises(standalone.ScriptError, match="refused"):
        standalone.run("greedy")
