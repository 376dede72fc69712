"""Fine-tune the published int8 MobileNetV2, made float again, on the digits.

Writes qhelpers/weights/digits_float.pt. Needs the published weights in torch's hub cache, or a network.
About six minutes on two cores. An interrupted run resumes at the last finished epoch.

    python -m training.digits_float
"""

import argparse
from pathlib import Path

import torch
from torch import nn

from qhelpers import data, models, published
from training import common

EPOCHS, BATCH = 5, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--target", type=Path, default=models.WEIGHTS_FOLDER / "digits_float.pt")
    parser.add_argument("--fresh", action="store_true", help="do not resume an interrupted run")
    arguments = parser.parse_args()
    state_file = Path(f"build/training/digits_float_seed{arguments.seed}.pt")
    torch.manual_seed(arguments.seed)
    found = published.pretrained_mobilenet_v2()
    if not found.is_imagenet:
        raise SystemExit("The published weights are needed. " + " ".join(found.notes))
    model = published.float_from_int8(found.model)
    images, _ = next(iter(data.digit_loader("train", batch_size=250, limit=250)))
    published.give_norms_statistics(model, images)
    model.classifier[1] = nn.Linear(1280, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9, nesterov=True, weight_decay=1e-4)
    steps = len(common.training_batches(BATCH, 0))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.03, epochs=EPOCHS, steps_per_epoch=steps)
    common.train_on_digits(
        model,
        optimizer,
        schedule,
        epochs=EPOCHS,
        batch_size=BATCH,
        seed=arguments.seed,
        state_file=state_file,
        fresh=arguments.fresh,
    )
    common.save_whole(model.eval().state_dict(), arguments.target)
    print(f"test {common.accuracy(model, 'test'):.1f} %, written to {arguments.target}")


if __name__ == "__main__":
    main()
