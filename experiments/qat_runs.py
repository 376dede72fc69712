"""What quantization-aware training of the digits model depends on, with several seeds.

Writes qhelpers/book/results/qat_runs.json (about 40 minutes on two cores) and qat_neighbours.json (ten minutes), which
changes one thing at a time around the recipe and around the setting that jumps. An interrupted call goes on with the
runs that it lacks. Choices are made on the 500 validation digits; the 1,000 test digits are only reported.

    python -m experiments.qat_runs [qat_runs | qat_neighbours]
"""

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.ao import quantization as tq
from torch.ao.nn.intrinsic.qat import freeze_bn_stats

from experiments import loop, runs
from experiments.runs import Run
from qhelpers import calibration, engines, metrics
from qhelpers.tasks import checkpoints, digits

BATCH = 16
STATE = Path("build/experiments/qat_runs.json")
GRID = [
    {"lr": lr, "steps": steps, "seed": seed}
    for lr in (1e-3, 3e-3, 1e-2)
    for steps in (25, 50, 100)
    for seed in range(3)
]
RECIPE: Run = {"what": "qat", "momentum": 0.9, "schedule": "cosine", "frozen": "both", "lr": 3e-3, "steps": 100}
DOCUMENTS = RECIPE | {"lr": 1e-4, "momentum": 0.0, "schedule": "constant", "frozen": "nothing"}
JUMPS = DOCUMENTS | {"lr": 1e-2, "momentum": 0.9}
SEEDS = range(3)
FROZEN = ("nothing", "observers", "norms", "norms at once")

RUNS: list[Run] = [
    *(RECIPE | {"seed": seed} for seed in range(5)),
    *(DOCUMENTS | {"seed": seed} for seed in SEEDS),
    *(RECIPE | {"what": "float", "frozen": "nothing", "seed": seed} for seed in SEEDS),
    *(RECIPE | {"what": "statistics", "lr": 0.0, "frozen": "nothing", "seed": seed} for seed in SEEDS),
    *(JUMPS | {"seed": seed} for seed in SEEDS),
    *(RECIPE | {"frozen": what, "seed": seed} for what in FROZEN for seed in SEEDS),
    *(RECIPE | point for point in GRID),
    *(RECIPE | {"dead": "silenced", "seed": seed} for seed in SEEDS),
]
# what RUNS lack: the recipe with another schedule or momentum, and the setting that jumps with one thing mended
CHANGES = [(RECIPE, {"schedule": "constant"}), (RECIPE, {"momentum": 0.0})]
CHANGES += [(JUMPS, {"schedule": "cosine"}), (JUMPS, {"frozen": "both"}), (JUMPS, {"lr": 3e-3})]
NEIGHBOURS: list[Run] = [around | change | {"seed": seed} for around, change in CHANGES for seed in SEEDS]
PARTS = {"qat_runs": RUNS, "qat_neighbours": NEIGHBOURS}


def silence_dead_channels(model: nn.Module) -> nn.Module:
    """Make the factor of each batch norm channel that never varies tiny; its output stays what it was."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
            module.weight.data[module.running_var < 1e-10] = 1e-6  # not 0: QAT divides by it
    return model


def prepared(silenced: bool = False) -> nn.Module:
    """The float digits model, fused for training, with fake quantization."""
    model = checkpoints.load_digits_float().train()
    if silenced:
        silence_dead_channels(model)
    model.fuse_model(is_qat=True)
    model.qconfig = tq.get_default_qat_qconfig("qnnpack")
    return tq.prepare_qat(model)


def to_int8(model: nn.Module) -> nn.Module:
    """An int8 copy of a trained model."""
    with engines.using_engine("qnnpack"):
        return tq.convert(copy.deepcopy(model).eval())


def per_tensor(model: nn.Module) -> nn.Module:
    """Static quantization of a float model, with 64 training digits."""
    model = copy.deepcopy(model).eval()
    model.fuse_model(is_qat=False)
    model.qconfig = tq.get_default_qconfig("qnnpack")
    tq.prepare(model, inplace=True)
    calibration.calibrate(model, digits.calibration_batches(64), progress=False)
    return to_int8(model)


def top1(model: nn.Module, split: digits.Split) -> float:
    """In percent."""
    with engines.using_engine("qnnpack"):
        return metrics.top1(model, digits.loader(split, batch_size=25)).percent


def freeze(what: str, steps: int) -> dict[int, Callable[[nn.Module], None]]:
    """What is done to the model at which step."""

    def apply(model: nn.Module) -> None:
        if what in ("both", "observers"):
            model.apply(tq.disable_observer)
        if what in ("both", "norms", "norms at once"):
            model.apply(freeze_bn_stats)

    return {} if what == "nothing" else {0 if what == "norms at once" else 2 * steps // 3: apply}


def measure(run: Run) -> Run:
    """Train as the run says, and measure the int8 model."""
    torch.manual_seed(run["seed"])
    model = checkpoints.load_digits_float().train() if run["what"] == "float" else prepared("dead" in run)
    if run["what"] == "statistics":  # training without training: only running statistics and ranges change
        for step in range(run["steps"]):
            with torch.no_grad():
                model(digits.training_batch(step, BATCH, run["seed"])[0])
        return report(to_int8(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=run["lr"], momentum=run["momentum"])
    cosine = run["schedule"] == "cosine"
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, run["steps"]) if cosine else None
    curve: list[tuple[int, float]] = []

    def on_step(step: int, losses: list[float]) -> None:
        if (step + 1) % 20 == 0 and run["what"] == "qat" and run["steps"] == 100:
            curve.append((step + 1, top1(to_int8(model), "validation")))

    losses = loop.fit(
        model,
        lambda step: digits.training_batch(step, BATCH, run["seed"]),
        optimizer,
        run["steps"],
        schedule=schedule,
        before_step=freeze(run["frozen"], run["steps"]),
        on_step=on_step,
        seed=run["seed"],
    )
    if run["what"] == "float":
        found = report(per_tensor(model))
        model.eval()
        found |= {"float_validation": top1(model, "validation"), "float_test": top1(model, "test")}
    else:
        found = report(to_int8(model))
    found |= {"loss": round(sum(losses[-10:]) / 10, 3), "curve": curve}
    if run["what"] == "qat" and run["frozen"] == "nothing":  # is it the weights, or the statistics?
        for step in range(50):
            with torch.no_grad():
                model.train()(digits.training_batch(1000 + step, BATCH, run["seed"])[0])
        found["validation_after_statistics"] = top1(to_int8(model), "validation")
    return found


def report(int8: nn.Module) -> Run:
    """Top-1 of an int8 model, in percent."""
    return {"validation": top1(int8, "validation"), "test": top1(int8, "test")}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("part", nargs="?", choices=PARTS, help="both if none is named")
    chosen = options.parse_args().part
    for part in [chosen] if chosen else PARTS:
        rows = runs.run_all(measure, PARTS[part], STATE)
        runs.write_results(part, "experiments/qat_runs.py", "int8 top-1 in %, batches of 16 digits", rows)


if __name__ == "__main__":
    main()
