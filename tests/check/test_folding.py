"""Batch norms are folded into what they alone read, and stay where that would change the function."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qhelpers.check import folding
from qhelpers.check.calls import Call
from qhelpers.tasks import networks


def test_norms_are_folded_into_what_they_alone_read(one_thread: None) -> None:
    model, images = networks.load_digit_resnet(), torch.rand(2, 3, 96, 96)
    folded, count = folding.fold_norms(model)
    assert count == 15
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), model(images), atol=1e-3, rtol=1e-3)


class Branch(nn.Module):
    """A convolution that is read twice: behind its norm, and before it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        outputs: Tensor = self.norm(y) + y
        return outputs


class Twice(Branch):
    """One convolution with its norm, called two times."""

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.norm(self.conv(self.norm(self.conv(x))[:, :1]))
        return outputs


class Wilful(Branch):
    """A model that torch.fx cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) if x.sum() > 0 else x


@pytest.mark.parametrize("kind", [Branch, Twice, Wilful])
def test_a_norm_that_cannot_be_folded_stays(kind: type[nn.Module]) -> None:
    with torch.random.fork_rng(devices=[]):
        model = kind().eval()
    folded, count = folding.fold_norms(model)
    assert count == 0
    assert isinstance(folded.norm, nn.BatchNorm2d)


class Sequences(nn.Module):
    """Its norm runs over the steps, of which there are as many as the Linear has outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(5, 3), nn.BatchNorm1d(3)
        self.norm.running_mean += torch.arange(3.0)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.norm(self.layer(x))
        return outputs


def test_a_norm_over_another_dimension_stays_and_behind_one_row_a_sample_it_is_folded(random_weights: None) -> None:
    model = Sequences().eval()
    folded, count = folding.fold_norms(model, Call((torch.randn(2, 3, 5),)))
    assert count == 0
    assert isinstance(folded.norm, nn.BatchNorm1d)
    rows = torch.randn(2, 5)
    folded, count = folding.fold_norms(model, Call((rows,)))
    assert count == 1
    assert isinstance(folded.norm, nn.Identity)
    torch.testing.assert_close(folded(rows), model(rows))
    assert isinstance(model.norm, nn.BatchNorm1d), "the model itself is left as it is"


@pytest.mark.parametrize(
    "made",
    [
        lambda: nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 1)),
        lambda: nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.BatchNorm2d(2)),
        lambda: nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, track_running_stats=False)),
    ],
    ids=["at the front", "behind a ReLU", "without statistics"],
)
def test_a_norm_with_no_layer_to_take_it_stays(made: Callable[[], nn.Module], random_weights: None) -> None:
    assert folding.fold_norms(made().eval())[1] == 0


class Optional(Branch):
    """Branches on an argument that has a default."""

    def forward(self, x: Tensor, raw: bool = False) -> Tensor:
        outputs: Tensor = self.conv(x) if raw else self.norm(self.conv(x))
        return outputs


def test_arguments_that_the_example_leaves_out_are_fixed_at_their_defaults(random_weights: None) -> None:
    image = torch.randn(1, 1, 2, 2)
    folded, count = folding.fold_norms(Optional().eval(), Call((image,)))
    assert count == 1
    assert folded(image).shape == (1, 2, 2, 2)


@pytest.mark.parametrize(("groups", "bias"), [(1, True), (2, True), (2, False)])
def test_a_transposed_convolution_takes_its_norm_also_in_groups(groups: int, bias: bool, random_weights: None) -> None:
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=bias), nn.BatchNorm2d(6))
    images = torch.randn(8, 4, 5, 5)
    model(images)
    nn.init.normal_(model[1].weight)
    folded, count = folding.fold_norms(model.eval())
    assert count == 1
    torch.testing.assert_close(folded(images), model(images), atol=1e-4, rtol=1e-4)
