"""Claims: settled, shown, gathered, and refused when they are incomplete."""

import json
import re
from pathlib import Path

import pytest

from qhelpers.book import claims


def test_there_are_57_statements_each_with_a_chapter() -> None:
    found = claims.statements()
    assert list(found) == [f"R{i}" for i in range(1, 28)] + [f"V{i}" for i in range(1, 31)]
    assert all(re.fullmatch(r"[a-z0-9-]+", one["chapter"]) and len(one["statement"]) > 20 for one in found.values())


def test_settled_claims_are_recorded_and_those_that_teach_are_shown(
    fresh_results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(claims, "display", lambda box: shown.append(box.data))
    for name in ("R1", "R10"):
        claims.settle(name, measured="14.26 and <3.63> MB with `torch.save`", verdict="holds")
        assert json.loads((fresh_results / f"claim-{name}.json").read_text())["verdict"] == "holds"
    assert len(shown) == 1
    assert "R1 ·" in shown[0]
    assert "&lt;3.63&gt; MB with <code>torch.save</code>" in shown[0]


def test_about_fifteen_verdicts_teach() -> None:
    assert 12 <= sum("teaches" in one for one in claims.statements().values()) <= 18


@pytest.mark.parametrize(
    ("name", "measured", "verdict", "words"),
    [
        ("R99", "x", "holds", "no claim 'R99'"),
        ("R1", "x", "true", "'true' is no verdict"),
        ("R1", " ", "holds", "nothing about what was measured"),
        ("R1", "x", "changed", "needs because"),
    ],
)
def test_an_incomplete_claim_is_refused_and_not_recorded(
    name: str, measured: str, verdict: str, words: str, fresh_results: Path
) -> None:
    with pytest.raises(claims.ClaimError, match=words):
        claims.settle(name, measured=measured, verdict=verdict)
    assert not list(fresh_results.glob("*"))


def test_settled_claims_come_in_the_order_of_the_statements() -> None:
    for name in ("V2", "R10", "R9"):
        claims.settle(name, measured="x", verdict="holds")
    assert list(claims.settled()) == ["R9", "R10", "V2"]


def test_what_was_run_by_hand_stays_off_the_book_s_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claims.settle("R9", measured="x", verdict="holds")
    assert list(claims.settled()) == ["R9"]
    monkeypatch.setenv("QHELPERS_CURRENT", json.dumps([str(tmp_path / "a-chapter")]))
    assert claims.settled() == {}


NO_VERDICT = json.dumps({"id": "R1", "measured": "x", "verdict": "zzz", "because": "y"}).encode()


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"{}", NO_VERDICT])
def test_a_damaged_record_is_named(content: bytes, fresh_results: Path) -> None:
    fresh_results.mkdir()
    (fresh_results / "claim-R1.json").write_bytes(content)
    with pytest.raises(claims.ClaimError, match=r"claim-R1.json is no record .* run its chapter again"):
        claims.settled()
