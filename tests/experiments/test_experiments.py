"""The scripts of experiments/, as far as a few small steps can tell."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiments import calibration_curve, common, digits_qat, roads_qat, text_lstm
from qhelpers import engines, guards
from qhelpers.book import chapter
from qhelpers.tasks import checkpoints, digits, manual_text, networks, published


def test_the_float_network_computes_what_the_int8_one_does() -> None:
    int8 = checkpoints.skeleton(1000, quantize=True)
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
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
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


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def small_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two streams, read four characters at a time."""
    monkeypatch.setattr(text_lstm, "STREAMS", 2)
    monkeypatch.setattr(text_lstm, "LENGTH", 4)


def text_run(state_file: Path, stop_at: int = -1) -> tuple[dict[str, Tensor], float, list[bool]]:
    """Three epochs of four steps: the weights, their bits, and whether each step began with a state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = networks.CharLSTM(hidden=8, embedding=4, vocabulary=5)
    codes, validation = (torch.randint(5, (n,), generator=torch.Generator().manual_seed(n)) for n in (40, 64))
    carried: list[bool] = []

    def look(lstm: nn.Module, inputs: tuple[Any, ...]) -> None:
        if lstm.training:
            if len(carried) == stop_at:
                raise KeyboardInterrupt
            carried.append(inputs[1] is not None)

    model.lstm.register_forward_pre_hook(look)
    bits = text_lstm.train(model, codes, validation, epochs=3, seed=0, state_file=state_file)
    return model.state_dict(), bits, carried


@pytest.mark.usefixtures("small_text")
def test_the_state_is_carried_to_the_end_of_an_epoch(tmp_path: Path) -> None:
    assert text_run(tmp_path / "state.pt")[2] == 3 * [False, True, True, True]


@pytest.mark.usefixtures("small_text")
def test_an_interrupted_text_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, bits, _ = text_run(tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        text_run(tmp_path / "state.pt", stop_at=6)
    resumed, bits_resumed, carried = text_run(tmp_path / "state.pt")
    assert carried == 2 * [False, True, True, True]
    assert equal(whole, resumed)
    assert bits == bits_resumed


@pytest.mark.usefixtures("small_text")
@pytest.mark.parametrize("stop_at", [-1, 10], ids=["while it is judged", "in the next epoch"])
def test_the_best_model_survives_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int) -> None:
    judged: list[dict[str, Tensor]] = []

    def bits_per_character(model: nn.Module, codes: Tensor) -> float:
        state = model.state_dict()
        if not any(equal(state, each) for each in judged):
            judged.append(copy.deepcopy(state))
            if len(judged) == 2 and stop_at == -1:
                raise KeyboardInterrupt
        return (3.0, 1.0, 2.0)[next(i for i, each in enumerate(judged) if equal(state, each))]

    monkeypatch.setattr(manual_text, "bits_per_character", bits_per_character)
    with pytest.raises(KeyboardInterrupt):
        text_run(tmp_path / "state.pt", stop_at)
    state, bits, _ = text_run(tmp_path / "state.pt")
    assert bits == 1.0
    assert len(judged) == 3
    assert equal(state, judged[1])


@pytest.mark.usefixtures("small_text")
def test_the_best_model_of_an_earlier_run_does_not_count(tmp_path: Path) -> None:
    torch.save({"bits": 0.0, "model": {}}, tmp_path / "state_best.pt")
    assert text_run(tmp_path / "state.pt")[1] > 0


def digits_run(
    state_file: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int = -1
) -> tuple[dict[str, Tensor], list[int]]:
    """Three epochs of two steps: the weights, and the steps that were made."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(4, 10))
    steps: list[int] = []

    def training_batch(step: int, batch_size: int, seed: int) -> tuple[Tensor, Tensor]:
        if step == stop_at:
            raise KeyboardInterrupt
        assert model.training
        steps.append(step)
        return torch.full((4, 1, 2, 2), step + 1.0), torch.arange(4)

    def accuracy(model: nn.Module, split: str) -> float:
        model.eval()
        return 50.0

    monkeypatch.setattr(digits, "training_batch", training_batch)
    monkeypatch.setattr(common, "accuracy", accuracy)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    common.train_on_digits(model, optimizer, epochs=3, batch_size=1750, seed=0, state_file=state_file, clip_norm=1.0)
    return model.state_dict(), steps


def test_an_interrupted_digits_run_resumes_at_the_last_finished_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, steps = digits_run(tmp_path / "whole.pt", monkeypatch)
    assert steps == [0, 1, 2, 3, 4, 5]
    assert [f"epoch {n}: validation 50.0 %" for n in (1, 2, 3)] == capsys.readouterr().out.splitlines()
    with pytest.raises(KeyboardInterrupt):
        digits_run(tmp_path / "state.pt", monkeypatch, stop_at=3)
    resumed, steps = digits_run(tmp_path / "state.pt", monkeypatch)
    assert steps == [2, 3, 4, 5]
    assert equal(whole, resumed)


def test_a_fresh_run_finds_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parser = common.parser(None, "a.pt", seed=3)
    state = common.state_file("a", parser.parse_args([]))
    state.parent.mkdir(parents=True)
    state.touch()
    assert common.state_file("a", parser.parse_args([])).is_file()
    assert not common.state_file("a", parser.parse_args(["--seed", "3", "--fresh"])).exists()


@pytest.mark.filterwarnings("ignore:must run observer")  # additions that are never used: harmless
def test_training_for_int8_writes_an_int8_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"STEPS": 3, "BATCH": 2, "TARGET": tmp_path / "int8.pt"}.items():
        monkeypatch.setattr(digits_qat, name, value)
    monkeypatch.setattr(common, "accuracy", lambda model, split: 0.0)
    with torch.random.fork_rng(devices=[]):
        digits_qat.main()
    with engines.using_engine("qnnpack"):
        model = checkpoints.skeleton(10, quantize=True)
        checkpoints.load_into(model, checkpoints.load_state(tmp_path / "int8.pt"), "int8.pt")
    assert len(guards.int8_modules(model)) == 53


def test_what_is_saved_in_half_is_what_the_model_goes_on_with(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        model = nn.Linear(3, 3)
    common.save_in_half(model, tmp_path / "half.pt")
    saved = torch.load(tmp_path / "half.pt", weights_only=True)
    assert saved["weight"].dtype == torch.float16
    assert torch.equal(saved["weight"].float(), model.weight)


@pytest.mark.filterwarnings("ignore")  # the three roads announce all sorts of things
@pytest.mark.parametrize("road", [roads_qat.eager, roads_qat.fx, roads_qat.pt2e], ids=["eager", "FX", "PT2E"])
def test_each_road_trains_and_converts(road: Any) -> None:
    chapter.quiet_imports()
    with torch.random.fork_rng(devices=[]), engines.using_engine(roads_qat.ENGINE):
        model, convert, freeze = road()
        images, labels = digits.training_batch(0, 4)
        nn.functional.cross_entropy(model(images), labels).backward()
        assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())
        model.apply(freeze)
        int8 = convert(model)
        with torch.inference_mode():
            outputs = int8(images)
        assert outputs.shape == (4, 10)
        assert len(outputs.unique()) < 40, "int8 codes, not floats"
        model(images)  # the prepared model can still be trained
