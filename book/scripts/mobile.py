"""A PyTorch model as an int8 .pte file for phones: PT2E, XNNPACK, ExecuTorch.

python mobile.py    needs torch, torchao and executorch
"""

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import (
    XnnpackPartitioner,
)
from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from torch import nn
from torch.utils.benchmark import Timer
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

torch.manual_seed(0)
torch.set_grad_enabled(False)
model = nn.Sequential(  # put your trained model here
    *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Flatten(), nn.Linear(2048, 256), nn.ReLU(), nn.Linear(256, 10)),
).eval()
example = (torch.randn(1, 3, 16, 16),)  # the file takes this shape and no other


def write_pte(captured, path):
    program = to_edge_transform_and_lower(
        captured, partitioner=[XnnpackPartitioner()]
    ).to_executorch()
    with open(path, "wb") as file:
        file.write(program.buffer)
    return len(program.buffer) / 1e6


captured = torch.export.export(model, example)
config = xnnpack.get_symmetric_quantization_config(is_per_channel=True)
prepared = prepare_pt2e(
    captured.module(), xnnpack.XNNPACKQuantizer().set_global(config)
)
for _ in range(64):
    prepared(torch.randn(1, 3, 16, 16))  # put prepared inputs here
graph = convert_pt2e(prepared)
mb = write_pte(captured, "float.pte")
int8_mb = write_pte(torch.export.export(graph, example), "int8.pte")

# What the phone does, on this machine: ExecuTorch's runtime reads the files.
exact, rounded, times = [], [], []
for path, outputs in {"float.pte": exact, "int8.pte": rounded}.items():
    method = Runtime.get().load_program(path).load_method("forward")
    torch.manual_seed(1)
    for _ in range(64):
        outputs.append(method.execute([torch.randn(1, 3, 16, 16)])[0].clone())
    timer = Timer("f.execute(x)", globals={"f": method, "x": list(example)})
    times.append(1000 * timer.blocked_autorange(min_run_time=0.5).median)
(exact, rounded), (ms, int8_ms) = (torch.cat(exact), torch.cat(rounded)), times
sqnr = 20 * torch.log10(exact.norm() / (exact - rounded).norm())
print(f"size   {mb:.2f} MB -> {int8_mb:.2f} MB: {mb / int8_mb:.2f} times smaller")
print(f"speed  {ms:.2f} ms -> {int8_ms:.2f} ms: {ms / int8_ms:.2f} times float's")
print(f"SQNR   {sqnr:.1f} dB")
