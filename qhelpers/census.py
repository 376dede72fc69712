"""What a model really computes in int8: each layer of the float model by name, with the kernel that takes its weights.

A file's size and the names of its operators do not tell. Layers are left out silently, and int8 weights may be
unpacked and multiplied in float. Runtimes rename, fuse and reorder layers, so a layer is known by its weights: those
that a kernel takes are compared with those of the float model.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

INT8, FLOAT, ABSENT, FOLDED = "int8", "float", "absent", "folded"
UNPACKED = "its int8 weights are unpacked and multiplied in float"
LIKE = 0.5  # mean cosine of two weights' rows from which on they are taken for one
SEEN = 100_000  # values of a weight that are compared, in its longest rows


class CensusError(ValueError):
    """Nothing computes in int8 where something should, or it cannot be told what does."""


@dataclass(frozen=True)
class Used:
    """A weight that a kernel takes.

    Args:
        kernel: its name in its runtime.
        weight: in float, in the layout of that runtime.
        int8: whether the kernel multiplies in integers.
        why: if it does not, although the weight is kept as int8.
        name: of the weight there, if it has one; it decides between layers whose weights are equal.
    """

    kernel: str
    weight: Tensor
    int8: bool
    why: str = ""
    name: str = ""


@dataclass(frozen=True)
class Layer:
    """A weight of the float model, and what became of it."""

    name: str
    kind: str
    computes: str  # INT8, FLOAT or ABSENT
    how: str  # the kernel; of a layer in float also why, if that can be told


@dataclass(frozen=True)
class Census:
    """Every layer with weights of a float model, and what computes it; prints as a table."""

    layers: tuple[Layer, ...]
    kernels: Mapping[str, int] = field(default_factory=dict)  # calls of each operator, in one call of the model
    conversions: int = 0  # calls that go from float to int8 or back

    def named(self, computes: str) -> list[str]:
        """Names of the layers that compute in ``INT8`` or in ``FLOAT``, or are ``ABSENT``."""
        return [layer.name for layer in self.layers if layer.computes == computes]

    @property
    def summary(self) -> str:
        """One line: how many layers compute in int8, which in float, which are absent, and how many conversions."""
        count = len(self.layers) - len(self.named(FOLDED))
        parts = [f"{len(self.named(INT8))} of {count} layers in int8"]
        for computes in (FLOAT, ABSENT):
            if names := self.named(computes):
                parts.append(f"{computes}: {', '.join(names[:3])}{' …' if len(names) > 3 else ''}")
        return "; ".join([*parts, f"{self.conversions} conversion{'s' * (self.conversions != 1)}"])

    def __str__(self) -> str:
        wide = max((len(layer.name) for layer in self.layers), default=0)
        lines = [f"{one.name:{wide}}  {one.computes:6}  {one.kind}, {one.how}" for one in self.layers]
        return "\n".join([*lines, self.summary])


def require_int8(census: Census) -> Census:
    """Return the census if something computes in int8.

    Raises:
        CensusError: if nothing does: quantization silently skipped the whole model.

    >>> require_int8(Census((Layer("fc", "Linear", FLOAT, "addmm"),)))
    Traceback (most recent call last):
        ...
    qhelpers.census.CensusError: Quantized nothing: 0 of 1 layers in int8; float: fc; 0 conversions.
    """
    if not census.named(INT8):
        raise CensusError(f"Quantized nothing: {census.summary}.")
    return census


def taken(model: nn.Module, used: Iterable[Used], kernels: Mapping[str, int], conversions: int) -> Census:
    """The census of a float model from the weights that a runtime's kernels take.

    Args:
        model: the float model that was quantized, or fine-tuned and quantized.
        used: one entry for each kernel call that takes a weight.
        kernels: calls of each operator.
        conversions: calls between float and int8.

    Raises:
        CensusError: if the model has no weights.

    >>> net = nn.Linear(3, 2)
    >>> taken(net, [Used("qlinear", net.weight.detach() * 1.01, True)], {}, 0).named(INT8)
    ['the model itself']
    """
    ours, theirs = dict(_weights(model)), [*used]
    if not ours:
        raise CensusError("The float model has no weights to look for.")
    found = _matched(ours, theirs)
    layers = []
    for name, (kind, _) in ours.items():
        one = found.get(name)
        if one is None:
            folded = kind.startswith("BatchNorm")
            layers.append(Layer(name, kind, FOLDED if folded else ABSENT, "no kernel takes its weight"))
        else:
            layers.append(
                Layer(name, kind, INT8 if one.int8 else FLOAT, ": ".join(filter(None, (one.kernel, one.why))))
            )
    return Census(tuple(layers), kernels, conversions)


# --- knowing a layer by its weights ------------------------------------------------------------------


def _weights(model: nn.Module) -> Iterator[tuple[str, tuple[str, Tensor]]]:
    """Weights by the name of their layer; a layer that computes its weight from others counts with the result."""
    for path, module in model.named_modules():
        if "parametrizations" in path.split("."):
            continue
        own = {name: value for name, value in module._parameters.items() if value is not None}
        computed = getattr(module, "weight", None)
        if "weight" not in own and isinstance(computed, Tensor):  # parametrized, or with weight_norm of old
            own = {"weight": computed} | {name: value for name, value in own.items() if not name.startswith("weight")}
        for name, value in own.items():
            if "bias" not in name and (name == "weight" or value.ndim > 1):
                shown = path if name == "weight" else f"{path}.{name}".lstrip(".")
                yield shown or "the model itself", (type(module).__name__, value.detach().float())


def _matched(ours: Mapping[str, tuple[str, Tensor]], theirs: list[Used]) -> dict[str, Used]:
    """For each name the use of its weight: one for each, all together as alike as can be."""
    theirs, weights = _different(theirs), {name: weight for name, (_, weight) in ours.items()}
    names, found = [*ours], {}
    scores = torch.zeros(len(names), len(theirs), dtype=torch.double)
    alike = torch.zeros_like(scores)
    for i, (name, (kind, weight)) in enumerate(ours.items()):
        for j, one in enumerate(theirs):
            alike[i, j] = _likeness(weight, one.weight)
            # Where weights are equal: the name, then the kind of layer, then the order in which they are used.
            scores[i, j] = (
                alike[i, j] + 0.01 * _same_name(name, one.name) + 0.001 * (kind.lower() in one.kernel.lower())
            )
            scores[i, j] -= 1e-4 * abs(i / len(names) - j / len(theirs))
    for i, j in zip(*linear_sum_assignment(scores, maximize=True), strict=True):
        if alike[i, j] >= LIKE:
            found[names[i]] = theirs[j]
    found |= _only_choice(weights, theirs, found)
    for name in names:
        if name not in found:
            twin = next((one for one in found if weights[one].equal(weights[name])), None)  # one kernel for both
            part = found[twin] if twin else _in_pieces(weights[name], theirs)
            if part:
                found[name] = part
    return found


def _only_choice(ours: Mapping[str, Tensor], theirs: list[Used], found: Mapping[str, Used]) -> dict[str, Used]:
    """Weights that were trained on until nothing is alike any more, if no other of that size is left on either side."""
    left = [name for name in ours if name not in found and ours[name].ndim > 1]
    free = [one for one in theirs if not any(one is other for other in found.values())]
    pairs = {}
    for name in left:
        size = ours[name].numel()
        same = [one for one in free if one.weight.numel() == size and one.weight.ndim > 1]  # a bias is no weight
        if len(same) == 1 and sum(ours[other].numel() == size for other in left) == 1:
            pairs[name] = same[0]
    return pairs


def _different(used: list[Used]) -> list[Used]:
    """Without repetitions: a kernel may take a weight once for each step of a sequence."""
    kept: dict[tuple[Any, ...], Used] = {}
    for one in used:
        digest = hash(one.weight.contiguous().numpy().tobytes())
        kept.setdefault((one.kernel, one.int8, tuple(one.weight.shape), digest, one.name), one)
    return [*kept.values()]


def _in_pieces(weight: Tensor, theirs: list[Used]) -> Used | None:
    """The use of a weight that a runtime has split by rows, or joined with others, as query, key and value are."""
    for count in (2, 3, 4):
        for one in theirs:
            small, large = (one.weight, weight) if one.weight.numel() < weight.numel() else (weight, one.weight)
            if small.numel() * count == large.numel() and large.ndim == 2:
                chunks = [*large.chunk(count, 0), *large.chunk(count, 1)]
                if max(_likeness(chunk, small) for chunk in chunks) >= LIKE:
                    return one
    return None


def _same_name(layer: str, weight: str) -> bool:
    """Whether a weight is named for a layer, in whatever way a format spells names.

    >>> _same_name("layers.1.fc", "p_layers_1_fc_weight_quantized"), _same_name("layers.1.fc", "layers.11.fc.weight")
    (True, False)
    """
    wanted, given = (f"_{re.sub('[^0-9A-Za-z]+', '_', name)}_" for name in (layer, weight))
    return wanted in given


def _likeness(one: Tensor, other: Tensor) -> float:
    """Mean absolute cosine of two weights' rows, in the layout that makes it largest; 0 if none fits.

    Rows are output channels; their factors do not count, since batch norms are folded into them. Of large weights the
    longest rows tell enough. A norm's weight has no rows, and has to be equal.
    """
    if one.numel() != other.numel():
        return 0.0
    if one.ndim < 2:
        return float(one.shape == other.squeeze().shape and bool((one - other.squeeze()).norm() <= 0.05 * one.norm()))
    if other.ndim < 2:  # a bias
        return 0.0
    one, other = one.squeeze(), other.squeeze()
    if one.ndim < 2:  # one row, or one column; vectors that have nothing in common may be a little alike
        cosine = _mean_cosine(nn.functional.normalize(one.reshape(1, -1)), other.reshape(1, -1))
        return cosine if cosine > 0.9 else 0.0
    layouts = {
        order
        for order in itertools.permutations(range(other.ndim))
        if tuple(other.shape[axis] for axis in order) == tuple(one.shape)
    }
    one = one.flatten(1)
    orders = [torch.arange(len(one))]
    if len(one) % 4 == 0:  # ONNX has the gates of an LSTM in another order
        orders.append(orders[0].reshape(4, -1)[[0, 2, 3, 1]].flatten())
    seen = one.norm(dim=1).topk(min(len(one), max(1, SEEN // one.shape[1]))).indices
    rows = nn.functional.normalize(one[seen])
    turned = [other.permute(layout)[order[seen]].flatten(1) for layout in layouts for order in orders]
    found = max((_mean_cosine(rows, each) for each in turned), default=0.0)
    chance = (0.8 + 2.8 / len(rows) ** 0.5) / one.shape[1] ** 0.5  # of unrelated rows, and 4.6 deviations more
    return found if found > min(chance, 0.95) else 0.0


def _mean_cosine(rows: Tensor, others: Tensor) -> float:
    """Of the rows that are not zero on both sides; 1 if all are."""
    others = nn.functional.normalize(others)
    counts = rows.any(1) | others.any(1)
    return float((rows * others).sum(1).abs()[counts].mean()) if counts.any() else 1.0
