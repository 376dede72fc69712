"""The calibration loop: show a prepared model representative inputs, so that its observers see ranges."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantizeBase, ObserverBase
from tqdm.auto import tqdm

from qhelpers import models, reports


class CalibrationError(ValueError):
    """Calibration cannot do anything useful with what it was given."""


class EmptyLoaderError(CalibrationError):
    """The loader yielded no batch."""


class BatchTypeError(CalibrationError):
    """The loader yielded something that is neither a tensor nor (tensor, label)."""


class NotCalibratedError(CalibrationError):
    """Some observers have seen nothing, so the ranges that they would give are made up."""


class NoObserversError(CalibrationError):
    """The model has no observers, so it would learn nothing from the data."""


def observers(model: nn.Module) -> list[str]:
    """Names of the modules that record ranges (observers and fake quantizers).

    >>> observers(nn.Sequential(nn.ReLU()))
    []
    """
    return [name for name, module in model.named_modules() if isinstance(module, (ObserverBase, FakeQuantizeBase))]


def batch_images(batch: Any) -> Tensor:
    """The input tensor of a batch that is a tensor or ``(tensor, label, …)``.

    Raises:
        BatchTypeError: for anything else.

    >>> batch_images((torch.zeros(4, 3), torch.zeros(4))).shape
    torch.Size([4, 3])
    """
    first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(first, Tensor):
        inside = f" of {type(first).__name__}" if first is not batch else ""
        raise BatchTypeError(
            f"A batch must be a tensor or (tensor, label); the loader yielded a {type(batch).__name__}{inside}."
        )
    return first


def calibrate(model: nn.Module, loader: Iterable[Any], *, progress: bool | None = None) -> int:
    """Run every batch of a loader through a prepared model.

    The batches are dropped as soon as they have been seen, so memory does not grow with their number.

    Args:
        model: a model in evaluation mode after ``prepare``.
        loader: yields tensors ``(n, …)`` or ``(tensor, label)``.
        progress: show a progress bar; if None, unless the book is being built.

    Returns:
        The number of samples seen.

    Raises:
        NoObserversError: if the model was not prepared, or no qconfig was set (PyTorch would go on).
        TrainingModeError: if the model is in training mode (batch statistics would be observed).
        EmptyLoaderError: if there is no batch, or only batches of size zero.
        BatchTypeError: if a batch is no tensor.

    >>> model = nn.Sequential(torch.ao.quantization.MinMaxObserver()).eval()
    >>> calibrate(model, [torch.zeros(4, 3)], progress=False)
    4
    """
    if not observers(model):
        raise NoObserversError("The model has no observers: set a qconfig and call prepare before calibrating.")
    models.require_eval(model)
    seen = 0
    hidden = reports.hide_progress() if progress is None else not progress
    with torch.inference_mode():
        for batch in tqdm(loader, desc="calibrating", unit="batch", disable=hidden):
            images = batch_images(batch)
            if len(images):
                model(images)
            seen += len(images)
    if seen == 0:
        raise EmptyLoaderError("The loader yielded no sample: observers that saw nothing give meaningless ranges.")
    return seen


def require_calibrated(model: nn.Module) -> nn.Module:
    """Return the prepared model if the observers behind its layers with weights have seen data.

    Observers of modules without weights may be empty: torchvision's networks leave some additions unused.

    Raises:
        NoObserversError: if the model was not prepared. PyTorch's ``convert`` would leave it in float.
        NotCalibratedError: naming the first layers. ``convert`` would only warn, and give them the scale 1.

    >>> require_calibrated(nn.Linear(2, 2))
    Traceback (most recent call last):
        ...
    qhelpers.calibration.NoObserversError: The model has no observers: set a qconfig and call prepare before converting.
    """
    if not observers(model):
        raise NoObserversError("The model has no observers: set a qconfig and call prepare before converting.")
    empty: dict[str, None] = {}
    for name in observers(model):
        owner = name.rpartition(".")[0]
        if any(True for _ in model.get_submodule(owner).parameters()) and _saw_nothing(model.get_submodule(name)):
            empty[owner] = None  # once, though a fake-quantized layer has two
    if empty:
        shown = ", ".join([*empty][:3]) + (", …" if len(empty) > 3 else "")
        raise NotCalibratedError(
            f"{len(empty)} layers with weights have not been calibrated ({shown}): run calibrate first; if some "
            f"layers stay empty, the calibration data miss a branch of the model."
        )
    return model


def _saw_nothing(observer: nn.Module) -> bool:
    if isinstance(observer, FakeQuantizeBase):
        return _saw_nothing(observer.activation_post_process)  # type: ignore[arg-type]
    low = getattr(observer, "min_val", None)
    return isinstance(low, Tensor) and not bool(torch.isfinite(low).any())
