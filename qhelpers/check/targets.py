"""The places where an int8 model can run: how each quantizes, writes its file, loads it again, and counts its kernels.

Files are made from a captured graph by PT2E, except two: ``pytorch`` swaps layers for dynamic ones in eager mode, and a
dynamic ``.onnx`` file comes from ONNX Runtime's own tool. Weights have a scale for each channel everywhere.
"""

import contextlib
import copy
import dataclasses
import io
import platform
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from qhelpers import census, engines, guards
from qhelpers.check import files, float_paths, folding, graphs, kernels, onnx_scheme, packages
from qhelpers.check.adapter import Flat
from qhelpers.check.errors import CheckError, reason

ANNOTATION = "quantization_annotation"  # the key under which PT2E's quantizers leave their wishes
STATIC, DYNAMIC = "static", "dynamic"
FLOAT, STATE = "layers in float", "state"  # the keys in a file of eager mode
DYNAMIC_OPERATORS = (torch.ops.aten.linear.default,)
LAYERS = {  # also where a function computes them, as in attention
    torch.ops.aten.linear.default: "torch.nn.modules.linear.Linear",
    torch.ops.aten.conv2d.default: "torch.nn.modules.conv.Conv2d",
}
RECURRENT: tuple[type[nn.Module], ...] = (nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell, nn.RNNCell)
EAGER_LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, *RECURRENT)  # that have int8 in eager mode
Run = Callable[..., tuple[Tensor, ...]]


class TargetError(CheckError):
    """There is no such target, or nothing in the model can be int8 there."""


@dataclass(frozen=True)
class Target:
    """A place where an int8 model runs."""

    suffix: str  # of its file
    words: str
    own_float: str  # what :mod:`qhelpers.check.float_paths` calls the float model in this runtime
    packages: tuple[str, ...] = ()  # that it needs


ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime", "torchao", "executorch")  # the last for its quantizer
TARGETS = {
    "executorch": Target(".pte", "ExecuTorch, with XNNPACK", float_paths.PTE, ("executorch", "torchao")),
    "onnx-x86": Target(".onnx", "ONNX Runtime on x86", float_paths.ONNX, ONNX_PACKAGES),
    "onnx-arm": Target(".onnx", "ONNX Runtime on ARM", float_paths.ONNX, ONNX_PACKAGES),
    "aotinductor": Target(".pt2", "PyTorch, compiled ahead of time", float_paths.COMPILED, ("torchao",)),
    "pytorch": Target(".pt", "PyTorch in eager mode", float_paths.EAGER),
}


def checked(target: str) -> Target:
    """The target of that name.

    Raises:
        TargetError: if there is none.
        GuardError: if a package that it needs is not installed.

    >>> checked("onnx")
    Traceback (most recent call last):
        ...
    qhelpers.check.targets.TargetError: There is no target 'onnx'; choose one of: executorch, onnx-x86, onnx-arm, \
aotinductor, pytorch.
    """
    if target not in [*TARGETS]:  # also what has no hash
        raise TargetError(f"There is no target {target!r}; choose one of: {', '.join(TARGETS)}.")
    if TARGETS[target].packages:
        guards.require_packages("deploy", *TARGETS[target].packages)
    if target == "aotinductor":
        packages.require_compiler()
    return TARGETS[target]


# --- what can be int8 --------------------------------------------------------------------------------


def weights_by_kind(model: nn.Module) -> dict[str, int]:
    """How many parameters the layers of each kind hold, the largest first; kinds that do not occur are left out.

    >>> weights_by_kind(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Linear(2, 2)))
    {'convolution': 20, 'linear': 6}
    """
    kinds: dict[str, tuple[type, ...]] = {  # in this order: a projection of attention is a Linear, too
        "attention": (nn.MultiheadAttention, NonDynamicallyQuantizableLinear),
        "convolution": (_ConvNd,),
        "linear": (nn.Linear,),
        "recurrent": (*RECURRENT, nn.RNN),
        "embedding": (nn.Embedding, nn.EmbeddingBag),
    }
    found: dict[str, int] = {}
    for module in model.modules():
        other = "other" if any(one.ndim > 1 for one in module.parameters(recurse=False)) else "norm"
        kind = next((kind for kind, types in kinds.items() if isinstance(module, types)), other)
        found[kind] = found.get(kind, 0) + sum(one.numel() for one in module.parameters(recurse=False))
    return {kind: n for kind, n in sorted(found.items(), key=lambda pair: -pair[1]) if n}


def modes(model: nn.Module, target: str) -> list[str]:
    """The ways to quantize that fit, the one to begin with first.

    Dynamic quantization has int8 for matrix products only, and needs no ranges of activations: it comes first where
    these hold more weights than convolutions do. In eager mode there is no other here.

    Raises:
        TargetError: if no layer is of a kind that can be int8 there.

    >>> modes(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 2)), "executorch")
    ['static', 'dynamic']
    """
    kinds = weights_by_kind(model)
    if target == "pytorch":
        if not any(map(has_eager_int8, model.modules())):
            raise TargetError(
                f"In eager mode only Linear and recurrent layers have int8 that is not deprecated (not nn.RNN, and "
                f"none with bias=False or proj_size), and this {type(model).__name__} has none; its parameters: "
                f"{_shown(kinds)}. "
                f"Choose aotinductor to stay in PyTorch, or a file: executorch, onnx-x86, onnx-arm."
            )
        return [DYNAMIC]
    products = sum(kinds.get(kind, 0) for kind in ("linear", "attention", "recurrent", "other"))
    if not products:
        return [STATIC]
    return [DYNAMIC, STATIC] if products > kinds.get("convolution", 0) else [STATIC, DYNAMIC]


def _shown(kinds: dict[str, int]) -> str:
    return ", ".join(f"{n:,} in {kind} layers" for kind, n in kinds.items()) or "none"


def captured(model: nn.Module, tensors: Sequence[Tensor], target: str) -> ExportedProgram:
    """The graph of a float model; for a target that has no kernel for recurrent layers, their steps one by one.

    Raises:
        GraphError: if it cannot be captured, with the line at fault.
    """
    with torch.no_grad():  # else what a model computes in no_grad() becomes a graph in the graph, and stays in float
        program = graphs.capture(model, tuple(tensors))
    if target in ("executorch", "aotinductor"):
        unrolled = [torch.ops.aten.lstm.input, torch.ops.aten.gru.input]
        if any(node.target in unrolled for node in program.graph.nodes):
            program = program.run_decompositions(torch._decomp.get_decompositions(unrolled))
    return program


# --- quantizing --------------------------------------------------------------------------------------


def quantizer(target: str, mode: str, left_out: Collection[str] = ()) -> Any:
    """PT2E's quantizer for a target, with a scale for each output channel of the weights.

    Args:
        mode: ``"static"``, or ``"dynamic"`` for Linear layers alone: their activations are quantized at run time.
        left_out: operators that stay in float: names of nodes, as :mod:`qhelpers.check.find` gives them.
    """
    asked, annotation = _asked(target, mode == DYNAMIC)
    annotate = asked.annotate

    def annotated(model: GraphModule) -> GraphModule:
        for node in model.graph.nodes:
            other = mode == DYNAMIC and node.op == "call_function" and node.target not in DYNAMIC_OPERATORS
            if other or node.name in left_out:
                node.meta[ANNOTATION] = annotation(_annotated=True)  # with nothing: every quantizer passes over it
        with _calls_apart(model):
            return _annotated_everywhere(model, annotate)

    asked.annotate = annotated
    return asked


def _annotated_everywhere(model: GraphModule, annotate: Callable[[GraphModule], GraphModule]) -> GraphModule:
    """Also further calls of a layer: XNNPACK's quantizer passes over a convolution whose weight has had its turn."""
    shared = [node for node in model.graph.find_nodes(op="get_attr") if len(node.users) > 1]
    before, count = -1, 0
    while before < count:
        annotate(model)
        for node in shared:
            node.meta.pop(ANNOTATION, None)
        before, count = count, sum(ANNOTATION in node.meta for node in model.graph.nodes)
    return model


def _asked(target: str, dynamic: bool) -> tuple[Any, Any]:
    """A quantizer, and its type of annotation."""
    if target == "aotinductor":
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        config = x86.get_default_x86_inductor_quantization_config(is_dynamic=dynamic)
        return x86.X86InductorQuantizer().set_global(config), x86._X86InductorQuantizationAnnotation
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation

    config = xnnpack.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    if target.startswith("onnx"):
        config = onnx_scheme.with_activations(config, onnx_scheme.activation_dtype(target.removeprefix("onnx-")))
        if target == "onnx-x86" and _saturates():
            config = dataclasses.replace(config, weight=dataclasses.replace(config.weight, quant_min=-64, quant_max=63))
    asked = xnnpack.XNNPACKQuantizer().set_global(config)
    # Norms behind convolutions are folded by now: its patterns for them find nothing, and take seconds to be captured.
    asked.SUPPORTED_PATTERNS = [one for one in asked.SUPPORTED_PATTERNS if not one.is_qat]
    transform = asked.transform_for_annotation
    asked.transform_for_annotation = lambda model: _with_whole_numbers(transform(model))
    return asked, QuantizationAnnotation


def _with_whole_numbers(model: GraphModule) -> GraphModule:
    """The quantizer makes floats of all numbers that are added or multiplied: where integers were, an index fails."""
    for node in model.graph.nodes:
        dtype = getattr(node.meta.get("val"), "dtype", torch.float32)
        if dtype.is_floating_point or node.target not in (torch.ops.aten.add.Tensor, torch.ops.aten.mul.Tensor):
            continue
        for one in node.args:
            if isinstance(one, torch.fx.Node) and one.op == "get_attr" and "_tensor_constant_" in str(one.target):
                whole = getattr(model, str(one.target)).to(dtype)
                setattr(model, str(one.target), whole)
                one.meta["val"] = one.meta["val"].to(dtype)
    return model


def _saturates() -> bool:
    """Whether this processor would add pairs of products in 16 bits: then weights have to be narrower."""
    return platform.machine().lower() in ("x86_64", "amd64") and not engines.has_int8_dot_product()


@contextlib.contextmanager
def _calls_apart(model: GraphModule) -> Iterator[None]:
    """Inside, each call of a module bears another name: quantizers take two calls of one for a single pattern.

    Linear layers and convolutions are called by their types also where a function computes them: x86's quantizer looks
    for these types only, and passes over attention and recurrent layers.
    """
    before = {node: node.meta["nn_module_stack"] for node in model.graph.nodes if node.meta.get("nn_module_stack")}
    for node, stack in before.items():
        key, (name, kind) = [*stack.items()][-1]
        node.meta["nn_module_stack"] = {**stack, key: (f"{name}.{node.name}", LAYERS.get(node.target, kind))}
    try:
        yield
    finally:
        for node, stack in before.items():
            node.meta["nn_module_stack"] = stack


def prepared(captured: ExportedProgram, batches: Iterable[Sequence[Tensor]], asked: Any) -> GraphModule:
    """The graph with observers that have seen the batches; weights are seen with the first one.

    Args:
        captured: of the float model.
        batches: tensors of the shapes that it was captured with.
        asked: a quantizer.

    Raises:
        GraphError: if the quantizer asked for nothing, or an observer has seen nothing.
    """
    from torchao.quantization.pt2e.constant_fold import constant_fold
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

    with torch.no_grad():
        graph = captured.module()
        constant_fold(graph)  # weights that are computed, or cut as those of attention are, become constants
        _give_own_bias(graph)
        between = _norms_apart(graph)
        graph = prepare_pt2e(graph, asked)
        for node in [node for node in graph.graph.nodes if node.name in between]:
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.graph.erase_node(node)
        graph.recompile()
        graphs.require_annotated(graph)
        for tensors in batches:
            graph(*tensors)
    return graphs.require_observed(graph)


def _give_own_bias(graph: GraphModule) -> None:
    """To each call of a layer: XNNPACK rounds a bias once, by the scale of the first call's input, and keeps that."""
    for bias in graph.graph.find_nodes(op="get_attr"):
        calls = [node for node in bias.users if node.target in LAYERS and list(node.args)[2:3] == [bias]]
        for place, node in enumerate(calls[1:]):
            name = f"_bias_of_call_{place}_{bias.name}"
            graph.register_buffer(name, attrgetter(str(bias.target))(graph).detach().clone())
            with graph.graph.inserting_before(node):
                own = graph.graph.get_attr(name)
            own.meta = dict(bias.meta)
            node.update_arg(2, own)
    graph.recompile()


NORMS = (torch.ops.aten.batch_norm.default, torch.ops.aten._native_batch_norm_legit_no_training.default)


def _norms_apart(graph: GraphModule) -> set[str]:
    """Let norms that must not be folded stand behind nodes of their own; their names.

    ``prepare_pt2e`` folds every norm behind a convolution, also where another operator reads the convolution, or its
    weight belongs to another call, too: then it is another model.
    """
    between = set()
    uses: Counter[str] = Counter()
    for node in graph.graph.nodes:
        uses[str(node.target)] += len(node.users) if node.op == "get_attr" else 0
    for norm in [node for node in graph.graph.nodes if node.target in NORMS]:
        before = norm.args[0]
        weight = before.args[1] if before.op == "call_function" and len(before.args) > 1 else None
        if not isinstance(weight, Node) or weight.op != "get_attr":
            continue
        others = len(before.users) > 1 or uses[str(weight.target)] > 1
        if others or _is_grouped(before, attrgetter(str(weight.target))(graph)):
            with graph.graph.inserting_before(norm):
                node = graph.graph.call_function(torch.ops.aten.alias.default, (before,))
            node.meta = {"val": before.meta["val"]}  # no more, or a quantizer would take it for the convolution
            norm.replace_input_with(before, node)
            between.add(node.name)
    graph.recompile()
    return between


def _is_grouped(transposed: Node, weight: Tensor) -> bool:
    """Whether it is a transposed convolution in groups: there the channels of one stand beside those of another."""
    return "conv_transpose" in str(transposed.target) and weight.shape[1] != transposed.meta["val"].shape[1]


def norms(graph: GraphModule) -> list[str]:
    """The modules of batch norms that a graph computes by operators of their own."""
    stacks = [node.meta.get("nn_module_stack", {"": ("",)}) for node in graph.graph.nodes if node.target in NORMS]
    return [str(next(reversed(stack.values()))[0]).removeprefix("model.") for stack in stacks]


def converted(graph: GraphModule, **options: Any) -> GraphModule:
    """The int8 graph of a prepared one, which is used up: a copy of a dynamic one cannot be converted.

    Args:
        graph: prepared and calibrated, not trained.
        options: for ``convert_pt2e``.
    """
    from torchao.quantization.pt2e import quantize_pt2e

    folds = quantize_pt2e._fold_conv_bn_qat  # if a norm is left, 120 patterns of training are captured: half a minute
    quantize_pt2e._fold_conv_bn_qat = lambda model: model
    try:
        with torch.no_grad():
            int8: GraphModule = quantize_pt2e.convert_pt2e(graph, **options)
    finally:
        quantize_pt2e._fold_conv_bn_qat = folds
    return int8


def has_eager_int8(layer: nn.Module) -> bool:
    """Whether there is an int8 form of a layer in eager mode: of recurrent ones with a bias and without a projection.

    >>> has_eager_int8(nn.Linear(2, 2, bias=False)), has_eager_int8(nn.GRU(2, 2, bias=False))
    (True, False)
    """
    return (
        isinstance(layer, EAGER_LAYERS)
        and not getattr(layer, "proj_size", 0)
        and (isinstance(layer, nn.Linear) or bool(layer.bias))
    )


def dynamic_layers(model: nn.Module, left_out: Collection[str] = ()) -> nn.Module:
    """A copy in eager mode whose Linear and recurrent layers are int8 with ranges found at run time.

    Args:
        model: float, in evaluation mode; of a :class:`Flat` the model inside, with layers that are never called left in
            float: another function reads their weight, as in Swin's attention.
        left_out: names of layers that stay in float.
    """
    from torch.ao import quantization as tq  # late: the other targets outlive it

    if isinstance(model, Flat):
        left_out = {*left_out, *_never_called(model)}
        return Flat(dynamic_layers(model.model, left_out), model.example)
    model = folding.plain_copy(model)
    layers = {name: one for name, one in model.named_modules() if isinstance(one, EAGER_LAYERS)}
    left_out = {*left_out, *(name for name, one in layers.items() if not has_eager_int8(one))}
    spec: dict[Any, Any] = dict.fromkeys(RECURRENT, tq.default_dynamic_qconfig)
    spec |= {nn.Linear: tq.per_channel_dynamic_qconfig} | dict.fromkeys(f"0.{name}" for name in left_out)
    int8 = tq.quantize_dynamic(nn.Sequential(model), spec, inplace=True)  # type: ignore[no-untyped-call]
    return int8[0]  # type: ignore[no-any-return]  # the model itself may be such a layer


def _never_called(flat: Flat) -> list[str]:
    layers = {name: one for name, one in flat.model.named_modules() if isinstance(one, EAGER_LAYERS)}
    called: set[nn.Module] = set()
    hooks = [one.register_forward_pre_hook(lambda module, _: called.add(module)) for one in layers.values()]
    with torch.inference_mode():
        flat(*flat.example.tensors)
    for hook in hooks:
        hook.remove()
    return [name for name, one in layers.items() if one not in called]


# --- writing -----------------------------------------------------------------------------------------


def write(target: str, model: nn.Module, graph: nn.Module, tensors: Sequence[Tensor], path: Path) -> list[str]:
    """Write an int8 graph, or a float model, as the target's file.

    Args:
        model: the float model, whose layers the census of a package names.
        graph: what is written.
        tensors: an example of the inputs; the file takes these shapes.
        path: of the file.

    Returns:
        What had to be done differently, in words.

    Raises:
        ExportError, PackageError, GuardError: if it cannot be written.
    """
    with float_paths.quiet(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        if target == "pytorch":
            torch.save(_state(model, graph), path)
            return []
        if target.startswith("onnx"):
            _write_onnx(graph, tensors, path)
            return []
        if target == "executorch":
            return _write_pte(graph, tuple(map(files.dense, tensors)), path)
        packages.write(model, torch.export.export(graph, tuple(tensors)), path)
        return []


def _state(model: nn.Module, int8: nn.Module) -> dict[str, Any]:
    """The int8 state, which loads safely; but the int8 form of recurrent layers does not: then the float state in half.

    The int8 model is made of it again where it is loaded, as it is made of the float one: hence the names of layers
    that stayed in float.
    """
    model, int8 = _inside(model), _inside(int8)
    left_out = [name for name, one in int8.named_modules() if type(one) in EAGER_LAYERS]
    if not _is_recurrent(model):
        return {FLOAT: left_out, STATE: int8.state_dict()}
    halves = {name: one.half() if one.is_floating_point() else one for name, one in model.state_dict().items()}
    return {FLOAT: left_out, STATE: halves}


def _inside(model: nn.Module) -> nn.Module:
    return model.model if isinstance(model, Flat) else model


def _is_recurrent(model: nn.Module) -> bool:
    return any(isinstance(module, RECURRENT) for module in model.modules())


def _write_onnx(graph: nn.Module, tensors: Sequence[Tensor], path: Path) -> None:
    try:
        program = torch.onnx.export(graph, tuple(tensors), dynamo=True, verbose=False)
    except torch.onnx.errors.OnnxExporterError as error:
        raise files.ExportError(f"torch.onnx cannot write this model: {reason(error)}") from error
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # stack traces, with the paths of this machine
    program.save(path)


def write_dynamic_onnx(model: nn.Module, tensors: Sequence[Tensor], path: Path) -> None:
    """A dynamic int8 file of ONNX Runtime: PT2E's dynamic graphs have no form in ONNX."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="check-") as name, float_paths.quiet():
        exact, ready = Path(name) / "float.onnx", Path(name) / "ready.onnx"
        write("onnx-x86", model, model, tensors, exact)
        try:
            quant_pre_process(exact, ready)
        except Exception:  # its inference of shapes gives up at loops, and then contradicts what it has inferred
            graph = onnx.load(exact)
            del graph.graph.value_info[:]
            onnx.save(graph, ready)
        quantize_dynamic(ready, path, per_channel=True, reduce_range=_saturates())


def _write_pte(graph: nn.Module, tensors: tuple[Tensor, ...], path: Path) -> list[str]:
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.export(graph, tensors)

    def lowered(left_out: str = "") -> Any:
        configs = [one for one in ALL_PARTITIONER_CONFIGS if one.__name__ != left_out]
        partitioner = XnnpackPartitioner(configs=configs)
        return to_edge_transform_and_lower(copy.deepcopy(program), partitioner=[partitioner])

    notes: list[str] = []
    try:
        edge = lowered()
    except Exception as error:  # the delegate's own, of many types
        targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
        edge = None
        for config in ALL_PARTITIONER_CONFIGS:  # which of its operators does the delegate take and then refuse?
            name = str(getattr(config, "target_name", "")).removesuffix(".default")
            if not name or "quantize" in name or not any(f"aten.{name}." in one for one in targets):
                continue
            with contextlib.suppress(Exception):
                edge = lowered(config.__name__)
                notes = [
                    f"XNNPACK refuses {name.strip('_')} of this model, in float too ({reason(error)}): "
                    f"ExecuTorch's own operator computes it, in float."
                ]
                break
        if edge is None:
            raise files.ExportError(f"ExecuTorch cannot lower this model: {reason(error)}") from error
    try:
        path.write_bytes(edge.to_executorch().buffer)
    except RuntimeError as error:  # an operator for which there is no kernel
        raise files.ExportError(f"ExecuTorch cannot lower this model: {reason(error)}") from error
    return notes


# --- loading and counting ----------------------------------------------------------------------------


def load(target: str, path: Path, model: nn.Module | None = None) -> Run:
    """A file, loaded: takes tensors, gives all outputs as a tuple.

    Args:
        model: the float model, which ``pytorch`` needs to build the int8 one before it reads its state.
    """
    if target == "pytorch":
        assert model is not None
        with plain_attention():
            twin = _loaded_into(model, torch.load(io.BytesIO(path.read_bytes()), weights_only=True))

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            with plain_attention():
                return tuple(leaves(twin(*tensors)))

        return run
    if target == "executorch":
        return files.load_pte(path).outputs
    if target.startswith("onnx"):
        return files.load_onnx(path, settings=_settings(target)).outputs
    package = packages.load(path)
    return lambda *tensors: tuple(leaves(package(*tensors)))


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Without the fast path, which reads the weights of int8 layers as if they were float."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _loaded_into(model: nn.Module, kept: dict[str, Any]) -> nn.Module:
    if isinstance(model, Flat):
        return Flat(_loaded_into(model.model, kept), model.example)
    if not _is_recurrent(model):
        twin = dynamic_layers(model, kept[FLOAT])
        twin.load_state_dict(kept[STATE])
        return twin
    model = folding.plain_copy(model)
    model.load_state_dict(kept[STATE])  # in float32 again
    return dynamic_layers(model, kept[FLOAT])


def _settings(target: str) -> dict[str, str]:
    return onnx_scheme.AS_ON_ARM if target == "onnx-arm" else {}  # an x86 session would undo what is for ARM


def leaves(output: Any) -> list[Tensor]:
    """The tensors in an output."""
    return [one for one in pytree.tree_leaves(output) if isinstance(one, Tensor)]


def counted(target: str, model: nn.Module, int8: nn.Module, path: Path, tensors: Sequence[Tensor]) -> census.Census:
    """What computes each layer of the float model in a file.

    Args:
        model: the float model, by whose names layers are called.
        int8: what was written; looked at only in eager mode.
        path: of the file.
        tensors: inputs for one call.
    """
    if target == "pytorch":
        return kernels.of_eager(model, int8, *tensors)
    if target == "executorch":
        return kernels.of_pte(model, path)
    if target.startswith("onnx"):
        return kernels.of_onnx(model, path, _settings(target))
    return packages.read_census(path)
