"""The checks of a stranger's data: loaders of every kind of batch, or a folder of images, are gone through once."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from qhelpers import guards
from qhelpers.check import calls, image_folder
from qhelpers.check.calls import Call, an
from qhelpers.check.errors import DataError

_CURE = "If it is no classifier, give evaluate=…; if this is an input, give example=(…) with all inputs."


@dataclass(frozen=True, eq=False)
class Data:
    """Data that were gone through once: as many samples as it says, all of the first call's form and shapes.

    Attributes:
        labels: one integer for each sample, or None.
        first: the first batch that is not empty.
        notes: how they were read, for the report.
    """

    name: str
    n: int
    labels: Tensor | None
    first: Call
    notes: tuple[str, ...]
    _loader: Iterable[Any]
    _model: nn.Module
    _example: Call

    def calls(self) -> Iterator[Call]:
        """The batches as calls, from the beginning; their labels are left out."""
        return (call for call, _ in _read(self._loader, self.name, self._model, self._example))


def checked_data(
    loader: Any,
    name: str,
    model: nn.Module,
    example: Call | None = None,
    least: int = 1,
    repeats: bool = False,
    labelled: bool = True,
) -> Data:
    """Go through a loader, or a folder of images, and look at every batch.

    Args:
        name: of the variable, for the messages.
        example: whose form and shapes all batches must have; if None, the first batch.
        least: how many samples there must be.
        repeats: go through it twice, and require the same inputs and labels in the same order.
        labelled: read the labels; else they may be anything, and are passed over.

    Raises:
        DataError: if it is empty or has too few samples, can be gone through only once, raises an error, yields what
            the model cannot be called with, samples of several shapes, labels that are not one integer for each sample,
            or, with repeats, something else the second time.

    >>> checked_data([torch.zeros(4, 3)], "test", nn.Linear(3, 2)).n
    4
    """
    notes: list[str] = []
    if isinstance(loader, (str, Path)):
        try:
            loader, note = image_folder.images_in(loader, example)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
        notes.append(note)
    map_style = isinstance(loader, Dataset) and not isinstance(loader, IterableDataset)
    unfit = isinstance(loader, (Tensor, Mapping, Iterator)) or not isinstance(loader, Iterable) or map_style
    if unfit:
        raise DataError(
            f"{name} must be a loader or a list of batches, to be gone through more than once; "
            f"it is {an(type(loader).__name__)} (a dataset goes into a DataLoader, a tensor into a list)."
        )
    n, first, labels, digest = _one_pass(loader, name, model, example, labelled)
    if n < least or first is None:
        seen = "no sample" if n == 0 else f"{n} sample{'s' * (n > 1)}"
        raise DataError(f"{name} yielded {seen}; it needs at least {least}: a hundred are a good number.")
    if repeats and _one_pass(loader, name, model, example, labelled)[3] != digest:
        raise DataError(
            f"{name} yields other inputs or another order the second time: shuffle=False, no random augmentation."
        )
    return Data(name, n, labels, first, tuple(notes), loader, model, example or first)


def _read(loader: Iterable[Any], name: str, model: nn.Module, example: Call | None) -> Iterator[tuple[Call, Any]]:
    for batch in _safely(loader, name):
        try:
            call, labels = calls.as_call(batch, model, example)
            if call.n == 0:
                continue
            example = example or call
            call = calls.like(call, example)
            calls.check_shapes(call.tensors, example.shapes)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
        yield call, labels


def _safely(loader: Iterable[Any], name: str) -> Iterator[Any]:
    try:
        yield from loader
    except Exception as error:  # whatever a stranger's dataset raises
        raise DataError(f"{name} cannot be read: {type(error).__name__}: {guards.first_line(error)}") from error


def _one_pass(
    loader: Iterable[Any], name: str, model: nn.Module, example: Call | None, labelled: bool
) -> tuple[int, Call | None, Tensor | None, str]:
    n, first, digest = 0, None, hashlib.sha256()
    labels: list[Tensor] | None = [] if labelled else None
    for call, given in _read(loader, name, model, example):
        n, first = n + call.n, first or call
        for tensor in call.tensors:
            digest.update(_bytes(tensor))
        if labelled and given is not None:
            found = _labels(given, call.n, name)
            digest.update(_bytes(found))
            labels = None if labels is None else [*labels, found]
        else:
            labels = None
    return n, first, torch.cat(labels) if labels else None, digest.hexdigest()


def _labels(given: Any, n: int, name: str) -> Tensor:
    try:
        labels = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(given).__name__
        raise DataError(f"{name}: labels must be integers; torch cannot read this {kind}. {_CURE}") from error
    if labels.shape != (n,) or labels.is_floating_point() or labels.is_complex():
        words = f"labels of shape {tuple(labels.shape)}, {str(labels.dtype).removeprefix('torch.')}"
        hint = "Is it a dataset? It goes into a DataLoader." if labels.ndim == 0 else _CURE
        raise DataError(f"{name}: labels must be one integer for each input; {n} inputs came with {words}. {hint}")
    return labels


def _bytes(values: Tensor) -> bytes:
    return values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
