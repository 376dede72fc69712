"""Whether a network that collapses with per-tensor weights owes it to dead channels, and which repairs help it.

Writes qhelpers/book/results/dead_channels.json: the book's checkpoint, and networks of other seeds, which are not
committed. Train those first, about six minutes each on one thread:

    for s in 0 4; do python -m experiments.digits_float --seed $s --target build/seeds/seed$s.pt; done
    python -m experiments.dead_channels build/seeds/seed?.pt

All figures are of the 500 validation digits, with weights of 8 and 6 bits and activations of 8, simulated. A channel is
dead if all 3,500 training digits leave its input at zero.
"""

import argparse
import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments import runs
from qhelpers import metrics
from qhelpers.check import diagnose, simulate
from qhelpers.tasks import checkpoints, digits

BITS = (8, 6)  # of weights


def dead_channels(fused: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """For each depthwise convolution, which channels read nothing but zeros on the images: bool ``(channels,)``."""
    layers: dict[str, Any] = diagnose.find_layers(fused).known
    depthwise = {name: layer for name, layer in layers.items() if getattr(layer, "groups", 1) > 1}
    peaks = {name: torch.zeros(layer.in_channels) for name, layer in depthwise.items()}

    def look(name: str, inputs: Tensor, _: Tensor) -> None:
        peaks[name] = torch.maximum(peaks[name], inputs.abs().amax((0, 2, 3)))

    with simulate.watching(depthwise, look):
        for images, _ in batches:
            simulate.outputs(fused, [images])
    return {name: peak == 0 for name, peak in peaks.items()}


def silenced(fused: nn.Module, dead: dict[str, Tensor]) -> nn.Module:
    """A copy in which dead channels have weights of 0: it computes the same wherever they are dead."""
    fused = copy.deepcopy(fused)
    layers: dict[str, Any] = diagnose.find_layers(fused).known
    with torch.no_grad():
        for name, gone in dead.items():
            layers[name].weight[gone] = 0
    return fused


def widest(fused: nn.Module, dead: dict[str, Tensor]) -> dict[str, Any]:
    """The largest ratio of the widest to the median channel of a depthwise layer, with and without dead channels."""
    layers = diagnose.find_layers(fused).known
    peaks = {name: diagnose.channel_ranges(layers[name]) for name in dead}
    ratios = {name: float(values.max() / values.median()) for name, values in peaks.items()}
    alive = {name: values[~dead[name]] for name, values in peaks.items()}
    layer = max(ratios, key=lambda name: ratios[name])
    return {
        "dead": int(sum(gone.sum() for gone in dead.values())),
        "layer": layer,
        "ratio": round(ratios[layer], 1),
        "widest_is_dead": bool(dead[layer][peaks[layer].argmax()]),
        "ratio_alive": round(max(float(values.max() / values.median()) for values in alive.values()), 1),
    }


def measure(fused: nn.Module) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Of one float network: its widest channels, and what each repair keeps, in pairs with the one before."""
    batches = list(digits.loader("validation", batch_size=50))
    labels = torch.cat([wanted for _, wanted in batches])
    images, seen = simulate.input_batches(batches), list(digits.calibration_batches(64))
    dead = dead_channels(fused, digits.loader("train", batch_size=100))
    quiet, exact = silenced(fused, dead), simulate.outputs(fused, images)
    about = widest(fused, dead) | {"float": percent(exact, labels)}
    about["float_changed_by"] = float(f"{(simulate.outputs(quiet, images) - exact).abs().max():.1e}")
    repairs = {
        "nothing": (fused, False),
        "silenced": (quiet, False),
        "silenced, equalized": (diagnose.equalize(quiet)[0], False),
        "per channel": (fused, True),
    }
    rows = []
    for bits in BITS:
        before = exact
        for repair, (net, per_channel) in repairs.items():
            ranges = diagnose.activation_ranges(net, seen)
            with diagnose.simulated(net, ranges, diagnose.Scheme(bits, 8, per_channel)):
                found = simulate.outputs(net, images)
            pair = metrics.paired(before, found, labels)
            row = {"bits": bits, "repair": repair, "top1": percent(found, labels)}
            row |= {"sqnr_db": round(metrics.sqnr_db(exact, found), 1)}
            rows.append(row | {"lost": pair.lost, "won": pair.won, "p": float(f"{pair.p_value:.2g}")})
            before = found
    return about, rows


def percent(answers: Tensor, labels: Tensor) -> float:
    """Top-1."""
    return round(100 * float((answers.argmax(1) == labels).double().mean()), 1)


def networks(paths: list[Path]) -> dict[str, nn.Module]:
    """The book's float checkpoint and others, batch norms folded."""
    found = {"the book's": checkpoints.load_digits_float()}
    for path in paths:
        model = checkpoints.skeleton(10, quantize=False)
        found[f"seed {path.stem[-1]}"] = checkpoints.load_into(model, checkpoints.load_state(path), path.name)
    for model in found.values():
        model.eval().fuse_model(is_qat=False)  # type: ignore[operator]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*", type=Path, help="named …<seed>.pt")
    torch.set_num_threads(1)
    abouts, rows = [], []
    for name, fused in networks(parser.parse_args().checkpoints).items():
        about, its_rows = measure(fused)
        abouts.append({"network": name} | about)
        rows += [{"network": name} | row for row in its_rows]
        print(abouts[-1], *its_rows, sep="\n", flush=True)
    measured = (
        "top-1 in % on the 500 validation digits; lost and won against the repair before, the first against float"
    )
    runs.write_results("dead_channels", "experiments/dead_channels.py", measured, rows, networks=abouts)


if __name__ == "__main__":
    main()
