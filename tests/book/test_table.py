"""Rows of the comparison table: made, written, read, and refused when they cannot be trusted."""

import datetime
import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qhelpers import benchmark, engines, guards, metrics
from qhelpers.book import chapter, table


def ratio(value: float = 1.0, low: float = 0.9, high: float = 1.1) -> benchmark.Ratio:
    return benchmark.Ratio(value, low, high, "range of 2 processes")


GOOD: dict[str, Any] = {
    "model": "float",
    "size_mb": 9.2,
    "speed": ratio(),
    "best": ratio(0.3, 0.2, 0.4),
    "best_float": "float ONNX Runtime",
    "metric": "top-1 in %",
    "value": 99.0,
    "interval": (98.0, 99.5),
    "n": 1000,
    "paired": metrics.Paired(14, 2, 1000, -1.2, (-2.1, -0.4), -0.6, 0.004),
    "sqnr_db": 31.0,
    "agreement": 100.0,
    "setting": "a CPU, 1 thread, engine x86",
    "measured_on": "2026-11-28",
}


ROW = asdict(table.Row(**GOOD))
DAMAGED_ROWS = [
    json.dumps({"rows": [ROW | wrong]})
    for wrong in (
        {"model": 3},
        {"speed": ROW["speed"] | {"value": float("nan")}},
        {"paired": ROW["paired"] | {"difference": float("nan")}},
    )
]


class Table(nn.Module):
    """Gives what it was made with, whatever goes in."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, _: Tensor) -> Tensor:
        return self.outputs


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


def timed(*names: str) -> benchmark.Comparison:
    """A measurement in which each name is twice as fast as the one before."""
    steady = {name: [2.0**-place] * 2 for place, name in enumerate(names)}
    steady[f"{names[0]}, second copy"] = steady[names[0]]
    runs = (benchmark.Times(steady, steady),) * 2
    return benchmark.Comparison(names, runs, 3, "a CPU, 1 thread, engine x86")


def test_compare_gives_both_ratios_and_the_paired_difference() -> None:
    labels = torch.arange(8) % 4
    images = torch.eye(4)[labels]
    wrong_on_one = images.clone()
    wrong_on_one[0] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    candidates = {"float": nn.Identity().eval(), "int8": Table(wrong_on_one).eval()}
    latency = timed("float", "float in its runtime", "best float", "int8")
    rows = table.compare(
        candidates,
        [(images, labels)],
        latency,
        floats=["float", "float in its runtime", "best float"],
        own="float in its runtime",
    )
    assert [row.speed.value for row in rows] == [0.5, 4.0]
    assert [row.best.value for row in rows] == [0.25, 2.0]
    assert {row.best_float for row in rows} == {"best float"}
    assert rows[0].paired is rows[0].sqnr_db is None
    assert rows[1].paired == metrics.paired(images, wrong_on_one, labels)
    assert rows[1].sqnr_db == pytest.approx(metrics.sqnr_db(images, wrong_on_one))
    assert rows[1].agreement == 87.5


def test_compare_takes_a_float_path_for_each_candidate() -> None:
    same = nn.Identity().eval()
    rows = table.compare(
        {"a": same, "b": same},
        [(torch.eye(4), torch.arange(4))],
        timed("a", "b", "c"),
        floats=["a"],
        own={"a": "a", "b": "c"},
    )
    assert [row.speed.value for row in rows] == [1.0, 0.5]


def test_compare_runs_each_model_under_its_engine(batches: list[tuple[Tensor, Tensor]]) -> None:
    seen = set()

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.add(torch.backends.quantized.engine)
            return x

    with engines.using_engine(engines.default_engine()):
        candidates = {"float": nn.Identity().eval(), "spy": Spy().eval()}
        latency = timed("float", "spy")
        rows = table.compare(candidates, batches, latency, floats=["float"], own="float", engine_of={"spy": "qnnpack"})
    assert seen == {"qnnpack"}
    assert rows[1].setting == "a CPU, 1 thread, engine qnnpack"
    assert rows[0].setting.endswith(f"engine {engines.default_engine()}")


def test_compare_refuses_what_it_cannot_measure(batches: list[tuple[Tensor, Tensor]]) -> None:
    one, latency = {"float": nn.Identity().eval()}, timed("float")
    floats: dict[str, Any] = {"floats": ["float"], "own": "float"}
    with pytest.raises(ValueError, match="no candidate: int8"):
        table.compare(one, batches, latency, engine_of={"int8": "x86"}, **floats)
    with pytest.raises(ValueError, match="no image"):
        table.compare(one, [], latency, **floats)
    with pytest.raises(ValueError, match="nothing to compare"):
        table.compare({}, batches, latency, **floats)
    with pytest.raises(benchmark.BenchmarkError, match="no candidate 'int8'; there are float"):
        table.compare(one | {"int8": nn.Identity().eval()}, batches, latency, **floats)
    with pytest.raises(guards.GuardError, match="training mode"):
        table.compare({"float": nn.Identity().train()}, batches, latency, **floats)
    with pytest.raises(ValueError, match="sizes names no candidate: int 8"):
        table.compare(one, batches, latency, sizes={"int 8": 3.0}, **floats)
    with pytest.raises(table.RowError, match=r"size_mb cannot be 0\.0"):
        table.compare(one, batches, latency, sizes={"float": 0.0}, **floats)
    with pytest.raises(ValueError, match="float is no module, so its size is not known: give it in sizes"):
        table.compare({"float": lambda images: images}, batches, latency, **floats)  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"labels must have the shape \(n,\); got \(4, 1\)"):
        table.compare(one, [(torch.eye(4), torch.arange(4)[:, None])], latency, **floats)
    with pytest.raises(ValueError, match="own names no float path for float"):
        table.compare(one, batches, latency, floats=["float"], own={})
    with pytest.raises(benchmark.BenchmarkError, match="No candidate is named; there are float"):
        table.compare(one, batches, latency, floats=[], own="float")


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        (torch.eye(4)[:, :3], "int8 gives 3 classes, float gives 4."),
        (torch.eye(4)[1:], "int8 gives shape (3, 4) for 4 images, not logits of shape (images, classes)."),
        (torch.arange(4), "int8 gives shape (4,) for 4 images"),
        ((torch.eye(4), None), "int8 gives a tuple for 4 images"),
        (torch.eye(4) * float("nan"), "int8 gives logits that are not finite."),
        (torch.eye(4) / 0, "int8 gives logits that are not finite."),
    ],
)
def test_compare_names_a_candidate_that_gives_no_logits(
    outputs: Any, words: str, batches: list[tuple[Tensor, Tensor]]
) -> None:
    candidates = {"float": nn.Identity().eval(), "int8": Table(outputs).eval()}
    with pytest.raises(ValueError, match=re.escape(words)):
        table.compare(candidates, batches, timed("float", "int8"), floats=["float"], own="float")


def test_speeds_shows_both_ratios_and_records_those_against_every_float() -> None:
    latency = timed("float", "best float", "int8")
    frame = table.speeds("some-chapter", "one-image", latency, floats=["float", "best float"], own="float")
    assert frame.loc["int8", "× float in this runtime"] == "4.00 (4.00 to 4.00)"
    assert frame.loc["int8", "× best float here"] == "2.00 (2.00 to 2.00)"
    assert frame.loc["best float", "× best float here"] == "1 (the best)"
    assert frame.loc["float", "× float in this runtime"] == "–"
    kept = json.loads((chapter.results_folder() / "speeds-some-chapter-one-image.json").read_text())
    assert kept["processes"] == 2
    values = {(one["name"], one["over"]): (one["value"], one["printed"]) for one in kept["ratios"]}
    assert values["int8", "float"] == (4.0, True)
    assert values["int8", "best float"] == (2.0, True)
    assert values["best float", "float"] == (2.0, False)


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"int 8": "float"}, "own names no candidate: int 8; there are float, int8."),
        ({"int8": "int8"}, "own names no float path: int8; there are float."),
        ("int8", "own names no float path: int8; there are float."),
    ],
)
def test_speeds_refuses_a_float_path_that_is_none(own: Any, words: str) -> None:
    with pytest.raises(benchmark.BenchmarkError, match=re.escape(words)):
        table.speeds("some-chapter", "one", timed("float", "int8"), floats=["float"], own=own)


def test_speeds_takes_none_for_a_candidate_without_a_float_path() -> None:
    frame = table.speeds("some-chapter", "one", timed("float", "int8"), floats=["float"], own={"int8": None})
    assert frame.loc["int8", "× float in this runtime"] == "–"


@pytest.mark.parametrize(
    ("name", "label"), [("a", "32/images"), ("a", "/../x"), ("../a", "x"), ("a", ""), ("a", "x\n")]
)
def test_speeds_stays_in_the_results_folder(name: str, label: str) -> None:
    with pytest.raises(ValueError, match="use letters, digits and hyphens only"):
        table.speeds(name, label, timed("float", "int8"), floats=["float"], own="float")


@pytest.mark.parametrize(
    "wrong", [{"value": "abc"}, {"value": float("nan")}, {"value": -1.0}, {"low": None}, {"low": 3}]
)
def test_recorded_speeds_that_cannot_be_are_refused(
    wrong: dict[str, object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QHELPERS_CURRENT", json.dumps([str(tmp_path / "some-chapter")]))
    (tmp_path / "some-chapter").mkdir()
    one = {"name": "int8", "over": "float", **asdict(ratio()), **wrong}
    (tmp_path / "some-chapter" / "speeds-some-chapter-one.json").write_text(json.dumps({"ratios": [one]}))
    with pytest.raises(table.RowError, match=r"speeds-some-chapter-one.json is damaged .* run some-chapter again"):
        table.read_speeds("some-chapter", "one")


def test_recorded_speeds_come_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    latency = timed("float", "int8")
    monkeypatch.setenv("QHELPERS_RESULTS", str(tmp_path / "some-chapter"))
    table.speeds("some-chapter", "one", latency, floats=["float"], own="float")
    monkeypatch.setenv("QHELPERS_CURRENT", json.dumps([str(tmp_path / "other"), str(tmp_path / "some-chapter")]))
    assert table.read_speeds("some-chapter", "one")["int8", "float"] == latency.ratio("int8")
    (tmp_path / "some-chapter" / "speeds-some-chapter-one.json").write_text('{"ratios": [{}]}')
    with pytest.raises(table.RowError, match=r"speeds-some-chapter-one.json is damaged .* run some-chapter again"):
        table.read_speeds("some-chapter", "one")
    with pytest.raises(table.RowError, match="other has left no current speeds one"):
        table.read_speeds("other", "one")


def test_a_row_shows_what_was_lost_and_won() -> None:
    frame = table.as_frame([table.Row(**GOOD)])
    shown = frame.loc["float", "difference to float (paired 95 %)"]
    assert shown == "-1.2 points (-2.1 to -0.4); 14 lost, 2 won of 1,000, p = 0.004"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", " "),
        ("size_mb", 0.0),
        ("size_mb", float("nan")),
        ("best_float", ""),
        ("sqnr_db", float("nan")),
        ("metric", "accuracy"),
        ("value", 101.0),
        ("interval", (99.2, 99.5)),
        ("n", 0),
        ("n", 10.5),
        ("n", True),
        ("paired", replace(GOOD["paired"], difference=float("nan"))),
        ("paired", replace(GOOD["paired"], interval=(float("nan"), float("nan")))),
        ("paired", replace(GOOD["paired"], p_value=7.0)),
        ("paired", replace(GOOD["paired"], p_value="0.1")),
        ("paired", replace(GOOD["paired"], lost=-3)),
        ("paired", replace(GOOD["paired"], lost="x")),
        ("paired", replace(GOOD["paired"], n=5)),
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


@pytest.mark.parametrize("text", ["", "{}", '{"rows": [{}]}', '{"rows": 3}', "[]", *DAMAGED_ROWS])
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


def test_all_rows_of_a_chapter_are_read_if_none_is_named(written: Path) -> None:
    assert [row.model for row in table.read_rows("some-chapter")] == ["float", "int8"]


def test_rows_of_one_name_are_both_shown() -> None:
    rows = [table.Row(**GOOD), table.Row(**GOOD | {"size_mb": 3.0})]
    assert list(table.as_frame(rows)["MB"]) == ["9.20", "3.00"]
