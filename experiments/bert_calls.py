"""A pretrained transformer in int8 by each call there is: size, quality in a search task, and speed.

Writes qhelpers/book/results/bert_quality.json (about five minutes on two cores) and bert_latency.json (half an hour, on
a machine that does nothing else). Nothing is chosen here, so no data are held back.

    python -m experiments.bert_calls [bert_quality | bert_latency]
"""

import argparse
import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._inductor import config as inductor
from torch.ao import quantization as tq

from experiments import runs
from qhelpers import benchmark, census, engines, metrics, size
from qhelpers.check import compiled, float_paths, kernels, targets
from qhelpers.tasks import docs_search, minilm

SHAPES = {"1 × 16": (1, 16), "1 × 128": (1, 128), "16 × 64": (16, 64)}  # texts × tokens
ROUNDS = {"1 × 16": 30, "1 × 128": 15, "16 × 64": 6}
THREADS = (1, 2)
BATCH = 16  # of the quality's fixed shape, with docs_search.MOST_TOKENS
FLOAT, BF16 = "float, eager", "bf16, eager"

Encoder = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Built:
    """A model that is ready to run, its size in MB, and what computes its layers if that was asked for."""

    encoder: Encoder
    size_mb: float
    layers: census.Census | None = None


@cache
def published() -> minilm.MiniLM:
    """The published network and its tokenizer; reading hashes 91 MB, so once a process."""
    return minilm.load()


def float_model() -> nn.Module:
    """The published network."""
    model: nn.Module = published().model
    return model


def example(shape: str) -> tuple[Tensor, Tensor]:
    """Codes and mask of real documents, cut or repeated to exactly that many tokens."""
    texts, length = SHAPES[shape]
    documents = [pair.document for pair in docs_search.load_pairs()]
    tokenizer = published().tokenizer
    ids = minilm.tokenize(tokenizer, [" ".join(documents[i : i + 8]) for i in range(texts)], length, truncate=True)
    return ids["input_ids"], ids["attention_mask"]


# --- how each model is made ------------------------------------------------------------------------------


def dynamic(per_channel: bool, words: bool = False) -> nn.Module:
    """``quantize_dynamic`` of all Linear layers, and of the table of words."""
    how = tq.per_channel_dynamic_qconfig if per_channel else tq.default_dynamic_qconfig
    spec: dict[Any, Any] = {nn.Linear: how}
    if words:
        spec["embeddings.word_embeddings"] = tq.float_qparams_weight_only_qconfig
    return tq.quantize_dynamic(float_model(), spec)


def with_torchao(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """torchao's ``quantize_`` with the config of that name."""
    from torchao import quantization

    twin = copy.deepcopy(float_model()).to(dtype)
    # by default quantize_ changes the compiler's settings for the whole process
    quantization.quantize_(twin, getattr(quantization, name)(set_inductor_config=False))
    return twin


def eager(make: Callable[[], nn.Module], inputs: Sequence[Tensor], count: bool) -> Built:
    """As PyTorch runs it."""
    encoder = minilm.SentenceEncoder(make()).eval()
    found = kernels.of_eager(minilm.SentenceEncoder(float_model()), encoder, *inputs) if count else None
    return Built(partial(_plainly, encoder), size.size_mb(encoder), found)


def compiled_here(make: Callable[[], nn.Module], inputs: Sequence[Tensor], count: bool) -> Built:
    """Compiled for the inputs' shapes with frozen weights, with the patterns for int8 registered."""
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer  # noqa: F401

    encoder = minilm.SentenceEncoder(make()).eval()
    found = compiled.of_compiled(minilm.SentenceEncoder(float_model()), encoder, *inputs) if count else None
    run = torch.compile(encoder, dynamic=False)
    with torch.no_grad(), inductor.patch(freezing=True):
        run(*inputs)
    return Built(partial(_plainly, run), size.size_mb(encoder), found)


def _plainly(encoder: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    # what was frozen was compiled without gradients; in inference mode it would be compiled anew, and not frozen
    with torch.inference_mode(False), torch.no_grad():
        return encoder(*(value.clone() for value in inputs)).float()


def from_file(target: str, inputs: Sequence[Tensor], count: bool) -> Built:
    """Written to a file, and loaded from it."""
    with tempfile.TemporaryDirectory(prefix="bert-") as folder:
        path = Path(folder) / f"int8.{FILES[target]}"
        write_file(target, inputs, path)
        encoder = minilm.SentenceEncoder(float_model())
        found = targets.counted(target, encoder, encoder, path, inputs) if count else None
        run = targets.load(target, path)
        return Built(lambda *tensors: run(*tensors)[0], path.stat().st_size / 1e6, found)


def write_file(target: str, inputs: Sequence[Tensor], path: Path) -> None:
    """The network with dynamic scales: by ONNX Runtime's own call, else by PT2E and the target's compiler.

    A package of inductor is compiled for the number of threads that is set.
    """
    encoder = minilm.SentenceEncoder(float_model())
    if target.startswith("onnx"):
        targets.write_dynamic_onnx(encoder, inputs, path)
        return
    captured = targets.captured(encoder, tuple(inputs), target)
    graph = targets.prepared(captured, [tuple(inputs)], targets.quantizer(target, "dynamic"))
    targets.write(target, encoder, targets.converted(graph), inputs, path)


def bf16() -> nn.Module:
    """The float model's copy in bf16."""
    return copy.deepcopy(float_model()).bfloat16()


TARGETS = {
    "PT2E dynamic, inductor": "aotinductor",
    "ONNX Runtime dynamic": "onnx-x86",
    "XNNPACK dynamic (.pte)": "executorch",
}
FILES = {"aotinductor": "pt2", "onnx-x86": "onnx", "executorch": "pte"}
PER_TOKEN, WEIGHTS = "Int8DynamicActivationInt8WeightConfig", "Int8WeightOnlyConfig"
CALLS: dict[str, Callable[[Sequence[Tensor], bool], Built]] = {
    FLOAT: partial(eager, float_model),
    BF16: partial(eager, bf16),
    "quantize_dynamic, per tensor": partial(eager, partial(dynamic, False)),
    "quantize_dynamic, per channel": partial(eager, partial(dynamic, True)),
    "quantize_dynamic, words too": partial(eager, partial(dynamic, True, words=True)),
    "torchao dynamic, eager": partial(eager, partial(with_torchao, PER_TOKEN)),
    "torchao dynamic, compiled": partial(compiled_here, partial(with_torchao, PER_TOKEN)),
    "torchao weight-only, eager": partial(eager, partial(with_torchao, WEIGHTS)),
    "torchao weight-only in bf16, compiled": partial(compiled_here, partial(with_torchao, WEIGHTS, torch.bfloat16)),
    **{name: partial(from_file, target) for name, target in TARGETS.items()},
}
EAGER = [name for name in CALLS if not (name in TARGETS or name.endswith("compiled"))]


# --- quality -------------------------------------------------------------------------------------------


def at_fixed_shape(encoder: Encoder) -> Encoder:
    """An encoder that always hands on ``BATCH`` texts of 64 tokens: what was made for one shape takes no other."""

    def run(ids: Tensor, mask: Tensor) -> Tensor:
        texts, length = ids.shape
        rows = torch.arange(BATCH) % texts  # the last batch is filled up with its own first texts
        room = (0, docs_search.MOST_TOKENS - length)
        return encoder(nn.functional.pad(ids, room)[rows], nn.functional.pad(mask, room)[rows])[:texts]

    return run


def embeddings(name: str, encoder: Encoder) -> list[Tensor]:
    """Of all queries and of all documents of the search task."""
    tokenizer, pairs = published().tokenizer, docs_search.load_pairs()
    run = encoder if name in EAGER else at_fixed_shape(encoder)
    texts = [pair.query for pair in pairs], [pair.document for pair in pairs]
    return [minilm.encode(run, tokenizer, some, docs_search.MOST_TOKENS, BATCH) for some in texts]


@cache
def float_embeddings() -> list[Tensor]:
    """What every call is compared with."""
    return embeddings(FLOAT, minilm.SentenceEncoder(float_model()))


def quality(run: runs.Run) -> dict[str, Any]:
    """Size, layers in int8, and the search task of one call, in pairs with float."""
    torch.manual_seed(0)
    torch.backends.quantized.engine = engines.default_engine()
    with float_paths.quiet():
        built = CALLS[run["call"]](example("16 × 64"), True)
    exact, found = float_embeddings(), embeddings(run["call"], built.encoder)
    places = [docs_search.ranks(*both) for both in (exact, found)]
    right = [docs_search.hits(one).long() for one in places]
    paired = metrics.paired(*right, torch.ones(len(right[0])).long())
    near = torch.cat([docs_search.cosines(*both) for both in zip(exact, found, strict=True)])
    assert built.layers is not None
    linear = [layer for layer in built.layers.layers if layer.kind == "Linear"]
    return {
        "size_mb": built.size_mb,
        "int8_layers": sum(layer.computes == census.INT8 for layer in linear),
        "layers": len(linear),
        "top1": 100 * right[1].float().mean().item(),
        "difference": paired.difference,
        "interval": [*paired.interval],
        "lost": paired.lost,
        "won": paired.won,
        "p": paired.p,
        "mrr": docs_search.reciprocal_ranks(places[1]).mean().item(),
        "cosine": near.mean().item(),
        "lowest": near.min().item(),
    }


# --- speed ---------------------------------------------------------------------------------------------


def built_anew(name: str, _: Path, inputs: Sequence[Tensor]) -> Callable[[], Tensor]:
    """One call's model with its inputs, made in the process that times it."""
    torch.backends.quantized.engine = engines.default_engine()
    with float_paths.quiet():
        built = CALLS[name](inputs, False)
    return partial(built.encoder, *inputs)


def loaded(target: str, path: Path, inputs: Sequence[Tensor]) -> Callable[[], Any]:
    """One call's file with its inputs."""
    if target == "aotinductor":
        return float_paths.open_pt2(path, inputs)
    return (float_paths.open_onnx if target.startswith("onnx") else float_paths.open_pte)(path, inputs)


def latency(shape: str, threads: int, processes: int) -> list[dict[str, Any]]:
    """Every call and every float path at one shape and number of threads, timed in fresh processes."""
    torch.manual_seed(0)
    inputs = example(shape)
    rivals = float_paths.rivals(minilm.SentenceEncoder(float_model()), *inputs, threads=THREADS)
    twice = (float_paths.EAGER, float_paths.BF16_EAGER)  # CALLS has them
    floats = {name: run for name, run in rivals.candidates.items() if name not in twice}
    candidates: dict[str, Callable[[], Any]] = {}
    with tempfile.TemporaryDirectory(prefix="bert-") as folder:
        for name in CALLS:
            path, load = Path(folder), partial(built_anew, name)
            if target := TARGETS.get(name):
                path, load = path / f"int8.{FILES[target]}", partial(loaded, target)
                with float_paths.using_threads(threads), float_paths.quiet():
                    write_file(target, inputs, path)
            candidates[name] = float_paths.FromFile(load, path, inputs)
        found = benchmark.compare_latency(
            candidates | floats, rounds=ROUNDS[shape], across_processes=processes, threads=threads
        )
    without_int8 = [FLOAT, BF16, *floats]
    best = found.fastest(without_int8)
    print(shape, threads, best, rivals.noted, found, sep="\n", flush=True)
    rows = []
    for name in (*candidates, *floats):
        over = {key: found.ratio(name, rival) for key, rival in (("eager", FLOAT), ("best", best))}
        ratios = {key: [one.value, one.low, one.high] for key, one in over.items()}
        rows.append({"call": name, "shape": shape, "threads": threads, "ms": found.steady_ms(name)} | ratios)
        rows[-1] |= {"float": name in without_int8, "is_best_float": name == best}
        rows[-1]["noise_percent"] = found.noise_percent
    return rows


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("part", nargs="?", choices=["bert_quality", "bert_latency"])
    options.add_argument("--processes", type=int, default=2)
    arguments = options.parse_args()
    script = "experiments/bert_calls.py"
    if arguments.part != "bert_latency":
        todo: list[runs.Run] = [{"call": name} for name in CALLS]
        rows = runs.run_all(quality, todo, Path("build/experiments/bert_quality.json"))
        runs.write_results("bert_quality", script, f"{len(docs_search.load_pairs())} pairs of docstrings", rows)
    if arguments.part != "bert_quality":
        torch.set_num_threads(1)
        parts = [latency(shape, threads, arguments.processes) for shape in SHAPES for threads in THREADS]
        said = f"milliseconds a call, {arguments.processes} fresh processes"
        runs.write_results("bert_latency", script, said, [row for part in parts for row in part])


if __name__ == "__main__":
    from experiments import bert_calls  # fresh processes find its functions by this name

    bert_calls.main()
