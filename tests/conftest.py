"""Small networks that several rooms' tests quantize."""

import pytest
from torch import nn
from torch.ao import quantization as tq

from qhelpers.tasks import networks


@pytest.fixture(autouse=True)
def whole_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Continuous integration cuts the chapters' timings short, not those of the tests."""
    monkeypatch.delenv("QHELPERS_ROUNDS", raising=False)


@pytest.fixture
def net(random_weights: None) -> nn.Module:
    """A convolution and a linear layer between stubs."""
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    return tq.QuantWrapper(inner).eval()


@pytest.fixture
def language_model(random_weights: None) -> networks.CharLSTM:
    """The book's language model, small."""
    return networks.CharLSTM(hidden=8).eval()
