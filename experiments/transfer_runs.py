"""Transfer learning from ImageNet to the digits: frozen or fine-tuned, float or int8, with 50 to 3,500 images.

Writes qhelpers/book/results/transfer_runs.json. Needs the published weights in torch's hub cache, or a network.
About 25 minutes on two cores; an interrupted call goes on with the runs that it lacks. Choices are made
on the 500 validation digits; the 1,000 test digits are only reported.

    python -m experiments.transfer_runs
"""

import copy
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao import quantization as tq
from torch.ao.nn.intrinsic.qat import freeze_bn_stats

from experiments import common, loop, runs
from experiments.digit_features import features
from experiments.runs import Run
from qhelpers import engines, metrics
from qhelpers.tasks import digits, published

BATCH = 16
STATE = Path("build/experiments/transfer_runs.json")
STEPS = {5: 60, 50: 120, 350: 240}  # by images per class
DECAYS = (0.01, 0.1, 1.0)
# qnnpack's own default has per-tensor weights, which one channel that digits never excite can spoil
PER_CHANNEL = tq.QConfig(
    activation=tq.get_default_qat_qconfig("qnnpack").activation, weight=tq.default_fused_per_channel_wt_fake_quant
)
METHODS = ("int8 features", "int8 features, augmented", "float features", "float whole", "int8 whole")
RUNS: list[Run] = [
    {"method": method, "images": 10 * each, "seed": seed} for seed in range(3) for each in STEPS for method in METHODS
]


@cache
def all_features(kind: str, split: digits.Split) -> Tensor:
    """Pooled features of a split, ``(n, 1280)`` in float: of the int8 network, or of it made float."""
    if kind == "int8":
        return digits.features(split)
    kept = STATE.with_name(f"float_features_{split}.pt")
    if not kept.is_file():
        model = published.float_from_int8(common.pretrained())
        with torch.inference_mode():
            parts = [features(model, images) for images, _ in digits.loader(split, batch_size=25)]
        common.save(torch.cat(parts), kept)
    loaded: Tensor = torch.load(kept, weights_only=True)
    return loaded


def train_head(inputs: Tensor, labels: Tensor, decay: float, seed: int) -> nn.Linear:
    """A linear classifier of features, 300 steps over all of them at once."""
    torch.manual_seed(seed)
    head = nn.Linear(inputs.shape[1], 10)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2, weight_decay=decay)
    loop.fit(head, lambda step: (inputs, labels), optimizer, 300, seed=seed)
    return head.eval()


def augmented_features(each: int, seed: int) -> tuple[Tensor, Tensor]:
    """int8 features and labels of the very images that the whole network is trained on."""
    model = common.pretrained()
    batches = [digits.training_batch(step, BATCH, seed, each) for step in range(STEPS[each])]
    with engines.using_engine("qnnpack"), torch.inference_mode():
        parts = [features(model, images).dequantize() for images, _ in batches]
    return torch.cat(parts).clone(), torch.cat([labels for _, labels in batches])


def best_head(kind: str, inputs: Tensor, labels: Tensor, seed: int) -> tuple[nn.Linear, dict[str, Any]]:
    """The head whose weight decay does best on the validation digits, and what it reaches."""
    splits = {name: [(all_features(kind, name), digits.dataset(name).tensors[1])] for name in ("validation", "test")}
    heads = {decay: train_head(inputs, labels, decay, seed) for decay in DECAYS}
    reached = {decay: metrics.top1(head, splits["validation"]).percent for decay, head in heads.items()}
    decay = max(reached, key=lambda key: reached[key])
    return heads[decay], {"decay": decay, "validation": reached[decay]} | on_test(heads[decay], splits["test"])


def on_test(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Top-1 in %, and the digit that the model answers for each image, as one string."""
    batches = list(batches)
    with engines.using_engine("qnnpack"), torch.inference_mode():
        answers = torch.cat([model(inputs).argmax(1) for inputs, _ in batches])
    right = answers == torch.cat([labels for _, labels in batches])
    return {"test": round(100 * float(right.double().mean()), 1), "answers": "".join(map(str, answers.tolist()))}


def measure(run: Run) -> Run:
    """Train as the run says, and measure what comes out."""
    torch.manual_seed(run["seed"])
    each, seed = run["images"] // 10, run["seed"]
    positions = digits.balanced_positions(each, seed)
    if run["method"] == "int8 features, augmented":
        return best_head("int8", *augmented_features(each, seed), seed)[1]
    kind, part = run["method"].split()
    head, found = best_head(
        kind, all_features(kind, "train")[positions], digits.dataset("train").tensors[1][positions], seed
    )
    if part == "features":
        return found
    model = published.float_from_int8(common.pretrained())
    raw, _ = digits.balanced_subset(each, seed).tensors
    few = raw[torch.randperm(len(raw), generator=torch.Generator().manual_seed(seed))[:250]]
    model.classifier[1] = head
    published.give_norms_statistics(model, digits.prepare_images(few))
    quantized, steps = kind == "int8", STEPS[each]
    model.train()
    if quantized:
        model.fuse_model(is_qat=True)
        model.qconfig = PER_CHANNEL
        tq.prepare_qat(model, inplace=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=run.get("lr", 3e-3), momentum=0.9)
    loop.fit(
        model,
        lambda step: digits.training_batch(step, BATCH, seed, each),
        optimizer,
        steps,
        schedule=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
        before_step={2 * steps // 3: freeze},
        seed=seed,
    )
    model.eval()
    if quantized:
        with engines.using_engine("qnnpack"):
            model = tq.convert(copy.deepcopy(model))
    with engines.using_engine("qnnpack"):
        validation = metrics.top1(model, digits.loader("validation", batch_size=25)).percent
    return {"steps": steps, "validation": validation} | on_test(model, digits.loader("test", batch_size=25))


def freeze(model: nn.Module) -> None:
    """From here on statistics stay, and ranges if there are any."""
    model.apply(tq.disable_observer)
    model.apply(freeze_bn_stats)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def main() -> None:
    rows = runs.run_all(measure, RUNS, STATE)
    runs.write_results("transfer_runs", "experiments/transfer_runs.py", "top-1 in %, batches of 16 digits", rows)


if __name__ == "__main__":
    main()
