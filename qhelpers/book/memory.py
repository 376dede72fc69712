"""Memory that a model occupies, measured in its own process. One MB is 1,000,000 bytes."""

import json
import subprocess
import sys
from dataclasses import dataclass

MEASURE = """
import copy, ctypes, gc, json, psutil, torch

def trimmed():
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except OSError:
        pass  # not glibc: freed pages may be counted, the same for every model
    return psutil.Process().memory_full_info().uss / 1e6

def run(model):
    with torch.inference_mode():
        model(torch.zeros(input_shape))

torch.set_num_threads(1)
model.eval()
run(model)
before = trimmed()
models = [copy.deepcopy(model) for _ in range(copies)]
for one in models:
    run(one)
print(json.dumps({"model_mb": (trimmed() - before) / copies, "process_mb": before}))
"""


class MeasurementError(RuntimeError):
    """The process in which a model's memory was to be measured failed."""


@dataclass(frozen=True)
class ResidentMemory:
    """Private resident memory in MB."""

    model_mb: float  # what one more copy of the model adds, after it has run once
    process_mb: float  # the whole process with one copy: interpreter, PyTorch and model


def resident_memory(
    recipe: str, input_shape: tuple[int, ...], copies: int = 8, timeout_s: float = 300
) -> ResidentMemory:
    """Measure a model's resident memory in its own process.

    One thread. The model is copied ``copies`` times and each copy run once; the growth of the process's
    private memory (USS), divided by the copies, is what one model occupies.

    Args:
        recipe: Python source that leaves the model in a variable ``model``.
        input_shape: shape of the float32 input that it takes.
        copies: more copies give a steadier figure and need more memory.
        timeout_s: when the process is ended.

    Raises:
        ValueError: if ``copies`` is not positive.
        MeasurementError: with the last line of what the process said.

    >>> memory = resident_memory("import torch; model = torch.nn.Linear(1000, 1000)", (1, 1000))
    >>> 3.5 < memory.model_mb < 4.5
    True
    """
    if copies < 1:
        raise ValueError(f"copies must be positive, got {copies}.")
    source = f"import warnings\nwarnings.simplefilter('ignore')\n{recipe}\n{input_shape=}\n{copies=}\n{MEASURE}"
    try:
        done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise MeasurementError(f"The measuring process was ended after {timeout_s:.0f} s.") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise MeasurementError(f"The measuring process failed: {last}")
    return ResidentMemory(**json.loads(done.stdout.splitlines()[-1]))
