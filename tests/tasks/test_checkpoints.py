"""Checkpoints: every way in which they can be missing or wrong."""

from pathlib import Path

import pytest
import torch
from torch import nn

from qhelpers import engines
from qhelpers.tasks import checkpoints

# --- committed checkpoints ---------------------------------------------------------------------------


def test_committed_files_match_their_recorded_hashes() -> None:
    sums = checkpoints.recorded_sums()
    committed = [path for pattern in ("*.pt", "*.npz") for path in checkpoints.WEIGHTS_FOLDER.glob(pattern)]
    assert {path.name for path in committed} == set(sums)
    for name, digest in sums.items():
        assert checkpoints.sha256(checkpoints.WEIGHTS_FOLDER / name) == digest


def test_committed_files_keep_their_size_limits() -> None:
    assert (checkpoints.WEIGHTS_FOLDER / "digits_float.pt").stat().st_size <= 10_000_000
    assert (checkpoints.WEIGHTS_FOLDER / "digits_int8_qnnpack.pt").stat().st_size < 3_000_000


def test_a_file_that_was_never_recorded_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  a.pt\n")
    monkeypatch.setattr(checkpoints, "WEIGHTS_FOLDER", tmp_path)
    for name, recorded in (("a.pt", "000000000000"), ("b.pt", "none")):
        torch.save({"x": torch.zeros(1)}, tmp_path / name)
        with pytest.raises(checkpoints.CheckpointError, match=rf"{name} has SHA-256 .*, recorded is {recorded}"):
            checkpoints.committed_state(name)


def test_an_altered_committed_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in checkpoints.WEIGHTS_FOLDER.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    altered = tmp_path / "digits_float.pt"
    altered.write_bytes(altered.read_bytes()[:-1] + b"?")
    monkeypatch.setattr(checkpoints, "WEIGHTS_FOLDER", tmp_path)
    with pytest.raises(checkpoints.CheckpointError, match="restore the file from version control"):
        checkpoints.load_digits_float()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(checkpoints.CheckpointError, match=r"There is no checkpoint .*gone.pt"):
        checkpoints.load_state(tmp_path / "gone.pt")


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(checkpoints.CheckpointError, match=r"locked\.pt cannot be read: Permission denied"):
        checkpoints.load_state(tmp_path / "locked.pt")


@pytest.mark.parametrize("cut", [0, 100, 5000])
def test_a_truncated_file_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "cut.pt"
    path.write_bytes((checkpoints.WEIGHTS_FOLDER / "digits_int8_qnnpack.pt").read_bytes()[:cut])
    with pytest.raises(checkpoints.CheckpointError, match=r"cut\.pt cannot be read as a checkpoint"):
        checkpoints.load_state(path)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "module.pt"
    torch.save(nn.ReLU(), path)
    with pytest.raises(checkpoints.CheckpointError, match="cannot be read as a checkpoint"):
        checkpoints.load_state(path)


def test_a_file_without_state_dict_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tensor.pt"
    torch.save(torch.zeros(2), path)
    with pytest.raises(checkpoints.CheckpointError, match="holds a Tensor, not a state_dict"):
        checkpoints.load_state(path)


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(checkpoints.CheckpointError, match="does not fit this BatchNorm1d"):
        checkpoints.load_into(nn.BatchNorm1d(2), {"weight": torch.zeros(3)}, "x.pt")


def test_int8_weights_do_not_fit_a_float_network() -> None:
    state = checkpoints.load_state(checkpoints.WEIGHTS_FOLDER / "digits_int8_qnnpack.pt")
    with pytest.raises(checkpoints.CheckpointError, match="does not fit"):
        checkpoints.load_into(checkpoints.skeleton(10, quantize=False), state, "int8")


# --- builders and engines ----------------------------------------------------------------------------


def test_unknown_builder_offers_the_nearest() -> None:
    with pytest.raises(ValueError, match="Did you mean resnet18"):
        checkpoints.builder("resnet81")


def test_unknown_builder_without_a_near_name_lists_all() -> None:
    with pytest.raises(ValueError, match="There are: googlenet, inception_v3"):
        checkpoints.builder("vit")


def test_int8_model_for_an_engine_that_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "available_engines", lambda: ["qnnpack"])
    with pytest.raises(engines.EngineError, match="no engine 'x86'"):
        checkpoints.load_digits_int8("x86")
