"""Static quantization today: export, quantize the graph (PT2E), compile.

python pt2e.py    needs torch, torchao and a C++ compiler; for x86 processors
"""

import torch
import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
from torch import nn
from torch._inductor import config
from torch.utils.benchmark import Timer
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

torch.manual_seed(0)
config.freezing = True  # weights become constants: without it there is no int8 kernel


class Net(nn.Module):  # put your trained model here: no stubs, nothing is renamed
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, padding=1)
        self.hidden, self.head = nn.Linear(2048, 256), nn.Linear(256, 10)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.conv(x).relu(), 2)
        return self.head(self.hidden(x.flatten(1)).relu())


def megabytes(captured):  # of the tensors that a graph reads
    read = {node.target for node in captured.graph.nodes if node.op == "get_attr"}
    tensors = [tensor for name, tensor in captured.state_dict().items() if name in read]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6


def milliseconds(module, x):
    compiled = torch.compile(module)
    compiled(x)  # the first call compiles
    timer = Timer("f(x)", globals={"f": compiled, "x": x})
    return 1000 * timer.blocked_autorange(min_run_time=0.5).median


float_model = Net().eval()
x = torch.randn(32, 3, 16, 16)
vnni = torch.cpu.get_capabilities().get("avx512_vnni", False)
settings = x86.get_default_x86_inductor_quantization_config(reduce_range=not vnni)
quantizer = x86.X86InductorQuantizer().set_global(settings)
captured = torch.export.export(float_model, (x,)).module()
prepared = prepare_pt2e(captured, quantizer)  # changes its graph
with torch.no_grad():
    for _ in range(8):
        prepared(torch.randn(32, 3, 16, 16))  # put prepared inputs here
    graph = convert_pt2e(prepared)
    exact, rounded = float_model(x), graph(x)
    ms, int8_ms = milliseconds(float_model, x), milliseconds(graph, x)
mb = megabytes(torch.export.export(float_model, (x,)).module())
int8_mb = megabytes(graph)
sqnr = 20 * torch.log10(exact.norm() / (exact - rounded).norm())
print(f"size   {mb:.2f} MB -> {int8_mb:.2f} MB: {mb / int8_mb:.2f} times smaller")
print(f"speed  {ms:.2f} ms -> {int8_ms:.2f} ms: {ms / int8_ms:.2f} times float's")
print(f"SQNR   {sqnr:.1f} dB")
