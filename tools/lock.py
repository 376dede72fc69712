"""The lock: ``pyproject.toml`` says what the book needs, ``uv.lock`` which releases, and two files follow from it.

``requirements.txt`` is for pip: every release, no hash, and none of the CUDA libraries that torch's Linux wheels ask
for, so that a CPU-only torch fits, too. ``pylock.toml`` is for installing by hash: every release, with the SHA-256 of
each of its files.
"""

import argparse
import difflib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]  # not from tools.common: hashes are asked for before anything is installed
OF_CUDA = re.compile(r"(nvidia|cuda)-|triton==")
HEAD = "# Made from uv.lock by `make lock`: edit pyproject.toml instead, or raise all pins with `make raise-pins`.\n"


def uv(*arguments: str, root: Path) -> str:
    """What uv prints, with its complaints on the error stream.

    Raises:
        SystemExit: if uv fails, after its own words.
    """
    from uv import find_uv_bin  # it comes with the set-up

    environment = os.environ | {"UV_PYTHON": sys.executable}
    done = subprocess.run([find_uv_bin(), *arguments], cwd=root, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"uv {arguments[0]} failed: its words are above.")
    return done.stdout


def exports(root: Path) -> dict[str, str]:
    """What ``requirements.txt`` and ``pylock.toml`` must hold, by ``uv.lock``."""
    export = ("export", "--quiet", "--frozen", "--offline", "--all-extras", "--no-header")
    pins = uv(*export, "--no-hashes", "--no-annotate", root=root).splitlines(keepends=True)
    return {
        "requirements.txt": HEAD + "".join(pin for pin in pins if not OF_CUDA.match(pin)),
        "pylock.toml": HEAD + uv(*export, "--format", "pylock.toml", root=root),
    }


def write(root: Path, *, upgrade: bool = False) -> None:
    """Lock what ``pyproject.toml`` asks for, keeping or raising the releases, and write what follows from the lock."""
    uv("lock", *(["--upgrade"] if upgrade else []), root=root)
    for name, text in exports(root).items():
        (root / name).write_text(text)


def check(root: Path) -> None:
    """Whether ``pyproject.toml``, ``uv.lock`` and the two files agree; no network is needed.

    Raises:
        SystemExit: if they do not, naming the lines that differ and the cure.
    """
    try:
        uv("lock", "--check", "--quiet", "--offline", root=root)
    except SystemExit:
        raise SystemExit("uv.lock does not match pyproject.toml: run `make lock`, and commit what it writes.") from None
    for name, text in exports(root).items():
        found = (root / name).read_text() if (root / name).is_file() else ""
        if found != text:
            lines = [line for line in difflib.ndiff(found.splitlines(), text.splitlines()) if line[0] in "-+"][:6]
            told = "\n".join(line[:120] for line in lines)
            raise SystemExit(
                f"{name} does not match uv.lock (-: the file, +: the lock):\n{told}\n"
                "Run `make lock`, and commit what it writes; no other hand writes this file."
            )


def hashes(names: Sequence[str], root: Path) -> str:
    """Lines by which pip installs packages by hash, without uv.

    Raises:
        SystemExit: if ``pylock.toml`` cannot be read, or lacks one of them.
    """
    try:
        locked = tomllib.loads((root / "pylock.toml").read_text()).get("packages", [])
    except (OSError, ValueError) as error:
        raise SystemExit(f"pylock.toml cannot be read ({error}): take it back with git, or run `make lock`.") from error
    packages = {package["name"]: package for package in locked}
    if missing := set(names) - set(packages):
        raise SystemExit(f"pylock.toml has no {', '.join(sorted(missing))}: run `make lock`.")
    lines = []
    for name in names:
        wheels = packages[name]["wheels"]
        sums = " ".join(f"--hash=sha256:{wheel['hashes']['sha256']}" for wheel in wheels)
        lines.append(f"{name}=={packages[name]['version']} {sums}\n")
    return "".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.lock", description="write or check the lock")
    parser.add_argument("--upgrade", action="store_true", help="raise every pin to the newest release that fits")
    parser.add_argument("--check", action="store_true", help="only look whether lock and files agree")
    parser.add_argument("--hashes", nargs="+", metavar="NAME", help="print these packages with hashes, for pip")
    arguments = parser.parse_args()
    if arguments.hashes:
        print(hashes(arguments.hashes, ROOT), end="")
    elif arguments.check:
        check(ROOT)
    else:
        write(ROOT, upgrade=arguments.upgrade)


if __name__ == "__main__":
    main()
