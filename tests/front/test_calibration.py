"""The calibration loop: what it refuses, and that its memory stays constant."""

import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.ao.quantization import get_default_qconfig, prepare

from qhelpers import calibration, guards


def prepared() -> nn.Module:
    model = nn.Sequential(torch.ao.quantization.QuantStub(), nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    model.qconfig = get_default_qconfig("qnnpack")
    return prepare(model)


@pytest.fixture(autouse=True)
def _random_weights_stay_local() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


def test_calibrate_counts_samples_and_fills_observers() -> None:
    model = prepared()
    batches = [torch.full((2, 3, 8, 8), 0.5), (torch.full((3, 3, 8, 8), 2.0), torch.zeros(3))]
    assert calibration.calibrate(model, batches, progress=False) == 5
    assert float(model[0].activation_post_process.max_val) == 2.0


def test_calibrate_shows_a_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    calibration.calibrate(prepared(), [torch.zeros(1, 3, 8, 8)], progress=True)
    assert "calibrating" in capsys.readouterr().err


@pytest.mark.parametrize("loader", [[], iter(()), [torch.zeros(0, 3, 8, 8)]])
def test_calibrate_rejects_an_empty_loader(loader: object) -> None:
    with pytest.raises(calibration.CalibrationError, match="yielded no sample"):
        calibration.calibrate(prepared(), loader, progress=False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("batch", "words"),
    [({"pixels": 1}, "yielded a dict"), ("cat.jpg", "yielded a str"), (["cat.jpg"], "a list of str"), ([], "a list")],
)
def test_calibrate_rejects_what_is_no_tensor(batch: object, words: str) -> None:
    with pytest.raises(calibration.CalibrationError, match=words):
        calibration.calibrate(prepared(), [batch], progress=False)


def test_calibrate_rejects_a_model_without_observers() -> None:
    with pytest.raises(guards.GuardError, match="set a qconfig and call prepare"):
        calibration.calibrate(nn.Conv2d(3, 4, 3).eval(), [torch.zeros(1, 3, 8, 8)], progress=False)


def test_calibrate_rejects_training_mode() -> None:
    with pytest.raises(guards.GuardError, match=r"call \.eval"):
        calibration.calibrate(prepared().train(), [torch.zeros(1, 3, 8, 8)], progress=False)


def test_memory_does_not_grow_with_the_number_of_batches() -> None:
    given: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def batches(count: int) -> Iterator[torch.Tensor]:
        for _ in range(count):
            alive.append(sum(ref() is not None for ref in given))
            batch = torch.zeros(8, 3, 8, 8)
            given.append(weakref.ref(batch))
            yield batch

    model = prepared()
    model.register_forward_hook(lambda module, inputs, output: given.append(weakref.ref(output)))
    calibration.calibrate(model, batches(50), progress=False)
    assert len(given) == 100
    assert max(alive) <= 2  # the last one, which loop variables still hold
