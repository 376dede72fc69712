"""Train the small vision transformer on the digits, from scratch.

Writes qhelpers/weights/digits_transformer_float16.pt. About ten minutes on two cores. An interrupted run
resumes at the last finished epoch.

    python -m training.digits_transformer
"""

import argparse
from pathlib import Path

import torch

from qhelpers import models, nets
from training import common

EPOCHS, BATCH, PEAK = 30, 50, 1.5e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", type=Path, default=models.WEIGHTS_FOLDER / "digits_transformer_float16.pt")
    parser.add_argument("--fresh", action="store_true", help="do not resume an interrupted run")
    arguments = parser.parse_args()
    state_file = Path(f"build/training/digits_transformer_seed{arguments.seed}.pt")
    torch.manual_seed(arguments.seed)
    model = nets.DigitTransformer()
    steps = len(common.training_batches(BATCH, 0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, epochs=EPOCHS, steps_per_epoch=steps)
    common.train_on_digits(
        model,
        optimizer,
        schedule,
        epochs=EPOCHS,
        batch_size=BATCH,
        seed=arguments.seed,
        state_file=state_file,
        fresh=arguments.fresh,
        clip=1.0,
    )
    common.save_in_half(model, arguments.target)
    print(f"test {common.accuracy(model, 'test'):.1f} %, written to {arguments.target}")


if __name__ == "__main__":
    main()
