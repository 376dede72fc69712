"""Quantization-aware training of the float digits model for qnnpack (per-tensor weights).

Writes qhelpers/tasks/weights/digits_int8_qnnpack.pt. About three minutes on two cores; too short to resume.

    python -m experiments.digits_qat
"""

import torch

from experiments import common, loop, qat_runs
from qhelpers import engines
from qhelpers.tasks import checkpoints, digits

SEED, STEPS, BATCH = 0, 150, 32
TARGET = checkpoints.WEIGHTS_FOLDER / "digits_int8_qnnpack.pt"


def main() -> None:
    torch.manual_seed(SEED)
    model = qat_runs.prepared()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    loop.fit(
        model,
        lambda step: digits.training_batch(step, BATCH, SEED),
        optimizer,
        STEPS,
        schedule=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS),
        before_step=qat_runs.freeze("both", STEPS),  # for the last third
        seed=SEED,
    )
    int8 = qat_runs.to_int8(model)
    common.save(int8.state_dict(), TARGET)
    with engines.using_engine("qnnpack"):
        print(f"validation: fake-quantized {common.accuracy(model, 'validation'):.1f} %, ", end="")
        print(f"int8 {common.accuracy(int8, 'validation'):.1f} %")
        print(f"test: int8 {common.accuracy(int8, 'test'):.1f} %, written to {TARGET}")


if __name__ == "__main__":
    main()
