"""Rows of the comparison table: made, written, read, and refused when they cannot be trusted."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qhelpers import compare, engines, models

GOOD: dict[str, Any] = {
    "model": "float",
    "size_mb": 9.2,
    "speed": 1.0,
    "speed_quartiles": (0.9, 1.1),
    "metric": "top-1 in %",
    "value": 99.0,
    "interval": (98.0, 99.5),
    "n": 1000,
    "agreement": 100.0,
    "setting": "a CPU, 1 thread, engine x86",
}


class Inverting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return -x


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    return [(torch.eye(4), torch.arange(4))]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A chapter's rows as the book's runner leaves them; returns the folder of all results."""
    monkeypatch.setenv("QHELPERS_RESULTS", str(tmp_path / "all" / "some-chapter"))
    compare.write_rows("some-chapter", [compare.Row(**GOOD), compare.Row(**GOOD | {"model": "int8"})])
    return tmp_path / "all"


def test_compare_measures_each_candidate_against_the_first(batches: list[tuple[Tensor, Tensor]]) -> None:
    same, inverted = nn.Identity().eval(), Inverting().eval()
    rows = compare.compare({"float": same, "inverted": inverted}, batches, torch.eye(4), rounds=3)
    assert [(row.value, row.agreement, row.n) for row in rows] == [(100.0, 100.0, 4), (0.0, 0.0, 4)]
    assert rows[0].speed == 1.0


def test_compare_runs_each_model_under_its_engine(batches: list[tuple[Tensor, Tensor]]) -> None:
    seen = set()

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.add(torch.backends.quantized.engine)
            return x

    with engines.using_engine(engines.default_engine()):
        rows = compare.compare(
            {"float": nn.Identity().eval(), "spy": Spy().eval()},
            batches,
            torch.eye(4),
            engine_of={"spy": "qnnpack"},
            rounds=2,
        )
    assert seen == {"qnnpack"}
    assert rows[1].setting.endswith("engine qnnpack")
    assert rows[0].setting.endswith(f"engine {engines.default_engine()}")


def test_compare_refuses_what_it_cannot_measure(batches: list[tuple[Tensor, Tensor]]) -> None:
    one = {"float": nn.Identity().eval()}
    with pytest.raises(ValueError, match="no candidate: int8"):
        compare.compare(one, batches, torch.eye(4), engine_of={"int8": "x86"})
    with pytest.raises(ValueError, match="no image"):
        compare.compare(one, [], torch.eye(4))
    with pytest.raises(ValueError, match="nothing to time"):
        compare.compare({}, batches, torch.eye(4))
    with pytest.raises(models.TrainingModeError):
        compare.compare({"float": nn.Identity().train()}, batches, torch.eye(4))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", " "),
        ("size_mb", 0.0),
        ("size_mb", float("nan")),
        ("speed", float("inf")),
        ("speed", 2.0),  # outside its quartiles
        ("speed_quartiles", (1.1, 0.9)),
        ("metric", "accuracy"),
        ("value", 101.0),
        ("interval", (99.2, 99.5)),
        ("n", 0),
        ("agreement", 100.1),
        ("setting", ""),
    ],
)
def test_an_impossible_row_is_refused(field: str, value: object) -> None:
    with pytest.raises(compare.RowError, match="Row"):
        compare.Row(**GOOD | {field: value})


def test_rows_come_back_as_they_were_written(written: Path) -> None:
    rows = compare.read_rows("some-chapter", ["int8", "float"], written)
    assert rows == [compare.Row(**GOOD | {"model": "int8"}), compare.Row(**GOOD)]


def test_two_rows_of_one_name_are_refused() -> None:
    with pytest.raises(compare.RowError, match="same name"):
        compare.write_rows("some-chapter", [compare.Row(**GOOD)] * 2)


def test_a_chapter_that_has_not_run_is_named(written: Path) -> None:
    with pytest.raises(compare.MissingRowsError, match="another-chapter has left no rows"):
        compare.read_rows("another-chapter", ["float"], written)


def test_a_missing_row_is_named(written: Path) -> None:
    with pytest.raises(compare.MissingRowsError, match="no row for int4"):
        compare.read_rows("some-chapter", ["float", "int4"], written)


@pytest.mark.parametrize("changed", ["notebook", "helper", "version"])
def test_stale_rows_are_refused(changed: str, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if changed == "notebook":
        (tmp_path / "some-chapter.ipynb").write_text(json.dumps({"cells": [{"source": ["1 + 1"]}]}))
        monkeypatch.setattr(compare, "BOOK", tmp_path)
    elif changed == "helper":
        package = tmp_path / "qhelpers"
        package.mkdir()
        monkeypatch.setattr(compare, "__file__", str(package / "compare.py"))
        (package / "weights").mkdir()
        (package / "weights" / "SHA256SUMS").write_text("")
    else:
        monkeypatch.setattr(torch, "__version__", "9.9")
    with pytest.raises(compare.StaleRowsError, match="some-chapter come from other sources"):
        compare.read_rows("some-chapter", ["float"], written)


def test_a_chapters_outputs_do_not_make_its_rows_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "BOOK", tmp_path)
    notebook = tmp_path / "some-chapter.ipynb"
    notebook.write_text(json.dumps({"cells": [{"source": ["1 + 1"], "outputs": []}]}))
    before = compare.sources_hash("some-chapter")
    notebook.write_text(json.dumps({"cells": [{"source": ["1 + 1"], "outputs": ["2"]}]}))
    assert compare.sources_hash("some-chapter") == before


@pytest.mark.parametrize("text", ["", "{}", '{"rows": [{}], "sources": ""}', '{"rows": 3, "sources": ""}', "[]"])
def test_a_damaged_file_is_named(text: str, written: Path) -> None:
    (written / "some-chapter" / "rows-some-chapter.json").write_text(text)
    with pytest.raises(compare.RowError, match=r"rows-some-chapter.json is damaged .* run some-chapter again"):
        compare.read_rows("some-chapter", ["float"], written)


def test_rows_made_by_hand_do_not_count_for_the_built_book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QHELPERS_RESULTS", str(tmp_path / "by-hand"))
    compare.write_rows("some-chapter", [compare.Row(**GOOD)])
    with pytest.raises(compare.MissingRowsError):
        compare.read_rows("some-chapter", ["float"], tmp_path)
    monkeypatch.delenv("QHELPERS_RESULTS")
    assert compare.read_rows("some-chapter", ["float"], tmp_path)
