"""Dynamic quantization of Linear layers, and its successor."""

from torch import Tensor, nn
from torch.ao import quantization as tq


def before(net: nn.Module, batches: list[Tensor]) -> nn.Module:
    """Eager mode: a copy with int8 modules; no data are needed."""
    int8: nn.Module = tq.quantize_dynamic(net.eval(), {nn.Linear})
    return int8


def after(net: nn.Module, batches: list[Tensor]) -> nn.Module:
    """torchao: the weights of this very network become int8. Compile it, frozen, to be quick."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(net.eval(), Int8DynamicActivationInt8WeightConfig())
    return net
