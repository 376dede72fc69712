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
        monkeypatch.setattr("venv.create", lambda path, with_pip: path.mkdir())
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
    own = lane.pins("# ours\nsciPy[x] == 1.0  # old\n\ntorchao==0.17.0\nargon2_cffi==1.0\n")
    new = made({})
    new.set_up(lane.torch_arguments("2.15.0"), own)
    rest = (new.folder / "rest.txt").read_text().splitlines()
    replaced = [line for line in rest if re.match("(?i)scipy|argon2.cffi=", line)]
    assert sorted(replaced) == ["argon2_cffi==1.0", "sciPy[x] == 1.0"]
    assert len([line for line in rest if line.startswith("soupsieve==")]) == 2, "both, each with its marker"
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
    lines = new.report(["executorch fails"], new.run(1, []))
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
    (pinned,) = lane.pins((lane.ROOT / "requirements.txt").read_text())["torch"]
    same = "verdicts that differ: 0 of 57\ndiffers, without an interval: 0"
    new = made({"tools.differs": (0, same), "freeze": (0, pinned)})
    lines = new.report([], "intro: executed in 3 s")
    assert lane.NO_NEWS in lines
    assert not [line for line in lines if "recorded" in line]


def test_a_lane_is_compared_with_this_checkout_s_site_or_the_published_one(
    made: Callable[[Answers], lane.Lane], tmp_path: Path
) -> None:
    new = made({})
    new.report([], "", tmp_path)
    assert asked(new)[-1].endswith("tools.differs"), "which knows where the site is published"
    (tmp_path / "results.json").write_text("{}")
    new.report([], "", tmp_path)
    assert asked(new)[-1].endswith(f"tools.differs {tmp_path}")


def test_only_news_reach_the_issue_and_a_lane_without_a_report_is_an_error(
    made: Callable[[Answers], lane.Lane], tmp_path: Path
) -> None:
    quiet, loud = tmp_path / "a.md", tmp_path / "b.md"
    quiet.write_text(f"## a\n{lane.NO_NEWS}")
    loud.write_text("## b\n- gallery-run: cell")
    new = made({"issue list": (0, '[{"number": 7}]'), "issue edit 7": (0, "edited")})
    assert lane.issue([quiet]) == "edited"
    assert (tmp_path / "issue.md").read_text() == "No lane has news.", "last week's is news no more"
    assert lane.issue([quiet, loud]) == "edited"
    assert (tmp_path / "issue.md").read_text() == loud.read_text()
    assert "issue edit 7" in asked(new)[-1]
    with pytest.raises(SystemExit, match=r"did not run: c\."):
        lane.issue([quiet, loud, tmp_path / "c.md"])
    assert loud.read_text() in (tmp_path / "issue.md").read_text(), "a lane that did not run keeps no news back"
    assert "## c\n\nNo report." in (tmp_path / "issue.md").read_text()


def test_without_news_no_issue_is_opened(made: Callable[[Answers], lane.Lane], tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(lane.NO_NEWS)
    new = made({"issue list": (0, "[]")})
    assert lane.issue([tmp_path / "a.md"]) == "no lane has news"
    assert not [words for words in asked(new) if "create" in words]


def test_an_issue_holds_some_of_each_lane_s_news(made: Callable[[Answers], lane.Lane], tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.md").write_text("\n".join([f"## {name}", "```", *["it differs"] * 9_000, "```"]))
    made({"issue list": (0, "[]"), "issue create": (0, "created")})
    assert lane.issue([tmp_path / "a.md", tmp_path / "b.md"]) == "created"
    body = (tmp_path / "issue.md").read_text()
    assert len(body) < 65_536
    assert "## a" in body
    assert body.count("```\n\nThe lane's artifact has the rest.") == 2


@pytest.mark.parametrize("line", ["scipy>=1.0", "-r other.txt", "scipy @ https://a.org/scipy.whl", "scipy"])
def test_a_line_that_pins_nothing_is_refused(line: str) -> None:
    with pytest.raises(SystemExit, match=re.escape(f"and not: {line}")):
        lane.pins(f"torch==2.15.0\n{line}\n")


def test_an_environment_for_something_else_is_not_used_again(made: Callable[[Answers], lane.Lane]) -> None:
    new, arguments = made({}), lane.torch_arguments("2.15.0")
    for torch, own in [(arguments, {}), (arguments, lane.pins("scipy==1.0")), (lane.torch_arguments("newest"), {})]:
        new.set_up(torch, own)
        (new.folder / "venv" / "old").touch()
        new.set_up(torch, own)
        assert (new.folder / "venv" / "old").exists(), "asked for once more on the same day"
    new.complete.write_text("[]")
    new.set_up(arguments, {})
    assert not (new.folder / "venv" / "old").exists()


def test_a_file_that_was_deleted_and_not_committed_is_left_out(made: Callable[[Answers], lane.Lane]) -> None:
    new = made({"ls-files": (0, "README.md\0gone.md\0")})
    new.check_out()
    assert [path.name for path in new.checkout.iterdir()] == ["README.md"]


def test_a_book_that_cannot_be_installed_makes_no_environment(made: Callable[[Answers], lane.Lane]) -> None:
    new = made({"--no-deps -e": (1, "no setuptools")})
    with pytest.raises(SystemExit, match=r"cannot install qhelpers\.\nno setuptools"):
        new.set_up(lane.torch_arguments("2.15.0"), {})
    assert not new.complete.exists()


def test_a_damaged_notebook_costs_no_report(tmp_path: Path) -> None:
    (tmp_path / "qhelpers" / "book").mkdir(parents=True)
    (tmp_path / "qhelpers" / "book" / "gallery.json").write_text("[]")
    assert lane.failing_cells(tmp_path, "intro") == ["left no notebook"]
    (tmp_path / "build" / "running" / "intro").mkdir(parents=True)
    (tmp_path / "build" / "running" / "intro" / "intro.ipynb").write_text('{"cells": [')
    assert lane.failing_cells(tmp_path, "intro")[0].startswith("left a damaged notebook")


SAME = "verdicts that differ: 0 of 57\nspeeds outside the published intervals: 3 of 9\nin one of both runs only: 0"


@pytest.mark.parametrize(
    ("code", "printed", "news"),
    [
        (0, SAME, False),
        (0, f"{SAME}\naccuracies, or differences to float, outside the published intervals: 2 of 43", True),
        (0, f"{SAME}\nin one of both runs only: 1", True),
        (0, f"{SAME}\nnot checked here: R1", True),
        (0, f"{SAME}\nnot run here: intro", True),
        (1, "site/verdicts.json is of another schema", True),
    ],
)
def test_what_is_news(code: int, printed: str, news: bool, made: Callable[[Answers], lane.Lane]) -> None:
    lines = made({"tools.differs": (code, printed)}).report([], "intro: executed in 3 s")
    assert (lane.NO_NEWS not in lines) is news
    assert any(line.startswith("not compared with") for line in lines) is bool(code)


def test_without_git_or_gh_the_error_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(lane, "LANES", tmp_path)
    with pytest.raises(SystemExit, match="needs a git checkout: git is not installed"):
        lane.Lane("x").check_out()
    (tmp_path / "a.md").write_text("news")
    with pytest.raises(SystemExit, match="gh is not installed"):
        lane.issue([tmp_path / "a.md"])


def test_a_lane_lies_in_its_folder_takes_its_file_s_torch_and_is_red_if_no_notebook_passed(
    made: Callable[[Answers], lane.Lane], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made({"tools.run_notebooks": (1, "intro: FAILED")})
    asked_for: list[list[str]] = []

    def set_up(self: lane.Lane, torch: list[str], own: dict[str, list[str]]) -> list[str]:
        asked_for.append(torch)
        return []

    monkeypatch.setattr(lane.Lane, "set_up", set_up)
    (tmp_path / "file.txt").write_text("Torch == 2.15.0.dev1+cpu ; python_version > '3'\n")
    monkeypatch.setattr("sys.argv", ["lane", "--pins", str(tmp_path / "file.txt"), "--name", "../up"])
    with pytest.raises(SystemExit, match="-up: no notebook passed"):
        lane.main()
    assert asked_for == [["torch==2.15.0.dev1+cpu", "torchvision"]]
    assert "- intro: left no notebook" in (tmp_path / "-up.md").read_text().splitlines()
