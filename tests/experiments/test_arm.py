"""The ARM run, as far as it goes without emulation: what is missing is said in words, and what is compared is right."""

import json
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments import arm_cases, arm_emulated, arm_inputs, arm_userland
from qhelpers import engines
from qhelpers.book import recorded
from qhelpers.tasks import checkpoints

HAS_ALL = {name: f"/usr/bin/{name}" for name in arm_userland.NEEDED}


@pytest.mark.parametrize(
    ("change", "machine", "root", "words"),
    [
        ({"qemu-aarch64-static": None}, "x86_64", True, "needs qemu-aarch64-static, which is not .*qemu-user-static$"),
        (
            {"qemu-aarch64-static": None, "debootstrap": None},
            "x86_64",
            True,
            "needs qemu-aarch64-static and debootstrap, which are not installed: apt install qemu-user-static deboot",
        ),
        ({}, "aarch64", True, "compares ARM with x86, and this machine is aarch64"),
        ({}, "x86_64", False, "as root, or under fakeroot"),
        ({}, "x86_64", True, "^$"),
    ],
)
def test_what_is_missing_is_said_in_words(change: dict[str, None], machine: str, root: bool, words: str) -> None:
    assert re.search(words, arm_userland.missing(HAS_ALL | change, machine, root))


def test_a_machine_without_the_emulator_gets_words_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arm_userland.shutil, "which", lambda name: None)
    monkeypatch.setattr(arm_userland.platform, "machine", lambda: "x86_64")
    with pytest.raises(SystemExit, match="needs qemu-aarch64-static and debootstrap and dpkg"):
        arm_userland.set_up(tmp_path / "arm")
    assert not (tmp_path / "arm").exists()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo oh; exit 3", "It failed with exit code 3; the end of .*log:\noh$"),
        ("echo Could not resolve host; exit 1", "(?s)Could not resolve host\nIs there a network"),
        ("kill -SEGV $$", "It was ended by the processor"),
    ],
)
def test_a_command_that_fails_is_explained(tmp_path: Path, script: str, words: str) -> None:
    with pytest.raises(SystemExit, match=words):
        arm_userland.run("It", ["sh", "-c", script], tmp_path / "log")


def test_a_step_that_failed_is_done_again_and_a_finished_one_is_not(tmp_path: Path) -> None:
    done: list[str] = []

    def fails(target: Path) -> None:
        target.mkdir()
        done.append("began")
        raise SystemExit("no network")

    def works(target: Path) -> None:
        target.mkdir()
        done.append("made")

    with pytest.raises(SystemExit):
        arm_userland._once(tmp_path / "root", fails, "")
    for _ in range(2):
        arm_userland._once(tmp_path / "root", works, "")
    assert done == ["began", "made"]


def test_changed_requirements_are_fetched_anew(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(target: Path) -> None:
        made.append(target)
        target.mkdir()

    for wanted in ("torch", "torch", "torch\nscipy"):
        arm_userland._once(tmp_path / "packages", make, wanted)
    assert len(made) == 2


def test_where_the_index_of_cpu_wheels_does_not_answer_the_usual_ones_follow_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []

    def run(what: str, command: list[object], log: Path) -> None:
        done.append(what)
        if "--index-url" in command:
            raise SystemExit("Could not resolve host")

    monkeypatch.setattr(arm_userland, "run", run)
    monkeypatch.setenv("TORCH_INDEX", "https://nowhere")
    arm_userland._twin(tmp_path / "twin")
    assert done == ["Making an environment", "Fetching torch for x86", "Fetching wheels for x86"]
    said = capsys.readouterr().out
    assert "https://nowhere did not give torch for x86: the package index's follows, with CUDA" in said


def test_without_the_engines_nothing_is_recorded_and_a_file_is_only_tried(tmp_path: Path) -> None:
    dies = ["false"]
    assert "The part 'onnx' failed" in arm_emulated.compute("arm", dies, "onnx", tmp_path)
    with pytest.raises(SystemExit, match="The part 'torch' failed"):
        arm_emulated.compute("arm", dies, "torch", tmp_path)


def test_the_emulated_machine_describes_an_arm_processor(tmp_path: Path) -> None:
    arm_userland.describe_processor(tmp_path)
    said = (tmp_path / "proc/cpuinfo").read_text()
    assert said.count("CPU implementer\t: 0x41") == os.cpu_count()
    assert "asimddp" in said
    assert (tmp_path / "sys/devices/system/cpu/cpu0/regs/identification/midr_el1").read_text().startswith("0x")
    command = arm_userland.emulated(tmp_path)
    assert command[0] == "qemu-aarch64-static"
    assert command[-1] == f"{tmp_path}/root/usr/bin/python3.11"


@pytest.fixture(scope="module")
def layer() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(6, 4, 3, 3, generator=generator), torch.randn(2, 4, 9, 9, generator=generator)
    bias = torch.linspace(-1, 1, 6)
    y = torch.nn.functional.conv2d(x, weight, bias, stride=2, padding=1)
    return arm_inputs.layer_of(weight, bias, x, y, stride=2, padding=1, groups=1)


@pytest.mark.parametrize("name", ["qnnpack", "fbgemm"])
def test_an_engine_follows_its_own_recipe_to_the_bit(layer: dict[str, Any], name: str) -> None:
    if name not in engines.available_engines():
        pytest.skip(f"no {name} in this build")
    with engines.using_engine(name):
        codes = arm_cases.kernel_codes(layer).numpy()
    assert arm_emulated.steps_apart(codes, arm_emulated.recipes(layer)[name]) == (0, 0)


def test_the_probes_tell_the_recipes_apart() -> None:
    probes = [
        arm_inputs.probe([1, 3, 5], zero_point=10),
        arm_inputs.probe([1, 3, 5], zero_point=11),
        arm_inputs.probe([1.4]),
    ]
    answers = [arm_emulated.recipes(one) for one in probes]
    told = {name: str([answer[name].tolist() for answer in answers]) for name in answers[0]}
    assert len(set(told.values())) == len(told) == 3
    assert len(arm_inputs.beside_ties()) > 0


def test_an_addition_on_x86_is_rounded_from_the_exact_sum_and_fixed_point_is_not(one_thread: None) -> None:
    images = torch.linspace(-2, 2, 3 * 96 * 96).view(1, 3, 96, 96)
    given = arm_inputs.addition(images)
    with engines.using_engine("qnnpack"):
        codes = arm_cases.sum_codes(given).numpy()
    ways = arm_emulated.addition_recipes(given)
    assert arm_emulated.steps_apart(codes, ways["float"]) == (0, 0)
    assert arm_emulated.steps_apart(codes, ways["fixed point"])[1] <= 1


def test_values_are_compared_in_steps() -> None:
    codes = np.array([1, 2, 200], np.uint8)
    assert arm_emulated.steps_apart(codes, np.array([1, 4, 200], np.uint8)) == (1, 2)
    logits = np.array([0.5, -1.0], np.float32)
    assert arm_emulated.steps_apart(logits, logits + np.array([0, 0.25], np.float32), 0.25) == (1, 1)
    assert arm_emulated.steps_apart(logits, logits + np.float32(1e-3))[1] == pytest.approx(1e-3, rel=0.01)


@pytest.mark.parametrize("scale", [0.25, 0.0305700302])
def test_the_scale_of_dequantized_values_is_found(scale: float) -> None:
    values = (np.array([-7, 2, 5, 90]) * scale).astype(np.float32)
    assert arm_emulated.grid(values) == pytest.approx(scale, rel=1e-5)


def test_float_values_have_no_scale() -> None:
    assert arm_emulated.grid(np.random.default_rng(0).normal(size=120).astype(np.float32)) is None


def test_a_row_tells_the_processor_s_share_from_the_version_s() -> None:
    here, twin, arm = (np.array(values, np.uint8) for values in ([1, 2, 3], [1, 2, 4], [1, 3, 4]))
    row = arm_emulated.compared(
        "layer x/onednn", {"layer x/onednn": arm}, {"layer x/onednn": here}, {"layer x/onednn": twin}
    )
    assert (row["differ"], row["differ_by_processor"], row["differ_by_version"], row["steps"]) == (2, 1, 1, 1)


def test_a_converted_skeleton_takes_a_calibrated_state(one_thread: None) -> None:
    with engines.using_engine("qnnpack"), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="must run observer")
        state = arm_cases.static_net(checkpoints.load_digits_int8().state_dict(), "qnnpack").state_dict()
    assert state["features.0.0.weight"].dtype == torch.qint8


def test_the_cases_are_written_with_a_line_about_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part: Callable[[Path], Any] = lambda folder: iter([("layer x/qnnpack", torch.ones(2))])  # noqa: E731
    monkeypatch.setitem(arm_cases.PARTS, "torch", part)
    monkeypatch.setattr("sys.argv", ["arm_cases", "torch", str(tmp_path), str(tmp_path / "here-torch.npz")])
    arm_cases.main()
    about, values = arm_emulated.loaded("here", "torch", tmp_path)
    assert about["torch"] == torch.__version__
    assert values["layer x/qnnpack"].tolist() == [1, 1]
    assert arm_emulated.loaded("arm", "torch", tmp_path) == ({}, {})


def test_the_record_says_where_it_was_made() -> None:
    found = recorded.results("arm_emulated", made_with="2.10")
    assert found["x86"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["engines"] == ["qnnpack", "onednn"]
    assert "qemu" in found["cpu"]
    assert json.dumps(found)
