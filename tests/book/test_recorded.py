"""Recorded results: read where they fit this PyTorch, and refused with a reason where they do not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qhelpers.book import recorded


def written(folder: Path, change: Callable[[dict[str, Any]], None] = lambda found: None) -> Path:
    found = {"script": "experiments/a.py", "date": "2026-11-23", "versions": {"torch": torch.__version__}, "rows": [{}]}
    change(found)
    (folder / "a.json").write_text(json.dumps(found))
    return folder


def test_results_of_another_version_are_refused_but_in_a_lane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert recorded.results("a", written(tmp_path))["rows"] == [{}]

    def older(found: dict[str, Any]) -> None:
        found["versions"]["torch"] = "2.0.1"

    with pytest.raises(
        recorded.RecordedError, match=r"a\.json was made with torch 2\.0\.1, this is .*run experiments/a\.py"
    ):
        recorded.results("a", written(tmp_path, older))
    monkeypatch.setenv("QHELPERS_LANE", "1")
    assert recorded.results("a", tmp_path)["rows"] == [{}]


def test_results_of_an_older_version_are_read_where_that_version_is_wanted(tmp_path: Path) -> None:
    def older(found: dict[str, Any]) -> None:
        found["versions"]["torch"] = "2.12.1+cu130"

    written(tmp_path, older)
    assert recorded.results("a", tmp_path, made_with="2.12")["rows"] == [{}]
    with pytest.raises(recorded.RecordedError, match=r"made with torch 2\.12\.1.*, this is 2\.11"):
        recorded.results("a", tmp_path, made_with="2.11")


@pytest.mark.parametrize("missing", ["script", "date", "versions", "rows"])
def test_damaged_results_are_refused(tmp_path: Path, missing: str) -> None:
    with pytest.raises(recorded.RecordedError, match=rf"a\.json is damaged.*{missing}"):
        recorded.results("a", written(tmp_path, lambda found: found.pop(missing)))


def test_a_seed_that_was_not_run_is_refused() -> None:
    with pytest.raises(recorded.RecordedError, match=r"experiments/qat_runs\.py has left no row with seed=99"):
        recorded.rows_where(recorded.results("qat_runs"), seed=99)


@pytest.mark.parametrize(
    "content", [b"\xff", b"[]", b'{"script": "a", "date": "b", "rows": [], "versions": {"torch": null}}']
)
def test_a_file_that_is_no_record_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(recorded.RecordedError, match=r"a\.json (is damaged|was made with torch None)"):
        recorded.results("a", tmp_path)


def test_a_result_that_this_installation_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(recorded.RecordedError, match=r"no recorded result gone\.json .*\(a\): install qhelpers anew"):
        recorded.results("gone", written(tmp_path))
