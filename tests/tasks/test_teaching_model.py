"""The digits checkpoints: good enough, and broken in the way that the book teaches."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization as tq

from experiments import collapse
from qhelpers import engines, guards, metrics
from qhelpers.tasks import checkpoints, digits


@pytest.fixture(scope="module")
def test_digits() -> list[tuple[Tensor, Tensor]]:
    return list(digits.loader("test", batch_size=100, limit=400))


def post_training(weight_observer: Callable[[], nn.Module]) -> nn.Module:
    with engines.using_engine("qnnpack"):
        return collapse.post_training(checkpoints.load_digits_float(), weight_observer)


def top1(model: nn.Module, images: list[tuple[Tensor, Tensor]]) -> float:
    with engines.using_engine("qnnpack"):
        return metrics.top1(model, images).percent


def test_float_model_reaches_98_percent(test_digits: list[tuple[Tensor, Tensor]]) -> None:
    assert top1(checkpoints.load_digits_float(), test_digits) >= 98.0


def test_int8_model_reaches_97_percent(test_digits: list[tuple[Tensor, Tensor]]) -> None:
    assert top1(checkpoints.load_digits_int8(), test_digits) >= 97.0


def test_int8_weights_are_per_tensor() -> None:
    model = checkpoints.load_digits_int8()
    for name in guards.int8_modules(model):
        assert model.get_submodule(name).weight().qscheme() == torch.per_tensor_affine


@pytest.mark.filterwarnings("ignore:must run observer:UserWarning")  # unused additions
def test_per_tensor_post_training_quantization_collapses(test_digits: list[tuple[Tensor, Tensor]]) -> None:
    assert top1(post_training(tq.default_weight_observer), test_digits) < 60


@pytest.mark.filterwarnings("ignore:must run observer:UserWarning")  # unused additions
def test_per_channel_post_training_quantization_holds(test_digits: list[tuple[Tensor, Tensor]]) -> None:
    int8 = top1(post_training(tq.default_per_channel_weight_observer), test_digits)
    assert int8 >= top1(checkpoints.load_digits_float(), test_digits) - 1.5


@pytest.mark.parametrize("engine", engines.available_engines())
def test_int8_model_works_on_every_engine(engine: str) -> None:
    images = list(digits.loader("validation", batch_size=100, limit=200))
    model = checkpoints.load_digits_int8(engine)
    with engines.using_engine(engine):
        assert metrics.top1(model, images).percent > 95
