"""Which kernels take the weights of a float model: in eager mode and FX, in ONNX Runtime and in ExecuTorch.

For a file of ExecuTorch also: how long each of its kernels takes, by the names that the runtime itself gives them.
"""

import contextlib
import json
import re
import statistics
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from qhelpers import census, guards
from qhelpers.check import files

# --- eager mode and FX -------------------------------------------------------------------------------

EAGER_INTEGER = ("quantized::", "::_int_mm", "qlinear", "qconv", "quantized_lstm", "quantized_gru")
EAGER_CONVERTS = ("quantize_per_", "::dequantize", "::choose_qparams")
EAGER_PREPARES = ("dequantize", "_to_copy", "to", "clone", "mul", "sub", "constant_pad")  # how names begin; not matmul


def of_eager(model: nn.Module, int8: nn.Module, *inputs: Any) -> census.Census:
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
    watch = _Watch(int8, inputs)
    with torch.inference_mode(), watch.following(int8), watch:
        int8(*inputs)
    return census.taken(model, watch.used, watch.kernels, watch.conversions)


class _Weight(NamedTuple):
    """A weight of the model that runs: in float, whether it is kept as integers, its name, its bytes in memory."""

    value: Tensor
    integers: bool
    name: str
    span: tuple[int, int] = (0, 0)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operators that run inside, and which weights of a model they take."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.used: list[census.Used] = []
        self.kernels: Counter[str] = Counter()
        self.conversions = 0
        self._weights: dict[int, list[_Weight]] = {}  # by storage, which several may share
        self._alive: list[Tensor] = []  # so that no storage is used twice
        self._activations = {one.untyped_storage().data_ptr() for one in _flat(inputs) if _is_plain(one)}
        for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]:
            for part, value in _parts(tensor):
                self._know(part, _Weight(value, not part.is_floating_point(), name))
        self.inside = [""]  # the modules that are being called, the innermost one last

    @contextlib.contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Know in which module an operator runs: packed weights have no names of their own."""
        handles = []
        for path, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                handles.append(module.register_forward_pre_hook(lambda *_, path=path: self.inside.append(path)))
                handles.append(module.register_forward_hook(lambda *_: self.inside.pop() and None))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _know(self, tensor: Tensor, weight: "_Weight") -> None:
        self._alive.append(tensor)
        begin = tensor.data_ptr()
        span = begin, begin + tensor.element_size() * max(tensor.numel(), 1)
        self._weights.setdefault(tensor.untyped_storage().data_ptr(), []).append(weight._replace(span=span))

    def _known(self, value: Any) -> "_Weight | None":
        if not _is_plain(value):
            return None
        kept = self._weights.get(value.untyped_storage().data_ptr(), [])
        return next((one for one in kept if one.span[0] <= value.data_ptr() < one.span[1]), None)

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
        moves = any(_is_plain(one) and one.untyped_storage().data_ptr() in self._activations for one in given)
        prepares = name.rpartition("::")[2].startswith(EAGER_PREPARES)
        if weights and prepares and not moves and isinstance(output, Tensor):
            self._know(output, weights[0])
            return output
        if moves:
            self._activations |= {one.untyped_storage().data_ptr() for one in _flat(output) if _is_plain(one)}
            self._alive += [one for one in _flat(output) if _is_plain(one)]
        self.kernels[name] += 1
        changes = getattr(output, "dtype", None) != getattr(given[0], "dtype", None)  # dequantize leaves floats alone
        self.conversions += changes and any(part in name for part in EAGER_CONVERTS)
        integer = any(part in name for part in EAGER_INTEGER)
        for one in weights:
            if one.integers and name == "aten::sum":
                continue  # for the zero point of the activations; the product is another kernel's
            why = census.UNPACKED if one.integers and not integer else ""
            self.used.append(census.Used(name, one.value, integer, why, one.name))
        for packed in given:
            if isinstance(packed, torch.ScriptObject):
                for weight in _unpacked(packed):
                    kept = weight.is_quantized
                    value = weight.dequantize() if kept else weight.float()
                    self.used.append(census.Used(name, value, kept, name=f"{self.inside[-1]}.weight"))
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


def _is_plain(value: Any) -> bool:
    return type(value) in (Tensor, nn.Parameter) and _has_storage(value)


def _has_storage(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.untyped_storage().data_ptr() != 0


def _unpacked(packed: torch.ScriptObject) -> Iterator[Tensor]:
    """The weights inside a packed parameter of PyTorch's quantized operators, or inside a cell's."""
    if hasattr(packed, "unpack"):
        content = packed.unpack()  # of an embedding the weight, else weight and bias
        yield content if isinstance(content, Tensor) else content[0]
        return
    try:
        parts = packed.__getstate__()
    except RuntimeError:  # no weight, but what else a model hands about, as a timer
        return
    for part in _flat(parts):
        if isinstance(part, torch.ScriptObject):
            yield from _unpacked(part)


# --- ONNX Runtime ------------------------------------------------------------------------------------

INTEGER = {  # operators of ONNX Runtime that multiply integers
    *("QLinearConv", "QLinearMatMul", "QGemm", "QAttention", "QEmbedLayerNormalization"),
    *("ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"),
}
CONVERTS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
PREPARES = {"DequantizeLinear", "Transpose", "Reshape", "Cast", "Squeeze", "Unsqueeze", "Identity"}


def of_onnx(model: nn.Module, path: Path, settings: Mapping[str, str] | None = None) -> census.Census:
    """The census of an ``.onnx`` file, from the graph into which ONNX Runtime rewrites it for this machine.

    Its last step, which puts float convolutions into blocked layouts, is left out: it changes no type, and it hides
    the weights.

    Args:
        model: the float model.
        path: of the file.
        settings: entries of the session's configuration, by key, as :func:`qhelpers.check.files.load_onnx` takes them.

    Raises:
        FileFormatError: if the file cannot be loaded.
        GuardError: if onnx or onnxruntime is not installed.
    """
    guards.require_packages("deploy", "onnx", "onnxruntime")
    files.load_onnx(path)  # with its errors
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="census-") as folder:
        rewritten = Path(folder) / "rewritten.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(rewritten)
        options.log_severity_level = 3  # errors
        for key, value in (settings or {}).items():
            options.add_session_config_entry(key, value)
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        graph = onnx.load(rewritten).graph
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    kernels: Counter[str] = Counter()
    used: list[census.Used] = []
    prepared: dict[str, tuple[Tensor, bool]] = {}  # what nodes make of constants, and whether those are integers
    conversions = 0
    for node in graph.node:
        first = node.input[0] if node.input else ""
        if node.op_type in PREPARES and (first in constants or first in prepared):
            whole = first in constants and constants[first].dtype.kind in "iu"
            prepared[node.output[0]] = prepared.get(first) or (_centred(0, node.input, constants), whole)
            continue
        kernels[node.op_type] += 1
        conversions += node.op_type in CONVERTS
        integer = node.op_type in INTEGER
        places = [at for at, name in enumerate(node.input) if _is_weight(constants.get(name))]
        for at in places:
            weight = _centred(at, node.input, constants)
            used.append(census.Used(node.op_type, weight, integer, name=node.input[at]))
        for name in node.input:
            if name in prepared:
                weight, whole = prepared[name]
                used.append(census.Used(node.op_type, weight, False, census.UNPACKED if whole else "", name))
    return census.taken(model, used, kernels, conversions)


def _is_weight(value: Any) -> bool:
    """Whether a constant may be a weight: one number for each channel in 8 bits is a zero point."""
    return value is not None and value.size > 1 and (value.ndim > 1 or value.dtype not in (np.int8, np.uint8))


def _centred(at: int, names: Sequence[str], constants: Mapping[str, Any]) -> Tensor:
    """A node's constant in float, less its zero point; scales are left out, since only the rows' directions count.

    An operator takes a weight's zero point behind the weight; the one before it belongs to the activation.
    """
    stored = constants[names[at]]
    value = torch.from_numpy(np.ascontiguousarray(stored).astype(np.float32))
    if stored.dtype not in (np.int8, np.uint8):
        return value
    behind = [constants[name] for name in names[at + 1 :] if name in constants]
    sizes = (1, value.shape[0], value.shape[-1])
    fits = [one for one in behind if one.dtype == stored.dtype and one.size in sizes]
    if not fits:
        return value
    zero = torch.from_numpy(fits[0].astype(np.float32))
    if zero.numel() == value.shape[0] and zero.numel() > 1:
        zero = zero.reshape(-1, *[1] * (value.ndim - 1))
    return value - zero


# --- ExecuTorch --------------------------------------------------------------------------------------

Call = tuple[str, Tensor | None, bool]  # kernel, constant that it takes, whether it multiplies integers
XNN_INTEGER = "xnn_datatype_q"  # how the datatypes of quantized tensors begin: qint8, qcint8, qdint8 …
DTYPES = {0: torch.uint8, 1: torch.int8, 3: torch.int32, 4: torch.int64}  # of ExecuTorch's schema
DTYPES |= {5: torch.half, 6: torch.float, 7: torch.double, 15: torch.bfloat16}


def of_pte(model: nn.Module, path: Path) -> census.Census:
    """The census of a ``.pte`` file: what its program calls, and what the pieces that XNNPACK took over consist of.

    Args:
        model: the float model.
        path: of the file.

    Raises:
        FileFormatError: if the file cannot be loaded.
        GuardError: if ExecuTorch is not installed.
    """
    files.load_pte(path)  # with its errors
    kernels: Counter[str] = Counter()
    used: list[census.Used] = []
    for kernel, weight, integer in _calls(path.read_bytes()):
        if weight is None:
            kernels[kernel] += 1
        else:
            used.append(census.Used(kernel, weight, integer))
    conversions = sum(count for name, count in kernels.items() if "quantize" in name or name == "XNNPACK Convert")
    return census.taken(model, used, kernels, conversions)


def _calls(data: bytes) -> Iterator[Call]:
    """For each operator that a program calls, itself or inside XNNPACK, one entry, and one for each constant of it."""
    from executorch.exir import schema
    from executorch.exir._serialize import _deserialize_pte_binary

    read = _deserialize_pte_binary(data)
    plan = read.program.execution_plan[0]
    for instruction in plan.chains[0].instructions:
        call = instruction.instr_args
        if isinstance(call, schema.KernelCall):
            name = plan.operators[call.op_index].name
            yield name, None, False
            constants = (_constant(read.program, plan.values[index].val) for index in call.args)
            yield from ((name, one, False) for one in constants if one is not None)
        elif isinstance(call, schema.DelegateCall):
            delegate = plan.delegates[call.delegate_index]
            if delegate.id == "XnnpackBackend":
                blob = read.program.backend_delegate_data[delegate.processed.index].data
                yield from _xnnpack(bytes(blob), read.named_data)
            else:
                yield delegate.id, None, False


def _constant(program: Any, value: Any) -> Tensor | None:
    """A constant tensor of the program in float; None for anything else."""
    index = getattr(value, "data_buffer_idx", 0)
    if not index or getattr(value, "allocation_info", None) is not None or value.scalar_type not in DTYPES:
        return None
    stored = bytearray(program.constant_buffer[index].storage)
    count = int(np.prod(value.sizes))
    data = torch.frombuffer(stored, dtype=DTYPES[value.scalar_type], count=count)
    ordered = data.reshape([value.sizes[axis] for axis in value.dim_order])
    return ordered.permute(np.argsort(value.dim_order).tolist()).float()


def _xnnpack(blob: bytes, named: Any) -> Iterator[Call]:
    """The calls of a piece that XNNPACK runs."""
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader, _get_schema_bytes
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    header = XNNHeader.from_bytes(blob[: XNNHeader.EXPECTED_LENGTH])
    with tempfile.TemporaryDirectory(prefix="census-") as folder:
        schema_file, piece = Path(folder) / "schema.fbs", Path(folder) / "piece.bin"
        schema_file.write_bytes(_get_schema_bytes())
        piece.write_bytes(blob[header.flatbuffer_offset :][: header.flatbuffer_size])
        _flatc_decompile(folder, str(schema_file), str(piece), ["--raw-binary"])
        text = piece.with_suffix(".json").read_text()
        graph = json.loads(re.sub(r": (-?)inf\b", r": \1Infinity", text))  # flatc's word, and Python's
    constants = blob[header.constant_data_offset :]
    values = {}
    for one in graph["xvalues"]:
        value = one["xvalue_union"]
        tensor = value.get("tensor_value", value)
        values[tensor["id_out"]] = tensor
    for node in graph["xnodes"]:
        kernel, fields = f"XNNPACK {node['xnode_union_type'].removeprefix('XNN').lstrip('_')}", node["xnode_union"]
        yield kernel, None, False
        ids = [values.get(number) for name, number in fields.items() if name.endswith("_id") and name != "output_id"]
        tensors = [one for one in ids if one is not None]
        whole = bool(tensors) and tensors[0]["datatype"].startswith(XNN_INTEGER)
        for one in tensors[1:]:
            if one["constant_buffer_idx"]:
                place = graph["constant_data"][one["constant_buffer_idx"]]
                integer = whole and one["datatype"].startswith(XNN_INTEGER)
                yield kernel, _xnn_constant(one, place, constants, named), integer


def _xnn_constant(tensor: dict[str, Any], place: dict[str, Any], constants: bytes, named: Any) -> Tensor:
    key = place.get("named_key", "")
    data = _named(named, key) if key else constants[place["offset"] :][: place["size"]]
    kind, dims = tensor["datatype"], tensor["dims"]
    if kind in ("xnn_datatype_qcint4", "xnn_datatype_qbint4"):
        pairs = np.frombuffer(data, np.uint8)
        flat = np.stack([pairs & 15, pairs >> 4], 1).reshape(-1).astype(np.float32) - 8
    else:
        dtype = {"xnn_datatype_fp32": np.float32, "xnn_datatype_fp16": np.float16, "xnn_datatype_qint32": np.int32}
        dtype["xnn_datatype_qcint32"] = np.int32
        flat = np.frombuffer(data, dtype.get(kind, np.int8)).astype(np.float32)
    return torch.from_numpy(flat[: int(np.prod(dims))].reshape(dims).copy())


def _named(named: Any, key: str) -> bytes:
    entry = named.pte_data[key]
    return bytes(named.buffers[entry.buffer_index])


# --- times -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KernelTime:
    """What the calls of one kernel take in one run of a ``.pte`` file."""

    kernel: str  # as the runtime names it: "Convolution (NHWC, QC8) IGEMM" in XNNPACK, "aten::cumsum" outside
    delegated: bool  # inside a piece that XNNPACK runs
    calls: int  # in one run
    ms: float  # all calls of one run together; the median of the runs

    @property
    def integer(self) -> bool:
        """Whether the name says that it multiplies integers.

        >>> [KernelTime(f"Fully Connected (NC, {types}) GEMM", True, 1, 0.1).integer for types in ("QS8, QC8W", "F32")]
        [True, False]
        """
        return self.delegated and bool(re.search(r"\bQ[A-Z]+8W?\b", self.kernel)) and "Convert" not in self.kernel


@dataclass(frozen=True)
class PteTimes:
    """Where the time of a ``.pte`` file goes, by ExecuTorch's Inspector."""

    kernels: tuple[KernelTime, ...]  # the slowest first
    pieces: int  # that XNNPACK runs
    whole_ms: float  # one run, with the recording of the times itself

    @property
    def outside_ms(self) -> float:
        """Milliseconds that one run spends in operators that were not delegated."""
        return sum(one.ms for one in self.kernels if not one.delegated)

    def __str__(self) -> str:
        wide = max((len(one.kernel) for one in self.kernels), default=0)
        rows = [
            f"{one.kernel:{wide}}  {'XNNPACK' if one.delegated else 'outside'}  {one.calls:4}  {one.ms:.3f} ms"
            for one in self.kernels
        ]
        outside = f"{self.outside_ms:.3f} of {self.whole_ms:.3f} ms outside"
        return "\n".join([*rows, f"{self.pieces} piece{'s' * (self.pieces != 1)}; {outside}"])


def pte_times(path: Path, *inputs: Tensor, runs: int = 20) -> PteTimes:
    """Run a ``.pte`` file and read from ExecuTorch's Inspector which kernels ran, and for how long.

    The names tell the types: QC8 or QC8W are int8 weights with a scale for each channel, QS8 and QD8 or QDU8 int8
    activations (QD: quantized while it runs), F32 is float.

    Args:
        path: of the file.
        inputs: float32 tensors of the file's sizes.
        runs: how many are recorded, after one that is not.

    Raises:
        FileFormatError: if the file cannot be loaded.
        InputError: if it takes inputs of another shape.
        ExportError: if this build of ExecuTorch records no times.
        GuardError: if ExecuTorch is not installed.
    """
    files.load_pte(path).run(*inputs)  # with its errors
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(path, enable_etdump=True)
    method = program.load_method("forward")
    assert method is not None
    with files.listening():
        for _ in range(runs + 1):
            method.execute([files.dense(value) for value in inputs])
    events = _events(program)
    names = _instructions(path.read_bytes())
    times: dict[tuple[str, bool], list[list[float]]] = {}
    for event in events:
        if event.is_delegated_op:
            key = (re.sub(r" #\d+$", "", event.name), True)
        elif event.name == "OPERATOR_CALL":
            key = (names[event._instruction_id], False)
        else:
            continue
        times.setdefault(key, []).append(event.perf_data.raw[1:])
    whole = next(event for event in events if event.name == "Method::execute")
    found = [
        KernelTime(name, delegated, len(calls), statistics.median(map(sum, zip(*calls, strict=True))))
        for (name, delegated), calls in times.items()
    ]
    return PteTimes(
        tuple(sorted(found, key=lambda one: -one.ms)),
        sum(event.name == "DELEGATE_CALL" for event in events),
        statistics.median(whole.perf_data.raw[1:]),
    )


def _events(program: Any) -> list[Any]:
    """What the Inspector tells of the runs of a program."""
    from executorch.devtools import Inspector

    dump = _dumped(program)
    if not dump:
        raise files.ExportError("This build of ExecuTorch records no times: it was built without its event tracer.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no outputs of layers were recorded
        blocks = Inspector(etdump_data=dump).event_blocks
    return [event for block in blocks if block.name == "Execute" for event in block.events]


def _dumped(program: Any) -> bytes | None:
    """What the runtime has recorded; None if it records nothing."""
    with tempfile.TemporaryDirectory(prefix="times-") as folder, files.listening():
        dump = Path(folder) / "times.etdp"
        with contextlib.suppress(RuntimeError):
            program.write_etdump_result_to_file(str(dump), str(Path(folder) / "debug.bin"))
        return dump.read_bytes() if dump.exists() else None


def _instructions(data: bytes) -> dict[int, str]:
    """The operator that each instruction of a program calls."""
    from executorch.exir import schema
    from executorch.exir._serialize import _deserialize_pte_binary

    plan = _deserialize_pte_binary(data).program.execution_plan[0]
    calls = ((number, one.instr_args) for number, one in enumerate(plan.chains[0].instructions))
    return {n: plan.operators[call.op_index].name for n, call in calls if isinstance(call, schema.KernelCall)}
