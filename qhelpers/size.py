"""Bytes of a model in a file. One MB is 1,000,000 bytes."""

import io

import torch
from torch import nn


def state_bytes(model: nn.Module) -> bytes:
    """The file that ``torch.save(model.state_dict(), …)`` writes, as bytes.

    Packed int8 weights are part of a state_dict, so they are counted. The archive inside always has the
    same name; saved to a path, it takes the file's name, and each record is padded by a few bytes more
    or less.

    >>> state_bytes(nn.PReLU())[:2]
    b'PK'
    """
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.getvalue()


def size_mb(model: nn.Module) -> float:
    """Size of the saved state_dict in MB (1 MB = 1e6 bytes).

    >>> round(size_mb(nn.Linear(500, 500)), 2)
    1.0
    """
    return len(state_bytes(model)) / 1e6


def print_model_size(model: nn.Module, label: str = "") -> float:
    """Print and return the size of the saved state_dict in MB.

    >>> _ = print_model_size(nn.Linear(500, 500), "float")
    float: 1.00 MB
    """
    size = size_mb(model)
    print(f"{label}: {size:.2f} MB" if label else f"{size:.2f} MB")
    return size
