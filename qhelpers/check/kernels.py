"""The census of model files: which kernels of ONNX Runtime and of ExecuTorch take the weights of the float model."""

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qhelpers import guards
from qhelpers.check import census, files

INTEGER = {  # operators of ONNX Runtime that multiply integers
    *("QLinearConv", "QLinearMatMul", "QGemm", "QAttention", "QEmbedLayerNormalization"),
    *("ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"),
}
CONVERTS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
PREPARES = {"DequantizeLinear", "Transpose", "Reshape", "Cast", "Squeeze", "Unsqueeze", "Identity"}


def of_onnx(model: nn.Module, path: Path) -> census.Census:
    """The census of an ``.onnx`` file, from the graph into which ONNX Runtime rewrites it for this machine.

    Its last step, which puts float convolutions into blocked layouts, is left out: it changes no type, and it hides
    the weights.

    Args:
        model: the float model.
        path: of the file.

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
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        graph = onnx.load(rewritten).graph
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    kernels: Counter[str] = Counter()
    used: list[census.Used] = []
    from_int8: dict[str, Tensor] = {}  # constants that a node makes of int8 weights
    conversions = 0
    for node in graph.node:
        given = {name: constants[name] for name in node.input if name in constants}
        first = node.input[0] if node.input else ""
        if node.op_type in PREPARES and (first in given or first in from_int8):
            from_int8[node.output[0]] = from_int8[first] if first in from_int8 else _centred(first, given)
            continue
        kernels[node.op_type] += 1
        conversions += node.op_type in CONVERTS
        integer = node.op_type in INTEGER
        used += [census.Used(node.op_type, _centred(name, given), integer) for name in given if given[name].size > 1]
        used += [
            census.Used(node.op_type, from_int8[name], False, census.UNPACKED)
            for name in node.input
            if name in from_int8
        ]
    return census.taken(model, used, kernels, conversions)


def _centred(name: str, given: dict[str, Any]) -> Tensor:
    """A constant in float, less its zero point; scales are left out, since only the rows' directions count."""
    value = torch.from_numpy(np.ascontiguousarray(given[name]).astype(np.float32))
    if given[name].dtype not in (np.int8, np.uint8):
        return value
    fits = [
        one
        for other, one in given.items()
        if other != name and one.dtype == given[name].dtype and one.size in (1, value.shape[0], value.shape[-1])
    ]
    if not fits:
        return value
    zero = torch.from_numpy(fits[0].astype(np.float32))
    if zero.numel() == value.shape[0] and zero.numel() > 1:
        zero = zero.reshape(-1, *[1] * (value.ndim - 1))
    return value - zero


# --- ExecuTorch --------------------------------------------------------------------------------------

Call = tuple[str, Tensor | None, bool]  # kernel, constant that it takes, whether it multiplies integers
XNN_INTEGER = "xnn_datatype_q"  # how the datatypes of quantized tensors begin: qint8, qcint8, qdint8 …
DTYPES = {1: np.int8, 0: np.uint8, 3: np.int32, 4: np.int64, 6: np.float32, 7: np.float64}  # of ExecuTorch's schema


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
    data = np.frombuffer(bytes(program.constant_buffer[index].storage), DTYPES[value.scalar_type])
    stored = data[: int(np.prod(value.sizes))].reshape([value.sizes[axis] for axis in value.dim_order])
    return torch.from_numpy(stored.transpose(np.argsort(value.dim_order)).astype(np.float32))


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
