"""The worksheet's checks of a stranger's model and data: whatever it cannot take is refused in words.

A model takes one tensor ``(n, …)`` and gives logits ``(n, classes)``; a loader yields such tensors, or
``(tensor, labels)``, and can be gone through more than once.
"""

import copy
import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from qhelpers import calibration, guards
from qhelpers.check import simulate


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


def checked_model(model: Any) -> tuple[nn.Module, list[str]]:
    """A copy in evaluation mode, and notes for the report; the model itself is left as it is.

    Raises:
        AlreadyQuantizedError: naming the first int8 layers.
        ModelError: if it is no module, is not in float32 on the CPU, or holds NaN or infinity, naming where. A mask
            in a buffer may be infinite, the statistics of a norm may not.

    >>> checked_model(nn.Linear(2, 2))[1]
    ['The model came in training mode: the worksheet works on a copy in evaluation mode.']
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"model must be an nn.Module; it is {_a(type(model).__name__)}.")
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    int8 = guards.int8_modules(model) + [name for name, value in parameters.items() if _is_int8(value, torch.uint8)]
    int8 += [name for name, value in buffers.items() if _is_int8(value)]  # uint8 ones are images, masks, counters
    if int8:
        shown = ", ".join(int8[:3]) + (", …" if len(int8) > 3 else "")
        raise AlreadyQuantizedError(
            f"This {type(model).__name__} is quantized already ({shown}): give the float model from which it was made."
        )
    for name, value in parameters.items():
        if value.dtype != torch.float32 or value.device.type != "cpu":
            given = f"{_type(value)} on {value.device.type}"
            raise ModelError(f"{name} is {given}; load the weights, then give model.float().cpu().")
    if broken := simulate.not_finite(model):
        raise ModelError(f"The model holds NaN or infinity in {', '.join(broken[:3])}: no scale can be found for them.")
    notes = ["The model came in training mode: the worksheet works on a copy in evaluation mode."]
    return copy.deepcopy(model).eval(), notes if any(module.training for module in model.modules()) else []


def _is_int8(value: Tensor, *more: torch.dtype) -> bool:
    foreign = type(value.data) is not Tensor  # torchao's int8 tensors are of a type of their own
    return foreign or value.is_quantized or value.dtype in (torch.int8, *more)


def _type(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _a(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def checked_loader(loader: Any, name: str, least: int = 1, repeats: bool = False) -> tuple[int, bool]:
    """How many inputs a loader yields, and whether each batch has labels.

    Args:
        name: of the variable, for the messages.
        least: how many inputs it must have.
        repeats: go through it twice, and require the same inputs and labels in the same order.

    Raises:
        DataError: if it is empty or has too few inputs, can be gone through only once, yields something else than
            tensors, labels that are not one integer for each input, or, with repeats, something else the second time.

    >>> checked_loader([torch.zeros(4, 3)], "test_loader")
    (4, False)
    """
    if not isinstance(loader, Iterable) or iter(loader) is loader:
        raise DataError(
            f"{name} must be a loader or a list of batches, to be gone through more than once; "
            f"it is {_a(type(loader).__name__)} (a dataset goes into a DataLoader)."
        )
    n, labelled, digest = _one_pass(loader, name)
    if n < least:
        seen = "no input" if n == 0 else f"{n} input{'s' * (n > 1)}"
        raise DataError(f"{name} yielded {seen}; it needs at least {least}: a hundred are a good number.")
    if repeats and _one_pass(loader, name)[2] != digest:
        raise DataError(
            f"{name} yields other inputs or another order the second time: shuffle=False, no random augmentation."
        )
    return n, labelled


def _one_pass(loader: Iterable[Any], name: str) -> tuple[int, bool, str]:
    n, labelled, digest = 0, True, hashlib.sha256()
    for batch in loader:
        try:
            inputs = calibration.batch_images(batch)
        except calibration.CalibrationError as error:
            raise DataError(f"{name}: {error}") from error
        if inputs.ndim == 0:
            raise DataError(f"{name}: a batch is a single number; it should have the shape (n, …).")
        given = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
        n, labelled = n + len(inputs), labelled and given is not None
        digest.update(_bytes(inputs))
        if given is not None:
            digest.update(_bytes(_labels(given, len(inputs), name)))
    return n, labelled, digest.hexdigest()


def _labels(given: Any, n: int, name: str) -> Tensor:
    try:
        labels = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name}: labels must be integers; torch cannot read this {type(given).__name__}.") from error
    if labels.shape != (n,) or labels.is_floating_point():
        words = f"labels of shape {tuple(labels.shape)}, {_type(labels)}"
        hint = " Is it a dataset? It goes into a DataLoader." if labels.ndim == 0 else ""
        raise DataError(f"{name}: labels must be one integer for each input; {n} inputs came with {words}.{hint}")
    return labels


def _bytes(values: Tensor) -> bytes:
    return values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def check_run(model: nn.Module, inputs: Tensor, name: str) -> None:
    """Run the model once on the first two of the inputs.

    Raises:
        CannotRunError: with shape, type and PyTorch's own first line; or if the outputs are no finite logits of at
            least two classes.
        DataError: if the inputs are no tensor with a batch dimension.

    >>> check_run(nn.Linear(3, 2), torch.zeros(1, 4), "example")
    Traceback (most recent call last):
        ...
    qhelpers.check.inputs.CannotRunError: Linear cannot run on example, float32 of shape (1, 4): RuntimeError: \
mat1 and mat2 shapes cannot be multiplied (1x4 and 3x2)
    """
    if not isinstance(inputs, Tensor) or inputs.ndim == 0:
        what = _a(type(inputs).__name__) if not isinstance(inputs, Tensor) else "a single number"
        raise DataError(f"{name} must be a tensor of shape (n, …), it is {what}: take [0] of a batch (tensor, labels).")
    inputs = inputs[:2]
    given = f"{name}, {_type(inputs)} of shape {tuple(inputs.shape)}"
    try:
        with torch.inference_mode():
            found = model(inputs)
    except Exception as error:  # whatever a stranger's model raises
        words = f"{type(error).__name__}: {guards.first_line(error)}"
        raise CannotRunError(f"{type(model).__name__} cannot run on {given}: {words}") from error
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(inputs):
        gives = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else _a(type(found).__name__)
        raise CannotRunError(f"{type(model).__name__} gives {gives} for {given}; it should give (n, classes).")
    if found.shape[1] < 2:
        raise CannotRunError(
            f"{type(model).__name__} gives one column: argmax says nothing; for one logit x "
            "return torch.cat([-x, x], 1)."
        )
    if not bool(torch.isfinite(found).all()):
        raise CannotRunError(f"{type(model).__name__} gives NaN or infinity for {given}.")
