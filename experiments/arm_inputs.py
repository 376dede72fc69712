"""The inputs of the ARM run: what each machine is given, made on x86.

python -m experiments.arm_inputs FOLDER          # everything that torch 2.14 makes
python -m experiments.arm_inputs FOLDER NAME     # one .pte file, with the ExecuTorch of this environment
"""

import argparse
import contextlib
import io
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.ao import quantization as tq

from experiments.arm_cases import IMAGES, INPUTS
from qhelpers import engines
from qhelpers.tasks import checkpoints

DIGITS, CALIBRATION, TEXT = 12, 64, (2, 24)  # images to run and to calibrate with; lines and characters
QCONFIGS = ("x86", "onednn")  # per channel: reduced range, full range
PROBE_SCALE = 577.2157  # of an output, for totals whose product with 1 / scale float32 puts on the wrong side of a tie
SATURATING = [211, 171], [71, 107]  # activations and weights whose sum of products does not fit into 16 bits


def affine(x: Tensor, codes: int = 255) -> tuple[float, int]:
    """Scale and zero point for the range of values, which contains 0; codes start at 0."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = (high - low) / codes
    return scale, min(max(round(-low / scale), 0), codes)


def layer_of(weight: Tensor, bias: Tensor, x: Tensor, y: Tensor, **convolution: int) -> dict[str, Any]:
    """A float layer's codes and scales, as the arithmetic chapter makes them: weights per channel, 7-bit input."""
    scale = weight.flatten(1).abs().amax(1).clamp(min=1e-3) / 127  # one channel has no weights
    codes = torch.round(weight / scale.view(-1, *[1] * (weight.ndim - 1))).clamp(-127, 127).to(torch.int8)
    (x_scale, x_zero), (y_scale, y_zero) = affine(x, 127), affine(y)
    x_codes = (torch.round(x / x_scale) + x_zero).clamp(0, 127).to(torch.uint8)
    layer = {"x": x_codes, "x_scale": x_scale, "x_zero_point": x_zero, "weight": codes, "weight_scale": scale}
    return layer | {"bias": bias.detach(), "y_scale": y_scale, "y_zero_point": y_zero, **convolution}


def probe(bias: Any, y_scale: float = 2.0, zero_point: int = 0) -> dict[str, Any]:
    """A layer in which the bias alone decides, to ask how a kernel requantizes."""
    bias = torch.as_tensor(bias).float()
    zeros = torch.zeros(len(bias), 8, dtype=torch.int8)
    layer = {"x": torch.zeros(1, 8, dtype=torch.uint8), "x_scale": 1.0, "x_zero_point": 0, "weight": zeros}
    return layer | {"weight_scale": torch.ones(len(bias)), "bias": bias, "y_scale": y_scale, "y_zero_point": zero_point}


def beside_ties(totals: int = 138_000) -> Tensor:
    """Sums whose product with 1 / PROBE_SCALE rounds to another code in float32 than exactly."""
    factor, sums = 1 / torch.tensor(PROBE_SCALE), torch.arange(1, totals)
    return sums[torch.round(sums.double() * factor.double()) != torch.round(sums.float() * factor)]


def layers(images: Tensor) -> dict[str, dict[str, Any]]:
    """The layers that every engine computes: three of the digits model, the probes, and a pair that may saturate."""
    from qhelpers.tasks import digits

    net: Any = checkpoints.load_digits_float()
    net.fuse_model(is_qat=False)
    first, depthwise, classifier = net.features[0][0][0], net.features[1].conv[0][0][0], net.classifier[1]
    with torch.inference_mode():
        features = torch.cat([net.features(batch).mean((2, 3)) for batch, _ in digits.loader("validation", limit=200)])
        inner = net.features[0](images[:4])
        found = {
            "linear": layer_of(classifier.weight, classifier.bias, features, classifier(features)),
            "convolution": layer_of(
                first.weight, first.bias, images[:4], first(images[:4]), stride=2, padding=1, groups=1
            ),
            "depthwise": layer_of(
                depthwise.weight, depthwise.bias, inner, depthwise(inner), stride=1, padding=1, groups=32
            ),
        }
    pair = probe([0.0], y_scale=131.0)
    pair["x"], pair["weight"] = torch.tensor([SATURATING[0]]).byte(), torch.tensor([SATURATING[1]]).char()
    return found | {
        "ties, even zero point": probe([1, 3, 5], zero_point=10),
        "ties, odd zero point": probe([1, 3, 5], zero_point=11),
        "bias 1.4": probe([1.4]),
        "beside a tie": probe(beside_ties(), y_scale=PROBE_SCALE),
        "saturating pair": pair,
    }


def addition(images: Tensor) -> dict[str, Any]:
    """The codes and scales of the first addition of the int8 digits model."""
    net: Any = checkpoints.load_digits_int8("qnnpack")
    with engines.using_engine("qnnpack"), torch.inference_mode():
        one = net.features[:3](net.quant(images[:2]))
        other, out = net.features[3].conv(one), net.features[3].skip_add
    found: dict[str, Any] = {"y_scale": float(out.scale), "y_zero_point": int(out.zero_point)}
    for name, x in (("one", one), ("other", other)):
        found |= {name: x.int_repr(), f"{name}_scale": x.q_scale(), f"{name}_zero_point": x.q_zero_point()}
    return found


def calibrated_states() -> Iterator[tuple[str, dict[str, Any]]]:
    """The int8 state_dict of the digits model for each per-channel qconfig; an engine only packs it."""
    from qhelpers import calibration
    from qhelpers.tasks import digits

    for name in QCONFIGS:
        net: Any = checkpoints.load_digits_float()
        net.fuse_model(is_qat=False)
        net.qconfig = tq.get_default_qconfig(name)
        tq.prepare(net, inplace=True)
        calibration.calibrate(net, digits.calibration_batches(CALIBRATION), progress=False)
        with engines.using_engine(name):
            yield name, tq.convert(net).state_dict()


def make(folder: Path) -> None:
    """Write the inputs of PyTorch's part, the images, and the exported files."""
    from qhelpers.tasks import digits, manual_text

    images, labels = next(iter(digits.loader("test", batch_size=DIGITS, limit=DIGITS)))
    trained: Any = checkpoints.load_digits_int8("qnnpack")
    lines, characters = TEXT
    text = manual_text.encode(manual_text.text_corpus("test")[: lines * characters]).view(TEXT)
    x, weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0)), torch.linspace(-1, 1, 8 * 64)
    codes = torch.round(weight.view(8, 64) * 127).to(torch.int8)
    dynamic = {"x": x, "weight": codes, "weight_scale": 1 / 127, "bias": torch.linspace(-1, 1, 8)}
    given = {
        "images": images,
        "labels": labels,
        "qat scale": float(trained.classifier[1].scale),
        "calibration": torch.cat([batch for batch, _ in digits.calibration_batches(CALIBRATION)]),
        "text": text,
        "layers": layers(images),
        "addition": addition(images),
        "dynamic linear": dynamic | {"reduce_range": False},
        "functions": dict.fromkeys(("sigmoid", "tanh"), torch.linspace(-8, 8, 100_001)),
        "states": dict(calibrated_states()),
    }
    torch.save(given, folder / INPUTS)
    np.save(folder / IMAGES, images.numpy())
    save_onnx(folder, given["calibration"])


def save_onnx(folder: Path, calibration_images: Tensor) -> None:
    """The digits model in float as ``.onnx``, and in int8 with unsigned and with signed activations, per channel."""
    import onnxruntime.quantization as oq
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(oq.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            self.inputs = ({name: one[None].numpy()} for one in calibration_images)

        def get_next(self) -> Any:
            return next(self.inputs, None)

    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(checkpoints.load_digits_float(), (calibration_images[:1],), dynamo=True)
        assert program is not None
        program.save(folder / "float.onnx")
        ready = Path(scratch) / "ready.onnx"
        quant_pre_process(folder / "float.onnx", ready, skip_symbolic_shape=True)
        name = program.model.graph.inputs[0].name
        for scheme, kind in (("U8S8", oq.QuantType.QUInt8), ("S8S8", oq.QuantType.QInt8)):
            oq.quantize_static(
                ready,
                folder / f"int8-{scheme}.onnx",
                Images(str(name)),
                per_channel=True,
                activation_type=kind,
                weight_type=oq.QuantType.QInt8,
            )


def save_pte(path: Path, calibration_images: Tensor, float_model: nn.Module | None = None) -> None:
    """The digits model as an int8 ``.pte`` of XNNPACK, per channel, with the ExecuTorch of this environment."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnn
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    model, image = float_model or checkpoints.load_digits_float(), (calibration_images[:1],)
    quantizer = xnn.XNNPACKQuantizer().set_global(xnn.get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(torch.export.export(model, image).module(), quantizer)
    with torch.inference_mode():
        for one in calibration_images:
            prepared(one[None])
    graph = torch.export.export(convert_pt2e(prepared), image)
    path.write_bytes(to_edge_transform_and_lower(graph, partitioner=[XnnpackPartitioner()]).to_executorch().buffer)


def main() -> None:
    """Make everything, or one ``.pte`` file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("pte", nargs="?", help="name of the only file to make")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if chosen.pte is None:
        make(chosen.folder)
    else:
        given = torch.load(chosen.folder / INPUTS, weights_only=True)
        save_pte(chosen.folder / chosen.pte, given["calibration"])


if __name__ == "__main__":
    main()
