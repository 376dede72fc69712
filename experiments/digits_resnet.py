"""Train the small residual network on the digits, from scratch.

Writes qhelpers/tasks/weights/digits_resnet_float16.pt. About four minutes on one thread. An interrupted run resumes.

    python -m experiments.digits_resnet
"""

import torch

from experiments import common, loop
from qhelpers.tasks import digits, networks

STEPS, BATCH, PEAK = 1050, 50, 0.1  # 15 passes over the training digits


def main() -> None:
    arguments = common.parser(__doc__, "digits_resnet_float16.pt").parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    model = networks.DigitResNet().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=PEAK, momentum=0.9, nesterov=True, weight_decay=1e-4)
    loop.fit(
        model,
        lambda step: digits.training_batch(step, BATCH, arguments.seed),
        optimizer,
        STEPS,
        schedule=torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=STEPS),
        seed=arguments.seed,
        state_file=common.state_file("digits_resnet", arguments),
    )
    common.save_in_half(model, arguments.target)
    for split in ("validation", "test"):
        print(f"{split} {common.accuracy(model, split):.1f} %")
    print(f"written to {arguments.target}")


if __name__ == "__main__":
    main()
