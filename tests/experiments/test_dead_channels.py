"""Dead channels: how they are found and silenced, and what is recorded of them."""

import pytest
import torch
from torch import nn

from experiments import dead_channels
from qhelpers.book import recorded
from qhelpers.tasks import checkpoints, digits


@pytest.fixture(scope="module")
def fused() -> nn.Module:
    return dead_channels.networks([])["the book's"]


def test_a_channel_that_reads_only_zeros_is_dead_and_silencing_it_changes_nothing(fused: nn.Module) -> None:
    batches = list(digits.loader("train", batch_size=20, limit=20))
    dead = dead_channels.dead_channels(fused, batches)
    assert bool(dead["features.1.conv.0.0"][13])
    assert not bool(dead["features.1.conv.0.0"].all())
    quiet = dead_channels.silenced(fused, dead)
    with torch.inference_mode():
        torch.testing.assert_close(quiet(batches[0][0]), fused(batches[0][0]), atol=1e-4, rtol=1e-4)
    about = dead_channels.widest(fused, dead)
    assert (about["layer"], about["widest_is_dead"]) == ("features.1.conv.0.0", True)
    assert about["ratio_alive"] < about["ratio"] / 5


def test_a_channel_is_dead_only_if_all_batches_leave_it_at_zero() -> None:
    with torch.random.fork_rng(devices=[]):
        net = nn.Sequential(nn.Conv2d(3, 3, 1, groups=3)).eval()
    images = torch.zeros(2, 3, 4, 4)
    images[1, 1] = 1
    images[0, 2] = -1
    labels = torch.zeros(1)
    dead = dead_channels.dead_channels(net, [(images[:1], labels), (images[1:], labels)])
    assert dead["0"].tolist() == [True, False, False]


def test_recorded_networks_have_every_repair() -> None:
    found = recorded.results("dead_channels")
    names = [about["network"] for about in found["networks"]]
    assert names[0] == "the book's"
    assert len(names) >= 2
    for name in names:
        for bits in dead_channels.BITS:
            rows = recorded.rows_where(found, network=name, bits=bits)
            assert [row["repair"] for row in rows] == ["nothing", "silenced", "silenced, equalized", "per channel"]


def test_the_books_network_is_the_committed_one(fused: nn.Module) -> None:
    images, _ = next(iter(digits.loader("validation", batch_size=4)))
    with torch.inference_mode():
        torch.testing.assert_close(fused(images), checkpoints.load_digits_float()(images), atol=1e-3, rtol=1e-3)
