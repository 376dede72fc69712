"""The command ends in an exit code and words, never in a traceback."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qhelpers import check, guards
from qhelpers.check import __main__ as command
from qhelpers.check.errors import CheckError
from qhelpers.check.result import Result

Report = Callable[..., dict[str, Any]]
JOB = "model, calibration, validation, target = 'a model', [], [], 'onnx-x86'\n"


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a job file, relative to the working folder."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> str:
        Path("job.py").write_text(text)
        return "job.py"

    return write


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Let ``run`` give this result or raise this error; returns what it is called with."""

    def let(result: dict[str, Any] | BaseException | Callable[..., Any]) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []

        def run(**names: Any) -> Result:
            calls.append(names)
            if isinstance(result, BaseException):
                raise result
            found = Result(result(**names) if callable(result) else result, Path(names["folder"]))
            found.write()
            return found

        monkeypatch.setattr(check, "run", run, raising=False)
        return calls

    return let


@pytest.mark.parametrize(("status", "code"), [("kept", 0), ("over", 1), ("refused", 2)])
def test_the_exit_code_is_the_verdict(
    status: str, code: int, job: Any, runs: Any, report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(report(status))
    assert command.main([job(JOB)]) == code
    said = capsys.readouterr()
    assert said.out.splitlines()[0].endswith({0: "within the budget", 1: "over the budget", 2: "not converted"}[code])
    assert not said.err
    assert sorted(path.name for path in Path("checked").iterdir()) == ["report.html", "report.json"]


def test_the_job_s_names_are_handed_on_and_no_others(job: Any, runs: Any, report: Report) -> None:
    calls = runs(report())
    Path("mine.py").write_text("BUDGET = 0.7")
    command.main([job(JOB + "import mine\nbudget = mine.BUDGET\nfolder = 'there'\nhelper = 3\n")])
    command.main(["job.py", "--folder", "elsewhere"])
    expected = {"model": "a model", "calibration": [], "validation": [], "target": "onnx-x86", "budget": 0.7}
    assert calls == [expected | {"folder": Path("there")}, expected | {"folder": Path("elsewhere")}]
    assert "qhelpers_job" not in sys.modules
    assert str(Path.cwd()) not in sys.path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model = (\n", "job.py, line 1 (model = (): '(' was never closed."),
        ("\nmodel = 1 / 0\n", "job.py, line 2 (model = 1 / 0): ZeroDivisionError: division by zero"),
        (
            "def load():\n    raise OSError('no data')\nload()\n",
            "job.py, line 2 (raise OSError('no data')): OSError: no",
        ),
        ("import nothing_here\n", "job.py, line 1 (import nothing_here): ModuleNotFoundError: No module named"),
        ("raise SystemExit(3)\n", "job.py, line 1 (raise SystemExit(3)): SystemExit: 3"),
        ("model = calibration = target = 1\n", "job.py does not define validation."),
        (JOB.replace("validation", "validation_loader"), "It defines validation_loader: is that validation?"),
        ("a = '\0'\n", "job.py: source code string cannot contain null bytes."),
    ],
    ids=["syntax", "error", "in a function", "import", "exit", "missing", "misspelt", "null byte"],
)
def test_a_job_that_cannot_run_is_refused_with_its_line(
    text: str, words: str, job: Any, runs: Any, report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = runs(report())
    assert command.main([job(text)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("Refused: ")
    assert words in said
    assert len(said.splitlines()) == 1
    assert not calls


def test_a_job_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["nowhere.py"]) == 2
    assert capsys.readouterr().err == "Refused: nowhere.py cannot be read: No such file or directory.\n"


@pytest.mark.parametrize("error", [CheckError("No data."), guards.GuardError("No data.")])
def test_what_the_checker_refuses_is_said_in_its_words(
    error: Exception, job: Any, runs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(error)
    assert command.main([job(JOB)]) == 2
    assert capsys.readouterr().err == "Refused: No data.\n"


def test_an_error_of_the_job_s_code_during_the_run_names_its_line(
    job: Any, runs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(lambda **names: names["evaluate"](None))
    assert command.main([job(JOB + "def evaluate(predict):\n    return predict.shape\n")]) == 2
    words = "Refused: job.py, line 3 (return predict.shape): AttributeError: 'NoneType' object has no attribute 'shape'"
    assert capsys.readouterr().err == words + "\n"


def test_an_error_of_the_checker_itself_is_called_a_bug_and_kept(
    job: Any, runs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(ZeroDivisionError("by nothing"))
    assert command.main([job(JOB)]) == 2
    said = capsys.readouterr().err
    assert "The checker itself failed, which is a bug in it: ZeroDivisionError: by nothing. See checked" in said
    assert "Traceback" in Path("checked/error.txt").read_text()


def test_ctrl_c_says_what_was_finished(job: Any, runs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    runs(KeyboardInterrupt("Finished: capture, quantization."))
    assert command.main([job(JOB)]) == 130
    assert capsys.readouterr().err == "Interrupted. Finished: capture, quantization.\n"


def test_the_gate_fails_for_a_file_that_got_worse(
    job: Any, runs: Any, report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    job(JOB + "class MobileNetV2: ...\nmodel = MobileNetV2()\n")
    earlier = Result(report(), Path("earlier")).write()[1]
    worse = report()
    worse["file"]["mb"] = 3.9
    runs(report())
    assert command.main(["job.py", "--against", str(earlier)]) == 0
    runs(worse)
    assert command.main(["job.py", "--against", str(earlier)]) == 1
    assert capsys.readouterr().err == f"Worse than {earlier}: the file has 3.90 MB, earlier 3.61.\n"


def test_the_gate_is_not_overwritten_by_the_run_that_it_judges(
    job: Any, runs: Any, report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = runs(report())
    job(JOB)
    Result(report(), Path("checked")).write()
    assert command.main(["job.py", "--against", "checked/report.json"]) == 2
    assert "is where this run writes its own report: copy it to another folder first" in capsys.readouterr().err
    assert not calls


def test_help_names_what_a_job_defines_and_the_exit_codes() -> None:
    done = subprocess.run([sys.executable, "-m", "qhelpers.check", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for word in (*command.REQUIRED, *command.OPTIONAL, "130  interrupted"):
        assert word in done.stdout
