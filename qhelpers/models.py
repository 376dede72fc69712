"""Networks and checkpoints: the digits model, the published int8 MobileNetV2, and guards for both."""

import difflib
import hashlib
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torchvision.models import quantization as tvq

from qhelpers import engines

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
OFFICIAL = tvq.MobileNet_V2_QuantizedWeights.IMAGENET1K_QNNPACK_V1


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged, not the recorded one, or made for another model."""


class BuilderError(ValueError):
    """torchvision has no quantizable builder of that name."""


class TrainingModeError(RuntimeError):
    """The model is in training mode where only evaluation mode gives meaningful outputs."""


class NotQuantizedError(RuntimeError):
    """The model has no int8 module, although an int8 model was expected."""


# --- guards ------------------------------------------------------------------------------------------


def require_eval(model: nn.Module) -> nn.Module:
    """Return the model if it, its batch norms and its dropouts are in evaluation mode.

    Raises:
        TrainingModeError: naming the first modules that are not. PyTorch says nothing, although batch norm
            and dropout then compute something else.

    >>> require_eval(nn.Sequential(nn.Dropout()))
    Traceback (most recent call last):
        ...
    qhelpers.models.TrainingModeError: The model is in training mode ((whole model), 0): call .eval() first.
    """
    training = [
        name or "(whole model)"
        for name, module in model.named_modules()
        if module.training and (module is model or isinstance(module, (_BatchNorm, _DropoutNd)))
    ]
    if training:
        shown = ", ".join(training[:3]) + (", …" if len(training) > 3 else "")
        raise TrainingModeError(f"The model is in training mode ({shown}): call .eval() first.")
    return model


def int8_modules(model: nn.Module) -> list[str]:
    """Names of the submodules with int8 weights, which a method ``weight()`` unpacks.

    >>> int8_modules(nn.Sequential(nn.Linear(2, 2)))
    []
    """
    return [
        name
        for name, module in model.named_modules()
        if type(module).__module__.startswith("torch.ao.nn") and callable(getattr(module, "weight", None))
    ]


def require_quantized(model: nn.Module) -> nn.Module:
    """Return the model if it has at least one module with packed int8 weights.

    Raises:
        NotQuantizedError: else. PyTorch says nothing when ``convert`` finds no qconfig and leaves every
            module in float.

    >>> require_quantized(nn.Linear(2, 2))
    Traceback (most recent call last):
        ...
    qhelpers.models.NotQuantizedError: No module of this Linear holds int8 weights: was a qconfig set before prepare?
    """
    if not int8_modules(model):
        raise NotQuantizedError(
            f"No module of this {type(model).__name__} holds int8 weights: was a qconfig set before prepare?"
        )
    return model


# --- checkpoints -------------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def recorded_sums() -> dict[str, str]:
    """File name to SHA-256 for every committed checkpoint, as ``weights/SHA256SUMS`` records them.

    >>> sorted(recorded_sums())
    ['digits_float.pt', 'digits_int8_qnnpack.pt']
    """
    lines = (WEIGHTS_FOLDER / "SHA256SUMS").read_text().splitlines()
    return {name: digest for digest, name in (line.split() for line in lines if line.strip())}


def load_state(path: Path, expected_sha256: str | None = None) -> dict[str, Any]:
    """Read a state_dict with ``weights_only=True``.

    Args:
        path: the file.
        expected_sha256: its recorded hash; not compared if None.

    Raises:
        CheckpointError: if the file is missing, has another hash, is damaged, or holds no state_dict.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint {path}.")
    if expected_sha256 is not None and (actual := sha256(path)) != expected_sha256:
        raise CheckpointError(
            f"{path.name} has SHA-256 {actual[:12]}…, recorded is {expected_sha256[:12]}…: "
            f"restore the file from version control."
        )
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged archive fails in many ways: zip, pickle, end of file, safety check
        raise CheckpointError(f"{path.name} cannot be read as a checkpoint: {_first_line(error)}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path.name} holds a {type(state).__name__}, not a state_dict.")
    return state


def load_into(model: nn.Module, state: dict[str, Any], name: str) -> nn.Module:
    """Load a state_dict strictly and return the model in evaluation mode.

    Raises:
        CheckpointError: if keys are missing, left over, or of another shape.
    """
    try:
        model.load_state_dict(state)
    except Exception as error:  # quantized modules raise KeyError or AttributeError where float ones report
        raise CheckpointError(
            f"{name} does not fit this {type(model).__name__}: {type(error).__name__}: {_first_line(error)}"
        ) from error
    return model.eval()


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__


def _skeleton(num_classes: int, quantize: bool) -> nn.Module:
    """torchvision's quantizable MobileNetV2 with random weights; engine and random state restored."""
    with engines.preserved_engine(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="must run observer")  # unused skip additions: harmless
        model: nn.Module = tvq.mobilenet_v2(weights=None, num_classes=num_classes, quantize=quantize)
    return model.eval()


def load_digits_float() -> nn.Module:
    """The float digits model: quantizable MobileNetV2, input ``(n, 3, 96, 96)``, logits ``(n, 10)``.

    Raises:
        CheckpointError: if the committed file is missing or altered.

    >>> load_digits_float().classifier[1]
    Linear(in_features=1280, out_features=10, bias=True)
    """
    name = "digits_float.pt"
    state = load_state(WEIGHTS_FOLDER / name, recorded_sums().get(name))
    return load_into(_skeleton(10, quantize=False), state, name)


def load_digits_int8(engine: str = "qnnpack") -> nn.Module:
    """The int8 digits model, made by quantization-aware training for ``qnnpack``.

    Args:
        engine: the engine for which the weights are packed while they are loaded.

    Raises:
        CheckpointError: if the committed file is missing or altered.
        EngineError: if this build lacks the engine.

    >>> len(int8_modules(load_digits_int8()))
    53
    """
    name = "digits_int8_qnnpack.pt"
    engines.check_engine(engine)
    state = load_state(WEIGHTS_FOLDER / name, recorded_sums().get(name))
    model = _skeleton(10, quantize=True)
    with engines.using_engine(engine):
        return load_into(model, state, name)


# --- the published model -----------------------------------------------------------------------------


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
    """The published int8 MobileNetV2 if it can be had, else the built-in int8 digits model.

    Tried in this order: torch's hub cache (``torch.hub.get_dir()``), a download that is given up after
    ``timeout_s`` seconds, the committed digits model. A file in the cache that cannot be used is left
    where it is; a download is hash-checked before it is renamed into place.

    >>> found = pretrained_mobilenet_v2(timeout_s=0)
    >>> found.source in ("hub cache", "built-in"), found.model.training
    (True, False)
    """
    notes: list[str] = []
    cached = Path(torch.hub.get_dir()) / "checkpoints" / OFFICIAL.url.rsplit("/", 1)[1]
    if cached.is_file():
        try:
            return _published(load_state(cached), "hub cache", notes, in_cache=True)
        except CheckpointError as error:
            notes.append(f"The cached file was left in place and passed over. {error}")
    started = time.monotonic()
    try:
        state, kept = _download(OFFICIAL.url, cached, timeout_s, notes)
        return _published(state, "download", notes, time.monotonic() - started, kept)
    except (CheckpointError, OSError) as error:
        notes.append(f"No download from {OFFICIAL.url.split('/')[2]}. {error}")
    waited = time.monotonic() - started
    classes = [str(digit) for digit in range(10)]
    return Pretrained(load_digits_int8(), "built-in", classes, 96, notes, waited)


def _published(
    state: dict[str, Any], source: str, notes: list[str], waited_s: float = 0.0, in_cache: bool = False
) -> Pretrained:
    model = _skeleton(1000, quantize=True)
    with engines.using_engine(OFFICIAL.meta["backend"]):  # the engine decides how the weights are packed
        load_into(model, state, "The checkpoint")
    return Pretrained(model, source, list(OFFICIAL.meta["categories"]), 224, notes, waited_s, in_cache)


def _download(url: str, target: Path, timeout_s: float, notes: list[str]) -> tuple[dict[str, Any], bool]:
    """Fetch a state_dict and keep it as ``target``, unless something is there or the folder is not writable.

    Returns:
        The state_dict, and whether it was kept.
    """
    if timeout_s <= 0:
        raise CheckpointError("Downloads are switched off (timeout_s=0).")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=target.parent, prefix="incomplete-", ignore_cleanup_errors=True)
    except OSError as error:
        notes.append(f"The cache {target.parent} cannot be written ({error.strerror}): nothing is kept in it.")
        folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with folder as name:
        part = Path(name) / target.name
        _fetch(url, part, timeout_s)
        state = load_state(part)
        keep = part.parent.parent == target.parent and not target.exists()
        if keep:
            os.replace(part, target)
        return state, keep


def _fetch(url: str, part: Path, timeout_s: float) -> None:
    """Download in a thread that is left behind at the deadline: name look-ups know no time limit."""
    hash_prefix = url.rsplit("-", 1)[-1].rsplit("_", 1)[-1].split(".")[0]
    outcome: list[Exception | None] = []

    def work() -> None:
        try:
            torch.hub.download_url_to_file(url, str(part), hash_prefix=hash_prefix, progress=False)
            outcome.append(None)
        except Exception as error:  # handed over to the waiting thread, whatever it is
            outcome.append(error)

    thread = threading.Thread(target=work, daemon=True, name="bounded-download")
    thread.start()
    thread.join(timeout_s)
    if not outcome:
        raise CheckpointError(f"Given up after {timeout_s:.0f} s without an answer.")
    if outcome[0] is not None:
        raise CheckpointError(f"{type(outcome[0]).__name__}: {_first_line(outcome[0])}") from outcome[0]


# --- builders ----------------------------------------------------------------------------------------


def quantization_builders() -> list[str]:
    """Names of torchvision's quantizable model builders.

    >>> len(quantization_builders())
    12
    """
    from torchvision.models import list_models

    return [name.removeprefix("quantized_") for name in list_models(module=tvq)]


def builder(name: str) -> Callable[..., nn.Module]:
    """torchvision's quantizable builder of that name.

    Raises:
        BuilderError: offering the nearest names.

    >>> builder("mobilenet_v3")
    Traceback (most recent call last):
        ...
    qhelpers.models.BuilderError: No quantizable builder 'mobilenet_v3'. Did you mean mobilenet_v2, mobilenet_v3_large?
    """
    names = quantization_builders()
    if name not in names:
        near = sorted(difflib.get_close_matches(name, names, n=3, cutoff=0.7))
        hint = f"Did you mean {', '.join(near)}?" if near else f"There are: {', '.join(names)}."
        raise BuilderError(f"No quantizable builder {name!r}. {hint}")
    function: Callable[..., nn.Module] = getattr(tvq, name)
    return function
