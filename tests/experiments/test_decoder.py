"""The scripts that train the decoder and time one token, as far as a few small steps can tell."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments import decoder_speed, runs, text_decoder
from qhelpers.book import chapter
from qhelpers.tasks import decoder

SIZE = {"width": 64, "layers": 2, "heads": 2, "context": 8, "vocabulary": 64}


@pytest.fixture
def small_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two windows of four characters a step, a short warm-up, and a decay in the last epoch."""
    for name, value in {"WINDOWS": 2, "LENGTH": 4, "WARM_UP": 2, "DECAY": 1}.items():
        monkeypatch.setattr(text_decoder, name, value)


def run(state_file: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int = -1) -> tuple[dict[str, Tensor], float]:
    """Three epochs of five steps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = decoder.Decoder(width=8, layers=1, heads=2, context=4, vocabulary=5, dropout=0.1)
    codes, validation = (torch.randint(5, (n,), generator=torch.Generator().manual_seed(n)) for n in (40, 64))
    plain = text_decoder.batch_of

    def batch_of(codes: Tensor, step: int, seed: int) -> Any:
        if step == stop_at:
            raise KeyboardInterrupt
        return plain(codes, step, seed)

    with monkeypatch.context() as patched:
        patched.setattr(text_decoder, "batch_of", batch_of)
        bits = text_decoder.train(model, codes, validation, epochs=3, seed=0, state_file=state_file)
    return model.state_dict(), bits


@pytest.mark.usefixtures("small_text")
def test_an_interrupted_decoder_run_equals_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, bits = run(tmp_path / "whole.pt", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "state.pt", monkeypatch, stop_at=7)
    resumed, again = run(tmp_path / "state.pt", monkeypatch)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert bits == again


def test_the_rate_rises_stays_and_falls() -> None:
    rates = [text_decoder.rate(step, each=100, epochs=8) for step in range(800)]
    assert rates[0] == pytest.approx(1 / text_decoder.WARM_UP)
    assert rates[199] == rates[300] == 1.0
    assert rates[301] < 1.0
    assert 0 < rates[799] < 0.01


def test_windows_are_followed_by_the_next_characters() -> None:
    inputs, labels = text_decoder.batch_of(torch.arange(1000), step=3, seed=0)
    assert torch.equal(inputs.flatten() + 1, labels)
    assert inputs.shape == (text_decoder.WINDOWS, text_decoder.LENGTH)


def test_only_matrices_decay() -> None:
    with torch.random.fork_rng(devices=[]):
        decayed, free = text_decoder.parameter_groups(decoder.Decoder(width=8, layers=1, heads=2, vocabulary=5))
    assert [one["weight_decay"] for one in (decayed, free)] == [0.1, 0.0]
    assert {p.ndim for p in decayed["params"]} == {2}  # type: ignore[attr-defined]
    assert {p.ndim for p in free["params"]} == {1}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("float32", 32.0),
        ("bf16", 16.0),
        ("int8, quantize_dynamic", 8.0),
        ("int4 weight-only", 5.0),
        ("int4, unpacked", 8.75),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_candidate_is_timed_and_its_bytes_counted(name: str, bits: float, monkeypatch: pytest.MonkeyPatch) -> None:
    chapter.quiet_imports()
    monkeypatch.setattr(decoder_speed, "SIZE", SIZE)
    with torch.random.fork_rng(devices=[]):
        row = decoder_speed.measure(name, tokens=4)
    weights = 2 * 12 * 64**2 + 64**2
    assert row["weight_mb"] == pytest.approx(weights * bits / 8 / 1e6, abs=0.06)
    assert row["quartiles_ms"][0] <= row["ms"] <= row["quartiles_ms"][1]
    assert row["sqnr_db"] is None if bits == 32 else row["sqnr_db"] > 10


def test_the_kernel_is_timed_against_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    with torch.random.fork_rng(devices=[]):
        rows = decoder_speed.kernels(width=64, layers=2, repeats=1)
    assert [row["tokens"] for row in rows] == [1, 4, 16, 64, 256, 1, 1]
    assert all(row["int4_ms"] > 0 and row["bf16_ms"] > 0 for row in rows)


def test_a_candidate_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="no such candidate, 1 threads: KeyError"):
        decoder_speed.in_fresh_process("no such candidate", 1, 1)


def test_the_record_has_the_baseline_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(name: str, threads: int, tokens: int, **variables: str) -> Any:
        return {"bandwidth": {"gb_s": 10.0}, "kernels": [{"tokens": 1}]}.get(name, {"ms": 1.0})

    monkeypatch.setattr(decoder_speed, "in_fresh_process", measured)
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["decoder_speed", "--threads", "1"])
    decoder_speed.main()
    found = json.loads((tmp_path / "decoder_speed.json").read_text())
    names = [row["candidate"] for row in found["rows"]]
    assert names.count(decoder_speed.BASELINE) == 2
    assert set(names) == set(decoder_speed.CANDIDATES)
    assert found["bandwidth_gb_s"] == {"1": 10.0}
    assert len(found["kernels"]) == 3
