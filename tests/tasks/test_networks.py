"""The book's own small networks."""

import pytest
import torch
from torch import nn

from qhelpers.tasks import digits, networks


def test_the_network_is_the_one_that_the_provenance_describes() -> None:
    model = networks.load_digit_resnet()
    assert sum(parameter.numel() for parameter in model.parameters()) == 177_178


def test_the_network_of_the_playground_is_small_and_reads_the_digits() -> None:
    raw, labels = digits.dataset("test").tensors
    model = networks.load_playground_net()
    products = {}
    for name, layer in model.named_children():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(
                lambda layer, _, out, name=name: products.update({name: out[0].numel() * layer.weight[0].numel()})
            )
    with torch.inference_mode():
        right = int((model(raw[:, None].float() / 255).argmax(1) == labels).sum())
    assert right == pytest.approx(984, abs=2), "of 1,000; the last bits depend on the machine"
    assert sum(parameter.numel() for parameter in model.parameters()) <= 30_000
    assert sum(products.values()) <= 1_000_000


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # a switch that `flags` sets, too
def test_other_ways_to_compute_the_lstm_give_the_same_logits() -> None:
    codes = torch.arange(6).view(2, 3)
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        net = networks.CharLSTM(16).eval()
        others = [networks.WithoutOneDNN(net).eval(), networks.CellLoop(net).eval()]
        for other in others:
            assert torch.allclose(other(codes)[0], net(codes)[0], atol=1e-5)
