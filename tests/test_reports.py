"""Claims, expected errors and what a chapter prints about itself."""

import json
import re
from pathlib import Path

import pytest

from qhelpers import reports
from qhelpers.reports import Claim


def test_there_are_57_statements_each_with_a_chapter() -> None:
    found = reports.statements()
    assert list(found) == [f"R{i}" for i in range(1, 28)] + [f"V{i}" for i in range(1, 31)]
    assert all(re.fullmatch(r"[a-z0-9-]+", one["chapter"]) and len(one["statement"]) > 20 for one in found.values())


def test_a_claim_is_recorded_and_shown(fresh_results: Path) -> None:
    shown = Claim("R10", measured="14.26 and <3.63> MB with `torch.save`", verdict="holds")._repr_html_()
    assert "&lt;3.63&gt; MB with <code>torch.save</code>" in shown
    assert json.loads((fresh_results / "claim-R10.json").read_text())["verdict"] == "holds"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"id": "R99", "measured": "x", "verdict": "holds"}, "no claim 'R99'"),
        ({"id": "R1", "measured": "x", "verdict": "true"}, "'true' is no verdict"),
        ({"id": "R1", "measured": " ", "verdict": "holds"}, "nothing of what was measured"),
        ({"id": "R1", "measured": "x", "verdict": "changed"}, "needs because"),
    ],
)
def test_an_incomplete_claim_is_refused_and_not_recorded(
    arguments: dict[str, str], words: str, fresh_results: Path
) -> None:
    with pytest.raises(reports.ClaimError, match=words):
        Claim(**arguments)
    assert not list(fresh_results.glob("*"))


def test_recorded_claims_come_in_the_order_of_the_statements(fresh_results: Path) -> None:
    for name in ("V2", "R10", "R9"):
        Claim(name, measured="x", verdict="holds")
    assert list(reports.recorded_claims(fresh_results.parent)) == ["R9", "R10", "V2"]


def test_what_was_run_by_hand_stays_off_the_book_s_pages(tmp_path: Path) -> None:
    (tmp_path / "by-hand").mkdir()
    record = {"id": "R9", "measured": "x", "verdict": "holds", "because": ""}
    (tmp_path / "by-hand" / "claim-R9.json").write_text(json.dumps(record))
    assert reports.recorded_claims(tmp_path) == {}


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "chapter").mkdir()
    (tmp_path / "chapter" / "claim-R1.json").write_text("{")
    with pytest.raises(reports.ClaimError, match=r"claim-R1.json is no record .* run its chapter again"):
        reports.recorded_claims(tmp_path)


def test_expected_error_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with reports.expected_error(ValueError, "first") as seen:
        raise ValueError("first line\nsecond line")
    assert capsys.readouterr().out == "ValueError: first line\n"
    assert (seen.type_name, seen.message) == ("ValueError", "first line")


def test_expected_error_prints_the_line_with_the_expected_words(capsys: pytest.CaptureFixture[str]) -> None:
    with reports.expected_error(ValueError, "second"):
        raise ValueError("first line\nthe second line")
    assert capsys.readouterr().out == "ValueError: the second line\n"


def test_expected_error_fails_when_nothing_is_raised() -> None:
    with pytest.raises(AssertionError, match="Nothing was raised"), reports.expected_error(ValueError, ""):
        pass


def test_expected_error_fails_on_another_message() -> None:
    with pytest.raises(AssertionError, match="without 'shape'"), reports.expected_error(ValueError, "shape"):
        raise ValueError("type")


def test_expected_error_lets_another_type_through() -> None:
    with pytest.raises(KeyError), reports.expected_error(ValueError, ""):
        raise KeyError("x")


def test_environment_names_versions_cpu_threads_and_engine() -> None:
    line = reports.environment()
    assert re.match(
        r"Python 3\.\d+\.\d+, torch \d.*, torchvision \d[^\n]*\n.+ \(.+\), \d+ threads?, .* engine \w+$", line
    )
