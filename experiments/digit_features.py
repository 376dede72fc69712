"""What the published int8 MobileNetV2 (ImageNet) computes for every digit, before its classifier.

Writes qhelpers/tasks/weights/digit_features.npz. Needs the published weights in torch's hub cache, or a network.

    python -m experiments.digit_features
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments import common
from qhelpers import atomic, engines
from qhelpers.tasks import checkpoints, digits

TARGET = checkpoints.WEIGHTS_FOLDER / "digit_features.npz"


def features(model: nn.Module, images: Tensor) -> Tensor:
    """Pooled features of an int8 or float network, ``(n, 1280)``."""
    inside = model.features(model.quant(images))
    return F.adaptive_avg_pool2d(inside, (1, 1)).flatten(1)


def main() -> None:
    model = common.pretrained()
    arrays = {}
    with engines.using_engine("qnnpack"), torch.inference_mode():
        for split in digits.PER_CLASS:
            parts = [features(model, images) for images, _ in digits.loader(split, batch_size=25)]
            arrays[split] = torch.cat([part.int_repr() for part in parts]).numpy()
        assert parts[0].q_zero_point() == 0
        arrays["scale"] = np.float64(parts[0].q_scale())
    with atomic.replacing(TARGET) as part:
        np.savez_compressed(part, **arrays)
    print(f"{TARGET.stat().st_size / 1e6:.2f} MB, {TARGET.name} {checkpoints.sha256(TARGET)}")


if __name__ == "__main__":
    main()
