"""Repair a float model for int8 without training: cross-layer equalization and bias correction.

Both return a copy; what :mod:`qhelpers.check.simulate` says about layers and loaders applies here, too.
"""

import copy
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node, Tracer
from torch.nn.modules.conv import _ConvNd

from qhelpers.check import folding
from qhelpers.check.simulate import (
    DiagnosisError,
    Scheme,
    UnfusedError,
    apply_weight,
    channel_ranges,
    find_layers,
    input_batches,
    outputs,
    rounding_error,
    watching,
)

# what a positive factor of a channel passes through unchanged, as modules and as functions or methods
_PASS_MODULES = (nn.ReLU, nn.Identity, nn.Dropout, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten)
_PASS_NAMES = {"relu", "relu_", "dropout", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "flatten"}
Pair = tuple[str, str]


class NotTraceableError(DiagnosisError):
    """``torch.fx`` cannot follow the model, so it is unknown which layer feeds which."""


@dataclass(frozen=True)
class Equalization:
    """What :func:`equalize` did: pairs of layers, why others were left, and dead channels (range zero) by layer."""

    pairs: list[Pair]
    skipped: dict[str, str]
    dead: dict[str, int]


def equalize(model: nn.Module, passes: int = 10) -> tuple[nn.Module, Equalization]:
    """Cross-layer equalization: give the channels between two layers equal ranges on both sides.

    Channel ``i`` of the first layer is divided by ``s_i = sqrt(r1_i / r2_i)``, and what the second does with it is
    multiplied by it; r1 and r2 are the largest absolute weights. The function of the model stays the same, because
    only what passes positive factors through unchanged lies between (ReLU, pooling, flattening, nothing). A layer
    whose output goes another way is left as it is, and reported with the reason: a branch, ReLU6, shared weights.
    Source: Nagel et al. 2019, section 4.1.

    Args:
        model: float, batch norms folded, in evaluation mode.
        passes: how often all pairs are gone through; each layer may belong to two.

    Raises:
        UnfusedError: naming the batch norms that alone read a layer, and so have to be folded into it.
        NotTraceableError: if ``torch.fx`` cannot follow the model.
        NoLayersError, NotFiniteError: as :func:`qhelpers.check.simulate.find_layers`.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU6(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    >>> _, done = equalize(net)
    >>> done.pairs
    [('2', '4')]
    >>> done.skipped["0"]
    'ReLU6 comes after it, and does not pass factors through'
    """
    model = copy.deepcopy(model)
    layers = find_layers(model).known
    pairs, skipped = _find_pairs(model, layers)
    with torch.no_grad():
        for _ in range(passes):
            for first, second in pairs:
                _equalize_pair(layers[first], layers[second])
    dead = {name: int((channel_ranges(layer) == 0).sum()) for name, layer in layers.items()}
    return model, Equalization(pairs, skipped, {name: n for name, n in dead.items() if n})


def _equalize_pair(first: Any, second: Any) -> None:
    before = channel_ranges(first)
    after = _by_input(second, len(before)).abs().amax(dim=1)
    alive = (before > 0) & (after > 0)
    scale = torch.where(alive, (before / after.where(alive, 1)).sqrt(), 1.0)
    first.weight.div_(scale.view(-1, *[1] * (first.weight.ndim - 1)))
    if first.bias is not None:
        first.bias.div_(scale)
    if isinstance(second, _ConvNd) and second.groups > 1:
        second.weight.mul_(scale.view(-1, *[1] * (second.weight.ndim - 1)))
    else:
        each = second.weight.shape[1] // len(scale)  # flattened positions of a channel
        second.weight.mul_(scale.repeat_interleave(each).view(1, -1, *[1] * (second.weight.ndim - 2)))


def _by_input(layer: Any, channels: int) -> Tensor:
    """A layer's weights by the channel that they read, of shape ``(channels, …)``."""
    weight: Tensor = layer.weight
    if isinstance(layer, _ConvNd) and layer.groups > 1:
        return weight.flatten(1)  # depthwise: channel i reads channel i
    return weight.transpose(0, 1).reshape(channels, -1)


@dataclass(frozen=True)
class _Way:
    """From a layer to the one that alone reads its output, and the steps between; or why there is none."""

    layer: str = ""
    steps: tuple[str, ...] = ()
    why_not: str = ""


class _LayerTracer(Tracer):
    """Follows a model without looking into its layers: a fused container is one of them."""

    def __init__(self, layers: Collection[str]) -> None:
        super().__init__()
        self.layers = layers

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self.layers or super().is_leaf_module(m, module_qualified_name)


def _find_pairs(model: nn.Module, layers: dict[str, nn.Module]) -> tuple[list[Pair], dict[str, str]]:
    try:
        graph = _LayerTracer(layers).trace(model)
    except Exception as error:  # whatever a model's own code raises when it is shown a proxy
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NotTraceableError(f"torch.fx cannot follow this {type(model).__name__}: {reason}") from error
    _refuse_unfused(model)
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    owners = Counter(id(value) for module in model.modules() for value in module._parameters.values())

    def shared(name: str) -> bool:
        own = [value for value in layers[name]._parameters.values() if value is not None]
        return calls[name] > 1 or name in read or any(owners[id(value)] > 1 for value in own)

    pairs, skipped = [], {}
    for node in graph.nodes:
        if node.op == "call_module" and node.target in layers:
            first = str(node.target)
            way = _way_on(model, node, layers)
            tied = [name for name in (first, way.layer) if name and shared(name)]
            if tied:
                skipped[first] = f"the weights of {tied[0]} are shared"
            elif way.why_not:
                skipped[first] = way.why_not
            elif refusal := _refusal(layers[first], layers[way.layer], way.steps):
                skipped[first] = f"{way.layer} {refusal}"
            else:
                pairs.append((first, way.layer))
    for name in set(layers) - set(calls):
        skipped[name] = "torch.fx does not see a call of it"
    return pairs, skipped


def _way_on(model: nn.Module, node: Node, layers: dict[str, nn.Module]) -> _Way:
    at = node
    steps: list[str] = []
    while True:
        if len(at.users) != 1:
            return _Way(why_not=f"its output is read {len(at.users)} times (a branch)")
        at = next(iter(at.users))
        name = at.target if isinstance(at.target, str) else getattr(at.target, "__name__", str(at.target))
        if at.op == "output":
            return _Way(why_not="it is the last layer")
        module = model.get_submodule(name) if at.op == "call_module" else None
        if name in layers and module is not None:
            return _Way(name, tuple(step for step in steps if step))
        passes = isinstance(module, _PASS_MODULES) if module is not None else name in _PASS_NAMES
        if not passes:
            shown = name if module is None else type(module).__name__
            return _Way(why_not=f"{shown} comes after it, and does not pass factors through")
        steps.append(_step(at, module))


def _step(node: Node, module: nn.Module | None) -> str:
    """Whether a step flattens all but the batch, flattens otherwise, pools, or leaves the shape."""
    name = type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))
    if name.lower() == "flatten":
        given = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | dict(node.kwargs)
        start = getattr(module, "start_dim", given.get("start_dim", 0))
        end = getattr(module, "end_dim", given.get("end_dim", -1))
        return "flatten" if (start, end) == (1, -1) else "reshape"
    return "pool" if "pool" in name.lower() else ""


def _refusal(first: Any, second: Any, steps: tuple[str, ...]) -> str | None:
    """Why channels of the first layer are not what the second reads one by one; None if they are."""
    channels = first.weight.shape[0]
    elsewhere = "reads something else than its channels"
    if isinstance(second, _ConvNd):
        if type(first) is not type(second) or {"flatten", "reshape"} & {*steps} or second.in_channels != channels:
            return elsewhere
        depthwise = second.groups == second.in_channels == second.out_channels
        return None if second.groups == 1 or depthwise else "is a grouped convolution"
    if isinstance(first, _ConvNd):
        flattened = "reshape" not in steps and steps[-1:] == ("flatten",) and steps.count("flatten") == 1
        return None if flattened and second.in_features % channels == 0 else elsewhere
    return None if not steps and second.in_features == channels else elsewhere


def _refuse_unfused(model: nn.Module) -> None:
    unfused = [*folding.foldable(model)]
    if unfused:
        raise UnfusedError(
            f"Some batch norms are not folded into the layer before them ({', '.join(unfused[:3])}): call "
            f"fuse_model or torch.ao.quantization.fuse_modules first."
        )


def correct_bias(model: nn.Module, loader: Iterable[Any], scheme: Scheme) -> tuple[nn.Module, dict[str, Tensor]]:
    """Take back what rounding the weights adds to the mean of each channel.

    The correction of a channel is minus the mean of ``(rounded weights - weights) * input`` over the loader; it is
    for the same weight quantization as ``scheme``. Source: Nagel et al. 2019, section 4.2.

    Returns:
        A copy and, by layer, what was added to its bias, of shape ``(channels,)``.

    Raises:
        NoLayersError, NotFiniteError, CalibrationError, GuardError: as in :mod:`qhelpers.check.simulate`.

    >>> _, added = correct_bias(nn.Sequential(nn.Linear(2, 3)).eval(), [torch.ones(1, 2)], Scheme())
    >>> added["0"].shape
    torch.Size([3])
    """
    model = copy.deepcopy(model)
    layers: dict[str, Any] = find_layers(model).known
    rounding = {name: rounding_error(layer, scheme) for name, layer in layers.items()}
    sums: dict[str, list[Any]] = {}  # of each channel's errors, and how many

    def look(name: str, inputs: Tensor, output: Tensor) -> None:
        error = apply_weight(layers[name], inputs, rounding[name])
        by_channel = error.movedim(1 if isinstance(layers[name], _ConvNd) else -1, -1).flatten(0, -2)
        found = sums.setdefault(name, [0.0, 0])
        found[0] = found[0] + by_channel.double().sum(0)
        found[1] += len(by_channel)

    with watching(layers, look):
        outputs(model, input_batches(loader))
    added = {name: -(total / n).to(layers[name].weight.dtype) for name, (total, n) in sums.items()}
    for name, change in added.items():
        bias = layers[name].bias
        layers[name].bias = nn.Parameter(change if bias is None else bias.detach() + change)
    return model, added
