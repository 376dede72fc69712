"""What the scripts that train a checkpoint share: options, training on the digits, accuracy, writing files."""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments import loop
from qhelpers import atomic, metrics
from qhelpers.tasks import checkpoints, digits, published


def parser(description: str | None, target: str, seed: int = 0) -> argparse.ArgumentParser:
    """The options of a script that trains a checkpoint, with their defaults."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seed", type=int, default=seed)
    options.add_argument("--target", type=Path, default=checkpoints.WEIGHTS_FOLDER / target)
    options.add_argument("--fresh", action="store_true", help="do not resume an interrupted run")
    return options


def state_file(name: str, arguments: argparse.Namespace) -> Path:
    """Where an interrupted run is kept; a fresh one finds nothing there."""
    path = Path(f"build/experiments/{name}_seed{arguments.seed}.pt")
    if arguments.fresh:
        path.unlink(missing_ok=True)
    return path


def pretrained() -> nn.Module:
    """The int8 MobileNetV2 (ImageNet) that PyTorch publishes.

    Raises:
        SystemExit: if it is neither in torch's hub cache nor to be had from the network.
    """
    found = published.pretrained_mobilenet_v2()
    if not found.is_imagenet:
        raise SystemExit("The published weights are needed. " + " ".join(found.notes))
    return found.model


def train_on_digits(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    state_file: Path,
    clip_norm: float | None = None,
) -> None:
    """Train on the augmented digits, and print the validation accuracy after each epoch.

    The learning rate goes through one cycle, whose peak is the optimizer's own rate.
    """
    each = len(digits.dataset("train")) // batch_size
    steps = epochs * each

    def on_step(step: int, losses: list[float]) -> None:
        epoch, rest = divmod(step + 1, each)
        if rest == 0:
            print(f"epoch {epoch}: validation {accuracy(model, 'validation'):.1f} %", flush=True)
            model.train()

    loop.fit(
        model.train(),
        lambda step: digits.training_batch(step, batch_size, seed),
        optimizer,
        steps,
        schedule=torch.optim.lr_scheduler.OneCycleLR(optimizer, optimizer.defaults["lr"], total_steps=steps),
        on_step=on_step,
        state_file=state_file,
        save_every=each,
        seed=seed,
        label_smoothing=0.05,
        clip_norm=clip_norm,
    )


def accuracy(model: nn.Module, split: digits.Split) -> float:
    """Top-1 on a split, in percent; leaves the model in evaluation mode."""
    return metrics.top1(model.eval(), digits.loader(split, batch_size=100)).percent


def save(value: Any, path: Path) -> None:
    """Write a torch file, whole or not at all."""
    with atomic.replacing(path) as part:
        torch.save(value, part)


def save_in_half(model: nn.Module, path: Path) -> None:
    """Round the model's weights to float16, and write those; the model goes on with what was written."""
    rounded = {key: value.half() for key, value in model.state_dict().items()}
    model.load_state_dict({key: value.float() for key, value in rounded.items()})
    save(rounded, path)
