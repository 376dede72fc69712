"""The recipe's road to a phone, run whole: TorchScript, optimize_for_mobile, a file for the lite interpreter.

Writes qhelpers/book/results/lite_interpreter.json. Since torch 2.13 the wheels come without XNNPACK, and
optimize_for_mobile stops with an assertion, so this runs in an environment of its own, with torch 2.12.1 and
torchvision 0.27.1. It takes a minute after the installation:

    make lite-lane
"""

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.jit.mobile import _export_operator_list, _load_for_lite_interpreter
from torch.utils.mobile_optimizer import optimize_for_mobile

from experiments import runs
from qhelpers import benchmark, engines, metrics
from qhelpers.tasks import checkpoints, digits

ENGINE = "qnnpack"


def road(model: nn.Module, kind: str, optimized: bool, folder: Path) -> dict[str, Any]:
    """Take a model to a file, load it in the lite interpreter, and compare it with where it came from."""
    images, _ = next(iter(digits.loader("test", batch_size=1)))
    scripted = torch.jit.trace(model, images) if kind == "trace" else torch.jit.script(model)
    module = optimize_for_mobile(scripted) if optimized else torch.jit.freeze(scripted)
    path = folder / "model.ptl"
    module._save_for_lite_interpreter(str(path))
    loaded = _load_for_lite_interpreter(str(path))
    test = list(digits.loader("test", batch_size=50))
    differing, furthest = 0, 0.0
    for batch, _ in test:
        expected, found = model(batch), loaded(batch)
        differing += int((expected != found).any(dim=1).sum())
        furthest = max(furthest, float((expected - found).abs().max()))
    speed = benchmark.compare_latency(
        {"eager": lambda: model(images), "lite": lambda: loaded(images)}, rounds=60, progress=False
    )["lite"]
    return {
        "by": kind,
        "optimized": optimized,
        "mb": round(path.stat().st_size / 1e6, 3),
        "operators": sorted(_export_operator_list(loaded)),
        "images_that_differ": differing,
        "furthest": furthest,
        "top1": metrics.top1(loaded, test).percent,
        "times_eager": [round(value, 2) for value in (speed.ratio, *speed.ratio_quartiles)],
    }


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    candidates = {"float": checkpoints.load_digits_float(), "int8": checkpoints.load_digits_int8(ENGINE)}
    rows = []
    with engines.using_engine(ENGINE), torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        for name, model in candidates.items():
            for kind in ("script", "trace"):
                for optimized in (False, True):
                    rows.append({"model": name, **road(model, kind, optimized, Path(folder))})
                    print({key: value for key, value in rows[-1].items() if key != "operators"}, flush=True)
    runs.write_results(
        "lite_interpreter", "experiments/lite_interpreter.py", "the 1,000 test digits; one thread; engine qnnpack", rows
    )


if __name__ == "__main__":
    main()
