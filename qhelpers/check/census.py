"""What a model really computes in int8: each layer of the float model by name, with the kernel that takes its weights.

A file's size and the names of its operators do not tell. Layers are left out in silence, and int8 weights may be
unpacked and multiplied in float. Runtimes rename, fuse and reorder layers, so a layer is known by its weights: those
that a kernel takes are compared with those of the float model.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

INT8, FLOAT, ABSENT, FOLDED = "int8", "float", "absent", "folded"
LIKE = 0.5  # mean cosine of two weights' rows from which on they are taken for one
UNPACKED = "its int8 weights are unpacked and multiplied in float"


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
    """

    kernel: str
    weight: Tensor
    int8: bool
    why: str = ""


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
        return "; ".join([*parts, f"{self.conversions} conversions"])

    def __str__(self) -> str:
        wide = max((len(layer.name) for layer in self.layers), default=0)
        lines = [f"{one.name:{wide}}  {one.computes:6}  {one.kind}, {one.how}" for one in self.layers]
        return "\n".join([*lines, self.summary])


def require_int8(census: Census) -> Census:
    """Return the census if something computes in int8.

    Raises:
        CensusError: if nothing does: quantization passed over the whole model, and said nothing.

    >>> require_int8(Census((Layer("fc", "Linear", FLOAT, "addmm"),)))
    Traceback (most recent call last):
        ...
    qhelpers.check.census.CensusError: Quantized nothing: 0 of 1 layers in int8; float: fc; 0 conversions.
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


def of_eager(model: nn.Module, int8: nn.Module, *inputs: Any) -> Census:
    """The census of a model in eager mode or FX, from the operators that PyTorch dispatches in one call.

    Args:
        model: the float model.
        int8: the quantized one.
        inputs: for one call.

    Raises:
        CensusError: if the float model has no weights.

    >>> from torch.ao.quantization import quantize_dynamic
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    >>> print(of_eager(net, quantize_dynamic(net, {"2"}, dtype=torch.qint8), torch.ones(1, 4)))
    0  float   Linear, aten::linear
    2  int8    Linear, quantized::linear_dynamic
    1 of 2 layers in int8; float: 0; 0 conversions
    """
    watch = _Watch(int8)
    with torch.inference_mode(), watch:
        int8(*inputs)
    return taken(model, watch.used, watch.kernels, watch.conversions)


# --- watching PyTorch --------------------------------------------------------------------------------

INTEGER = ("quantized::", "::_int_mm", "int8pack", "qlinear", "qconv", "quantized_lstm", "quantized_gru")
CONVERTS = ("quantize_per_", "::dequantize", "::choose_qparams")
PREPARES = ("dequantize", "_to_copy", "to", "clone", "mul", "sub", "constant_pad")  # how names begin; not matmul


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operators that run inside, and which weights of a model they take."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.used: list[Used] = []
        self.kernels: Counter[str] = Counter()
        self.conversions = 0
        self._weights: dict[int, tuple[Tensor, bool]] = {}  # by storage: in float, and whether it is kept as integers
        self._alive: list[Tensor] = []  # so that no storage is used twice
        for tensor in [*model.parameters(), *model.buffers()]:
            for part, value in _parts(tensor):
                self._know(part, value, not part.is_floating_point())

    def _know(self, tensor: Tensor, value: Tensor, integers: bool) -> None:
        self._alive.append(tensor)
        self._weights[tensor.untyped_storage().data_ptr()] = (value, integers)

    def _known(self, value: Any) -> tuple[Tensor, bool] | None:
        plain = type(value) in (Tensor, nn.Parameter) and _has_storage(value)
        return self._weights.get(value.untyped_storage().data_ptr()) if plain else None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(issubclass(kind, Tensor) and kind not in (Tensor, nn.Parameter) for kind in types):
            return NotImplemented  # its own operators are what runs
        output = func(*args, **(kwargs or {}))
        if self._known(output):
            return output  # a view
        name = func.name().partition(".")[0]
        given = [*_flat((args, kwargs))]
        weights = [known for one in given if (known := self._known(one))]
        if weights and name.rpartition("::")[2].startswith(PREPARES) and isinstance(output, Tensor):
            self._know(output, weights[0][0], weights[0][1])
            return output
        self.kernels[name] += 1
        changes = getattr(output, "dtype", None) != getattr(given[0], "dtype", None)  # dequantize leaves floats alone
        self.conversions += changes and any(part in name for part in CONVERTS)
        integer = any(part in name for part in INTEGER)
        for value, integers in weights:
            self.used.append(Used(name, value, integer, UNPACKED if integers and not integer else ""))
        for packed in given:
            if isinstance(packed, torch.ScriptObject):
                for weight in _unpacked(packed):
                    kept = weight.is_quantized
                    self.used.append(Used(name, weight.dequantize() if kept else weight.float(), kept))
        return output


def _parts(tensor: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """A tensor, or those inside a quantized subclass such as torchao's, each with its value in float."""
    if type(tensor) in (Tensor, nn.Parameter):
        if _has_storage(tensor):
            yield tensor.detach(), tensor.detach().float()
        return
    value = tensor.dequantize().detach().float()
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    for name in names:
        inner = getattr(tensor, name)
        if isinstance(inner, Tensor) and inner.numel() * 2 >= value.numel():  # two 4-bit numbers share a byte
            for part, _ in _parts(inner):
                yield part, value


def _flat(values: Any) -> Iterator[Any]:
    if isinstance(values, dict):
        values = [*values.values()]
    if isinstance(values, (tuple, list)):
        for value in values:
            yield from _flat(value)
    else:
        yield values


def _has_storage(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.untyped_storage().data_ptr() != 0


def _unpacked(packed: torch.ScriptObject) -> Iterator[Tensor]:
    """The weights inside a packed parameter of PyTorch's quantized operators, or inside a cell's."""
    if hasattr(packed, "unpack"):
        yield packed.unpack()[0]
        return
    for part in _flat(packed.__getstate__()):
        if isinstance(part, torch.ScriptObject):
            yield from _unpacked(part)


# --- knowing a layer by its weights ------------------------------------------------------------------


def _weights(model: nn.Module) -> Iterator[tuple[str, tuple[str, Tensor]]]:
    for path, module in model.named_modules():
        for name, value in module._parameters.items():
            if value is not None and "bias" not in name and (name == "weight" or value.ndim > 1):
                shown = path if name == "weight" else f"{path}.{name}".lstrip(".")
                yield shown or "the model itself", (type(module).__name__, value.detach().float())


def _matched(ours: Mapping[str, tuple[str, Tensor]], theirs: list[Used]) -> dict[str, Used]:
    """For each name the use of its weight: one for each, all together as alike as can be."""
    theirs, weights = _different(theirs), {name: weight for name, (_, weight) in ours.items()}
    names, found = [*ours], {}
    scores = torch.zeros(len(names), len(theirs))
    for i, (kind, weight) in enumerate(ours.values()):
        for j, one in enumerate(theirs):
            same_kind = kind.lower() in one.kernel.lower()  # decides where two layers share a weight
            scores[i, j] = _likeness(weight, one.weight) + 0.001 * same_kind
    for i, j in zip(*linear_sum_assignment(scores, maximize=True), strict=True):
        if scores[i, j] >= LIKE:
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
        same = [one for one in free if one.weight.numel() == size]
        if len(same) == 1 and sum(ours[other].numel() == size for other in left) == 1:
            pairs[name] = same[0]
    return pairs


def _different(used: list[Used]) -> list[Used]:
    """Without repetitions: a kernel may take a weight once for each step of a sequence."""
    kept: dict[tuple[Any, ...], Used] = {}
    for one in used:
        digest = hash(one.weight.contiguous().numpy().tobytes())
        kept.setdefault((one.kernel, one.int8, tuple(one.weight.shape), digest), one)
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


def _likeness(one: Tensor, other: Tensor) -> float:
    """Mean absolute cosine of two weights' rows, in the layout that makes it largest; 0 if none fits.

    Rows are output channels; their factors do not count, since batch norms are folded into them.
    """
    if one.numel() != other.numel():
        return 0.0
    one, other = one.squeeze(), other.squeeze()
    if one.ndim < 2:
        return float(one.shape == other.shape and bool((one - other).norm() <= 0.05 * one.norm()))
    layouts = {
        order
        for order in itertools.permutations(range(other.ndim))
        if tuple(other.shape[axis] for axis in order) == tuple(one.shape)
    }
    rows = nn.functional.normalize(one.flatten(1))
    others = [nn.functional.normalize(other.permute(order).flatten(1)) for order in layouts]
    return max((float((rows * turned).sum(1).abs().mean()) for turned in others), default=0.0)
