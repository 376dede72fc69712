"""Fewer bits than eight: what post-training quantization keeps, and what training brings back.

Writes files of qhelpers/book/results: few_bits.json (about an hour on one core); few_bits_after_rounding.json (a
quarter of an hour), in which training starts from what adaptive rounding has made; and few_bits_longer.json (half an
hour; not recorded in the book yet), in which it takes eight times as many steps from there. An interrupted call goes on
with the runs that it lacks. Choices are made on the 500 validation digits; the 1,000 test digits are only reported.

    python -m experiments.few_bits [few_bits | few_bits_after_rounding | few_bits_longer] [--workers 2]
    python -m experiments.few_bits --cost  # time and memory of a training step, on a quiet machine

What is the same for all arms: batch norms are folded before anything else, so that the network that is trained is the
network that is rounded, and no statistics can lag behind the weights (static folding, Nagel et al. 2021, section 4.2).
Weights have one scale for each output channel and signed codes; the input of each layer has one scale and a zero point.
The first and the last layer keep eight bits for both, as in the papers. Sums, biases and logits stay in float.
"""

import argparse
import copy
import ctypes
import hashlib
import itertools
import json
import math
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from experiments import loop, runs
from experiments.runs import Run
from qhelpers import atomic, metrics
from qhelpers.tasks import checkpoints, digits, networks

STATE = Path("build/experiments/few_bits.json")
COSTS = Path("build/experiments/few_bits_costs.json")
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "MobileNetV2": checkpoints.load_digits_float,
    "residual net": networks.load_digit_resnet,
}
SCHEMES = {"8/8": (8, 8), "4/8": (4, 8), "3/8": (3, 8), "4/4": (4, 4), "3/3": (3, 3), "2/2": (2, 2)}  # weights / inputs
VARIED = "residual net", "2/2"  # the network and scheme of "one thing at a time"
AFTER_ROUNDING = {"MobileNetV2": ["3/3", "2/2"], "residual net": ["2/2"]}  # where adaptive rounding loses most
LONGER = 8  # times as many steps, at the fewest bits
STEPS = {"MobileNetV2": 40, "residual net": 100}
RATES = (3e-4, 1e-3, 3e-3)  # the tuning runs of QAT, and of the control
SEEDS = range(3)
BATCH = 16
CALIBRATION_PER_CLASS = 5
EDGE_BITS = 8  # of the first and the last layer
ROUNDING_STEPS = 250  # for each layer
ROUNDING_RATE = 0.03
WITHOUT_TRAINING = ("min-max", "MSE", "adaptive rounding")
CENTER = ("network", "arm", "bits", "ranges", "lr", "steps")  # what a training is repeated with
ROWS = 1024  # of layer inputs that adaptive rounding looks at


class BitsError(ValueError):
    """A bit width leaves no codes to round to."""


class BatchesError(ValueError):
    """Two runs that are compared were not trained on the same batches."""


# --- rounding ------------------------------------------------------------------------------------------


def require_bits(bits: int, signed: bool) -> int:
    """The bit width, if it has codes: at least 1 bit, and 2 where codes are signed and symmetric about zero.

    Raises:
        BitsError: for another width; of one signed bit the codes are -1 and 0, so nothing positive could be written.

    >>> require_bits(3, signed=True)
    3
    """
    least = 2 if signed else 1
    if isinstance(bits, bool) or not isinstance(bits, int) or bits < least:
        what = "signed codes, of which one bit has no positive one" if signed else "codes"
        raise BitsError(f"{bits!r} is no bit width for {what}: take a whole number from {least} on.")
    return bits


class FakeQuantize(nn.Module):
    """Round to ``scale * code`` with whole codes from ``low`` to ``high``; the scale is learned.

    Both gradients are straight-through: rounding counts as the identity, clamping does not. The scale's is divided by
    the root of how many values it serves (of one image) times ``high``, so that it moves as slowly as a weight.
    Source: Esser et al. 2020, "Learned Step Size Quantization".

    Args:
        scale: positive, one number, or shaped so that it broadcasts over the values.
        low, high: the zero point of unsigned codes is ``-low``.
    """

    def __init__(self, scale: Tensor, low: int, high: int) -> None:
        super().__init__()
        self.scale, self.low, self.high = nn.Parameter(scale), low, high

    def forward(self, x: Tensor) -> Tensor:
        share = 1 / math.sqrt(x[0].numel() * max(self.high, 1))
        scale = share * self.scale + (1 - share) * self.scale.detach()
        code = (x / scale).clamp(self.low, self.high)
        return scale * (code + (code.round() - code).detach())


class QuantizedLayer(nn.Module):
    """A convolution or Linear that sees a rounded input and rounded weights."""

    def __init__(self, layer: Any, inputs: FakeQuantize, weights: FakeQuantize) -> None:
        super().__init__()
        self.layer, self.inputs, self.weights = layer, inputs, weights

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weights(self.layer.weight)
        if isinstance(self.layer, nn.Linear):
            return F.linear(self.inputs(x), weight, self.layer.bias)
        y: Tensor = self.layer._conv_forward(self.inputs(x), weight, self.layer.bias)
        return y


# --- ranges --------------------------------------------------------------------------------------------


def weight_quantizer(weight: Tensor, bits: int, optimal: bool) -> FakeQuantize:
    """One scale for each output channel: PyTorch's min-max, or that of the smallest squared error.

    Args:
        weight: ``(channels, …)``.
        optimal: try a hundred ranges from a fifth of min-max's to 1.2 times it, channel by channel.
    """
    high = 2 ** (require_bits(bits, signed=True) - 1) - 1
    rows = weight.detach().flatten(1)
    scale = (rows.abs().amax(1, keepdim=True) / (high + 0.5)).clamp_min(1e-12)
    if optimal:
        scale = _best(rows, [(factor * scale, -high - 1, high) for factor in torch.linspace(0.2, 1.2, 100)])[0]
    return FakeQuantize(scale.view(-1, *[1] * (weight.ndim - 1)), -high - 1, high)


def input_quantizer(values: Tensor, bits: int, optimal: bool) -> FakeQuantize:
    """One scale and zero point, for the range of some values or for the part of it with the smallest squared error.

    Args:
        values: of any shape.
        optimal: try a hundred parts of the range, from a hundredth to all of it.
    """
    codes = 2 ** require_bits(bits, signed=False) - 1
    ends = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    candidates = []
    for factor in torch.linspace(0.01, 1, 100) if optimal else torch.ones(1):
        bottom, top = float(factor) * ends[0], float(factor) * ends[1]
        scale = max((top - bottom) / codes, 1e-12)
        low = round(bottom / scale)
        candidates.append((torch.full((1, 1), scale), low, low + codes))
    scale, low, high = _best(values.reshape(1, -1), candidates)
    return FakeQuantize(scale.flatten(), low, high)


def _best(rows: Tensor, candidates: list[tuple[Tensor, int, int]]) -> tuple[Tensor, int, int]:
    """The candidate with the smallest squared error; where each row has a scale, the best scale for each row."""
    errors = [
        (((rows / scale).round().clamp(low, high) * scale - rows) ** 2).sum(1, keepdim=True)
        for scale, low, high in candidates
    ]
    chosen = torch.stack(errors).argmin(0)  # (rows, 1)
    scales = torch.stack([scale.expand(len(rows), 1) for scale, _, _ in candidates])
    _, low, high = candidates[int(chosen[0, 0])]
    return scales.gather(0, chosen[None])[0].clone(), low, high


# --- networks ------------------------------------------------------------------------------------------


def float_network(name: str) -> nn.Module:
    """A digits network with its batch norms folded, in evaluation mode.

    In both networks each norm is listed right behind its convolution.
    """
    net = NETWORKS[name]().eval()
    named = [(name, one) for name, one in net.named_modules() if isinstance(one, (nn.Conv2d, nn.BatchNorm2d))]
    for (conv_name, conv), (norm_name, norm) in itertools.pairwise(named):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            net.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm))
            net.set_submodule(norm_name, nn.Identity())
    return net.to(memory_format=torch.channels_last)


def layers_of(net: nn.Module) -> dict[str, nn.Module]:
    """Convolutions and Linear layers by name, those inside a :class:`QuantizedLayer` under the name of that."""
    return {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear, QuantizedLayer)) and not name.endswith(".layer")
    }


def calibration_images(seed: int, per_class: int = CALIBRATION_PER_CLASS) -> Tensor:
    """Training digits, equally many of each class, ``(10 * per_class, 3, 96, 96)``."""
    images = digits.prepare_images(digits.balanced_subset(per_class, seed).tensors[0])
    return images.contiguous(memory_format=torch.channels_last)


def quantized(net: nn.Module, bits: tuple[int, int], images: Tensor, optimal: bool) -> nn.Module:
    """A copy in which each layer rounds its weights and its input, with ranges from these images.

    Args:
        net: float, without batch norms.
        bits: of weights and of activations; the first and the last layer have eight of both.
        optimal: ranges of the smallest squared error, not min-max.
    """
    for width, signed in zip(bits, (True, False), strict=True):
        require_bits(width, signed)
    inputs: dict[str, Tensor] = {}
    net = copy.deepcopy(net).eval()
    layers = layers_of(net)
    with looking(layers, lambda name, x, y: inputs.update({name: x.detach()})), torch.no_grad():
        net(images)
    edges = next(iter(layers)), next(reversed(layers))
    for name, layer in layers.items():
        weight_bits, input_bits = (EDGE_BITS, EDGE_BITS) if name in edges else bits
        values = inputs[name].flatten()
        values = torch.cat([values[:: 1 + len(values) // 50_000], values.min()[None], values.max()[None]])
        parts = input_quantizer(values, input_bits, optimal), weight_quantizer(layer.weight, weight_bits, optimal)  # type: ignore[arg-type]
        net.set_submodule(name, QuantizedLayer(layer, *parts))
    return net


@contextmanager
def looking(layers: dict[str, nn.Module], look: Callable[[str, Tensor, Tensor], Any]) -> Iterator[None]:
    """Call ``look(name, input, output)`` for each layer that runs."""

    def hook(name: str) -> Callable[..., None]:
        def call(module: nn.Module, x: tuple[Tensor], y: Tensor) -> None:
            look(name, x[0], y)

        return call

    hooks = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# --- adaptive rounding ---------------------------------------------------------------------------------


def adaptive_rounding(net: nn.Module, original: nn.Module, images: Tensor, rate: float, seed: int) -> None:
    """Decide for each weight of a quantized network whether it goes up or down, layer by layer, in place.

    Each layer sees what the rounded layers before it give, and is to give what it gives in float.
    Source: Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization", sections 3 and 4;
    here without the activation function behind the layer.
    """
    generator = torch.Generator().manual_seed(seed)
    places: dict[str, Tensor] = {}
    targets: dict[str, Tensor] = {}

    def sample(name: str, x: Tensor, y: Tensor) -> None:
        spots = y[:, 0].numel()
        places[name] = torch.randperm(spots, generator=generator)[:ROWS]
        targets[name] = y.movedim(1, -1).reshape(spots, -1)[places[name]]

    with looking(layers_of(original), sample), torch.no_grad():
        original(images)
    for name, layer in layers_of(net).items():
        found: list[Tensor] = []

        def keep(_: str, x: Tensor, y: Tensor, found: list[Tensor] = found, layer: Any = layer) -> None:
            found.append(layer.inputs(x))
            raise _Seen

        with looking({name: layer}, keep), torch.no_grad(), suppress(_Seen):
            net(images)
        _round_layer(layer, patches(layer.layer, found[0], places[name]), targets[name], rate, generator)


class _Seen(Exception):
    """What lies behind a layer need not be computed."""


def patches(layer: Any, x: Tensor, places: Tensor) -> Tensor:
    """What a layer reads to compute its outputs at some places, of shape ``(places, groups, values)``.

    Args:
        x: input of the layer, ``(n, channels, height, width)`` or ``(n, features)``.
        places: positions in the flattened ``(n, height, width)`` or ``(n,)`` of its output.
    """
    if isinstance(layer, nn.Linear):
        return x[places][:, None]
    if set(layer.dilation) != {1} or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise NotImplementedError(f"Patches of {layer} are not known: only of plain zero padding without dilation.")
    (high, wide), (down, right) = layer.kernel_size, layer.stride
    padded = F.pad(x, (layer.padding[1],) * 2 + (layer.padding[0],) * 2)
    windows = padded.unfold(2, high, down).unfold(3, wide, right)  # (n, channels, rows, columns, high, wide)
    rows, columns = windows.shape[2:4]
    image, row, column = places // (rows * columns), places // columns % rows, places % columns
    return windows[image, :, row, column].reshape(len(places), layer.groups, -1)


def _round_layer(layer: Any, x: Tensor, target: Tensor, rate: float, generator: torch.Generator) -> None:
    groups = x.shape[1]
    weight, scale = layer.layer.weight.detach(), layer.weights.scale.detach()
    down = (weight / scale).floor()
    rest = weight / scale - down
    up = nn.Parameter(-(1.2 / (rest + 0.1) - 1).log())  # its stretched sigmoid is the rest
    optimizer = torch.optim.Adam([up], lr=rate)
    bias = layer.layer.bias.detach()
    for step in range(ROUNDING_STEPS):
        share = (up.sigmoid() * 1.2 - 0.1).clamp(0, 1)
        rounded = (down + share).clamp(layer.weights.low, layer.weights.high) * scale
        chosen = torch.randint(len(x), (256,), generator=generator)
        y = torch.einsum("sgk,gok->sgo", x[chosen], rounded.reshape(groups, len(weight) // groups, -1)).flatten(1)
        loss = ((y + bias - target[chosen]) ** 2).sum(1).mean()
        done = step / ROUNDING_STEPS
        if done >= 0.2:
            loss = loss + 0.01 * (1 - (2 * share - 1).abs() ** (20 - 18 * (done - 0.2) / 0.8)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    layer.layer.weight.data = (down + (up.detach() > 0)).clamp(layer.weights.low, layer.weights.high) * scale


# --- training ------------------------------------------------------------------------------------------


def train(
    net: nn.Module,
    batch_of: Callable[[int], tuple[Tensor, Tensor]],
    steps: int,
    rate: float,
    *,
    cosine: bool = True,
    seed: int = 0,
) -> str:
    """Train a classifier, float or rounded, with SGD and cross-entropy; it is left in evaluation mode.

    Args:
        batch_of: inputs and labels ``(n,)`` of a step, counted from 0.
        rate: the learning rate of the first step.
        cosine: whether the rate falls to zero along half a cosine, or stays.
        seed: of dropout.

    Returns:
        A hash of all batches.

    Raises:
        loop.DivergedError: naming the step and the layer.
    """
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if cosine else None
    seen = hashlib.sha256()

    def hashed(step: int) -> loop.Batch:
        images, labels = batch_of(step)
        seen.update(images.numpy().tobytes() + labels.numpy().tobytes())
        return images, labels

    loop.fit(net.train(), hashed, optimizer, steps, schedule=schedule, seed=seed)
    net.eval()
    return seen.hexdigest()


def require_same_batches(run: Run, control: Run) -> None:
    """Refuse to compare two trainings that did not see the same batches in the same order.

    Raises:
        BatchesError: naming both runs.
    """
    if run["batches"] != control["batches"]:
        names = [f"{one['arm']} {one.get('bits', '')} seed {one['seed']}" for one in (run, control)]
        raise BatchesError(
            f"{' and '.join(names)} were not trained on the same batches: their difference says nothing."
        )


# --- the recorded runs ---------------------------------------------------------------------------------


def logits(net: nn.Module, split: digits.Split) -> Tensor:
    """``(n, 10)``, in the order of the split."""
    batches = digits.loader(split, batch_size=50)
    with torch.inference_mode():
        return torch.cat([net(x.contiguous(memory_format=torch.channels_last)) for x, _ in batches])


@cache
def float_logits(network: str) -> Tensor:
    """Of the test digits, from the network that all arms start with."""
    return logits(float_network(network), "test")


def made(run: Run) -> tuple[nn.Module, Run]:
    """The network that a run describes, in evaluation mode, and what making it has shown."""
    original, seed = float_network(run["network"]), run["seed"]
    if run["arm"] == "float":
        return original, {}
    net, about = original, {}
    if run["arm"] != "control":
        images, ranges = calibration_images(seed), run.get("ranges", run["arm"])
        net = quantized(original, SCHEMES[run["bits"]], images, optimal=ranges != "min-max")
        if ranges == "adaptive rounding":
            adaptive_rounding(net, original, images, ROUNDING_RATE, seed)
    if run["arm"] in ("QAT", "control"):
        if run.get("scales") == "fixed":
            for module in net.modules():
                if isinstance(module, FakeQuantize):
                    module.scale.requires_grad_(False)
        cosine = run.get("schedule") != "constant"
        batch_of = partial(digits.training_batch, batch_size=BATCH, seed=seed)
        about = {"batches": train(net, batch_of, run["steps"], run["lr"], cosine=cosine, seed=seed)}
    return net, about


def measure(run: Run) -> Run:
    """Make the network that a run describes, and measure it; of a diverged one, where it diverged."""
    try:
        net, about = made(run)
    except loop.DivergedError as error:
        return {"diverged": error.step, "layer": error.layer}
    labels = digits.dataset("validation").tensors[1]
    validation, test = logits(net, "validation"), logits(net, "test")
    answers = test.argmax(1)
    if run["arm"] != "float":
        about["sqnr_db"] = round(metrics.sqnr_db(float_logits(run["network"]), test), 2)
    return about | {
        "validation": percent(validation.argmax(1) == labels),
        "validation_loss": round(float(F.cross_entropy(validation, labels)), 4),
        "test": percent(answers == digits.dataset("test").tensors[1]),
        "answers": "".join(map(str, answers.tolist())),
    }


def percent(right: Tensor) -> float:
    return round(100 * float(right.float().mean()), 1)


def best(rows: list[Run], **wanted: Any) -> Run:
    """The row, among those with these fields, that reads most validation digits; of equal ones that of lower loss."""
    fitting = [row for row in rows if "validation" in row and wanted.items() <= row.items()]
    return max(fitting, key=lambda row: (row["validation"], -row["validation_loss"]))


def plain_rounding(network: str) -> list[Run]:
    """The float network, and rounding to nearest with both kinds of ranges."""
    arms = itertools.product(SCHEMES, ("min-max", "MSE"), SEEDS)
    found: list[Run] = [{"network": network, "arm": "float", "seed": 0}]
    return found + [{"network": network, "arm": arm, "bits": bits, "seed": seed} for bits, arm, seed in arms]


def adaptively_rounded(network: str, schemes: Iterable[str] = SCHEMES) -> list[Run]:
    """The arm that chooses the rounding of each weight."""
    arm = {"network": network, "arm": "adaptive rounding"}
    return [arm | {"bits": bits, "seed": seed} for bits in schemes for seed in SEEDS]


def tuning(network: str, rows: list[Run], schemes: Iterable[str] = SCHEMES, longer: int = 1) -> list[Run]:
    """One run of seed 0 for each rate: of the control, and of QAT from the best that the rows have without training."""
    trained: Run = {"network": network, "steps": longer * STEPS[network], "seed": 0}
    found = [trained | {"arm": "control", "lr": lr} for lr in RATES]
    for bits in schemes:
        ranges = without_training(rows, bits)
        found += [trained | {"arm": "QAT", "bits": bits, "ranges": ranges, "lr": lr} for lr in RATES]
    return found


def without_training(rows: list[Run], bits: str) -> str:
    """The arm without training that reads most validation digits at this width with seed 0."""
    arm: str = best([row for row in rows if row["arm"] in WITHOUT_TRAINING], bits=bits, seed=0)["arm"]
    return arm


def repeated(network: str, rows: list[Run], schemes: Iterable[str] = SCHEMES) -> list[Run]:
    """The chosen run of QAT for each scheme, and that of the control, with all seeds."""
    chosen = [best(rows, arm="control"), *(best(rows, arm="QAT", bits=bits) for bits in schemes)]
    return [{key: row[key] for key in CENTER if key in row} | {"seed": seed} for row in chosen for seed in SEEDS]


def one_at_a_time(rows: list[Run]) -> list[Run]:
    """Around the chosen run: all fixed but the rate, the schedule, the scales, the ranges or the steps."""
    network, bits = VARIED
    chosen = best(rows, network=network, arm="QAT", bits=bits)
    center = {key: value for key, value in chosen.items() if key in CENTER}
    other = "min-max" if center["ranges"] == "MSE" else "MSE"
    changes: list[Run] = [{}, {"schedule": "constant"}, {"scales": "fixed"}, {"ranges": other}]
    changes += [{"lr": round(center["lr"] * factor, 6)} for factor in (0.1, 3, 10)]
    changes += [{"steps": center["steps"] // 4}, {"steps": 2 * center["steps"]}]
    return [center | {"part": "one at a time"} | change | {"seed": seed} for change in changes for seed in SEEDS]


def compared(row: Run, rows: list[Run]) -> Run:
    """The row with the digits lost and won against float in place of its answers.

    QAT is also compared with the control, and with the post-training method that reads most validation digits of
    seed 0: both sides had one run for each of three candidates to choose from.

    Raises:
        BatchesError: as :func:`require_same_batches`.
    """
    mine = [one for one in rows if one["network"] == row["network"]]
    others = {"float": best(mine, arm="float")}
    controls = [one for one in mine if one["arm"] == "control" and one["steps"] == row.get("steps")]
    if row["arm"] == "QAT" and controls:
        chosen = best(controls, seed=0)["lr"]
        others["control"] = best(controls, lr=chosen, seed=row["seed"])
        arm = without_training(mine, row["bits"])
        others["untrained"] = best(mine, arm=arm, bits=row["bits"], seed=row["seed"])
    found = {key: value for key, value in row.items() if key != "answers"}
    if "answers" not in row:  # it diverged
        return found
    if "untrained" in others:
        found["untrained"] = others["untrained"]["arm"]
    labels = digits.dataset("test").tensors[1]
    for name, other in others.items():
        if name == "control":
            require_same_batches(row, other)
        pair = metrics.paired(_classes(other["answers"]), _classes(row["answers"]), labels)
        found |= {f"lost_to_{name}": pair.lost, f"won_from_{name}": pair.won, f"p_{name}": float(f"{pair.p_value:.2g}")}
    return found


def _classes(answers: str) -> Tensor:
    return torch.tensor([int(digit) for digit in answers])


# --- the cost of a step --------------------------------------------------------------------------------


def cost(network: str, kind: str, steps: int = 12) -> Run:
    """Median time of a training step, and how far the process's memory rose above what it had before the first one.

    To be called in a process of its own, on Linux.
    """
    net = float_network(network)
    if kind == "QAT":
        net = quantized(net, SCHEMES["4/4"], calibration_images(0, per_class=1), optimal=False)
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9)
    images, labels = digits.training_batch(0, BATCH)
    ctypes.CDLL(None).malloc_trim(0)  # give freed memory back, or the steps hide in it
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before, times = _resident_mb(), []
    for _ in range(steps):
        started = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()
        times.append(time.perf_counter() - started)
    (peak,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    rise = int(peak) / 1024 - before
    milliseconds = 1000 * statistics.median(times[2:])
    return {"network": network, "kind": kind, "ms": round(milliseconds, 1), "peak_mb": round(rise)}


def _resident_mb() -> float:
    return psutil.Process().memory_info().rss / 2**20


def costs(processes: int = 5) -> list[Run]:
    """Float and QAT in turn, each in fresh processes of one thread."""
    found = []
    for process, network, kind in itertools.product(range(processes), NETWORKS, ("float", "QAT")):
        command = [sys.executable, "-m", "experiments.few_bits", "--cost-of", network, kind]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout) | {"process": process})
        print(found[-1], flush=True)
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("part", nargs="?", choices=PARTS, help="all if none is named")
    options.add_argument("--workers", type=int, default=1)
    options.add_argument("--cost", action="store_true", help="measure the cost of a step first, on a quiet machine")
    options.add_argument("--cost-of", nargs=2, metavar=("NETWORK", "KIND"), help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.cost_of:
        torch.set_num_threads(1)
        print(json.dumps(cost(*arguments.cost_of)))
        return
    if arguments.cost:
        atomic.write_text(COSTS, json.dumps(costs()))
    run = partial(runs.run_all, measure, state_file=STATE, workers=arguments.workers)
    for part in [arguments.part] if arguments.part else PARTS:
        write(part, PARTS[part](run))


def all_arms(run: Callable[[list[Run]], list[Run]]) -> list[Run]:
    """Every arm at every width; training starts from rounding to nearest."""
    rows: list[Run] = []
    for network in NETWORKS:
        mine = run(plain_rounding(network))
        mine += run(tuning(network, mine))
        rows += mine + run(repeated(network, mine)) + run(adaptively_rounded(network))
    return rows + run(one_at_a_time(rows))


def after_rounding(run: Callable[[list[Run]], list[Run]], longer: int = 1) -> list[Run]:
    """Training that starts from adaptive rounding, tuned anew; where it is longer, at the fewest bits only."""
    rows: list[Run] = []
    for network, schemes in AFTER_ROUNDING.items():
        schemes = schemes if longer == 1 else schemes[-1:]
        mine = run([{"network": network, "arm": "float", "seed": 0}, *adaptively_rounded(network, schemes)])
        mine += run(tuning(network, mine, schemes, longer))
        rows += mine + run(repeated(network, mine, schemes))
    return rows


PARTS: dict[str, Callable[[Any], list[Run]]] = {
    "few_bits": all_arms,
    "few_bits_after_rounding": after_rounding,
    "few_bits_longer": partial(after_rounding, longer=LONGER),
}


def write(part: str, rows: Iterable[Run]) -> None:
    """A results file, each run once: a tuning run that was chosen is also the first of the repeated ones."""
    rows = [*{json.dumps(row, sort_keys=True): row for row in rows}.values()]
    more: Run = {"step": json.loads(COSTS.read_text()) if COSTS.is_file() else []} if part == "few_bits" else {}
    more |= {"batch": BATCH, "rates": RATES, "seeds": [*SEEDS], "bits_of_first_and_last": EDGE_BITS}
    measured = "top-1 in %; SQNR of the test logits against the float network's, in dB"
    runs.write_results(part, "experiments/few_bits.py", measured, [compared(row, rows) for row in rows], **more)


if __name__ == "__main__":
    main()
