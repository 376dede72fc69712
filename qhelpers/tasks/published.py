"""The int8 MobileNetV2 that PyTorch publishes: from torch's hub cache, a bounded download, or a stand-in."""

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import nn
from torchvision.models import quantization as tvq

from qhelpers import engines
from qhelpers.tasks import checkpoints, downloads

OFFICIAL = tvq.MobileNet_V2_QuantizedWeights.IMAGENET1K_QNNPACK_V1


@dataclass
class Pretrained:
    """What :func:`pretrained_mobilenet_v2` found."""

    model: nn.Module
    source: str  # "hub cache", "download" or "built-in"
    categories: list[str]
    image_size: int  # height and width in pixels of the input that the weights were made for
    notes: list[str] = field(default_factory=list)  # what was tried and why it was passed over
    waited_s: float = 0.0  # seconds spent on the network
    in_cache: bool = False  # whether torchvision's own builder will find these weights in the hub cache

    @property
    def is_imagenet(self) -> bool:
        """Whether these are the published ImageNet weights."""
        return self.source != "built-in"


def pretrained_mobilenet_v2(timeout_s: float = 20.0) -> Pretrained:
    """The published int8 MobileNetV2 if it is available, else the built-in int8 digits model.

    Tried in this order: torch's hub cache (``torch.hub.get_dir()``), a download that is given up after
    ``timeout_s`` seconds, the committed digits model. A file in the cache that cannot be used is left
    where it is; a download is hash-checked before it is renamed into place.

    >>> found = pretrained_mobilenet_v2(timeout_s=0)
    >>> found.source in ("hub cache", "built-in"), found.model.training
    (True, False)
    """
    notes: list[str] = []
    cached = Path(torch.hub.get_dir()) / "checkpoints" / OFFICIAL.url.rsplit("/", 1)[1]
    try:
        if cached.is_file():
            return _published(checkpoints.load_state(cached), "hub cache", notes, in_cache=True)
    except (checkpoints.CheckpointError, OSError) as error:
        notes.append(f"The cached file was left in place and passed over. {error}")
    started = time.monotonic()
    try:
        state, kept = _download(OFFICIAL.url, cached, timeout_s, notes)
        return _published(state, "download", notes, time.monotonic() - started, kept)
    except (checkpoints.CheckpointError, OSError) as error:
        notes.append(f"Nothing usable came from {OFFICIAL.url.split('/')[2]}. {error}")
    waited = time.monotonic() - started
    classes = [str(digit) for digit in range(10)]
    return Pretrained(checkpoints.load_digits_int8(), "built-in", classes, 96, notes, waited)


def _published(
    state: dict[str, Any], source: str, notes: list[str], waited_s: float = 0.0, in_cache: bool = False
) -> Pretrained:
    model = checkpoints.skeleton(1000, quantize=True)
    with engines.using_engine(OFFICIAL.meta["backend"]):  # the engine decides how the weights are packed
        checkpoints.load_into(model, state, "The checkpoint")
    return Pretrained(model, source, list(OFFICIAL.meta["categories"]), 224, notes, waited_s, in_cache)


def _download(url: str, target: Path, timeout_s: float, notes: list[str]) -> tuple[dict[str, Any], bool]:
    """Fetch a state_dict and keep it as ``target``, unless something is there or it cannot be written.

    Returns:
        The state_dict, and whether it was kept.
    """
    # a thread that was left behind may still write into the folder
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        downloaded = Path(folder) / target.name
        hash_prefix = url.rsplit("-", 1)[-1].rsplit("_", 1)[-1].split(".")[0]
        downloads.fetch(url, downloaded, timeout_s, hash_prefix)
        return checkpoints.load_state(downloaded), downloads.keep(downloaded, target, notes)


def float_from_int8(int8: Any) -> nn.Module:
    """A float MobileNetV2 that computes what the int8 one does, within rounding.

    Weights are dequantized; each batch norm becomes an identity with the folded bias.

    Args:
        int8: torchvision's quantizable MobileNetV2 after ``convert``.

    >>> with torch.random.fork_rng(devices=[]):
    ...     model = float_from_int8(checkpoints.load_digits_int8())
    >>> round(sum(p.numel() for p in model.parameters()) / 1e6, 2)
    2.24
    """
    head = int8.classifier[1]
    model: Any = tvq.mobilenet_v2(weights=None, num_classes=head.out_features, quantize=False).eval()
    for conv_name, norm_name in _conv_norm_pairs(model):
        source = int8.get_submodule(conv_name)
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        conv.weight.data = source.weight().dequantize()
        norm.weight.data.fill_((1 + norm.eps) ** 0.5)
        norm.bias.data = source.bias().detach().clone()
    model.classifier[1].weight.data = head.weight().dequantize()
    model.classifier[1].bias.data = head.bias().detach().clone()
    built: nn.Module = model
    return built


def _conv_norm_pairs(model: nn.Module) -> list[tuple[str, str]]:
    names = [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))]
    return list(zip(names[::2], names[1::2], strict=True))


@torch.no_grad()
def give_norms_statistics(model: nn.Module, images: torch.Tensor) -> None:
    """Give each batch norm the mean and variance of its input, and the affine part that undoes them.

    The model's function stays; what training needs, statistics of real activations, is there afterwards.

    Args:
        model: a float network whose batch norms are identities, in evaluation mode.
        images: ``(n, 3, height, width)``, a few hundred of the data that it will be trained on.

    >>> model = nn.Sequential(nn.BatchNorm2d(1)).eval()
    >>> give_norms_statistics(model, torch.tensor([1.0, 3.0]).view(2, 1, 1, 1))
    >>> float(model[0].running_mean)
    2.0
    """

    def measure(norm: Any, inputs: tuple[torch.Tensor]) -> None:
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


class ImageError(ValueError):
    """A file is missing, is no image, or is damaged."""


def read_image(source: str | Path | IO[bytes]) -> Image.Image:
    """Read a picture file completely, as RGB.

    Raises:
        ImageError: if the file is missing, no image, or cut off.

    >>> read_image("no-such-file.jpg")
    Traceback (most recent call last):
        ...
    qhelpers.tasks.published.ImageError: no-such-file.jpg cannot be read as an image: there is no such file.
    """
    name = Path(source).name if isinstance(source, (str, Path)) else "The image"
    try:
        with Image.open(source) as picture:
            return picture.convert("RGB")
    except FileNotFoundError as error:
        raise ImageError(f"{name} cannot be read as an image: there is no such file.") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} cannot be read as an image: its format is not known.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"{name} cannot be read as an image: {error}.") from error
