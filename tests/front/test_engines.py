"""Engines: selected, restored, and refused where they do not exist."""

from pathlib import Path

import pytest
import torch

from qhelpers import engines


def test_using_engine_restores_after_an_error() -> None:
    before = torch.backends.quantized.engine
    with pytest.raises(KeyError), engines.using_engine("qnnpack"):
        raise KeyError
    assert torch.backends.quantized.engine == before


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
        ({"architecture": "riscv64"}, []),
    ],
)
def test_the_instructions_that_matter_for_int8_are_named(capabilities: dict[str, bool], expected: list[str]) -> None:
    assert engines.int8_instructions(capabilities) == expected


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
