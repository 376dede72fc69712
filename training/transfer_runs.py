"""Transfer learning from ImageNet to the digits: frozen or fine-tuned, float or int8, with 50 to 3,500 images.

Writes training/results/transfer_runs.json. Needs the published weights in torch's hub cache, or a network.
About 25 minutes on two cores; an interrupted call goes on with the runs that it lacks. Choices are made
on the 500 validation digits; the 1,000 test digits are only reported.

    python -m training.transfer_runs
"""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.ao import quantization as tq
from torch.ao.nn.intrinsic.qat import freeze_bn_stats

from qhelpers import data, engines, metrics, published, training
from training import experiments
from training.digit_features import features
from training.experiments import Run

BATCH = 16
STATE = Path("build/training/transfer_runs.json")
STEPS = {5: 100, 50: 200, 350: 400}  # by images per class
DECAYS = (0.01, 0.1, 1.0)
METHODS = ("int8 features", "float features", "float whole", "int8 whole")
RUNS: list[Run] = [
    {"method": method, "images": 10 * each, "seed": seed}
    for seed in range(3)
    for each in STEPS
    for method in METHODS
]


def pretrained() -> nn.Module:
    """The published int8 network."""
    found = published.pretrained_mobilenet_v2()
    if not found.is_imagenet:
        raise SystemExit("The published weights are needed. " + " ".join(found.notes))
    return found.model


def all_features(model: nn.Module, split: data.Split) -> Tensor:
    """Pooled features of a split in float."""
    with engines.using_engine("qnnpack"), torch.inference_mode():
        parts = [features(model, images).dequantize() for images, _ in data.digit_loader(split, batch_size=25)]
    return torch.cat(parts).clone()


def train_head(inputs: Tensor, labels: Tensor, decay: float, seed: int) -> nn.Linear:
    """A linear classifier of features, 300 steps over all of them at once."""
    torch.manual_seed(seed)
    head = nn.Linear(inputs.shape[1], 10)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2, weight_decay=decay)
    training.fit(head, lambda step: (inputs, labels), optimizer, 300, seed=seed)
    return head.eval()


def best_head(model: nn.Module, positions: Tensor, seed: int) -> tuple[nn.Linear, dict[str, float]]:
    """The head whose weight decay does best on the validation digits, and what it reaches."""
    inputs, labels = all_features(model, "train")[positions], data.digits("train").tensors[1][positions]
    splits = {name: [(all_features(model, name), data.digits(name).tensors[1])] for name in ("validation", "test")}
    heads = {decay: train_head(inputs, labels, decay, seed) for decay in DECAYS}
    reached = {decay: metrics.top1(head, splits["validation"]).percent for decay, head in heads.items()}
    decay = max(reached, key=lambda key: reached[key])
    test = metrics.top1(heads[decay], splits["test"]).percent
    return heads[decay], {"decay": decay, "validation": reached[decay], "test": test}


def top1(model: nn.Module, split: data.Split) -> float:
    """In percent."""
    with engines.using_engine("qnnpack"):
        return metrics.top1(model, data.digit_loader(split, batch_size=25)).percent


def measure(run: Run) -> Run:
    """Train as the run says, and measure what comes out."""
    torch.manual_seed(run["seed"])
    each, seed = run["images"] // 10, run["seed"]
    positions, int8 = data.few_positions(each, seed), pretrained()
    if run["method"] == "int8 features":
        return best_head(int8, positions, seed)[1]
    model = published.float_from_int8(int8)
    if run["method"] == "float features":
        return best_head(model, positions, seed)[1]
    raw, _ = data.few_digits(each, seed).tensors
    few = raw[torch.randperm(len(raw), generator=torch.Generator().manual_seed(seed))[:250]]
    model.classifier[1] = best_head(model, positions, seed)[0]
    published.give_norms_statistics(model, data.prepare_images(few))
    quantized, steps = run["method"] == "int8 whole", STEPS[each]
    model.train()
    if quantized:
        model.fuse_model(is_qat=True)
        model.qconfig = tq.get_default_qat_qconfig("qnnpack")
        tq.prepare_qat(model, inplace=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=run.get("lr", 1e-2), momentum=0.9)
    training.fit(
        model,
        lambda step: data.training_batch(step, BATCH, seed, each),
        optimizer,
        steps,
        schedule=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
        at={2 * steps // 3: freeze} if quantized else {},
        seed=seed,
    )
    model.eval()
    if quantized:
        with engines.using_engine("qnnpack"):
            model = tq.convert(copy.deepcopy(model))
    return {"steps": steps, "validation": top1(model, "validation"), "test": top1(model, "test")}


def freeze(model: nn.Module) -> None:
    """From here on ranges and statistics stay."""
    model.apply(tq.disable_observer)
    model.apply(freeze_bn_stats)


def main() -> None:
    rows = experiments.run_all(measure, RUNS, STATE)
    experiments.write_results("transfer_runs", "training/transfer_runs.py", "top-1 in %, batches of 16 digits", rows)


if __name__ == "__main__":
    main()
