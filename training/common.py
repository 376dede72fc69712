"""What the training scripts share: whole-file saving, augmented batches, the resumable loop, accuracy."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from qhelpers import data, metrics


def save_whole(value: Any, path: Path) -> None:
    """Write a torch file completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(value, part)
    os.replace(part, path)


def training_batches(batch_size: int, seed: int) -> DataLoader[Any]:
    """Shuffled, augmented training digits, prepared for the network; the order follows from the seed."""

    def collate(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        raw = torch.stack([data.AUGMENT(image[None])[0] for image, _ in samples])
        return data.prepare_images(raw), torch.stack([label for _, label in samples])

    generator = torch.Generator().manual_seed(seed)
    return DataLoader(
        data.digits("train"), batch_size, shuffle=True, drop_last=True, collate_fn=collate, generator=generator
    )


def accuracy(model: nn.Module, split: data.Split) -> float:
    """Top-1 on a split, in percent; leaves the model in evaluation mode."""
    return metrics.top1(model.eval(), data.digit_loader(split, batch_size=100)).percent


def train_on_digits(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    state_file: Path,
    fresh: bool,
    clip: float | None = None,
) -> None:
    """Train on the digits, resuming at the last finished epoch that ``state_file`` holds unless ``fresh``.

    The loss is cross-entropy with label smoothing 0.05; ``clip`` bounds the norm of the gradients.
    """
    first = 0
    if state_file.is_file() and not fresh:
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first = state["epoch"] + 1
    for epoch in range(first, epochs):
        torch.manual_seed(seed + epoch)
        model.train()
        batches = training_batches(batch_size, seed + epoch)
        for inputs, labels in tqdm(batches, desc=f"epoch {epoch + 1} of {epochs}", mininterval=10):
            loss = F.cross_entropy(model(inputs), labels, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: validation {accuracy(model, 'validation'):.1f} %", flush=True)
        saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        save_whole(saved | {"schedule": schedule.state_dict(), "epoch": epoch}, state_file)


def save_in_half(model: nn.Module, path: Path) -> None:
    """Round the model's weights to float16, and write those; the model goes on with what was written."""
    rounded = {key: value.half() for key, value in model.state_dict().items()}
    model.load_state_dict({key: value.float() for key, value in rounded.items()})
    save_whole(rounded, path)
