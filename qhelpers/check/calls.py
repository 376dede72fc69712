"""What a stranger's model is called with: read from a loader's batches, compared with an example, cut to its size.

The first dimension of the first tensor counts the samples.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qhelpers.check.errors import DataError

Shape = tuple[int, ...]
_CONSTANTS = (bool, int, float, complex, str, type(None), torch.dtype)  # what a file can hold besides tensors


@dataclass(frozen=True, eq=False)
class Call:
    """What a model is called with: ``model(*args, **kwargs)``."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors among the arguments, in order."""
        return tuple(leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor))

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The shape of each tensor."""
        return tuple(tuple(tensor.shape) for tensor in self.tensors)

    @property
    def n(self) -> int:
        """How many samples it has."""
        return len(self.tensors[0])

    def sized(self, n: int) -> "Call":
        """The same call with the first ``n`` samples; the last is repeated if there are fewer.

        >>> Call((torch.zeros(8, 3), torch.ones(3, 3))).sized(1).shapes
        ((1, 3), (3, 3))
        """
        shapes = [(n, *shape[1:]) if shape[:1] == (self.n,) else shape for shape in self.shapes]
        part = next(pieces(self.tensors, shapes), None)
        if part is None:
            raise DataError("A batch without a sample is no example.")
        leaves, spec = pytree.tree_flatten((self.args, self.kwargs))
        return Call(*pytree.tree_unflatten(filled(leaves, part[0]), spec))

    def __str__(self) -> str:
        """The arguments' types and shapes, as errors name them."""
        named = [f"{name}: {_words(value)}" for name, value in self.kwargs.items()]
        return ", ".join([*map(_words, self.args), *named])


def _words(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_words(part)}" for name, part in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_words, value))})"
    return repr(value)


def an(word: str) -> str:
    """The word with its article.

    >>> an("image")
    'an image'
    """
    return f"{'an' if word[0].lower() in 'aeiou' else 'a'} {word}"


def filled(leaves: Sequence[Any], tensors: Sequence[Tensor]) -> list[Any]:
    """The leaves with other tensors in the tensors' places.

    >>> filled([torch.zeros(1), True], [torch.ones(1)])
    [tensor([1.]), True]
    """
    left = iter(tensors)
    return [next(left) if isinstance(leaf, Tensor) else leaf for leaf in leaves]


# --- batches ---------------------------------------------------------------------------------------------


def as_call(batch: Any, model: nn.Module, example: Call | None = None) -> tuple[Call, Any]:
    """The call that a batch of a loader stands for, and its labels, or None.

    A batch is a tensor; a mapping of keyword arguments, perhaps with ``labels``; a tuple of as many inputs as
    ``forward`` requires (or as the example has) and the labels; or such a call and its labels, ``((a, b), labels)``.

    Raises:
        DataError: if it is something else, holds no tensor, or cannot be given to ``forward``.

    >>> call, labels = as_call((torch.zeros(4, 3), torch.arange(4)), nn.Linear(3, 2))
    >>> str(call), labels
    ('float32 of shape (4, 3)', tensor([0, 1, 2, 3]))
    """
    call, labels = _parted(batch, model, example)
    return _checked(call, model), labels


def as_example(given: Any, model: nn.Module) -> Call:
    """The call that a reader's example stands for; it has no labels, so each part of a tuple is an input.

    Args:
        given: a tensor, a mapping of keyword arguments, a tuple of inputs, or ``(tuple, mapping)`` for both.

    Raises:
        DataError: as :func:`as_call`.

    >>> str(as_example((torch.zeros(1, 3),), nn.Linear(3, 2)))
    'float32 of shape (1, 3)'
    """
    if isinstance(given, (tuple, list)):
        both = len(given) == 2 and isinstance(given[0], (tuple, list)) and isinstance(given[1], Mapping)
        return _checked(Call(tuple(given[0]), dict(given[1])) if both else Call(tuple(given)), model)
    return as_call(given, model)[0]


def _parted(batch: Any, model: nn.Module, example: Call | None) -> tuple[Call, Any]:
    parameters = inspect.signature(model.forward).parameters
    if isinstance(batch, Mapping):
        return _named(batch, parameters)
    if isinstance(batch, (Tensor, np.ndarray)):
        return Call((batch,)), None
    if not isinstance(batch, (tuple, list)) or not batch:
        kind = f"empty {type(batch).__name__}" if isinstance(batch, (tuple, list)) else type(batch).__name__
        raise DataError(f"A batch must be a tensor, a tuple or a dict of tensors; it is {an(kind)}.")
    nested = isinstance(batch[0], (tuple, list, Mapping))
    if nested and not (example and example.args and isinstance(example.args[0], (tuple, list, dict))):
        call, labels = _named(batch[0], parameters) if isinstance(batch[0], Mapping) else (Call(tuple(batch[0])), None)
        return call, batch[1] if len(batch) > 1 else labels
    k = len(example.args) if example and example.args else max(1, len(_required(parameters)))
    return Call(tuple(batch[:k])), batch[k] if len(batch) > k else None


def _required(parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, one in parameters.items() if one.kind in kinds and one.default is inspect.Parameter.empty]


def _named(batch: Mapping[Any, Any], parameters: Mapping[str, inspect.Parameter]) -> tuple[Call, Any]:
    kwargs, labels, required = dict(batch), None, _required(parameters)
    for name in ("labels", "label"):
        if name in kwargs and name not in required:
            labels = kwargs.pop(name)
    open_ended = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    if len(required) == 1 and not open_ended and not kwargs.keys() & parameters.keys():
        return Call((kwargs,)), labels  # forward(batch) takes the dict itself
    return Call((), kwargs), labels


def _checked(call: Call, model: nn.Module) -> Call:
    signature = inspect.signature(model.forward)
    try:
        signature.bind(*call.args, **call.kwargs)
    except TypeError as error:
        names = [name for name in signature.parameters if name not in ("args", "kwargs")]
        shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        raise DataError(
            f"{type(model).__name__}.forward({shown}) cannot take {call}: {error}. A batch has each required input in "
            "order, then the labels; or is a dict of forward's own names."
        ) from error
    leaves, spec = pytree.tree_flatten((call.args, call.kwargs))
    for leaf in leaves:
        if isinstance(leaf, np.ndarray):
            raise DataError("A batch holds a NumPy array, and models take tensors: use torch.from_numpy(array).")
        if not isinstance(leaf, (Tensor, *_CONSTANTS)):
            kind = type(leaf).__name__
            raise DataError(f"A batch holds an object of type {kind}: a model's inputs are tensors, numbers and flags.")
        if isinstance(leaf, Tensor) and leaf.device.type != "cpu":
            raise DataError(f"A batch is on the device {leaf.device.type}: give tensor.cpu().")
        if isinstance(leaf, Tensor) and not leaf.is_complex() and (cure := not_dense(leaf)):
            raise DataError(f"A batch holds {cure[0]}: give {cure[1]}.")
    if not call.tensors:
        raise DataError("A batch holds no tensor among the model's inputs.")
    if call.tensors[0].ndim == 0:
        raise DataError("a batch is a single number; it should have the shape (n, …).")
    return Call(*pytree.tree_unflatten(filled(leaves, [one.detach() for one in call.tensors]), spec))


def not_dense(tensor: Tensor) -> tuple[str, str] | None:
    """What is in the place of a dense tensor of real numbers, and what makes one of it; None if it is one.

    >>> not_dense(torch.eye(2).to_sparse())
    ('a sparse tensor', 'tensor.to_dense()')
    """
    if tensor.is_nested:
        return "a nested tensor", "torch.nested.to_padded_tensor(tensor, 0.0)"
    if tensor.is_quantized:
        return "a quantized tensor", "tensor.dequantize()"
    if tensor.layout != torch.strided:
        return "a sparse tensor", "tensor.to_dense()"
    return ("complex numbers", "their two parts, torch.view_as_real(tensor)") if tensor.is_complex() else None


def like(call: Call, example: Call) -> Call:
    """The call, its keywords in the example's order.

    Raises:
        DataError: if it has other keywords, another structure, other types or numbers of dimensions than the example,
            or other constants, since a file keeps the example's.

    >>> like(Call((torch.zeros(2, 3),)), Call((torch.zeros(1, 3, dtype=torch.int64),)))
    Traceback (most recent call last):
        ...
    qhelpers.check.errors.DataError: A batch gives float32 of shape (2, 3); the example is int64 of shape (1, 3).
    """
    if call.kwargs.keys() == example.kwargs.keys():
        call = Call(call.args, {name: call.kwargs[name] for name in example.kwargs})
    leaves, spec = pytree.tree_flatten((call.args, call.kwargs))
    wanted, wanted_spec = pytree.tree_flatten((example.args, example.kwargs))
    if spec != wanted_spec or [*map(_kind, leaves)] != [*map(_kind, wanted)]:
        raise DataError(f"A batch gives {call}; the example is {example}.")
    for leaf, other in zip(leaves, wanted, strict=True):
        if not isinstance(leaf, Tensor) and leaf != other:
            raise DataError(
                f"A batch gives {leaf!r} where the example has {other!r}: "
                "what is no tensor is fixed in the file. Give a tensor, or the same value always."
            )
    return call


def _kind(leaf: Any) -> Any:
    return (leaf.dtype, leaf.ndim) if isinstance(leaf, Tensor) else None


def check_shapes(tensors: Sequence[Tensor], shapes: Sequence[Shape]) -> list[bool]:
    """Which tensors have a row for each sample; the others, such as a mask for all samples, are passed on whole.

    Raises:
        DataError: if the shape of a sample, or of a tensor for all, is not the example's.

    >>> check_shapes([torch.zeros(8, 5), torch.zeros(5, 5)], [(1, 5), (5, 5)])
    [True, False]
    """
    n, size = len(tensors[0]), shapes[0][0]
    rows = [tensor.shape[:1] == (n,) and shape[:1] == (size,) for tensor, shape in zip(tensors, shapes, strict=True)]
    for tensor, shape, row in zip(tensors, shapes, rows, strict=True):
        if tensor.ndim != len(shape) or tuple(tensor.shape[row:]) != tuple(shape[row:]):
            raise DataError(
                f"A batch has the shape {tuple(tensor.shape)}, the example {tuple(shape)}: a file takes one shape. "
                "Bring images to one size, and pad sequences to one length (padding='max_length')."
            )
    return rows


def pieces(tensors: Sequence[Tensor], shapes: Sequence[Shape]) -> Iterator[tuple[tuple[Tensor, ...], int]]:
    """A batch in parts of exactly the example's shapes, and how many samples of each are real.

    The last part is filled by repeating the last sample.

    Raises:
        DataError: as :func:`check_shapes`.

    >>> [(part[0].tolist(), n) for part, n in pieces([torch.arange(3)], [(2,)])]
    [([0, 1], 2), ([2, 2], 1)]
    """
    rows, size = check_shapes(tensors, shapes), shapes[0][0]
    for start in range(0, len(tensors[0]), size):
        chosen = torch.arange(start, start + size).clamp(max=len(tensors[0]) - 1)
        whole = len(tensors[0]) == size
        part = tuple(tensor[chosen] if row and not whole else tensor for tensor, row in zip(tensors, rows, strict=True))
        yield part, min(size, len(tensors[0]) - start)
