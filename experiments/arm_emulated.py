"""Int8 on 64-bit ARM, under emulation: what equals x86 to the bit, what differs by how many steps, and why.

Writes qhelpers/book/results/arm_emulated.json. Three machines compute the same cases (``experiments.arm_cases``): this
one with its torch, this one with the torch that ARM has (the "twin", which tells a difference between versions from one
between processors), and ARM under emulation. It is about correctness only: emulated times mean nothing. About half an
hour on two cores after the downloads, 9 GB with the twin's CUDA libraries:

    make arm
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments import arm_cases, arm_inputs, arm_userland, runs
from qhelpers import engines, metrics

Array = np.ndarray[Any, Any]
Machine = Mapping[str, Array]  # "what/engine", and what it gave
PARTS = tuple(arm_cases.PARTS)
PROBES = ("ties, even zero point", "ties, odd zero point", "bias 1.4", "beside a tie", "saturating pair")
CLASSIFIER = "classifier.1"


# --- how an engine may requantize, as in the chapter on the arithmetic --------------------------------------


def sums_of(layer: Mapping[str, Any]) -> torch.Tensor:
    """A layer's exact sums of products, channels last, without the bias."""
    x = layer["x"].double() - layer["x_zero_point"]
    weight = layer["weight"].double()  # exact: the sums are far below 2**53
    if weight.ndim == 2:
        return x @ weight.T
    found = torch.nn.functional.conv2d(x, weight, None, layer["stride"], layer["padding"], 1, layer["groups"])
    return found.permute(0, 2, 3, 1)


def recipes(layer: Mapping[str, Any]) -> dict[str, Array]:
    """The codes that each engine's order of operations on x86 gives."""
    sums, bias, weight_scale = sums_of(layer).float(), layer["bias"], layer["weight_scale"]
    y_scale, zero_point = torch.tensor(layer["y_scale"]), layer["y_zero_point"]
    sum_scale = torch.tensor(layer["x_scale"]) * weight_scale
    multiplier, bias_codes = sum_scale / y_scale, torch.round(bias / sum_scale)
    found = {
        "qnnpack": torch.round((sums + bias_codes) * multiplier) + zero_point,
        "fbgemm": torch.round((sums + bias / sum_scale) * multiplier) + zero_point,
        "onednn": torch.round((sums * sum_scale + bias) * (1 / y_scale) + zero_point),
    }
    return {name: codes.clamp(0, 255).to(torch.uint8).numpy() for name, codes in found.items()}


def addition_recipes(given: Mapping[str, Any]) -> dict[str, Array]:
    """The codes of a sum of two tensors: rounded from the exact value, and in the 16-bit fixed point of Arm's library.

    Source of the second: the addition of 8-bit tensors in Arm's Compute Library, which scales both inputs in integers
    with 11 bits behind the point and rounds twice, in two shifts.
    """
    scales = [given[f"{name}_scale"] / given["y_scale"] for name in ("one", "other")]
    codes = [given[name].long() for name in ("one", "other")]
    zeros = sum(given[f"{name}_zero_point"] * scale for name, scale in zip(("one", "other"), scales, strict=True))
    offset = given["y_zero_point"] - zeros
    exact = sum(code.double() * scale for code, scale in zip(codes, scales, strict=True)) + offset
    fixed = sum(code * round(scale * 2**11) for code, scale in zip(codes, scales, strict=True)) + round(offset * 2**11)
    found = {"float": torch.round(exact), "fixed point": (((fixed + 2**2) >> 3) + 2**7) >> 8}
    return {name: sums.clamp(0, 255).to(torch.uint8).numpy() for name, sums in found.items()}


# --- comparing ----------------------------------------------------------------------------------------------


def steps_apart(one: Array, other: Array, scale: float | None = None) -> tuple[int, float]:
    """How many values differ, and the largest difference in steps of the scale; of codes, if there is none."""
    apart = np.abs(one.astype(np.float64) - other.astype(np.float64)) / (scale or 1.0)
    most = float(apart.max(initial=0.0))
    whole = scale is not None or one.dtype.kind in "ui"
    return int((one != other).sum()), round(most) if whole else float(f"{most:.2e}")


def compared(key: str, arm: Machine, here: Machine, twin: Machine, scale: float | None = None) -> dict[str, Any]:
    """One row: ARM against this machine, and what of it is the version's doing and what the processor's."""
    what, engine = key.split("/")
    differ, steps = steps_apart(arm[key], here[key], scale)
    row = {"what": what, "engine": engine, "values": arm[key].size, "differ": differ, "steps": steps}
    if key in twin:
        row["differ_by_processor"] = steps_apart(arm[key], twin[key])[0]
        row["differ_by_version"] = steps_apart(here[key], twin[key])[0]
    return row


def decibels(exact: Array, found: Array) -> float:
    """SQNR of the outputs against float's, in dB."""
    return round(metrics.sqnr_db(torch.from_numpy(exact), torch.from_numpy(found)), 1)


def torch_rows(given: Mapping[str, Any], arm: Machine, here: Machine, twin: Machine) -> list[dict[str, Any]]:
    """Layers, probes, models and the float functions behind them."""
    rows = []
    exact, labels = exact_logits(given), given["labels"].numpy()
    scales = {
        f"digits, qconfig of {name}": float(state[f"{CLASSIFIER}.scale"]) for name, state in given["states"].items()
    }
    scales["digits, QAT for qnnpack"] = float(given["qat scale"])
    for key in arm:
        what, engine = key.split("/")
        if what.startswith("inside ") or key not in here:
            continue
        row = compared(key, arm, here, twin, scales.get(what))
        if what.startswith("layer "):
            layer = given["layers"][what.removeprefix("layer ")]
            row["recipes"] = {name: steps_apart(arm[key], codes)[0] for name, codes in recipes(layer).items()}
            if arm[key].size <= 8:
                row["codes"], row["x86_codes"] = arm[key].flatten().tolist(), here[key].flatten().tolist()
        if what == "addition":
            row["recipes"] = {
                name: steps_apart(arm[key], codes)[0] for name, codes in addition_recipes(given["addition"]).items()
            }
        if what in scales:
            row["right"] = int((arm[key].argmax(1) == labels).sum())
            row["images"] = len(labels)
        if what in scales and engine == "onednn" and row["differ"]:
            row["differ_with_arm_s_addition"] = steps_apart(arm[key], with_arm_s_addition(given, what))[0]
        if what in scales and "QAT" not in what:  # that one was trained further: its logits are its own
            row |= {"sqnr_db": decibels(exact, arm[key]), "x86_sqnr_db": decibels(exact, here[key])}
        if what == "text LSTM" and engine != "float":
            row["sqnr_db"] = decibels(arm["text LSTM/float"], arm[key])
            row["x86_sqnr_db"] = decibels(here["text LSTM/float"], here[key])
        rows.append(row)
    return [*rows, *inside_rows(arm, here)]


class FixedPointAddition(torch.nn.Module):
    """Adds as Arm's library does, in place of a model's own addition."""

    def __init__(self, replaced: Any) -> None:
        super().__init__()
        self.out = {"y_scale": float(replaced.scale), "y_zero_point": int(replaced.zero_point)}

    def add(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        given: dict[str, Any] = dict(self.out)
        for name, x in (("one", one), ("other", other)):
            given |= {name: x.int_repr(), f"{name}_scale": x.q_scale(), f"{name}_zero_point": x.q_zero_point()}
        codes = torch.from_numpy(addition_recipes(given)["fixed point"])
        return torch._make_per_tensor_quantized_tensor(codes, *self.out.values()).contiguous(
            memory_format=torch.channels_last
        )


def with_arm_s_addition(given: Mapping[str, Any], what: str) -> Array:
    """The logits of a digits model on this machine under onednn, whose additions are replaced by ARM's."""
    from qhelpers.tasks import checkpoints

    made = what.removeprefix("digits, qconfig of ")
    with engines.using_engine("onednn"), torch.inference_mode():
        trained = made not in given["states"]
        net = checkpoints.load_digits_int8("onednn") if trained else arm_cases.static_net(given["states"][made], made)
        for name, module in list(net.named_modules()):
            if type(module).__name__ == "QFunctional":
                parent, _, last = name.rpartition(".")
                setattr(net.get_submodule(parent), last, FixedPointAddition(module))
        logits: Array = net(given["images"]).numpy()
    return logits


def inside_rows(arm: Machine, here: Machine) -> list[dict[str, Any]]:
    """For each engine, where in the digits model (QAT) the codes of ARM first differ from those of x86."""
    rows = []
    for engine in dict.fromkeys(key.split("/")[1] for key in arm if key.startswith("inside ")):
        keys = [key for key in arm if key.startswith("inside ") and key.endswith(f"/{engine}") and key in here]
        apart = {key.split("/")[0].removeprefix("inside "): steps_apart(arm[key], here[key]) for key in keys}
        first = next((name for name, (count, _) in apart.items() if count), None)
        rows.append(
            {
                "what": "inside digits, QAT for qnnpack",
                "engine": engine,
                "layers": len(apart),
                "layers_that_differ": sum(count > 0 for count, _ in apart.values()),
                "first_that_differs": first,
                "of_it": apart[first][0] if first else 0,
                "steps": max(steps for _, steps in apart.values()),
            }
        )
    return rows


def exact_logits(given: Mapping[str, Any]) -> Array:
    """The float model's, on this machine."""
    from qhelpers.tasks import checkpoints

    with torch.inference_mode():
        logits: Array = checkpoints.load_digits_float()(given["images"]).numpy()
    return logits


def file_rows(given: Mapping[str, Any], arm: Machine, here: Machine, twin: Machine) -> list[dict[str, Any]]:
    """The exported files: their logits have the scale of the file's last layer, which the smallest gap tells."""
    exact, labels = exact_logits(given), given["labels"].numpy()
    rows = []
    for key in dict.fromkeys([*here, *twin, *arm]):
        what, runtime = key.split("/")
        if key not in arm:
            rows.append({"what": what, "engine": runtime, "ran": False})
            continue
        reference = here if key in here else twin
        scale = grid(reference[key])
        row = compared(key, arm, {**twin, **here}, twin, scale) | {"ran": True, "images": len(labels)}
        row["right"] = int((arm[key].argmax(1) == labels).sum())
        rows.append(row | {"sqnr_db": decibels(exact, arm[key]), "x86_sqnr_db": decibels(exact, reference[key])})
    return rows


def grid(values: Array) -> float | None:
    """The step of values that are whole multiples of one scale, as an int8 file's outputs are; None if they are not."""
    numbers = values.astype(np.float64).ravel()
    sizes = np.unique(np.abs(numbers))
    gaps = np.diff(np.concatenate([[0.0], sizes]))
    least = float(gaps[gaps > 1e-5 * sizes.max()].min())
    for parts in range(1, 17):  # the smallest gap may be several steps
        step = least / parts
        counts = np.round(numbers / step)
        step = float(numbers @ counts / (counts @ counts))
        if np.abs(numbers / step - counts).max() < 1e-3:
            return step
    return None


def reasons(rows: list[dict[str, Any]]) -> list[str]:
    """What the rows show about why something differs; nothing that they do not show."""
    by = {(row["what"], row["engine"]): row for row in rows}
    found = []
    by_version = [row for row in rows if row.get("differ_by_version")]
    named = ", ".join(f"{row['what']} under {row['engine']}: {row['differ_by_version']}" for row in by_version)
    found.append(f"between the two versions on x86 differ: {named or 'no values'}; the rest is the processor's doing")
    added = by.get(("addition", "onednn"), {}).get("recipes")
    if added and added["fixed point"] == 0 < added["float"]:
        found.append(
            "addition under onednn: Arm's Compute Library adds in fixed point with 11 bits behind the point and rounds"
            " twice; computed so, every code is equal"
        )
    replaced = [row for row in rows if "differ_with_arm_s_addition" in row]
    if replaced:
        left = ", ".join(f"{row['what']}: {row['differ_with_arm_s_addition']} of {row['differ']}" for row in replaced)
        found.append(f"the digits models under onednn: with that addition on x86, so many logits still differ: {left}")
    dynamic = by.get(("dynamic linear", "onednn"), {})
    if dynamic.get("differ"):
        found.append("dynamic layers under onednn: the last bits of float32, in one layer on its own, too")
    if any(row["engine"] == "ONNX Runtime" and row.get("differ") for row in rows):
        found.append("ONNX Runtime: the same version on both processors; the operator was not looked for")
    return found


# --- running ------------------------------------------------------------------------------------------------


def compute(name: str, command: list[str], part: str, folder: Path) -> str:
    """Let a machine compute a part; what it says if it fails, else nothing."""
    output = folder / f"{name}-{part}.npz"
    output.unlink(missing_ok=True)
    log = output.with_suffix(".log")
    print(f"{name} computes {part}", flush=True)
    try:
        paths = {"PYTHONPATH": str(arm_userland.PROJECT)}
        arm_userland.run(
            f"The part {part!r}", [*command, "-m", "experiments.arm_cases", part, folder, output], log, **paths
        )
    except SystemExit as failed:
        if name != "arm" or part == "torch":  # the files are tried; without the rest there is nothing to record
            raise
        return str(failed).replace(str(folder), folder.name)
    return ""


def loaded(name: str, part: str, folder: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """What a machine computed: about it, and the values."""
    path = folder / f"{name}-{part}.npz"
    if not path.is_file():
        return {}, {}
    with np.load(path) as archive:
        about = json.loads(str(archive["about"]))
        return about, {key: archive[key] for key in archive.files if key != "about"}


def machines(folder: Path) -> dict[str, list[str]]:
    """The command of each machine's Python."""
    return {
        "here": [sys.executable],
        "twin": [str(folder.resolve() / "twin/bin/python")],
        "arm": arm_userland.emulated(folder),
    }


def prepare(folder: Path, work: Path, commands: Mapping[str, list[str]]) -> None:
    """Make the inputs, and a ``.pte`` file with each ExecuTorch."""
    environment = {"PYTHONPATH": str(arm_userland.PROJECT)}
    module = ["-m", "experiments.arm_inputs", work]
    arm_userland.run("Making the inputs", [*commands["here"], *module], work / "inputs.log", **environment)
    for name in ("here", "twin"):
        version = version_of("executorch", commands[name])
        programs = os.pathsep.join([str(Path(commands[name][0]).parent), os.environ["PATH"]])  # flatc is one of them
        command = [*commands[name], *module, f"executorch-{version}.pte"]
        arm_userland.run("Making a .pte file", command, work / "pte.log", **environment, PATH=programs)


def version_of(package: str, command: list[str]) -> str:
    """Of a package in another environment."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([*command, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """Set up, compute on each machine, compare, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(".arm"), help="for the userland, the twin and the results")
    parser.add_argument("--compare-only", action="store_true", help="compare what was computed before")
    chosen = parser.parse_args()
    folder: Path = chosen.folder
    work = folder.resolve() / "run"
    failed = {}
    if not chosen.compare_only:
        arm_userland.set_up(folder)
        work.mkdir(exist_ok=True)
        commands = machines(folder)
        prepare(folder, work, commands)
        for part in PARTS:
            for name, command in commands.items():
                if words := compute(name, command, part, work):
                    failed[part] = words
                    print(words, file=sys.stderr)
    record(work, failed)


def record(work: Path, failed: Mapping[str, str]) -> None:
    """Compare the three machines and write the result."""
    given = torch.load(work / arm_cases.INPUTS, weights_only=True)
    found = {(name, part): loaded(name, part, work) for name in ("arm", "here", "twin") for part in PARTS}
    abouts: dict[str, dict[str, Any]] = {name: {} for name in ("arm", "here", "twin")}
    for (name, _), (about, _) in found.items():
        abouts[name] |= about
    values = {pair: machine for pair, (_, machine) in found.items()}
    rows = torch_rows(given, *(values[name, "torch"] for name in ("arm", "here", "twin")))
    for part in ("onnx", "pte"):
        rows += file_rows(given, *(values[name, part] for name in ("arm", "here", "twin")))
    arm = abouts["arm"]
    runs.write_results(
        "arm_emulated",
        "experiments/arm_emulated.py",
        f"{len(given['images'])} test digits, {arm_inputs.TEXT[0]} lines of {arm_inputs.TEXT[1]} characters, layers of"
        " the digits model; one thread; correctness only",
        rows,
        versions={name: arm[name] for name in ("torch", "torchvision", "onnxruntime") if name in arm},
        cpu=f"{arm_userland.CPU}, emulated by qemu {arm_userland.qemu_version()}",
        engines=arm.get("engines", []),
        engine_set=arm.get("engine_set", ""),
        x86=abouts["here"],
        twin=abouts["twin"],
        why=reasons(rows),
        failed=dict(failed),
    )
    for row in rows:
        print({key: value for key, value in row.items() if key != "recipes"})


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
