"""The steps of training/ that can be checked without training."""

from pathlib import Path
from typing import Any

import pytest
import torch

from qhelpers import data, engines, models, published, reports
from training import calibration_curve, common, roads_qat, text_lstm


def test_the_float_network_computes_what_the_int8_one_does() -> None:
    int8 = models.skeleton(1000, quantize=True)
    image = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        rebuilt = published.float_from_int8(int8)
    with torch.inference_mode(), engines.using_engine("qnnpack"):
        expected, found = int8(image), rebuilt(image)
    step = float(int8.classifier[1].scale)
    assert float((expected - found).abs().max()) < 8 * step


def test_norms_get_statistics_and_the_function_stays() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU()).eval()
        images = torch.randn(8, 3, 16, 16)
    norm, inputs = model[1], model[0](images)
    before = model(images)
    published.give_norms_statistics(model, images)
    torch.testing.assert_close(model(images), before, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(norm.running_mean, inputs.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, inputs.var((0, 2, 3)))


def test_calibration_batches_have_just_the_images_asked_for() -> None:
    sizes = [len(images) for images in calibration_curve.batches(0, 70)]
    assert sizes == [32, 32, 6]


def test_more_images_begin_with_the_same_ones() -> None:
    few, many = (next(calibration_curve.batches(1, images)) for images in (16, 4000))
    assert torch.equal(few, many[:16])


def test_text_streams_follow_the_text() -> None:
    streams = text_lstm.streams(torch.arange(1000), offset=3)
    assert streams.shape == (text_lstm.STREAMS, 997 // text_lstm.STREAMS)
    assert torch.equal(streams.flatten(), torch.arange(3, 3 + streams.numel()))


def trained(state_file: Path, epochs: int, fresh: bool = False) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        common.train_on_digits(
            model,
            optimizer,
            schedule,
            epochs=epochs,
            batch_size=2,
            seed=0,
            state_file=state_file,
            fresh=fresh,
            clip=1.0,
        )
    return model.state_dict()


def test_an_interrupted_training_resumes_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def batches(batch_size: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        ran.append(seed)
        return [(torch.full((batch_size, 1, 2, 2), seed + 1.0), torch.arange(batch_size))]

    monkeypatch.setattr(common, "training_batches", batches)
    monkeypatch.setattr(common, "accuracy", lambda model, split: 0.0)
    whole = trained(tmp_path / "whole.pt", epochs=3)
    trained(tmp_path / "part.pt", epochs=2)
    resumed = trained(tmp_path / "part.pt", epochs=3)
    assert ran == [0, 1, 2, 0, 1, 2]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    trained(tmp_path / "part.pt", epochs=1, fresh=True)
    assert ran[-1] == 0


def test_what_is_saved_in_half_is_what_the_model_goes_on_with(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        model = torch.nn.Linear(3, 3)
    common.save_in_half(model, tmp_path / "half.pt")
    saved = torch.load(tmp_path / "half.pt", weights_only=True)
    assert saved["weight"].dtype == torch.float16
    assert torch.equal(saved["weight"].float(), model.weight)


@pytest.mark.filterwarnings("ignore")  # the three roads announce all sorts of things
@pytest.mark.parametrize("road", [roads_qat.eager, roads_qat.fx, roads_qat.pt2e], ids=["eager", "FX", "PT2E"])
def test_each_road_trains_and_converts(road: Any) -> None:
    reports.quiet_imports()
    with torch.random.fork_rng(devices=[]), engines.using_engine(roads_qat.ENGINE):
        model, convert, freeze = road()
        images, labels = data.training_batch(0, 4)
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())
        model.apply(freeze)
        int8 = convert(model)
        with torch.inference_mode():
            outputs = int8(images)
        assert outputs.shape == (4, 10)
        assert len(outputs.unique()) < 40, "int8 codes, not floats"
        model(images)  # the prepared model can still be trained
