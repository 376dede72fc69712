"""Find the layer that int8 ruins, and repair it without training: sensitivity, ranges, equalization, bias correction.

For any eager model that :mod:`qhelpers.check.simulate` can use; what it says about layers and loaders applies here.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qhelpers import metrics
from qhelpers.check import folding
from qhelpers.check.repair import Equalization, correct_bias, equalize
from qhelpers.check.simulate import (
    DiagnosisError,
    Layers,
    NoLayersError,
    NotFiniteError,
    Ranges,
    Scheme,
    activation_ranges,
    apply_weight,
    channel_ranges,
    find_layers,
    input_batches,
    outputs,
    rounding_error,
    simulated,
    watching,
)

__all__ = [
    "Diagnosis",
    "DiagnosisError",
    "Equalization",
    "Layers",
    "NoLayersError",
    "NotFiniteError",
    "Ranges",
    "Scheme",
    "Sensitivity",
    "activation_ranges",
    "channel_ranges",
    "compare_outputs",
    "correct_bias",
    "diagnose",
    "equalize",
    "find_layers",
    "layer_sqnr",
    "sensitivity",
    "simulated",
]

FEW = 16  # inputs below which an agreement says little
SOUND_DB = 30.0  # SQNR of the outputs from which on rounding is no reason to worry
ALSO_DB = 6.0  # a layer that is alone this close to all together is named, too
CULPRIT_DB = 3.0  # what leaving one layer in float has to gain for it to be called the culprit


@dataclass(frozen=True)
class Sensitivity:
    """One layer quantized alone, and alone left in float: SQNR of the outputs in dB, same class as float in %."""

    name: str
    alone_db: float
    alone_same: float
    left_out_db: float
    left_out_same: float


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`diagnose` found; ``culprit`` is None if no single layer stands out."""

    culprit: str | None
    verdicts: list[str]
    rows: list[Sensitivity]
    unknown: dict[str, str]


def compare_outputs(exact: Tensor, other: Tensor) -> tuple[float, float]:
    """SQNR in dB, and how often the largest output is the same one, in %; outputs of shape ``(n, …, classes)``.

    >>> compare_outputs(torch.eye(2), 0.9 * torch.eye(2))[1]
    100.0
    """
    return metrics.sqnr_db(exact, other), 100 * float((exact.argmax(-1) == other.argmax(-1)).double().mean())


def sensitivity(model: nn.Module, loader: Iterable[Any], ranges: Ranges, scheme: Scheme) -> list[Sensitivity]:
    """Each layer quantized alone, and each layer alone left in float, in the order of the model.

    Agreement with the float model stands in for accuracy: it needs no labels.

    Raises:
        NoLayersError, NotFiniteError, CalibrationError, GuardError: as in :mod:`qhelpers.check.simulate`.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    >>> [row.name for row in sensitivity(net, [torch.ones(1, 2)], {}, Scheme())]
    ['0', '2']
    """
    batches, layers = input_batches(loader), find_layers(model).known
    exact = _exact(model, batches)

    def measure(weights: Collection[str], activations: Collection[str]) -> tuple[float, float]:
        with simulated(model, ranges, scheme, weights, activations):
            return compare_outputs(exact, outputs(model, batches))

    def row(name: str) -> Sensitivity:
        own = {other for other in layers if layers[other].weight is layers[name].weight}  # shared weights go together
        return Sensitivity(name, *measure(own, own), *measure({*layers} - own, {*ranges} - own))

    return [row(name) for name in layers]


def _exact(model: nn.Module, batches: list[Tensor]) -> Tensor:
    found = outputs(model, batches)
    if not bool(torch.isfinite(found).all()):
        raise NotFiniteError("On these inputs the float model's own outputs are NaN or infinite.")
    return found


def layer_sqnr(
    model: nn.Module, loader: Iterable[Any], ranges: Ranges, scheme: Scheme
) -> dict[str, tuple[float, float]]:
    """For each layer the SQNR in dB of its own rounded weights on float inputs, and that of all errors up to it.

    Both at the layer's output before its activation function: the first is local, the second accumulated.

    >>> net = nn.Sequential(nn.Linear(2, 2)).eval()
    >>> local, accumulated = layer_sqnr(net, [torch.ones(1, 2)], {}, Scheme())["0"]
    >>> abs(local - accumulated) < 1e-3
    True
    """
    layers = find_layers(model).known
    rounding = {name: rounding_error(layer, scheme) for name, layer in layers.items()}
    exact: dict[str, list[Tensor]] = {name: [] for name in layers}
    own: dict[str, list[Tensor]] = {name: [] for name in layers}
    every: dict[str, list[Tensor]] = {name: [] for name in layers}

    def in_float(name: str, inputs: Tensor, output: Tensor) -> None:
        exact[name].append(output)
        own[name].append(output + apply_weight(layers[name], inputs, rounding[name]))

    batches = input_batches(loader)
    with watching(layers, in_float):
        outputs(model, batches)
    with simulated(model, ranges, scheme), watching(layers, lambda name, _, output: every[name].append(output)):
        outputs(model, batches)
    joined = {name: [torch.cat(found[name]) for found in (exact, own, every)] for name in layers if exact[name]}
    return {name: (metrics.sqnr_db(a, b), metrics.sqnr_db(a, c)) for name, (a, b, c) in joined.items()}


def _of_norms(model: nn.Module, names: list[str]) -> str:
    """What to do about batch norms: folding one that does not alone read its layer would change the float model."""
    try:
        first = [name for name in names if name in folding.foldable(model)]
    except folding.NotFollowedError:
        return "; int8 would have one folded that alone reads a convolution or Linear: fuse only such ones first"
    if not first:
        return "; not to be fused, since it does not alone read a convolution or Linear: it costs int8 conversions"
    others = "; fusing another one would change the model" if len(first) < len(names) else ""
    which = f" {', '.join(first[:3])}{', …' * (len(first) > 3)}" if others else ""
    return f"; int8 would have it folded, so fuse{which} first{others}"


def diagnose(
    model: nn.Module, loader: Iterable[Any], calibration_loader: Iterable[Any], scheme: Scheme | None = None
) -> Diagnosis:
    """Ask in the order of Nagel et al. 2021, and name the layer that does the damage, if there is one.

    Args:
        model: float, fused, in evaluation mode; it is left as it was.
        loader: inputs on which outputs are compared; a few dozen are enough.
        calibration_loader: inputs over which activations find their ranges.
        scheme: eight bits and one scale for each tensor if None.

    Raises:
        NoLayersError, NotFiniteError, CalibrationError, GuardError: as in :mod:`qhelpers.check.simulate`.

    >>> found = diagnose(nn.Sequential(nn.Linear(2, 2)).eval(), [torch.ones(1, 2)], [torch.ones(1, 2)])
    >>> found.verdicts[0]
    "Shares are of 1 inputs that keep the float model's class; labels play no part."
    """
    scheme = scheme or Scheme()
    batches, layers = input_batches(loader), find_layers(model)
    exact, n = _exact(model, batches), sum(map(len, batches))
    ranges = activation_ranges(model, calibration_loader)
    verdicts = [f"Shares are of {n} inputs that keep the float model's class; labels play no part."]
    if n < FEW or exact.shape[-1] < 2:
        verdicts.append("Here they say little: go by the SQNR.")
    for kind in sorted(set(layers.unknown.values())):
        names = [name or "the model itself" for name, its_kind in layers.unknown.items() if its_kind == kind]
        shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        hint = _of_norms(model, names) if "BatchNorm" in kind else ""
        verdicts.append(f"Passed through in float: {kind} ({shown}){hint}.")

    def tried(words: str, one: Scheme) -> float:
        with simulated(model, ranges, one):
            decibel, same = compare_outputs(exact, outputs(model, batches))
        verdicts.append(f"{words}: {same:.0f} % keep their class, {decibel:.1f} dB.")
        return decibel

    if tried("16 bits", Scheme(16, 16, scheme.per_channel)) < SOUND_DB:
        verdicts.append("Already 16 bits are too few: look at the ranges and the pipeline before you blame int8.")
    whole = tried("All of it", scheme)
    if None not in (scheme.weight_bits, scheme.activation_bits):
        in_weights = tried("Weights only", Scheme(scheme.weight_bits, None, scheme.per_channel))
        in_activations = tried("Activations only", Scheme(None, scheme.activation_bits))
        verdicts.append(f"The {'weights' if in_weights < in_activations else 'activations'} do more damage.")
    rows = sensitivity(model, batches, ranges, scheme)
    worst = max(rows, key=lambda row: row.left_out_db)
    gain = worst.left_out_db - whole
    culprit = worst.name if whole < SOUND_DB and gain >= CULPRIT_DB else None
    if whole >= SOUND_DB:
        verdicts.append(f"Nothing to mend: rounding is {SOUND_DB:.0f} dB or more below the outputs.")
    elif culprit is None:
        verdicts.append(f"No single culprit: leaving one layer in float gains {gain:.1f} dB at most.")
    else:
        peaks = channel_ranges(layers.known[culprit])
        ratio = float(peaks.max() / peaks.median().clamp(min=torch.finfo(torch.float32).tiny))
        verdicts.append(
            f"Culprit: {culprit}. Left in float it gains {gain:.1f} dB, and {worst.left_out_same:.0f} % keep their "
            f"class; its largest channel range is {ratio:.0f} times the median, {int((peaks == 0).sum())} are zero."
        )
    ruinous = [row.name for row in rows if row.alone_db < whole + ALSO_DB and row.name != culprit]
    if ruinous and whole < SOUND_DB:
        verdicts.append(f"Alone within {ALSO_DB:.0f} dB of all together: {', '.join(ruinous)}.")
    return Diagnosis(culprit, verdicts, rows, layers.unknown)
