"""Downloads that end in time, are checked by their hash, and are renamed into place."""

import shutil
import threading
from pathlib import Path

import torch

from qhelpers import atomic, guards
from qhelpers.tasks import checkpoints


def fetch(url: str, part: Path, timeout_s: float, sha256: str) -> None:
    """Download a file, for at most ``timeout_s`` seconds.

    It runs in a thread that is left behind at the deadline, since name look-ups know no time limit. Such a thread may
    still write to ``part``: let that be a file in a temporary folder.

    Args:
        url: the file's address.
        part: where to write it.
        timeout_s: seconds; 0 or less switches downloads off.
        sha256: the file's SHA-256 in hexadecimal digits, or the first few of them.

    Raises:
        CheckpointError: if the time is up, nothing can be fetched, or the hash differs.
    """
    if timeout_s <= 0:
        raise checkpoints.CheckpointError("Downloads are switched off (timeout_s=0).")
    outcome: list[Exception | None] = []

    def work() -> None:
        try:
            torch.hub.download_url_to_file(url, str(part), hash_prefix=sha256, progress=False)
            outcome.append(None)
        except Exception as error:  # handed over to the waiting thread, whatever it is
            outcome.append(error)

    thread = threading.Thread(target=work, daemon=True, name="bounded-download")
    thread.start()
    thread.join(timeout_s)
    if not outcome:
        raise checkpoints.CheckpointError(f"The download was given up after {timeout_s:.0f} s.")
    if outcome[0] is not None:
        raise checkpoints.CheckpointError(f"{type(outcome[0]).__name__}: {guards.first_line(outcome[0])}") from outcome[
            0
        ]


def keep(downloaded: Path, target: Path, notes: list[str]) -> bool:
    """Copy a downloaded file to its place in a cache, unless something is there or the place takes no files.

    Args:
        downloaded: the complete file.
        target: its place; missing folders are made.
        notes: gets a sentence if it cannot be written.

    Returns:
        Whether it was kept.
    """
    if target.exists():
        return False
    try:
        with atomic.replacing(target) as part:
            shutil.copyfile(downloaded, part)
    except OSError as error:
        notes.append(f"Nothing is kept in the cache. {error}")
        return False
    return True
