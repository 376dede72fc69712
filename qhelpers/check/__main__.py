"""``python -m qhelpers.check JOB.py``: check the model that a job file defines."""

import argparse
import difflib
import importlib
import linecache
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from qhelpers import atomic, guards
from qhelpers.check import reports
from qhelpers.check.errors import CheckError
from qhelpers.check.result import Result

REQUIRED = ("model", "validation", "target")
OPTIONAL = ("calibration", "test", "budget", "evaluate", "example", "threads", "batch", "folder")
KEPT, OVER, REFUSED, INTERRUPTED = 0, 1, 2, 130
SAID_IN_WORDS = (CheckError, guards.GuardError, atomic.WriteError)
HELP = """\
A job is a Python file that defines
  model, validation, target
and may define
  calibration, test, budget, evaluate, example, threads, batch, folder
as qhelpers.check.run takes them.

exit codes
  0    the file is within the budget, and no worse than --against
  1    it is over the budget, or worse
  2    refused: the job, the model or the data; the message says why
  130  interrupted
"""


class JobError(CheckError):
    """A job file cannot be read, raises an error, or lacks a name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job that the command line names, print what was found, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m qhelpers.check",
        description="Convert a model to int8, measure the file, and write a report beside it.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("job", type=Path, metavar="JOB.py", help="a Python file that defines the model and its data")
    parser.add_argument("--against", type=Path, metavar="REPORT.json", help="fail if the file is worse than there")
    parser.add_argument("--folder", type=Path, help="where to write; overrides the job's own (default: checked)")
    given = parser.parse_args(arguments)
    try:
        return _checked(given.job, given.against, given.folder)
    except SAID_IN_WORDS as error:
        print(f"Refused: {error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt as stop:
        print(f"Interrupted. {stop}".strip(), file=sys.stderr)
        return INTERRUPTED


def _checked(job: Path, against: Path | None, folder: Path | None) -> int:
    earlier = reports.read_report(against) if against else None  # before a run of minutes, which may write there
    with job_names(job) as names:
        wanted = folder or names.get("folder") or "checked"
        if not isinstance(wanted, (str, os.PathLike)):
            raise JobError(f"folder must be a path; got {wanted!r}.")
        names["folder"] = folder = Path(wanted)
        if against and against.resolve() == (folder / "report.json").resolve():
            raise JobError(f"{against} is where this run writes its own report: copy it to another folder first.")
        if earlier:
            reports.require_same({"model": type(names["model"]).__name__, "target": names["target"]}, earlier)
        try:
            found: Result = importlib.import_module("qhelpers.check").run(**names)
        except SAID_IN_WORDS:
            raise
        except (Exception, SystemExit) as error:  # the job's evaluate or loader may end the process
            raise _unforeseen(error, job, folder) from error
    print(found)
    worse = reports.against(found.report, earlier) if earlier else []
    for line in worse:
        print(f"Worse than {against}: {line}.", file=sys.stderr)
    code = {reports.KEPT: KEPT, reports.OVER: OVER}.get(found.status, REFUSED)
    return code or (OVER if worse else KEPT)


@contextmanager
def job_names(path: Path) -> Iterator[dict[str, Any]]:
    """What a job file defines of the arguments of :func:`qhelpers.check.run`.

    Inside the block the file's folder is importable, as that of a script is.

    Raises:
        JobError: if the file cannot be read or compiled, raises an error, or lacks a required name; with its line.
    """
    module = ModuleType("qhelpers_job")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where torch and inspect look for the classes of the job
    cloudpickle.register_pickle_by_value(module)  # another process could not import it
    sys.path.insert(0, folder := str(path.resolve().parent))
    try:
        _execute(path, module)
        if missing := [name for name in REQUIRED if name not in vars(module)]:
            others = [name for name in vars(module) if name not in REQUIRED + OPTIONAL]
            alike = {name: difflib.get_close_matches(name, others, 1) for name in missing}
            hints = "".join(f" It defines {found[0]}: is that {name}?" for name, found in alike.items() if found)
            raise JobError(f"{path} does not define {', '.join(missing)}.{hints}")
        yield {name: vars(module)[name] for name in REQUIRED + OPTIONAL if name in vars(module)}
    finally:
        sys.path.remove(folder)
        cloudpickle.unregister_pickle_by_value(module)
        del sys.modules[module.__name__]


def _execute(path: Path, module: ModuleType) -> None:
    try:
        code = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    except OSError as error:
        raise JobError(f"{path} cannot be read: {error.strerror}.") from error
    except SyntaxError as error:
        place = f", line {error.lineno} ({(error.text or '').strip()})" if error.lineno else ""
        raise JobError(f"{path}{place}: {error.msg}.") from error
    try:
        exec(code, vars(module))
    except (Exception, SystemExit) as error:
        raise JobError(f"{_place(error, path)}: {_words(error)}") from error


def _unforeseen(error: BaseException, job: Path, folder: Path) -> JobError:
    """An error that the checker does not know: the job's own if one of its lines was running, else the checker's."""
    if place := _place(error, job):
        return JobError(f"{place}: {_words(error)}")
    details = folder / "error.txt"
    atomic.write_text(details, "".join(traceback.format_exception(error)))
    return JobError(f"The checker itself failed, which is a bug in it: {_words(error)}. See {details}.")


def _place(error: BaseException, path: Path) -> str:
    """The last line of the job that was running, with its text; empty if none was."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    if not lines or lines[-1] is None:
        return ""
    return f"{path}, line {lines[-1]} ({linecache.getline(str(path), lines[-1]).strip()})"


def _words(error: BaseException) -> str:
    said = guards.first_line(error) if isinstance(error, Exception) else str(error)
    return f"{type(error).__name__}: {said}"


if __name__ == "__main__":
    sys.exit(main())
