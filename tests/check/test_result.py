"""A result is readable printed, in a notebook and as a page; it never contradicts itself; a worse one is found."""

import copy
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup

from qhelpers import atomic
from qhelpers.check import reports
from qhelpers.check.result import Result, figures

Make = Callable[..., dict[str, Any]]
STATUSES = ("kept", "over", "refused")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def put(report: dict[str, Any], where: str, value: Any) -> None:
    """Set ``"file.mb"`` or ``"tries.0.kept"`` in a report."""
    *path, last = where.split(".")
    for key in path:
        report = report[int(key)] if isinstance(report, list) else report[key]
    report[last] = value


# --- what a reader sees ------------------------------------------------------------------------------


def test_the_summary_says_verdict_deed_warnings_and_figures(report: Make) -> None:
    result = Result(report("over"), Path("out"))
    lines = str(result).splitlines()
    assert repr(result) == str(result), "an interpreter shows the summary, not the whole report"
    assert lines[0] == "DetectionHead for executorch: over the budget"
    assert lines[1].split(maxsplit=2)[2].startswith("Do not ship it: return boxes and confidences")
    assert lines[3] == "  Warning  The file is no smaller than float: 0.31 MB, and 0.29 MB in float."
    assert "  Quality  0.0 dB; SQNR of the worst output channel, 64 validation samples; the budget" in lines
    assert max(map(len, lines)) <= 88, "it fits the column of a page"
    assert "  Size     0.31 MB; 107 % of float's 0.29 MB" in lines
    assert "  Speed    0.61 ×; slower than the best float path, ONNX Runtime; interval 0.57 to 0.66" in lines
    assert lines[-1] == "  Report   out/report.html"
    assert len(lines) <= 15


def test_the_figures_of_a_kept_file_rest_on_the_test_data(report: Make) -> None:
    quality, size, own, best = figures(report())
    assert quality["value"] == "0.24 points lost"
    assert quality["note"] == "top-1 71.84 → 71.60, 5,000 test samples; interval -0.02 to 0.51; budget 0.5"
    assert size["value"] == "3.61 MB"
    assert own["note"] == "faster than float in the same runtime; interval 1.55 to 1.70"
    assert best["note"] == "faster than the best float path, compiled and frozen; interval 1.24 to 1.36"
    assert [one["tone"] for one in (quality, size, own, best)] == ["good"] * 4
    assert own["limit"] < own["low"] <= own["dot"] <= own["high"] <= 100


def test_a_gain_and_a_loss_too_small_to_show_are_told_apart(report: Make) -> None:
    found = report()
    for lost, words in ((-0.3, "0.30 points gained"), (-0.001, "0.00 points lost"), (0.3, "0.30 points lost")):
        found["quality"]["test"]["lost"] = lost
        assert figures(found)[0]["value"] == words


@pytest.mark.parametrize("status", STATUSES)
def test_the_page_has_the_verdict_the_sentence_and_the_warnings_before_any_section(report: Make, status: str) -> None:
    found = Result(report(status), Path())
    page = BeautifulSoup(found._repr_html_(), "html.parser")
    head = page.header.get_text(" ", strip=True)
    assert reports.VERDICTS[status] in head
    for words in (found.report["do"], *found.report["first"]):
        assert " ".join(words.replace("`", " ").split())[:30] in " ".join(head.split())
    assert len(page.select(".tile")) == (0 if status == "refused" else 4)
    headings = [one.get_text() for one in page.select("section h4")]
    assert headings[-1] == "The run"
    assert ("Why" in headings) == (status == "refused")


def test_every_term_of_the_tables_is_explained(report: Make) -> None:
    pages = [BeautifulSoup(Result(report(status), Path())._repr_html_(), "html.parser") for status in STATUSES]
    explained = {term.get_text() for page in pages for term in page.select(".terms b")}
    assert explained >= {"SQNR", "folded", "absent", "conversions", "static", "dynamic", "lost at most", "channel"}
    assert explained >= {"float there", "best float", "ratio", "graph", "drop", "top-1", "SHA-256", "Budget"}


def test_what_a_stranger_s_model_is_called_cannot_break_the_page(report: Make) -> None:
    found = report()
    found["model"], found["notes"] = "<script>alert(1)</script>", ["`<b>` is *not* bold"]
    text = Result(found, Path())._repr_html_()
    assert "<script" not in text
    assert "<code>&lt;b&gt;</code> is *not* bold" in text


def test_a_result_writes_one_page_without_other_files_and_json_that_can_be_read_again(
    report: Make, tmp_path: Path
) -> None:
    result = Result(report(), tmp_path / "new")
    page, data = result.write()
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["report.html", "report.json"]
    assert reports.read_report(data) == result.report
    assert not re.search(r"(src|href)=|url\(|@import", page.read_text())
    assert result.file == tmp_path / "new" / "model.onnx"
    assert Result(report("refused"), tmp_path).file is None


def test_a_folder_that_takes_no_file_is_named_and_the_earlier_report_stays(report: Make, tmp_path: Path) -> None:
    Result(report(), tmp_path).write()
    (tmp_path / "report.html").unlink()
    (tmp_path / "report.html").mkdir()
    with pytest.raises(
        atomic.WriteError, match=r"report\.html cannot be written into .*: something else has that name"
    ):
        Result(report("over"), tmp_path).write()
    assert reports.read_report(tmp_path / "report.json")["status"] == "kept"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None and not os.environ.get("REQUIRE_BROWSER"):
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=flags)
        yield started
        started.close()


@pytest.mark.parametrize("status", STATUSES)
def test_the_page_fits_a_phone_and_shows_verdict_and_figures_at_once(
    report: Make, tmp_path: Path, browser: Any, status: str
) -> None:
    page, _ = Result(report(status), tmp_path).write()
    colors = set()
    for width, scheme in ((390, "light"), (320, "dark"), (1280, "light")):
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab.goto(page.as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        colors.add(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
        if width == 1280:
            assert tab.evaluate("document.querySelector('header').getBoundingClientRect().bottom") < 900
            tab.emulate_media(media="print")
            assert tab.evaluate("[...document.querySelectorAll('.names')].every(one => one.checkVisibility())")
        tab.close()
    assert len(colors) == 2, "light and dark"


# --- against itself ----------------------------------------------------------------------------------

SLOWER = {"ratio": 0.8, "low": 0.7, "high": 0.9}
UNSURE = {"ratio": 1.1, "low": 0.9, "high": 1.2}


@pytest.mark.parametrize("status", STATUSES)
def test_a_report_that_agrees_with_itself_passes(report: Make, status: str) -> None:
    reports.check_report(report(status))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"file.mb": 14.5, "do": "Ship it: it is smaller."},
            "says “it is smaller” of a file of 14.5 MB that has 13.98",
        ),
        ({"file.mb": 14.5, "do": "Keep it for its size."}, "it says “keep it for its size” of a file of 14.5 MB"),
        (
            {"file.mb": 14.5, "do": "Measure."},
            "its first lines do not say “The file is no smaller than float: 14.50 MB",
        ),
        ({"speed.own": UNSURE}, "is faster than float in onnx runtime” at a ratio of 1.10 (0.90 to 1.20)"),
        ({"speed.own": UNSURE}, "its first lines do not say “No difference in speed can be told: 1.10 times"),
        ({"speed.own": SLOWER, "do": "Measure."}, "its first lines do not say “The file is slower than float: 0.80"),
        ({"speed.best": SLOWER, "do": "It is faster than the best float path."}, "best float path” at a ratio of 0.80"),
        ({"speed": None, "do": "Keep it for its speed."}, "“keep it for its speed”, and that was not measured"),
        ({"quality.lost": 0.9, "quality.test.lost": 0.9}, "it is kept, and 0.9 points lost are over the budget of 0.5"),
        ({"quality.lost": 0.1}, "it says 0.1 points lost, and its table 0.24"),
        ({"do": "Try static, per channel."}, "it suggests “static, per channel”, which was tried: 1.90 points lost"),
        ({"census.summary": "5 of 5 layers in int8"}, "its summary says “5 of 5 layers in int8”, its lists 4 of 5"),
        ({"census.conversions": 3}, "its summary says “4 conversions”, its count 3"),
        ({"census.summary": "all well"}, "its summary does not say how many layers compute in int8"),
        (
            {"census.int8": [], "census.summary": "0 of 1 layers in int8", "first": ["Nothing computes in int8."]},
            "it is kept, and nothing computes in int8",
        ),
        ({"file": None, "do": "Measure."}, "it is kept, and there is no file"),
        ({"status": "refused"}, "it is refused, and there is model.onnx"),
        ({"status": "fine"}, "there is no status 'fine'"),
        ({"quality.test.sqnr_db": float("inf")}, "The report cannot be written as JSON: Out of range float values"),
    ],
)
def test_a_contradiction_is_found_and_quoted(report: Make, changes: dict[str, Any], words: str) -> None:
    found = report()
    for where, value in changes.items():
        put(found, where, value)
    with pytest.raises(reports.ReportError, match=re.escape(words)):
        Result(found, Path())


def test_too_few_decibels_are_over_the_budget(report: Make) -> None:
    found = report("over") | {"status": "kept"}
    with pytest.raises(reports.ReportError, match=r"it is kept, and 0 dB are under the budget of 25 dB"):
        reports.check_report(found)


@pytest.mark.parametrize(
    "do",
    [
        "Keep the float file: int8 is not smaller, and float is faster.",
        "The best float path, compiled and frozen, is faster, so take that.",
        "Leave it: no file is faster than the float one.",
        "Do not try static, per channel, again.",
    ],
)
def test_what_is_denied_or_said_of_float_is_no_claim(report: Make, do: str) -> None:
    found = report() | {"do": do}
    found["file"]["mb"] = 20.0
    found["speed"]["own"], found["speed"]["best"] = SLOWER, SLOWER
    found["first"] = reports.first_lines(found)
    reports.check_report(found)


def test_a_part_that_is_missing_is_named(report: Make) -> None:
    found = report()
    del found["tries"]
    with pytest.raises(reports.ReportError, match="The report lacks tries"):
        Result(found, Path())


# --- against an earlier one --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quality.validation.lost": 0.31}, "0.31 points lost on the validation data, earlier 0.2"),
        ({"quality.test.lost": 0.4}, "0.4 points lost on the test data, earlier 0.24"),
        ({"quality.test.sqnr_db": 23.7}, "SQNR on the test data 23.7 dB, earlier 24.8 dB"),
        ({"tries.1.worst_db": 12.0}, "SQNR of the worst channel 12.0 dB, earlier 19.3 dB"),
        ({"file.mb": 3.7}, "the file has 3.70 MB, earlier 3.61"),
        ({"census.int8": ["features.0.0"]}, "no longer in int8: features.1.conv.0, features.1.conv.1, classifier.1"),
        ({"census.conversions": 5}, "5 conversions, earlier 4"),
        ({"status": "over"}, "the file is over the budget, earlier within the budget"),
    ],
)
def test_what_got_worse_is_named(report: Make, changes: dict[str, Any], words: str) -> None:
    found = report()
    for where, value in changes.items():
        put(found, where, value)
    assert reports.against(found, report()) == [words]


@pytest.mark.parametrize(
    "changes",
    [
        {"quality.validation.lost": 0.3, "quality.test.sqnr_db": 23.8, "file.mb": 3.64},
        {"speed.own": SLOWER, "speed": None},
        {"quality.test.lost": -1.0, "census.conversions": 2, "file.mb": 1.0},
    ],
    ids=["within what is allowed", "slower", "better"],
)
def test_noise_speed_and_what_got_better_do_not_count(report: Make, changes: dict[str, Any]) -> None:
    found = report()
    for where, value in changes.items():
        put(found, where, value)
    assert reports.against(found, report()) == []


def test_a_score_may_lose_a_fifth_of_the_budget_more(report: Make) -> None:
    earlier = report()
    earlier["quality"] |= {"kind": "score", "unit": "of the score", "budget": 0.01}
    found = copy.deepcopy(earlier)
    found["quality"]["test"]["lost"] += 0.0019
    assert reports.against(found, earlier) == []
    found["quality"]["test"]["lost"] += 0.0002
    assert reports.against(found, earlier) == ["0.242 of the score lost on the test data, earlier 0.24"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "ResNet"}, "model: ResNet, earlier MobileNetV2."),
        ({"target": "executorch"}, "target: executorch, earlier onnx-x86."),
        ({"quality.test.n": 50}, "test data: 50 samples, earlier 5,000 samples."),
        ({"quality.kind": "agreement"}, "quality: agreement, earlier top-1."),
        ({"file.inputs": []}, "inputs: , earlier float32 of shape (1, 3, 224, 224)."),
    ],
)
def test_reports_about_different_things_are_not_compared(report: Make, changes: dict[str, Any], words: str) -> None:
    found = report()
    for where, value in changes.items():
        put(found, where, value)
    with pytest.raises(reports.ReportError, match=re.escape(f"The two reports cannot be compared. {words}")):
        reports.against(found, report())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON: give the report.json of an earlier run"),
        ("[1]", "is not a report of this checker: it is a list or a value"),
        ('{"format": 1}', "is not a report of this checker: it lacks model, target, status"),
        (None, "has format 0, this version reads 1: run the check anew"),
    ],
)
def test_a_file_that_is_no_report_is_refused(report: Make, tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report() | {"format": 0}) if text is None else text)
    with pytest.raises(reports.ReportError, match=re.escape(words)):
        reports.read_report(path)


@pytest.mark.parametrize("changes", [{"quality": {"kind": "top-1"}}, {"file": 3}, {"census": {"int8": ["0"]}}])
def test_a_report_that_was_changed_is_refused_when_it_is_read(report: Make, tmp_path: Path, changes: Any) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report() | changes))
    with pytest.raises(reports.ReportError, match=r"report\.json was changed: give the report\.json as an earlier run"):
        reports.read_report(path)
