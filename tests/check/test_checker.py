"""The checker refuses bad input in words, leaves what was there as it was, and says what follows from its figures."""

import dataclasses
import errno
import importlib.util
import itertools
import json
import logging
import math
import os
import random
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization as tq

from qhelpers import atomic, check
from qhelpers.check import __main__ as command
from qhelpers.check import checker, errors, find, float_paths, quality, reports, targets
from qhelpers.check.checker import advice
from qhelpers.check.result import Result
from tools import common

Changes = dict[str, Any]
Make = Callable[..., dict[str, Any]]
N, CLASSES = 96, 4
EXAMPLE = Path(__file__).parent / "example"
COMPARE_SPEEDS = checker._compare_speeds
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(autouse=True)
def no_speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speeds cost most of a check, and none of these tests looks at them."""
    monkeypatch.setattr(checker, "_compare_speeds", lambda *given: None)


def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, CLASSES)).eval()


def images() -> Tensor:
    return torch.randn(N, 16, generator=torch.Generator().manual_seed(1))


def labelled() -> list[tuple[Tensor, Tensor]]:
    """The labels are the float model's own answers."""
    with torch.inference_mode():
        labels = net()(images()).argmax(1)
    return list(zip(images().split(32), labels.split(32), strict=True))


def run(folder: Any, **changes: Any) -> Result:
    given: Changes = {"model": net(), "validation": labelled(), "target": "pytorch", "budget": 5.0, "progress": False}
    return check.run(folder=folder, **(given | changes))


class Restless:
    """A loader that starts somewhere else each time."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes += 1
        batches = labelled()
        return iter(batches[self.passes :] + batches[: self.passes])


class Moody:
    """An evaluate that answers otherwise each time."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.calls = answers, 0

    def __call__(self, predict: Any) -> Any:
        answer = self.answers[min(self.calls, len(self.answers) - 1)]
        self.calls += 1
        predict(images())
        if isinstance(answer, BaseException):
            raise answer
        return answer


class Picks(nn.Module):
    """Gives classes, and no outputs from which they follow."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def forward(self, x: Tensor) -> Tensor:
        chosen: Tensor = self.body(x).argmax(1)
        return chosen


def convolution() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return nn.Conv2d(1, 2, 3).eval()


def relabelled(change: Callable[[Tensor], Any]) -> list[tuple[Tensor, Any]]:
    return [(one, change(labels)) for one, labels in labelled()]


def unlabelled() -> list[Tensor]:
    return [one for one, _ in labelled()]


# --- bad input ---------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[], Changes], str]] = {
    "no calibration": (
        lambda: {"model": convolution(), "validation": [torch.zeros(4, 1, 8, 8)], "target": "executorch"},
        "Static quantization takes its ranges from data: give calibration=, a hundred samples or so.",
    ),
    "other order": (
        lambda: {"validation": Restless()},
        "validation yields other inputs or another order the second time: shuffle=False, no random augmentation.",
    ),
    "test in another order": (lambda: {"test": Restless()}, "test yields other inputs or another order"),
    "labels are shares": (
        lambda: {"validation": relabelled(lambda labels: labels / 4)},
        "validation: labels must be one integer for each input; 32 inputs came with labels of shape (32,), float32.",
    ),
    "labels are names": (
        lambda: {"validation": relabelled(lambda labels: [str(int(one)) for one in labels])},
        "validation: labels must be integers; torch cannot read this list.",
    ),
    "labels from one": (
        lambda: {"validation": relabelled(lambda labels: labels + 1)},
        "validation: labels from 1 to 4, and the model has 4 outputs: labels count the model's classes from 0.",
    ),
    "test labels from one": (
        lambda: {"test": relabelled(lambda labels: labels + 1)},
        "test: labels from 1 to 4, and the model has 4 outputs",
    ),
    "test without labels": (
        lambda: {"test": unlabelled()},
        "validation is judged by top-1 and test by agreement: give labels with both, or with neither.",
    ),
    "evaluate raises": (
        lambda: {"evaluate": Moody(KeyError("bleu"))},
        "evaluate failed: KeyError: 'bleu'",
    ),
    "evaluate gives NaN": (lambda: {"evaluate": Moody(math.nan)}, "evaluate must return numbers; it gave NaN or inf"),
    "evaluate gives nothing": (lambda: {"evaluate": Moody([])}, "evaluate must return numbers; it gave nothing."),
    "evaluate gives words": (
        lambda: {"evaluate": Moody("good")},
        "evaluate must return a number, or one for each sample; it gave str.",
    ),
    "evaluate differs": (
        lambda: {"evaluate": Moody(0.5, 0.6)},
        "evaluate gives the float model 0.5, and the second time 0.6: take the same data in the same order",
    ),
    "evaluate differs in one sample": (
        lambda: {"evaluate": Moody([0.5, 0.7], [0.7, 0.5])},
        "evaluate gives the float model 0.6 on average of 2, and the second time 0.6 on average of 2",
    ),
    "evaluate calls otherwise": (
        lambda: {"evaluate": lambda predict: float(predict(images().double()).sum())},
        "evaluate failed: DataError: A batch gives float64 of shape (96, 16); the example is float32",
    ),
    "evaluate is a score": (lambda: {"evaluate": 0.5}, "evaluate must be a function; it is a float."),
    "evaluate and test": (
        lambda: {"evaluate": Moody(1.0), "test": labelled()},
        "evaluate(predict) scores its own data and would not see test: leave out one of the two.",
    ),
    "no distance": (
        lambda: {"model": Picks(), "validation": unlabelled()},
        "The model's outputs are int64, of which no distance can be taken",
    ),
    "quantized already": (
        lambda: {"model": tq.quantize_dynamic(net(), {nn.Linear})},
        "This Sequential is quantized already (0, 2): give the float model from which it was made.",
    ),
    "no values": (
        lambda: {"model": net().to("meta")},
        "0.weight is on the device meta, which holds no values: load the weights first.",
    ),
    "float16": (lambda: {"model": net().half()}, "0.weight is float16 on cpu; load the weights, then give model.float"),
    "no model": (lambda: {"model": {"0.weight": torch.ones(2)}}, "model must be an nn.Module; it is a dict."),
    "no validation": (lambda: {"validation": None}, "validation must be a loader or a list of batches"),
    "unknown target": (
        lambda: {"target": "coreml"},
        "There is no target 'coreml'; choose one of: executorch, onnx-x86",
    ),
    "several targets": (lambda: {"target": ["pytorch"]}, "There is no target ['pytorch']; choose one of"),
    "nothing to quantize": (
        lambda: {"model": nn.Sequential(nn.ReLU()).eval()},
        "In eager mode only Linear and recurrent layers have int8",
    ),
    "budget below zero": (lambda: {"budget": -0.5}, "budget must be a number of 0 or more; got -0.5."),
    "budget NaN": (lambda: {"budget": math.nan}, "budget must be a number of 0 or more; got nan."),
    "budget in words": (lambda: {"budget": "1 %"}, "budget must be a number of 0 or more; got '1 %'."),
    "no threads": (lambda: {"threads": 0}, "threads must be a whole number from 1 to 1,024; got 0."),
    "half a thread": (lambda: {"threads": 0.5}, "threads must be a whole number from 1 to 1,024; got 0.5."),
    "a million threads": (lambda: {"threads": 10**6}, "threads must be a whole number from 1 to 1,024; got 1000000."),
    "no folder": (lambda: {"folder": 5}, "folder must be a path; got 5."),
    "a folder of no system": (lambda: {"folder": "a\0b"}, r"folder must be a path; got 'a\x00b'."),
    "no batch": (lambda: {"batch": -1}, "batch must be a whole number from 1 to 1,000,000; got -1."),
    "batch is a flag": (lambda: {"batch": True}, "batch must be a whole number from 1 to 1,000,000; got True."),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_in_words_before_a_file_is_written(name: str, tmp_path: Path) -> None:
    changes, words = REFUSED[name]
    with pytest.raises(errors.CheckError) as refused:
        run(**({"folder": tmp_path / "made" / "for it"} | changes()))
    assert words in str(refused.value)
    assert not [*tmp_path.iterdir()]


def test_a_model_in_training_mode_is_checked_in_evaluation_and_left_as_it_was(tmp_path: Path) -> None:
    model = net().train()
    result = run(tmp_path, model=model)
    assert "The model came in training mode: the checker works on a copy in evaluation mode." in result.report["notes"]
    assert model.training


def test_numbers_may_be_numpy_s(tmp_path: Path) -> None:
    result = run(tmp_path, threads=np.int64(1), batch=np.int32(1), budget=np.float32(5))
    assert result.report["quality"]["budget"] == 5.0


class Fixed(nn.Module):
    """Takes batches of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def forward(self, x: Tensor) -> Tensor:
        chosen: Tensor = self.body(x.view(32, 16))
        return chosen


def test_a_model_for_one_size_of_batch_is_told_how_to_be_called(tmp_path: Path) -> None:
    with pytest.raises(errors.CannotRunError) as refused:
        run(tmp_path, model=Fixed())
    assert "; it runs on float32 of shape (32, 16): give batch=32, for which the file is made" in str(refused.value)
    assert run(tmp_path, model=Fixed(), batch=32).status == "kept"


def test_what_only_looks_like_a_weight_is_no_reason_to_fail(tmp_path: Path) -> None:
    assert run(tmp_path, model=nn.Sequential(nn.DataParallel(net())).eval()).status == "kept"


class Without(nn.Module):
    """Computes in a context of its own."""

    def __init__(self, context: Callable[[], Any]) -> None:
        super().__init__()
        self.body, self.context = net(), context

    def forward(self, x: Tensor) -> Tensor:
        with self.context():
            found: Tensor = self.body(x)
        return found.float()


def test_layers_that_are_computed_without_gradients_are_int8(tmp_path: Path) -> None:
    result = run(tmp_path, model=Without(torch.no_grad), target="executorch")
    assert result.report["census"]["int8"] == ["body.0", "body.2"]
    result = run(tmp_path, model=Without(lambda: torch.autocast("cpu", torch.bfloat16)), target="executorch")
    assert result.status == "refused"
    assert "What it computes inside torch.autocast stays in float: take that out of forward." in result.report["do"]


class Exotic(nn.Module):
    """Has an operator that no runtime has."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.body(x)
        return found + torch.linalg.householder_product(torch.eye(2), found[0, :2])[0, 0]


@pytest.mark.parametrize("target", ["executorch", "onnx-x86"])
def test_an_operator_without_a_form_in_the_file_is_named_with_its_line(target: str, tmp_path: Path) -> None:
    result = run(tmp_path, model=Exotic(), target=target)
    assert result.status == "refused"
    said = result.report["do"]
    assert "aten.linalg_householder_product" in said
    assert "(`return found + torch.linalg.householder_product(torch.eye(2), found[0, :2])[0, 0]`): rewrite that" in said
    assert "\x1b" not in said


def test_what_cannot_be_captured_is_said_with_its_line_and_what_is_torchscript_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Packs(nn.LSTM):
        def forward(self, x: Tensor) -> Any:
            return super().forward(nn.utils.rnn.pack_padded_sequence(x, [5] * len(x), batch_first=True))

    with torch.random.fork_rng(devices=[]):
        model = Packs(4, 4, batch_first=True).eval()
    said = run(tmp_path, model=model, validation=[torch.ones(2, 5, 4)], target="executorch").report["do"]
    assert "capture this model in forward, line" in said
    assert "[5] * len(x), batch_first=True))'): zeros()" in said
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = nn.Sequential(torch.jit.script(net())).eval()
    said = run(tmp_path, model=scripted, target="executorch").report["do"]
    assert said.endswith("0 is TorchScript: put the nn.Module of which it was made in its place.")


def test_a_report_holds_no_folder_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any) -> Any:
        raise RuntimeError(f"\x1b[96mno\x1b[0m {tmp_path}/model.pt nor https://a.org/b/c for x/y/z and /2/3/")

    monkeypatch.setattr(targets, "write", fails)
    report = run(tmp_path).report
    assert report["do"] == "It failed: no model.pt nor https://a.org/b/c for x/y/z and /2/3/"
    (note,) = report["notes"]
    assert note.startswith("Traceback: test_checker.py, line ")
    assert note.endswith(": RuntimeError")


def test_without_calibration_data_dynamic_quantization_is_tried_alone_and_the_report_says_so(tmp_path: Path) -> None:
    result = run(tmp_path, target="onnx-x86")
    assert [one["what"] for one in result.report["tries"]] == ["dynamic, per channel"]
    assert "There are no calibration data: only dynamic quantization was tried." in result.report["notes"]
    assert {path.name for path in tmp_path.iterdir()} == {"model-int8.onnx", "report.html", "report.json"}


def test_a_score_that_fails_on_the_int8_file_alone_is_a_result_and_says_so(tmp_path: Path) -> None:
    result = run(tmp_path, evaluate=Moody(1.0, 1.0, ZeroDivisionError("no detection")))
    assert result.status == "refused"
    assert "evaluate failed: ZeroDivisionError: no detection" in result.report["do"]
    result = run(tmp_path, evaluate=Moody([1.0, 0.5], [1.0, 0.5], [1.0]))
    assert "evaluate gives 2 scores for the float model and 1 for the int8 file" in result.report["do"]


def test_outputs_that_are_no_numbers_never_keep_a_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        targets, "load", lambda *given: lambda *tensors: (torch.full((len(tensors[0]), CLASSES), math.nan),)
    )
    for validation in (unlabelled(), labelled()):
        result = run(tmp_path, validation=validation, budget=100.0)
        assert result.status == "over" or result.report["quality"]["kind"] == "top-1"
        assert result.report["quality"]["validation"]["sqnr_db"] == -reports.EXACT_DB
        assert result.report["quality"]["channels"][0]["deviation"] is None
        assert "not finite" in (tmp_path / "report.html").read_text()
    monkeypatch.setattr(targets, "load", lambda *given: lambda *tensors: (torch.full((CLASSES,), math.nan),))
    single = nn.Sequential(net(), nn.Flatten(0)).eval()
    result = run(tmp_path, model=single, validation=[one[:1] for one in unlabelled()])
    assert result.status == "over"
    assert "an output channel has nothing of the signal, and the budget asks for 5 dB" in result.report["do"]


# --- the folder --------------------------------------------------------------------------------------


@pytest.fixture
def earlier(tmp_path: Path) -> Callable[[], dict[str, bytes]]:
    """What is in the folder, of an earlier run."""
    run(tmp_path)

    def found() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    assert found().keys() == {"model-int8.pt", "report.html", "report.json"}
    return found


def test_a_file_in_place_of_the_folder_is_named_and_stays(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(atomic.WriteError, match="out cannot be made: File exists"):
        run(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_folder_that_takes_no_files_is_found_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(**given: Any) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.mkdtemp", refuses)
    with pytest.raises(atomic.WriteError, match=r"\.writable cannot be written into .*: Permission denied"):
        run(tmp_path, model="not even looked at")


def test_a_folder_that_was_there_stays_when_a_check_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.CheckError):
        run(tmp_path, model=None)
    assert tmp_path.is_dir()


def test_a_run_beside_another_one_in_the_same_folder_is_not_disturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one takes away what both try the folder with, and a folder that it made and leaves empty."""
    replace = os.replace

    def gone(source: Any, target: Any) -> None:
        replace(source, target)
        if Path(target).name == ".writable":
            Path(target).unlink()
            Path(target).parent.joinpath(".unfinished-of-the-other").symlink_to("nowhere")

    monkeypatch.setattr(os, "replace", gone)
    assert run(tmp_path).status == "kept"

    def stop(predict: Any) -> float:
        shutil.rmtree(tmp_path / "new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="Finished: nothing"):
        run(tmp_path / "new", evaluate=stop)


def test_without_a_temporary_folder_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "nowhere"))
    with pytest.raises(atomic.WriteError, match="There is no temporary folder to work in: No such file or directory"):
        run(tmp_path / "out")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("place", ["the int8 file", "the report", "the temporary folder", "a writer that hides it"])
def test_a_full_disk_leaves_nothing_half_written_and_the_earlier_files_as_they_were(
    place: str, tmp_path: Path, earlier: Callable[[], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = earlier()

    def full(*given: Any, **more: Any) -> Any:
        raise FULL

    def hidden(*given: Any) -> Any:  # as torch.save does
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    if place == "the int8 file":
        monkeypatch.setattr(shutil, "copyfile", full)
    elif place == "the report":
        monkeypatch.setattr(Path, "write_text", full)
    else:
        monkeypatch.setattr(targets, "write", full)
    if place == "a writer that hides it":
        monkeypatch.setattr(targets, "write", hidden)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    with pytest.raises(atomic.WriteError, match=r"cannot be written into .*: No space left on device\."):
        run(tmp_path, model=nn.Sequential(net(), nn.ReLU()).eval())
    assert earlier() == before


@pytest.mark.parametrize("done", range(4))
def test_wherever_the_last_step_is_cut_no_report_stands_beside_a_file_of_another_run(
    done: int, tmp_path: Path, earlier: Callable[[], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, replace, count = earlier(), os.replace, itertools.count()

    def cut(source: Any, target: Any) -> None:
        if next(count) == done + 1:  # the first one tries whether the folder takes files
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", cut)
    with torch.random.fork_rng(devices=[]):
        other = nn.Sequential(nn.Linear(16, CLASSES)).eval()
    if done < 3:
        with pytest.raises(KeyboardInterrupt) as stopped:
            run(tmp_path, model=other)
        words = f"The files in {tmp_path} were being replaced: without a report.json do not use them."
        assert str(stopped.value).endswith(words)
    else:
        run(tmp_path, model=other)
    after = earlier()
    new = after["model-int8.pt"] != before["model-int8.pt"]
    assert new == (done > 0)
    assert ("report.json" in after) == (done == 3)
    assert not [name for name in after if name.startswith(".")]
    if done == 3:
        assert json.loads(after["report.json"])["file"]["mb"] * 1e6 == len(after["model-int8.pt"])


def test_a_result_without_a_file_says_of_which_run_an_older_one_is(
    tmp_path: Path, earlier: Callable[[], dict[str, bytes]]
) -> None:
    before = earlier()
    result = run(tmp_path, evaluate=Moody(1.0, 1.0, ValueError("no")))
    assert result.file is None
    assert "model-int8.pt in this folder is of an earlier run." in result.report["notes"]
    assert earlier()["model-int8.pt"] == before["model-int8.pt"]


# --- interrupted -------------------------------------------------------------------------------------

LOOKED = "looking at the model and the data"
MEASURED = f"{LOOKED}, quantizing and writing, measuring files on the validation data"
WRITES = {
    "writing": (targets, "write"),
    "timing": (checker, "_compare_speeds"),
    "putting in place": (shutil, "copyfile"),
}


@pytest.mark.parametrize(
    ("scores", "place", "done"),
    [
        ([], "", "nothing"),
        ([1.0], "", "nothing"),
        ([1.0, 1.0], "", f"{LOOKED}, quantizing and writing"),
        (None, "writing", LOOKED),
        (None, "timing", MEASURED),
        (None, "putting in place", f"{MEASURED}, comparing speeds"),
    ],
    ids=["in evaluate", "in evaluate again", "in evaluate of the file", "in writing", "in timing", "putting in place"],
)
def test_ctrl_c_says_what_was_finished_and_leaves_the_earlier_files(
    scores: list[Any] | None,
    place: str,
    done: str,
    tmp_path: Path,
    earlier: Callable[[], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*given: Any, **more: Any) -> Any:
        raise KeyboardInterrupt

    before = earlier()
    if place:
        monkeypatch.setattr(*WRITES[place], stop)
    changes = {} if scores is None else {"evaluate": Moody(*scores, KeyboardInterrupt())}
    with pytest.raises(KeyboardInterrupt) as stopped:
        run(tmp_path, **changes)
    assert str(stopped.value) == f"Finished: {done}. Earlier files in {tmp_path} are as they were."
    assert earlier() == before


# --- what a check changes in its process -------------------------------------------------------------


def settings() -> list[Any]:
    return [
        torch.get_num_threads(),
        torch.backends.quantized.engine,
        torch.backends.mha.get_fastpath_enabled(),
        torch.get_rng_state().tolist(),
        random.getstate(),
        [str(one) for one in np.random.get_state()],
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        list(warnings.filters),
        logging.root.manager.disable,
        sys.stdout,
    ]


@pytest.mark.parametrize("how", ["well", "refused", "evaluate fails", "interrupted", "a full disk"])
def test_settings_of_the_caller_are_his_own_again(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    def careless(predict: Any) -> float:
        """Another one's code inside changes what it likes."""
        torch.manual_seed(7)
        random.seed(7)
        np.random.seed(7)
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(2)
        warnings.simplefilter("error")
        raise {"evaluate fails": ValueError("no"), "interrupted": KeyboardInterrupt()}[how]

    def full(*given: Any) -> Any:
        raise FULL

    if how == "a full disk":
        monkeypatch.setattr(targets, "write", full)
    changes: Changes = {"model": None} if how == "refused" else {}
    changes |= {"evaluate": careless} if how in ("evaluate fails", "interrupted") else {}
    torch.set_num_threads(2)
    torch.backends.quantized.engine = "qnnpack"
    for enabled in (True, False):
        torch.backends.mha.set_fastpath_enabled(enabled)
        before = settings()
        try:
            run(tmp_path, **changes)
            assert how == "well"
        except (errors.CheckError, atomic.WriteError, KeyboardInterrupt):
            assert how != "well"
        finally:
            found = settings()
            torch.backends.mha.set_fastpath_enabled(True)
        assert found == before


# --- the verdict -------------------------------------------------------------------------------------


@pytest.fixture
def loses(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the file lose so many points on the validation and on the test data."""

    def let(validation: float, test: float, bound: float | None = None) -> None:
        class Judge(quality.Judge):
            def judge(self, run: Any, doing: str = "", chosen_on: bool = True) -> quality.Quality:
                found = super().judge(run, doing, chosen_on)
                changes = {"lost": validation} if chosen_on else {"lost": test, "bound": bound}
                return dataclasses.replace(found, **changes)

        monkeypatch.setattr(checker, "Judge", Judge)

    return let


@pytest.mark.parametrize(
    ("validation", "test", "status", "first"),
    [
        (0.0, 0.0, "kept", []),
        (1.0, 0.2, "kept", ["On the validation data the file is over the budget; the verdict rests on the test data."]),
        (0.2, 1.5, "over", ["On the validation data the file is within the budget; the verdict rests on the test"]),
        (1.0, 1.5, "over", []),
        (64.4 - 63.9, 64.4 - 63.9, "kept", []),
    ],
)
def test_the_verdict_rests_on_the_test_data(
    validation: float, test: float, status: str, first: list[str], tmp_path: Path, loses: Callable[..., None]
) -> None:
    loses(validation, test)
    many = labelled() * 3  # of which one is less than the budget
    result = run(tmp_path, validation=many, test=many, budget=0.5)
    assert result.status == status
    assert result.report["quality"]["lost"] == test
    assert len(result.report["first"]) == len(first)
    assert all(line.startswith(words) for line, words in zip(result.report["first"], first, strict=True))
    assert (f"costs {test:.4g} points of top-1, over the budget of 0.5 points" in result.report["do"]) == (
        status == "over"
    )


def test_a_bound_over_the_budget_is_said_and_few_samples_too(tmp_path: Path, loses: Callable[..., None]) -> None:
    loses(0.0, 0.0, bound=1.25)
    result = run(tmp_path, test=labelled(), budget=1.0)
    assert result.status == "kept"
    assert result.report["first"] == [
        "96 test samples cannot prove that it is within the budget: with 95 % confidence it costs at most 1.25 points."
    ]
    loses(1.04, 1.04)
    result = run(tmp_path, budget=1.0)
    assert result.report["first"] == ["96 samples are few for this budget: one answer alone is 1.04 points."]


# --- the sentence that says what to do ---------------------------------------------------------------

ABOVE, UNSURE, BELOW = ({"ratio": r, "low": r - 0.1, "high": r + 0.1} for r in (1.5, 1.05, 0.6))
ONNX = {"name": "ONNX Runtime"}
SHIP, ONLY_SIZE, ONLY_SPEED = (
    "Ship model.onnx: ",
    "Ship model.onnx only where size is",
    "Ship model.onnx only where speed",
)
THERE, FLOAT = "Ship model.onnx if it must be this runtime", "Ship float: model.onnx is within the budget, but it takes"
SENTENCES = [  # size, ratio to float in the runtime, to the best float path, how the sentence begins
    (3.6, None, None, SHIP),
    (3.6, ABOVE, ABOVE, SHIP),
    (3.6, ABOVE, UNSURE, SHIP),
    (3.6, ABOVE, BELOW, THERE),
    (3.6, UNSURE, UNSURE, SHIP),
    (3.6, UNSURE, BELOW, THERE),
    (3.6, BELOW, BELOW, ONLY_SIZE),
    (3.6, None, ABOVE, SHIP),
    (3.6, None, BELOW, THERE),
    (15.0, None, None, FLOAT),
    (15.0, ABOVE, ABOVE, ONLY_SPEED),
    (15.0, ABOVE, UNSURE, ONLY_SPEED),
    (15.0, ABOVE, BELOW, FLOAT),
    (15.0, UNSURE, UNSURE, FLOAT),
    (15.0, UNSURE, BELOW, FLOAT),
    (15.0, BELOW, BELOW, FLOAT),
    (15.0, None, ABOVE, FLOAT),
]
QUALITIES: dict[str, tuple[str, float | None, float, str]] = {
    "top-1": ("points", 0.24, 0.9, "0.9 points of top-1, over the budget of 0.5 points"),
    "agreement": ("points", 0.24, 0.9, "0.9 % of the answers change, over the budget of 0.5 points"),
    "score": ("of the score", 0.24, 0.9, "it costs 0.9 of the score, over the budget of 0.5 of the score"),
    "SQNR": ("dB", None, 0.4, "an output channel has 0.4 dB, and the budget asks for 0.5 dB"),
}


def told(report: Changes, mb: float, own: Any, best: Any) -> str:
    """The sentence on such a file, and the report with it held against itself."""
    report["file"]["mb"] = mb
    report["speed"] = {**report["speed"], "own": own, "best": best and ONNX | best} if own or best else None
    report["first"] = reports.first_lines(report)
    report["do"] = advice(report)
    reports.check_report(report)
    return str(report["do"])


@pytest.mark.parametrize("kind", QUALITIES)
@pytest.mark.parametrize(("mb", "own", "best", "begins"), SENTENCES)
def test_the_sentence_follows_from_size_and_speed(
    kind: str, mb: float, own: Any, best: Any, begins: str, report: Make
) -> None:
    found = report()
    unit, lost, over, words = QUALITIES[kind]
    found["quality"] |= {"kind": kind, "unit": unit, "lost": lost}
    found["quality"]["test"]["lost"] = lost
    said = told(found, mb, own, best)
    assert said.startswith(begins)
    assert ("times the speed of float" in said) == (begins == ONLY_SPEED or (mb < 14 and own is ABOVE))
    assert ("where speed counts, change the runtime first, since ONNX Runtime" in said) == (begins == THERE)
    found["status"] = "over"
    found["quality"]["test"] |= {"worst_db": over} if kind == "SQNR" else {"lost": over}
    found["quality"]["lost"] = found["quality"]["test"]["lost"]
    said = told(found, mb, own, best)
    assert said.startswith("Do not ship this file: ")
    assert words in said


def test_a_dead_channel_and_a_file_without_int8_have_sentences_of_their_own(report: Make) -> None:
    found = report("kept") | {"status": "over"}
    found["quality"] |= {
        "kind": "agreement",
        "dead": [{"output": "logits", "channel": 4, "sqnr_db": 1.0, "deviation": 1}],
    }
    said = told(found, 3.6, ABOVE, ABOVE)
    assert "channel 4 of logits holds little but noise, although 0.24 % of the answers change, and nothing" in said
    found["census"] |= {"int8": [], "summary": "0 of 1 layers in int8"}
    assert told(found, 3.6, ABOVE, ABOVE).startswith("Ship float: nothing in this file computes in int8")
    assert advice(report("refused"), "Rewrite line 3.") == "Rewrite line 3."


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"status": "over"}, "it is over the budget, and no figure is"),
        ({"quality.dead": [{}]}, "it is kept, and an output channel holds nothing but noise"),
    ],
)
def test_a_verdict_that_no_figure_bears_out_is_a_contradiction(changes: Changes, words: str, report: Make) -> None:
    found = report()
    if "status" in changes:
        found |= changes
    else:
        found["quality"]["dead"] = changes["quality.dead"]
    with pytest.raises(reports.ReportError, match=words):
        reports.check_report(found)


def test_a_speed_that_was_not_told_is_not_claimed(report: Make) -> None:
    found = report() | {"do": "Ship it: 1.1 times the speed of float in the same runtime."}
    found["speed"]["own"] = UNSURE
    found["first"] = reports.first_lines(found)
    with pytest.raises(reports.ReportError, match=r"1\.1 times the speed of float in the same runtime” at a"):
        reports.check_report(found)


def test_speeds_that_cannot_be_compared_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*given: Any, **more: Any) -> Any:
        raise float_paths.RivalsError("The float model cannot be prepared: no bytes")

    monkeypatch.setattr(checker, "_compare_speeds", COMPARE_SPEEDS)
    monkeypatch.setattr(float_paths, "rivals", refuses)
    result = run(tmp_path)
    assert result.report["notes"] == ["No speeds were compared: The float model cannot be prepared: no bytes"]
    assert result.report["speed"] is None


def test_a_graph_whose_operators_cannot_be_run_alone_is_noted_and_the_file_is_judged_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*given: Any, **more: Any) -> Any:
        raise NotImplementedError("aten.strange has no kernel here")

    monkeypatch.setattr(find, "suggest", breaks)
    squares = [torch.linspace(-1, 1, 4 * 64).reshape(4, 1, 8, 8)]
    result = run(
        tmp_path, model=convolution(), validation=squares, calibration=squares, target="executorch", budget=200.0
    )
    assert result.report["diagnosis"] == ["No operator could be looked at: aten.strange has no kernel here"]
    assert result.status == "over"
    assert "and the budget asks for 200 dB, and nothing that was tried mended it" in result.report["do"]


# --- the command -------------------------------------------------------------------------------------

JOB = """
import os, signal; signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored behind a shell's &
import torch
from torch import nn
with torch.random.fork_rng():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 4)).eval()
images = torch.randn(96, 16, generator=torch.Generator().manual_seed(1))
validation = [(one, model(one).argmax(1)) for one in images.split(32)]
target, budget, folder = "pytorch", 5.0, "out"
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a job, with more lines, into the working folder."""
    monkeypatch.chdir(tmp_path)

    def write(more: str = "") -> str:
        Path("job.py").write_text(JOB + more)
        return "job.py"

    return write


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        ("", 0, ""),
        ("evaluate = lambda predict: -1e6 * (predict(images) - model(images)).square().sum().item()", 1, ""),
        (
            "with torch.random.fork_rng(): model = nn.Conv2d(1, 2, 3)\n"
            "target, validation = 'executorch', [torch.ones(1, 1, 8, 8)]",
            2,
            "give calibration=",
        ),
        (
            "validation = torch.utils.data.DataLoader(images, 32, shuffle=True)",
            2,
            "validation yields other inputs or another order the second time",
        ),
        ("validation = [(images, torch.ones(96))]", 2, "validation: labels must be one integer for each input"),
        ("evaluate = lambda predict: 1 / 0", 2, "evaluate failed: ZeroDivisionError: division by zero"),
        ("evaluate = lambda predict: float('nan')", 2, "evaluate must return numbers; it gave NaN or infinity."),
        ("def evaluate(predict):\n    raise SystemExit(0)", 2, "job.py, line 12 (raise SystemExit(0)): SystemExit: 0"),
        ("import random\nevaluate = lambda predict: random.random()", 2, "evaluate gives the float model 0."),
        ("folder = 3", 2, "folder must be a path; got 3."),
        ("open('out', 'w').close()", 2, "out cannot be made: File exists."),
        ("def evaluate(predict):\n    os.kill(os.getpid(), signal.SIGINT)\n    return 1.0", 130, "Finished: nothing."),
        ("(", 2, "job.py, line 11 ((): '(' was never closed."),
        ("del validation", 2, "job.py does not define validation."),
        ("model = torch.ao.quantization.quantize_dynamic(model)", 2, "This Sequential is quantized already (0, 2)"),
        ("model = model.half()", 2, "0.weight is float16 on cpu; load the weights"),
        ("model = model.to('meta')", 2, "0.weight is on the device meta, which holds no values"),
        ("budget = -1", 2, "budget must be a number of 0 or more; got -1."),
        ("threads = 0", 2, "threads must be a whole number from 1 to 1,024; got 0."),
    ],
)
def test_the_command_ends_in_a_code_and_words(
    more: str, code: int, words: str, job: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([job(more)]) == code
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    written = Path("out/report.json").is_file()
    assert written == (code in (0, 1))
    assert "qhelpers_job" not in sys.modules


def test_the_command_in_a_process_of_its_own_is_interrupted_without_a_traceback(job: Callable[[str], str]) -> None:
    path = job("def evaluate(predict):\n    os.kill(os.getpid(), signal.SIGINT)\n    return 1.0")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "qhelpers.check", path], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "Interrupted. Finished: nothing. Earlier files in out are as they were."
    assert "Traceback" not in done.stderr
    assert not Path("out").exists()


WORSE = """
with torch.no_grad():  # the same function of the images, with a column of weights that takes the others their scale
    model[0].weight[:, 0] *= 1000
    images[:, 0] /= 1000
validation = [(one, model(one).argmax(1)) for one in images.split(32)]
"""


def test_the_gate_lets_the_same_model_pass_and_says_why_a_worse_one_fails(
    job: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([job()]) == 0
    earlier = Path("out").rename("shipped") / "report.json"
    assert command.main(["job.py", "--against", str(earlier)]) == 0
    assert not capsys.readouterr().err.count("Worse")
    assert command.main([job(WORSE + "budget = 50.0"), "--against", str(earlier)]) == 1
    said = capsys.readouterr()
    assert said.out.count("within the budget")
    larger, gone = said.err.splitlines()
    assert larger.startswith(f"Worse than {earlier}: the file has 0.02 MB, earlier ")
    assert gone == f"Worse than {earlier}: no longer in int8: 0."  # which a repair has left in float
    assert command.main([job("target = 'onnx-arm'; folder = 'other'"), "--against", str(earlier)]) == 2
    assert "The two reports cannot be compared. target: onnx-arm, earlier pytorch." in capsys.readouterr().err
    assert not Path("other").exists(), "it is said before anything is done"


def test_the_readme_shows_the_example_as_it_is_tested() -> None:
    readme = (common.ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("job.py", "test_int8_file.py"):
        assert f"```python\n{(EXAMPLE / name).read_text()}```" in readme


def test_the_example_s_gate_fails_for_another_model_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = Path(shutil.copytree(EXAMPLE, tmp_path / "project"))
    with (copied / "job.py").open("a") as file:
        file.write("model.head.weight.data[:, 0] *= 1000\n")
    spec = importlib.util.spec_from_file_location("example_gate", copied / "test_int8_file.py")
    assert spec is not None
    assert spec.loader is not None
    gate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gate)
    with pytest.raises(AssertionError, match="what got worse is printed above"):
        gate.test_the_int8_file_is_no_worse_than_the_one_that_was_shipped(tmp_path)
    assert capsys.readouterr().err == f"Worse than {copied / 'shipped.json'}: no longer in int8: head.\n"
