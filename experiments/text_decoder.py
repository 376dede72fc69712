"""Train the small decoder-only transformer on Python's own manual pages, the text of the LSTM.

Writes qhelpers/tasks/weights/text_decoder_float16.pt. Under an hour on one core with bfloat16 instructions. An
interrupted run resumes at the last finished epoch.

    python -m experiments.text_decoder
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from experiments import common, loop, text_lstm
from qhelpers.tasks import decoder, manual_text

EPOCHS, WINDOWS, LENGTH, PEAK = 12, 8, 256, 1.2e-3
WARM_UP, DECAY = 200, 5  # steps at the beginning, epochs at the end
DROPOUT = 0.1


class Logits(nn.Module):
    """The model as it is trained: products in bfloat16, no state, one row of logits for each character."""

    def __init__(self, model: decoder.Decoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, codes: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits: Tensor = self.model(codes)[0]
        return logits.float().flatten(0, 1)


def steps_per_epoch(codes: Tensor) -> int:
    """How many steps read as many characters as the text has."""
    return len(codes) // (WINDOWS * LENGTH)


def batch_of(codes: Tensor, step: int, seed: int) -> loop.Batch:
    """Windows from anywhere in the text, and the characters that follow."""
    draw = torch.Generator().manual_seed(1_000_003 * seed + step)
    starts = torch.randint(len(codes) - LENGTH, (WINDOWS,), generator=draw)
    windows = codes[starts[:, None] + torch.arange(LENGTH + 1)]
    return windows[:, :-1], windows[:, 1:].flatten()


def rate(step: int, each: int, epochs: int) -> float:
    """The learning rate before a step, as a share of its peak: up, constant, and down to 0 in the last epochs."""
    return min((step + 1) / WARM_UP, 1.0, (epochs * each - step) / (DECAY * each))


def parameter_groups(model: nn.Module) -> list[dict[str, object]]:
    """Weight decay is for matrices: biases and norms stay free."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]


def train(
    model: decoder.Decoder, codes: Tensor, validation: Tensor, *, epochs: int, seed: int, state_file: Path
) -> float:
    """Train a model; it ends with the weights of the epoch that was best on the validation text.

    Returns:
        The bits a character on that text.
    """
    net, each = Logits(model), steps_per_epoch(codes)
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=PEAK, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, each, epochs))
    return text_lstm.fit(
        net,
        lambda step: batch_of(codes, step, seed),
        optimizer,
        schedule,
        validation,
        each=each,
        epochs=epochs,
        seed=seed,
        state_file=state_file,
    )


def main() -> None:
    parser = common.parser(__doc__, decoder.WEIGHTS)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    model = decoder.Decoder(dropout=DROPOUT)
    codes, validation, test = (
        manual_text.encode(manual_text.text_corpus(split)) for split in ("train", "validation", "test")
    )
    file = common.state_file("text_decoder", arguments)
    best = train(model, codes, validation, epochs=arguments.epochs, seed=arguments.seed, state_file=file)
    common.save_in_half(model, arguments.target)
    bits = manual_text.bits_per_character(model.eval(), test)
    print(f"validation {best:.3f}, test {bits:.3f} bits a character, text {manual_text.text_sha256()}")


if __name__ == "__main__":
    main()
