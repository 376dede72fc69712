"""What a chapter prints about itself, the errors that it expects, and where it leaves results."""

import json
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from qhelpers import atomic
from qhelpers.book import chapter


def test_expected_error_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with chapter.expected_error(ValueError, "first") as seen:
        raise ValueError("first line\nsecond line")
    assert capsys.readouterr().out == "ValueError: first line\n"
    assert (seen.type_name, seen.message) == ("ValueError", "first line")


def test_expected_error_prints_the_line_with_the_expected_words(capsys: pytest.CaptureFixture[str]) -> None:
    with chapter.expected_error(ValueError, "second"):
        raise ValueError("first line\nthe second line")
    assert capsys.readouterr().out == "ValueError: the second line\n"


def test_expected_error_fails_when_nothing_is_raised() -> None:
    with pytest.raises(AssertionError, match="Nothing was raised"), chapter.expected_error(ValueError, ""):
        pass


def test_expected_error_fails_on_another_message() -> None:
    with pytest.raises(AssertionError, match="without 'shape'"), chapter.expected_error(ValueError, "shape"):
        raise ValueError("type")


def test_expected_error_lets_another_type_through() -> None:
    with pytest.raises(KeyError), chapter.expected_error(ValueError, ""):
        raise KeyError("x")


def test_environment_names_versions_cpu_threads_and_engine() -> None:
    line = chapter.environment()
    assert re.match(
        r"Python 3\.\d+\.\d+, torch \d.*, torchvision \d[^\n]*\n.+ \(.+\), \d+ threads?, .* engine \w+$", line
    )


def test_a_chapter_s_start_leaves_the_machine_beside_its_results(fresh_results: Path) -> None:
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), pd.option_context("display.max_colwidth", None):
        chapter.start()
    kept = json.loads((fresh_results / "environment.json").read_text())
    assert set(kept["versions"]) == {"Python", "torch", "torchvision", "onnxruntime", "executorch", "torchao"}
    assert f"{kept['processor']} ({kept['instructions']}), " in chapter.environment()


def test_results_go_below_the_working_folder_or_where_the_variable_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QHELPERS_RESULTS", str(tmp_path / "elsewhere"))
    chapter.record("a", {"n": 1})
    assert (tmp_path / "elsewhere" / "a.json").is_file()
    monkeypatch.delenv("QHELPERS_RESULTS")
    monkeypatch.chdir(tmp_path)
    chapter.record("b", {"n": 1})
    assert (tmp_path / "qhelpers-results" / "b.json").is_file()


def test_a_working_folder_that_cannot_be_written_is_named_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.delenv("QHELPERS_RESULTS")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(atomic.tempfile, "mkdtemp", refuse)
    with pytest.raises(
        atomic.WriteError, match=r"a\.json cannot be written .*Permission denied\. Name a folder .*QHELPERS_RESULTS"
    ):
        chapter.record("a", {"n": 1})


def test_a_file_in_the_place_of_the_results_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "results").write_text("in the way")
    monkeypatch.setenv("QHELPERS_RESULTS", str(tmp_path / "results"))
    with pytest.raises(atomic.WriteError, match="cannot be written into"):
        chapter.record("a", {"n": 1})
    assert (tmp_path / "results").read_text() == "in the way"


def test_a_page_gathers_what_the_runner_hands_over_and_else_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chapter.gathered_folders() == [chapter.results_folder()]
    monkeypatch.setenv("QHELPERS_CURRENT", json.dumps([str(tmp_path / "one"), str(tmp_path / "a:b")]))
    assert chapter.gathered_folders() == [tmp_path / "one", tmp_path / "a:b"]
    monkeypatch.setenv("QHELPERS_CURRENT", "[]")  # no chapter is current
    assert chapter.gathered_folders() == []


def returned(value: object) -> object:
    import os

    return [value, os.environ.get("QHELPERS_TEST"), os.getpid()]


def failing() -> None:
    raise ValueError("first line\nsecond line")


def not_json() -> object:
    return {1, 2}


def test_a_function_runs_in_a_process_of_its_own_with_the_variables_that_are_named() -> None:
    value, variable, process = chapter.in_new_process(returned, ["it's", 1.5, None], QHELPERS_TEST="set")
    assert value == ["it's", 1.5, None]
    assert variable == "set"
    assert process != os.getpid()
    assert "QHELPERS_TEST" not in os.environ


@pytest.mark.parametrize(
    ("function", "said"),
    [(failing, "failing failed in its process: second line"), (not_json, "Object of type set is not JSON")],
)
def test_a_function_that_fails_in_its_process_is_named_with_the_last_line(
    function: Callable[[], object], said: str
) -> None:
    with pytest.raises(RuntimeError, match=said):
        chapter.in_new_process(function)
