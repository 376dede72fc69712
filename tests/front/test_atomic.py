"""Files written whole or not at all."""

from pathlib import Path

import pytest

from qhelpers import atomic


def everything_below(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_a_file_takes_the_place_of_an_older_one_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "a.txt"
    for text in ("one", "two × 2"):
        atomic.write_text(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert everything_below(tmp_path) == ["a.txt", "new folder"]


def test_the_part_has_the_name_of_the_file(tmp_path: Path) -> None:
    with atomic.replacing(tmp_path / "a.pt") as part:
        assert part.name == "a.pt"
        part.write_text("x")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_older_file_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    (tmp_path / "a.txt").write_text("old")

    def interrupted() -> None:
        with atomic.replacing(tmp_path / "a.txt") as part:
            part.write_text("half")
            raise error

    with pytest.raises(error):
        interrupted()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert everything_below(tmp_path) == ["a.txt"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with (
        pytest.raises(atomic.WriteError, match=r"a\.txt cannot be written .*No such file"),
        atomic.replacing(tmp_path / "a.txt"),
    ):
        pass
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_folder_in_the_place_of_the_file_stays(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(atomic.WriteError, match=r"a\.txt cannot be written into"):
        atomic.write_text(tmp_path / "a.txt", "x")
    assert everything_below(tmp_path) == ["a.txt"]


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(atomic.WriteError, match=r"a\.txt cannot be written into .*folder"):
        atomic.write_text(tmp_path / "folder" / "a.txt", "x")


def test_a_folder_that_takes_no_files_is_named() -> None:
    with pytest.raises(atomic.WriteError, match=r"a\.txt cannot be written into /proc/self"):
        atomic.write_text(Path("/proc/self/a.txt"), "x")
