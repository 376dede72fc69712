"""Which operator of a quantized PT2E graph does the damage, found by leaving operators in float one after another.

The graph is the one that ``convert_pt2e`` makes, so that sums, ``cat`` and constants are seen as well as layers. All
decibels are SQNR, infinite where nothing differs.
"""

import copy
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Interpreter, Node, map_arg
from torch.utils import _pytree as pytree

from qhelpers.check import graphs, targets
from qhelpers.check.errors import CheckError

Tensors = Sequence[Tensor]

HUGE = 1e4  # values from which on 256 steps over the range leave nothing of ordinary ones
UNLIKE = 10.0  # how many times wider than another a part has to be for the two to be of different scale
EXACT_DB = 60.0  # what an input without errors counts as, when the fall behind it is measured
SAME_DB = 60.0  # folding norms alters the last digits; with less than this, it is another model
HELPS_DB = 1.0
SUSPECTS, AGAIN = 12, 4  # operators that are tried, and those of them that are tried together with the first
SUMS = ("add", "sub")
NOTE = "quantization_annotation"


class FindError(CheckError):
    """The graph cannot be compared with the float model."""


# --- decibels ----------------------------------------------------------------------------------------


class Channel(NamedTuple):
    """One channel of an output: its number, SQNR in dB, and largest deviation in the output's unit."""

    number: int
    sqnr_db: float
    deviation: float


@dataclass(frozen=True)
class _Noise:
    """Sums and limits over all that was seen of one tensor, of shape ``(channels,)`` each, and the float values'."""

    signal: Tensor
    noise: Tensor
    deviation: Tensor
    low: Tensor
    high: Tensor
    count: int  # values of each channel

    def __add__(self, other: "_Noise") -> "_Noise":
        return _Noise(
            self.signal + other.signal,
            self.noise + other.noise,
            torch.maximum(self.deviation, other.deviation),
            torch.minimum(self.low, other.low),
            torch.maximum(self.high, other.high),
            self.count + other.count,
        )

    @property
    def sqnr_db(self) -> float:
        return _db(float(self.signal.sum()), float(self.noise.sum()))

    @property
    def range(self) -> tuple[float, float]:
        return float(self.low.min()), float(self.high.max())

    @property
    def channels(self) -> list[Channel]:
        reach = self.range[1] - self.range[0]
        rows = zip(*(one.tolist() for one in (self.signal, self.noise, self.deviation)), strict=True)
        still = ((self.low == self.high) & (self.deviation <= 0.01 * reach) & (self.count > 1)).tolist()
        return [
            Channel(index, math.inf if still[index] else _db(signal, noise), deviation)
            for index, (signal, noise, deviation) in enumerate(rows)
        ]

    @property
    def worst(self) -> Channel:
        return min(self.channels, key=lambda one: one.sqnr_db)


def _db(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * (math.log10(signal) - math.log10(noise)) if signal and noise < math.inf else -math.inf


def _noise(exact: Tensor, found: Tensor) -> _Noise:
    """Infinite values and NaN are no signal; where the other has not the same, the noise is infinite."""
    if exact.shape != found.shape or not exact.numel():
        raise FindError(f"Outputs of shapes {tuple(exact.shape)} and {tuple(found.shape)} cannot be compared.")
    one, other = (_rows(values.detach()) for values in (exact, found))
    finite = one.isfinite() & other.isfinite()
    low, high = one.amin(1), one.amax(1)
    if not bool(finite.all()):
        same = finite | (one == other) | (one.isnan() & other.isnan())
        one, other = (values.where(finite, torch.zeros_like(values)) for values in (one, other))
        other = other.where(same, torch.full_like(other, math.inf))
    if max(float(one.abs().max()), float(other.abs().max())) > 1e15:  # whose squares float32 does not hold
        one, other = one.double(), other.double()
    off = one - other
    sums = (one.square().sum(1).double(), off.square().sum(1).double())
    return _Noise(*sums, off.abs().amax(1).double(), low.double(), high.double(), one.shape[1])


def _rows(values: Tensor) -> Tensor:
    """Real numbers of shape ``(channels, n)``: channels are dimension 1, the last of three, or there is one."""
    real = torch.view_as_real(values) if values.is_complex() else values
    if values.ndim < 2:
        return real.reshape(1, -1).float()
    return real.movedim(-1 if values.ndim == 3 else 1, 0).flatten(1).float()


def channels(exact: Tensor, found: Tensor) -> list[Channel]:
    """SQNR and largest deviation of each channel of an output.

    The channels are dimension 1 of two and of four or more, and the last of three; one dimension is one channel. A
    channel of several values that is constant in float counts as right as long as it deviates by at most 1 % of the
    output's range.

    Args:
        exact: an output of the float model, ``(n, channels, …)`` or ``(n, length, channels)``.
        found: the same of the other.

    Raises:
        FindError: if the shapes differ, or there is nothing in the tensors.

    >>> [one.sqnr_db for one in channels(torch.tensor([[640.0, 1.0]]), torch.tensor([[640.0, 0.0]]))]
    [inf, 0.0]
    """
    return _noise(exact, found).channels


def worst_channel(exact: Tensor, found: Tensor) -> Channel:
    """The one of :func:`channels` with the lowest SQNR: one wide channel hides dead ones from the SQNR of a whole.

    >>> worst_channel(torch.tensor([[640.0, 1.0]]), torch.tensor([[640.0, 0.0]]))
    Channel(number=1, sqnr_db=0.0, deviation=1.0)
    """
    return _noise(exact, found).worst


# --- the graph ---------------------------------------------------------------------------------------


class _Edge(NamedTuple):
    """A place where an operator takes a rounded value."""

    user: Node
    rounded: Node
    source: Node  # of the value before it was rounded
    giver: str  # the operator that rounds its result itself; empty if only the user asked for it
    scale: Any
    asked: bool  # whether the user is an operator that asks for rounded values
    parameter: bool


class Quantized:
    """A prepared and calibrated graph, converted, in which operators can be left in float without converting again.

    An operator that is left in float takes what its givers give: another operator rounds its own result, unless that
    is left in float, too. Only parts that share one scale, as those of a ``cat``, are handed on in float, since each
    would get a scale of its own. Other quantizers than XNNPACK's may differ in that.

    Args:
        prepared: what ``prepare_pt2e`` returned, calibrated; it is not changed.

    Raises:
        GraphError: if nothing is observed, or an observer has seen no data.
    """

    def __init__(self, prepared: GraphModule) -> None:
        notes = {
            node.name: node.meta[NOTE]
            for node in graphs.require_observed(prepared).graph.nodes
            if node.op == "call_function" and NOTE in node.meta
        }
        own = copy.deepcopy(prepared)
        for node in own.graph.nodes:  # notes refer to the nodes of the graph that was copied, and dynamic ones fail
            node.meta.pop(NOTE, None)
        with torch.random.fork_rng(devices=[]):
            self.module: GraphModule = targets.converted(own, fold_quantize=False)
        self.graph: Graph = self.module.graph
        self._fix_constants()
        feeds = [(user, fed) for user in self.graph.nodes for fed in user.all_input_nodes if _source(fed) is not None]
        self._fed = {user for user, _ in feeds if getattr(notes.get(user.name), "input_qspec_map", None)}
        self.operators: list[str] = [node.name for node in self.graph.nodes if node in self._fed]
        parameters = dict(self.module.named_parameters())
        self.edges: list[_Edge] = []
        for user, fed in feeds:
            source = _source(fed)
            assert source is not None
            giver = self._operator(source, notes) if getattr(notes.get(source.name), "output_qspec", None) else ""
            asked, parameter = user in self._fed, str(source.target) in parameters
            self.edges.append(_Edge(user, fed, source, giver, fed.args[1:3], asked, parameter))

    def _fix_constants(self) -> None:
        """Round constants once, instead of in each run."""

        for number, node in enumerate(list(self.graph.nodes)):
            source = _source(node)
            if source is None or source.op != "get_attr":
                continue
            with torch.no_grad():
                self.module.register_buffer(f"_rounded_{number}", self.constant(node))
            with self.graph.inserting_before(node):
                fixed = self.graph.get_attr(f"_rounded_{number}")
            fixed.meta |= {"source": source, "per_tensor": _kind(node) == "dequantize_per_tensor"}
            node.replace_all_uses_with(fixed)  # what computed it is dead from now on, and left out of copies

    def _operator(self, node: Node, notes: dict[str, Any]) -> str:
        """The operator that a node ends: itself, or the convolution that a ReLU is fused with."""
        while node not in self._fed and node.name in notes and node.all_input_nodes:
            node = node.all_input_nodes[0]
        return node.name if node in self._fed else ""

    def constant(self, node: Node) -> Any:
        """The value of a node that depends on no input."""
        if node.op == "get_attr":
            return attrgetter(str(node.target))(self.module)
        assert callable(node.target)
        return node.target(*map_arg(node.args, self.constant))

    def givers(self, name: str) -> frozenset[str]:
        """The operators that round their results themselves for this one."""
        return frozenset(one.giver for one in self.edges if one.user.name == name and one.giver)

    def without(self, off: Collection[str] = (), *, weights: bool = True, activations: bool = True) -> Interpreter:
        """What runs the graph with some operators left in float; see :meth:`run`."""
        graph = copy.deepcopy(self.graph)
        places = dict(zip(self.graph.nodes, graph.nodes, strict=True))
        for one in self.edges:
            shared = (
                one.user.name in off and sum(one.user is two.user and one.scale == two.scale for two in self.edges) > 1
            )
            kept = (one.asked and one.user.name not in off) or (one.giver not in ({""} | set(off)) and not shared)
            if not (kept and (weights if one.parameter else activations)):
                places[one.user].replace_input_with(places[one.rounded], places[one.source])
        graph.eliminate_dead_code(_changes_something)
        return Interpreter(self.module, graph=graph)

    def run(
        self, tensors: Tensors, off: Collection[str] = (), *, weights: bool = True, activations: bool = True
    ) -> list[Tensor]:
        """The tensors among the graph's outputs, with some operators left in float.

        Args:
            tensors: inputs of the shapes that the graph was captured with.
            off: names of :attr:`operators` to leave in float.
            weights: whether parameters are rounded.
            activations: whether everything else is, constants included.
        """
        return _outputs(self.without(off, weights=weights, activations=activations), tensors)


def _source(node: Node) -> Node | None:
    """What a dequantized value, or a constant that was rounded before, was made of."""
    if not _kind(node).startswith("dequantize_per"):
        return node.meta.get("source") if node.op == "get_attr" else None
    quantized = node.args[0]
    source = quantized.args[0] if isinstance(quantized, Node) and _kind(quantized).startswith("quantize_per") else None
    return source if isinstance(source, Node) else None


def _changes_something(node: Node) -> bool:
    in_place = getattr(getattr(node.target, "_schema", None), "is_mutable", False)
    return in_place or node.op in ("placeholder", "output", "call_module")


def _kind(node: Node) -> str:
    """The operator's own name: "add" for ``aten.add_.Tensor``."""
    return str(getattr(node.target, "_opname", "")).rstrip("_")


def _outputs(run: Interpreter, tensors: Tensors) -> list[Tensor]:
    with torch.inference_mode():
        found = run.run(*(one.clone() for one in tensors))  # a model may change its input in place
    return [one for one in pytree.tree_leaves(found) if isinstance(one, Tensor)]


# --- which operator ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operator:
    """What int8 does to one operator's output, all errors before it included; in dB, ranges those of float."""

    name: str
    kind: str  # "add", "linear"
    module: str
    line: int  # of the model's code; 0 if it has none
    code: str
    sqnr_db: float
    fall_db: float  # below the worst of its inputs
    worst_db: float  # of its worst channel
    worst_fall_db: float  # below the worst channel of its inputs
    range: tuple[float, float]
    parts: tuple[tuple[float, float], ...]  # ranges of the inputs that are no parameters
    weights_apart: float  # of weights with one scale: the widest channel as a multiple of the median one; else 1
    alone_db: float | None = None  # of the final outputs, if it alone is left in float
    alone_worst_db: float | None = None  # of their worst channel

    @property
    def where(self) -> str:
        """Module and line as they are printed: "encoder.layers.0, line 12 (`x + mask`)"."""
        line = f"line {self.line} (`{self.code}`)" if self.line else ""
        return ", ".join(filter(None, (self.module, line)))

    @property
    def reach(self) -> float:
        """The largest absolute value among its inputs and its output."""
        return max(abs(limit) for pair in (self.range, *self.parts) for limit in pair)


class Outcome(NamedTuple):
    """Quality of the final outputs, of the worst of them where there are several; in dB."""

    sqnr_db: float
    worst_db: float  # of the worst channel


def compare(quantized: Quantized, batches: Iterable[Tensors]) -> list[Operator]:
    """Compare each operator's output in int8 with the one in float, on the same inputs.

    Args:
        quantized: the graph.
        batches: tuples of inputs.

    Returns:
        The operators in the order in which they run; those that return no floating-point tensor are left out.
    """
    inputs = {name: [one for one in quantized.edges if one.user.name == name] for name in quantized.operators}
    own = {name: (name, name) for name in quantized.operators}  # names in float and in int8 of what is compared
    own |= {one.giver: (one.source.name, one.rounded.name) for one in quantized.edges if one.giver}
    pairs = {*own.values(), *((one.source.name, one.source.name) for edges in inputs.values() for one in edges)}
    sums: dict[tuple[str, str], _Noise] = {}
    exact: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor) -> None:
        if any(name == pair[0] for pair in pairs):
            exact[name] = value.clone()  # the next operator may change it in place

    def add(name: str, value: Tensor) -> None:
        for pair in [pair for pair in pairs if pair[1] == name and pair[0] in exact]:
            noise = _noise(exact[pair[0]], value)
            sums[pair] = sums[pair] + noise if pair in sums else noise

    in_float = _Watch(quantized.without(weights=False, activations=False), keep)
    in_int8 = _Watch(quantized.without(), add)
    for tensors in batches:
        exact.clear()
        _outputs(in_float, tensors), _outputs(in_int8, tensors)
    nodes = {node.name: node for node in quantized.graph.nodes}
    seen = [name for name in quantized.operators if own[name] in sums]
    return [_operator(nodes[name], sums[own[name]], inputs[name], sums, quantized) for name in seen]


class _Watch(Interpreter):
    """Runs a graph and shows each floating-point tensor with the name of its node."""

    def __init__(self, run: Interpreter, show: Callable[[str, Tensor], None]) -> None:
        super().__init__(run.module, graph=run.graph)
        self.show = show

    def run_node(self, node: Node) -> Any:
        found = super().run_node(node)
        if isinstance(found, Tensor) and found.is_floating_point() and found.numel():
            self.show(node.name, found)
        return found


def _operator(
    node: Node, own: _Noise, edges: list[_Edge], sums: dict[tuple[str, str], _Noise], quantized: Quantized
) -> Operator:
    fed = [sums[key] for one in edges if (key := (one.source.name, one.source.name)) in sums]
    before = min([EXACT_DB, *(one.sqnr_db for one in fed)])
    before_worst = min([EXACT_DB, *(one.worst.sqnr_db for one in fed)])
    frames = re.findall(r'File "(.*)", line (\d+), in .*\n *(.*)', node.meta.get("stack_trace") or "")
    inside = str(Path(torch.__file__).parent) + os.sep
    frame = next((one for one in reversed(frames) if not one[0].startswith(inside)), ("", "0", ""))
    parts = [one for one in edges if not one.parameter and (one.source.name, one.source.name) in sums]
    weights = [quantized.constant(one.source) for one in edges if one.parameter and one.rounded.meta["per_tensor"]]
    peaks = weights[0].detach().flatten(1).abs().amax(1) if weights and weights[0].ndim > 1 else torch.ones(1)
    return Operator(
        name=node.name,
        kind=_kind(node),
        module=_module(node),
        line=int(frame[1]),
        code=frame[2].strip(),
        sqnr_db=own.sqnr_db,
        fall_db=_fall(before, own.sqnr_db),
        worst_db=own.worst.sqnr_db,
        worst_fall_db=_fall(before_worst, own.worst.sqnr_db),
        range=own.range,
        parts=tuple(sums[one.source.name, one.source.name].range for one in parts),
        weights_apart=float(peaks.max() / peaks[peaks > 0].median()) if bool(peaks.any()) else 1.0,
    )


def _fall(before: float, behind: float) -> float:
    """With less than 0 dB nothing is left to lose."""
    first, then = (min(max(db, 0.0), EXACT_DB) for db in (before, behind))
    return first - then


def _module(node: Node) -> str:
    """The module that computes a node, as its own model calls it; "" for the model itself and for what is in none."""
    name: str = next(reversed(node.meta.get("nn_module_stack", {"": ("",)}).values()))[0]
    return "" if name == "model" else name.removeprefix("model.")  # of what the adapter holds


def measure(run: Interpreter, batches: Iterable[Tensors], exact: Iterable[Tensor | Tensors]) -> Outcome:
    """How far the final outputs are from those of float.

    Args:
        run: what :meth:`Quantized.without` returns.
        batches: tuples of inputs.
        exact: the float model's output for each of them, or a sequence of its outputs.

    Raises:
        FindError: if there is nothing, or numbers or shapes of outputs differ.
    """
    sums: list[_Noise] = []
    for tensors, wanted in zip(batches, exact, strict=True):
        outputs = [wanted] if isinstance(wanted, Tensor) else list(wanted)
        found = _outputs(run, tensors)
        if len(outputs) != len(found):
            raise FindError(f"The float model has {len(outputs)} outputs, and the graph {len(found)}.")
        noises = [_noise(one, other) for one, other in zip(outputs, found, strict=True)]
        sums = [one + other for one, other in zip(sums, noises, strict=True)] if sums else noises
    if not sums:
        raise FindError("There are no inputs, or the model has no outputs: nothing can be compared.")
    return Outcome(min(one.sqnr_db for one in sums), min(one.worst.sqnr_db for one in sums))


def suspicious(operators: Sequence[Operator], most: int = SUSPECTS) -> list[Operator]:
    """Operators worth trying in float: the last, those of huge range or unlike parts, and where most is lost."""
    first = [*operators[-1:], *(one for one in operators if one.reach >= HUGE)][: most // 2]
    unlike = [one for one in operators if _unlike(one)][: most // 4]
    falls = sorted(operators, key=lambda one: -one.fall_db)
    worst = sorted(operators, key=lambda one: -one.worst_fall_db)
    in_turn = [one for pair in zip(falls, worst, strict=True) for one in pair]
    return list(dict.fromkeys([*first, *unlike, *in_turn]))[:most]


def _unlike(one: Operator) -> bool:
    widths = [max(abs(low), abs(high)) for low, high in one.parts]
    return one.kind in (*SUMS, "cat") and len(widths) > 1 and max(widths) >= UNLIKE * min(widths)


def alone_in_float(
    quantized: Quantized,
    batches: Sequence[Tensors],
    exact: Sequence[Tensor | Tensors],
    names: Iterable[str],
    also: Collection[str] = (),
) -> dict[str, Outcome]:
    """The final outputs' quality with each of some operators left in float, alone or together with others.

    Args:
        quantized: the graph.
        batches: tuples of inputs.
        exact: the float model's outputs.
        names: of the operators.
        also: of operators that are in float in any case.
    """
    return {name: measure(quantized.without({name, *also}), batches, exact) for name in names}


# --- what to do --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Suggestion:
    """Which operators to leave in float, and what that is worth in the graph."""

    operators: tuple[str, ...]  # names of nodes, as a quantizer's filter sees them; empty if none helps
    words: tuple[str, ...]  # a sentence on each: what is to blame, and the cure
    before: Outcome  # everything in int8
    after: Outcome  # without those operators
    table: tuple[Operator, ...]  # all operators, with ``alone_db`` where that was tried

    @property
    def sqnr_db(self) -> float:
        """Of the outputs, with the operators left in float."""
        return self.after.sqnr_db

    @property
    def worst_db(self) -> float:
        """Of the worst channel of the outputs, with the operators left in float."""
        return self.after.worst_db


def suggest(
    prepared: GraphModule | Quantized,
    batches: Sequence[Tensors],
    exact: Sequence[Tensor | Tensors],
    enough_db: float,
    most: int = 8,
    enough_worst_db: float | None = None,
) -> Suggestion:
    """Leave the operator in float that helps most, then another, until the outputs are good enough or nothing helps.

    Worst channel and whole count alike, each up to what is enough. Where no operator helps alone, each is tried
    together with those that round its inputs.

    Args:
        prepared: what ``prepare_pt2e`` returned, calibrated; or a :class:`Quantized` of it.
        batches: tuples of inputs.
        exact: the float model's output for each of them, or a sequence of its outputs.
        enough_db: of the outputs.
        most: operators that are left in float at most.
        enough_worst_db: of their worst channel; as for the outputs, if None. Among a thousand classes and a few inputs
            some channel is always close to zero, and bad by chance: take ``-math.inf`` for classes.

    Raises:
        FindError: if the graph without any rounding is not the float model.
        GraphError: if the graph is not calibrated.
    """
    quantized = prepared if isinstance(prepared, Quantized) else Quantized(prepared)
    unrounded = measure(quantized.without(weights=False, activations=False), batches, exact)
    if unrounded.sqnr_db < SAME_DB:
        raise FindError(
            f"Without any rounding the graph is {unrounded.sqnr_db:.0f} dB from the float model: it is another model, "
            f"or those are the outputs of other inputs."
        )
    before = after = measure(quantized.without(), batches, exact)
    table = compare(quantized, batches)
    names = [one.name for one in suspicious(table)]
    enough = Outcome(enough_db, enough_db if enough_worst_db is None else enough_worst_db)
    known = {one.name: one for one in table}
    chosen: list[str] = []
    tried: dict[str, Outcome] = {}

    def score(outcome: Outcome) -> float:
        return sum(min(max(db, -EXACT_DB), max(top, -EXACT_DB)) for db, top in zip(outcome, enough, strict=True))

    words = []
    while names and len(chosen) < most and score(after) < score(enough):
        found = alone_in_float(quantized, batches, exact, names, chosen)
        tried = tried or found
        groups = {name: [name] for name in found}
        if max(map(score, found.values())) < score(after) + HELPS_DB:
            groups = {name: sorted({name, *quantized.givers(name)} - {*chosen}) for name in names}
            groups = {name: group for name, group in groups.items() if 1 < len(group) <= most - len(chosen)}
            found = {
                name: measure(quantized.without({*group, *chosen}), batches, exact) for name, group in groups.items()
            }
        best = max(found, key=lambda name: score(found[name]), default="")
        if not best or score(found[best]) < score(after) + HELPS_DB:
            break
        chosen += groups[best]
        words += [explain(known[name], after, found[best]) for name in groups[best] if name in known]
        after = found[best]
        names = sorted(set(found) - {*chosen}, key=lambda name: -score(found[name]))[:AGAIN]
    for name, outcome in tried.items():
        known[name] = replace(known[name], alone_db=outcome.sqnr_db, alone_worst_db=outcome.worst_db)
    return Suggestion(tuple(chosen), tuple(words), before, after, tuple(known.values()))


def explain(one: Operator, before: Outcome, after: Outcome) -> str:
    """What is to blame at an operator, and the cure for that kind, in words; and what leaving it in float gains."""
    wide = sorted(one.parts, key=lambda part: max(map(abs, part)))
    spans = [f"{low:.3g} to {high:.3g}" for low, high in wide]
    if one.reach >= HUGE:
        low, high = min(pair[0] for pair in (one.range, *wide)), one.range[1]
        what = f"its values reach from {low:.2g} to {high:.2g}, and 256 steps over that range are worth nothing"
        cure = (
            "Leave it in float; a mask of -30 does the same after softmax" if one.kind in SUMS else "Leave it in float"
        )
    elif one.kind == "cat" and _unlike(one):
        what = f"it joins parts of different scale, from {spans[0]} and from {spans[-1]}, in one range of 256 steps"
        cure = "Return the parts as separate outputs, or leave the cat in float"
    elif _unlike(one):
        what = f"it adds values of different scale, from {spans[0]} and from {spans[-1]}, in one range of 256 steps"
        cure = "Bring them to one scale, or leave the sum in float"
    elif one.weights_apart >= UNLIKE:
        what = f"the widest channel of its weights is {one.weights_apart:.3g} times as wide as the median one"
        cure = "Take one scale for each channel, or leave it in float"
    else:
        what, cure = "of what is in int8 yet, its rounding costs the outputs most", "Leave it in float"
    gain = f"In float, the outputs have {after.sqnr_db:.1f} dB instead of {before.sqnr_db:.1f}"
    gain += f", and their worst channel {after.worst_db:.1f} instead of {before.worst_db:.1f}"
    return f"{one.name} ({one.where or one.kind}): {what}. {cure}. {gain}.".replace("e+", "e")
