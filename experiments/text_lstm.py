"""Train the language model of characters on Python's own manual pages.

Writes qhelpers/tasks/weights/text_lstm_float16.pt. About half an hour on two cores. An interrupted run resumes
at the last finished epoch.

    python -m experiments.text_lstm
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments import common, loop
from qhelpers.tasks import manual_text, networks

EPOCHS, STREAMS, LENGTH, PEAK = 24, 32, 128, 4e-3
DROPOUT = 0.3


class Carrying(nn.Module):
    """The model as it is trained: its state is carried from call to call, with dropout before and behind the LSTM."""

    def __init__(self, model: networks.CharLSTM) -> None:
        super().__init__()
        self.model = model
        self.state: networks.State | None = None

    def forward(self, codes: Tensor) -> Tensor:
        inputs = F.dropout(self.model.embedding(codes), DROPOUT / 2, self.training)
        outputs, (hidden, cell) = self.model.lstm(inputs, self.state)
        self.state = hidden.detach(), cell.detach()
        logits: Tensor = self.model.head(F.dropout(outputs, DROPOUT, self.training))
        return logits.flatten(0, 1)


def streams(codes: Tensor, offset: int) -> Tensor:
    """The text from an offset on as parallel streams: ``(STREAMS, characters)``."""
    codes = codes[offset:]
    each = len(codes) // STREAMS
    return codes[: each * STREAMS].view(STREAMS, each)


def steps_per_epoch(codes: Tensor) -> int:
    """How many windows every stream has, whatever the epoch's offset."""
    return ((len(codes) - LENGTH) // STREAMS - 1) // LENGTH


def batch_of(codes: Tensor, step: int, seed: int) -> loop.Batch:
    """The next window of each stream, and the characters that follow; every epoch has an offset of its own."""
    epoch, i = divmod(step, steps_per_epoch(codes))
    offset = torch.randint(LENGTH, (), generator=torch.Generator().manual_seed(1009 * seed + epoch))
    window = streams(codes, int(offset))[:, i * LENGTH : (i + 1) * LENGTH + 1]
    return window[:, :-1], window[:, 1:].flatten()


def keep_best(model: nn.Module, validation: Tensor, file: Path) -> float:
    """Write the model and its bits a character on the validation text, unless the file has a better one."""
    bits = manual_text.bits_per_character(model.eval(), validation)
    if not file.is_file() or bits < torch.load(file, weights_only=True)["bits"]:
        common.save({"bits": bits, "model": model.state_dict()}, file)
    return bits


def fit(
    net: nn.Module,
    batch: Callable[[int], loop.Batch],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    validation: Tensor,
    *,
    each: int,
    epochs: int,
    seed: int,
    state_file: Path,
) -> float:
    """Train ``net.model``; it ends with the weights of the epoch that was best on the validation text.

    Args:
        net: gives the logits that are trained.
        batch: from the step's number to its batch.
        each: steps an epoch.

    Returns:
        The bits a character on that text.
    """
    model = net.get_submodule("model")
    best_file = state_file.with_stem(f"{state_file.stem}_best")
    if not state_file.is_file():
        best_file.unlink(missing_ok=True)  # that of an earlier run

    def end_epoch(epoch: int) -> None:
        print(f"epoch {epoch}: validation {keep_best(model, validation, best_file):.3f} bits", flush=True)

    def next_batch(step: int) -> loop.Batch:
        if step % each == 0:
            if step > 0:  # not in on_step: a run that was interrupted there would resume without it
                end_epoch(step // each)
            net.train()
        return batch(step)

    loop.fit(
        net,
        next_batch,
        optimizer,
        epochs * each,
        schedule=schedule,
        state_file=state_file,
        save_every=each,
        seed=seed,
        clip_norm=1.0,
    )
    end_epoch(epochs)
    best = torch.load(best_file, weights_only=True)
    model.load_state_dict(best["model"])
    return float(best["bits"])


def train(
    model: networks.CharLSTM, codes: Tensor, validation: Tensor, *, epochs: int, seed: int, state_file: Path
) -> float:
    """Train a model; it ends with the weights of the epoch that was best on the validation text.

    Returns:
        The bits a character on that text.
    """
    net, each = Carrying(model), steps_per_epoch(codes)

    def batch(step: int) -> loop.Batch:
        if step % each == 0:  # the state is not saved, so every epoch begins without one
            net.state = None
        return batch_of(codes, step, seed)

    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=epochs * each)
    return fit(net, batch, optimizer, schedule, validation, each=each, epochs=epochs, seed=seed, state_file=state_file)


def main() -> None:
    parser = common.parser(__doc__, "text_lstm_float16.pt")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    model = networks.CharLSTM()
    codes, validation, test = (
        manual_text.encode(manual_text.text_corpus(split)) for split in ("train", "validation", "test")
    )
    file = common.state_file("text_lstm", arguments)
    best = train(model, codes, validation, epochs=arguments.epochs, seed=arguments.seed, state_file=file)
    common.save_in_half(model, arguments.target)
    bits = manual_text.bits_per_character(model.eval(), test)
    print(f"validation {best:.3f}, test {bits:.3f} bits a character, text {manual_text.text_sha256()}")


if __name__ == "__main__":
    main()
