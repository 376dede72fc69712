"""Figures beside the site, and how a reader's own run is held against them."""

import copy
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from qhelpers.book import claims
from tools import common, differs, results

MACHINE = {"processor": "A CPU", "instructions": "AVX2", "versions": {"Python": "3", "torch": "2", "torchvision": "0"}}
RATIO = {"value": 2.0, "low": 1.9, "high": 2.1, "kind": "an interval", "noise": 1.0}
FLOAT = {"model": "float", "size_mb": 9.2, "speed": RATIO, "best": RATIO, "best_float": "ORT", "metric": "top-1 in %"}
FLOAT |= {"value": 99.3, "interval": [98.6, 99.7], "n": 1000, "paired": None, "sqnr_db": None, "agreement": 100.0}
FLOAT |= {"setting": "A CPU, 1 thread, engine x86", "measured_on": "2026-01-01"}
PAIRED = {"lost": 3, "won": 1, "n": 1000, "difference": -0.2, "interval": [-0.7, 0.3], "bound": -0.6, "p_value": 0.6}
INT8 = FLOAT | {"model": "int8", "size_mb": 2.6, "sqnr_db": 28.4, "paired": PAIRED | {"unit": "points"}}


def speed(name: str, printed: bool = True) -> dict[str, Any]:
    return {"name": name, "over": "float", "printed": printed, **RATIO}


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """A results folder with one chapter that measured, and one that settled a claim."""
    folder = tmp_path / "results"
    table = {"label": "one-image", "processes": 5, "ratios": [speed("int8"), speed("other", printed=False)]}
    claim = {"id": "R10", "measured": "14.3 and 3.6 MB", "verdict": "holds", "because": ""}
    for path, content in {
        "one/environment": MACHINE,
        "one/rows-one": {"chapter": "one", "rows": [FLOAT, INT8]},
        "one/speeds-one-one-image": table,
        "one/weights": {"source": "hub cache", "waited_s": 0.0},
        "two/environment": MACHINE,
        "two/claim-R10": claim,
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{path}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def site(tmp_path: Path, measured: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What was published of that run, which is the reader's own run, too."""
    folder = tmp_path / "site"
    folder.mkdir()
    results.write(folder, measured)
    monkeypatch.setattr(differs, "RESULTS", measured)
    return folder


def compared(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str | Path) -> str:
    monkeypatch.setattr("sys.argv", ["differs", str(where)])
    assert differs.main() == 0
    return capsys.readouterr().out


# --- publishing --------------------------------------------------------------------------------------


def test_figures_verdicts_and_their_schemas_are_published(site: Path) -> None:
    for kind in results.KINDS:
        schema = json.loads((site / f"{kind}.schema.json").read_text())
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate(json.loads((site / f"{kind}.json").read_text()), schema)
    figures = json.loads((site / "results.json").read_text())["chapters"]
    assert list(figures) == ["one"], "the other one has measured nothing"
    assert [row["model"] for row in figures["one"]["rows"]] == ["float", "int8"]
    assert [(one["name"], one["processes"], one["printed"]) for one in figures["one"]["speeds"]] == [
        ("int8", 5, True),
        ("other", 5, False),
    ]
    assert (figures["one"]["machine"], figures["one"]["weights"]) == (MACHINE, "published")
    settled = json.loads((site / "verdicts.json").read_text())["claims"]
    assert [(one["id"], one["verdict"], one["statement"]) for one in settled] == [
        ("R10", "holds", claims.statements()["R10"]["statement"])
    ]


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("one/environment.json", None, "The results of one do not say on which machine they were measured"),
        ("one/environment.json", "{", r"environment\.json in one is damaged .*run the chapter again"),
        ("one/rows-one.json", '{"rows": [{"model": "x"}]}', r"results\.json was not published, .* at \$\.chapters"),
        ("one/rows-one.json", json.dumps({"rows": [FLOAT | {"value": float("nan")}]}), "a number that JSON lacks"),
        (
            "one/rows-one.json",
            json.dumps({"rows": [FLOAT | {"measured_on": "today"}]}),
            r"measured_on: 'today' does not",
        ),
        ("two/claim-R10.json", '{"id": "R10"}', r"claim-R10\.json is no record of a claim"),
    ],
)
def test_damaged_results_are_not_published(
    measured: Path, tmp_path: Path, file: str, content: str | None, words: str
) -> None:
    (measured / file).unlink() if content is None else (measured / file).write_text(content)
    with pytest.raises(SystemExit, match=words):
        results.write(tmp_path, measured)


# --- comparing ---------------------------------------------------------------------------------------


def test_the_same_run_does_not_differ(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compared(monkeypatch, capsys, site) == (
        "published and here: A CPU (AVX2); Python 3, torch 2, torchvision 0\n"
        "speeds outside the published intervals: 0 of 1\n"
        "  On the same machine about 5 % lie outside by chance.\n"
        "accuracies, or differences to float, outside the published intervals: 0 of 3\n"
        "differs, without an interval: 0\n"
        "in one of both runs only: 0\n"
        "verdicts that differ: 0 of 1\n"
    )


def change_results(site: Path, change: dict[str, Any], rows: dict[str, Any], speeds: dict[str, Any]) -> None:
    """Change the published chapter, its int8 row and its printed ratio."""
    document = json.loads((site / "results.json").read_text())
    one = document["chapters"]["one"]
    one |= change
    one["rows"][1] |= rows
    one["speeds"][0] |= speeds
    (site / "results.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "rows", "speeds", "words"),
    [
        ({}, {}, {"low": 2.05}, "intervals: 1 of 1\n"),
        ({}, {}, {"low": 2.05}, "  one, one-image: int8 over float: 2.000, printed 2.050 to 2.100\n"),
        ({}, {}, {"processes": 2}, "published from 2 processes: the intervals cover what they saw, not another occas"),
        ({}, {}, {"processes": 1}, "published from 1 process: the intervals cover what it saw, not another occasion"),
        ({}, {"interval": [99.4, 99.9]}, {}, "  one, int8: top-1 in %: 99.300, printed 99.400 to 99.900\n"),
        (
            {},
            {"paired": INT8["paired"] | {"interval": [0.1, 0.3]}},
            {},
            "one, int8: difference to float in points: -0.200, printed 0.100 to 0.300\n",
        ),
        ({}, {"size_mb": 2.604}, {}, "without an interval: 0\n"),
        ({}, {"size_mb": 2.61}, {}, "without an interval: 1\n  one, int8: size 2.60 MB, published 2.61 MB\n"),
        ({}, {"sqnr_db": None}, {}, "one, int8: SQNR 28.4 dB, published –\n"),
        ({}, {"setting": "B, 1 thread, engine qnnpack"}, {}, "setting 1 thread, engine x86, published 1 thread, engi"),
        ({}, {"n": 500}, {}, "one, int8: measured by top-1 in %, 1,000 inputs, published top-1 in %, 500 inputs\n"),
        ({}, {"n": 500}, {}, "outside the published intervals: 0 of 1\n"),
        ({}, {"best_float": "bf16"}, {}, "  one: the best float path is ORT, published bf16\n"),
        ({}, {"model": "int9"}, {}, "in one of both runs only: 2\n  one: int9\n  one: int8\n"),
        ({}, {}, {"name": "int9"}, "only: 2\n  one, one-image: int8 over float\n  one, one-image: int9 over float\n"),
        ({"weights": "built-in"}, {}, {}, "one: published weights here, built-in ones there, so some of its figures"),
        (
            {"machine": MACHINE | {"processor": "B"}},
            {},
            {},
            "published: B (AVX2); Python 3, torch 2, torchvision 0\nhere:      A CPU (AVX2); Python 3, ",
        ),
    ],
)
def test_what_differs_is_said(
    site: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    rows: dict[str, Any],
    speeds: dict[str, Any],
    words: str,
) -> None:
    change_results(site, change, rows, speeds)
    assert words in compared(monkeypatch, capsys, site / "results.json")


def test_another_verdict_is_named(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads((site / "verdicts.json").read_text())
    document["claims"][0]["verdict"] = "changed"
    document["claims"].append(document["claims"][0] | {"id": "R11"})
    (site / "verdicts.json").write_text(json.dumps(document))
    said = compared(monkeypatch, capsys, site / "verdicts.json")
    assert said.startswith("verdicts that differ: 1 of 1\n  R10: holds, published changed: Saved state_dicts take 14.2")
    assert said.endswith("not checked here: R11\n")
    assert "speeds" not in said, "one file was named, and it has no speeds"


def test_chapters_of_one_run_only_are_named_or_refused(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads((site / "results.json").read_text())
    document["chapters"]["three"] = copy.deepcopy(document["chapters"]["one"])
    (site / "results.json").write_text(json.dumps(document))
    assert "not run here: three\n" in compared(monkeypatch, capsys, site / "results.json")
    del document["chapters"]["one"]
    (site / "results.json").write_text(json.dumps(document))
    with pytest.raises(SystemExit, match=r"No chapter was run both there \(three\) and here \(one\)\."):
        compared(monkeypatch, capsys, site / "results.json")


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """The site, served."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_published_site_is_read_by_its_address(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "verdicts that differ: 0 of 1" in compared(monkeypatch, capsys, f"{address}/")
    with pytest.raises(SystemExit, match=r"/gone/results\.json cannot be read: HTTP Error 404"):
        compared(monkeypatch, capsys, f"{address}/gone")
    with pytest.raises(SystemExit, match=r"http://\[half/results\.json cannot be read: Invalid IPv6 URL"):
        compared(monkeypatch, capsys, "http://[half")


def test_without_a_name_the_project_s_own_site_is_taken(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["differs"])
    monkeypatch.setattr(common, "site_url", lambda: f"{site}/")
    assert differs.main() == 0
    assert "verdicts that differ: 0 of 1" in capsys.readouterr().out
    monkeypatch.setattr(common, "site_url", lambda: "")
    with pytest.raises(SystemExit, match="Name what to compare with: make differs PUBLISHED="):
        differs.main()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"results\.json cannot be read: .*No such file"),
        ("<html>", r"results\.json is no JSON file"),
        ('{"chapters": NaN}', r"results\.json is no JSON file \(it has NaN where a number belongs\)"),
        ("[]", "is of another schema: it names None, and this checkout compares quantization-book/results/1 and qu"),
        ('{"schema": "quantization-book/results/2"}', "it names 'quantization-book/results/2', and this checkout"),
        ('{"schema": "quantization-book/results/1"}', r"breaks it at \$: 'chapters' is a required property"),
    ],
)
def test_a_file_of_another_schema_is_refused(
    site: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: str | None,
    words: str,
) -> None:
    path = site / "results.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(SystemExit, match=words):
        compared(monkeypatch, capsys, path)


def test_a_missing_or_older_run_of_one_s_own_is_refused(
    site: Path, measured: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (measured / "one" / "rows-one.json").write_text(json.dumps({"rows": [{"model": "int8"}]}))
    with pytest.raises(SystemExit, match=r"Your own results are of another version \(.*make book again"):
        compared(monkeypatch, capsys, site)
    monkeypatch.setattr(differs, "RESULTS", measured / "none")
    with pytest.raises(SystemExit, match=r"There is no run of your own in .*none: make book first"):
        compared(monkeypatch, capsys, site)
