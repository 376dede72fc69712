"""One token at a time through a decoder of GPT-2's size, with weights of 32, 16, 8 and 4 bits.

The weights are random: speed does not depend on them. Each candidate runs in fresh processes, one for each number of
threads, in random order; the baseline runs twice. Writes qhelpers/book/results/decoder_speed.json. About eleven minutes
on two quiet cores; ``--only`` and ``--tokens`` make it shorter.

    python -m experiments.decoder_speed
"""

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torchao
from torch import Tensor, nn
from torch import _inductor as inductor

from experiments import runs
from qhelpers import metrics
from qhelpers.tasks import decoder

# GPT-2's vocabulary of 50,257 is padded to a multiple of 64: the int4 kernel wants multiples of 16
SIZE = {"width": 768, "layers": 12, "heads": 12, "context": 128, "vocabulary": 50_304}
GROUP = 32
BASELINE = "bf16"
BYTES = 2**29  # of the tensor whose sum tells the bandwidth: far beyond any cache

Prepare = Callable[[nn.Module], nn.Module]


def _torchao(name: str, **options: Any) -> Prepare:
    def prepare(model: nn.Module) -> nn.Module:
        from torchao import quantization as tao
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer  # noqa: F401 registers int8 patterns

        tao.quantize_(model, getattr(tao, name)(**options))
        return model

    return prepare


def _int4(model: nn.Module) -> nn.Module:
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    from torchao.quantization import quantize_

    quantize_(model, PrototypeInt4WeightOnlyConfig(group_size=GROUP, set_inductor_config=False))
    return model


def _intx(model: nn.Module) -> nn.Module:
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    quantize_(model, IntxWeightOnlyConfig(torch.int4, PerGroup(GROUP)))
    return model


def _old_dynamic(model: nn.Module) -> nn.Module:
    converted: nn.Module = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})  # type: ignore[no-untyped-call]
    return converted


_int8 = _torchao("Int8WeightOnlyConfig", set_inductor_config=False)
_int8_dynamic = _torchao("Int8DynamicActivationInt8WeightConfig", set_inductor_config=False)

# name: the dtype of what is not quantized, what is done to the model, and whether it is compiled and frozen
CANDIDATES: dict[str, tuple[torch.dtype, Prepare, bool]] = {
    "float32": (torch.float32, lambda model: model, False),
    "float32, compiled": (torch.float32, lambda model: model, True),
    BASELINE: (torch.bfloat16, lambda model: model, False),
    "bf16, compiled": (torch.bfloat16, lambda model: model, True),
    "int8 weight-only": (torch.bfloat16, _int8, False),
    "int8 weight-only, compiled": (torch.bfloat16, _int8, True),
    "int8 dynamic": (torch.bfloat16, _int8_dynamic, False),
    "int8 dynamic, compiled": (torch.bfloat16, _int8_dynamic, True),
    "int8, quantize_dynamic": (torch.float32, _old_dynamic, False),
    "int4 weight-only": (torch.bfloat16, _int4, False),
    "int4 weight-only, compiled": (torch.bfloat16, _int4, True),
    "int4, unpacked": (torch.bfloat16, _intx, False),
}


def stored_bytes(value: Any) -> int:
    """What a tensor keeps, or the tensors that a tensor of torchao is made of.

    >>> stored_bytes(torch.zeros(3, dtype=torch.bfloat16))
    6
    """
    if hasattr(value, "__tensor_flatten__"):
        return sum(stored_bytes(getattr(value, name)) for name in value.__tensor_flatten__()[0])
    return int(value.numel() * value.element_size())


def weight_bytes(model: nn.Module) -> int:
    """What the layers that multiply read for each token: their weights with scales, without the embedding's table."""
    found = 0
    for layer in model.modules():
        weight = getattr(layer, "weight", None)
        if isinstance(layer, (nn.Embedding, nn.LayerNorm)) or weight is None:
            continue
        if callable(weight):  # a layer of eager mode: int8 codes and a scale
            found += weight().numel()
        else:
            found += stored_bytes(weight)
    return found


def measure(name: str, tokens: int) -> dict[str, Any]:
    """One candidate in this process: milliseconds a token, and what it reads for one."""
    torch.manual_seed(0)
    dtype, prepare, is_compiled = CANDIDATES[name]
    model = decoder.Decoder(**SIZE).eval().requires_grad_(False)
    past = SIZE["context"] - 1
    shape = (2, 1, SIZE["heads"], past, SIZE["width"] // SIZE["heads"])
    state, code = [torch.randn(shape) for _ in range(SIZE["layers"])], torch.tensor([[1]])
    with torch.no_grad(), inductor.config.patch(freezing=True):  # with gradients inductor does not freeze
        exact = model(code, state)[0]
        model, state = prepare(model.to(dtype)), [kept.to(dtype) for kept in state]
        size = weight_bytes(model)
        step: Callable[..., tuple[Tensor, list[Tensor]]] = torch.compile(model) if is_compiled else model
        start = time.perf_counter()
        logits, state = step(code, state)
        first = time.perf_counter() - start
        decibels = metrics.sqnr_db(exact, logits.float())
        times = []
        for _ in range(3 + tokens):
            code = logits[:, -1].argmax(dim=-1, keepdim=True)
            start = time.perf_counter()
            logits, state = step(code, state)
            times.append(1e3 * (time.perf_counter() - start))
    low, middle, high = statistics.quantiles(times[3:], n=4)
    return {
        "ms": round(middle, 2),
        "quartiles_ms": [round(low, 2), round(high, 2)],
        "weight_mb": round(size / 1e6, 1),
        "cache_mb": round(sum(stored_bytes(kept) for kept in state) / 1e6, 1),
        "first_call_s": round(first, 1),
        "sqnr_db": round(decibels, 1) if math.isfinite(decibels) else None,  # JSON has no infinity
    }


def bandwidth() -> dict[str, Any]:
    """How fast this process reads memory: GB a second while it adds up a tensor that no cache holds."""
    values, times = torch.ones(BYTES // 4), []
    for _ in range(9):
        start = time.perf_counter()
        values.sum()
        times.append(time.perf_counter() - start)
    return {"gb_s": round(BYTES / statistics.median(times[2:]) / 1e9, 1)}


def kernels(width: int = 4096, layers: int = 6, repeats: int = 5) -> list[dict[str, Any]]:
    """PyTorch's int4 kernel against a bf16 layer in this process: milliseconds a layer, by rows and type of the inputs.

    The layers take turns, so that no cache holds their weights.
    """
    codes, rows = torch.randint(16, (width, width), dtype=torch.int32), []
    packed = [torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1) for _ in range(layers)]
    dense = [torch.randn(width, width).bfloat16() for _ in range(layers)]
    settings = [(torch.bfloat16, n) for n in (1, 4, 16, 64, 256)] + [(torch.float32, 1), (torch.float16, 1)]
    if "ATEN_CPU_CAPABILITY" in os.environ:  # fewer instructions: many tokens would take minutes
        settings = settings[:1]
    for dtype, tokens in settings:
        scales = torch.rand(width // GROUP, width, 2).to(dtype)
        inputs = torch.randn(tokens, width).to(dtype)
        times: dict[str, list[float]] = {"int4_ms": [], "bf16_ms": []}
        for repeat in range(repeats + 1):
            for one, weight in zip(packed, dense, strict=True):
                start = time.perf_counter()
                torch.ops.aten._weight_int4pack_mm_for_cpu(inputs, one, GROUP, scales)
                middle = time.perf_counter()
                nn.functional.linear(inputs.bfloat16(), weight)
                end = time.perf_counter()
                if repeat:  # the first round warms up
                    times["int4_ms"].append(1e3 * (middle - start))
                    times["bf16_ms"].append(1e3 * (end - middle))
            if sum(times["int4_ms"]) > 2_000:
                break
        row = {"instructions": torch.backends.cpu.get_cpu_capability(), "inputs": str(dtype), "tokens": tokens}
        rows.append(row | {name: round(statistics.median(found), 3) for name, found in times.items()})
    return rows


def in_fresh_process(name: str, threads: int, tokens: int, **variables: str) -> Any:
    """The row of one candidate, the bandwidth or the kernels' rows, measured by another interpreter.

    Raises:
        SystemExit: with its last line, if it fails.
    """
    command = [sys.executable, "-m", "experiments.decoder_speed", "--worker", name]
    command += ["--threads", str(threads), "--tokens", str(tokens)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"} | variables
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{name}, {threads} threads: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tokens", type=int, default=30)
    options.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options.add_argument("--only", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    options.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.worker:
        warnings.simplefilter("ignore")
        torch.set_num_threads(arguments.threads[0])
        special: dict[str, Callable[[], Any]] = {"bandwidth": bandwidth, "kernels": kernels}
        found = special.get(arguments.worker, lambda: measure(arguments.worker, arguments.tokens))()
        print(json.dumps(found))
        return
    names = [*arguments.only, *([BASELINE] if BASELINE in arguments.only else [])]
    jobs = [(name, threads) for threads in arguments.threads for name in names]
    random.Random(0).shuffle(jobs)
    memory = {str(n): in_fresh_process("bandwidth", n, 0)["gb_s"] for n in arguments.threads}
    # the same machine as if it had fewer instructions; the first setting changes nothing
    used = [{}, {"ATEN_CPU_CAPABILITY": "avx2"}, {"ATEN_CPU_CAPABILITY": "default"}]
    layers = [row for variables in used for row in in_fresh_process("kernels", 1, 0, **variables)]
    rows: list[dict[str, Any]] = []
    for name, threads in jobs:
        copy = 1 + sum(row["candidate"] == name and row["threads"] == threads for row in rows)
        row = {"candidate": name, "threads": threads, "copy": copy}
        rows.append(row | in_fresh_process(name, threads, arguments.tokens))
        print(rows[-1], flush=True)
    place = list(CANDIDATES)
    rows.sort(key=lambda row: (row["threads"], place.index(row["candidate"]), row["copy"]))
    runs.write_results(
        "decoder_speed",
        "experiments/decoder_speed.py",
        "milliseconds a token, median of a fresh process; one token at a time, its cache of keys and values full",
        rows,
        size=SIZE,
        group=GROUP,
        tokens=arguments.tokens,
        torchao=torchao.__version__,
        bandwidth_gb_s=memory,
        kernels=layers,
    )


if __name__ == "__main__":
    main()
