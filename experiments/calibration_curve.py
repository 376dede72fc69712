"""What more calibration data buy: top-1 and SQNR of the statically quantized digits model.

Writes qhelpers/book/results/calibration_curve.json. About a quarter of an hour on two cores. Batches of 32
training digits in an order that follows from the seed; past 3,500 images the digits come again.

    python -m experiments.calibration_curve
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.ao import quantization as tq

from experiments import runs
from qhelpers import engines, metrics
from qhelpers.tasks import checkpoints, digits

ENGINE, BATCH = "x86", 32
IMAGES = (1, 4, 16, 64, 256, 1024)
SEEDS = range(5)
MANY = 300 * BATCH  # "a few hundred batches", for the first seed only


def batches(seed: int, images: int) -> Iterator[Tensor]:
    """Training digits, prepared; the last batch is cut so that there are just so many images."""
    raw = torch.stack([image for image, _ in digits.dataset("train")])
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(len(raw), generator=generator) for _ in range(-(-images // len(raw)))])
    for chosen in order[:images].split(BATCH):
        yield digits.prepare_images(raw[chosen])


def prepared() -> nn.Module:
    """The float digits model, fused, with the observers of ENGINE's default qconfig."""
    model = checkpoints.load_digits_float()
    model.fuse_model(is_qat=False)
    model.qconfig = tq.get_default_qconfig(ENGINE)
    return tq.prepare(model)


def quality(model: nn.Module, reference: nn.Module) -> dict[str, float]:
    """Top-1 on the validation digits in %, and SQNR of the logits in dB against the float model."""
    validation = list(digits.loader("validation", batch_size=100))
    with torch.inference_mode():
        expected, found = (torch.cat([net(images) for images, _ in validation]) for net in (reference, model))
    return {"top1": metrics.top1(model, validation).percent, "sqnr_db": round(metrics.sqnr_db(expected, found), 2)}


def main() -> None:
    rows, reference = [], checkpoints.load_digits_float()
    with engines.using_engine(ENGINE), torch.inference_mode():
        for seed in SEEDS:
            model, seen = prepared(), 0
            wanted = [*IMAGES, MANY] if seed == 0 else [*IMAGES]
            # One pass serves all points: each snapshot has seen what the previous ones saw, and more.
            for images in batches(seed, wanted[-1]):
                while wanted and wanted[0] <= seen + len(images):
                    snapshot = copy.deepcopy(model)
                    if part := wanted[0] - seen:
                        snapshot(images[:part])
                    row = {"seed": seed, "images": wanted.pop(0)} | quality(tq.convert(snapshot), reference)
                    rows.append(row)
                    print(row, flush=True)
                model(images)
                seen += len(images)
    script, measured = "experiments/calibration_curve.py", "on the 500 validation digits"
    runs.write_results("calibration_curve", script, measured, rows, engine=ENGINE, batch=BATCH)


if __name__ == "__main__":
    main()
