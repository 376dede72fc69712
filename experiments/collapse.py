"""How badly float digits models of several seeds collapse under per-tensor post-training quantization.

Writes qhelpers/book/results/collapse_by_seed.json. Train the checkpoints first, three minutes each:

    for s in 0 1 2 3 4; do python -m experiments.digits_float --seed $s --target build/seed$s.pt; done
    python -m experiments.collapse build/seed?.pt
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from torch import nn
from torch.ao import quantization as tq

from experiments import runs
from qhelpers import calibration, engines, metrics
from qhelpers.tasks import checkpoints, digits


def post_training(model: nn.Module, weight_observer: Callable[[], nn.Module]) -> nn.Module:
    """Static quantization for qnnpack with the given weight observer, calibrated on 256 training digits."""
    model.fuse_model(is_qat=False)
    model.qconfig = tq.QConfig(activation=tq.get_default_qconfig("qnnpack").activation, weight=weight_observer)
    tq.prepare(model, inplace=True)
    calibration.calibrate(model, digits.calibration_batches(256), progress=False)
    return tq.convert(model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path, help="named …<seed>.pt")
    rows = []
    for path in parser.parse_args().checkpoints:
        row: dict[str, float] = {"seed": int(re.findall(r"\d+", path.stem)[-1])}
        for name, observer in {
            "float": None,
            "per_tensor": tq.default_weight_observer,
            "per_channel": tq.default_per_channel_weight_observer,
        }.items():
            model = checkpoints.skeleton(10, quantize=False)
            checkpoints.load_into(model, checkpoints.load_state(path), path.name)
            with engines.using_engine("qnnpack"):
                model = model if observer is None else post_training(model, observer)
                row[name] = metrics.top1(model, digits.loader("validation", batch_size=100)).percent
        rows.append(row)
        print(row, flush=True)
    runs.write_results("collapse_by_seed", "experiments/collapse.py", "top-1 on the 500 validation digits in %", rows)


if __name__ == "__main__":
    main()
