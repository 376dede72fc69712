"""Simulated quantization of a whole eager model: its weights and activations fake-quantized in place, then restored.

For any eager model whose batch norms are folded (fused). Weights are those of ``Conv1d`` to ``Conv3d`` and ``Linear``;
other layers pass through untouched and are named in :attr:`Layers.unknown`. Weights are quantized symmetrically,
activations affinely, both over their whole range.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd

from qhelpers import calibration, guards

Ranges = dict[str, tuple[float, float]]
_FORWARDS = {nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward, nn.Linear.forward}
INPUT = "input"  # the name under which ranges are kept for the model's own input


class DiagnosisError(ValueError):
    """The tools cannot work with this model."""


class NoLayersError(DiagnosisError):
    """The model has no convolution and no Linear."""


class NotFiniteError(DiagnosisError):
    """The model, or what it computes, is NaN or infinite."""


class UnfusedError(DiagnosisError):
    """A batch norm behind a layer has not been folded into it."""


@dataclass(frozen=True)
class Scheme:
    """How many bits, and whether each output channel's weights have a scale of their own; None stays in float."""

    weight_bits: int | None = 8
    activation_bits: int | None = 8
    per_channel: bool = False


@dataclass(frozen=True)
class Layers:
    """What the tools see of a model: layers by name, and the other layers that hold parameters, with their type."""

    known: dict[str, nn.Module]
    unknown: dict[str, str]


# --- layers and ranges ---------------------------------------------------------------------------------


def find_layers(model: nn.Module) -> Layers:
    """The layers that the tools quantize; a fused container counts as one layer, under its own name.

    A layer whose ``forward`` is not the usual one, or whose weight is computed (weight norm, pruning), is unknown.

    Raises:
        NoLayersError: if there is none.
        NotFiniteError: naming the parameters and norms' statistics that hold NaN or infinity.
        UnfusedError: naming the containers that still hold a batch norm, as those fused for training do.

    >>> find_layers(nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 2)))
    Layers(known={'0': Linear(in_features=2, out_features=2, bias=True)}, unknown={'1': 'LSTM'})
    """
    known: dict[str, nn.Module] = {}
    unknown = {}
    for name, module in model.named_modules():
        fused = any(base.__name__ == "_FusedModule" for base in type(module).__mro__)  # of torch.ao.nn.intrinsic
        inner = module[0] if fused else module
        if name.rpartition(".")[0] in known and name:
            continue  # a part of a fused layer
        if inner is not module and any(isinstance(part, _BatchNorm) for part in module.modules()):
            raise UnfusedError(f"{name} is fused for training and keeps its batch norm: fuse in evaluation mode.")
        if type(inner).forward in _FORWARDS and "weight" in inner._parameters:
            known[name] = inner
        elif any(True for _ in module.parameters(recurse=False)):
            unknown[name] = type(module).__name__
    if not known:
        what = "is quantized already" if guards.int8_modules(model) else "has no convolution and no Linear"
        raise NoLayersError(f"This {type(model).__name__} {what}: there is nothing to look at.")
    if broken := not_finite(model):
        raise NotFiniteError(f"NaN or infinity in {', '.join(broken[:3])}: no scale can be found for them.")
    return Layers(known, unknown)


def not_finite(model: nn.Module) -> list[str]:
    """Names of the parameters and norms' statistics that hold NaN or infinity; a mask in a buffer may.

    >>> not_finite(nn.BatchNorm1d(2))
    []
    """
    norms = tuple(f"{name}." if name else "" for name, one in model.named_modules() if isinstance(one, _NormBase))
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    tensors |= {name: value for name, value in model.named_buffers() if name.startswith(norms)}
    return [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]


def channel_ranges(layer: nn.Module) -> Tensor:
    """Largest absolute weight of each output channel, of shape ``(channels,)``; zero for a dead channel.

    >>> channel_ranges(nn.Linear(2, 3)).shape
    torch.Size([3])
    """
    weight: Any = layer.weight
    return weight.detach().flatten(1).abs().amax(1)  # type: ignore[no-any-return]


def quantize_weight(weight: Tensor, bits: int | None, per_channel: bool = False) -> Tensor:
    """Fake-quantized weights of the same shape: symmetric, scale = max |w| / (2^(bits-1) - 1/2).

    Source: Nagel et al. 2021, section 2; the scale is that of PyTorch's observers.

    >>> quantize_weight(torch.tensor([[1.0, 0.1]]), 2)
    tensor([[0.6667, 0.0000]])
    """
    if bits is None:
        return weight
    peak = weight.abs().flatten(1).amax(1) if per_channel else weight.abs().max()
    scale = (peak / (2 ** (bits - 1) - 0.5)).clamp(min=torch.finfo(torch.float32).eps)
    if per_channel:
        scale = scale.view(-1, *[1] * (weight.ndim - 1))
    codes = (weight / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return codes * scale  # type: ignore[no-any-return]


def quantize_activation(values: Tensor, bits: int, low: float, high: float) -> Tensor:
    """Fake-quantized activations of the same shape: affine, over ``low`` to ``high`` stretched to hold zero.

    Source: Jacob et al. 2018, section 3.

    >>> quantize_activation(torch.tensor([-1.0, 0.0, 0.4, 9.0]), 2, 0.0, 3.0)
    tensor([0., 0., 0., 3.])
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / (2**bits - 1), torch.finfo(torch.float32).eps)
    zero_point = round(-low / scale)
    codes = ((values / scale).round() + zero_point).clamp(0, 2**bits - 1)
    return (codes - zero_point) * scale  # type: ignore[no-any-return]


def activation_ranges(model: nn.Module, loader: Iterable[Any]) -> Ranges:
    """Smallest and largest value of the model's input and of each layer's output, over a loader.

    Sums that go through a ``FloatFunctional`` count; those of a plain ``+`` cannot be seen from outside.

    Raises:
        CalibrationError: as :func:`qhelpers.calibration.calibrate`.
        GuardError: if the model is in training mode.
        NotFiniteError: naming the first activation that is not finite.

    >>> sorted(activation_ranges(nn.Sequential(nn.Linear(2, 2)).eval(), [torch.ones(1, 2)]))
    ['0', 'input']
    """
    found: Ranges = {}

    def see(name: str, values: Tensor) -> None:
        low, high = float(values.min()), float(values.max())
        if not math.isfinite(low + high):
            raise NotFiniteError(f"On these inputs the values of {name} are NaN or infinite.")
        before = found.get(name, (low, high))
        found[name] = min(before[0], low), max(before[1], high)

    with _at_activations(model, find_layers(model).known, see):
        outputs(model, input_batches(loader))
    return found


# --- simulation ----------------------------------------------------------------------------------------


@contextmanager
def simulated(
    model: nn.Module,
    ranges: Ranges,
    scheme: Scheme,
    weights: Collection[str] | None = None,
    activations: Collection[str] | None = None,
) -> Iterator[nn.Module]:
    """Fake-quantize a model's weights and activations inside a ``with`` block, and restore them afterwards.

    Args:
        ranges: from :func:`activation_ranges`.
        weights, activations: names of the layers (and ``"input"``) to quantize; all if None.

    Raises:
        DiagnosisError: for a name that the model does not have.

    >>> net = nn.Sequential(nn.Linear(1, 1)).eval()
    >>> with simulated(net, {}, Scheme(8, None)):
    ...     _ = net(torch.ones(1, 1))
    """
    layers = find_layers(model).known
    strangers = {*(weights or ()), *(activations or ())} - {*layers, *ranges, INPUT}
    if strangers:
        raise DiagnosisError(f"The model has no layer {sorted(strangers)[0]!r}; it has: {', '.join([*layers][:8])}.")
    chosen = [layer for name, layer in layers.items() if weights is None or name in weights]
    kept = [(layer, layer.weight.data) for layer in chosen]

    def act(name: str, values: Tensor) -> Tensor | None:
        bits = scheme.activation_bits
        wanted = name in ranges and (activations is None or name in activations)
        return quantize_activation(values, bits, *ranges[name]) if bits is not None and wanted else None

    try:
        for layer, weight in kept:
            layer.weight.data = quantize_weight(weight, scheme.weight_bits, scheme.per_channel)  # type: ignore[arg-type]
        with _at_activations(model, layers, act):
            yield model
    finally:
        for layer, weight in kept:
            layer.weight.data = weight


@contextmanager
def _at_activations(
    model: nn.Module, layers: Collection[str], act: Callable[[str, Tensor], Tensor | None]
) -> Iterator[None]:
    def hook(name: str) -> Callable[..., Any]:
        return lambda module, inputs, output: act(name, output)

    def on_input(module: nn.Module, inputs: tuple[Any, ...]) -> Any:
        changed = act(INPUT, inputs[0]) if inputs[0].is_floating_point() else None
        return None if changed is None else (changed, *inputs[1:])

    sums = [name for name, _ in model.named_modules() if name.endswith("activation_post_process")]
    with ExitStack() as hooks:
        hooks.enter_context(model.register_forward_pre_hook(on_input))
        for name in [*layers, *sums]:
            hooks.enter_context(model.get_submodule(name).register_forward_hook(hook(name)))
        yield


def input_batches(loader: Iterable[Any]) -> list[Tensor]:
    """The inputs of a loader that yields tensors, or tuples whose first part is one.

    Raises:
        CalibrationError: as :func:`qhelpers.calibration.calibrate`.

    >>> len(input_batches([(torch.ones(2, 3), torch.ones(2))]))
    1
    """
    found = [images for images in map(calibration.batch_images, loader) if len(images)]
    if not found:
        raise calibration.CalibrationError("The loader yielded no sample: there is nothing to measure.")
    return found


def outputs(model: nn.Module, batches: list[Tensor]) -> Tensor:
    """A model's outputs on all batches, joined; of a tuple the first part.

    Raises:
        GuardError: if the model is in training mode.
        DiagnosisError: if an output is neither a tensor nor a tuple that begins with one.

    >>> outputs(nn.Identity().eval(), [torch.ones(2, 3), torch.ones(1, 3)]).shape
    torch.Size([3, 3])
    """
    guards.require_eval(model)
    with torch.inference_mode():
        found = [model(images) for images in batches]
    parts = [one[0] if isinstance(one, tuple) else one for one in found]
    if not isinstance(parts[0], Tensor):
        kind = type(parts[0]).__name__
        raise DiagnosisError(f"The model must return a tensor, or a tuple that begins with one; it returned a {kind}.")
    return torch.cat(parts)


def rounding_error(layer: nn.Module, scheme: Scheme) -> Tensor:
    """Rounded weights minus weights, of the weight's shape.

    >>> float(rounding_error(nn.Linear(2, 2), Scheme(weight_bits=None)).abs().max())
    0.0
    """
    weight: Any = layer.weight
    rounded = quantize_weight(weight.detach(), scheme.weight_bits, scheme.per_channel)
    return rounded - weight.detach()  # type: ignore[no-any-return]


def apply_weight(layer: nn.Module, inputs: Tensor, weight: Tensor) -> Tensor:
    """What a convolution or Linear gives for another weight of the same shape, without its bias.

    >>> apply_weight(nn.Linear(2, 1), torch.ones(1, 2), torch.ones(1, 2))
    tensor([[2.]])
    """
    if isinstance(layer, _ConvNd):
        return layer._conv_forward(inputs, weight, None)
    return F.linear(inputs, weight)


@contextmanager
def watching(layers: dict[str, nn.Module], look: Callable[[str, Tensor, Tensor], None]) -> Iterator[None]:
    """Call ``look(name, input, output)`` for each layer that runs, before its activation function.

    >>> net, seen = nn.Linear(2, 3), []
    >>> with watching({"net": net}, lambda name, inputs, output: seen.append((name, *output.shape))):
    ...     _ = net(torch.ones(1, 2))
    >>> seen
    [('net', 1, 3)]
    """

    def hook(name: str) -> Callable[..., None]:
        return lambda module, inputs, named, output: look(name, [*inputs, *named.values()][0], output)

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_hook(hook(name), with_kwargs=True))
        yield
