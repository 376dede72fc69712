"""Old calls and new ones: files whose two functions, ``before`` and ``after``, do the same job.

The files are linted, executed by the tests and by the chapter that shows them, and shown as they are.
"""

import inspect
from types import ModuleType

from torch import nn

from qhelpers.book.migration import dynamic, one_layer_in_float, saving, static_eager, static_fx, training

PAIRS: dict[str, ModuleType] = {
    "static, from eager mode": static_eager,
    "static, from FX": static_fx,
    "one layer in float": one_layer_in_float,
    "training": training,
    "dynamic": dynamic,
    "saving": saving,
}

# Old names, and the new ones; none where a successor is not needed or does not exist: the words say which.
CALLS: dict[str, tuple[str, ...]] = {
    "torch.ao.quantization.prepare": ("torchao.quantization.pt2e.quantize_pt2e.prepare_pt2e",),
    "torch.ao.quantization.quantize_fx.prepare_fx": ("torchao.quantization.pt2e.quantize_pt2e.prepare_pt2e",),
    "torch.ao.quantization.prepare_qat": ("torchao.quantization.pt2e.quantize_pt2e.prepare_qat_pt2e",),
    "torch.ao.quantization.quantize_fx.prepare_qat_fx": ("torchao.quantization.pt2e.quantize_pt2e.prepare_qat_pt2e",),
    "torch.ao.quantization.convert": ("torchao.quantization.pt2e.quantize_pt2e.convert_pt2e",),
    "torch.ao.quantization.quantize_fx.convert_fx": ("torchao.quantization.pt2e.quantize_pt2e.convert_pt2e",),
    "torch.ao.quantization.get_default_qconfig": (
        "torchao.quantization.pt2e.quantizer.x86_inductor_quantizer.get_default_x86_inductor_quantization_config",
        "executorch.backends.xnnpack.quantizer.xnnpack_quantizer.get_symmetric_quantization_config",
    ),
    "torch.ao.quantization.QConfigMapping": (
        "torchao.quantization.pt2e.quantizer.x86_inductor_quantizer.X86InductorQuantizer",
        "executorch.backends.xnnpack.quantizer.xnnpack_quantizer.XNNPACKQuantizer",
    ),
    "torch.ao.quantization.disable_observer": ("torchao.quantization.pt2e.disable_observer",),
    "torch.nn.Module.eval": ("torchao.quantization.pt2e.move_exported_model_to_eval",),
    "torch.nn.Module.train": ("torchao.quantization.pt2e.move_exported_model_to_train",),
    "torch.ao.quantization.MinMaxObserver": ("torchao.quantization.pt2e.MinMaxObserver",),
    "torch.ao.quantization.quantize_dynamic": (
        "torchao.quantization.quantize_",
        "torchao.quantization.Int8DynamicActivationInt8WeightConfig",
    ),
    "torch.ao.ns._numeric_suite_fx": ("torchao.quantization.pt2e.prepare_for_propagation_comparison",),
    "torch.jit.trace": ("torch.export.export",),
    "torch.jit.save": ("torch.export.save",),
    "torch.utils.mobile_optimizer.optimize_for_mobile": ("executorch.exir.to_edge_transform_and_lower",),
}
WITHOUT: dict[str, str] = {
    "torch.ao.quantization.fuse_modules": "not needed: prepare_pt2e fuses",
    "torch.ao.quantization.QuantStub": "not needed: a captured graph has no stubs",
    "torch.ao.nn.quantized.FloatFunctional": "not needed: a captured graph has every addition",
    "torch.backends.quantized.engine": "not needed: quantizer and lowering choose the backend",
    "torch.quantize_per_tensor": "none: plain integers and explicit scales",
    "torch.ao.nn.quantized.dynamic.LSTM": "none: quantize_ leaves an LSTM in float, without a word",
}


def network(module: ModuleType) -> nn.Sequential:
    """A small network in evaluation for a module of :data:`PAIRS`; it takes images ``(n, 3, 6, 6)``.

    The pair that trains gets one without a norm: to fold those, ``convert_pt2e`` tries many patterns after training,
    which takes longer than all the rest.

    >>> [type(layer).__name__ for layer in network(training)]
    ['Conv2d', 'ReLU', 'Flatten', 'Linear']
    """
    norms = [] if module is training else [nn.BatchNorm2d(4)]
    return nn.Sequential(nn.Conv2d(3, 4, 3), *norms, nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).eval()


def shown(module: ModuleType) -> tuple[str, str]:
    """The code of ``before`` and ``after`` as it stands in a file of :data:`PAIRS`.

    >>> shown(dynamic)[0].splitlines()[0]
    'def before(net: nn.Module, batches: list[Tensor]) -> nn.Module:'
    """
    old, new = (inspect.getsource(getattr(module, name)).strip() for name in ("before", "after"))
    return old, new
