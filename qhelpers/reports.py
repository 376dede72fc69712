"""What a chapter reports: the environment line, expected errors, and verdicts on the sources' claims."""

import contextlib
import html
import json
import logging
import os
import platform
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
import torchvision

ALL_RESULTS = Path(__file__).parents[1] / "build" / "results"
VERDICTS = ("holds", "holds if", "changed", "does not hold")


class ClaimError(ValueError):
    """A claim's id or verdict does not exist, or its explanation is missing."""


# --- where and how a chapter runs --------------------------------------------------------------------


@cache
def cpu_name() -> str:
    """The processor's name as the system gives it.

    >>> len(cpu_name()) > 0
    True
    """
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def environment() -> str:
    """Two lines: versions; then processor, its vector instructions as PyTorch sees them, threads, engine.

    >>> environment().startswith("Python 3.")
    True
    """
    threads = torch.get_num_threads()
    return (
        f"Python {platform.python_version()}, torch {torch.__version__.split('+')[0]}, "
        f"torchvision {torchvision.__version__.split('+')[0]}\n{cpu_name()} "
        f"({torch.backends.cpu.get_cpu_capability()}), {threads} thread{'s' * (threads > 1)}, "
        f"quantized engine {torch.backends.quantized.engine}"
    )


def start(seed: int = 0) -> None:
    """Begin a chapter: seed PyTorch, quieten what the book explains once, print the environment line.

    The eager quantization API, its tensor types and TorchScript announce their end at every call, and
    ``torch.load`` warns about its own storage class. These warnings, and no others, are hidden.

    >>> with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
    ...     start()  # doctest: +ELLIPSIS
    Python ...
    """
    torch.manual_seed(seed)
    warnings.filterwarnings("ignore", message="torch.ao.quantization is deprecated")
    warnings.filterwarnings("ignore", message="torch.quantize_per_tensor, torch.quantize_per_channel and other")
    warnings.filterwarnings("ignore", message="Please use quant_min and quant_max")  # its own default qconfigs
    warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
    warnings.filterwarnings("ignore", message="`torch.jit", category=FutureWarning)
    print(environment())


def quiet_imports() -> None:
    """Hide what torchao's import and the C++ compiler's detection log about themselves.

    >>> quiet_imports()
    """
    for name in ("torch.utils._pytree", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)


def hide_progress() -> bool:
    """Whether progress bars stay hidden: while the book is built, since a page cannot show them move.

    >>> hide_progress() == ("QHELPERS_RESULTS" in os.environ)
    True
    """
    return "QHELPERS_RESULTS" in os.environ


@dataclass
class ExpectedError:
    """Filled in when the block has raised."""

    type_name: str = ""
    message: str = ""


@contextlib.contextmanager
def expected_error(
    kind: type[BaseException] | tuple[type[BaseException], ...], containing: str
) -> Iterator[ExpectedError]:
    """Run a block that must fail, and print only the first line of its message, or that with the expected words.

    Args:
        kind: the error's type, or several of which one is expected.
        containing: words that its message must have.

    Raises:
        AssertionError: if the block raises nothing, another type, or another message.

    >>> with expected_error(ZeroDivisionError, "division"):
    ...     1 / 0
    ZeroDivisionError: division by zero
    """
    seen = ExpectedError()
    try:
        yield seen
    except kind as error:
        seen.type_name = type(error).__name__
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        seen.message = next((line for line in lines if containing in line), lines[0] if lines else "")
        if containing not in str(error):
            raise AssertionError(f"{seen.type_name} was raised, but without {containing!r}: {error}") from error
        shown = seen.message if len(seen.message) <= 200 else seen.message[:199] + "…"
        print(f"{seen.type_name}: {shown}")
    else:
        raise AssertionError(f"Nothing was raised; expected {kind} with {containing!r}.")


# --- claims ------------------------------------------------------------------------------------------


@cache
def statements() -> dict[str, dict[str, str]]:
    """The sources' checkable statements in the book's own words: id to statement and chapter.

    >>> len(statements())
    57
    """
    loaded: dict[str, dict[str, str]] = json.loads((Path(__file__).parent / "claims.json").read_text())
    return loaded


def results_folder() -> Path:
    """Where the running chapter leaves its results.

    The book's runner names a folder for each notebook in ``QHELPERS_RESULTS``; a notebook that is run by
    hand writes to ``build/results/by-hand`` of the checkout.

    >>> results_folder().name in ("by-hand", "results")
    True
    """
    named = os.environ.get("QHELPERS_RESULTS")
    return Path(named) if named else ALL_RESULTS / "by-hand"


def write_whole(path: Path, text: str) -> None:
    """Write a text file completely or not at all.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_whole(Path(folder) / "new" / "a.txt", "all of it")
    ...     (Path(folder) / "new" / "a.txt").read_text()
    'all of it'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text)
    os.replace(part, path)


def record(name: str, values: dict[str, str | float | int | bool]) -> None:
    """Keep values of the running chapter in its results folder, for other pages and for the tests.

    >>> record("doctest", {"n": 1})
    >>> json.loads((results_folder() / "doctest.json").read_text())
    {'n': 1}
    """
    write_whole(results_folder() / f"{name}.json", json.dumps(values, indent=1))


@dataclass(frozen=True)
class Claim:
    """A verdict on one statement of the sources; shown as a box and kept for the page of verdicts.

    Args:
        id: the statement's id, such as ``"R10"``.
        measured: what this run found, in words and figures.
        verdict: ``"holds"``, ``"holds if"``, ``"changed"`` or ``"does not hold"``.
        because: the condition, the change or the truth; needed unless the claim holds.

    Raises:
        ClaimError: for an id or verdict that does not exist, or an explanation that is missing.

    >>> Claim("R100", measured="nothing", verdict="holds")
    Traceback (most recent call last):
        ...
    qhelpers.reports.ClaimError: There is no claim 'R100'; the ids are R1 to R27 and V1 to V30.
    """

    id: str
    measured: str
    verdict: str
    because: str = ""

    def __post_init__(self) -> None:
        if self.id not in statements():
            raise ClaimError(f"There is no claim {self.id!r}; the ids are R1 to R27 and V1 to V30.")
        if self.verdict not in VERDICTS:
            raise ClaimError(f"{self.verdict!r} is no verdict; choose one of: {', '.join(VERDICTS)}.")
        if not self.measured.strip():
            raise ClaimError(f"Claim {self.id} says nothing of what was measured.")
        if self.verdict != "holds" and not self.because.strip():
            raise ClaimError(f"Claim {self.id} with the verdict {self.verdict!r} needs because=….")
        write_whole(results_folder() / f"claim-{self.id}.json", json.dumps(asdict(self), indent=1))

    def _repr_html_(self) -> str:
        return claim_box(asdict(self))


def claim_box(claim: dict[str, str], footer: str = "") -> str:
    """The box in which a claim is shown, as HTML.

    Args:
        claim: the fields of a :class:`Claim`.
        footer: more HTML for the end of the box.

    >>> "R10 · holds" in claim_box({"id": "R10", "measured": "yes", "verdict": "holds", "because": ""})
    True
    """
    name, verdict, because = claim["id"], claim["verdict"], claim["because"]
    explained = f"<p><b>{verdict.capitalize()}:</b> {as_html(because)}</p>" if because else ""
    return (
        f'<div class="qb-claim qb-{verdict.replace(" ", "-")}">'
        f'<p><span class="qb-verdict">{name} · {verdict}</span> <i>{as_html(statements()[name]["statement"])}</i></p>'
        f"<p><b>Measured:</b> {as_html(claim['measured'])}</p>{explained}{footer}</div>"
    )


def as_html(words: str) -> str:
    """Escaped text in which backticks become code.

    >>> as_html("`a` < b")
    '<code>a</code> &lt; b'
    """
    parts = html.escape(words).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))


def recorded_claims(folder: Path = ALL_RESULTS) -> dict[str, dict[str, str]]:
    """All claims under a folder of results: id to record, in the order of the statements.

    What a notebook run by hand has left counts only as long as the book's runner has not run that chapter,
    and never on the pages that the runner makes.

    Raises:
        ClaimError: if a file there is no record of a claim.

    >>> recorded_claims(Path("no-such-folder"))
    {}
    """
    found = {}
    paths = sorted(folder.glob("*/claim-*.json"), key=lambda path: path.parent.name != "by-hand")
    for path in paths:
        if path.parent.name == "by-hand" and "QHELPERS_RESULTS" in os.environ:
            continue
        try:
            record = json.loads(path.read_text())
            found[record["id"]] = {name: str(record[name]) for name in ("id", "measured", "verdict", "because")}
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ClaimError(f"{path.name} is no record of a claim ({error}): run its chapter again.") from error
    return {name: found[name] for name in statements() if name in found}
