"""ONNX files: which 8-bit type their activations have, and which one a processor's kernels are made for.

ONNX Runtime rewrites a graph with quantize and dequantize steps (QDQ) into integer kernels when it loads it. On x86 it
does so only in part where activations are signed, and says nothing; on ARM it takes signed ones. Sources: pull requests
9902 and 10719 of microsoft/onnxruntime.
"""

import dataclasses
import platform
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from qhelpers import guards
from qhelpers.check import files

ACTIVATIONS = {"x86": torch.uint8, "arm": torch.int8}
MACHINES = {"x86_64": "x86", "amd64": "x86", "i386": "x86", "i686": "x86", "arm64": "arm", "aarch64": "arm"}
AS_ON_ARM = {"session.qdqisint8allowed": "1"}  # of a session: keep signed activations signed, as on ARM
ZERO_POINTS = {"QuantizeLinear": 2, "QLinearConv": 2, "QLinearMatMul": 2, "QGemm": 2}  # place of the input's zero point
WORDS = {torch.uint8: "unsigned", torch.int8: "signed"}

Config = TypeVar("Config")


class SchemeError(ValueError):
    """An ONNX file suits another kind of processor, nothing in it is quantized, or there is no such processor."""


@dataclass(frozen=True)
class Scheme:
    """What is quantized in an ONNX file."""

    activations: Mapping[torch.dtype, int] = field(default_factory=dict)  # quantize steps with a fixed scale, by type
    weights: int = 0  # constants kept as 8-bit or 4-bit integers
    dynamic: int = 0  # quantize steps that take the scale from the data


def processor(target: str = "here") -> str:
    """``"x86"`` or ``"arm"``: a target by name, or this machine.

    Raises:
        SchemeError: for another name, or if this machine is neither.

    >>> processor("arm"), processor() == processor("here")
    ('arm', True)
    """
    if target in ACTIVATIONS:
        return target
    if target != "here":
        raise SchemeError(f"There is no target {target!r}; choose one of: here, {', '.join(ACTIVATIONS)}.")
    found = this_machine()
    if found is None:
        unknown = platform.machine() or "unknown"
        raise SchemeError(f"This machine is neither x86 nor 64-bit ARM, but {unknown}: name the target.")
    return found


def this_machine() -> str | None:
    """``"x86"`` or ``"arm"``; None if this machine is neither."""
    return MACHINES.get(platform.machine().lower())


def activation_dtype(target: str = "here") -> torch.dtype:
    """The type of activations for which a processor's int8 kernels in ONNX Runtime are made; weights are signed.

    Args:
        target: ``"x86"``, ``"arm"``, or ``"here"`` for this machine.

    Raises:
        SchemeError: for another name, or if this machine is neither.

    >>> activation_dtype("x86"), activation_dtype("arm")
    (torch.uint8, torch.int8)
    """
    return ACTIVATIONS[processor(target)]


def with_activations(config: Config, dtype: torch.dtype) -> Config:
    """A configuration of XNNPACK's quantizer whose activations have another 8-bit type, for an ONNX file.

    Args:
        config: from ``get_symmetric_quantization_config``.
        dtype: ``torch.uint8`` or ``torch.int8``, such as :func:`activation_dtype` gives.

    Raises:
        SchemeError: if the type is another one.
    """
    if dtype not in WORDS:
        raise SchemeError(f"Activations of 8 bits are torch.uint8 or torch.int8; got {dtype}.")
    limits = torch.iinfo(dtype)
    both: dict[str, Any] = {}
    for name in ("input_activation", "output_activation"):
        spec = getattr(config, name)
        if spec is not None:
            both[name] = dataclasses.replace(spec, dtype=dtype, quant_min=limits.min, quant_max=limits.max)
    return dataclasses.replace(config, **both)  # type: ignore[type-var]


def of_file(path: Path) -> Scheme:
    """What is quantized in an ``.onnx`` file, from its quantize steps and constants; nothing is run.

    Raises:
        FileFormatError: if the file cannot be loaded.
        GuardError: if onnx or onnxruntime is not installed.
    """
    guards.require_packages("deploy", "onnx")
    files.load_onnx(path)  # with its errors
    import onnx

    kinds = onnx.TensorProto
    narrow = {kinds.INT8, kinds.UINT8, kinds.INT4, kinds.UINT4}
    known = {kinds.INT8: torch.int8, kinds.UINT8: torch.uint8}
    graph = onnx.load(path, load_external_data=False).graph
    types = {one.name: one.data_type for one in graph.initializer}
    for node in (node for node in graph.node if node.op_type == "Constant"):
        types[node.output[0]] = next((one.t.data_type for one in node.attribute if one.name == "value"), 0)
    activations: Counter[torch.dtype] = Counter()
    weights: set[str] = set()
    for node in graph.node:
        weights |= {name for at, name in enumerate(node.input) if types.get(name) in narrow and at in _weight(node)}
        place = ZERO_POINTS.get(node.op_type)
        if place is None or node.input[0] in types:
            continue  # a weight that is stored in float and quantized when the file is loaded
        given = node.input[place] if len(node.input) > place else ""
        asked = next((one.i for one in node.attribute if one.name == "output_dtype"), 0)
        kind = types.get(given, asked or kinds.UINT8)  # the standard's default
        if kind in known:
            activations[known[kind]] += 1
    dynamic = sum(node.op_type.startswith("DynamicQuantize") for node in graph.node)
    return Scheme(dict(activations), len(weights), dynamic)


def _weight(node: Any) -> tuple[int, ...]:
    """Places of a node's inputs at which a quantized weight may be given."""
    places = {"DequantizeLinear": (0,), "QLinearConv": (3,), "QLinearMatMul": (3,), "QGemm": (3,)}
    integer = {"MatMulInteger": (1,), "ConvInteger": (1,), "DynamicQuantizeMatMul": (1,), "MatMulNBits": (1,)}
    return (places | integer).get(node.op_type, ())


def require_scheme(path: Path, target: str = "here") -> Scheme:
    """What is quantized in an ``.onnx`` file, if it suits the processor that is to run it.

    Weights alone, and scales that are taken from the data, suit every processor.

    Args:
        path: of the file.
        target: ``"x86"``, ``"arm"``, or ``"here"`` for this machine.

    Warns:
        UserWarning: if activations are unsigned and the target is ARM: it runs, but signed ones are its own.

    Raises:
        SchemeError: if activations are signed and the target is x86, or if nothing in the file is quantized.
        FileFormatError: if the file cannot be loaded.
        GuardError: if onnx or onnxruntime is not installed.
    """
    own = activation_dtype(target)
    found = of_file(path)
    if not found.activations and not found.weights and not found.dynamic:
        raise SchemeError(f"{path.name} is a float file: nothing in it is quantized. Give the int8 file.")
    other = torch.int8 if own == torch.uint8 else torch.uint8
    count = found.activations.get(other, 0)
    if not count:
        return found
    share = f"{count} of {sum(found.activations.values())} activations in {path.name} are {WORDS[other]}"
    if own == torch.uint8:
        raise SchemeError(
            f"{share}, the scheme for ARM: on x86 some of these layers stay in float. "
            f"Quantize the float file with activation_type=QuantType.QUInt8."
        )
    warnings.warn(
        f"{share}, the scheme for x86: on ARM it runs, but ONNX Runtime's kernels there take signed ones as "
        f"they are. Quantize the float file with activation_type=QuantType.QInt8, and time both on the device.",
        stacklevel=2,
    )
    return found
