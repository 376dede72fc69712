"""Dynamic quantization: one call and no data. Linear and LSTM layers become int8.

python dynamic.py    needs torch
"""

import io

import torch
from torch import nn
from torch.ao.quantization import quantize_dynamic
from torch.utils.benchmark import Timer


class LanguageModel(nn.Module):  # put your model here
    def __init__(self, vocabulary=100, hidden=512):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 64)
        self.lstm = nn.LSTM(64, hidden, batch_first=True)
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, codes):
        return self.head(self.lstm(self.embedding(codes))[0])


def quantized(model):
    # Name every type that you want: the others stay in float, without a warning.
    return quantize_dynamic(model.eval(), {nn.LSTM, nn.Linear}, dtype=torch.qint8)


def size_mb(model):
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell() / 1e6


def milliseconds(model, inputs):
    timer = Timer("model(inputs)", globals={"model": model, "inputs": inputs})
    return 1000 * timer.blocked_autorange(min_run_time=0.5).median


def sqnr_db(exact, rounded):
    return float(20 * torch.log10(exact.norm() / (exact - rounded).norm()))


torch.manual_seed(0)
torch.set_grad_enabled(False)
float_model = LanguageModel().eval()
int8_model = quantized(float_model)
kept = [type(m) for m in int8_model.modules() if type(m) in (nn.LSTM, nn.Linear)]
assert not kept, f"still float: {kept}"

inputs = torch.randint(100, (1, 50))
mb, ms = size_mb(float_model), milliseconds(float_model, inputs)
int8_mb, int8_ms = size_mb(int8_model), milliseconds(int8_model, inputs)
sqnr = sqnr_db(float_model(inputs), int8_model(inputs))
print(f"size   {mb:.2f} MB -> {int8_mb:.2f} MB: {mb / int8_mb:.2f} times smaller")
print(f"speed  {ms:.2f} ms -> {int8_ms:.2f} ms: {ms / int8_ms:.2f} times float's")
print(f"SQNR   {sqnr:.1f} dB")
