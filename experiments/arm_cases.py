"""What is computed on each machine, from the same inputs: int8 layers, models and exported files.

``experiments.arm_emulated`` makes the inputs on x86, runs this there and under emulation, each in a process of its own,
and compares. It has to run on the torch of each machine, so it takes nothing from the package but the networks:

    python -m experiments.arm_cases PART FOLDER OUTPUT
"""

import argparse
import json
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn

INPUTS, IMAGES = "inputs.pt", "images.npy"
Found = dict[str, "np.ndarray[Any, Any]"]  # "what/engine", and what it gave


# --- layers, as in the chapter on the arithmetic -------------------------------------------------------


def kernel_codes(layer: dict[str, Any]) -> "Tensor":
    """What the engine that is set makes of a layer's input codes: uint8, channels last."""
    import torch

    x = torch._make_per_tensor_quantized_tensor(layer["x"], layer["x_scale"], layer["x_zero_point"])
    zeros = torch.zeros(len(layer["weight"]), dtype=torch.int64)
    w = torch._make_per_channel_quantized_tensor(layer["weight"], layer["weight_scale"].double(), zeros, 0)
    out = layer["y_scale"], layer["y_zero_point"]
    if layer["weight"].ndim == 2:
        packed = torch.ops.quantized.linear_prepack(w, layer["bias"])
        codes: Tensor = torch.ops.quantized.linear(x, packed, *out).int_repr()
        return codes
    stride, padding = [layer["stride"]] * 2, [layer["padding"]] * 2
    packed = torch.ops.quantized.conv2d_prepack(w, layer["bias"], stride, padding, [1, 1], layer["groups"])
    y: Tensor = torch.ops.quantized.conv2d(x, packed, *out).int_repr()
    return y.permute(0, 2, 3, 1).contiguous()


def sum_codes(given: dict[str, Any]) -> "Tensor":
    """What the engine that is set makes of two tensors that are added."""
    import torch

    one, other = (
        torch._make_per_tensor_quantized_tensor(given[name], given[f"{name}_scale"], given[f"{name}_zero_point"])
        for name in ("one", "other")
    )
    codes: Tensor = torch.ops.quantized.add(one, other, given["y_scale"], given["y_zero_point"]).int_repr()
    return codes


def dynamic_linear(layer: dict[str, Any]) -> "Tensor":
    """A dynamic linear layer's float output for a float input."""
    import torch

    w = torch._make_per_tensor_quantized_tensor(layer["weight"], layer["weight_scale"], 0)
    packed = torch.ops.quantized.linear_prepack(w, layer["bias"])
    found: Tensor = torch.ops.quantized.linear_dynamic(layer["x"], packed, layer["reduce_range"])
    return found


# --- models --------------------------------------------------------------------------------------------


def static_net(state: dict[str, Any], qconfig: str) -> "nn.Module":
    """The digits MobileNetV2, converted as a default qconfig has it, with an int8 state_dict, for the engine set."""
    from torch.ao import quantization as tq

    from qhelpers.tasks import checkpoints

    net: Any = checkpoints.skeleton(10, quantize=False)
    net.fuse_model(is_qat=False)
    net.qconfig = tq.get_default_qconfig(qconfig)
    return checkpoints.load_into(tq.convert(tq.prepare(net)), state, qconfig)


def layer_codes(net: "nn.Module", images: "Tensor") -> "dict[str, Tensor]":
    """The output codes of every int8 layer."""
    import torch

    found: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(
            lambda _, __, output, name=name: found.update({name: output.int_repr()}) if output.is_quantized else None
        )
        for name, module in net.named_modules()
        if hasattr(module, "scale") and "quantized" in type(module).__module__
    ]
    with torch.inference_mode():
        net(images)
    for hook in hooks:
        hook.remove()
    return found


def torch_part(folder: Path) -> "Iterator[tuple[str, Any]]":
    """Everything that PyTorch's own engines compute, as they are listed."""
    import torch
    from torch import nn
    from torch.ao import quantization as tq

    from qhelpers import engines
    from qhelpers.tasks import checkpoints, networks

    torch.set_num_threads(1)
    given = torch.load(folder / INPUTS, weights_only=True)
    for name, values in given["functions"].items():
        yield f"function {name}/float", getattr(torch, name)(values)
    text_model = networks.load_language_model()
    images, codes = given["images"], given["text"]
    with torch.inference_mode():
        yield "text LSTM/float", text_model(codes)[0]
    for engine in engines.available_engines():
        with engines.using_engine(engine), torch.inference_mode():
            for name, layer in given["layers"].items():
                yield f"layer {name}/{engine}", kernel_codes(layer)
            yield f"addition/{engine}", sum_codes(given["addition"])
            yield f"dynamic linear/{engine}", dynamic_linear(given["dynamic linear"])
            yield f"text LSTM/{engine}", tq.quantize_dynamic(text_model, {nn.LSTM, nn.Linear})(codes)[0]
            net = checkpoints.load_digits_int8(engine)
            yield f"digits, QAT for qnnpack/{engine}", net(images)
            for name, values in layer_codes(net, images[:2]).items():
                yield f"inside {name}/{engine}", values
            for qconfig, state in given["states"].items():
                yield f"digits, qconfig of {qconfig}/{engine}", static_net(state, qconfig)(images)
        print(engine, flush=True)


# --- exported files ------------------------------------------------------------------------------------


def onnx_part(folder: Path) -> "Iterator[tuple[str, Any]]":
    """What ONNX Runtime computes from each ``.onnx`` file."""
    import onnxruntime

    images = np.load(folder / IMAGES)
    for path in sorted(folder.glob("*.onnx")):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        yield f"{path.name}/ONNX Runtime", np.concatenate([session.run(None, {name: one[None]})[0] for one in images])


def pte_part(folder: Path) -> "Iterator[tuple[str, Any]]":
    """What ExecuTorch computes from each ``.pte`` file."""
    import torch

    try:  # executorch.runtime would import the exporter as well, and all that it needs
        from executorch.extension.pybindings import _portable_lib as runtime
    except ImportError:  # since 1.5
        from executorch.extension.pybindings import _C as runtime

    images = torch.from_numpy(np.load(folder / IMAGES))
    for path in sorted(folder.glob("*.pte")):
        try:
            program = runtime._load_for_executorch(str(path))
            found = torch.cat([program.forward([one[None]])[0].clone() for one in images])
        except RuntimeError as error:  # a file of a later version
            print(f"{path.name}: {error}", file=sys.stderr)
            continue
        yield f"{path.name}/ExecuTorch", found


PARTS: dict[str, Callable[[Path], "Iterator[tuple[str, Any]]"]] = {
    "torch": torch_part,
    "onnx": onnx_part,
    "pte": pte_part,
}


def about() -> dict[str, Any]:
    """The machine, and the versions of what has been imported."""
    found: dict[str, Any] = {"machine": platform.machine(), "python": platform.python_version()}
    for name in ("torch", "torchvision", "onnxruntime"):
        if name in sys.modules:
            found[name] = sys.modules[name].__version__
    if "torch" in sys.modules:
        quantized = sys.modules["torch"].backends.quantized
        found |= {"engines": quantized.supported_engines, "engine_set": quantized.engine}
    return found


def main() -> None:
    """Compute one part and write it, with a line about the machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("folder", type=Path, help="that holds the inputs")
    parser.add_argument("output", type=Path, help="an .npz file")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    found: Found = {name: np.asarray(values) for name, values in PARTS[chosen.part](chosen.folder)}
    np.savez(chosen.output, about=np.array(json.dumps(about())), **found)


if __name__ == "__main__":
    main()
