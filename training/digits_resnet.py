"""Train the small residual network on the digits, from scratch.

Writes qhelpers/weights/digits_resnet_float16.pt. About four minutes on one thread. An interrupted run resumes.

    python -m training.digits_resnet
"""

import argparse
from pathlib import Path

import torch

from qhelpers import data, models, nets, training
from training import common

STEPS, BATCH, PEAK = 1050, 50, 0.1  # 15 passes over the training digits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", type=Path, default=models.WEIGHTS_FOLDER / "digits_resnet_float16.pt")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    model = nets.DigitResNet().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=PEAK, momentum=0.9, nesterov=True, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=STEPS)
    training.fit(
        model,
        lambda step: data.training_batch(step, BATCH, seed=arguments.seed),
        optimizer,
        STEPS,
        schedule=schedule,
        seed=arguments.seed,
        state_file=Path(f"build/training/digits_resnet_seed{arguments.seed}.pt"),
    )
    common.save_in_half(model, arguments.target)
    for split in ("validation", "test"):
        print(f"{split} {common.accuracy(model, split):.1f} %")
    print(f"written to {arguments.target}")


if __name__ == "__main__":
    main()
