"""What would distract in the worksheet: folding norms, the choice of a workflow, sizes, the verdict."""

import copy
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Tracer
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from qhelpers import metrics
from qhelpers.check.inputs import ModelError, WorksheetError

TARGETS = {"pytorch": "PyTorch itself", "executorch": "ExecuTorch (.pte)", "onnx": "ONNX Runtime (.onnx)"}
# what quantize_dynamic takes as it is, beside Linear
RECURRENT: tuple[type[nn.Module], ...] = (nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell, nn.RNNCell)
KINDS: dict[str, tuple[type, ...]] = {  # in this order: a projection of attention is a Linear, too
    "attention": (nn.MultiheadAttention, NonDynamicallyQuantizableLinear),
    "convolution": (_ConvNd,),
    "linear": (nn.Linear,),
    "recurrent": RECURRENT,
    "plain RNN": (nn.RNN,),  # quantize_dynamic has no int8 form of it, but of its cell
    "embedding": (nn.Embedding, nn.EmbeddingBag),
    "normalization": (_NormBase, nn.LayerNorm, nn.GroupNorm),
}


class TargetError(WorksheetError):
    """There is no such target, or the model has no way to it."""


def fold_norms(model: nn.Module) -> tuple[nn.Module, int]:
    """A copy in which each batch norm that alone reads a convolution or Linear is folded into it, and their number.

    A model that ``torch.fx`` cannot follow is copied as it is. Source: Jacob et al. 2018, section 3.2.

    >>> fold_norms(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).eval())[1]
    1
    """
    model, folded = copy.deepcopy(model), 0
    try:
        graph = Tracer().trace(model)
    except Exception:  # whatever a stranger's model raises when it is shown a proxy
        return model, 0
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        before: Any = node.args[0] if node.op == "call_module" and node.args else None
        if getattr(before, "op", "") != "call_module" or len(before.users) > 1:
            continue
        layer, norm = model.get_submodule(before.target), model.get_submodule(str(node.target))
        if not isinstance(norm, _BatchNorm) or norm.running_mean is None:
            continue
        if not isinstance(layer, (_ConvNd, nn.Linear)) or isinstance(layer, _ConvTransposeNd):
            continue
        if max(calls[before.target], calls[node.target]) > 1:
            continue  # shared: what is right for one call would be wrong for the other
        fuse: Callable[..., nn.Module] = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        model.set_submodule(before.target, fuse(layer, norm))
        model.set_submodule(str(node.target), nn.Identity())
        folded += 1
    return model, folded


# --- the choice of a workflow ---------------------------------------------------------------------------


def weights_by_kind(model: nn.Module) -> dict[str, int]:
    """How many parameters the layers of each kind hold, the largest first; kinds that do not occur are left out.

    >>> weights_by_kind(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Linear(2, 2)))
    {'convolution': 20, 'linear': 6}
    """
    found: Counter[str] = Counter()
    for module in model.modules():
        kind = next((kind for kind, types in KINDS.items() if isinstance(module, types)), "other")
        found[kind] += sum(parameter.numel() for parameter in module.parameters(recurse=False))
    return {kind: n for kind, n in found.most_common() if n}


@dataclass(frozen=True)
class Choice:
    """A workflow, the tool that does it here, the reasons, and why the other workflows were not chosen."""

    workflow: str  # "dynamic", "static" or "PT2E"
    tool: str
    why: list[str]
    others: dict[str, str]


def choose(model: nn.Module, target: str, example: Tensor | None = None) -> Choice:
    """Which workflow fits, from the target and from where the weights are.

    Raises:
        TargetError: for an unknown target, or an example that its file cannot take.
        ModelError: if no layer is of a kind that the workflow can quantize.

    >>> choose(nn.Sequential(nn.Linear(2, 2)), "pytorch").workflow
    'dynamic'
    """
    if target not in TARGETS:
        raise TargetError(f"There is no target {target!r}; choose one of: {', '.join(TARGETS)}.")
    if target != "pytorch" and example is not None and example.dtype != torch.float32:
        kind = str(example.dtype).removeprefix("torch.")
        raise TargetError(f"The file for {target} takes float32 here; the example is {kind}: take the target pytorch.")
    kinds = weights_by_kind(model)
    share = {kind: 100 * n / max(1, sum(kinds.values())) for kind, n in kinds.items()}
    has = {kind: f"{share.get(kind, 0):.0f} % of the weights are in {kind} layers" for kind in [*KINDS, "other"]}
    if not {"convolution", "linear", "recurrent" if target == "pytorch" else "attention"} & set(kinds):
        raise ModelError(f"This {type(model).__name__} has no layer to quantize; its parameters: {kinds or 'none'}.")
    others = {"QAT": "it needs training: the last resort, if no repair keeps the accuracy."}
    if target != "pytorch":
        why = [f"The target is {TARGETS[target]}: its file is made from a captured graph, and PT2E quantizes graphs."]
        if "recurrent" in kinds:
            why.append(f"{has['recurrent']}: they stay in float on this road; the target pytorch has int8 for them.")
        if "plain RNN" in kinds:
            why.append(f"{has['plain RNN']}: they stay in float, here and in PyTorch.")
        others["dynamic"] = "torch.export cannot capture its int8 modules."
        others["static"] = "torch.export cannot capture its int8 modules, either."
        return Choice("PT2E", "XNNPACK's quantizer", why, others)
    others["PT2E"] = "inside PyTorch its graph is slow until torch.compile has compiled it, with a C++ compiler."
    if kinds.get("convolution", 0) <= kinds.get("recurrent", 0):
        known = ", ".join(has[kind] for kind in kinds if kind in ("linear", "recurrent"))
        why = [f"{known}: quantize_dynamic has int8 layers for them, and needs no calibration."]
        if "convolution" in kinds:
            why.append(f"{has['convolution']}: those stay in float.")
        if "attention" in kinds:
            why.append(f"{has['attention']}: quantize_dynamic leaves those in float; PT2E would not.")
        if "plain RNN" in kinds:
            why.append(f"{has['plain RNN']}: quantize_dynamic has no int8 for those; it has for LSTM, GRU and cells.")
        others["static"] = "it fixes the ranges of activations, for no gain where weights are what takes time."
        return Choice("dynamic", "quantize_dynamic", why, others)
    why = [f"{has['convolution']}, which dynamic quantization passes over."]
    others["dynamic"] = "it has no int8 convolution."
    for kind in ("recurrent", "plain RNN"):
        if kind in kinds:
            why.append(f"{has[kind]}: those stay in float beside static convolutions.")
    if "attention" in kinds:
        why.append(
            f"{has['attention']}: FX passes over attention and encoder layers whole, with the Linear layers inside."
        )
    why.append("FX graph mode needs no stubs and gives int8 kernels at once; it is deprecated, as eager mode is.")
    return Choice("static", "FX", why, others)


# --- sizes and quality ----------------------------------------------------------------------------------


def layer_sizes(model: nn.Module, folded: nn.Module, int8: Collection[str], per_channel: bool) -> list[dict[str, Any]]:
    """One row for each layer that holds parameters: kilobytes (1,000 bytes) before and after.

    Args:
        model: as the reader gave it.
        folded: from :func:`fold_norms`, possibly repaired; what it no longer has counts as zero.
        int8: names of the parameters that are int8 afterwards: a byte each, and four for each scale.
        per_channel: whether each output channel has a scale.

    >>> layer_sizes(net := nn.Sequential(nn.Linear(1000, 1)), net, {"0.weight"}, False)[0]["int8 kB"]
    1.008
    """
    after = dict(folded.named_modules())
    rows = []
    for name, module in model.named_modules():
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        kept = {f"{name}.{own}".lstrip("."): p for own, p in after[name].named_parameters(recurse=False)}
        scales = {own: 4 * (len(p) if per_channel else 1) for own, p in kept.items()}
        bytes_after = sum(p.numel() + scales[own] if own in int8 else 4 * p.numel() for own, p in kept.items())
        rows.append(
            {
                "layer": name or "(model)",
                "type": type(module).__name__,
                "float kB": sum(4 * p.numel() for p in module.parameters(recurse=False)) / 1e3,
                "int8 kB": bytes_after / 1e3,
                "int8": any(own in int8 for own in kept),
            }
        )
    return rows


def observed_weights(prepared: GraphModule) -> set[str]:
    """Names of the parameters that a graph from ``prepare_pt2e`` reads through an observer: they become int8.

    >>> observed_weights(torch.fx.symbolic_trace(nn.Linear(2, 2)))
    set()
    """
    reads = [node for node in prepared.graph.nodes if node.op == "get_attr"]
    return {str(node.target) for node in reads if any("post_process" in str(user.target) for user in node.users)}


def embedding_tables(model: nn.Module) -> set[str]:
    """Names of the weights of embeddings, which stay in float on all of the worksheet's roads.

    >>> embedding_tables(nn.Sequential(nn.Embedding(3, 2)))
    {'0.weight'}
    """
    kinds = (nn.Embedding, nn.EmbeddingBag)
    return {f"{name}.weight".lstrip(".") for name, module in model.named_modules() if isinstance(module, kinds)}


@dataclass(frozen=True)
class Quality:
    """A model beside its float original: same class and top-1 as shares, SQNR of the logits in dB."""

    same: metrics.Share
    top1: metrics.Share | None  # None without labels
    sqnr_db: float


def judge(found: Tensor, exact: Tensor, labels: Tensor | None) -> Quality:
    """Compare logits ``(n, classes)`` with those of the float model, and with the labels if there are any.

    >>> str(judge(torch.eye(2), torch.eye(2), None).same)
    '100.0 % (34.2 to 100.0, n = 2)'
    """
    same = metrics.Share(int((found.argmax(1) == exact.argmax(1)).sum()), len(found))
    top1 = None if labels is None else metrics.Share(int((found.argmax(1) == labels).sum()), len(found))
    return Quality(same, top1, metrics.sqnr_db(exact, found))


# --- the verdict ----------------------------------------------------------------------------------------

SLACK = 1e-9  # points: 64.4 - 63.9 is a little more than 0.5 in floating point


def keeps(lost: float, budget: float) -> bool:
    """Whether so many points lost are within the budget, both in points.

    >>> keeps(64.4 - 63.9, 0.5), 64.4 - 63.9 <= 0.5
    (True, False)
    """
    return lost <= budget + SLACK


def most_changed(same: metrics.Share) -> float:
    """Percent of the answers that change at most: with 95 % confidence, from the interval of those that do not.

    >>> f"{most_changed(metrics.Share(1000, 1000)):.2f}"
    '0.38'
    """
    return 100 - same.interval[0]


def headline(same: metrics.Share, within: bool, plan: str, kept: Sequence[str], simulated: bool = True) -> str:
    """What the figures say, and what to do next.

    Args:
        same: answers of the int8 file on the validation data that are those of the float model.
        within: whether the file keeps the budget.
        plan: that was converted.
        kept: plans that keep the budget in the simulation, the suggested one first.
        simulated: whether there was a simulation at all.

    >>> headline(metrics.Share(9, 10), False, "per channel", [])
    'int8 is over the budget after all repairs: go on to QAT.'
    """
    if within:
        at_most = f"with 95 % confidence at most {most_changed(same):.1f} % of the answers change"
        return f"int8 keeps the budget on these {same.n:,} validation inputs, without training; {at_most}."
    if not simulated:
        return "The file is over the budget, and no layer can be simulated to find a repair: go on to QAT."
    if not kept:
        return "int8 is over the budget after all repairs: go on to QAT."
    later = [*kept][kept.index(plan) + 1 :] if plan in kept else [*kept]
    following = f"try the next plan (plan = plans[{later[0]!r}]), then QAT" if later else "go on to QAT"
    return f"The file of the plan {plan!r} is over the budget although its simulation was not: {following}."
