"""Train the playground's small network on the digits, from scratch, and fold its batch norms.

Writes qhelpers/tasks/weights/playground_float16.pt. About two minutes on one thread. An interrupted run resumes.

    python -m experiments.digits_playground
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import fusion

from experiments import common, loop
from qhelpers.tasks import digits, networks

STEPS, BATCH, PEAK = 2800, 50, 0.05  # 40 passes over the training digits


def batch_of(step: int, seed: int) -> tuple[Tensor, Tensor]:
    """Augmented training digits at their own size, 28x28, with values 0 to 1."""
    raw, labels = digits.dataset("train").tensors
    each = len(raw) // BATCH
    order = torch.randperm(len(raw), generator=torch.Generator().manual_seed(1009 * seed + step // each))
    chosen = order[(step % each) * BATCH :][:BATCH]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1_000_003 * seed + step)
        augmented = torch.stack([digits.AUGMENT(image[None]) for image in raw[chosen]])
    return augmented.float() / 255, labels[chosen]


def with_norms(net: networks.PlaygroundNet) -> nn.Sequential:
    """The network as it is trained: a batch norm behind each convolution but the last."""
    layers: list[nn.Module] = []
    for name, layer in net.named_children():
        layers.append(layer)
        if isinstance(layer, nn.Conv2d) and name != "head":
            layers.append(nn.BatchNorm2d(layer.out_channels))
    return nn.Sequential(*layers)


def folded(trained: nn.Sequential) -> networks.PlaygroundNet:
    """The network without batch norms that computes the same."""
    layers = list(trained.eval())
    plain = [
        fusion.fuse_conv_bn_eval(layer, after) if isinstance(after, nn.BatchNorm2d) else layer
        for layer, after in zip(layers, [*layers[1:], None], strict=True)
        if not isinstance(layer, nn.BatchNorm2d)
    ]
    net = networks.PlaygroundNet()
    for name, layer in zip([name for name, _ in net.named_children()], plain, strict=True):
        setattr(net, name, layer)
    return net.eval()


def accuracy(net: nn.Module, split: digits.Split) -> float:
    """Top-1 on a split, in percent."""
    raw, labels = digits.dataset(split).tensors
    with torch.inference_mode():
        return float((net(raw[:, None].float() / 255).argmax(1) == labels).float().mean() * 100)


def main() -> None:
    arguments = common.parser(__doc__, "playground_float16.pt").parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    model = with_norms(networks.PlaygroundNet()).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=PEAK, momentum=0.9, nesterov=True, weight_decay=1e-4)
    loop.fit(
        model,
        lambda step: batch_of(step, arguments.seed),
        optimizer,
        STEPS,
        schedule=torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=STEPS),
        seed=arguments.seed,
        state_file=common.state_file("digits_playground", arguments),
    )
    net = folded(model)
    common.save_in_half(net, arguments.target)
    for split in ("validation", "test"):
        print(f"{split} {accuracy(net, split):.1f} %")
    print(f"written to {arguments.target}")


if __name__ == "__main__":
    main()
