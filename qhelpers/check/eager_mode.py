"""Guards of eager mode and FX, for mistakes that PyTorch silently ignores or reports obscurely."""

import difflib
import warnings
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao import quantization as tq
from torch.ao.nn.quantizable import MultiheadAttention as QuantizableAttention
from torch.ao.quantization import FakeQuantizeBase
from torch.ao.quantization.quantization_mappings import get_default_dynamic_quant_module_mappings
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from qhelpers import engines, guards


def float_layers(model: nn.Module) -> dict[str, int]:
    """The layers that still hold weights in float, and how many weights each.

    Biases and normalization vectors do not count: they stay in float in every workflow.

    Returns:
        Name of the module to the number of its own float parameters with two or more dimensions.

    >>> float_layers(tq.quantize_dynamic(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(2, 2))))
    {'0': 12}
    """
    found = {}
    for name, module in model.named_modules():
        own = (p for p in module.parameters(recurse=False) if p.ndim >= 2 and type(p.data) is Tensor)
        if weights := sum(p.numel() for p in own if p.is_floating_point()):
            found[name] = weights
    return found


def check_dynamic_spec(model: nn.Module, spec: Collection[Any]) -> Collection[Any]:
    """Return ``qconfig_spec`` if each of its names and types will be quantized dynamically.

    Args:
        model: the float model.
        spec: module names and types, as a set or as the keys of a dict of qconfigs.

    Raises:
        guards.GuardError: for a name that does not exist (the nearest is offered), a type that does not occur,
            or one that has no dynamic counterpart. ``quantize_dynamic`` says nothing.

    >>> check_dynamic_spec(nn.Sequential(nn.Linear(2, 2)), {"1"})
    Traceback (most recent call last):
        ...
    qhelpers.guards.GuardError: The model has no module '1'. It has: 0.
    """
    named = dict(model.named_modules())
    possible = get_default_dynamic_quant_module_mappings()
    for part in spec:
        if isinstance(part, str) and part not in named:
            near = difflib.get_close_matches(part, list(named), n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(list(named)[1:9])}."
            raise guards.GuardError(f"The model has no module {part!r}. {hint}")
        roots = [named[part]] if isinstance(part, str) else [m for m in named.values() if type(m) is part]
        kinds = {type(module) for root in roots for module in root.modules()}  # a qconfig reaches the children
        shown = repr(part) if isinstance(part, str) else part.__name__
        if not kinds:
            raise guards.GuardError(f"The model has no module of type {shown}.")
        if not kinds & set(possible):
            names = ", ".join(sorted({kind.__name__ for kind in possible}))
            raise guards.GuardError(f"{shown} has no dynamic counterpart; there is one for: {names}.")
    return spec


def require_stubs(model: nn.Module) -> nn.Module:
    """Return the model if it has a QuantStub and a DeQuantStub; call it before ``prepare``.

    Raises:
        guards.GuardError: otherwise. The int8 model would be given float tensors and fail at its first layer,
            with a message about a missing ``CPU`` backend.

    >>> require_stubs(nn.Linear(2, 2))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    qhelpers.guards.GuardError: This Linear has no QuantStub and no DeQuantStub: wrap it in ...
    """
    missing = [
        stub.__name__
        for stub in (tq.QuantStub, tq.DeQuantStub)
        if not any(isinstance(module, stub) for module in model.modules())
    ]
    if missing:
        raise guards.GuardError(
            f"This {type(model).__name__} has no {' and no '.join(missing)}: wrap it in "
            f"torch.ao.quantization.QuantWrapper, or take a quantizable architecture."
        )
    return model


def require_attention_excluded(model: nn.Module) -> nn.Module:
    """Return the model if no output projection of ``nn.MultiheadAttention`` has a qconfig; for before ``prepare_qat``.

    Raises:
        guards.GuardError: naming the first. ``prepare_qat`` fails at its output projection, with an assertion that
            names neither the layer nor attention (pytorch issue 118165).

    >>> model = nn.TransformerEncoderLayer(8, 2)
    >>> model.qconfig = tq.default_qat_qconfig
    >>> require_attention_excluded(model)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    qhelpers.guards.GuardError: prepare_qat cannot train attention in int8 (self_attn): write it with nn.Linear ...
    """
    configured = (name for name, config in _qconfigs(model) if config)
    projections = [name for name in configured if type(model.get_submodule(name)) is NonDynamicallyQuantizableLinear]
    if found := [name.rpartition(".")[0] or "the whole model" for name in projections]:
        raise guards.GuardError(
            f"prepare_qat cannot train attention in int8 ({_first(found)}): write it with nn.Linear layers, or set the "
            f"qconfig of each nn.MultiheadAttention to None, which leaves it in float."
        )
    return model


def _qconfigs(module: nn.Module, name: str = "", inherited: Any = None) -> Iterator[tuple[str, Any]]:
    """The qconfig that each module would get: its own, or that of the module that it is part of."""
    config = getattr(module, "qconfig", inherited)
    yield name, config
    for part, child in module.named_children():
        yield from _qconfigs(child, f"{name}.{part}".lstrip("."), config)


def require_int8_attention(model: nn.Module) -> nn.Module:
    """Return the model if none of its attention is float, or computes something wrong; call it after ``convert``.

    Raises:
        guards.GuardError: for an ``nn.MultiheadAttention`` with float weights. FX, ``quantize_dynamic`` and torchao's
            ``quantize_`` and ``QATConfig`` leave at least its input projections in float. Or for one that ``prepare``
            has taken apart with ``batch_first=True``: it mixes up heads and tokens (pytorch issue 67651). Or for one
            that was prepared and never converted. PyTorch is silent in each case. Attention of other classes, or
            scripted, is not checked.

    >>> require_int8_attention(tq.quantize_dynamic(nn.MultiheadAttention(8, 2)))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    qhelpers.guards.GuardError: Attention was left in float ((whole model)): write it with nn.Linear layers, ...
    """
    modules = [(name or "(whole model)", module) for name, module in model.named_modules()]
    if left := [name for name, module in modules if _is_float_attention(module)]:
        raise guards.GuardError(
            f"Attention was left in float ({_first(left)}): write it with nn.Linear layers, which every workflow "
            f"quantizes, or export the model and use XNNPACKQuantizer, which finds the projections in the graph."
        )
    if wrong := [name for name, module in modules if isinstance(module, QuantizableAttention) and module.batch_first]:
        raise guards.GuardError(
            f"Prepared attention with batch_first=True computes something else ({_first(wrong)}): make it with "
            f"batch_first=False, and transpose its inputs and its output."
        )
    if prepared := [name for name, module in modules if type(module) is QuantizableAttention]:
        raise guards.GuardError(f"Attention was prepared and still computes in float ({_first(prepared)}): convert it.")
    return model


def _is_float_attention(module: nn.Module) -> bool:
    """An ``nn.MultiheadAttention``, or one derived from it, but not the one that eager mode's ``prepare`` makes."""
    if not isinstance(module, nn.MultiheadAttention) or isinstance(module, QuantizableAttention):
        return False
    return any(type(one.data) is Tensor for name, one in module.named_parameters() if name.endswith("proj_weight"))


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def require_training(model: nn.Module) -> nn.Module:
    """Return the model if it and its batch norms are in training mode; call it before fusing for QAT.

    Raises:
        guards.GuardError: naming the first modules that are not. ``prepare_qat`` looks only at the model itself,
            and torchvision's ``fuse_model()`` folds away the batch norms of a model in evaluation mode.

    >>> require_training(nn.Linear(2, 2).eval())
    Traceback (most recent call last):
        ...
    qhelpers.guards.GuardError: The model is in evaluation mode ((whole model)): call .train() first.
    """
    resting = [
        name or "(whole model)"
        for name, module in model.named_modules()
        if not module.training and (module is model or isinstance(module, _BatchNorm))
    ]
    if resting:
        raise guards.GuardError(f"The model is in evaluation mode ({_first(resting)}): call .train() first.")
    return model


def require_calibrated(model: nn.Module) -> nn.Module:
    """Return the prepared model if the observers after its layers with weights have seen data.

    Observers of modules without weights may be empty: torchvision's networks leave some additions unused.

    Raises:
        guards.GuardError: if the model was not prepared, since ``convert`` would leave it in float; or naming the
            first layers, since ``convert`` would only warn, and give them the scale 1.

    >>> require_calibrated(nn.Linear(2, 2))
    Traceback (most recent call last):
        ...
    qhelpers.guards.GuardError: The model has no observers: set a qconfig and call prepare before converting.
    """
    if not guards.observers(model):
        raise guards.GuardError("The model has no observers: set a qconfig and call prepare before converting.")
    empty: dict[str, None] = {}
    for name in guards.observers(model):
        owner = name.rpartition(".")[0]
        if any(True for _ in model.get_submodule(owner).parameters()) and _saw_nothing(model.get_submodule(name)):
            empty[owner] = None  # once, though a fake-quantized layer has two
    if empty:
        raise guards.GuardError(
            f"Some layers with weights have not been calibrated ({_first([*empty])}): run calibrate first; if "
            f"some layers stay empty, the calibration data miss a branch of the model."
        )
    return model


def _saw_nothing(observer: nn.Module) -> bool:
    if isinstance(observer, FakeQuantizeBase):
        return _saw_nothing(observer.activation_post_process)  # type: ignore[arg-type]
    low = getattr(observer, "min_val", None)
    return isinstance(low, Tensor) and not bool(torch.isfinite(low).any())


def require_matching_engine(model: nn.Module) -> nn.Module:
    """Return the model if its qconfigs suit the engine that is set; call it before ``convert``.

    The default qconfigs differ in one thing that an engine depends on: those of ``x86`` and ``fbgemm`` leave
    one bit of the activations unused (``reduce_range``), because their kernels may add products in 16 bits;
    those of ``qnnpack`` and ``onednn`` do not.

    Raises:
        engines.EngineError: if a static qconfig was made for others. PyTorch says nothing.

    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> model.qconfig = torch.ao.quantization.get_default_qconfig("x86")
    >>> with engines.using_engine("qnnpack"):
    ...     require_matching_engine(model)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    qhelpers.engines.EngineError: The qconfig suits x86 or fbgemm (reduce_range=True), but ...
    """
    engine = torch.backends.quantized.engine
    for module in model.modules():
        wanted = _reduces_range(getattr(module, "qconfig", None))
        if wanted is not None and wanted != engines.REDUCES_RANGE.get(engine, wanted):
            suits = " or ".join(name for name, value in engines.REDUCES_RANGE.items() if value == wanted)
            raise engines.EngineError(
                f"The qconfig suits {suits} (reduce_range={wanted}), but the engine is {engine}: "
                f"set the engine, or take get_default_qconfig({engine!r})."
            )
    return model


def _reduces_range(config: Any) -> bool | None:
    make = getattr(config, "activation", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about the very argument that is read here
        observer = make() if make else None
    observer = getattr(observer, "activation_post_process", observer)  # the one inside fake quantization
    found: bool | None = getattr(observer, "reduce_range", None)
    return found
