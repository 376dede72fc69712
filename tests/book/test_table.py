"""Rows of the comparison table: made, written, read, and refused when they cannot be trusted."""

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qhelpers import engines, guards
from qhelpers.book import table

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
    "measured_on": "2026-11-28",
}


DAMAGED_ROW = json.dumps({"rows": [GOOD | {"model": 3}]})


class Inverting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return -x


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    return [(torch.eye(4), torch.arange(4))]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A chapter's rows as the book's runner hands them to a page; returns the chapter's results folder."""
    folder = tmp_path / "all" / "some-chapter"
    monkeypatch.setenv("QHELPERS_RESULTS", str(folder))
    table.write_rows("some-chapter", [table.Row(**GOOD), table.Row(**GOOD | {"model": "int8"})])
    monkeypatch.setenv("QHELPERS_CURRENT", json.dumps([str(folder)]))
    monkeypatch.setenv("QHELPERS_RESULTS", str(tmp_path / "results"))
    return folder


def test_compare_measures_each_candidate_against_the_first(batches: list[tuple[Tensor, Tensor]]) -> None:
    same, inverted = nn.Identity().eval(), Inverting().eval()
    rows = table.compare({"float": same, "inverted": inverted}, batches, torch.eye(4), rounds=3)
    assert [(row.value, row.agreement, row.n) for row in rows] == [(100.0, 100.0, 4), (0.0, 0.0, 4)]
    assert rows[0].speed == 1.0


def test_compare_runs_each_model_under_its_engine(batches: list[tuple[Tensor, Tensor]]) -> None:
    seen = set()

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.add(torch.backends.quantized.engine)
            return x

    with engines.using_engine(engines.default_engine()):
        rows = table.compare(
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
        table.compare(one, batches, torch.eye(4), engine_of={"int8": "x86"})
    with pytest.raises(ValueError, match="no image"):
        table.compare(one, [], torch.eye(4))
    with pytest.raises(ValueError, match="nothing to time"):
        table.compare({}, batches, torch.eye(4))
    with pytest.raises(guards.GuardError, match="training mode"):
        table.compare({"float": nn.Identity().train()}, batches, torch.eye(4))


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
    with pytest.raises(table.RowError, match="Row"):
        table.Row(**GOOD | {field: value})


def test_rows_come_back_as_they_were_written(written: Path) -> None:
    rows = table.read_rows("some-chapter", ["int8", "float"])
    assert rows == [table.Row(**GOOD | {"model": "int8"}), table.Row(**GOOD)]


def test_two_rows_of_one_name_are_refused() -> None:
    with pytest.raises(table.RowError, match="same name"):
        table.write_rows("some-chapter", [table.Row(**GOOD)] * 2)


def test_a_chapter_that_has_not_run_is_named(written: Path) -> None:
    with pytest.raises(table.RowError, match="another-chapter has left no current rows"):
        table.read_rows("another-chapter", ["float"])


def test_a_missing_row_is_named(written: Path) -> None:
    with pytest.raises(table.RowError, match="no row for int4"):
        table.read_rows("some-chapter", ["float", "int4"])


def test_rows_of_a_chapter_that_is_not_current_are_refused(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert table.read_rows("some-chapter", ["float"])
    monkeypatch.setenv("QHELPERS_CURRENT", json.dumps([str(written.with_name("another-chapter"))]))
    with pytest.raises(table.RowError, match="some-chapter has left no current rows: run it first"):
        table.read_rows("some-chapter", ["float"])


@pytest.mark.parametrize("text", ["", "{}", '{"rows": [{}]}', '{"rows": 3}', "[]", DAMAGED_ROW])
def test_a_damaged_file_is_named(text: str, written: Path) -> None:
    (written / "rows-some-chapter.json").write_text(text)
    with pytest.raises(table.RowError, match=r"rows-some-chapter.json is damaged .* run some-chapter again"):
        table.read_rows("some-chapter", ["float"])


def test_rows_made_by_hand_are_shown_with_their_date(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table.write_rows("some-chapter", [table.Row(**GOOD)])
    rows = table.read_rows("some-chapter", ["float"])
    assert table.as_frame(rows, dated=True).loc["float", "measured on"] == "2026-11-28"
    assert "measured on" not in table.as_frame(rows)
    monkeypatch.setenv("QHELPERS_CURRENT", json.dumps([str(tmp_path / "a-chapter")]))
    with pytest.raises(table.RowError, match="no current rows"):
        table.read_rows("some-chapter", ["float"])


def test_a_row_is_dated_when_it_is_measured() -> None:
    measured = {name: value for name, value in GOOD.items() if name != "measured_on"}
    assert table.Row(**measured).measured_on == datetime.date.today().isoformat()
