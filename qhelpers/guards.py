"""Checks around a quantization workflow, for mistakes that PyTorch silently ignores or reports obscurely."""

import importlib.util
from collections.abc import Collection

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


class GuardError(RuntimeError):
    """A step of a workflow was given something that it would silently ignore, or fail on obscurely."""


def require_trainable(model: nn.Module) -> nn.Module:
    """Return the model if gradients can reach all its layers: none of them is int8.

    Raises:
        GuardError: naming the first. Their weights are not parameters: an optimizer trains only what is float, if any.

    >>> require_trainable(nn.Linear(2, 2))
    Linear(in_features=2, out_features=2, bias=True)
    """
    if found := int8_modules(model):
        shown = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
        raise GuardError(
            f"Layers of this {type(model).__name__} are int8 and cannot be trained ({len(found)}: {shown}): "
            f"train the prepared model, and convert a copy of it."
        )
    return model


def require_eval(model: nn.Module) -> nn.Module:
    """Return the model if it, its batch norms and its dropouts are in evaluation mode.

    Raises:
        GuardError: naming the first modules that are not. PyTorch says nothing, although batch norm
            and dropout then compute something different.

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


def require_quantized(model: nn.Module, layers: Collection[str] = ()) -> nn.Module:
    """Return the model if integers of at most 8 bits hold the weights of a module, and of all the named ``layers``.

    They may be packed, in torchao's tensors, or constants of a PT2E graph; floats of 8 or 4 bits do not count.

    Raises:
        GuardError: otherwise. PyTorch is silent when ``convert`` finds no qconfig or a quantizer no operator, torchao
            when ``quantize_`` finds no Linear layer; that a group does not divide a row is only logged.

    >>> require_quantized(nn.Linear(2, 2))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    qhelpers.guards.GuardError: No module of this Linear holds integer weights: was a qconfig set before ...
    """
    if not any(map(_has_integer_weights, model.modules())):
        raise GuardError(
            f"No module of this {type(model).__name__} holds integer weights: was a qconfig set before prepare? "
            f"Has the quantizer matched nothing? (torchao's quantize_ changes Linear layers only, without a filter_fn.)"
        )
    if left := [name for name in layers if not _has_integer_weights(model.get_submodule(name))]:
        shown = ", ".join(left[:3]) + (", …" if len(left) > 3 else "")
        raise GuardError(
            f"{len(left)} of {len(layers)} layers kept their float weights: {shown}. Does the group divide their rows?"
        )
    return model


def _has_integer_weights(module: nn.Module) -> bool:
    if isinstance(module, fx.GraphModule):  # a constant that PT2E (de)quantizes, or weights that FX packed for a call
        calls = [node.args[:2] for node in module.graph.nodes if str(node.target).startswith(("quantized", "torchao."))]
        return any(isinstance(one, fx.Node) and one.op == "get_attr" for arguments in calls for one in arguments)
    return _has_int8_weights(module) or any(map(_has_codes, module.parameters(recurse=False)))


def _has_codes(tensor: Tensor) -> bool:
    if is_traceable_wrapper_subclass(tensor):  # torchao's
        held = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
        # beside scales in floats of 8 bits, what uint8 holds are pairs of floats (MXFP4, NVFP4)
        return any(map(_has_codes, held)) and not any(one.is_floating_point() and one.itemsize == 1 for one in held)
    return tensor.dtype in (torch.int8, torch.uint8, torch.int32)  # the last holds eight codes of four bits


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
    return [name for name, module in model.named_modules() if hasattr(module, "calculate_qparams")]


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
