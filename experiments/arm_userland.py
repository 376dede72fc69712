"""A 64-bit ARM userland in a folder of its own, run by qemu: Debian's files and Python, and wheels for aarch64.

Nothing of it is installed on the machine: debootstrap's first stage and ``dpkg -x`` only unpack. It is good for what a
program computes, and says nothing about how long that takes.
"""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
REQUIREMENTS = Path(__file__).with_name("arm-requirements.txt")
RELEASE, MIRROR = "bookworm", "http://deb.debian.org/debian"  # Python 3.11, for which the wheels are taken
QEMU, CPU = "qemu-aarch64-static", "neoverse-n1"  # with `-cpu max` oneDNN ends in an illegal instruction
NEEDED = {QEMU: "qemu-user-static", "debootstrap": "debootstrap", "dpkg": "dpkg"}  # a command and Debian's package
WHEELS = ["--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp"]
WHEELS += [part for tag in ("2_28", "2_27", "2_17") for part in ("--platform", f"manylinux_{tag}_aarch64")]

# Programs look up the processor here, find that of the host unless the userland has files of its own, and those that
# find no ARM processor there crash (ONNX Runtime while it is imported).
CPUINFO = """processor\t: {number}
BogoMIPS\t: 50.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
CPU revision\t: 1

"""
MIDR = "0x00000000413fd0c1\n"  # the same, as one number


def missing(which: Mapping[str, str | None] | None = None, machine: str | None = None, root: bool | None = None) -> str:
    """What this machine lacks, in words; nothing if it can be done here."""
    found = {name: shutil.which(name) for name in NEEDED} if which is None else which
    if (machine or platform.machine()) != "x86_64":
        return f"The ARM run compares ARM with x86, and this machine is {machine or platform.machine()}: run it on x86."
    absent = [name for name in NEEDED if not found.get(name)]
    if absent:
        verb, packages = "is" if len(absent) == 1 else "are", " ".join(NEEDED[name] for name in absent)
        return f"The ARM run needs {' and '.join(absent)}, which {verb} not installed: apt install {packages}"
    if not (os.geteuid() == 0 if root is None else root):
        return "debootstrap unpacks as root only: run make arm as root, or under fakeroot."
    return ""


def run(what: str, command: Iterable[str | Path], log: Path, **variables: str) -> None:
    """Run a command whose output goes to a log.

    Raises:
        SystemExit: if it fails, with the end of the log; a network that cannot be reached is named as the likely cause.
    """
    with log.open("wb") as file:
        done = subprocess.run(
            [str(part) for part in command], stdout=file, stderr=subprocess.STDOUT, env=os.environ | variables
        )
    if done.returncode:
        raise SystemExit(_failed(what, done.returncode, log))


def _failed(what: str, code: int, log: Path) -> str:
    end = log.read_text(errors="replace").strip()[-800:]
    signs = ("resolve", "Connection", "connection", "Retrying", "unreachable", "Failed getting release", "timed out")
    hint = (
        "\nIs there a network? It fetches from Debian's mirror and from PyPI." if any(s in end for s in signs) else ""
    )
    ended = "was ended by the processor (a crash)" if code < 0 or code > 128 else f"failed with exit code {code}"
    return f"{what} {ended}; the end of {log}:\n{end}{hint}"


def set_up(folder: Path) -> None:
    """Make the userland, its packages and the environment on x86 that has the same ones, each once.

    What they need is kept with them: if the requirements change, they are made anew.

    Raises:
        SystemExit: if something is missing or cannot be fetched, in words.
    """
    if words := missing():
        raise SystemExit(words)
    folder.mkdir(parents=True, exist_ok=True)
    _once(folder / "root", _debian, RELEASE)
    _once(folder / "packages", _packages, REQUIREMENTS.read_text())
    _once(folder / "twin", _twin, REQUIREMENTS.read_text())


def _once(target: Path, make: Callable[[Path], None], wanted: str) -> None:
    stamp = target.with_name(f"{target.name}.done")
    if stamp.is_file() and stamp.read_text() == wanted and target.is_dir():
        return
    shutil.rmtree(target, ignore_errors=True)
    print(f"setting up {target}", flush=True)
    make(target)
    stamp.write_text(wanted)


def _debian(root: Path) -> None:
    log = root.with_name("debian.log")
    what = ["--arch=arm64", "--foreign", "--variant=minbase", "--include=python3,libgomp1"]
    run("Fetching Debian for arm64", ["debootstrap", *what, RELEASE, root, MIRROR], log)
    for package in sorted((root / "var/cache/apt/archives").glob("*.deb")):
        run(f"Unpacking {package.name}", ["dpkg", "-x", package, root], log)
        package.unlink()
    describe_processor(root)


def describe_processor(root: Path) -> None:
    """Give the userland the files in which programs look up an ARM processor."""
    (root / "proc").mkdir(parents=True, exist_ok=True)
    (root / "proc/cpuinfo").write_text("".join(CPUINFO.format(number=n) for n in range(os.cpu_count() or 1)))
    for number in range(os.cpu_count() or 1):
        registers = root / f"sys/devices/system/cpu/cpu{number}/regs/identification"
        registers.mkdir(parents=True, exist_ok=True)
        (registers / "midr_el1").write_text(MIDR)


def _packages(target: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, *WHEELS]
    run("Fetching wheels for aarch64", [*pip, "-r", REQUIREMENTS], target.with_name("packages.log"))


def _twin(target: Path) -> None:
    log, index = target.with_name("twin.log"), os.environ.get("TORCH_INDEX")
    run("Making an environment", [sys.executable, "-m", "venv", target], log)
    pip = [target / "bin/pip", "install", "--quiet"]
    if index:
        wanted = [line for line in REQUIREMENTS.read_text().splitlines() if line.startswith("torch")]
        try:
            run("Fetching torch for x86", [*pip, "--no-deps", "--retries", "2", "--index-url", index, *wanted], log)
        except SystemExit:
            print(f"{index} did not give torch for x86: the package index's follows, with CUDA", flush=True)
    run("Fetching wheels for x86", [*pip, "-r", REQUIREMENTS], log)


def emulated(folder: Path) -> list[str]:
    """The beginning of a command that runs the userland's Python, with this project on its path."""
    root = folder.resolve() / "root"
    environment = {
        "LD_LIBRARY_PATH": root / "usr/lib/aarch64-linux-gnu",
        "PYTHONPATH": f"{PROJECT}{os.pathsep}{folder.resolve() / 'packages'}",
        "OMP_NUM_THREADS": 1,
    }
    settings = [part for name, value in environment.items() for part in ("-E", f"{name}={value}")]
    return [QEMU, "-cpu", CPU, "-L", str(root), *settings, str(root / "usr/bin/python3.11")]


def qemu_version() -> str:
    """Of the emulator, such as ``7.2.22``."""
    said = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True).stdout
    return said.split("version ")[1].split()[0]
