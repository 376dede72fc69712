"""Lanes with other versions: what is missing, failing or different is named; a run of nothing is no run."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tools import lane

Answers = dict[str, tuple[int, str]]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Answers], lane.Lane]:
    """A lane whose commands give the first answer whose words they hold, else success; ``asked`` lists them."""

    def make(answers: Answers) -> lane.Lane:
        asked: list[str] = []

        def answer(*command: str | Path, cwd: Path = tmp_path, **variables: str) -> tuple[int, str]:
            words = " ".join([*map(str, command), *variables])
            asked.append(words)
            return next((given for part, given in answers.items() if part in words), (0, ""))

        monkeypatch.setattr(lane, "LANES", tmp_path)
        monkeypatch.setattr(lane, "output_of", answer)
        monkeypatch.setattr(lane.venv, "create", lambda path, with_pip: path.mkdir())
        new = lane.Lane("torch-x")
        new.folder.mkdir(exist_ok=True)
        new.__dict__["asked"] = asked
        return new

    return make


def asked(of: lane.Lane) -> list[str]:
    found: list[str] = of.__dict__["asked"]
    return found


def test_a_torch_that_does_not_exist_is_named(made: Callable[[Answers], lane.Lane]) -> None:
    new = made({"torch==9.9.9": (1, "ERROR: No matching distribution found for torch==9.9.9")})
    with pytest.raises(SystemExit, match=r"cannot install torch==9\.9\.9(.|\n)*No matching distribution"):
        new.set_up(lane.torch_arguments("9.9.9"), {})
    assert not new.complete.exists()


def test_companions_that_cannot_be_installed_or_imported_are_named_and_the_rest_goes_on(
    made: Callable[[Answers], lane.Lane],
) -> None:
    new = made(
        {
            "frozen.txt executorch": (1, "…\n  No solution\n  found"),
            "import onnxscript": (1, "Traceback\nImportError: no onnx_ir"),
        }
    )
    missing = new.set_up(lane.torch_arguments("2.15.0"), {})
    assert missing == [
        "executorch cannot be installed: … No solution found",
        "onnxscript is installed and fails: ImportError: no onnx_ir",
    ]
    assert any("frozen.txt torchao" in words for words in asked(new))
    assert new.set_up([], {}) == missing, "a complete environment is used again, and still says what it lacks"


def test_an_environment_that_was_cut_off_half_way_is_made_anew(made: Callable[[Answers], lane.Lane]) -> None:
    new = made({})
    (new.folder / "venv").mkdir()
    (new.folder / "venv" / "half").touch()
    new.set_up(lane.torch_arguments("2.15.0"), {})
    assert not (new.folder / "venv" / "half").exists()
    assert new.complete.is_file()


def test_pins_of_a_file_replace_the_book_s(made: Callable[[Answers], lane.Lane], tmp_path: Path) -> None:
    own = lane.pins("scipy==1.0\ntorchao==0.17.0\n")
    new = made({})
    new.set_up(lane.torch_arguments("2.15.0"), own)
    rest = (new.folder / "rest.txt").read_text().splitlines()
    assert "scipy==1.0" in rest
    assert not [line for line in rest if line.startswith(("torch==", "torchao==", "-e"))]
    assert any("torchao==0.17.0" in words for words in asked(new))


@pytest.mark.parametrize("said", ["", "Traceback\nModuleNotFoundError: No module named 'yaml'"])
def test_a_lane_in_which_nothing_ran_is_red(said: str, made: Callable[[Answers], lane.Lane]) -> None:
    new = made({"tools.run_notebooks": (1, said)})
    with pytest.raises(SystemExit, match="no notebook ran"):
        new.run(1, [])


def test_failing_cells_and_differences_are_reported(made: Callable[[Answers], lane.Lane], tmp_path: Path) -> None:
    differs = "verdicts that differ: 1 of 57\n  R7: changed, published holds"
    printed = "intro: executed in 3 s\ngallery-run: FAILED"
    new = made(
        {
            "tools.run_notebooks": (1, printed),
            "tools.differs": (0, differs),
            "freeze": (0, "torch==2.15.0\nscipy==1.0\ntorchao==0.18.0"),
        }
    )
    package = new.checkout / "qhelpers" / "book"
    package.mkdir(parents=True)
    record = {"number": 4, "page": "gallery-run", "question": "a slow mask"}
    (package / "gallery.json").write_text(json.dumps([record]))
    running = new.checkout / "build" / "running" / "gallery-run"
    running.mkdir(parents=True)
    error = {"output_type": "error", "ename": "AttributeError", "evalue": "no\nprepare"}
    cells = [{"id": "setup", "outputs": []}, {"id": "e4-raise", "outputs": [error]}, {"id": "text"}]
    (running / "gallery-run.ipynb").write_text(json.dumps({"cells": cells}))
    lines = new.report(["executorch fails"], new.run(1, []), "site")
    report = "\n".join(lines)
    assert "torch 2.15.0, torchao 0.18.0" in lines
    assert "1 notebooks passed, 1 failed." in lines
    assert "- gallery-run: cell `e4-raise` (entry 4, a slow mask): AttributeError: no prepare" in lines
    assert "- missing: executorch fails" in lines
    assert "R7: changed" in report
    assert any("tools.run_notebooks" in words and "QHELPERS_LANE" in words for words in asked(new))
    assert re.search(r"recorded with the book's own torch, and not made again: .*\bqat_runs\b", report)
    assert "lite_interpreter" not in report, "an older torch has made that one"
    assert lane.NO_NEWS not in report


def test_a_lane_like_the_pins_has_no_news(made: Callable[[Answers], lane.Lane]) -> None:
    pinned = lane.pins((lane.ROOT / "requirements.txt").read_text())["torch"]
    same = "verdicts that differ: 0 of 57\ndiffers, without an interval: 0"
    new = made({"tools.differs": (0, same), "freeze": (0, pinned)})
    assert lane.NO_NEWS in new.report([], "intro: executed in 3 s", "site")
    assert not [line for line in new.report([], "intro: executed in 3 s", "site") if "recorded" in line]
    assert lane.NO_NEWS not in new.report([], "intro: executed in 3 s", "")
    assert "not compared" in "\n".join(new.report([], "intro: executed in 3 s", ""))


def test_the_baseline_is_this_checkout_s_site_or_the_published_one(tmp_path: Path) -> None:
    (tmp_path / "_config.yml").write_text('title: x\nrepository:\n  url: ""\n')
    assert lane.baseline(tmp_path) == ""
    (tmp_path / "_config.yml").write_text("repository:\n  url: https://github.com/Someone/book\n")
    assert lane.baseline(tmp_path) == "https://someone.github.io/book"
    (tmp_path / "_build" / "html").mkdir(parents=True)
    (tmp_path / "_build" / "html" / "results.json").write_text("{}")
    assert lane.baseline(tmp_path) == str(tmp_path / "_build" / "html")


def test_only_news_reach_the_issue_and_a_lane_without_a_report_is_an_error(
    made: Callable[[Answers], lane.Lane], tmp_path: Path
) -> None:
    quiet, loud = tmp_path / "a.md", tmp_path / "b.md"
    quiet.write_text(f"## a\n{lane.NO_NEWS}")
    loud.write_text("## b\n- gallery-run: cell")
    new = made({"issue list": (0, '[{"number": 7}]'), "issue edit 7": (0, "edited")})
    assert lane.issue([quiet]) == "no lane has news"
    assert lane.issue([quiet, loud]) == "edited"
    assert (tmp_path / "issue.md").read_text() == loud.read_text()
    assert "issue edit 7" in asked(new)[-1]
    with pytest.raises(SystemExit, match=r"did not run: .*c\.md"):
        lane.issue([quiet, tmp_path / "c.md"])
