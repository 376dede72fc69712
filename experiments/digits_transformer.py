"""Train the small vision transformer on the digits, from scratch.

Writes qhelpers/tasks/weights/digits_transformer_float16.pt. About ten minutes on two cores. An interrupted run
resumes at the last finished epoch.

    python -m experiments.digits_transformer
"""

import torch

from experiments import common
from qhelpers.tasks import networks

EPOCHS, BATCH, PEAK = 30, 50, 1.5e-3


def main() -> None:
    arguments = common.parser(__doc__, "digits_transformer_float16.pt").parse_args()
    torch.manual_seed(arguments.seed)
    model = networks.DigitTransformer()
    common.train_on_digits(
        model,
        torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.05),
        epochs=EPOCHS,
        batch_size=BATCH,
        seed=arguments.seed,
        state_file=common.state_file("digits_transformer", arguments),
        clip_norm=1.0,
    )
    common.save_in_half(model, arguments.target)
    print(f"test {common.accuracy(model, 'test'):.1f} %, written to {arguments.target}")


if __name__ == "__main__":
    main()
