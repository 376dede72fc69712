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
    with pytest.raises(atomic.WriteError, match=r"a\.txt cannot be written .* something else has that name"):
        atomic.write_text(tmp_path / "a.txt", "x")
    assert everything_below(tmp_path) == ["a.txt"]


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(atomic.WriteError, match=r"a\.txt cannot be written into .*folder"):
        atomic.write_text(tmp_path / "folder" / "a.txt", "x")


def test_a_folder_that_takes_no_files_is_named() -> None:
    with pytest.raises(atomic.WriteError, match=r"a\.txt cannot be written into /proc/self"):
        atomic.write_text(Path("/proc/self/a.txt"), "x")


def test_an_older_file_keeps_its_permissions_and_a_link_is_followed(tmp_path: Path) -> None:
    real, link = tmp_path / "real.txt", tmp_path / "link.txt"
    real.write_text("old")
    real.chmod(0o600)
    link.symlink_to(real)
    atomic.write_text(link, "new")
    assert link.is_symlink()
    assert (real.read_text(), real.stat().st_mode & 0o777) == ("new", 0o600)


def test_the_block_may_change_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with atomic.replacing(Path("a.txt")) as part:
        monkeypatch.chdir(tmp_path / "elsewhere")
        part.write_text("x")
    assert everything_below(tmp_path) == ["a.txt", "elsewhere"]


def test_a_name_that_is_too_long_is_a_write_error(tmp_path: Path) -> None:
    with pytest.raises(atomic.WriteError, match=r"cannot be written into .*File name too long"):
        atomic.write_text(tmp_path / ("a" * 300), "x")
