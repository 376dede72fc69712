"""A PyTorch model as an int8 ONNX file: export, calibrate, quantize, run.

python onnx_runtime.py    needs torch, onnx, onnxscript and onnxruntime
"""

import platform
from pathlib import Path

import onnxruntime
import torch
from onnxruntime import quantization as oq
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn
from torch.utils.benchmark import Timer

torch.manual_seed(0)
model = nn.Sequential(  # put your trained model here
    *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Flatten(), nn.Linear(2048, 256), nn.ReLU(), nn.Linear(256, 10)),
).eval()
x = torch.randn(64, 3, 16, 16)


class Calibration(oq.CalibrationDataReader):
    batches = iter(torch.randn(16, 8, 3, 16, 16))  # put prepared inputs here

    def get_next(self):
        batch = next(self.batches, None)
        return None if batch is None else {"x": batch.numpy()}


export = {"input_names": ["x"], "dynamic_shapes": ({0: torch.export.Dim("batch")},)}
torch.onnx.export(model, (x,), "float.onnx", external_data=False, **export)
quant_pre_process("float.onnx", "ready.onnx")
on_x86 = platform.machine().lower() in ("x86_64", "amd64")
oq.quantize_static(
    "ready.onnx",
    "int8.onnx",
    Calibration(),
    activation_type=oq.QuantType.QUInt8 if on_x86 else oq.QuantType.QInt8,
    per_channel=True,
    reduce_range=not torch.cpu.get_capabilities().get("avx512_vnni", not on_x86),
)


def measured(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)
    timer = Timer("run(None, x)", globals={"run": session.run, "x": {"x": x.numpy()}})
    ms = 1000 * timer.blocked_autorange(min_run_time=0.5).median
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), ms


(exact, ms), (rounded, int8_ms) = measured("float.onnx"), measured("int8.onnx")
mb, int8_mb = (Path(name).stat().st_size / 1e6 for name in ("float.onnx", "int8.onnx"))
sqnr = 20 * torch.log10(exact.norm() / (exact - rounded).norm())
print(f"size   {mb:.2f} MB -> {int8_mb:.2f} MB: {mb / int8_mb:.2f} times smaller")
print(f"speed  {ms:.2f} ms -> {int8_ms:.2f} ms: {ms / int8_ms:.2f} times float's")
print(f"SQNR   {sqnr:.1f} dB")
