"""What every chapter needs: how it begins, errors that it expects, words as HTML, and where it leaves its results."""

import contextlib
import html
import importlib.metadata
import inspect
import json
import logging
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from qhelpers import atomic, engines

RUNTIMES = ("executorch", "onnxruntime", "torchao")  # whose versions decide figures, beside torch's


def environment() -> str:
    """Two lines: versions; then processor, its vector instructions as PyTorch sees them, threads, engine.

    >>> environment().startswith("Python 3.")
    True
    """
    threads = torch.get_num_threads()
    return (
        f"Python {platform.python_version()}, torch {torch.__version__.split('+')[0]}, "
        f"torchvision {importlib.metadata.version('torchvision').split('+')[0]}\n{engines.cpu_name()} "
        f"({instructions()}), {threads} thread{'s' * (threads > 1)}, "
        f"quantized engine {torch.backends.quantized.engine}"
    )


def machine() -> dict[str, Any]:
    """The processor, its instructions in words, and the versions that decide figures: what goes with results.

    >>> list(machine())
    ['processor', 'instructions', 'versions']
    """
    versions = {"Python": platform.python_version()}
    for name in ("torch", "torchvision", *RUNTIMES):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {"processor": engines.cpu_name(), "instructions": instructions(), "versions": versions}


def instructions() -> str:
    """The processor's instructions for int8 in words, or that they cannot be read.

    >>> len(instructions()) > 3
    True
    """
    try:
        return ", ".join(engines.int8_instructions())
    except engines.EngineError:
        return "its instructions cannot be read"


def start(seed: int = 0) -> None:
    """Begin a chapter: seed PyTorch, quieten what the book explains once, print the environment line and keep it.

    The eager quantization API, its tensor types and TorchScript warn of their removal at every call, and
    ``torch.load`` warns about its own storage class. These warnings, and no others, are hidden.

    Raises:
        WriteError: if the results folder cannot be written, with what to do.

    >>> with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
    ...     start()  # doctest: +ELLIPSIS
    Python ...
    """
    torch.manual_seed(seed)
    pd.set_option("display.max_colwidth", None)  # a table shows its cells whole
    warnings.filterwarnings("ignore", message="torch.ao.quantization is deprecated")
    warnings.filterwarnings("ignore", message="torch.quantize_per_tensor, torch.quantize_per_channel and other")
    warnings.filterwarnings("ignore", message="Please use quant_min and quant_max")  # its own default qconfigs
    warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
    warnings.filterwarnings("ignore", message="`torch.jit", category=FutureWarning)
    record("environment", machine())
    print(environment())


def quiet_imports() -> None:
    """Hide what torchao's import and the C++ compiler's detection log about themselves.

    >>> quiet_imports()
    """
    for name in ("torch.utils._pytree", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)


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


def in_new_process(function: Callable[..., Any], *arguments: Any, **variables: str) -> Any:
    """What a function of a notebook returns in a process of its own, with these environment variables.

    Args:
        function: only its source is handed over, so it imports what it needs and names nothing outside itself.
        arguments: numbers, words, and lists or tuples of them.
        variables: such as those that a library reads when it is loaded.

    Returns:
        What JSON makes of it: a tuple comes back as a list.

    Raises:
        RuntimeError: if the function fails there, with the last line of its error.

    >>> import calendar
    >>> in_new_process(calendar.isleap, 2028)
    True
    """
    program = f"{inspect.getsource(function)}\nimport json\nprint(json.dumps({function.__name__}(*{arguments!r})))"
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip() or f"it ended with exit code {done.returncode}").splitlines()[-1]
        raise RuntimeError(f"{function.__name__} failed in its process: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def as_html(words: str) -> str:
    """Escaped text in which backticks become code.

    >>> as_html("`a` < b")
    '<code>a</code> &lt; b'
    """
    parts = html.escape(words).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))


def results_folder() -> Path:
    """Where the running chapter leaves its results: ``qhelpers-results`` in the working folder.

    The variable ``QHELPERS_RESULTS`` names another place; the book's runner gives each chapter a folder of its own.

    >>> str(results_folder()) == os.environ["QHELPERS_RESULTS"]  # set for the tests, too
    True
    """
    named = os.environ.get("QHELPERS_RESULTS")
    return Path(named).expanduser() if named else Path.cwd() / "qhelpers-results"


def record(name: str, values: dict[str, Any]) -> None:
    """Keep values of the running chapter in its results folder, for other pages and for the tests.

    Raises:
        WriteError: if the folder cannot be written, with what to do.
        ValueError: for NaN or infinity, which JSON does not know.

    >>> record("doctest", {"n": 1})
    >>> json.loads((results_folder() / "doctest.json").read_text())
    {'n': 1}
    """
    try:
        atomic.write_text(results_folder() / f"{name}.json", json.dumps(values, indent=1, allow_nan=False))
    except atomic.WriteError as error:
        raise atomic.WriteError(
            f"{error} Name a folder that can be written in the variable QHELPERS_RESULTS."
        ) from error


def processes() -> int:
    """How many fresh processes measure each headline speed: 5 where the site is published, else 2.

    ``make book PROCESSES=5`` sets the variable ``QHELPERS_PROCESSES``. Five give a prediction interval, fewer a range.

    Raises:
        ValueError: if the variable is no number of processes.

    >>> processes() >= 1
    True
    """
    said = os.environ.get("QHELPERS_PROCESSES", "2")
    if not said.isdecimal() or int(said) < 1:
        raise ValueError(f"QHELPERS_PROCESSES must be a whole number of at least 1, got {said!r}.")
    return int(said)


def has_runner() -> bool:
    """Whether the book's runner executes this page, one that gathers results, and says which chapters are current.

    >>> has_runner()
    False
    """
    return "QHELPERS_CURRENT" in os.environ


def gathered_folders() -> list[Path]:
    """The results folders that a page may gather from, in the order of the book.

    Those of the chapters that the runner hands over in ``QHELPERS_CURRENT`` (a JSON list), since it knows them current;
    without a runner the working folder's own, whatever its age.

    >>> gathered_folders() == [results_folder()]
    True
    """
    if not has_runner():
        return [results_folder()]
    return [Path(name) for name in json.loads(os.environ["QHELPERS_CURRENT"])]
