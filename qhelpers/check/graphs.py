"""Guards of the PT2E workflow: capture a model, prepare its graph, calibrate it, against silent mistakes.

``prepare_pt2e`` accepts a quantizer that asks for nothing, and ``convert_pt2e`` a graph that has seen no data.
"""

import copy
import io
import linecache
import logging
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from qhelpers import guards


class GraphError(RuntimeError):
    """A graph cannot be captured, or would be converted to something other than an int8 graph."""


class NothingAskedError(GraphError):
    """A quantizer asked for nothing in a graph."""


def capture(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
) -> ExportedProgram:
    """What ``torch.export.export`` captures, or its refusal in words.

    A branch on a *shape* is decided once, for the example. If that dimension is dynamic, export proves that all sizes
    in its range take the same branch, but for one: it assumes that a dynamic dimension is not 1. So a captured graph
    may answer wrongly for a batch of one, and is therefore compared with the model there.

    Args:
        model: in evaluation, or nothing is compared; outputs are compared that are a tensor or a tuple of them.
        args: example inputs.
        kwargs: example inputs by name.
        dynamic_shapes: as ``torch.export.export`` takes them.

    Raises:
        GraphError: for what needs *values*, such as control flow on them, a Python number or NumPy, with the line where
            it is; if the example's size is 0 or 1 where it is to be dynamic; or if a dynamic dimension may be 1, and
            the model branches there. Other errors of torch.export are left as they are.

    >>> capture(nn.Linear(2, 2), (torch.ones(1, 2),)).module()(torch.zeros(1, 2)).shape
    torch.Size([1, 2])
    """
    try:
        with _quiet("torch.fx.experimental.symbolic_shapes"):
            captured = torch.export.export(model, args, dict(kwargs or {}), dynamic_shapes=dynamic_shapes)
    except (RuntimeError, ValueError) as error:
        if why := _refusal(error):
            raise GraphError(why) from error
        raise
    if not kwargs and not model.training:
        _require_same_for_one(model, captured, args)
    return captured


def _refusal(error: Exception) -> str:
    """What torch.export refuses, and the cure; nothing where its own words are all that is known."""
    if isinstance(error, GuardOnDataDependentSymNode):
        frames = traceback.extract_tb(error.__traceback__)
        if any(frame.name == "_detect_is_causal_mask" for frame in frames):
            return (
                f"nn.Transformer looks at the values of its mask, whether it is causal{own_line(error)}, and a graph "
                f"knows no values: give is_causal=True or is_causal=False beside the mask."
            )
        choose = (
            "choose by torch.where(condition, a, b), which PT2E quantizes; or keep the branch with torch.cond, whose "
            "inside stays in float; or take the choice out of forward."
        )
        if re.search(r"expression \w+ \(", str(error)):  # a value alone, not a comparison
            return (
                f"The model turns a tensor into a Python number{own_line(error)}, and a graph knows no values: "
                f"compute with the tensor itself. Where it decides, compute both and {choose}"
            )
        return (
            f"The model branches on values{own_line(error)}, and a graph has no branches: torch.export follows those "
            f"on shapes only. Compute both and {choose}"
        )
    if ".numpy() is not supported" in str(error):
        return (
            f"The model hands a tensor to NumPy{own_line(error)}, where torch.export cannot follow: write it with "
            f"PyTorch's own operators, or take it out of forward."
        )
    if size := re.search(r"a constant \(([01])\)|0/1 specialized due to hint of ([01])", str(error)):
        return (
            f"A dimension is to be dynamic, and the example has the size {size[1] or size[2]} there, which "
            f"torch.export takes for a constant: give it an example of at least 2."
        )
    return ""


def require_annotated(prepared: GraphModule) -> GraphModule:
    """Return the prepared graph if its quantizer asked for anything; call it after ``prepare_pt2e``.

    Raises:
        GraphError: if it is no graph.
        NothingAskedError: if nothing in it is observed, so that ``convert_pt2e`` would return the float graph without a
            word: a quantizer without ``set_global``, or for types of modules that do not occur.

    >>> require_annotated(torch.fx.symbolic_trace(nn.ReLU()))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    qhelpers.check.graphs.NothingAskedError: Nothing in this graph is observed, and convert_pt2e would leave ...
    """
    if not any(True for _ in _observers(prepared)):
        raise NothingAskedError(
            "Nothing in this graph is observed, and convert_pt2e would leave it in float: its quantizer annotated no "
            "operator. Give the quantizer a configuration, for all operators by set_global(config), or for the type "
            "of a module that occurs by set_module_type; operators inside torch.cond are passed over. A graph that "
            "was not prepared, or is already converted, has no observers either."
        )
    return prepared


def require_observed(prepared: GraphModule) -> GraphModule:
    """Return the prepared graph if all its observers have seen data; call it before ``convert_pt2e``.

    Works for observers and for the fake quantizers of ``prepare_qat_pt2e``, in training and in evaluation. Ranges
    that are found at run time (``is_dynamic``) need no data.

    Raises:
        GraphError: if it is no graph or nothing is observed (:func:`require_annotated`); or if data are missing, naming
            what was to be observed, since ``convert_pt2e`` gives that the scale 1 and the zero point 0 and merely
            warns: weights below 0.5 become 0.

    >>> require_observed(torch.fx.symbolic_trace(nn.ReLU()))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    qhelpers.check.graphs.NothingAskedError: Nothing in this graph is observed, and convert_pt2e would leave ...
    """
    require_annotated(prepared)
    found = list(_observers(prepared))
    empty = [name for name, observer in found if _saw_nothing(observer)]
    if empty:
        shown = ", ".join(empty[:3]) + (", …" if len(empty) > 3 else "")
        raise GraphError(
            f"{len(empty)} of the {len(found)} observers of this graph have seen no data (of {shown}): run batches of "
            f"calibration data through the prepared graph first. convert_pt2e would give them the scale 1 and the "
            f"zero point 0, with no more than a warning, and the graph would answer with numbers that mean nothing."
        )
    return prepared


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Hide what a logger says, and the graph that torch.export prints, before an error that says the same."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)


def own_line(error: BaseException) -> str:
    """Where an error arose: the innermost line outside PyTorch and this package, else of PyTorch's own module."""
    frames = traceback.extract_tb(error.__traceback__)
    inside, modules = str(Path(torch.__file__).parent), str(Path(nn.Module.__module__.replace(".", "/")).parent)
    ours = str(Path(__file__).parent)
    own = [frame for frame in frames if frame.line and not frame.filename.startswith((inside, ours))]
    frames_of_modules = [one for one in frames if modules in one.filename and not one.filename.endswith("/module.py")]
    if not frames_of_modules and not own:
        return ""
    frame = own[-1] if own else frames_of_modules[-1]
    line = linecache.getline(frame.filename, frame.lineno or 0).strip()
    file = "" if own else f" of {modules}/{Path(frame.filename).name}"
    return f" in {frame.name}, line {frame.lineno}{file}" + (f" ({line!r})" if line else "")


def places(program: ExportedProgram, words: str) -> str:
    """Which layers and lines of a model compute the operators that an error names, as a sentence; or nothing.

    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> places(capture(model, (torch.ones(1, 2),)), "kernel 'aten::linear.out' not found")[:23]
    ' It is computed by 0: r'
    """
    named = {name.strip("_") for name in re.findall(r"aten(?:::|\.)(\w+)", words)}
    found = [one for one in program.graph.nodes if str(one.target).split(".")[:1] == ["aten"]]
    found = [one for one in found if str(one.target).split(".")[1].strip("_") in named]
    shown = list(dict.fromkeys(filter(None, map(_place, found))))
    if not shown:
        return ""
    more = " and others" if len(shown) > 2 else ""
    return f" It is computed by {', '.join(shown[:2])}{more}: rewrite that, or choose another target."


def _place(node: torch.fx.Node) -> str:
    frames = re.findall(r'File "(.*)", line (\d+), in .*\n *(.*)', node.meta.get("stack_trace") or "")
    ignored = (str(Path(torch.__file__).parent / "nn"), str(Path(__file__).parent))
    own = [one for one in frames if not one[0].startswith(ignored)]
    path = next(reversed(node.meta.get("nn_module_stack", {"": ("",)}).values()))[0].removeprefix("model.")
    line = f" in line {own[-1][1]} (`{own[-1][2].strip()}`)" if own else ""
    return f"{path}{line}" if path or line else ""


def _require_same_for_one(model: nn.Module, captured: ExportedProgram, args: tuple[Any, ...]) -> None:
    """Compare graph and model where each dynamic dimension is 1, if the graph takes that.

    With equal random numbers, and on copies: buffers that count calls stay as they are. A model that does not repeat
    its own answer is not compared.
    """
    nodes = [node for node in captured.graph.nodes if node.name in captured.graph_signature.user_inputs]
    dynamic = {
        (place, dim)
        for place, node in enumerate(nodes)
        if isinstance(node.meta.get("val"), Tensor)
        for dim, size in enumerate(node.meta["val"].shape)
        if not isinstance(size, int)
    }
    if not dynamic or len(nodes) != len(args):
        return  # nothing is dynamic, or inputs are nested
    ones = list(args)
    for place, dim in dynamic:
        ones[place] = ones[place].narrow(dim, 0, 1)
    answers = []
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            for run in (model, model, captured.module()):
                torch.manual_seed(0)
                answers.append(copy.deepcopy(run)(*ones))
        except Exception:  # a size that one of the two refuses is not answered wrongly
            return
    expected, again, found = answers
    if _alike(expected, again) and not _alike(expected, found):
        raise GraphError(
            "The captured graph answers differently from the model where its dynamic dimensions are 1: the model "
            "branches on that size, and the graph has the example's branch only. torch.export assumes that a dynamic "
            "dimension is not 1, and the graph refuses no 1 later, even with Dim(name, min=2). Capture a second graph "
            "with an example of size 1 and no dynamic dimension, or rewrite the branch so that 1 needs none."
        )


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        near = partial(torch.allclose, rtol=1e-3, atol=1e-4, equal_nan=True)
        return one.shape == other.shape and near(one.float(), other.float())
    return not isinstance(one, (list, tuple)) or all(map(_alike, one, other))


def _observers(prepared: GraphModule) -> Iterator[tuple[str, nn.Module]]:
    """The observers and fake quantizers of a prepared graph, with the name of what they observe."""
    if not isinstance(prepared, GraphModule):
        raise GraphError(
            f"{type(prepared).__name__} is no graph: capture it, take module() of what is captured, and prepare that "
            f"with prepare_pt2e."
        )
    guards.require_packages("deploy", "torchao")
    from torchao.quantization import pt2e

    modules = dict(prepared.named_modules())
    seen: set[int] = set()
    for node in prepared.graph.nodes:
        observer = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(observer, (pt2e.ObserverBase, pt2e.FakeQuantizeBase)) and id(observer) not in seen:
            seen.add(id(observer))  # one may be shared by several places
            yield str(node.args[0]).removeprefix("_"), observer


def _saw_nothing(observer: nn.Module) -> bool:
    inner = getattr(observer, "activation_post_process", observer)
    low = getattr(inner, "min_val", None)
    return isinstance(low, Tensor) and not bool(torch.isfinite(low).any())
