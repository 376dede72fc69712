"""Check published architectures in full size, with random weights, for every target: a table of what became of each.

    python -m tools.check_strangers [--models resnet18 vit_b_16] [--targets executorch onnx-x86]

Fails if a model ends neither with a file nor with a refusal in words. All models and targets take some hours.
"""

import argparse
import sys
import tempfile
import time
from typing import Any

import torch
from torchvision import models

from qhelpers import check
from qhelpers.check.errors import CheckError
from qhelpers.check.targets import TARGETS

MODELS = (
    *("resnet18", "resnet50", "mobilenet_v3_large", "efficientnet_b0", "densenet121", "shufflenet_v2_x1_0"),
    *("convnext_tiny", "vit_b_16", "swin_t", "regnet_y_400mf", "mnasnet1_0", "googlenet"),
)
N, SIZE = 16, 224
COLUMNS = "model", "target", "became", "seconds", "MB", "of float", "dB", "int8 layers", "times float's speed"


def model(name: str) -> torch.nn.Module:
    """With random weights, statistics in its batch norms, and no head that answers zero."""
    more = {"init_weights": True, "aux_logits": False} if name == "googlenet" else {}
    net: torch.nn.Module = models.get_model(name, weights=None, **more)
    for value in net.parameters():
        if value.ndim > 1 and not bool(value.any()):
            torch.nn.init.normal_(value, std=0.02)
    for layer in net.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.momentum = None
    with torch.no_grad():
        net.train()(torch.randn(N, 3, SIZE, SIZE))
    return net.eval()


def row(name: str, target: str) -> tuple[list[str], bool]:
    """One line of the table, and whether it is one that is allowed."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        batches = [torch.randn(1, 3, SIZE, SIZE) for _ in range(2 * N)]
        try:
            report = check.run(
                model(name),
                calibration=batches[:N],
                validation=batches[N:],
                target=target,
                folder=folder,
                progress=False,
            ).report
        except CheckError as error:
            return [name, target, f"refused: {error}", f"{time.perf_counter() - start:.0f}"], True
    seconds = f"{time.perf_counter() - start:.0f}"
    said = [report["do"], *report["notes"], *(one["why"] for one in report["tries"])]
    worded = not any("It failed:" in words or "Traceback" in words for words in said)
    if report["status"] == "refused":
        return [name, target, f"refused: {report['do']}", seconds], worded
    return [name, target, report["status"], seconds, *_figures(report)], worded


def _figures(report: dict[str, Any]) -> list[str]:
    file, census, own = report["file"], report["census"], (report["speed"] or {}).get("own")
    layers = sum(len(census[key]) for key in ("int8", "float", "absent"))
    return [
        f"{file['mb']:.1f}",
        f"{100 * file['mb'] / file['float_mb']:.0f} %",
        f"{report['quality']['validation']['sqnr_db']:.1f}",
        f"{len(census['int8'])} of {layers}",
        f"{own['ratio']:.2f} ({own['low']:.2f} to {own['high']:.2f})" if own else "–",
    ]


def main() -> int:
    """Print a line for each model and target as it is done; 1 if one is not allowed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME", help="torchvision's names")
    parser.add_argument("--targets", nargs="+", default=[*TARGETS], choices=[*TARGETS])
    asked = parser.parse_args()
    print(" | ".join(COLUMNS), flush=True)
    failed = 0
    for name in asked.models:
        for target in asked.targets:
            cells, allowed = row(name, target)
            failed += not allowed
            print(" | ".join(cells) + ("" if allowed else " | NOT IN WORDS"), flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
