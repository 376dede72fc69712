"""The page of the playground: its controls, and the network and digits that are packed into it.

The arithmetic runs in ``book/_static/playground.js``; the chapter shows the same arithmetic in PyTorch.
"""

import copy
import html
import io
import json
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from IPython.display import HTML
from PIL import Image
from torch import Tensor, nn

from qhelpers.book import figures

COLUMNS = 25  # digits side by side in the picture that holds them
MARKUP = Path(__file__).parent / "playground.html"


class PlaygroundError(ValueError):
    """A network or digits that the page cannot hold."""


def packed_network(net: nn.Module, size: int = 28) -> dict[str, Any]:
    """The convolutions of a network as the page reads them: their shapes, and their numbers as float16.

    Args:
        net: convolutions and ReLUs that are called one after another; square images, kernels and strides.
        size: height and width of its input in pixels.

    Raises:
        PlaygroundError: for another layer, or numbers that float16 does not hold.

    >>> packed_network(nn.Sequential(nn.Conv2d(1, 2, 3).half().float()))["layers"][0]["out"]
    26
    """
    layers: list[dict[str, Any]] = []
    numbers = []
    for name, layer in net.named_children():
        if isinstance(layer, nn.ReLU) and layers:
            layers[-1]["relu"] = True
        elif isinstance(layer, nn.Conv2d):
            kernel, stride, padding = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
            out = (size + 2 * padding - kernel) // stride + 1
            shape = {"inputs": layer.in_channels, "outputs": layer.out_channels, "size": size, "out": out}
            shape |= {"kernel": kernel, "stride": stride, "padding": padding}
            layers.append({"name": name, **shape, "depthwise": layer.groups > 1, "relu": False})
            assert layer.bias is not None
            numbers += [layer.weight.detach().flatten().numpy(), layer.bias.detach().numpy()]
            size = out
        elif not isinstance(layer, nn.Flatten):
            raise PlaygroundError(f"{name} is a {type(layer).__name__}: the page runs convolutions and ReLUs only.")
    joined = np.concatenate(numbers)
    if not np.array_equal(joined, joined.astype("<f2").astype(joined.dtype)):
        raise PlaygroundError("A weight is no float16: round the network first, as its committed file does.")
    return {"layers": layers, "weights": b64encode(joined.astype("<f2").tobytes()).decode()}


def packed_digits(images: Tensor) -> dict[str, Any]:
    """Digits as one lossless picture.

    Args:
        images: uint8 of shape ``(n, 28, 28)``; n a multiple of 25.

    Raises:
        PlaygroundError: for another number of digits.

    >>> packed_digits(torch.zeros(25, 28, 28, dtype=torch.uint8))["count"]
    25
    """
    count, height, width = images.shape
    if count % COLUMNS or not count:
        raise PlaygroundError(f"{count} does not fill rows of {COLUMNS} digits.")
    rows = images.numpy().reshape(-1, COLUMNS, height, width).transpose(0, 2, 1, 3)
    buffer = io.BytesIO()
    picture = Image.fromarray(rows.reshape(-1, COLUMNS * width)).convert("RGB")
    picture.save(buffer, "WEBP", lossless=True, quality=100, method=4)
    data = b64encode(buffer.getvalue()).decode()
    return {
        "picture": f"data:image/webp;base64,{data}",
        "columns": COLUMNS,
        "count": count,
        "sum": int(images.long().sum()),
    }


def picture(net: nn.Sequential, images: Tensor, labels: Tensor, bits: int = 3) -> tuple[str, str]:
    """A digit that a network reads, but not once its weights have few bits and one scale for each tensor.

    Args:
        net: takes float32 images ``(n, 1, 28, 28)`` with values 0 to 1, and gives logits ``(n, 10)``.
        images: uint8 of shape ``(n, 28, 28)``.
        labels: int64 of shape ``(n,)``.
        bits: of the weights; activations stay in float.

    Returns:
        The digit beside both networks' logits as SVG, and their answers in words.

    Raises:
        PlaygroundError: if the rounded network reads every digit that the other one reads.
    """
    coarse = copy.deepcopy(net)
    with torch.no_grad():
        for layer in coarse:
            if isinstance(layer, nn.Conv2d):
                step = layer.weight.abs().max() / (2 ** (bits - 1) - 1)
                layer.weight.copy_((layer.weight / step).round() * step)
        exact, given = net(images[:, None] / 255), coarse(images[:, None] / 255)
    lost = (exact.argmax(1) == labels) & (given.argmax(1) != labels)
    if not lost.any():
        raise PlaygroundError(f"Weights of {bits} bits lose none of these digits: there is nothing to show.")
    shown = int(lost.nonzero()[0])
    words = f"float says {int(exact[shown].argmax())}, weights of {bits} bits say {int(given[shown].argmax())}"
    figure, (left, right) = figures.new_figure(7, 2.4, ncols=2, width_ratios=[1, 2])
    left.imshow(images[shown].numpy(), cmap="gray")
    left.set(xticks=[], yticks=[], title="a test digit")
    places = np.arange(10)
    right.bar(places - 0.2, exact[shown].numpy(), 0.4, color=figures.FLOAT, label="float")
    right.bar(places + 0.2, given[shown].numpy(), 0.4, color=figures.INT8, label=f"{bits} bits")
    right.set(xticks=places, xlabel="answer", ylabel="logit")
    right.legend(frameon=False)
    return figures.svg(figure, f"A handwritten {int(labels[shown])} and ten logits of two networks: {words}."), words


def page(data: Mapping[str, Any], still: str, caption: str) -> HTML:
    """The playground, or in its place a picture of it where scripts or the script's file are missing.

    Args:
        data: ``layers`` and ``weights`` of :func:`packed_network`, ``test`` (with ``labels``) and ``calibration`` of
            :func:`packed_digits`, ``huge`` (the ``channel`` of the first layer and the ``factor``), ``reduced`` (bits).
        still: HTML of the picture, with alt text.
        caption: what the playground would show.

    Raises:
        PlaygroundError: if the picture or its caption is empty.

    >>> page({"layers": []}, "", "")
    Traceback (most recent call last):
        ...
    qhelpers.book.playground.PlaygroundError: Without scripts the page shows a picture and its caption: give both.
    """
    if not still.strip() or not caption.strip():
        raise PlaygroundError("Without scripts the page shows a picture and its caption: give both.")
    options = "".join(f'<option value="{layer["name"]}">{layer["name"]}</option>' for layer in data["layers"])
    answers = "".join(
        f'<tr><th scope="row">{digit}</th>'
        + "".join(
            f'<td class="pg-{kind}" id="pg-{kind}-{digit}"><span class="pg-bar"></span><span>–</span></td>'
            for kind in ("float", "int8")
        )
        + "</tr>"
        for digit in range(10)
    )
    rows = "".join(_row(layer) for layer in data["layers"])
    parts = {"OPTIONS": options, "ANSWERS": answers, "ROWS": rows, "STILL": still, "CAPTION": html.escape(caption)}
    text = MARKUP.read_text(encoding="utf-8")
    for key, part in parts.items():
        text = text.replace(f"<!--{key}-->", part)
    packed = json.dumps(data, separators=(",", ":")).replace("</", "<\\/")
    return HTML(text.replace("<!--DATA-->", packed))  # type: ignore[no-untyped-call]


def _row(layer: Mapping[str, Any]) -> str:
    name, kind = layer["name"], "depthwise " if layer["depthwise"] else ""
    kernel = f"{layer['kernel']}×{layer['kernel']}"
    return (
        f'<tr id="pg-layer-{name}"><th scope="row">{name}<small>{kind}{kernel}, {layer["outputs"]} outputs</small></th>'
        f'<td><input type="checkbox" data-key="float" value="{name}" aria-label="Keep {name} in float"></td>'
        "<td></td><td></td><td></td></tr>"
    )
