"""The lock: the files that follow from it agree with it, and make installs what they say, without CUDA where it can."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tools import lock
from tools.common import ROOT

FILES = ("pyproject.toml", "uv.lock", "requirements.txt", "pylock.toml")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_the_lock_and_what_follows_from_it_agree() -> None:
    lock.check(ROOT)


@pytest.mark.parametrize("name", ["requirements.txt", "pylock.toml"])
def test_a_file_that_does_not_match_the_lock_is_named_with_what_differs_and_the_cure(project: Path, name: str) -> None:
    pin = "torch==2.14.1" if name == "requirements.txt" else 'name = "torch"\nversion = "2.14.1"'
    replace(project / name, f"{pin}\n", pin.replace("2.14.1", "2.14.0") + "\n")
    with pytest.raises(SystemExit, match=rf"{name} does not match uv\.lock(.|\n)*2\.14\.0(.|\n)*2\.14\.1") as refused:
        lock.check(project)
    assert "Run `make lock`" in str(refused.value)


def test_a_file_that_is_missing_does_not_match_either(project: Path) -> None:
    (project / "pylock.toml").unlink()
    with pytest.raises(SystemExit, match=r"pylock\.toml does not match uv\.lock"):
        lock.check(project)


def test_a_requirement_that_was_not_locked_is_told(project: Path) -> None:
    replace(project / "pyproject.toml", '"scipy>=1.11"', '"scipy>=99"')
    with pytest.raises(SystemExit, match=r"uv\.lock does not match pyproject\.toml: run `make lock`"):
        lock.check(project)


def test_every_file_that_is_installed_by_hash_has_one_and_cuda_is_for_those_alone() -> None:
    packages = tomllib.loads((ROOT / "pylock.toml").read_text())["packages"]
    assert [package["name"] for package in packages if "directory" in package] == ["qhelpers"]
    for package in packages:
        files = [*package.get("wheels", []), *filter(None, [package.get("sdist")])]
        assert files or "directory" in package
        assert all(len(file["hashes"]["sha256"]) == 64 for file in files)
    locked = {package["name"] for package in packages}
    pinned = set(re.findall(r"^([\w-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    assert "torch" in pinned
    assert {name for name in locked - pinned if not name.startswith(("nvidia-", "cuda-"))} == {"qhelpers", "triton"}
    assert not {name for name in pinned if lock.OF_CUDA.match(f"{name}==")}


def test_the_first_packages_get_the_hash_of_each_wheel() -> None:
    lines = lock.hashes(["uv", "setuptools"], ROOT).splitlines()
    assert [line.split("==")[0] for line in lines] == ["uv", "setuptools"]
    assert lines[0].count(" --hash=sha256:") > 5, "a wheel for each platform"
    with pytest.raises(SystemExit, match=r"pylock\.toml has no such-a-package: run `make lock`"):
        lock.hashes(["such-a-package"], ROOT)


@pytest.mark.parametrize("content", ["<<<<<<< HEAD\n", None], ids=["half merged", "missing"])
def test_a_lock_that_cannot_be_read_is_told_before_anything_is_installed(project: Path, content: str | None) -> None:
    (project / "pylock.toml").unlink() if content is None else (project / "pylock.toml").write_text(content)
    with pytest.raises(
        SystemExit, match=r"pylock\.toml cannot be read \(.*\): take it back with git, or run `make lock`"
    ):
        lock.hashes(["uv"], project)


def wheel(folder: Path, name: str, version: str, *needs: str) -> None:
    """A wheel that holds one empty module, in an index that is a folder."""
    home, info = folder / name, f"{name.replace('-', '_')}-{version}.dist-info"
    home.mkdir(parents=True, exist_ok=True)
    file = home / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{name.replace('-', '_')}.py", "")
        about = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        archive.writestr(f"{info}/METADATA", "\n".join([*about, *(f"Requires-Dist: {need}" for need in needs)]) + "\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    links = [f'<a href="{path.name.replace("+", "%2B")}">{path.name}</a>' for path in home.glob("*.whl")]
    (home / "index.html").write_text("\n".join(links))


def test_raising_the_pins_takes_the_newest_release_and_says_what_it_changed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    index = (tmp_path / "index").as_uri()
    project = '[project]\nname = "small"\nversion = "1"\nrequires-python = ">=3.11"\ndependencies = ["thing>=1"]\n'
    (tmp_path / "pyproject.toml").write_text(f'{project}[[tool.uv.index]]\nurl = "{index}"\ndefault = true\n')
    wheel(tmp_path / "index", "thing", "1.0")
    lock.write(tmp_path)
    wheel(tmp_path / "index", "thing", "2.0")
    lock.write(tmp_path)
    assert "thing==1.0\n" in (tmp_path / "requirements.txt").read_text(), "a pin stays until it is raised"
    lock.write(tmp_path, upgrade=True)
    assert "thing==2.0\n" in (tmp_path / "requirements.txt").read_text()
    assert 'version = "2.0"' in (tmp_path / "pylock.toml").read_text()
    assert "Updated thing v1.0 -> v2.0" in capfd.readouterr().err


def make(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Make there, with no setting of an outer make or of this machine's pip."""
    ours = ("PIP_", "MAKE", "MFLAGS", "TORCH_INDEX", "LOCKED")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    command = ["make", f"PYTHON={sys.executable}", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env | settings)


@pytest.mark.parametrize("answers", [True, False], ids=["the CPU index answers", "it does not"])
def test_a_set_up_takes_torch_without_cuda_or_says_why_not(answers: bool, tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "requirements.txt").write_text("torch==2.14.1\ntorchvision==0.29.1\n")
    usual, cpu = tmp_path / "usual", tmp_path / "cpu"
    wheel(usual, "torch", "2.14.1", "nvidia-cublas")
    wheel(usual, "torchvision", "0.29.1", "torch==2.14.1")
    wheel(usual, "nvidia-cublas", "13.1")
    if answers:
        wheel(cpu, "torch", "2.14.1+cpu")
        wheel(cpu, "torchvision", "0.29.1+cpu", "torch==2.14.1")
    settings = {"PIP_INDEX_URL": usual.as_uri(), "PIP_CONFIG_FILE": os.devnull}
    done = make(tmp_path, ".venv/installed", f"TORCH_INDEX={cpu.as_uri()}", **settings)
    assert done.returncode == 0, done.stderr
    has_cuda = bool(list(tmp_path.glob(".venv/lib/python3*/site-packages/nvidia_cublas*")))
    assert has_cuda is not answers
    words = f"\n.venv gets torch with CUDA, several gigabytes that the book never uses: {cpu.as_uri()} did not answer"
    assert (words in done.stdout) is not answers


def test_without_an_index_of_its_own_torch_comes_with_the_other_pins() -> None:
    lines = make(ROOT, "--dry-run", "VENV=/nowhere/venv", "/nowhere/venv/installed", "TORCH_INDEX=").stdout
    assert "--index-url" not in lines
    assert "CUDA" not in lines


def test_locked_clears_the_environment_checks_the_lock_and_installs_everything_by_hash() -> None:
    lines = make(ROOT, "--dry-run", "VENV=/nowhere/venv", "/nowhere/venv/installed", "LOCKED=1").stdout
    steps = ["-m venv --clear", "--hashes uv setuptools", "--require-hashes --no-deps", "tools.lock --check"]
    steps += ["uv pip install", "pip check", "touch /nowhere/venv/by-hash", "touch /nowhere/venv/installed"]
    positions = [lines.index(step) for step in steps]
    assert positions == sorted(positions)
    assert "-r pylock.toml" in lines
    assert "requirements.txt" not in lines
    assert "--index-url" not in lines
