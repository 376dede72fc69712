"""The published weights: from the cache, the network or the book, and every way in which that can fail."""

import hashlib
import http.server
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from qhelpers import atomic
from qhelpers.tasks import checkpoints, published


def published_stand_in() -> dict[str, torch.Tensor]:
    """An int8 state_dict with the keys of the published one (random weights)."""
    return checkpoints.skeleton(1000, quantize=True).state_dict()


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
    real = atomic.tempfile.mkdtemp

    def refuse(suffix: str | None = None, prefix: str | None = None, dir: Path | None = None) -> str:
        if dir is not None:
            raise PermissionError(13, "Permission denied")
        return real(suffix, prefix, dir)

    serve(stand_in_file.read_bytes())
    monkeypatch.setattr(atomic.tempfile, "mkdtemp", refuse)
    found = published.pretrained_mobilenet_v2(timeout_s=20)
    assert found.source == "download"
    assert "Permission denied" in found.notes[0]


# --- pictures -------------------------------------------------------------------------------------------


def test_a_truncated_image_is_refused() -> None:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "JPEG")
    with pytest.raises(published.ImageError, match="The image cannot be read as an image: image file is truncated"):
        published.read_image(io.BytesIO(buffer.getvalue()[:-200]))


def test_text_is_refused_as_an_image(tmp_path: object) -> None:
    with pytest.raises(published.ImageError, match="format is not known"):
        published.read_image(io.BytesIO(b"not an image"))


def test_an_image_is_read_as_rgb() -> None:
    buffer = io.BytesIO()
    Image.new("L", (4, 3), 7).save(buffer, "PNG")
    buffer.seek(0)
    assert published.read_image(buffer).mode == "RGB"
