"""Train the language model of characters on Python's own manual pages.

Writes qhelpers/weights/text_lstm_float16.pt. About half an hour on two cores. An interrupted run resumes
at the last finished epoch.

    python -m training.text_lstm
"""

import argparse
import copy
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import trange

from qhelpers import metrics, models, nets, text
from training import common

EPOCHS, STREAMS, LENGTH, PEAK = 24, 32, 128, 4e-3
DROPOUT = 0.3


def streams(codes: Tensor, offset: int) -> Tensor:
    """The text from an offset on as parallel streams: ``(STREAMS, characters)``."""
    codes = codes[offset:]
    each = len(codes) // STREAMS
    return codes[: each * STREAMS].view(STREAMS, each)


def forward(model: nets.CharLSTM, codes: Tensor, state: nets.State | None) -> tuple[Tensor, nets.State]:
    """The model's own forward with dropout before and behind the LSTM."""
    inputs = F.dropout(model.embedding(codes), DROPOUT / 2)
    outputs, state = model.lstm(inputs, state)
    return model.head(F.dropout(outputs, DROPOUT)), state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--target", type=Path, default=models.WEIGHTS_FOLDER / "text_lstm_float16.pt")
    parser.add_argument("--fresh", action="store_true", help="do not resume an interrupted run")
    arguments = parser.parse_args()
    state_file = Path(f"build/training/text_lstm_seed{arguments.seed}.pt")
    torch.manual_seed(arguments.seed)
    model = nets.CharLSTM()
    train, validation = (text.encode(text.text_corpus(split)) for split in ("train", "validation"))
    steps = (len(train) // STREAMS - 1) // LENGTH
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, epochs=arguments.epochs, steps_per_epoch=steps)
    best, best_state, first = float("inf"), copy.deepcopy(model.state_dict()), 0
    if state_file.is_file() and not arguments.fresh:
        saved = torch.load(state_file, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        best, best_state, first = saved["best"], saved["best_state"], saved["epoch"] + 1
    for epoch in range(first, arguments.epochs):
        torch.manual_seed(arguments.seed + epoch)
        model.train()
        batch = streams(train, int(torch.randint(LENGTH, ())))
        state, total = None, 0.0
        bar = trange(min(steps, (batch.shape[1] - 1) // LENGTH), desc=f"epoch {epoch + 1}", mininterval=10)
        for i in bar:
            window = batch[:, i * LENGTH : (i + 1) * LENGTH + 1]
            logits, state = forward(model, window[:, :-1], state)
            state = (state[0].detach(), state[1].detach())
            loss = F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        bits = metrics.bits_per_character(model.eval(), validation)
        print(f"epoch {epoch + 1}: train {total / len(bar) / 0.6931:.3f}, validation {bits:.3f} bits", flush=True)
        if bits < best:
            best, best_state = bits, copy.deepcopy(model.state_dict())
        saved = {"epoch": epoch, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "best": best}
        saved |= {"schedule": schedule.state_dict(), "best_state": best_state}
        common.save_whole(saved, state_file)
    model.load_state_dict(best_state)
    common.save_in_half(model, arguments.target)
    test = metrics.bits_per_character(model.eval(), text.encode(text.text_corpus("test")))
    print(f"validation {best:.3f}, test {test:.3f} bits a character, text {text.text_sha256()}")


if __name__ == "__main__":
    main()
