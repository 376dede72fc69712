"""What the training scripts share: the seed, whole-file saving, augmentation and accuracy."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from qhelpers import data, metrics

# Applied to each raw digit: rotation in degrees, shift and scale as fractions.
AUGMENT = v2.RandomAffine(
    degrees=11, translate=(0.1, 0.1), scale=(0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR
)


def save_whole(value: Any, path: Path) -> None:
    """Write a torch file completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(value, part)
    os.replace(part, path)


def training_batches(batch_size: int, seed: int) -> DataLoader[Any]:
    """Shuffled, augmented training digits, prepared for the network; the order follows from the seed."""

    def collate(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        raw = torch.stack([AUGMENT(image[None])[0] for image, _ in samples])
        return data.prepare_images(raw), torch.stack([label for _, label in samples])

    generator = torch.Generator().manual_seed(seed)
    return DataLoader(
        data.digits("train"), batch_size, shuffle=True, drop_last=True, collate_fn=collate, generator=generator
    )


def accuracy(model: nn.Module, split: data.Split) -> float:
    """Top-1 on a split, in percent; leaves the model in evaluation mode."""
    return metrics.top1(model.eval(), data.digit_loader(split, batch_size=100)).percent
