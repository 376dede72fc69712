"""Why is the int8 model wrong? Round one layer at a time, then repair the worst.

python diagnose.py    needs torch; rounding is simulated, so any model will do
"""

import contextlib

import torch
from torch import nn

KINDS = (nn.Conv2d, nn.Linear)
torch.manual_seed(0)
torch.set_grad_enabled(False)


def rounded(weight, per_channel):
    """A weight as int8 holds it, with one scale or one for each output channel."""
    rows = weight.flatten(1)
    peaks = rows.abs().amax(1, keepdim=True)
    scale = (peaks if per_channel else peaks.max()).clamp(min=1e-12) / 127
    return ((rows / scale).round() * scale).view_as(weight)


@contextlib.contextmanager
def quantized(layers, per_channel=()):
    """Inside this block, the layers have rounded weights."""
    originals = {name: layer.weight.data for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.weight.data = rounded(originals[name], name in per_channel)
    yield
    for name, layer in layers.items():
        layer.weight.data = originals[name]


def sqnr_db(exact, other):
    return float(20 * torch.log10(exact.norm() / (exact - other).norm()))


# Put your trained model here, with batch norms folded. In this one a channel is wide.
layers = [nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(2048, 256)]
model = nn.Sequential(*layers, nn.ReLU(), nn.Linear(256, 10)).eval()
model[2].weight[7] *= 100
x = torch.randn(64, 3, 16, 16)  # put your inputs here; no labels are needed

layers = {name: m for name, m in model.named_modules() if isinstance(m, KINDS)}
exact, alone = model(x), {}
for name, layer in layers.items():
    with quantized({name: layer}):
        alone[name] = sqnr_db(exact, model(x))
    peaks = layer.weight.flatten(1).abs().amax(1)
    wide = f"{float(peaks.max() / peaks.median()):.0f} x the median"
    print(f"only {name}: {alone[name]:.1f} dB; its widest channel is {wide}")
mb = sum(layer.weight.numel() for layer in layers.values()) * 4e-6
worst = min(alone, key=alone.get)
for repaired in ([], [worst]):
    with quantized(layers, repaired):
        sqnr = sqnr_db(exact, model(x))
    scales = sum(len(layers[n].weight) if n in repaired else 1 for n in layers)
    int8_mb = mb / 4 + scales * 4e-6
    print(f"repaired {repaired}: {sqnr:.1f} dB; {mb:.3f} MB -> {int8_mb:.3f} MB")
