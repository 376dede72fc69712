"""Run the book beside other versions than its pins, in an environment of its own, and say what changed.

    python3 tools/lane.py TORCH          a release, such as 2.15.0, "newest" or "nightly"
    python3 tools/lane.py --pins FILE    a file of lines such as torch==2.15.0, which replace the book's
    python3 tools/lane.py --issue REPORT [REPORT ...]

The report names the companions that could not be installed or imported, the cells that failed, the entries of the
gallery among them, and the verdicts and table rows that differ from a run with the book's own pins: that of this
checkout (``make book``), else the published one. A difference is news and no error; a lane in which no notebook passed
is one. ``--issue`` opens or updates one issue with the reports that have news; it needs GitHub's ``gh``.

Needs git and nothing but the standard library: it runs where the book is not set up.
"""

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LANES = ROOT / ".lanes"
NIGHTLY = ("--prerelease", "allow", "--index-url", "https://download.pytorch.org/whl/nightly/cpu")
# What is built for a release of torch, or reaches into it, with the module that says whether it works.
COMPANIONS = {
    "torchvision": "torchvision",
    "torchao": "torchao.quantization.pt2e",
    "executorch": "executorch.extension.pybindings.portable_lib",
    "onnxruntime": "onnxruntime.quantization",
    "onnxscript": "onnxscript",
}
PIN = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*) *(?:\[.*?\] *)?== *(?P<version>[^\s;]+)")
PASSED = re.compile(r"executed in|unchanged, its")  # as the runner says it
NEWS = re.compile(  # in what tools.differs prints; speeds are another machine's, or another hour's
    r"^(?:verdicts that differ|accuracies, .* intervals|differs, without an interval|in one of both runs only): [1-9]"
    r"|^not (?:run|checked|compared)",
    re.MULTILINE,
)
NO_NEWS = "Nothing differs."
TITLE = "Other versions than the pins: what differs"
MOST_OF_AN_ISSUE = 60_000  # characters; GitHub refuses more than 65,536


def output_of(*command: str | Path, cwd: Path = ROOT, **variables: str) -> tuple[int, str]:
    """Run a command, with these environment variables; its exit code and all that it printed."""
    try:
        done = subprocess.run(
            [*map(str, command)],
            cwd=cwd,
            env=os.environ | {"PYTHONUTF8": "1"} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
    except FileNotFoundError as error:
        return 127, f"{command[0]} is not installed: {error}"
    return done.returncode, done.stdout


def pins(text: str) -> dict[str, list[str]]:
    """The pinned lines of a requirements file by the package's normal name; several where their markers differ.

    >>> pins("-e .\\nTorch == 2.14.1\\nappnope==1.0.0 ; sys_platform == 'darwin'  # for a Mac")
    {'torch': ['Torch == 2.14.1'], 'appnope': ["appnope==1.0.0 ; sys_platform == 'darwin'"]}

    Raises:
        SystemExit: for a line that pins nothing, which would be passed over.
    """
    found: dict[str, list[str]] = {}
    for line in filter(None, (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines())):
        if match := PIN.match(line):
            found.setdefault(re.sub(r"[-_.]+", "-", match["name"]).lower(), []).append(line)
        elif line != "-e .":
            raise SystemExit(f"A file of pins has lines such as torch==2.14.1, and not: {line}")
    return found


def torch_arguments(torch: str, index: str = "", torchvision: Sequence[str] = ("torchvision",)) -> list[str]:
    """What uv is asked for: torch, with the torchvision that fits it."""
    if torch == "nightly":
        return [*NIGHTLY, "torch", *torchvision]
    named = "torch" if torch == "newest" else f"torch=={torch}"
    return [*(["--index-url", index] if index else []), named, *torchvision]


class Lane:
    """One environment, with a checkout of the committed book: ``.lanes/NAME``."""

    def __init__(self, name: str) -> None:
        self.name, self.folder = name, LANES / name
        self.checkout, self.complete = self.folder / "checkout", self.folder / "complete"

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        folder = "Scripts" if sys.platform == "win32" else "bin"
        return self.folder / "venv" / folder / "python"

    def uv(self, command: str, *arguments: str) -> tuple[int, str]:
        """Call uv for this environment; pip searches long where releases exclude each other. Its exit and output."""
        return output_of(self.python, "-m", "uv", "pip", command, "--quiet", "--python", self.python, *arguments)

    def check_out(self) -> None:
        """Lay a fresh copy of every committed file into the lane, so that it never meets another run's results."""
        shutil.rmtree(self.checkout, ignore_errors=True)
        code, listed = output_of("git", "ls-files", "-z")
        if code != 0:
            raise SystemExit(f"A lane needs a git checkout: {listed.strip()}")
        for name in filter(None, listed.split("\0")):
            (self.checkout / name).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_file():
                shutil.copy(ROOT / name, self.checkout / name)

    def set_up(self, torch: list[str], own: dict[str, list[str]]) -> list[str]:
        """Make the environment, unless it is complete; the companions that are missing, each with the reason.

        An environment that was cut off half-way, or for which something else was asked, is made anew: the newest torch
        and a nightly one each day.

        Args:
            torch: arguments of uv that bring torch and torchvision.
            own: pins that replace the book's.

        Raises:
            SystemExit: if there is no such torch, or one of the book's other packages cannot be installed.
        """
        wanted = pins(_text(ROOT / "requirements.txt")) | own
        day = str(datetime.date.today()) if "torch" in torch else ""
        asked = json.dumps([sys.version, torch, wanted, day])
        if self.complete.is_file():
            first, *missing = _text(self.complete).splitlines()
            if first == asked:
                return missing
            self.complete.unlink()
        shutil.rmtree(self.folder / "venv", ignore_errors=True)
        venv.create(self.folder / "venv", with_pip=True)
        code, said = output_of(self.python, "-m", "pip", "install", "--quiet", *wanted["uv"])
        if code != 0:
            raise SystemExit(f"{self.name}: pip cannot install uv.\n{_end(said)}")
        code, said = self.uv("install", *torch)
        if code != 0:
            raise SystemExit(f"{self.name}: uv cannot install {' '.join(torch)}.\n{_end(said)}")
        rest = [line for name, lines in wanted.items() if name not in {"torch", *COMPANIONS} for line in lines]
        (self.folder / "rest.txt").write_text("\n".join(rest))
        code, said = self.uv("install", "--no-deps", "-r", str(self.folder / "rest.txt"))
        if code != 0:
            raise SystemExit(f"{self.name}: uv cannot install the book's other packages.\n{_end(said)}")
        missing = [*self._companions(own)]
        code, said = self.uv("install", "--no-deps", "-e", str(self.checkout))
        if code != 0:
            raise SystemExit(f"{self.name}: uv cannot install qhelpers.\n{_end(said)}")
        self.complete.write_text("\n".join([asked, *missing]), encoding="utf-8")
        return missing

    def _companions(self, own: dict[str, list[str]]) -> Iterator[str]:
        """Install each companion in the newest release that there is for this torch; those that do not work."""
        frozen = self.folder / "frozen.txt"
        frozen.write_text(self.uv("freeze")[1])
        for name, module in COMPANIONS.items():
            if name != "torchvision":
                code, said = self.uv("install", "--constraint", str(frozen), *own.get(name, [name]))
                if code != 0:
                    yield f"{name} cannot be installed: {' '.join(said.split())[:300]}"
                    continue
            code, said = output_of(self.python, "-c", f"import {module}")
            if code != 0:
                yield f"{name} is installed and fails: {_last(said)}"

    def run(self, jobs: int, notebooks: list[str]) -> str:
        """Execute the book's notebooks, all or those that are named; what the runner printed."""
        command = [str(self.python), "-m", "tools.run_notebooks", "--jobs", str(jobs), *notebooks]
        settings = {"QHELPERS_PROCESSES": os.environ.get("QHELPERS_PROCESSES", "1"), "QHELPERS_LANE": "1"}
        code, said = output_of(*command, cwd=self.checkout, **settings)
        if not re.search(r"executed in|FAILED", said):
            raise SystemExit(f"{self.name}: no notebook ran (exit code {code}).\n{_end(said)}")
        return said

    def report(self, missing: list[str], said: str, site: Path = ROOT / "_build" / "html") -> list[str]:
        """The lines of the report: versions, missing companions, failing cells, and what differs."""
        passed = len(PASSED.findall(said))
        failed = re.findall(r"^(\S+): FAILED", said, re.MULTILINE)
        lines = [f"## {self.name}", "", self.uv("freeze")[1].replace("==", " ")]
        kept = {"torch", *COMPANIONS}
        lines[2] = ", ".join(line for line in lines[2].splitlines() if line.split(" ")[0].lower() in kept)
        lines += ["", f"{passed} notebooks passed, {len(failed)} failed."]
        lines += [f"- missing: {words}" for words in missing]
        if old := recorded_before(lines[2]):
            lines.append(f"- recorded with the book's own torch, and not made again: {', '.join(old)}")
        for name in failed:
            lines += [f"- {name}: {words}" for words in failing_cells(self.checkout, name)]
        ours = [site] if (site / "results.json").is_file() else []  # else differs takes the published site
        code, differs = output_of(self.python, "-m", "tools.differs", *ours, cwd=self.checkout)
        differs = f"not compared with a run of the book's pins: {_end(differs)}" if code else differs
        news = missing or failed or NEWS.search(differs)
        return [*lines, "", "```", differs.strip(), "```", "", "" if news else NO_NEWS]


def failing_cells(checkout: Path, name: str) -> list[str]:
    """The cells of a notebook that failed, with their errors; entries of the gallery by number and question."""
    path = checkout / "build" / "running" / name / f"{name}.ipynb"
    if not path.is_file():
        return ["left no notebook"]
    entries = json.loads(_text(checkout / "qhelpers" / "book" / "gallery.json"))
    questions = {entry["number"]: entry["question"] for entry in entries if entry["page"] == name}
    found = []
    try:
        cells = json.loads(_text(path))["cells"]
    except ValueError as error:
        return [f"left a damaged notebook: {error}"]
    for cell in cells:
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                number = re.match(r"e(\d+)-", cell["id"])
                entry = f" (entry {number[1]}, {questions.get(int(number[1]), '?')})" if number else ""
                words = " ".join(str(output["evalue"]).split())[:200]
                found.append(f"cell `{cell['id']}`{entry}: {output['ename']}: {words}")
    return found or ["failed outside its cells"]


def recorded_before(installed: str) -> list[str]:
    """The recorded results that the book's own torch has made, where another minor release is installed.

    Args:
        installed: words that hold ``torch`` and its version.
    """
    ours = minor_of(*pins(_text(ROOT / "requirements.txt"))["torch"])
    if minor_of(installed) == ours:
        return []
    files = sorted((ROOT / "qhelpers" / "book" / "results").glob("*.json"))
    made = {file.stem: json.loads(_text(file))["versions"]["torch"] for file in files}
    return [name for name, version in made.items() if minor_of(f"torch {version}") == ours]


def minor_of(words: str) -> str:
    """The first two parts of torch's version in some words; "" if they do not tell it.

    >>> minor_of("torchao 0.18.0, torch 2.14.1+cpu"), minor_of("torch==2.14.1")
    ('2.14', '2.14')
    """
    found = re.search(r"\btorch(?: |==)(\d+\.\d+)", words)
    return found[1] if found else ""


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _last(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "it says nothing"


def _end(said: str) -> str:
    return "\n".join(said.splitlines()[-15:])


def issue(reports: list[Path]) -> str:
    """Open or update the one issue that gathers the lanes' news; what was done.

    Raises:
        SystemExit: if ``gh`` fails, or a report is missing, once the issue has the others.
    """
    texts = {path: _text(path) if path.is_file() else "" for path in reports}
    absent = [path.stem for path, text in texts.items() if not text]
    news = [text or f"## {path.stem}\n\nNo report." for path, text in texts.items() if NO_NEWS not in text]
    code, said = output_of("gh", "issue", "list", "--search", f'in:title "{TITLE}"', "--json", "number")
    if code != 0:
        raise SystemExit(f"gh cannot list the issues: {_last(said)}")
    known = [str(one["number"]) for one in json.loads(said)]
    if not news and not known:
        return "no lane has news"
    body = LANES / "issue.md"
    body.parent.mkdir(exist_ok=True)
    shown = [_cut(text, MOST_OF_AN_ISSUE // len(news)) for text in news]
    body.write_text("\n\n".join(shown) or "No lane has news.", encoding="utf-8")
    what = ["edit", known[0]] if known else ["create", "--title", TITLE]
    code, said = output_of("gh", "issue", *what, "--body-file", body)
    if code != 0:
        raise SystemExit(f"gh issue {what[0]} failed: {_last(said)}")
    if absent:
        raise SystemExit(f"No report, so that lane did not run: {', '.join(absent)}. {said.strip()}")
    return said.strip()


def _cut(report: str, most: int) -> str:
    """The first lines of a report that is too long for an issue."""
    if len(report) <= most:
        return report
    lines = report[:most].splitlines()[:-1]
    return "\n".join([*lines, *(["```"] if lines.count("```") % 2 else []), "", "The lane's artifact has the rest."])


def main() -> None:
    """Run one lane and write its report, or hand reports to the issue."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("torch", nargs="?", help="a release of torch, newest or nightly")
    parser.add_argument("--pins", type=Path, help="a file of pins that replace the book's")
    parser.add_argument("--name", default="", help="of the lane, else after torch or the file")
    parser.add_argument("--index", default="", help="where torch's wheels lie, if not on PyPI")
    parser.add_argument("--jobs", type=int, default=1, help="how many notebooks run side by side")
    parser.add_argument("--notebooks", nargs="*", default=[], help="only these, by name")
    parser.add_argument("--issue", nargs="+", type=Path, metavar="REPORT")
    arguments = parser.parse_args()
    if arguments.issue:
        print(issue(arguments.issue))
        return
    if arguments.pins and not arguments.pins.is_file():
        parser.error(f"there is no file {arguments.pins}")
    own = pins(_text(arguments.pins)) if arguments.pins else {}
    pinned = PIN.match(own.get("torch", [""])[0])
    if not (torch := arguments.torch or (pinned["version"] if pinned else "")):
        parser.error("name a release of torch, newest, nightly, or a file of pins that has one")
    name = arguments.name or (arguments.pins.stem if arguments.pins else f"torch-{torch}")
    lane = Lane(re.sub(r"^\W+|[^\w.-]", "-", name))
    report = LANES / f"{lane.name}.md"
    lane.folder.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    lane.check_out()
    missing = lane.set_up(torch_arguments(torch, arguments.index, own.get("torchvision", ["torchvision"])), own)
    said = lane.run(arguments.jobs, arguments.notebooks)
    lines = lane.report(missing, said)
    report.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))
    if not PASSED.search(said):
        raise SystemExit(f"{lane.name}: no notebook passed.")


if __name__ == "__main__":
    main()
