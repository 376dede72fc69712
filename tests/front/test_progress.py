"""Progress bars are seen where they are wanted, and nowhere else."""

import os
import subprocess
import sys

import pytest

from qhelpers.progress import progress_bar


def test_a_bar_names_what_goes_on_and_what_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar([1, 2], doing="sorting", unit="shoe", show=True)) == [1, 2]
    shown = capsys.readouterr().err
    assert "sorting" in shown
    assert "shoe" in shown


def test_a_bar_that_is_not_wanted_stays_away(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar(iter([1, 2]), doing="sorting", unit="shoe", show=False)) == [1, 2]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("disabled", "seen"), [("1", False), ("", True)])
def test_the_environment_decides_where_nobody_else_does(disabled: str, seen: bool) -> None:
    code = "from qhelpers.progress import progress_bar; list(progress_bar([1], doing='sorting', unit='shoe'))"
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    environment |= {"TQDM_DISABLE": disabled} if disabled else {}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert ("sorting" in done.stderr) == seen


def test_a_notebook_obeys_the_environment_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tqdm.notebook import tqdm as notebook_bar

    monkeypatch.setattr("qhelpers.progress.tqdm", notebook_bar)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    bar = progress_bar([1, 2], doing="sorting", unit="shoe")
    assert bar.disable
    assert list(bar) == [1, 2]
    assert "sorting" not in "".join(capsys.readouterr())
