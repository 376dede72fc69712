"""Checkpoints: safe loading, the committed digits models, and torchvision's quantizable builders."""

import difflib
import hashlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models

from qhelpers import engines, guards

WEIGHTS_FOLDER = Path(__file__).parent / "weights"


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged, not the recorded one, or made for another model."""


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes.

    >>> sha256(WEIGHTS_FOLDER / "digits_float.pt") == recorded_sums()["digits_float.pt"]
    True
    """
    return hashlib.sha256(path.read_bytes()).hexdigest()


def recorded_sums() -> dict[str, str]:
    """File name to SHA-256 for every committed checkpoint, as ``weights/SHA256SUMS`` records them.

    >>> [name for name in sorted(recorded_sums()) if name.startswith("digits")]
    ['digits_float.pt', 'digits_int8_qnnpack.pt', 'digits_resnet_float16.pt', 'digits_transformer_float16.pt']
    """
    lines = (WEIGHTS_FOLDER / "SHA256SUMS").read_text().splitlines()
    return {name: digest for digest, name in (line.split() for line in lines if line.strip())}


def load_state(path: Path) -> dict[str, Any]:
    """Read a state_dict with ``weights_only=True``.

    Raises:
        CheckpointError: if the file is missing, damaged, or holds no state_dict.

    >>> load_state(WEIGHTS_FOLDER / "digits_int8_qnnpack.pt")["features.0.0.weight"].dtype
    torch.qint8
    """
    return _as_state(_read(path), path.name)


def committed_bytes(name: str) -> bytes:
    """A file of the package's ``weights`` folder, if its SHA-256 is the recorded one.

    Raises:
        CheckpointError: if it is missing or altered.

    >>> len(committed_bytes("digits_float.pt"))
    9188427
    """
    data = _read(WEIGHTS_FOLDER / name)
    actual, recorded = hashlib.sha256(data).hexdigest(), recorded_sums().get(name, "none")
    if actual != recorded:
        raise CheckpointError(
            f"{name} has SHA-256 {actual[:12]}…, recorded is {recorded[:12]}…: restore the file from version control."
        )
    return data


def committed_state(name: str) -> dict[str, Any]:
    """The state_dict in a file of the package's ``weights`` folder.

    Raises:
        CheckpointError: if the file is missing, altered, or holds no state_dict.

    >>> committed_state("digits_float.pt")["classifier.1.weight"].shape
    torch.Size([10, 1280])
    """
    return _as_state(committed_bytes(name), name)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no checkpoint {path}.") from error
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror}.") from error


def _as_state(data: bytes, name: str) -> dict[str, Any]:
    try:
        state = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged archive fails in many ways: zip, pickle, end of file, safety check
        raise CheckpointError(f"{name} cannot be read as a checkpoint: {guards.first_line(error)}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{name} holds a {type(state).__name__}, not a state_dict.")
    return state


def load_into(model: nn.Module, state: dict[str, Any], name: str) -> nn.Module:
    """Load a state_dict strictly and return the model in evaluation mode.

    Raises:
        CheckpointError: if keys are missing, left over, or of another shape.

    >>> load_into(nn.PReLU(), {"weight": torch.ones(1)}, "one weight").training
    False
    """
    try:
        model.load_state_dict(state)
    except Exception as error:  # quantized modules raise KeyError or AttributeError where float ones report
        raise CheckpointError(
            f"{name} does not fit this {type(model).__name__}: {type(error).__name__}: {guards.first_line(error)}"
        ) from error
    return model.eval()


def skeleton(num_classes: int, quantize: bool) -> nn.Module:
    """torchvision's quantizable MobileNetV2 with random weights, to load a state_dict into.

    The engine, which the builder sets, and the random state are restored.

    Raises:
        ImportError: if this torchvision has no quantizable models any more.

    >>> len(guards.int8_modules(skeleton(10, quantize=True)))
    53
    """
    from torchvision.models import quantization as tvq

    with engines.preserved_engine(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="must run observer")  # unused skip additions: harmless
        model: nn.Module = tvq.mobilenet_v2(weights=None, num_classes=num_classes, quantize=quantize)
    return model.eval()


def plain_skeleton(num_classes: int) -> nn.Module:
    """torchvision's plain MobileNetV2, changed to compute what the quantizable one computes: with ReLU for ReLU6.

    >>> type(plain_skeleton(10).features[0][2])
    <class 'torch.nn.modules.activation.ReLU'>
    """
    with torch.random.fork_rng(devices=[]):
        model: nn.Module = models.mobilenet_v2(weights=None, num_classes=num_classes)
    for name, module in [*model.named_modules()]:
        if isinstance(module, nn.ReLU6):
            model.set_submodule(name, nn.ReLU())
    return model.eval()


def load_digits_float() -> nn.Module:
    """The float digits model: quantizable MobileNetV2, input ``(n, 3, 96, 96)``, logits ``(n, 10)``.

    Where torchvision has no quantizable models any more, it is the plain one, with the same outputs.

    Raises:
        CheckpointError: if the committed file is missing or altered.

    >>> load_digits_float().classifier[1]
    Linear(in_features=1280, out_features=10, bias=True)
    """
    name = "digits_float.pt"
    try:
        model = skeleton(10, quantize=False)
    except ImportError:
        model = plain_skeleton(10)
    return load_into(model, committed_state(name), name)


def load_digits_int8(engine: str = "qnnpack") -> nn.Module:
    """The int8 digits model, made by quantization-aware training for ``qnnpack``.

    Args:
        engine: the engine for which the weights are packed while they are loaded.

    Raises:
        CheckpointError: if the committed file is missing or altered.
        EngineError: if this build lacks the engine.

    >>> len(guards.int8_modules(load_digits_int8()))
    53
    """
    name = "digits_int8_qnnpack.pt"
    engines.check_engine(engine)
    state = committed_state(name)
    model = skeleton(10, quantize=True)
    with engines.using_engine(engine):
        return load_into(model, state, name)


# --- builders ----------------------------------------------------------------------------------------


def quantization_builders() -> list[str]:
    """Names of torchvision's quantizable model builders.

    >>> len(quantization_builders())
    12
    """
    from torchvision.models import quantization as tvq

    return [name.removeprefix("quantized_") for name in models.list_models(module=tvq)]


def builder(name: str) -> Callable[..., nn.Module]:
    """torchvision's quantizable builder of that name.

    Raises:
        ValueError: offering the nearest names.

    >>> builder("mobilenet_v3")
    Traceback (most recent call last):
        ...
    ValueError: No quantizable builder 'mobilenet_v3'. Did you mean mobilenet_v2, mobilenet_v3_large?
    """
    from torchvision.models import quantization as tvq

    names = quantization_builders()
    if name not in names:
        near = sorted(difflib.get_close_matches(name, names, n=3, cutoff=0.7))
        hint = f"Did you mean {', '.join(near)}?" if near else f"There are: {', '.join(names)}."
        raise ValueError(f"No quantizable builder {name!r}. {hint}")
    function: Callable[..., nn.Module] = getattr(tvq, name)
    return function
