"""Code and weights in one file, and its successor."""

import io

import torch
from torch import Tensor, nn


def before(net: nn.Module, batches: list[Tensor]) -> nn.Module:
    """TorchScript."""
    file = io.BytesIO()  # or a path
    torch.jit.save(torch.jit.trace(net.eval(), batches[0]), file)
    file.seek(0)
    loaded: nn.Module = torch.jit.load(file)
    return loaded


def after(net: nn.Module, batches: list[Tensor]) -> nn.Module:
    """torch.export, which also saves the graph that ``convert_pt2e`` returns."""
    file = io.BytesIO()  # or a path that ends in .pt2
    torch.export.save(torch.export.export(net.eval(), (batches[0],)), file)
    file.seek(0)
    return torch.export.load(file).module()
