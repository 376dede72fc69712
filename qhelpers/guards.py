"""Checks around a quantization workflow, for mistakes that PyTorch passes over in silence or reports obscurely."""

import difflib
import os
import shutil
import sys
from collections.abc import Collection
from typing import Any

from torch import Tensor, nn
from torch.ao import quantization as tq
from torch.ao.quantization.quantization_mappings import get_default_dynamic_quant_module_mappings
from torch.nn.modules.batchnorm import _BatchNorm

from qhelpers import models


class DynamicSpecError(ValueError):
    """A part of a ``qconfig_spec`` names nothing that dynamic quantization could change."""


class MissingStubsError(RuntimeError):
    """The model does not say where its tensors become int8 and where they become float again."""


class EvalModeError(RuntimeError):
    """The model is in evaluation mode where only training mode does what is wanted."""


class CompilerMissingError(RuntimeError):
    """There is no C++ compiler, which ``torch.compile`` needs for the CPU."""


class ConvertedModelError(RuntimeError):
    """An int8 model was given where one that can be trained is needed."""


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
        DynamicSpecError: for a name that does not exist (the nearest is offered), a type that does not occur,
            or one that has no dynamic counterpart. ``quantize_dynamic`` says nothing.

    >>> check_dynamic_spec(nn.Sequential(nn.Linear(2, 2)), {"1"})
    Traceback (most recent call last):
        ...
    qhelpers.guards.DynamicSpecError: The model has no module '1'. It has: 0.
    """
    named = dict(model.named_modules())
    possible = get_default_dynamic_quant_module_mappings()
    for part in spec:
        if isinstance(part, str) and part not in named:
            near = difflib.get_close_matches(part, list(named), n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(list(named)[1:9])}."
            raise DynamicSpecError(f"The model has no module {part!r}. {hint}")
        roots = [named[part]] if isinstance(part, str) else [m for m in named.values() if type(m) is part]
        kinds = {type(module) for root in roots for module in root.modules()}  # a qconfig reaches the children
        shown = repr(part) if isinstance(part, str) else part.__name__
        if not kinds:
            raise DynamicSpecError(f"The model has no module of type {shown}.")
        if not kinds & set(possible):
            names = ", ".join(sorted({kind.__name__ for kind in possible}))
            raise DynamicSpecError(f"{shown} has no dynamic counterpart; there is one for: {names}.")
    return spec


def require_stubs(model: nn.Module) -> nn.Module:
    """Return the model if it has a QuantStub and a DeQuantStub; call it before ``prepare``.

    Raises:
        MissingStubsError: else. The int8 model would be handed float tensors and fail at its first layer,
            with a message about a missing ``CPU`` backend.

    >>> require_stubs(nn.Linear(2, 2))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    qhelpers.guards.MissingStubsError: This Linear has no QuantStub and no DeQuantStub: wrap it in ...
    """
    missing = [
        stub.__name__
        for stub in (tq.QuantStub, tq.DeQuantStub)
        if not any(isinstance(module, stub) for module in model.modules())
    ]
    if missing:
        raise MissingStubsError(
            f"This {type(model).__name__} has no {' and no '.join(missing)}: wrap it in "
            f"torch.ao.quantization.QuantWrapper, or take a quantizable architecture."
        )
    return model


def require_trainable(model: nn.Module) -> nn.Module:
    """Return the model if gradients can reach all its layers: none of them is int8.

    Raises:
        ConvertedModelError: naming the first int8 layers. Their weights are no parameters, so an optimizer
            either gets none, or trains only what was left in float, without a word.

    >>> require_trainable(nn.Linear(2, 2))
    Linear(in_features=2, out_features=2, bias=True)
    """
    if found := models.int8_modules(model):
        shown = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
        raise ConvertedModelError(
            f"{len(found)} layers of this {type(model).__name__} are int8 and cannot be trained ({shown}): "
            f"train the prepared model, and convert a copy of it."
        )
    return model


def require_training(model: nn.Module) -> nn.Module:
    """Return the model if it and its batch norms are in training mode; call it before fusing for QAT.

    Raises:
        EvalModeError: naming the first modules that are not. ``prepare_qat`` looks at the model itself only,
            and torchvision's ``fuse_model()`` folds the batch norms of a model in evaluation mode away.

    >>> require_training(nn.Linear(2, 2).eval())
    Traceback (most recent call last):
        ...
    qhelpers.guards.EvalModeError: The model is in evaluation mode ((whole model)): call .train() first.
    """
    resting = [
        name or "(whole model)"
        for name, module in model.named_modules()
        if not module.training and (module is model or isinstance(module, _BatchNorm))
    ]
    if resting:
        shown = ", ".join(resting[:3]) + (", …" if len(resting) > 3 else "")
        raise EvalModeError(f"The model is in evaluation mode ({shown}): call .train() first.")
    return model


def require_compiler() -> str:
    """The C++ compiler that ``torch.compile`` will call for a model on the CPU.

    Raises:
        CompilerMissingError: if there is none. ``torch.compile`` itself says so only when the compiled model is
            called for the first time, at the end of a long traceback.

    >>> bool(require_compiler())
    True
    """
    wanted = os.environ.get("CXX", {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++"))
    if found := shutil.which(wanted):
        return found
    raise CompilerMissingError(
        f"torch.compile needs a C++ compiler, and there is no {wanted} on the PATH: install one (apt install g++; "
        f"xcode-select --install), name another in the variable CXX, or export the model instead."
    )
