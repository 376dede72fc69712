"""One layer, here the one called ``4``, stays in float."""

import torch
from torch import Tensor, nn
from torch.ao import quantization as tq
from torch.ao.quantization import quantize_fx


def before(net: nn.Module, batches: list[Tensor]) -> nn.Module:
    """FX: its entry of the mapping is None."""
    mapping = tq.get_default_qconfig_mapping(torch.backends.quantized.engine)
    mapping.set_module_name("4", None)
    prepared = quantize_fx.prepare_fx(net.eval(), mapping, (batches[0],))
    for batch in batches:
        prepared(batch)
    int8: nn.Module = quantize_fx.convert_fx(prepared)
    return int8


def after(net: nn.Module, batches: list[Tensor]) -> nn.Module:
    """PT2E: the quantizer gets a filter (XNNPACK's refuses ``set_module_name("4", None)``)."""
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnn
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import get_module_name_filter

    inside = get_module_name_filter("4")
    config = xnn.get_symmetric_quantization_config(is_per_channel=True)
    quantizer = xnn.XNNPACKQuantizer().set_global(config)
    quantizer.set_filter_function(lambda node: not inside(node))
    captured = torch.export.export(net.eval(), (batches[0],)).module()
    prepared = prepare_pt2e(captured, quantizer)
    for batch in batches:
        prepared(batch)
    int8: nn.Module = convert_pt2e(prepared)
    return int8
