"""A gate for a project of one's own: the int8 file is made anew, and is no worse than the one that was shipped."""

from pathlib import Path

from qhelpers.check.__main__ import main

HERE = Path(__file__).parent


def test_the_int8_file_is_no_worse_than_the_one_that_was_shipped(tmp_path: Path) -> None:
    job, shipped = str(HERE / "job.py"), str(HERE / "shipped.json")
    assert main([job, "--against", shipped, "--folder", str(tmp_path)]) == 0, "what got worse is printed above"
