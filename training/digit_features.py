"""What the published int8 MobileNetV2 (ImageNet) computes for every digit, before its classifier.

Writes qhelpers/weights/digit_features.npz. Needs the published weights in torch's hub cache, or a network.

    python -m training.digit_features
"""

import io
import os

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qhelpers import data, engines, models, published

TARGET = models.WEIGHTS_FOLDER / "digit_features.npz"


def features(model: nn.Module, images: Tensor) -> Tensor:
    """Pooled features of an int8 or float network, ``(n, 1280)``."""
    inside = model.features(model.quant(images))
    return F.adaptive_avg_pool2d(inside, (1, 1)).flatten(1)


def main() -> None:
    found = published.pretrained_mobilenet_v2()
    if not found.is_imagenet:
        raise SystemExit("The published weights are needed. " + " ".join(found.notes))
    arrays = {}
    with engines.using_engine("qnnpack"), torch.inference_mode():
        for split in data.PER_CLASS:
            parts = [features(found.model, images) for images, _ in data.digit_loader(split, batch_size=25)]
            arrays[split] = torch.cat([part.int_repr() for part in parts]).numpy()
        assert parts[0].q_zero_point() == 0
        arrays["scale"] = np.float64(parts[0].q_scale())
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    part = TARGET.with_suffix(".part")
    part.write_bytes(buffer.getvalue())
    os.replace(part, TARGET)
    print(f"{len(buffer.getvalue()) / 1e6:.2f} MB, {TARGET.name} {models.sha256(TARGET)}")


if __name__ == "__main__":
    main()
