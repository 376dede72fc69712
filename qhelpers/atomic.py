"""Files written whole or not at all: first beside the older file, then renamed into its place."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class WriteError(OSError):
    """A file cannot be written where it should be; the older one, if there was one, is still there."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to; what is there when the block ends without an error replaces ``path``.

    The part has the name of the file, because archives keep it. Missing folders are made, an older file's permissions
    are kept, and a link is followed. What the block itself raises is passed on.

    Raises:
        WriteError: if the folder cannot be made or takes no files, or something other than a file is in its place.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(Path(folder) / "new" / "a.txt") as part:
    ...         _ = part.write_text("all of it")
    ...     [file.read_text() for file in Path(folder).rglob("*.*") if file.is_file()]
    ['all of it']
    """
    target = Path(os.path.realpath(path))  # absolute, too: the block may change the working folder
    if os.path.exists(target) and not target.is_file():
        raise WriteError(f"{path.name} cannot be written into {path.parent}: something else has that name.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=target.parent))
    except OSError as error:
        raise _write_error(path, error) from error
    try:
        part = folder / target.name
        yield part
        try:
            if target.exists():
                shutil.copymode(target, part)
            os.replace(part, target)
        except OSError as error:
            raise _write_error(path, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_error(path: Path, error: OSError) -> WriteError:
    return WriteError(f"{path.name} cannot be written into {path.parent}: {error.strerror}.")


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8.

    Raises:
        WriteError: as :func:`replacing`, or if the disk is full.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_text(Path(folder) / "a.txt", "0.5 × 2")
    ...     (Path(folder) / "a.txt").read_text(encoding="utf-8")
    '0.5 × 2'
    """
    with replacing(path) as part:
        try:
            part.write_text(text, encoding="utf-8")
        except OSError as error:
            raise _write_error(path, error) from error
