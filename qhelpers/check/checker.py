"""One call turns a stranger's float model into a measured int8 file, and a report that says what to do."""

import contextlib
import datetime
import errno
import functools
import hashlib
import importlib.metadata
import math
import numbers
import os
import platform
import random
import re
import shutil
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.modules import transformer
from torch.nn.modules.batchnorm import _BatchNorm

from qhelpers import atomic, benchmark, census, engines, guards, size
from qhelpers.check import (
    calls,
    files,
    find,
    float_paths,
    folding,
    graphs,
    inputs,
    models,
    onnx_scheme,
    packages,
    reports,
    targets,
)
from qhelpers.check.adapter import Flat
from qhelpers.check.errors import CheckError, DataError, reason
from qhelpers.check.inputs import Data
from qhelpers.check.quality import AGREEMENT, SCORE, SQNR, TOP1, UNITS, Evaluate, Judge, Quality, sqnr_db
from qhelpers.check.result import Result

WORDED = (CheckError, graphs.GraphError, files.ExportError, packages.PackageError, census.CensusError)
FEW = 8  # samples on which operators are looked at
FAR_DB = 6.0  # a file so far below its own graph computes otherwise than the graph
SOUND_DB = 30.0  # from which on nobody has to look further
AIM_DB = 35.0  # what a repair looks for in the graph
SECONDS = 20.0  # for timing all candidates
ROUNDS = 6, 60
SLOW = 1.0  # seconds of one call of all candidates, from which on each has one call a turn beside the cold one
HARDLY_SMALLER = 95.0  # % of float's size, from which on nobody ships a file for its size
INT8, FLOAT = "model-int8", "model-float"  # what the files in the folder are called
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # no other way of quantizing would find more room
MOST = {"threads": 1024, "batch": 1_000_000}  # beyond, OpenMP and the system end the process without a word
LEAST_BYTES = 1_000_000  # with fewer free the temporary folder is full


@dataclass
class Attempt:
    """A file that was written and measured, or why there is none."""

    what: str
    mode: str
    left_out: tuple[str, ...] = ()
    part: Path | None = None
    quality: Quality | None = None
    counted: census.Census | None = None
    graph_db: float | None = None
    mb: float = 0.0
    seconds: float = 0.0
    left_in_float: list[dict[str, str]] = field(default_factory=list)  # the same, with places
    norms: list[str] = field(default_factory=list)  # that are operators of their own
    notes: list[str] = field(default_factory=list)
    why: str = ""  # it was not kept, or failed
    run: targets.Run | None = None


@dataclass
class Findings:
    """What has been found so far; the report is made of it, also after an interruption or a refusal."""

    model: str
    target: str
    attempts: list[Attempt] = field(default_factory=list)
    best: Attempt | None = None
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    diagnosis: list[str] = field(default_factory=list)
    operators: list[dict[str, Any]] = field(default_factory=list)
    speed: dict[str, Any] | None = None
    own_float: Path | None = None  # the float file of the same runtime
    tested: Quality | None = None

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Count the seconds of a step, and note that it was finished."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def run(
    model: nn.Module,
    *,
    validation: Any,
    target: str,
    calibration: Any = None,
    test: Any = None,
    budget: float | None = None,
    evaluate: Evaluate | None = None,
    example: Any = None,
    threads: int = 1,
    batch: int = 1,
    folder: str | Path = "checked",
    progress: bool | None = None,
) -> Result:
    """Quantize a float model for a target, measure the file, repair it if it is bad, and say what to do.

    The file is written per channel and measured before anything is diagnosed; a repair is kept only if the new file is
    better on the validation data. The model itself is not changed.

    Args:
        model: in float32 on the CPU, with trained weights.
        validation: a loader, a list of batches or a folder of images, on which every choice is made; the same samples
            in the same order each time. A batch is a tensor, a tuple, a dict or ``(inputs, labels)``.
        target: ``"executorch"``, ``"onnx-x86"``, ``"onnx-arm"``, ``"aotinductor"`` or ``"pytorch"``.
        calibration: data like those of training, for the ranges of activations; only static quantization needs them.
        test: data on which nothing is chosen. The file is measured on them once, for the verdict.
        budget: what int8 may cost on the test data, or without them on the validation data: points of top-1, or of
            answers that change if there are no labels (half a point if None); in the unit of ``evaluate`` (a hundredth
            of float's score); for outputs that are no classes the SQNR that each of their channels must have, in dB
            (20).
        evaluate: your own score, as ``evaluate(predict)`` with a ``predict`` that is called as the model is. Higher is
            better. It gives one number, or one for each sample, which allows an interval. It brings its own data, so
            there can be no test data beside it.
        example: inputs for one call, where the loader's first batch does not tell: a tensor, tuple or dict.
        threads: how many the file will run with.
        batch: samples that the file takes at a time.
        folder: for the file and the report.
        progress: show progress bars; if None, unless TQDM_DISABLE is set.

    Returns:
        The result. It prints as a summary and shows as a page in a notebook; ``report.html``, ``report.json`` and the
        file are in the folder. A model that runs in float but cannot be converted is also a result: ``"refused"``.

    Raises:
        CheckError: if the model, the data, the score or the target cannot be used, saying why.
        GuardError: if a package or a compiler is missing.
        WriteError: if the folder takes no files.
        KeyboardInterrupt: when interrupted, saying what was finished.
    """
    goal = targets.checked(target)
    threads, batch = (_whole(name, count) for name, count in (("threads", threads), ("batch", batch)))
    number = isinstance(budget, numbers.Real) and not isinstance(budget, bool)
    if budget is not None and not (number and math.isfinite(budget) and budget >= 0):
        raise CheckError(f"budget must be a number of 0 or more; got {budget!r}.")
    budget = None if budget is None else float(budget)
    if evaluate is not None and not callable(evaluate):
        raise CheckError(f"evaluate must be a function; it is {calls.an(type(evaluate).__name__)}.")
    if evaluate is not None and test is not None:
        raise CheckError("evaluate(predict) scores its own data and would not see test: leave out one of the two.")
    found = Findings(type(model).__name__, target)
    cores = max(threads, torch.get_num_threads())  # for what is not timed, and the same with any number
    with _writable(folder) as folder, _settings(threads), _workshop() as workshop:
        before = _stamps(folder)
        try:
            with found.step("looking at the model and the data"):
                subject = _accept(model, calibration, validation, test, example, batch, target, found)
                subject.cores = cores
                with float_paths.using_threads(cores):
                    judge = Judge(subject.flat, subject.validation, evaluate, budget, progress)
                    last = _last_judge(subject, judge, progress)
            _announce(subject, judge, progress)
            try:
                _attempts(subject, judge, goal, workshop, found)
            except _Stopped as stop:
                older = folder / f"{INT8}{goal.suffix}"
                if older.exists():
                    found.notes.append(f"{older.name} in this folder is of an earlier run.")
                result = Result(_report(found, subject, judge, str(stop)), folder)
                result.write()
                return result
            assert found.best is not None
            with found.step("comparing speeds"):
                _compare_speeds(subject, goal, found, progress)
            if last is not None:
                with found.step("measuring the test data"):
                    assert found.best.run is not None
                    found.tested = last.judge(found.best.run, chosen_on=False)
            report = _report(found, subject, judge)
            result = Result(report, folder)
            result.write(_files(report, found))
            return result
        except KeyboardInterrupt as stop:
            done = ", ".join(found.seconds) or "nothing"
            left = f"Earlier files in {folder} are as they were."
            if _stamps(folder) != before:
                left = f"The files in {folder} were being replaced: without a report.json do not use them."
            raise KeyboardInterrupt(f"Finished: {done}. {left}") from stop


class _Stopped(Exception):
    """The model cannot become a file for this target."""


# --- accepting ---------------------------------------------------------------------------------------


@dataclass
class Subject:
    """A model behind one form of call, and its data."""

    model: nn.Module  # folded; its layers bear the reader's names
    flat: Flat
    calibration: Data | None
    validation: Data
    test: Data | None
    target: str
    modes: list[str]
    captured: ExportedProgram | None = None
    cores: int = 1  # threads for what is not timed

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Of the example."""
        return self.flat.example.tensors

    @functools.cached_property
    def few(self) -> tuple[list[tuple[Tensor, ...]], list[list[Tensor]]]:
        """Some of the validation data, in pieces, and the float model's outputs for each of them."""
        batches = [*self.pieces(self.validation, FEW)]
        with torch.inference_mode():
            return batches, [targets.leaves(self.flat(*tensors)) for tensors in batches]

    def pieces(self, data: Data, most: int | None = None) -> Iterator[tuple[Tensor, ...]]:
        """The tensors of the data, a piece of the example's size at a time."""
        count = 0
        for call in data.calls():
            for part, real in calls.pieces(call.tensors, self.flat.example.shapes):
                yield part
                count += real
                if most is not None and count >= most:
                    return


def _whole(name: str, count: Any) -> int:
    if not isinstance(count, numbers.Integral) or isinstance(count, bool) or not 1 <= int(count) <= MOST[name]:
        raise CheckError(f"{name} must be a whole number from 1 to {MOST[name]:,}; got {count!r}.")
    return int(count)


@contextlib.contextmanager
def _writable(folder: str | Path) -> Iterator[Path]:
    """The folder, after a file was written there; what had to be made for it goes again if it stays empty."""
    if not isinstance(folder, (str, os.PathLike)) or "\0" in str(folder):
        raise CheckError(f"folder must be a path; got {folder!r}.")
    path = Path(folder)
    made = [one for one in (path.absolute(), *path.absolute().parents) if not one.exists()]
    try:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise atomic.WriteError(f"{path} cannot be made: {error.strerror}.") from error
        with atomic.replacing(path / ".writable") as part:
            part.write_bytes(b"")
        (path / ".writable").unlink(missing_ok=True)  # another run may have tried it, too
        yield path
    finally:
        for one in made:
            with contextlib.suppress(OSError):
                one.rmdir()


@contextlib.contextmanager
def _workshop() -> Iterator[Path]:
    try:
        temporary = tempfile.TemporaryDirectory(prefix="check-")
    except OSError as error:
        raise atomic.WriteError(f"There is no temporary folder to work in: {error.strerror}.") from error
    with temporary as name:
        yield Path(name)


def _stamps(folder: Path) -> dict[str, int]:
    found = {}
    for path in folder.glob("[!.]*"):
        with contextlib.suppress(FileNotFoundError):  # another run's
            found[path.name] = path.stat().st_mtime_ns
    return found


@contextlib.contextmanager
def _settings(threads: int) -> Iterator[None]:
    """The checker's own settings inside, the caller's again afterwards, whatever a stranger's code did to them."""
    detect = transformer._detect_is_causal_mask
    dtype, drawn, arrays = torch.get_default_dtype(), random.getstate(), np.random.get_state()
    transformer._detect_is_causal_mask = _told_is_causal
    try:
        with (
            targets.plain_attention(),  # the fast path is one kernel in which no layer is seen
            float_paths.using_threads(threads),
            engines.using_engine(engines.default_engine()),
            torch.random.fork_rng(devices=[]),
            torch.set_grad_enabled(True),  # as exporters find it
            warnings.catch_warnings(),
        ):
            torch.set_default_dtype(torch.float32)
            warnings.simplefilter("ignore")  # what exporters announce; what matters is said in the report
            yield
    finally:
        transformer._detect_is_causal_mask = detect
        torch.set_default_dtype(dtype)
        random.setstate(drawn)
        np.random.set_state(arrays)


def _told_is_causal(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
    """In place of PyTorch's own, which looks at the values of a mask, as no graph can, and only to compute faster."""
    return is_causal is True


def _accept(
    model: nn.Module,
    calibration: Any,
    validation: Any,
    test: Any,
    example: Any,
    batch: int,
    target: str,
    found: Findings,
) -> Subject:
    copied, notes = models.checked_model(model)
    modes = targets.modes(copied, target)
    given = calls.as_example(example, copied) if example is not None else None
    checked = inputs.checked_data(validation, "validation", copied, given, repeats=True)
    one = (given or checked.first).sized(batch)
    flat = models.check_run(copied, one, whole=given or checked.first)
    if calibration is None and modes == [targets.STATIC]:
        raise DataError("Static quantization takes its ranges from data: give calibration=, a hundred samples or so.")
    if calibration is None and targets.STATIC in modes:
        modes = [mode for mode in modes if mode != targets.STATIC]
        notes.append("There are no calibration data: only dynamic quantization was tried.")
    ranges = (
        inputs.checked_data(calibration, "calibration", copied, one, labelled=False)
        if calibration is not None
        else None
    )
    last = inputs.checked_data(test, "test", copied, one, repeats=True) if test is not None else None
    for data in (checked, ranges, last):
        notes += list(data.notes) if data else []
    notes += models.notes_of_batches(flat, checked.first, "validation")
    eager = target == "pytorch"  # where the file is read into the reader's own model
    folded, n = (copied, 0) if eager else folding.fold_norms(copied, one)
    if n:
        flat = models.check_run(folded, one)
        notes.append(f"Batch norms folded into the layers before them, without a change of the function: {n}.")
    found.notes += notes
    return Subject(folded, flat, ranges, checked, last, target, modes)


def _last_judge(subject: Subject, judge: Judge, progress: bool | None) -> Judge | None:
    """For the test data; made early, since it is here that they are refused."""
    if subject.test is None:
        return None
    last = Judge(subject.flat, subject.test, None, judge.budget, progress)
    if last.kind != judge.kind:
        raise DataError(
            f"validation is judged by {judge.kind} and test by {last.kind}: give labels with both, or with neither."
        )
    return last


def _announce(subject: Subject, judge: Judge, progress: bool | None) -> None:
    if progress is False:
        return
    start = time.perf_counter()
    with torch.inference_mode():
        subject.flat(*subject.tensors)
    once = time.perf_counter() - start
    weights = sum(one.numel() for one in subject.model.parameters()) / 1e6
    samples = subject.validation.n * 3 + (subject.calibration.n * 4 if subject.calibration else 0)
    estimate = 60 + 2 * weights + once * samples / subject.flat.example.n
    minutes = round(estimate / 60)
    words = f"about {minutes} minutes" if minutes > 1 else "about a minute"
    print(f"{type(subject.model).__name__} for {subject.target}: {words}.", flush=True)


# --- attempts ----------------------------------------------------------------------------------------


def _attempts(subject: Subject, judge: Judge, goal: targets.Target, workshop: Path, found: Findings) -> None:
    """Write and measure files until one keeps the budget, cheapest repair first."""
    if subject.target != "pytorch":
        with found.step("capturing the graph"):
            subject.captured = _capture(subject)
    for mode in subject.modes:
        first = _attempt(subject, judge, goal, workshop, found, mode)
        _keep_better(found, judge, first)
        if _good(judge, found.best):
            return
        for left_out, places in _repairs(subject, judge, found, first):
            one = _attempt(subject, judge, goal, workshop, found, mode, left_out)
            one.left_in_float = places
            _keep_better(found, judge, one)
            if _good(judge, found.best):
                return
    if found.best is None:
        raise _Stopped(" ".join(dict.fromkeys(one.why for one in found.attempts)))


def _capture(subject: Subject) -> ExportedProgram:
    try:
        with float_paths.quiet():
            return targets.captured(subject.flat, subject.tensors, subject.target)
    except Exception as error:  # torch.export has no common base of its errors
        line = "" if isinstance(error, graphs.GraphError) else graphs.own_line(error)
        scripted = [name for name, one in subject.model.named_modules() if isinstance(one, torch.jit.ScriptModule)]
        cure = (
            f" {scripted[0]} is TorchScript: put the nn.Module of which it was made in its place." if scripted else ""
        )
        raise _Stopped(f"torch.export cannot capture this model{line}: {_reason(error)}{cure}") from error


def _reason(error: BaseException) -> str:
    """The words of an error of ours, the first line of another."""
    words = str(error) if isinstance(error, (*WORDED, guards.GuardError)) else reason(error)
    inner = error.__context__
    return words if len(words) > 20 or inner is None else f"{words} ({reason(inner)})"


def _good(judge: Judge, attempt: Attempt | None) -> bool:
    if attempt is None or attempt.quality is None or not judge.keeps(attempt.quality):
        return False
    if attempt.counted is not None and not attempt.counted.named(census.INT8):
        return False  # as good as float, since it is float
    return attempt.graph_db is None or attempt.quality.sqnr_db >= min(SOUND_DB, attempt.graph_db - FAR_DB)


def _keep_better(found: Findings, judge: Judge, one: Attempt) -> None:
    found.attempts.append(one)
    if one.quality is None:
        return
    if found.best is None or judge.better(one.quality, found.best.quality):  # type: ignore[arg-type]
        if found.best is not None:
            found.best.why = f"“{one.what}” is better on the validation data"
        found.best = one
    else:
        one.why = f"“{found.best.what}” is better on the validation data"


def _attempt(
    subject: Subject,
    judge: Judge,
    goal: targets.Target,
    workshop: Path,
    found: Findings,
    mode: str,
    left_out: tuple[str, ...] = (),
) -> Attempt:
    kind = ("layer" if subject.target == "pytorch" else "operator") + "s" * (len(left_out) > 1)
    what = f"{mode}, per channel" + (f", {len(left_out)} {kind} in float" if left_out else "")
    one, start = Attempt(what, mode, left_out), time.perf_counter()
    path = workshop / str(len(found.attempts)) / f"{INT8}{goal.suffix}"
    path.parent.mkdir()
    try:
        with found.step("quantizing and writing"), float_paths.quiet():
            with float_paths.using_threads(subject.cores):
                int8 = _quantized(subject, one)
            one.notes = _written(subject, one, int8, path)
        run = targets.load(subject.target, path, subject.flat)
        one.part, one.mb = path, path.stat().st_size / 1e6
        with float_paths.quiet(), torch.inference_mode():
            one.counted = targets.counted(subject.target, subject.model, int8, path, subject.tensors)
        one.counted, one.norms = _with_norms(one.counted, subject, int8)
        with found.step("measuring files on the validation data"):
            one.quality = judge.judge(run)
        one.run = run
        if subject.target != "pytorch" and int8 is not subject.flat:
            with float_paths.using_threads(subject.cores):
                one.graph_db = _graph_db(int8, *subject.few)
    except Exception as error:  # the exporters and runtimes have errors of many types
        if (isinstance(error, OSError) and error.errno in FULL) or shutil.disk_usage(workshop).free < LEAST_BYTES:
            why = (isinstance(error, OSError) and error.strerror) or os.strerror(errno.ENOSPC)  # writers hide it
            raise atomic.WriteError(f"{path.name} cannot be written into {workshop}: {why}.") from error
        one.why = _worded(subject, mode, error) if isinstance(error, WORDED) else f"It failed: {_reason(error)}"
        if not isinstance(error, WORDED):
            place = traceback.extract_tb(error.__traceback__)[-1]
            found.notes.append(f"Traceback: {Path(place.filename).name}, line {place.lineno}: {type(error).__name__}")
    one.seconds = time.perf_counter() - start
    return one


def _worded(subject: Subject, mode: str, error: Exception) -> str:
    """Why there is no file, and which of the model's layers and lines is to blame where an operator is named."""
    words = str(error)
    if isinstance(error, graphs.NothingAskedError):
        inner = [str(node.target) for node in subject.captured.graph.nodes] if subject.captured is not None else []
        cure = " What it computes inside torch.autocast stays in float: take that out of forward."
        return f"{mode.capitalize()} quantization finds no operator in this model that it has int8 for." + cure * (
            "wrap_with_autocast" in inner
        )
    if isinstance(error, census.CensusError):
        return f"{targets.TARGETS[subject.target].words}, computes the {mode} int8 graph in float. {words}"
    places = graphs.places(subject.captured, words) if subject.captured is not None else ""
    return f"{words.rstrip('.:')}.{places}" if places else words


def _with_norms(counted: census.Census, subject: Subject, int8: nn.Module) -> tuple[census.Census, list[str]]:
    """The census with the batch norms in float that the graph has operators for, and their names.

    A kernel for one may hold weights in which the census does not know the norm's own: it calls such a norm folded.
    """
    names = {name for name, one in subject.model.named_modules() if isinstance(one, _BatchNorm)}
    if subject.target == "pytorch":
        return counted, []  # there no norm is folded, and nothing converted
    if not isinstance(int8, torch.fx.GraphModule):
        return counted, [name for name in counted.named(census.FLOAT) if name in names]
    own = set(targets.norms(int8))
    layers = [
        replace(one, computes=census.FLOAT, how="an operator of its own")
        if one.name in own and one.computes == census.FOLDED
        else one
        for one in counted.layers
    ]
    return replace(counted, layers=tuple(layers)), [one.name for one in layers if one.name in own]


def _quantized(subject: Subject, one: Attempt) -> nn.Module:
    if subject.target == "pytorch":
        return targets.dynamic_layers(subject.flat, one.left_out)
    if subject.target.startswith("onnx") and one.mode == targets.DYNAMIC:
        return subject.flat  # ONNX Runtime quantizes the float file
    return targets.converted(_prepared(subject, one.mode, one.left_out))


def _prepared(subject: Subject, mode: str, left_out: tuple[str, ...] = ()) -> torch.fx.GraphModule:
    assert subject.captured is not None
    asked = targets.quantizer(subject.target, mode, left_out)
    data = subject.calibration if mode == targets.STATIC else None
    return targets.prepared(subject.captured, subject.pieces(data) if data else [subject.tensors], asked)


def _written(subject: Subject, one: Attempt, int8: nn.Module, path: Path) -> list[str]:
    if int8 is subject.flat:
        targets.write_dynamic_onnx(subject.flat, subject.tensors, path)
        return []
    return targets.write(subject.target, subject.model, int8, subject.tensors, path)


def _graph_db(int8: nn.Module, batches: Sequence[tuple[Tensor, ...]], exact: Sequence[list[Tensor]]) -> float:
    """The SQNR of the worst output of a graph, or of a model in eager mode."""
    wanted = [torch.cat(ones) for ones in zip(*map(_rows, exact), strict=True)]
    with torch.inference_mode():
        given = [torch.cat(ones) for ones in zip(*(_rows(targets.leaves(int8(*t))) for t in batches), strict=True)]
    return min(
        (
            sqnr_db(one, other)
            for one, other in zip(wanted, given, strict=True)
            if one.is_floating_point() and one.numel()
        ),
        default=math.inf,
    )


def _rows(outputs: list[Tensor]) -> list[Tensor]:
    return [one if one.ndim else one[None] for one in outputs]


# --- repairing ---------------------------------------------------------------------------------------


def _repairs(
    subject: Subject, judge: Judge, found: Findings, first: Attempt
) -> Iterator[tuple[tuple[str, ...], list[dict[str, str]]]]:
    """Sets of operators, or of layers, to leave in float, the smallest first."""
    if first.quality is None:
        return
    if subject.target == "pytorch":
        with float_paths.using_threads(subject.cores):
            spared = [*_layers_to_spare(subject)]
        yield from spared
        return
    if first.mode == targets.DYNAMIC and subject.target.startswith("onnx"):
        return  # there is no graph
    with (
        found.step("finding what to leave in float"),
        float_paths.quiet(),
        float_paths.using_threads(subject.cores),
    ):
        batches, exact = subject.few
        try:
            suggestion = find.suggest(
                _prepared(subject, first.mode),
                batches,
                exact,
                AIM_DB,
                enough_worst_db=judge.budget if judge.kind == SQNR else (20.0 if first.quality.dead else -math.inf),
            )
        except Exception as error:  # a stranger's graph is run operator by operator
            found.diagnosis.append(f"No operator could be looked at: {_reason(error)}")
            return
    found.diagnosis += suggestion.words
    known = {one.name: one for one in suggestion.table}
    rows = sorted(suggestion.table, key=lambda one: -one.fall_db)[:12]
    rows = [*dict.fromkeys([*(known[name] for name in suggestion.operators if name in known), *rows])]
    found.operators = [
        {
            "operator": one.name,
            "where": one.where,
            "sqnr_db": _db(one.sqnr_db),
            "fall_db": _db(one.fall_db),
            "alone_db": None if one.alone_db is None else _db(one.alone_db),
        }
        for one in rows
    ]
    if not suggestion.operators:
        found.diagnosis.append(
            "Leaving single operators in float helps nothing in the graph: rounding costs everywhere."
        )
        return
    places = [{"operator": name, "where": known[name].where if name in known else ""} for name in suggestion.operators]
    for count in sorted({1, len(places)}):
        yield suggestion.operators[:count], places[:count]


def _layers_to_spare(subject: Subject) -> Iterator[tuple[tuple[str, ...], list[dict[str, str]]]]:
    names = [name for name, one in subject.model.named_modules() if targets.has_eager_int8(one)]

    def decibels(name: str) -> float:
        return _graph_db(targets.dynamic_layers(subject.flat, (name,)), *subject.few)

    if len(names) < 2:
        return
    best = sorted(names, key=decibels, reverse=True)
    for count in sorted({1, min(3, len(names) - 1)}):
        yield tuple(best[:count]), [{"operator": name, "where": ""} for name in best[:count]]


# --- speed -------------------------------------------------------------------------------------------


def _compare_speeds(subject: Subject, goal: targets.Target, found: Findings, progress: bool | None) -> None:
    assert found.best is not None
    assert found.best.run is not None
    try:
        with float_paths.quiet():
            rivals = float_paths.rivals(subject.flat, *subject.tensors)
    except float_paths.RivalsError as error:
        found.notes.append(f"No speeds were compared: {error}")
        return
    found.own_float = _file_of(rivals.candidates.get(goal.own_float))
    note = rivals.noted
    other_processor = found.target == "onnx-arm" and onnx_scheme.this_machine() != "arm"
    if other_processor or not rivals.candidates:
        words = "This machine is no ARM processor: time the file there." if other_processor else note
        found.notes.append(words)
        return
    own = goal.own_float if goal.own_float in rivals.candidates else None
    first = own or rivals.names[0]
    candidates: dict[str, Callable[[], Any]] = {
        first: rivals.candidates[first],
        "int8": partial(found.best.run, *subject.tensors),
        **rivals.candidates,
    }
    start = time.perf_counter()
    with torch.inference_mode():
        for candidate in candidates.values():
            candidate()
    once = time.perf_counter() - start
    in_a_row = 1 if once > SLOW else 3
    rounds = int(min(max(SECONDS / (once * (in_a_row + 1) + 1e-9), ROUNDS[0]), ROUNDS[1]))
    timed = benchmark.compare_latency(candidates, rounds=rounds, calls=in_a_row, progress=progress)
    best = min(rivals.names, key=timed.steady_ms)

    def shown(over: str) -> dict[str, float]:
        one = timed.ratio("int8", over)
        return {"ratio": one.value, "low": one.low, "high": one.high}

    def cell(name: str, over: str | None) -> str:
        return "" if over is None else "1" if name == over else str(timed.ratio(name, over))

    rows = [
        {"what": name, "ms": timed.steady_ms(name), "own": cell(name, own), "best": cell(name, best)}
        for name in ["int8", *rivals.names]
    ]
    found.speed = {
        "rows": rows,
        "own": shown(own) if own else None,
        "best": {"name": best, **shown(best)},
        "method": timed.method,
        "note": note,
    }


# --- the report --------------------------------------------------------------------------------------


def _file(found: Findings, subject: Subject) -> dict[str, Any] | None:
    """What is to be said of the file that is shipped, if there is one."""
    best = found.best
    if best is None or best.part is None:
        return None
    suffix, own_float = best.part.suffix, found.own_float
    return {
        "name": f"{INT8}{suffix}",
        "mb": best.mb,
        "sha256": hashlib.sha256(best.part.read_bytes()).hexdigest(),
        "float_name": f"{FLOAT}{suffix}" if own_float else None,
        "float_mb": own_float.stat().st_size / 1e6 if own_float else size.size_mb(subject.model),
        "inputs": [
            {"shape": list(one.shape), "dtype": str(one.dtype).removeprefix("torch.")} for one in subject.tensors
        ],
        "recipe": _recipe(subject, f"{INT8}{suffix}"),
    }


def _files(report: dict[str, Any], found: Findings) -> dict[str, Path]:
    """The files to put beside the report, by their names there."""
    assert found.best is not None
    assert found.best.part is not None
    files = {report["file"]["name"]: found.best.part}
    return files | {report["file"]["float_name"]: found.own_float} if found.own_float else files


def _file_of(candidate: Any) -> Path | None:
    """The file behind a float path; of packages the one for the threads that are set."""
    if not isinstance(candidate, float_paths.FromFile):
        return None
    path = Path(candidate.arguments[1])
    return path if path.is_file() else float_paths.for_threads(path, torch.get_num_threads())


def _recipe(subject: Subject, name: str) -> str:
    return {
        "executorch": f'program = executorch.runtime.Runtime.get().load_program("{name}"); '
        'program.load_method("forward").execute([…])',
        "aotinductor": f"torch.set_num_threads({torch.get_num_threads()}); "
        f'torch._inductor.aoti_load_package("{name}")(…)',
        "pytorch": f'qhelpers.check.targets.load("pytorch", Path("{name}"), model) builds the int8 layers from the '
        "float model and reads their state",
    }.get(subject.target, f'onnxruntime.InferenceSession("{name}").run(None, {{…}})')


def _db(value: float) -> float:
    return min(max(value, -reports.EXACT_DB), reports.EXACT_DB)


def _quality(judge: Judge, validation: Quality, test: Quality | None) -> dict[str, Any]:
    used = test or validation

    def shown(one: Quality) -> dict[str, Any]:
        return {
            "n": one.n,
            "float": one.exact,
            "int8": one.found,
            "lost": one.lost,
            "interval": list(one.interval) if one.interval else None,
            "bound": one.bound,
            "same_percent": one.same_percent,
            "sqnr_db": _db(one.sqnr_db),
            "worst_db": _db(one.worst_db),
        }

    def rows(channels: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row | {"sqnr_db": _db(row["sqnr_db"])} for row in channels]

    return {
        "kind": judge.kind,
        "unit": UNITS[judge.kind],
        "budget": judge.budget,
        "lost": used.lost,
        "validation": shown(validation),
        "test": shown(test) if test else None,
        "channels": rows(used.channels),
        "dead": rows(used.dead),
    }


def _report(found: Findings, subject: Subject, judge: Judge, refused: str = "") -> dict[str, Any]:
    best, tested = found.best, found.tested
    chosen = best.quality if best else None
    verdict = tested or chosen
    counted = _census(best.counted) if best and best.counted else None
    kept = verdict is not None and judge.keeps(verdict) and (counted is None or bool(counted["int8"]))
    report: dict[str, Any] = {
        "format": reports.FORMAT,
        "model": found.model,
        "target": found.target,
        "status": reports.REFUSED if refused else reports.KEPT if kept else reports.OVER,
        "do": "",
        "first": [],
        "mode": best.mode if best else "",
        "left_in_float": best.left_in_float if best else [],
        "file": _file(found, subject),
        "quality": _quality(judge, chosen, tested) if chosen else None,
        "census": counted,
        "speed": found.speed,
        "tries": [_try(one, one is best) for one in found.attempts],
        "diagnosis": [*dict.fromkeys(found.diagnosis)],  # two modes may say the same
        "operators": found.operators,
        "notes": found.notes + (best.notes if best else []) + _cost_of_norms(best),
        "seconds": {name: round(value, 1) for name, value in found.seconds.items()},
        "environment": _environment(subject),
    }
    report["first"] = reports.first_lines(report)
    if chosen:
        report["first"] += _doubts(judge, report["quality"], chosen, tested)
    report["do"] = advice(report, refused)
    tidied: dict[str, Any] = _tidy(report)
    return tidied


# Colours, and folders of this machine, of which the names of files stay
NOISE = re.compile(r"\x1b\[[\d;]*m|(?<![\w:/.])(/[^/\s'\"`,;:()]+)(/[^/\s'\"`,;:()]+)*/")


def _tidy(value: Any) -> Any:
    if isinstance(value, str):
        return NOISE.sub(lambda one: "" if one[1] is None or os.path.isdir(one[1]) else one[0], value)
    if isinstance(value, dict):
        return {key: _tidy(one) for key, one in value.items()}
    return [*map(_tidy, value)] if isinstance(value, list) else value


def _doubts(judge: Judge, quality: dict[str, Any], chosen: Quality, tested: Quality | None) -> Iterator[str]:
    """What stands against the figure of quality, or beside it."""
    for row in quality["dead"][:1]:
        db = reports.decibels(row["sqnr_db"])
        yield f"Channel {row['channel']} of {row['output']} holds little but noise: {db}."
    verdict = tested or chosen
    within, one = judge.keeps(verdict), 100 / verdict.n
    if not within and judge.kind in (TOP1, AGREEMENT) and 0 < judge.budget < one:
        yield f"{verdict.n:,} samples are few for this budget: one answer alone is {one:.2f} points."
    if judge.keeps(chosen) != within:
        other = "over" if within else "within"
        yield f"On the validation data the file is {other} the budget; the verdict rests on the test data."
    if within and verdict.bound is not None and verdict.bound > judge.budget:
        yield (
            f"{verdict.n:,} test samples cannot prove that it is within the budget: with 95 % confidence it costs at "
            f"most {verdict.bound:.2f} {UNITS[judge.kind]}."
        )


def _cost_of_norms(best: Attempt | None) -> list[str]:
    if best is None or best.counted is None or not best.norms:
        return []
    shown = ", ".join(best.norms[:3]) + (", …" if len(best.norms) > 3 else "")
    return [
        f"Batch norms that do not alone read a convolution or Linear are not folded: {len(best.norms)} here ({shown}). "
        f"They are operators of their own, in float: of the {best.counted.conversions} conversions between float and "
        f"int8 that the file makes in a call, they cost those before and behind them. Do not fuse them by hand: that "
        f"would be another model."
    ]


def _census(one: census.Census) -> dict[str, Any]:
    how = {layer.name: layer.how for layer in one.layers}
    return {
        "int8": one.named(census.INT8),
        "float": [[name, how[name]] for name in one.named(census.FLOAT)],
        "absent": one.named(census.ABSENT),
        "folded": one.named(census.FOLDED),
        "conversions": one.conversions,
        "summary": one.summary,
    }


def _try(one: Attempt, kept: bool) -> dict[str, Any]:
    quality = one.quality
    return {
        "what": one.what,
        "lost": quality.lost if quality else None,
        "sqnr_db": _db(quality.sqnr_db) if quality else None,
        "worst_db": _db(quality.worst_db) if quality else None,
        "graph_db": None if one.graph_db is None else _db(one.graph_db),
        "mb": one.mb,
        "seconds": round(one.seconds, 1),
        "kept": kept,
        "why": one.why,
    }


def _environment(subject: Subject) -> dict[str, Any]:
    versions = {}
    for name in ("torch", "torchao", "executorch", "onnx", "onnxruntime"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "date": str(datetime.date.today()),
        "python": platform.python_version(),
        **versions,
        "processor": engines.cpu_name(),
        "threads": torch.get_num_threads(),
        "batch": subject.flat.example.n,
    }


def advice(report: dict[str, Any], refused: str = "") -> str:
    """One sentence that says what to do, from nothing but the report's own figures."""
    if refused:
        return refused
    file, quality, census = report["file"], report["quality"], report["census"]
    if census and not census["int8"]:
        return "Ship float: nothing in this file computes in int8; another target may have kernels for this model."
    if report["status"] == reports.OVER:
        return (
            f"Do not ship this file: {_fault(quality)}, and nothing that was tried mended it; what is left is training "
            f"(QAT), or float."
        )
    speed: dict[str, Any] = report["speed"] or {"own": None, "best": None}
    own, best = speed["own"], speed["best"]
    name, part, gain = file["name"], 100 * file["mb"] / file["float_mb"], ""
    faster, beaten = bool(own and own["low"] > 1), bool(best and best["high"] < 1)
    if faster:
        gain = f"{own['ratio']:.2f} times the speed of float in the same runtime"
    if part >= HARDLY_SMALLER:
        size_of = f"it takes {part:.0f} % of float's size"
        if not faster or beaten:
            no_gain = "no gain in speed was found that makes up for that"
            return f"Ship float: {name} is within the budget, but {size_of}, and {no_gain}."
        return f"Ship {name} only where speed is what counts ({_cost(quality)}): it has {gain}, but {size_of}."
    good = f"{_cost(quality)}, at {part:.0f} % of the size"
    if own and own["high"] < 1:
        return (
            f"Ship {name} only where size is what counts ({good}): in this runtime float takes {own['ratio']:.2f} "
            f"times as long as int8."
        )
    good += f" and {gain}" if gain else ""
    if beaten:
        return (
            f"Ship {name} if it must be this runtime ({good}); where speed counts, change the runtime first, since "
            f"{best['name']} takes {best['ratio']:.2f} times as long as int8."
        )
    return f"Ship {name}: {good}."


def _fault(quality: dict[str, Any]) -> str:
    used = reports.judged(quality)
    if quality["kind"] == SQNR:
        worst = reports.decibels(used["worst_db"])
        return f"an output channel has {worst}, and the budget asks for {quality['budget']:.4g} dB"
    if reports.within_budget(quality):
        row = quality["dead"][0]
        return f"channel {row['channel']} of {row['output']} holds little but noise, although {_cost(quality)}"
    return f"{_cost(quality)}, over the budget of {quality['budget']:.4g} {quality['unit']}"


def _cost(quality: dict[str, Any]) -> str:
    used = reports.judged(quality)
    if quality["kind"] == SQNR:
        return f"every output channel has at least {reports.decibels(used['worst_db'])}"
    lost = f"{max(0.0, used['lost']):.4g}"
    if quality["kind"] == SCORE:
        return f"it costs {lost} of the score" if used["lost"] > 0 else "it costs nothing of the score"
    if quality["kind"] == TOP1 and used["lost"] <= 0:
        return "it costs no point of top-1"
    return f"it costs {lost} points of top-1" if quality["kind"] == TOP1 else f"{lost} % of the answers change"
