"""Checks around a quantization workflow, for mistakes that PyTorch passes over in silence or reports obscurely."""

import difflib
import importlib.util
import os
import shutil
import sys
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao import quantization as tq
from torch.ao.quantization import FakeQuantizeBase, ObserverBase
from torch.ao.quantization.quantization_mappings import get_default_dynamic_quant_module_mappings
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd


class GuardError(RuntimeError):
    """A step of a workflow was handed something that it would pass over in silence, or fail on obscurely."""


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
        GuardError: for a name that does not exist (the nearest is offered), a type that does not occur,
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
            raise GuardError(f"The model has no module {part!r}. {hint}")
        roots = [named[part]] if isinstance(part, str) else [m for m in named.values() if type(m) is part]
        kinds = {type(module) for root in roots for module in root.modules()}  # a qconfig reaches the children
        shown = repr(part) if isinstance(part, str) else part.__name__
        if not kinds:
            raise GuardError(f"The model has no module of type {shown}.")
        if not kinds & set(possible):
            names = ", ".join(sorted({kind.__name__ for kind in possible}))
            raise GuardError(f"{shown} has no dynamic counterpart; there is one for: {names}.")
    return spec


def require_stubs(model: nn.Module) -> nn.Module:
    """Return the model if it has a QuantStub and a DeQuantStub; call it before ``prepare``.

    Raises:
        GuardError: else. The int8 model would be handed float tensors and fail at its first layer,
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
        raise GuardError(
            f"This {type(model).__name__} has no {' and no '.join(missing)}: wrap it in "
            f"torch.ao.quantization.QuantWrapper, or take a quantizable architecture."
        )
    return model


def require_trainable(model: nn.Module) -> nn.Module:
    """Return the model if gradients can reach all its layers: none of them is int8.

    Raises:
        GuardError: naming the first int8 layers. Their weights are no parameters, so an optimizer
            either gets none, or trains only what was left in float, without a word.

    >>> require_trainable(nn.Linear(2, 2))
    Linear(in_features=2, out_features=2, bias=True)
    """
    if found := int8_modules(model):
        shown = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
        raise GuardError(
            f"{len(found)} layers of this {type(model).__name__} are int8 and cannot be trained ({shown}): "
            f"train the prepared model, and convert a copy of it."
        )
    return model


def require_training(model: nn.Module) -> nn.Module:
    """Return the model if it and its batch norms are in training mode; call it before fusing for QAT.

    Raises:
        GuardError: naming the first modules that are not. ``prepare_qat`` looks at the model itself only,
            and torchvision's ``fuse_model()`` folds the batch norms of a model in evaluation mode away.

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
        shown = ", ".join(resting[:3]) + (", …" if len(resting) > 3 else "")
        raise GuardError(f"The model is in evaluation mode ({shown}): call .train() first.")
    return model


def require_compiler() -> str:
    """The C++ compiler that ``torch.compile`` will call for a model on the CPU.

    Raises:
        GuardError: if there is none. ``torch.compile`` itself says so only when the compiled model is
            called for the first time, at the end of a long traceback.

    >>> bool(require_compiler())
    True
    """
    wanted = os.environ.get("CXX", {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++"))
    if found := shutil.which(wanted):
        return found
    raise GuardError(
        f"torch.compile needs a C++ compiler, and there is no {wanted} on the PATH: install one (apt install g++; "
        f"xcode-select --install), name another in the variable CXX, or export the model instead."
    )


def require_eval(model: nn.Module) -> nn.Module:
    """Return the model if it, its batch norms and its dropouts are in evaluation mode.

    Raises:
        GuardError: naming the first modules that are not. PyTorch says nothing, although batch norm
            and dropout then compute something else.

    >>> require_eval(nn.Sequential(nn.Dropout()))
    Traceback (most recent call last):
        ...
    qhelpers.guards.GuardError: The model is in training mode ((whole model), 0): call .eval() first.
    """
    training = [
        name or "(whole model)"
        for name, module in model.named_modules()
        if module.training
        and (module is model or isinstance(module, (_BatchNorm, _DropoutNd)))
        # convert makes dropouts that never drop and norms with fixed statistics, and leaves their flag on
        and not type(module).__module__.startswith("torch.ao.nn.quantized")
    ]
    if training:
        shown = ", ".join(training[:3]) + (", …" if len(training) > 3 else "")
        raise GuardError(f"The model is in training mode ({shown}): call .eval() first.")
    return model


def int8_modules(model: nn.Module) -> list[str]:
    """Names of the submodules whose weights are 8-bit: convolutions, linear, embedding and recurrent layers.

    >>> int8_modules(nn.Sequential(nn.Linear(2, 2)))
    []
    """
    return [name for name, module in model.named_modules() if _has_int8_weights(module)]


def _has_int8_weights(module: nn.Module) -> bool:
    if not type(module).__module__.startswith("torch.ao.nn"):
        return False
    if callable(getattr(module, "weight", None)):
        unpacked = [module.weight()]  # type: ignore[operator]
    elif hasattr(module, "get_weight"):  # recurrent layers have several
        unpacked = list(module.get_weight().values())  # type: ignore[operator]
    else:
        return False
    return all(weight.dtype in (torch.qint8, torch.quint8) for weight in unpacked)  # float16 is unpacked as float


def require_quantized(model: nn.Module) -> nn.Module:
    """Return the model if it has at least one module with packed int8 weights.

    Raises:
        GuardError: else. PyTorch says nothing when ``convert`` finds no qconfig and leaves every
            module in float.

    >>> require_quantized(nn.Linear(2, 2))
    Traceback (most recent call last):
        ...
    qhelpers.guards.GuardError: No module of this Linear holds int8 weights: was a qconfig set before prepare?
    """
    if not int8_modules(model):
        raise GuardError(
            f"No module of this {type(model).__name__} holds int8 weights: was a qconfig set before prepare?"
        )
    return model


def first_line(error: Exception) -> str:
    """The first two lines of an error's message in one, or its type where it says nothing.

    >>> first_line(ValueError("one\\n  two\\nthree"))
    'one two'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__


def observers(model: nn.Module) -> list[str]:
    """Names of the modules that record ranges (observers and fake quantizers).

    >>> observers(nn.Sequential(nn.ReLU()))
    []
    """
    return [name for name, module in model.named_modules() if isinstance(module, (ObserverBase, FakeQuantizeBase))]


def require_calibrated(model: nn.Module) -> nn.Module:
    """Return the prepared model if the observers behind its layers with weights have seen data.

    Observers of modules without weights may be empty: torchvision's networks leave some additions unused.

    Raises:
        GuardError: if the model was not prepared, since PyTorch's ``convert`` would leave it in float; or naming the
            first layers, since ``convert`` would only warn, and give them the scale 1.

    >>> require_calibrated(nn.Linear(2, 2))
    Traceback (most recent call last):
        ...
    qhelpers.guards.GuardError: The model has no observers: set a qconfig and call prepare before converting.
    """
    if not observers(model):
        raise GuardError("The model has no observers: set a qconfig and call prepare before converting.")
    empty: dict[str, None] = {}
    for name in observers(model):
        owner = name.rpartition(".")[0]
        if any(True for _ in model.get_submodule(owner).parameters()) and _saw_nothing(model.get_submodule(name)):
            empty[owner] = None  # once, though a fake-quantized layer has two
    if empty:
        shown = ", ".join([*empty][:3]) + (", …" if len(empty) > 3 else "")
        raise GuardError(
            f"{len(empty)} layers with weights have not been calibrated ({shown}): run calibrate first; if some "
            f"layers stay empty, the calibration data miss a branch of the model."
        )
    return model


def _saw_nothing(observer: nn.Module) -> bool:
    if isinstance(observer, FakeQuantizeBase):
        return _saw_nothing(observer.activation_post_process)  # type: ignore[arg-type]
    low = getattr(observer, "min_val", None)
    return isinstance(low, Tensor) and not bool(torch.isfinite(low).any())


def require_packages(extra: str, *names: str) -> None:
    """Return if all the packages can be imported; call it where an extra of this package is needed.

    Raises:
        GuardError: naming those that are not installed, and the extra that brings them.

    >>> require_packages("book", "no_such_package")
    Traceback (most recent call last):
        ...
    qhelpers.guards.GuardError: no_such_package is not installed. It comes with an extra: install qhelpers[book].
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        verbs = ("is", "It comes") if len(missing) == 1 else ("are", "They come")
        raise GuardError(
            f"{', '.join(missing)} {verbs[0]} not installed. {verbs[1]} with an extra: install qhelpers[{extra}]."
        )
