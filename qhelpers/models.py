"""Networks and checkpoints: guards, safe loading, the digits models and torchvision's builders."""

import difflib
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torchvision.models import quantization as tvq

from qhelpers import engines

WEIGHTS_FOLDER = Path(__file__).parent / "weights"


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
        if module.training
        and (module is model or isinstance(module, (_BatchNorm, _DropoutNd)))
        # convert makes dropouts that never drop and norms with fixed statistics, and leaves their flag on
        and not type(module).__module__.startswith("torch.ao.nn.quantized")
    ]
    if training:
        shown = ", ".join(training[:3]) + (", …" if len(training) > 3 else "")
        raise TrainingModeError(f"The model is in training mode ({shown}): call .eval() first.")
    return model


def int8_modules(model: nn.Module) -> list[str]:
    """Names of the submodules whose weights are 8-bit: convolutions, linear, embedding and recurrent layers.

    >>> int8_modules(nn.Sequential(nn.Linear(2, 2)))
    []
    """
    return [name for name, module in model.named_modules() if _has_int8_weights(module)]


def _has_int8_weights(module: nn.Module) -> bool:
    if not type(module).__module__.startswith("torch.ao.nn"):
        return False
    if callable(getattr(module, "weight", None)):
        unpacked = [module.weight()]  # type: ignore[operator]
    elif hasattr(module, "get_weight"):  # recurrent layers have several
        unpacked = list(module.get_weight().values())  # type: ignore[operator]
    else:
        return False
    return all(weight.dtype in (torch.qint8, torch.quint8) for weight in unpacked)  # float16 is unpacked as float


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


def load_state(path: Path, expected_sha256: str | None = None) -> dict[str, Any]:
    """Read a state_dict with ``weights_only=True``.

    Args:
        path: the file.
        expected_sha256: its recorded hash; not compared if None.

    Raises:
        CheckpointError: if the file is missing, has another hash, is damaged, or holds no state_dict.

    >>> load_state(WEIGHTS_FOLDER / "digits_int8_qnnpack.pt")["features.0.0.weight"].dtype
    torch.qint8
    """
    try:
        actual = sha256(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no checkpoint {path}.") from error
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror}.") from error
    if expected_sha256 not in (None, actual):
        raise CheckpointError(
            f"{path.name} has SHA-256 {actual[:12]}…, recorded is {str(expected_sha256)[:12]}…: "
            f"restore the file from version control."
        )
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged archive fails in many ways: zip, pickle, end of file, safety check
        raise CheckpointError(f"{path.name} cannot be read as a checkpoint: {first_line(error)}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path.name} holds a {type(state).__name__}, not a state_dict.")
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
            f"{name} does not fit this {type(model).__name__}: {type(error).__name__}: {first_line(error)}"
        ) from error
    return model.eval()


def first_line(error: Exception) -> str:
    """The first two lines of an error's message in one, or its type where it says nothing.

    >>> first_line(ValueError("one\\n  two\\nthree"))
    'one two'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__


def skeleton(num_classes: int, quantize: bool) -> nn.Module:
    """torchvision's quantizable MobileNetV2 with random weights, to load a state_dict into.

    The engine, which the builder sets, and the random state are restored.

    >>> len(int8_modules(skeleton(10, quantize=True)))
    53
    """
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
    return load_into(skeleton(10, quantize=False), state, name)


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
    model = skeleton(10, quantize=True)
    with engines.using_engine(engine):
        return load_into(model, state, name)


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
