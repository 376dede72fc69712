"""Download the published int8 weights into torch's hub cache, and check that they are the published file.

    python -m tools.weights

torch.hub compares the first 8 hex digits of the SHA-256, which stand in the file's name. These 32 bits find a damaged
file, but a forged one could be made to match them. So the whole hash is compared, too, where ``weights.sha256`` beside
this file holds it, in the form that ``sha256sum`` prints; where it does not, the line to add is printed.
"""

import hashlib
import urllib.error
from pathlib import Path

import torch

from qhelpers import atomic
from qhelpers.tasks import published
from tools.common import ROOT

KNOWN = ROOT / "tools" / "weights.sha256"


def cached() -> Path:
    """Where torch's hub cache keeps the weights."""
    name: str = published.OFFICIAL.url.rsplit("/", 1)[1]
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def known_hash(name: str) -> str | None:
    """The whole SHA-256 that is recorded for a file, None if none is."""
    lines = KNOWN.read_text().splitlines() if KNOWN.is_file() else []
    recorded = {name: digest for digest, name in (line.split() for line in lines if line.strip())}
    return recorded.get(name)


def problem(path: Path) -> str | None:
    """Why a file is not the published one, in a sentence; None if nothing speaks against it."""
    if not path.is_file():
        return f"{path} is missing: make weights downloads it."
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    begins, whole = path.stem.rsplit("_", 1)[1], known_hash(path.name)
    if not digest.startswith(begins):
        return f"{path} is not the published file: its SHA-256 begins with {digest[:8]}, not with {begins}. Remove it."
    if whole is not None and digest != whole:
        return f"{path} is not the file that is recorded: its SHA-256 is {digest}, not {whole}. Remove it."
    return None


def download(url: str, target: Path) -> None:
    """Fetch the weights; torch.hub compares the 8 digits of their name before they are renamed into place.

    Raises:
        SystemExit: if nothing usable comes.
    """
    begins = target.stem.rsplit("_", 1)[1]
    try:
        with atomic.replacing(target) as part:
            torch.hub.download_url_to_file(url, str(part), hash_prefix=begins, progress=False)
    except (urllib.error.URLError, RuntimeError, OSError) as error:  # RuntimeError: the hash differs
        raise SystemExit(f"{url} could not be downloaded: {error}") from error


def main() -> None:
    """Download what is missing, check it, and load it as the chapters do."""
    path = cached()
    if not path.is_file():
        download(published.OFFICIAL.url, path)
    found = problem(path)
    if found:
        raise SystemExit(found)
    loaded = published.pretrained_mobilenet_v2(timeout_s=0)
    if not loaded.is_imagenet:
        raise SystemExit(f"{path} cannot be loaded. {' '.join(loaded.notes)}")
    if known_hash(path.name):
        print(f"weights: {path.name} has the recorded SHA-256, all 64 digits")
    else:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        print(f"weights: of the SHA-256 of {path.name} only 8 digits are known, and they match.")
        print(f"To have all 64 checked from now on, add this line to {KNOWN.relative_to(ROOT)}:\n{digest}  {path.name}")


if __name__ == "__main__":
    main()
