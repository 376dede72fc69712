"""Fine-tune the published int8 MobileNetV2, made float again, on the digits.

Writes qhelpers/weights/digits_float.pt. Needs the published weights in torch's hub cache, or a network.
About six minutes on two cores. An interrupted run resumes at the last finished epoch.

    python -m training.digits_float
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from torchvision.models import quantization as tvq

from qhelpers import data, models, published
from training import common

EPOCHS, BATCH = 5, 32


def float_from_int8(int8: nn.Module) -> nn.Module:
    """A float MobileNetV2 that computes what the int8 one does, each batch norm as an identity."""
    model = tvq.mobilenet_v2(weights=None, quantize=False).eval()
    pairs = _conv_norm_pairs(model)
    for conv_name, norm_name in pairs:
        source = int8.get_submodule(conv_name)
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        conv.weight.data = source.weight().dequantize()
        norm.weight.data.fill_((1 + norm.eps) ** 0.5)
        norm.bias.data = source.bias().detach().clone()
    head = int8.classifier[1]
    model.classifier[1].weight.data = head.weight().dequantize()
    model.classifier[1].bias.data = head.bias().detach().clone()
    return model


def _conv_norm_pairs(model: nn.Module) -> list[tuple[str, str]]:
    names = [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))]
    return list(zip(names[::2], names[1::2], strict=True))


@torch.no_grad()
def give_norms_statistics(model: nn.Module, images: torch.Tensor) -> None:
    """Give each batch norm the mean and variance of its input, and the affine part that undoes them."""

    def measure(norm: nn.BatchNorm2d, inputs: tuple[torch.Tensor]) -> None:
        mean = inputs[0].mean((0, 2, 3))
        variance = inputs[0].var((0, 2, 3)).clamp_min(1e-4)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.add_(mean)

    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    before = model.eval()(images)
    for hook in hooks:
        hook.remove()
    assert torch.allclose(before, model(images), atol=1e-2), "the function changed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--target", type=Path, default=models.WEIGHTS_FOLDER / "digits_float.pt")
    parser.add_argument("--fresh", action="store_true", help="do not resume an interrupted run")
    arguments = parser.parse_args()
    state_file = Path(f"build/training/digits_float_seed{arguments.seed}.pt")
    torch.manual_seed(arguments.seed)
    found = published.pretrained_mobilenet_v2()
    if not found.is_imagenet:
        raise SystemExit("The published weights are needed. " + " ".join(found.notes))
    model = float_from_int8(found.model)
    images, _ = next(iter(data.digit_loader("train", batch_size=250, limit=250)))
    give_norms_statistics(model, images)
    model.classifier[1] = nn.Linear(1280, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9, nesterov=True, weight_decay=1e-4)
    steps = len(common.training_batches(BATCH, 0))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.03, epochs=EPOCHS, steps_per_epoch=steps)
    common.train_on_digits(
        model,
        optimizer,
        schedule,
        epochs=EPOCHS,
        batch_size=BATCH,
        seed=arguments.seed,
        state_file=state_file,
        fresh=arguments.fresh,
    )
    common.save_whole(model.eval().state_dict(), arguments.target)
    print(f"test {common.accuracy(model, 'test'):.1f} %, written to {arguments.target}")


if __name__ == "__main__":
    main()
