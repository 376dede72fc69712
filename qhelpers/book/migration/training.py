"""Quantization-aware training in eager mode, and its successor. The network begins with a convolution and a ReLU."""

import torch
from torch import Tensor, nn
from torch.ao import quantization as tq


def before(net: nn.Module, batches: list[Tensor]) -> nn.Module:
    """Eager mode: fake quantizers sit in modules, and observers are switched off by a call."""
    wrapped = tq.QuantWrapper(tq.fuse_modules_qat(net.train(), [["0", "1"]]))
    wrapped.qconfig = tq.get_default_qat_qconfig(torch.backends.quantized.engine)
    prepared = tq.prepare_qat(wrapped)
    for batch in batches:
        prepared(batch)  # the training loop
    prepared.apply(tq.disable_observer)
    int8: nn.Module = tq.convert(prepared.eval())
    return int8


def after(net: nn.Module, batches: list[Tensor]) -> nn.Module:
    """PT2E: a captured graph has no ``train()`` and ``eval()``; functions move it."""
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnn
    from torchao.quantization import pt2e
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e

    captured = torch.export.export(net.train(), (batches[0],)).module()
    config = xnn.get_symmetric_quantization_config(is_per_channel=True, is_qat=True)
    prepared = prepare_qat_pt2e(captured, xnn.XNNPACKQuantizer().set_global(config))
    pt2e.move_exported_model_to_train(prepared)
    for batch in batches:
        prepared(batch)  # the training loop
    prepared.apply(pt2e.disable_observer)
    int8: nn.Module = convert_pt2e(pt2e.move_exported_model_to_eval(prepared))
    return int8
