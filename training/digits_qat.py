"""Quantization-aware training of the float digits model for qnnpack (per-tensor weights).

Writes qhelpers/weights/digits_int8_qnnpack.pt. About three minutes on two cores; too short to resume.

    python -m training.digits_qat
"""

import copy

import torch
from torch.ao.nn.intrinsic.qat import freeze_bn_stats
from torch.ao.quantization import convert, disable_observer, get_default_qat_qconfig, prepare_qat
from torch.nn import functional as F
from tqdm import tqdm

from qhelpers import engines, models
from training import common

SEED, STEPS, FREEZE_AT, BATCH = 0, 150, 100, 32
TARGET = models.WEIGHTS_FOLDER / "digits_int8_qnnpack.pt"


def main() -> None:
    torch.manual_seed(SEED)
    model = models.load_digits_float().train()
    model.fuse_model(is_qat=True)
    model.qconfig = get_default_qat_qconfig("qnnpack")
    prepare_qat(model, inplace=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    step = 0
    with engines.using_engine("qnnpack"), tqdm(total=STEPS, desc="step", mininterval=5) as bar:
        while step < STEPS:
            for inputs, labels in common.training_batches(BATCH, SEED + step):
                if step == FREEZE_AT:
                    model.apply(disable_observer)
                    model.apply(freeze_bn_stats)
                loss = F.cross_entropy(model(inputs), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                step += 1
                bar.update()
                if step == STEPS:
                    break
        model.eval()
        int8 = convert(copy.deepcopy(model))
        print(f"validation: fake-quantized {common.accuracy(model, 'validation'):.1f} %, ", end="")
        print(f"int8 {common.accuracy(int8, 'validation'):.1f} %")
        common.save_whole(int8.state_dict(), TARGET)
        print(f"test: int8 {common.accuracy(int8, 'test'):.1f} %, written to {TARGET.name}")


if __name__ == "__main__":
    main()
