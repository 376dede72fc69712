"""Engines: selected, restored, and refused where they do not exist."""

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
