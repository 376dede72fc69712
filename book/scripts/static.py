"""Static quantization in eager mode: stubs, fuse, prepare, calibrate, convert.

python static.py    needs torch
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


def block(a, b):
    return [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]


def mb_and_ms(net, x):
    torch.save(net.state_dict(), file := io.BytesIO())
    timer = Timer("net(x)", globals={"net": net, "x": x})
    return file.tell() / 1e6, 1000 * timer.blocked_autorange(min_run_time=0.5).median


layers = [*block(3, 32), nn.MaxPool2d(2), *block(32, 64), nn.MaxPool2d(2)]
layers += [nn.Flatten(), nn.Linear(1024, 256), nn.ReLU(), nn.Linear(256, 10)]
model = nn.Sequential(tq.QuantStub(), *layers, tq.DeQuantStub())  # 1. stubs
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
for _ in range(150):  # in place of this loop, load your trained weights
    optimizer.zero_grad()
    x, labels = images(32)
    nn.functional.cross_entropy(model(x), labels).backward()
    optimizer.step()
blocks = [["1", "2", "3"], ["5", "6", "7"], ["10", "11"]]
float_model = tq.fuse_modules(model.eval(), blocks)  # 2. in evaluation mode
float_model.qconfig = tq.get_default_qconfig(torch.backends.quantized.engine)
prepared = tq.prepare(float_model)  # 3. a copy with observers
torch.set_grad_enabled(False)
for _ in range(8):
    prepared(images(32)[0])  # 4. calibrate with inputs prepared as in production
int8_model = tq.convert(prepared)  # 5. int8
assert not [m for m in int8_model.modules() if type(m) in (nn.Conv2d, nn.Linear)]

x = images(1000)[0]
exact, rounded = float_model(x), int8_model(x)
sqnr = 20 * torch.log10(exact.norm() / (exact - rounded).norm())
agree = 100 * (exact.argmax(1) == rounded.argmax(1)).float().mean()
mb, ms = mb_and_ms(float_model, x[:32])
int8_mb, int8_ms = mb_and_ms(int8_model, x[:32])
print(f"size   {mb:.2f} MB -> {int8_mb:.2f} MB: {mb / int8_mb:.2f} times smaller")
print(f"speed  {ms:.2f} ms -> {int8_ms:.2f} ms: {ms / int8_ms:.2f} times float's")
print(f"SQNR   {sqnr:.1f} dB; the same answer for {agree:.1f} % of {len(x)} inputs")
