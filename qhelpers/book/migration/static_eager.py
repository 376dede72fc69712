"""Static quantization in eager mode, and its successor. The network begins with a convolution, a norm and a ReLU."""

import torch
from torch import Tensor, nn
from torch.ao import quantization as tq


def before(net: nn.Module, batches: list[Tensor]) -> nn.Module:
    """Eager mode: stubs, fusing and a qconfig are yours to give."""
    fused = tq.fuse_modules(net.eval(), [["0", "1", "2"]])
    wrapped = tq.QuantWrapper(fused)
    wrapped.qconfig = tq.get_default_qconfig(torch.backends.quantized.engine)
    prepared = tq.prepare(wrapped)
    for batch in batches:
        prepared(batch)
    int8: nn.Module = tq.convert(prepared)
    return int8


def after(net: nn.Module, batches: list[Tensor]) -> nn.Module:
    """PT2E: the backend's quantizer says what becomes int8. Compile or lower the graph."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    captured = torch.export.export(net.eval(), (batches[0],)).module()
    config = x86.get_default_x86_inductor_quantization_config()
    prepared = prepare_pt2e(captured, x86.X86InductorQuantizer().set_global(config))
    for batch in batches:
        prepared(batch)
    int8: nn.Module = convert_pt2e(prepared)
    return int8
