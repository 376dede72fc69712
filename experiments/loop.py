"""The training loop that all of `experiments/` share.

It does what the loop in the chapters does, and four things more: it refuses what cannot be trained, stops at the first
loss that is not finite, gives back the last good weights, and can be resumed.
"""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from qhelpers import atomic, guards
from qhelpers.progress import progress_bar

Batch = tuple[Tensor, Tensor]
THE_BATCH = "the batch itself"


class TrainingError(RuntimeError):
    """Training cannot go on or be resumed, or would do something else than it seems to."""


class DivergedError(TrainingError):
    """The loss is no longer finite; the model has its last good weights again."""

    def __init__(self, message: str, step: int = -1, layer: str = "") -> None:  # defaults: workers pickle it
        super().__init__(message)
        self.step, self.layer = step, layer


def fit(
    model: nn.Module,
    batch_of: Callable[[int], Batch],
    optimizer: torch.optim.Optimizer,
    steps: int,
    *,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
    before_step: Mapping[int, Callable[[nn.Module], Any]] | None = None,
    on_step: Callable[[int, list[float]], None] | None = None,
    state_file: Path | None = None,
    save_every: int = 25,
    seed: int = 0,
    label_smoothing: float = 0.0,
    clip_norm: float | None = None,
) -> list[float]:
    """Train a classifier for some steps with cross-entropy.

    The model stays in the mode that it is in. Randomness inside a step (dropout) follows from ``seed`` and
    the step, so a resumed run equals an uninterrupted one; the global random state is left alone.

    Args:
        model: float or prepared for quantization-aware training; maps inputs to logits ``(n, classes)``.
        batch_of: maps the step, counted from 0, to inputs ``(n, …)`` and int64 labels ``(n,)``.
        optimizer: of the model's parameters.
        steps: how many in all, those before an interruption included.
        schedule: stepped after each step.
        before_step: what is applied to the model before the step that is named, such as freezing observers; applied
            again when a run is resumed behind that step.
        on_step: called after each step with its number and all losses up to it.
        state_file: where the state is kept every ``save_every`` steps, and found again; removed at the end.
        seed: marks the state as that of this run, with the steps, the optimizer's type, its learning rates and the
            two options that follow.
        label_smoothing: of the cross-entropy.
        clip_norm: the largest norm of all gradients together; not clipped if None.

    Returns:
        The loss of each step.

    Raises:
        GuardError: if the model has int8 layers.
        TrainingError: for a batch of one image while a batch norm is in training mode, or a state file that is damaged
            or of another run.
        DivergedError: naming the step and the first layer whose output is not finite.
        WriteError: if the state file cannot be written.

    >>> with torch.random.fork_rng(devices=[]):
    ...     model = nn.Linear(2, 2)
    >>> batch = (torch.eye(2), torch.arange(2))
    >>> losses = fit(model, lambda step: batch, torch.optim.SGD(model.parameters(), lr=1.0), steps=5)
    >>> losses[-1] < losses[0]
    True
    """
    guards.require_trainable(model)
    before_step = before_step or {}
    rates = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
    run = {"steps": steps, "seed": seed, "optimizer": type(optimizer).__name__, "learning rates": rates}
    run |= {"label smoothing": label_smoothing, "clip norm": clip_norm}
    losses = _resume(state_file, run, model, optimizer, schedule) if state_file is not None else []
    for step in range(len(losses)):  # what was applied before the interruption and is in no state_dict
        if step in before_step:
            before_step[step](model)
    good = _snapshot(model)
    with progress_bar(doing="training", unit="step", total=steps, initial=len(losses)) as bar:
        for step in range(len(losses), steps):
            if step in before_step:
                before_step[step](model)
            inputs, labels = batch_of(step)
            _check_batch(model, inputs)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1_000_003 * seed + step)
                loss = _loss(model, inputs, labels, label_smoothing)
            if not bool(torch.isfinite(loss)):
                _give_up(model, inputs, good, step, f"The loss of step {step} is {loss.item()}")
            good = _snapshot(model)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            optimizer.step()
            if schedule is not None:
                schedule.step()
            losses.append(loss.item())
            bar.update()
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
            if step == steps - 1 and _not_finite(model):
                _give_up(model, inputs, good, step, f"After step {step}, the last one, weights are not finite")
            if state_file is not None and len(losses) % save_every == 0 and not _not_finite(model):
                _save(state_file, run, losses, model, optimizer, schedule)
            if on_step is not None:
                on_step(step, losses)
    if state_file is not None:
        state_file.unlink(missing_ok=True)
    return losses


def _loss(model: nn.Module, inputs: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    try:
        return F.cross_entropy(model(inputs), labels, label_smoothing=label_smoothing)
    except (RuntimeError, AssertionError):
        # fake quantizers that are shown infinite values complain before there is a loss
        if bool(torch.isfinite(inputs).all()) and not _not_finite(model):
            raise
        return torch.tensor(float("nan"))


def _not_finite(model: nn.Module) -> list[str]:
    # the observers' ranges are infinite until they have seen data
    state = {name: value for name, value in model.state_dict().items() if not name.endswith(("min_val", "max_val"))}
    return [name for name, value in state.items() if not bool(torch.isfinite(value).all())]


def _give_up(model: nn.Module, inputs: Tensor, good: dict[str, Tensor], step: int, what: str) -> NoReturn:
    with torch.random.fork_rng(devices=[]):
        layer = _first_layer_not_finite(model, inputs)
    model.load_state_dict(good)
    advice = "look at its images" if layer == THE_BATCH else "lower the learning rate, and make a new optimizer"
    raise DivergedError(
        f"{what}; the first that is not finite is {layer}. The model has its last good weights again: {advice}.",
        step,
        layer,
    )


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def _check_batch(model: nn.Module, inputs: Tensor) -> None:
    if len(inputs) > 1:
        return
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            raise TrainingError(
                f"A batch of {len(inputs)} while {name or 'the batch norm'} takes statistics of the batch: use at "
                f"least two images (drop_last=True), or freeze the statistics."
            )


def _first_layer_not_finite(model: nn.Module, inputs: Tensor) -> str:
    if not bool(torch.isfinite(inputs).all()):
        return THE_BATCH
    found: list[str] = []
    entered: list[str] = []

    def look(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                found.append(name)

        return hook

    hooks = []
    for name, module in model.named_modules():
        if name:  # the hooks of what lies inside a module are called before its own
            hooks.append(module.register_forward_hook(look(name)))
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: entered.append(name)))
    try:
        with torch.no_grad():
            model(inputs)
    except (RuntimeError, AssertionError):
        found.append(entered[-1])  # it failed before it gave an output
    finally:
        for handle in hooks:
            handle.remove()
    if found:
        return found[0]
    stale = _not_finite(model)
    return stale[0].rpartition(".")[0] or stale[0] if stale else "the loss"


# --- interrupted runs ---------------------------------------------------------------------------------


def _save(path: Path, run: dict[str, Any], losses: list[float], model: nn.Module, *others: Any) -> None:
    states = [None if other is None else other.state_dict() for other in others]
    with atomic.replacing(path) as part:
        torch.save({"run": run, "losses": losses, "model": model.state_dict(), "others": states}, part)


def _resume(path: Path, run: dict[str, Any], model: nn.Module, *others: Any) -> list[float]:
    if not path.is_file():
        return []
    try:
        state = torch.load(path, weights_only=True)
        kept, losses = state["run"], list(state["losses"])
    except Exception as error:  # a damaged archive fails in many ways
        raise TrainingError(f"{path.name} cannot be read ({type(error).__name__}): delete it to start anew.") from error
    if kept != run:
        raise TrainingError(f"{path.name} is the state of another run ({kept}, not {run}): delete it to start anew.")
    try:
        model.load_state_dict(state["model"])
        for other, its_state in zip(others, state["others"], strict=True):
            if other is not None:
                other.load_state_dict(its_state)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"{path.name} does not fit this {type(model).__name__}: delete it to start anew."
        ) from error
    return losses
