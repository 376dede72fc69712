"""Bytes in a file."""

from pathlib import Path

import pytest
import torch
from torchvision.models import mobilenet_v2, quantization

from qhelpers import engines, guards, size
from qhelpers.tasks import checkpoints


def test_the_figure_equals_the_file_on_disk(tmp_path: Path) -> None:
    model = checkpoints.load_digits_int8()
    path = tmp_path / "archive"  # the name that the archive has in memory, too
    torch.save(model.state_dict(), path)
    assert size.size_mb(model) == path.stat().st_size / 1e6


def test_packed_weights_are_counted() -> None:
    model = checkpoints.load_digits_int8()
    weights = sum(model.get_submodule(name).weight().numel() for name in guards.int8_modules(model))
    assert size.size_mb(model) * 1e6 > weights > 2_000_000


def test_published_sizes() -> None:
    with engines.preserved_engine(), torch.random.fork_rng(devices=[]):
        assert size.size_mb(mobilenet_v2(weights=None)) == pytest.approx(14.27, abs=0.02)
        with pytest.warns(UserWarning, match="must run observer"):
            int8 = quantization.mobilenet_v2(weights=None, quantize=True)
    assert size.size_mb(int8) == pytest.approx(3.63, abs=0.02)


def test_print_without_label(capsys: pytest.CaptureFixture[str]) -> None:
    with torch.random.fork_rng(devices=[]):
        size.print_model_size(torch.nn.Linear(1000, 1000))
    assert capsys.readouterr().out == "4.01 MB\n"
