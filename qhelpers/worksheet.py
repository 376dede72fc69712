"""What would distract in the worksheet: checks of a stranger's model and data, the choice of a workflow, sizes.

A model takes one tensor ``(n, …)`` and gives logits ``(n, classes)``; a loader yields such tensors, or
``(tensor, labels)``, and can be gone through more than once.
"""

import copy
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Tracer
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from qhelpers import calibration, metrics, models

TARGETS = {"pytorch": "PyTorch itself", "executorch": "ExecuTorch (.pte)", "onnx": "ONNX Runtime (.onnx)"}
KINDS: dict[str, tuple[type, ...]] = {  # in this order: a projection of attention is a Linear, too
    "attention": (nn.MultiheadAttention, NonDynamicallyQuantizableLinear),
    "convolution": (_ConvNd,),
    "linear": (nn.Linear,),
    "recurrent": (nn.RNNBase, nn.RNNCellBase),
    "embedding": (nn.Embedding, nn.EmbeddingBag),
    "normalization": (_NormBase, nn.LayerNorm, nn.GroupNorm),
}


class WorksheetError(ValueError):
    """The worksheet cannot work with what it was given."""


class ModelError(WorksheetError):
    """The model is none, holds numbers that are not finite, or has nothing to quantize."""


class AlreadyQuantizedError(ModelError):
    """The model has int8 weights; the worksheet starts from the float model."""


class CannotRunError(ModelError):
    """The model fails on the given data, or gives no logits for it."""


class DataError(WorksheetError):
    """A loader is empty, can be used only once, or yields no inputs or impossible labels."""


class TargetError(WorksheetError):
    """There is no such target, or the model has no way to it."""


# --- what the reader brings ----------------------------------------------------------------------------


def checked_model(model: Any) -> tuple[nn.Module, list[str]]:
    """A copy in evaluation mode, and notes for the report; the model itself is left as it is.

    Raises:
        AlreadyQuantizedError: naming the first int8 layers.
        ModelError: if it is no module, or holds NaN or infinity, naming where.

    >>> checked_model(nn.Linear(2, 2))[1]
    ['The model came in training mode: the worksheet works on a copy in evaluation mode.']
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"model must be an nn.Module; it is {_a(type(model).__name__)}.")
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    int8 = models.int8_modules(model) + [name for name, value in tensors.items() if not _is_plain(value)]
    if int8:
        shown = ", ".join(int8[:3]) + (", …" if len(int8) > 3 else "")
        raise AlreadyQuantizedError(
            f"This {type(model).__name__} is quantized already ({shown}): give the float model from which it was made."
        )
    broken = [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise ModelError(f"The model holds NaN or infinity in {', '.join(broken[:3])}: no scale can be found for them.")
    notes = ["The model came in training mode: the worksheet works on a copy in evaluation mode."]
    return copy.deepcopy(model).eval(), notes if any(module.training for module in model.modules()) else []


def _is_plain(value: Tensor) -> bool:
    ours = type(value.data) is Tensor  # torchao's int8 tensors are of a type of their own
    return ours and not value.is_quantized and value.dtype not in (torch.int8, torch.uint8)


def _a(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def checked_loader(loader: Any, name: str, least: int = 1) -> tuple[int, bool]:
    """How many inputs a loader yields, and whether each batch has labels.

    Args:
        name: of the variable, for the messages.
        least: how many inputs it must have.

    Raises:
        DataError: if it is empty or has too few inputs, can be gone through only once, yields something else than
            tensors, or labels that are not one integer for each input.

    >>> checked_loader([torch.zeros(4, 3)], "test_loader")
    (4, False)
    """
    if not isinstance(loader, Iterable) or iter(loader) is loader:
        raise DataError(f"{name} must be a loader or a list of batches, to be gone through more than once.")
    n, labelled = 0, True
    for batch in loader:
        try:
            inputs = calibration.batch_images(batch)
        except calibration.BatchTypeError as error:
            raise DataError(f"{name}: {error}") from error
        labels = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
        n, labelled = n + len(inputs), labelled and labels is not None
        if labels is not None and (labels.shape != (len(inputs),) or labels.is_floating_point()):
            raise DataError(
                f"{name}: labels must be one integer for each input; {len(inputs)} inputs came with labels of shape "
                f"{tuple(labels.shape)}, {str(labels.dtype).removeprefix('torch.')}."
            )
    if n < least:
        seen = "no input" if n == 0 else f"{n} input{'s' * (n > 1)}"
        raise DataError(f"{name} yielded {seen}; it needs at least {least}: a hundred are a good number.")
    return n, labelled


def check_run(model: nn.Module, inputs: Tensor, name: str) -> None:
    """Run the model once on the first two of the inputs.

    Raises:
        CannotRunError: with shape, type and PyTorch's own first line; or if the outputs are no finite logits.

    >>> check_run(nn.Linear(3, 2), torch.zeros(1, 4), "example")
    Traceback (most recent call last):
        ...
    qhelpers.worksheet.CannotRunError: Linear cannot run on example, float32 of shape (1, 4): RuntimeError: mat1 and \
mat2 shapes cannot be multiplied (1x4 and 3x2)
    """
    inputs = inputs[:2]
    given = f"{name}, {str(inputs.dtype).removeprefix('torch.')} of shape {tuple(inputs.shape)}"
    try:
        with torch.inference_mode():
            found = model(inputs)
    except Exception as error:  # whatever a stranger's model raises
        words = f"{type(error).__name__}: {models.first_line(error)}"
        raise CannotRunError(f"{type(model).__name__} cannot run on {given}: {words}") from error
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(inputs):
        gives = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else _a(type(found).__name__)
        raise CannotRunError(f"{type(model).__name__} gives {gives} for {given}; it should give (n, classes).")
    if not bool(torch.isfinite(found).all()):
        raise CannotRunError(f"{type(model).__name__} gives NaN or infinity for {given}.")


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
        others["static"] = "it fixes the ranges of activations, for no gain where weights are what takes time."
        return Choice("dynamic", "quantize_dynamic", why, others)
    why = [f"{has['convolution']}, which dynamic quantization passes over."]
    others["dynamic"] = "it has no int8 convolution."
    if "recurrent" in kinds:
        why.append(f"{has['recurrent']}: those stay in float beside static convolutions.")
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
