"""Weights in groups with a scale each: what has to fit, and the int4 kernel of PyTorch with what it passes over."""

from dataclasses import dataclass

import torch
from torch import Tensor

KERNEL = "aten::_weight_int4pack_mm_for_cpu"
ROWS = 16  # a multiple of them is what the kernel packs
GROUPS = (32, 64, 128, 256)
BITS = range(2, 9)
INPUTS = (torch.bfloat16, torch.float16, torch.float32)  # types of inputs for which the kernel has code at all
# By what PyTorch calls the instructions that it uses: whether the kernel has vector code for them.
VECTOR_CODE = {"AVX512": True, "AVX2": True, "DEFAULT": False}


class GroupError(ValueError):
    """Weights cannot be cut into such groups, or a kernel for them is missing, slow, or was packed for other ones."""


def require_groups(columns: int, group: int, bits: int = 4) -> int:
    """How many groups a row of weights has.

    Args:
        columns: weights in a row, the inputs of a Linear layer.
        group: how many of them share a scale.
        bits: of a code.

    Raises:
        GroupError: naming both numbers if the group does not divide the row, the bits if they are not 2 to 8, or the
            number that is not a whole one of at least 1.

    >>> require_groups(256, 32)
    8
    >>> require_groups(768, 256, bits=5)
    3
    """
    if isinstance(bits, bool) or bits not in BITS:
        raise GroupError(
            f"There are no codes of that width (bits={bits!r}): take a whole number from {BITS[0]} to {BITS[-1]}."
        )
    for of, count in {"row": columns, "group": group}.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise GroupError(f"A {of} of {count!r} weights cannot be: take a whole number of at least 1.")
    if columns % group:
        fitting = [size for size in GROUPS if columns % size == 0] or [columns]
        raise GroupError(
            f"Groups of {group} do not divide rows of {columns} weights; these do: {', '.join(map(str, fitting))}."
        )
    return columns // group


def require_kernel(name: str, fallback: str) -> str:
    """The name of an operator, if this installation has a kernel for it on the CPU.

    Args:
        name: such as ``torchao::da8w4_linear_cpu``.
        fallback: what there is instead, and what it costs: the end of the message.

    Raises:
        GroupError: naming the operator and the fallback.

    >>> require_kernel(KERNEL, ""), require_kernel("aten::linear", "")  # the second is composed of others
    ('aten::_weight_int4pack_mm_for_cpu', 'aten::linear')
    """
    # computed: with what an operator is composed of, or has for all devices
    runs = torch._C._dispatch_has_computed_kernel_for_dispatch_key
    if not (torch._C._dispatch_has_kernel(name) and any(runs(name, key) for key in ("CPU", "QuantizedCPU"))):
        raise GroupError(f"This installation has no kernel {name} for this processor. Instead: {fallback}")
    return name


def instructions() -> str:
    """The vector instructions that PyTorch's own kernels use here, which decide how int4 weights are packed.

    >>> instructions() == instructions().upper()
    True
    """
    return torch.backends.cpu.get_cpu_capability()


def require_fast_int4(dtype: torch.dtype, slower: float, used: str | None = None) -> str:
    """The instructions in use, if the int4 kernel has vector code for them and for the inputs.

    Args:
        dtype: of the layer's inputs.
        slower: how many times as long as a bf16 layer the scalar code was measured to take, for the message.
        used: instructions; if None, this machine's.

    Raises:
        GroupError: naming what lacks vector code, and the cost. PyTorch runs the scalar code without a word.

    >>> require_fast_int4(torch.bfloat16, 10, used="AVX2")
    'AVX2'
    """
    used = used or instructions()
    cost = f"its scalar code took {slower:.0f} times as long as a bf16 layer."
    if not VECTOR_CODE.get(used, False):
        raise GroupError(f"{KERNEL} has no vector code for {used}: {cost} Stay with bf16 or int8.")
    if dtype != torch.bfloat16:
        raise GroupError(f"{KERNEL} has no vector code for {dtype} inputs: {cost} Use bf16.")
    return used


@dataclass(frozen=True)
class Packed:
    """Weights of four bits in the order of one processor's instructions, with a scale and an offset for each group."""

    data: Tensor
    scale_and_offset: Tensor  # (groups, rows, 2)
    group: int
    packed_for: str


def pack_int4(codes: Tensor, scale: Tensor, zero_point: Tensor, group: int) -> Packed:
    """Pack codes for PyTorch's int4 kernel on this machine, and round scales and offsets to bf16.

    Args:
        codes: 0 to 15, of shape ``(rows, columns)``.
        scale: of shape ``(rows, groups)``.
        zero_point: the code of 0, of the same shape.
        group: columns that share a scale: 32, 64, 128 or 256.

    Raises:
        GroupError: if the group does not divide the row or is none of the kernel's, the rows are no multiple of 16,
            the codes are no whole numbers from 0 to 15, or the scales have another shape or are not finite. PyTorch
            computes on.

    >>> codes, one = torch.full((16, 32), 9), torch.ones(16, 1)
    >>> float(linear_int4(torch.ones(1, 32).bfloat16(), pack_int4(codes, one, 8 * one, group=32))[0, 0])
    32.0
    """
    if codes.ndim != 2:
        raise GroupError(f"Codes must be of shape (rows, columns), got {tuple(codes.shape)}.")
    rows, columns = codes.shape
    require_groups(columns, group)
    if group not in GROUPS:
        raise GroupError(f"{KERNEL} has no groups of {group}: take {', '.join(map(str, GROUPS))}.")
    if rows % ROWS or not rows:
        raise GroupError(
            f"{KERNEL} wants a multiple of {ROWS} rows, here are {rows}: pad to {max(-(-rows // ROWS), 1) * ROWS}."
        )
    if codes.is_floating_point() or not 0 <= int(codes.min()) <= int(codes.max()) <= 15:
        raise GroupError(
            f"Codes must be whole numbers from 0 to 15, got {codes.dtype} from {codes.min()} to {codes.max()}."
        )
    if not scale.shape == zero_point.shape == (rows, columns // group):
        raise GroupError(
            f"Scales and zero points must be of shape {(rows, columns // group)}, got {tuple(scale.shape)} and "
            f"{tuple(zero_point.shape)}."
        )
    if not (scale.isfinite().all() and zero_point.isfinite().all()):
        raise GroupError("Scales and zero points must be finite.")
    data = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), 1)
    offset = (8 - zero_point) * scale  # the kernel computes (code - 8) * scale + offset
    both = torch.stack([scale.T, offset.T], dim=-1).to(torch.bfloat16).contiguous()
    return Packed(data, both, group, instructions())


def linear_int4(inputs: Tensor, packed: Packed) -> Tensor:
    """Multiply by packed weights.

    The kernel wants scales in the inputs' type, and a contiguous table of inputs: both are made here.

    Args:
        inputs: of shape ``(…, columns)``; bf16 for vector code, see :func:`require_fast_int4`.
        packed: of :func:`pack_int4`.

    Returns:
        Tensor of shape ``(…, rows)`` in the inputs' type.

    Raises:
        GroupError: if the weights were packed for other instructions; PyTorch would give wrong numbers without a word.
            Or if the inputs are not in one of the kernel's types, or are no rows of as many columns as the weights.
    """
    if packed.packed_for != instructions():
        raise GroupError(
            f"These weights were packed for {packed.packed_for}, and this process uses {instructions()}: the order of "
            f"the codes differs. Keep the codes, and pack them where they run."
        )
    if inputs.dtype not in INPUTS:
        raise GroupError(f"{KERNEL} has no code for {inputs.dtype} inputs: take {', '.join(map(str, INPUTS))}.")
    columns = packed.group * len(packed.scale_and_offset)
    if not inputs.ndim or inputs.shape[-1] != columns:
        raise GroupError(f"Inputs must be of shape (…, {columns}), as the weights are; got {tuple(inputs.shape)}.")
    outputs: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
        inputs.reshape(-1, columns).contiguous(), packed.data, packed.group, packed.scale_and_offset.to(inputs.dtype)
    )
    return outputs.view(*inputs.shape[:-1], -1)
