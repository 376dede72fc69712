"""Quantization-aware training of the digits model on three roads: eager, FX graph mode and PT2E, three seeds each.

Writes qhelpers/book/results/roads_qat.json. About eight minutes on two cores; an interrupted call goes on with the runs
that it lacks. Every road has one scale for each weight tensor, because that is where training is needed. Choices
are made on the 500 validation digits; the 1,000 test digits are only reported.

    python -m experiments.roads_qat
"""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao import quantization as tq
from torch.ao.quantization import quantize_fx

from experiments import loop, qat_runs, runs
from experiments.runs import Run
from qhelpers import engines, metrics
from qhelpers.book import chapter
from qhelpers.tasks import checkpoints, digits

ENGINE = "qnnpack"
STATE = Path("build/experiments/roads_qat.json")
RECIPE: Run = {"lr": 3e-3, "momentum": 0.9}
RUNS: list[Run] = [
    RECIPE | {"road": road, "steps": steps, "seed": seed}
    for steps in (40, 100)
    for road in ("eager", "FX", "PT2E")
    for seed in range(3)
]
Convert = Callable[[nn.Module], Callable[[Tensor], Tensor]]


def eager() -> tuple[nn.Module, Convert, Callable[[nn.Module], Any]]:
    """The prepared model, what makes an int8 classifier of it, and what freezes its observers."""
    return qat_runs.prepared(), qat_runs.to_int8, tq.disable_observer


def fx() -> tuple[nn.Module, Convert, Callable[[nn.Module], Any]]:
    """As :func:`eager`, for FX graph mode."""
    mapping = tq.get_default_qat_qconfig_mapping(ENGINE)
    example = (torch.zeros(1, 3, digits.IMAGE_SIZE, digits.IMAGE_SIZE),)
    prepared = quantize_fx.prepare_qat_fx(checkpoints.load_digits_float().train(), mapping, example)
    return prepared, lambda net: quantize_fx.convert_fx(copy.deepcopy(net).eval()), tq.disable_observer


def pt2e() -> tuple[nn.Module, Convert, Callable[[nn.Module], Any]]:
    """As :func:`eager`, for PT2E with ExecuTorch's XNNPACK quantizer."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization import pt2e as ao
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e

    model = checkpoints.load_digits_float().train()
    example = torch.zeros(qat_runs.BATCH, 3, digits.IMAGE_SIZE, digits.IMAGE_SIZE)
    exported = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    config = get_symmetric_quantization_config(is_per_channel=False, is_qat=True)
    prepared = prepare_qat_pt2e(exported.module(), XNNPACKQuantizer().set_global(config))

    def convert(net: nn.Module) -> Callable[[Tensor], Tensor]:
        converted = convert_pt2e(ao.move_exported_model_to_eval(copy.deepcopy(net)))
        return lambda images: converted(images)  # a graph has no .eval(), so it is handed on as a function

    return ao.move_exported_model_to_train(prepared), convert, ao.disable_observer


def measure(run: Run) -> Run:
    """Train as the run says, and measure the int8 model."""
    warnings.simplefilter("ignore")
    chapter.quiet_imports()
    torch.manual_seed(run["seed"])
    with engines.using_engine(ENGINE):
        model, convert, freeze = {"eager": eager, "FX": fx, "PT2E": pt2e}[run["road"]]()
        optimizer = torch.optim.SGD(model.parameters(), lr=run["lr"], momentum=run["momentum"])
        losses = loop.fit(
            model,
            lambda step: digits.training_batch(step, qat_runs.BATCH, run["seed"]),
            optimizer,
            run["steps"],
            schedule=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, run["steps"]),
            before_step={2 * run["steps"] // 3: lambda net: net.apply(freeze)},
            seed=run["seed"],
        )
        int8 = convert(model)
        splits: tuple[digits.Split, ...] = ("validation", "test")
        found = {split: metrics.top1(int8, digits.loader(split, batch_size=25)).percent for split in splits}
    return found | {"loss": round(sum(losses[-10:]) / 10, 3)}


def main() -> None:
    rows = runs.run_all(measure, RUNS, STATE)
    runs.write_results("roads_qat", "experiments/roads_qat.py", "int8 top-1 in %, batches of 16 digits", rows)


if __name__ == "__main__":
    main()
