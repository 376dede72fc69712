"""Train the small vision transformer on the digits, from scratch.

Writes qhelpers/weights/digits_transformer_float16.pt. About ten minutes on two cores. An interrupted run
resumes at the last finished epoch.

    python -m training.digits_transformer
"""

import argparse
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

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
    first = 0
    if state_file.is_file() and not arguments.fresh:
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first = state["epoch"] + 1
    for epoch in range(first, EPOCHS):
        torch.manual_seed(arguments.seed + epoch)
        model.train()
        batches = common.training_batches(BATCH, arguments.seed + epoch)
        for inputs, labels in tqdm(batches, desc=f"epoch {epoch + 1} of {EPOCHS}", mininterval=10):
            loss = F.cross_entropy(model(inputs), labels, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: validation {common.accuracy(model, 'validation'):.1f} %", flush=True)
        saved = {"epoch": epoch, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        common.save_whole(saved | {"schedule": schedule.state_dict()}, state_file)
    rounded = {key: value.half() for key, value in model.state_dict().items()}
    model.load_state_dict({key: value.float() for key, value in rounded.items()})
    common.save_whole(rounded, arguments.target)
    print(f"test {common.accuracy(model, 'test'):.1f} %, written to {arguments.target}")


if __name__ == "__main__":
    main()
