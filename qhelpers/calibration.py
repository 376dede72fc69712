"""The calibration loop: show a prepared model representative inputs, so that its observers see ranges."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from qhelpers import guards
from qhelpers.progress import progress_bar


class CalibrationError(ValueError):
    """Calibration cannot use what it was given."""


def batch_images(batch: Any) -> Tensor:
    """The input tensor of a batch that is a tensor or ``(tensor, label, …)``.

    Raises:
        CalibrationError: for anything else.

    >>> batch_images((torch.zeros(4, 3), torch.zeros(4))).shape
    torch.Size([4, 3])
    """
    first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(first, Tensor):
        inside = f" of {type(first).__name__}" if first is not batch else ""
        raise CalibrationError(
            f"A batch must be a tensor or (tensor, label); the loader yielded a {type(batch).__name__}{inside}."
        )
    return first


def calibrate(model: nn.Module, loader: Iterable[Any], *, progress: bool | None = None) -> int:
    """Run every batch of a loader through a prepared model.

    The batches are dropped as soon as they have been seen, so memory does not grow with their number.

    Args:
        model: a model in evaluation mode after ``prepare``.
        loader: yields tensors ``(n, …)`` or ``(tensor, label)``.
        progress: show a progress bar; if None, unless TQDM_DISABLE is set.

    Returns:
        The number of samples seen.

    Raises:
        GuardError: if the model was not prepared, no qconfig was set, or it is in training mode. PyTorch would go on.
        CalibrationError: if there is no batch, only batches of size zero, or a batch that is no tensor.

    >>> model = nn.Sequential(torch.ao.quantization.MinMaxObserver()).eval()
    >>> calibrate(model, [torch.zeros(4, 3)], progress=False)
    4
    """
    if not guards.observers(model):
        raise guards.GuardError("The model has no observers: set a qconfig and call prepare before calibrating.")
    guards.require_eval(model)
    seen = 0
    with torch.inference_mode():
        for batch in progress_bar(loader, doing="calibrating", unit="batch", show=progress):
            images = batch_images(batch)
            if len(images):
                model(images)
            seen += len(images)
    if seen == 0:
        raise CalibrationError("The loader yielded no sample: observers that saw nothing give meaningless ranges.")
    return seen
