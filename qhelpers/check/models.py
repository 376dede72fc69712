"""The checks of a stranger's model: what cannot be used is refused with a reason, the rest is run."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from qhelpers import guards
from qhelpers.check import calls, folding, simulate
from qhelpers.check.adapter import Flat
from qhelpers.check.calls import Call, an
from qhelpers.check.errors import AlreadyQuantizedError, CannotRunError, ModelError

DETECTION, DETECTORS = "torchvision.models.detection", ("GeneralizedRCNN", "RetinaNet", "SSD", "FCOS")

COMPUTED = {  # hooks that compute a weight: who made them, and what takes them away
    WeightNorm: ("torch.nn.utils.weight_norm", "torch.nn.utils.remove_weight_norm(layer)"),
    SpectralNorm: ("torch.nn.utils.spectral_norm", "torch.nn.utils.remove_spectral_norm(layer)"),
    prune.BasePruningMethod: ("torch.nn.utils.prune", "torch.nn.utils.prune.remove(layer, 'weight')"),
}


def checked_model(model: Any) -> tuple[nn.Module, list[str]]:
    """A copy in evaluation mode, and notes for the report; the model itself is left as it is.

    Raises:
        AlreadyQuantizedError: naming the first int8 layers.
        ModelError: if it is no module, or a wrapped, compiled or scripted one; if it is not in float32 on the CPU,
            holds NaN or infinity, or cannot be copied, naming where. A mask in a buffer may be infinite, the statistics
            of a norm may not.

    >>> checked_model(nn.Linear(2, 2))[1]
    ['The model came in training mode: the checker works on a copy in evaluation mode.']
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"model must be an nn.Module; it is {an(type(model).__name__)}.")
    if cure := _wrapped(model):
        raise ModelError(f"The model is {an(type(model).__name__)}: {cure}.")
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    if lazy := [name for name, value in (parameters | buffers).items() if nn.parameter.is_lazy(value)]:
        raise ModelError(f"{lazy[0]} has no shape yet: call the model once, then load its weights.")
    int8 = guards.int8_modules(model) + [name for name, value in parameters.items() if _is_int8(value, torch.uint8)]
    int8 += [name for name, value in buffers.items() if _is_int8(value)]  # uint8 ones are images, masks, counters
    if int8:
        shown = ", ".join(int8[:3]) + (", …" if len(int8) > 3 else "")
        raise AlreadyQuantizedError(
            f"This {type(model).__name__} is quantized already ({shown}): give the float model from which it was made."
        )
    for name, value in (parameters | buffers).items():
        if value.device.type == "meta":
            raise ModelError(f"{name} is on the device meta, which holds no values: load the weights first.")
        if value.device.type != "cpu" or (name in parameters and value.dtype != torch.float32):
            given = f"{str(value.dtype).removeprefix('torch.')} on {value.device.type}"
            raise ModelError(f"{name} is {given}; load the weights, then give model.float().cpu().")
    if broken := simulate.not_finite(model):
        raise ModelError(f"The model holds NaN or infinity in {', '.join(broken[:3])}: no scale can be found for them.")
    notes = ["The model came in training mode: the checker works on a copy in evaluation mode."]
    return _copied(model), notes if any(module.training for module in model.modules()) else []


def _wrapped(model: nn.Module) -> str:
    """What to give instead of a module that only holds another one, or no longer is Python."""
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return "give model.module, on the CPU"
    if isinstance(model, torch.jit.ScriptModule):
        return "TorchScript cannot be exported; give the nn.Module from which it was made"
    if any(one.__module__.startswith(DETECTION) and one.__name__ in DETECTORS for one in type(model).__mro__):
        return (
            "it drops boxes by their values, and a graph has fixed shapes; check its backbone and head without the "
            "post-processing: a module whose forward gives head([*backbone(images).values()]), or rpn.head of them"
        )
    if hasattr(model, "_orig_mod"):
        return "it is compiled; give the model as it was before torch.compile"
    if isinstance(model, torch.fx.GraphModule) and "eval" in vars(model):  # torch.export puts a refusal there
        return "it is an exported graph; give the nn.Module from which it was made"
    return ""


def _is_int8(value: Tensor, *more: torch.dtype) -> bool:
    foreign = type(value.data) is not Tensor  # torchao's int8 tensors are of a type of their own
    return foreign or value.is_quantized or value.dtype in (torch.int8, *more)


def _copied(model: nn.Module) -> nn.Module:
    for kind, (maker, cure) in COMPUTED.items():
        hooks = {name: one._forward_pre_hooks.values() for name, one in model.named_modules()}
        old = [name or "the model itself" for name, found in hooks.items() if any(isinstance(h, kind) for h in found)]
        if old:
            raise ModelError(
                f"{', '.join(old[:3])}{', …' * (len(old) > 3)}: {maker} computes the weight before each call, and "
                f"cannot be copied. Call {cure} on each of these layers; the outputs stay the same."
            )
    try:
        return folding.plain_copy(model)
    except Exception as error:  # whatever a stranger's attributes raise
        computed = [
            f"{name}.{attribute}".removeprefix(".")
            for name, one in model.named_modules()
            for attribute, value in vars(one).items()
            if isinstance(value, Tensor) and value.grad_fn is not None
        ]
        where = f"It keeps computed tensors ({', '.join(computed[:3])}): detach() them. " if computed else ""
        raise ModelError(
            f"This {type(model).__name__} cannot be copied. {where}PyTorch says: {guards.first_line(error)}"
        ) from error


def check_run(model: nn.Module, example: Call, name: str = "example", whole: Call | None = None) -> Flat:
    """The model behind one form of call, after it has been run on the example and given finite, repeatable answers.

    Args:
        whole: the batch from which the example was cut, to tell whether cutting is what the model fails on.

    Raises:
        CannotRunError: with shapes, types and PyTorch's own first line, if the model fails; if there is no tensor among
            its outputs, one holds NaN or infinity, or a second call gives others.

    >>> check_run(nn.Linear(3, 2), Call((torch.zeros(1, 4),)))
    Traceback (most recent call last):
        ...
    qhelpers.check.errors.CannotRunError: Linear cannot run on example, float32 of shape (1, 4): RuntimeError: \
mat1 and mat2 shapes cannot be multiplied (1x4 and 3x2)
    """
    kind, given = type(model).__name__, f"{name}, {example}"
    with torch.random.fork_rng(devices=[]):  # a model that draws numbers is to draw others the second time
        try:
            flat = Flat(model, example)
            first, second = _answers(flat, example.tensors), _answers(flat, example.tensors)
        except CannotRunError:
            raise
        except Exception as error:  # whatever a stranger's model raises
            words = f"{type(error).__name__}: {guards.first_line(error)}"
            cure = ""
            if whole is not None and whole.shapes != example.shapes and _runs(model, whole):
                cure = f"; it runs on {whole}: give batch={whole.n}, for which the file is made then."
            raise CannotRunError(f"{kind} cannot run on {given}: {words.rstrip('.')}{cure}") from error
    for output, values in zip(flat.names, first, strict=False):
        if not bool(torch.isfinite(values).all()):
            raise CannotRunError(f"{kind} gives NaN or infinity in {output} for {given}.")
    if not len(flat.names) == len(first) == len(second) or not all(map(_close, first, second)):
        raise CannotRunError(
            f"{kind} gives other outputs when {name} is given a second time, so nothing can be compared: does it use "
            "F.dropout without training=self.training, draw random numbers, or keep a state between calls?"
        )
    return flat


def _runs(model: nn.Module, call: Call) -> bool:
    try:
        Flat(model, call)
    except Exception:  # whatever a stranger's model raises
        return False
    return True


def _answers(flat: Flat, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    with torch.inference_mode():
        return flat.outputs(*tensors)


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or not one.is_floating_point():
        return torch.equal(one, other)
    return bool(torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(one.abs().max()) if one.numel() else 0.0))


def notes_of_batches(flat: Flat, call: Call, name: str) -> list[str]:
    """A note if the model answers differently when a batch is cut into pieces of the example's size.

    Raises:
        CannotRunError: if the model fails on a piece.
    """
    try:
        whole = _answers(flat, call.tensors)
    except Exception:  # it takes nothing but the example's size, and gets nothing else
        return []
    if len(whole) != len(flat.names):
        return []  # it gives a tensor for each sample
    size, differ = flat.example.n, []
    parts = list(calls.pieces(call.tensors, flat.example.shapes))
    for place in {0, len(parts) - 1}:
        part, n = parts[place]
        try:
            found = _answers(flat, part)
        except Exception as error:
            words = f"{type(error).__name__}: {guards.first_line(error)}"
            raise CannotRunError(f"{type(flat.model).__name__} cannot run on a part of {name}: {words}") from error
        for output, all_of, some in zip(flat.names, whole, found, strict=True):
            if all_of.ndim and len(all_of) != call.n:
                continue  # no row for each sample, as the last state of a recurrent layer
            if all_of.ndim == 0 or not _close(all_of[place * size : place * size + n], some[:n]):
                differ.append(output)
    if not differ:
        return []
    return [
        f"{name}: {', '.join(dict.fromkeys(differ))} of {call.n} samples at once is not that of {size} at a time, "
        "which is what is measured here. If the first dimension is not the batch, or an input for all samples is as "
        f"long as the batch, give batch={call.n}, and batches of that size."
    ]
