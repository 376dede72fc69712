"""Static quantization in FX graph mode, and its successor."""

import torch
from torch import Tensor, nn
from torch.ao import quantization as tq
from torch.ao.quantization import quantize_fx


def before(net: nn.Module, batches: list[Tensor]) -> nn.Module:
    """FX: traced symbolically, configured by a mapping."""
    mapping = tq.get_default_qconfig_mapping(torch.backends.quantized.engine)
    prepared = quantize_fx.prepare_fx(net.eval(), mapping, (batches[0],))
    for batch in batches:
        prepared(batch)
    int8: nn.Module = quantize_fx.convert_fx(prepared)
    return int8


def after(net: nn.Module, batches: list[Tensor]) -> nn.Module:
    """PT2E with the quantizer for ExecuTorch's XNNPACK backend, one scale for each channel."""
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnn
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    captured = torch.export.export(net.eval(), (batches[0],)).module()
    config = xnn.get_symmetric_quantization_config(is_per_channel=True)
    prepared = prepare_pt2e(captured, xnn.XNNPACKQuantizer().set_global(config))
    for batch in batches:
        prepared(batch)
    int8: nn.Module = convert_pt2e(prepared)
    return int8
