"""How badly float digits models of several seeds collapse under per-tensor post-training quantization.

Writes training/results/collapse_by_seed.json. Train the checkpoints first, three minutes each:

    for s in 0 1 2 3 4; do python -m training.digits_float --seed $s --target build/seed$s.pt; done
    python -m training.collapse build/seed?.pt
"""

import argparse
import datetime
import json
import re
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.ao import quantization as tq

from qhelpers import calibration, data, engines, metrics, models, reports

TARGET = Path(__file__).parent / "results" / "collapse_by_seed.json"


def post_training(model: nn.Module, weight_observer: Callable[[], nn.Module]) -> nn.Module:
    """Static quantization for qnnpack with the given weight observer, calibrated on 256 training digits."""
    model.fuse_model(is_qat=False)
    model.qconfig = tq.QConfig(activation=tq.get_default_qconfig("qnnpack").activation, weight=weight_observer)
    tq.prepare(model, inplace=True)
    calibration.calibrate(model, data.calibration_batches(256), progress=False)
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
            model = models.load_into(models.skeleton(10, quantize=False), models.load_state(path), path.name)
            with engines.using_engine("qnnpack"):
                model = model if observer is None else post_training(model, observer)
                row[name] = metrics.top1(model, data.digit_loader("validation", batch_size=100)).percent
        rows.append(row)
        print(row, flush=True)
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    found = {"script": "training/collapse.py", "date": datetime.date.today().isoformat(), "versions": versions}
    found |= {"measured": "top-1 on the 500 validation digits in %", "rows": rows}
    reports.write_whole(TARGET, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
