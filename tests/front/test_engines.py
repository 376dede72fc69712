"""Engines: selected, restored, and refused where they do not exist."""

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.ao import quantization as tq
from torch.ao.quantization import quantize_fx

from qhelpers import engines
from qhelpers.book import chapter
from qhelpers.tasks import checkpoints, networks


def test_using_engine_restores_after_an_error() -> None:
    before = torch.backends.quantized.engine
    with pytest.raises(KeyError), engines.using_engine("qnnpack"):
        raise KeyError
    assert torch.backends.quantized.engine == before


def test_what_is_no_name_is_no_engine() -> None:
    with pytest.raises(engines.EngineError, match="There is no quantized engine None"):
        engines.check_engine(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(("instruction", "multiplies"), [("amx_bf16", True), ("avx_ne_convert", False)])
def test_bf16_needs_an_instruction_that_multiplies(
    monkeypatch: pytest.MonkeyPatch, instruction: str, multiplies: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {instruction: True})
    assert engines.has_bf16() == multiplies


def test_unknown_engine_offers_the_nearest() -> None:
    with (
        pytest.raises(engines.EngineError, match=r"no quantized engine 'qnpack'. Did you mean 'qnnpack'"),
        engines.using_engine("qnpack"),
    ):
        pass


def test_unknown_engine_without_a_near_name_lists_all() -> None:
    with pytest.raises(engines.EngineError, match="Known engines: x86, fbgemm, onednn, qnnpack"):
        engines.check_engine("tpu")


def test_engine_that_this_build_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "available_engines", lambda: ["qnnpack"])
    with pytest.raises(engines.EngineError, match="has no engine 'x86'; it has qnnpack"):
        engines.check_engine("x86")


def test_default_engine_on_arm_is_qnnpack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "available_engines", lambda: ["qnnpack"])
    assert engines.default_engine() == "qnnpack"


def test_a_build_without_engines_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "available_engines", lambda: [])
    with pytest.raises(engines.EngineError, match="has no quantized engine"):
        engines.default_engine()


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True}, ["AVX2"]),
        ({"avx2": True, "avx512_bw": True}, ["AVX-512", "AVX2"]),
        ({"avx2": True, "avx512_bw": True, "avx512_vnni": True}, ["AVX-512 VNNI", "AVX-512", "AVX2"]),
        ({"avx2": True, "avx_vnni": True}, ["AVX-VNNI", "AVX2"]),
        (
            {"avx2": True, "avx512_bw": True, "avx512_vnni": True, "amx_int8": True},
            ["AMX", "AVX-512 VNNI", "AVX-512", "AVX2"],
        ),
        ({"neon": True, "dot": False}, ["NEON"]),
        ({"neon": True, "dot": True, "i8mm": True}, ["NEON i8mm", "NEON dot product", "NEON"]),
    ],
)
def test_the_instructions_that_matter_for_int8_are_named(capabilities: dict[str, bool], expected: list[str]) -> None:
    assert engines.int8_instructions(capabilities) == expected


@pytest.mark.parametrize("capabilities", [{}, {"architecture": "riscv64"}])
def test_instructions_that_cannot_be_read_are_not_taken_for_none(capabilities: dict[str, bool]) -> None:
    with pytest.raises(engines.EngineError, match="cannot be read"):
        engines.int8_instructions(capabilities)


def test_a_processor_that_pytorch_cannot_ask_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("cpuinfo failed")

    monkeypatch.setattr(torch.cpu, "get_capabilities", fail)
    with pytest.raises(engines.EngineError, match=r"instructions of .* cannot be read: cpuinfo failed"):
        engines.has_int8_dot_product()
    assert "its instructions cannot be read" in chapter.environment()


def test_a_model_under_an_engine_leaves_the_one_that_is_set() -> None:
    before = torch.backends.quantized.engine
    model = engines.UnderEngine("qnnpack", lambda x: torch.backends.quantized.engine)
    assert (model(torch.ones(1)), torch.backends.quantized.engine) == ("qnnpack", before)
    with pytest.raises(engines.EngineError, match="no quantized engine 'x87'"):
        engines.UnderEngine("x87", model)


@pytest.mark.filterwarnings("ignore:Please use quant_min:UserWarning", "ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("kind", ["convolutions", "LSTM", "Linear", "FX graph"])
def test_int8_models_are_the_same_after_they_were_pickled(kind: str) -> None:
    with torch.random.fork_rng(devices=[]), engines.using_engine(engines.default_engine()):
        images = torch.rand(1, 3, 96, 96)
        model: nn.Module
        if kind == "convolutions":
            model = checkpoints.load_digits_int8(engines.default_engine())
        elif kind == "FX graph":
            mapping = tq.get_default_qconfig_mapping(engines.default_engine())
            prepared = quantize_fx.prepare_fx(networks.load_digit_resnet(), mapping, (images,))
            prepared(images)
            model = quantize_fx.convert_fx(prepared)
        elif kind == "LSTM":
            model = tq.quantize_dynamic(networks.load_language_model(), {nn.LSTM, nn.Linear})
            images = torch.zeros(1, 3, dtype=torch.long)
        else:
            model = tq.quantize_dynamic(nn.Sequential(nn.Flatten(), nn.Linear(3 * 96 * 96, 2)).eval(), {nn.Linear})
        again = pickle.loads(engines.pickled(model))
        with torch.inference_mode():
            outputs = [net(images) for net in (model, again)]
        one, other = (output[0] if isinstance(output, tuple) else output for output in outputs)
        assert torch.equal(one, other)


def test_a_function_that_names_a_module_of_pytorch_s_settings_can_be_pickled() -> None:
    def fast_path_is_on() -> bool:
        return bool(torch.backends.mha.get_fastpath_enabled()) and mha is torch.backends.mha

    mha = torch.backends.mha
    assert pickle.loads(engines.pickled(fast_path_is_on))() == fast_path_is_on()


def test_the_processor_of_this_machine_is_known_as_the_system_knows_it() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file() or "flags" not in cpuinfo.read_text():
        pytest.skip("the system lists no x86 flags")
    flags = next(line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")).split()
    known = {"AVX2": "avx2", "AVX-512 VNNI": "avx512_vnni", "AVX-VNNI": "avx_vnni", "AMX": "amx_int8"}
    for label, flag in known.items():
        assert (label in engines.int8_instructions()) == (flag in flags)


@pytest.mark.parametrize(
    ("name", "instructions", "expected"),
    [
        ("x86", ["AVX2"], True),
        ("x86", ["AVX-512", "AVX2"], True),
        ("x86", ["AVX-VNNI", "AVX2"], True),
        ("onednn", ["AVX-VNNI", "AVX2"], False),
        ("onednn", ["AVX2"], True),
        ("fbgemm", ["AVX-512 VNNI", "AVX-512", "AVX2"], False),
        ("qnnpack", ["AVX2"], False),
        ("onednn", ["NEON"], False),
    ],
)
def test_which_engines_may_saturate_where(name: str, instructions: list[str], expected: bool) -> None:
    assert engines.may_saturate(name, instructions) == expected
