"""Checkpoints and the published weights: every way in which they can be missing or wrong."""

import hashlib
import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from qhelpers import engines, models, published


def published_stand_in() -> dict[str, torch.Tensor]:
    """An int8 state_dict with the keys of the published one (random weights)."""
    return models.skeleton(1000, quantize=True).state_dict()


@pytest.fixture(scope="module")
def stand_in_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "weights.pth"
    torch.save(published_stand_in(), path)
    return path


class Server(http.server.BaseHTTPRequestHandler):
    body = b""
    declared = 0
    wait_s = 0.0

    def do_GET(self) -> None:
        time.sleep(self.wait_s)
        self.send_response(200)
        self.send_header("Content-Length", str(self.declared))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Serve bytes on loopback in place of the official address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def start(body: bytes, *, declared: int | None = None, wait_s: float = 0.0, digest: str | None = None) -> None:
        Server.body, Server.declared, Server.wait_s = body, len(body) if declared is None else declared, wait_s
        prefix = (digest or hashlib.sha256(body).hexdigest())[:8]
        pretend_address(monkeypatch, f"http://127.0.0.1:{server.server_port}/mobilenet_v2_qnnpack_{prefix}.pth")

    yield start
    server.shutdown()
    server.server_close()


def pretend_address(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    class Official:
        meta = published.OFFICIAL.meta

    Official.url = url  # type: ignore[attr-defined]
    monkeypatch.setattr(published, "OFFICIAL", Official)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("*")] if folder.is_dir() else []


# --- committed checkpoints ---------------------------------------------------------------------------


def test_committed_files_match_their_recorded_hashes() -> None:
    sums = models.recorded_sums()
    committed = [path for pattern in ("*.pt", "*.npz") for path in models.WEIGHTS_FOLDER.glob(pattern)]
    assert {path.name for path in committed} == set(sums)
    for name, digest in sums.items():
        assert models.sha256(models.WEIGHTS_FOLDER / name) == digest


def test_committed_files_keep_their_size_limits() -> None:
    assert (models.WEIGHTS_FOLDER / "digits_float.pt").stat().st_size <= 10_000_000
    assert (models.WEIGHTS_FOLDER / "digits_int8_qnnpack.pt").stat().st_size < 3_000_000


def test_a_wrong_hash_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"x": torch.zeros(1)}, path)
    with pytest.raises(models.CheckpointError, match=r"a.pt has SHA-256 .*, recorded is 000000000000"):
        models.load_state(path, "0" * 64)


def test_an_altered_committed_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in models.WEIGHTS_FOLDER.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    altered = tmp_path / "digits_float.pt"
    altered.write_bytes(altered.read_bytes()[:-1] + b"?")
    monkeypatch.setattr(models, "WEIGHTS_FOLDER", tmp_path)
    with pytest.raises(models.CheckpointError, match="restore the file from version control"):
        models.load_digits_float()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(models.CheckpointError, match=r"There is no checkpoint .*gone.pt"):
        models.load_state(tmp_path / "gone.pt")


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(models.CheckpointError, match=r"locked\.pt cannot be read: Permission denied"):
        models.load_state(tmp_path / "locked.pt")


@pytest.mark.parametrize("cut", [0, 100, 5000])
def test_a_truncated_file_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "cut.pt"
    path.write_bytes((models.WEIGHTS_FOLDER / "digits_int8_qnnpack.pt").read_bytes()[:cut])
    with pytest.raises(models.CheckpointError, match=r"cut\.pt cannot be read as a checkpoint"):
        models.load_state(path)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "module.pt"
    torch.save(nn.ReLU(), path)
    with pytest.raises(models.CheckpointError, match="cannot be read as a checkpoint"):
        models.load_state(path)


def test_a_file_without_state_dict_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tensor.pt"
    torch.save(torch.zeros(2), path)
    with pytest.raises(models.CheckpointError, match="holds a Tensor, not a state_dict"):
        models.load_state(path)


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(models.CheckpointError, match="does not fit this BatchNorm1d"):
        models.load_into(nn.BatchNorm1d(2), {"weight": torch.zeros(3)}, "x.pt")


def test_int8_weights_do_not_fit_a_float_network() -> None:
    state = models.load_state(models.WEIGHTS_FOLDER / "digits_int8_qnnpack.pt")
    with pytest.raises(models.CheckpointError, match="does not fit"):
        models.load_into(models.skeleton(10, quantize=False), state, "int8")


# --- guards ------------------------------------------------------------------------------------------


def test_float_model_is_no_int8_model() -> None:
    with pytest.raises(models.NotQuantizedError, match="was a qconfig set before prepare"):
        models.require_quantized(models.load_digits_float())


def test_training_mode_names_the_module() -> None:
    model = models.load_digits_float()
    model.classifier[0].train()
    with pytest.raises(models.TrainingModeError, match=r"classifier\.0"):
        models.require_eval(model)


def test_unknown_builder_offers_the_nearest() -> None:
    with pytest.raises(models.BuilderError, match="Did you mean resnet18"):
        models.builder("resnet81")


def test_unknown_builder_without_a_near_name_lists_all() -> None:
    with pytest.raises(models.BuilderError, match="There are: googlenet, inception_v3"):
        models.builder("vit")


def test_int8_model_for_an_engine_that_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "available_engines", lambda: ["qnnpack"])
    with pytest.raises(engines.EngineError, match="no engine 'x86'"):
        models.load_digits_int8("x86")


# --- the published weights ---------------------------------------------------------------------------


def test_the_cache_comes_first(empty_hub: Path, stand_in_file: Path) -> None:
    empty_hub.parent.mkdir(parents=True)
    empty_hub.write_bytes(stand_in_file.read_bytes())
    found = published.pretrained_mobilenet_v2(timeout_s=0)
    assert (found.source, found.notes, found.in_cache) == ("hub cache", [], True)
    assert len(found.categories) == 1000


@pytest.mark.parametrize("damage", ["truncated", "lacks keys"])
def test_a_bad_file_in_the_cache_is_reported_and_left(empty_hub: Path, stand_in_file: Path, damage: str) -> None:
    empty_hub.parent.mkdir(parents=True)
    if damage == "truncated":
        empty_hub.write_bytes(stand_in_file.read_bytes()[:1000])
    else:
        state = published_stand_in()
        del state["features.0.0.scale"]
        torch.save(state, empty_hub)
    content = empty_hub.read_bytes()
    found = published.pretrained_mobilenet_v2(timeout_s=0)
    assert found.source == "built-in"
    assert "left in place and passed over" in found.notes[0]
    assert empty_hub.read_bytes() == content


def test_a_good_download_is_renamed_into_place(
    tmp_path: Path, empty_hub: Path, stand_in_file: Path, serve: Callable[..., None]
) -> None:
    serve(stand_in_file.read_bytes())
    found = published.pretrained_mobilenet_v2(timeout_s=20)
    assert (found.source, found.in_cache) == ("download", True)
    assert leftovers(empty_hub.parent) == [published.OFFICIAL.url.rsplit("/", 1)[1]]
    assert published.pretrained_mobilenet_v2(timeout_s=0).source == "hub cache"


def test_a_bad_file_in_the_cache_survives_a_good_download(
    empty_hub: Path, stand_in_file: Path, serve: Callable[..., None]
) -> None:
    serve(stand_in_file.read_bytes())
    bad = empty_hub.with_name(published.OFFICIAL.url.rsplit("/", 1)[1])
    bad.parent.mkdir(parents=True)
    bad.write_bytes(b"bad")
    found = published.pretrained_mobilenet_v2(timeout_s=20)
    assert (found.source, found.in_cache) == ("download", False)
    assert bad.read_bytes() == b"bad"


def test_a_download_with_another_hash_is_not_kept(
    empty_hub: Path, stand_in_file: Path, serve: Callable[..., None]
) -> None:
    serve(stand_in_file.read_bytes(), digest="0" * 64)
    found = published.pretrained_mobilenet_v2(timeout_s=20)
    assert found.source == "built-in"
    assert "invalid hash value" in found.notes[-1]
    assert leftovers(empty_hub.parent) == []


def test_a_half_written_download_is_not_kept(empty_hub: Path, stand_in_file: Path, serve: Callable[..., None]) -> None:
    body = stand_in_file.read_bytes()
    serve(body[: len(body) // 2], declared=len(body), digest=hashlib.sha256(body).hexdigest())
    found = published.pretrained_mobilenet_v2(timeout_s=20)
    assert found.source == "built-in"
    assert leftovers(empty_hub.parent) == []


def test_a_server_that_does_not_answer_is_given_up(
    empty_hub: Path, stand_in_file: Path, serve: Callable[..., None]
) -> None:
    serve(stand_in_file.read_bytes(), wait_s=5)
    found = published.pretrained_mobilenet_v2(timeout_s=1)
    assert found.source == "built-in"
    assert "given up after 1 s" in found.notes[-1]
    assert 1 <= found.waited_s < 3
    assert leftovers(empty_hub.parent) == []


def test_a_refused_connection_falls_back(empty_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    pretend_address(monkeypatch, f"http://127.0.0.1:{port}/mobilenet_v2_qnnpack_00000000.pth")
    found = published.pretrained_mobilenet_v2(timeout_s=10)
    assert (found.source, found.is_imagenet, found.image_size) == ("built-in", False, 96)
    assert "refused" in found.notes[-1]


def test_a_cache_that_cannot_be_written_costs_only_the_keeping(
    tmp_path: Path, stand_in_file: Path, serve: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(stand_in_file.read_bytes())
    (tmp_path / "a_file").write_text("in the way")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "a_file"))
    found = published.pretrained_mobilenet_v2(timeout_s=20)
    assert (found.source, found.in_cache) == ("download", False)
    assert "cannot be written" in found.notes[0]


def test_no_write_permission_in_the_cache(
    empty_hub: Path, stand_in_file: Path, serve: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(stand_in_file.read_bytes())
    real = published.tempfile.TemporaryDirectory

    def refuse(dir: Path | None = None, **options: object) -> object:
        if dir is not None:
            raise PermissionError(13, "Permission denied")
        return real(**options)  # type: ignore[call-overload]

    monkeypatch.setattr(published.tempfile, "TemporaryDirectory", refuse)
    found = published.pretrained_mobilenet_v2(timeout_s=20)
    assert found.source == "download"
    assert "Permission denied" in found.notes[0]
