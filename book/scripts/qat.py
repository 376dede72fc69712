"""Quantization-aware training in eager mode: train with rounding, then convert.

python qat.py    needs torch
"""

import io

import torch
from torch import nn
from torch.ao import quantization as tq
from torch.utils.benchmark import Timer

torch.manual_seed(0)
patterns = torch.randn(10, 3, 16, 16)


def images(n):  # put your data here: ten patterns under noise
    labels = torch.randint(10, (n,))
    x = patterns[labels] + 3 * torch.randn(n, 3, 16, 16)
    return x.contiguous(memory_format=torch.channels_last), labels


def train(net, steps, rate):  # put your training loop here
    optimizer = torch.optim.Adam(net.parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        x, labels = images(32)
        nn.functional.cross_entropy(net(x), labels).backward()
        optimizer.step()


def measured(net, x, labels):
    torch.save(net.state_dict(), file := io.BytesIO())
    timer = Timer("net(x)", globals={"net": net, "x": x[:32]})
    right = 100 * (net(x).argmax(1) == labels).float().mean()
    return file.tell() / 1e6, 1000 * timer.blocked_autorange().median, right


def block(a, b):
    return [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]


layers = [*block(3, 32), nn.MaxPool2d(2), *block(32, 64), nn.MaxPool2d(2)]
layers += [nn.Flatten(), nn.Linear(1024, 256), nn.ReLU(), nn.Linear(256, 10)]
model = nn.Sequential(tq.QuantStub(), *layers, tq.DeQuantStub())
train(model, 200, 1e-3)  # in place of this line, load your trained weights
blocks = [["1", "2", "3"], ["5", "6", "7"], ["10", "11"]]
prepared = tq.fuse_modules_qat(model, blocks)  # in training mode: batch norms stay
prepared.qconfig = tq.get_default_qat_qconfig(torch.backends.quantized.engine)
tq.prepare_qat(prepared, inplace=True)
train(prepared, 20, 1e-4)  # a tenth of the rate
prepared.apply(tq.disable_observer).apply(nn.intrinsic.qat.freeze_bn_stats)
train(prepared, 10, 1e-4)  # ranges and batch statistics are fixed
torch.set_grad_enabled(False)
x, labels = images(1000)
mb, ms, right = measured(tq.fuse_modules(model.eval(), blocks), x, labels)
int8_mb, int8_ms, int8_right = measured(tq.convert(prepared.eval()), x, labels)
print(f"size   {mb:.2f} MB -> {int8_mb:.2f} MB: {mb / int8_mb:.2f} times smaller")
print(f"speed  {ms:.2f} ms -> {int8_ms:.2f} ms: {ms / int8_ms:.2f} times float's")
print(f"right  {right:.1f} % -> {int8_right:.1f} % of {len(x)} images")
