"""A ready-made int8 MobileNetV2 of torchvision, against the float one.

python pretrained.py    needs torch and torchvision; downloads 3.4 and 13.6 MB
"""

import io
import socket

import torch
from torch.utils.benchmark import Timer
from torchvision import models
from torchvision.models import quantization as int8_models

FLOAT_WEIGHTS = models.MobileNet_V2_Weights.IMAGENET1K_V1
INT8_WEIGHTS = int8_models.MobileNet_V2_QuantizedWeights.DEFAULT


def build(trained):
    engine = torch.backends.quantized.engine
    int8_model = int8_models.mobilenet_v2(
        weights=INT8_WEIGHTS if trained else None, quantize=True
    )  # which sets the engine: "qnnpack", the one that these weights were trained for
    float_model = models.mobilenet_v2(weights=FLOAT_WEIGHTS if trained else None)
    torch.backends.quantized.engine = engine
    return float_model.eval(), int8_model.eval()


def mb_and_ms(net, x):
    torch.save(net.state_dict(), file := io.BytesIO())
    timer = Timer("net(x)", globals={"net": net, "x": x})
    return file.tell() / 1e6, 1000 * timer.blocked_autorange(min_run_time=1).median


torch.manual_seed(0)
torch.set_grad_enabled(False)
socket.setdefaulttimeout(20)  # seconds that a download may hang
try:
    float_model, int8_model = build(trained=True)
    trained = True
except OSError as error:  # no network
    print(f"Random weights, as the download failed ({error}): no answers to compare.")
    float_model, int8_model = build(trained=False)
    trained = False

x = torch.randn(8, 3, 224, 224)  # put your images here:
# x = torch.stack([INT8_WEIGHTS.transforms()(Image.open(path)) for path in paths])
mb, ms = mb_and_ms(float_model, x[:1])
int8_mb, int8_ms = mb_and_ms(int8_model, x[:1])
print(f"size   {mb:.2f} MB -> {int8_mb:.2f} MB: {mb / int8_mb:.2f} times smaller")
print(f"speed  {ms:.2f} ms -> {int8_ms:.2f} ms: {ms / int8_ms:.2f} times float's")
if trained:
    exact, rounded = float_model(x), int8_model(x)
    sqnr = 20 * torch.log10(exact.norm() / (exact - rounded).norm())
    agree = int((exact.argmax(1) == rounded.argmax(1)).sum())
    print(f"SQNR   {sqnr:.1f} dB; the same answer for {agree} of {len(x)} images")
    names = [INT8_WEIGHTS.meta["categories"][i] for i in rounded.argmax(1)]
    print("int8:  " + ", ".join(names))
