"""Fine-tune the published int8 MobileNetV2, made float again, on the digits.

Writes qhelpers/tasks/weights/digits_float.pt. Needs the published weights in torch's hub cache, or a network.
About six minutes on two cores. An interrupted run resumes at the last finished epoch.

    python -m experiments.digits_float
"""

import torch
from torch import nn

from experiments import common
from qhelpers.tasks import digits, published

EPOCHS, BATCH, PEAK = 5, 32, 0.03


def main() -> None:
    arguments = common.parser(__doc__, "digits_float.pt", seed=3).parse_args()
    torch.manual_seed(arguments.seed)
    model = published.float_from_int8(common.pretrained())
    images, _ = next(iter(digits.loader("train", batch_size=250, limit=250)))
    published.give_norms_statistics(model, images)
    model.classifier[1] = nn.Linear(1280, 10)
    common.train_on_digits(
        model,
        torch.optim.SGD(model.parameters(), lr=PEAK, momentum=0.9, nesterov=True, weight_decay=1e-4),
        epochs=EPOCHS,
        batch_size=BATCH,
        seed=arguments.seed,
        state_file=common.state_file("digits_float", arguments),
    )
    common.save(model.state_dict(), arguments.target)
    print(f"test {common.accuracy(model, 'test'):.1f} %, written to {arguments.target}")


if __name__ == "__main__":
    main()
