"""Install the book's helpers where they are missing. Nothing happens where they are all there."""

import importlib
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path


def install_helpers(
    wheel: str, sha256: str, site: str, extras: str, needed: dict[str, str], tested: dict[str, str]
) -> None:
    """Take one wheel, known by its hash, never a package of that name from an index."""
    names = [dist.name for dist in importlib.metadata.distributions() if dist.name]
    here = {name.lower().replace("_", "-") for name in names}
    pins = {name: importlib.metadata.version(name) if name in here else version for name, version in tested.items()}
    for name, version in tested.items():
        if pins[name].split("+")[0] != version:
            print(
                f"This chapter was tested with {name} {version}. Here is {pins[name]}, "
                "which stays: some results may differ, some calls may be gone."
            )
    origin = importlib.metadata.distribution("qhelpers").read_text("direct_url.json") if "qhelpers" in here else ""
    hashes = re.findall(r"\b[0-9a-f]{64}\b", origin or "")
    if hashes and sha256 not in hashes:
        print(
            "The helpers here come from another build of the book. If a cell fails for that, "
            "run %pip uninstall -y qhelpers, restart the kernel and begin again."
        )
    missing = [name for name in needed if name not in here]
    if not missing:
        return
    beside = [folder / wheel for folder in (Path(), Path("..")) if (folder / wheel).is_file()]
    if not beside and not site:
        raise RuntimeError(
            f"{', '.join(missing)} missing, and this copy comes from a book that is not "
            f"published. Put {wheel} into {Path.cwd()}: it lies beside this notebook in "
            "the folder notebooks of the built book."
        )
    source = beside[0].resolve().as_uri() if beside else site + wheel
    print(f"Installing {', '.join(missing)}: this takes a minute or two.", flush=True)
    command = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    command += [f"{name}=={version}" for name, version in pins.items()]  # never replaced
    if all(pins[name].split("+")[0] == version for name, version in tested.items()):  # else others may suit it better
        command += [f"{name}=={needed[name]}" for name in missing if needed[name]]
    command += [f"qhelpers[{extras}] @ {source}#sha256={sha256}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise RuntimeError(
            f"Refused: {source} is not the wheel that belongs to this notebook (another "
            "SHA-256). Take notebook and wheel from the same build of the book."
        )
    if "No module named pip" in done.stderr:
        raise RuntimeError(
            f"This environment has no pip. Call {sys.executable} -m ensurepip, then run this cell again."
        )
    if done.returncode:
        stays = [f"{name} {pins[name]}" for name in tested if name in here]
        beside_these = f" beside {', '.join(stays)}, which it must not replace" if stays else ""
        raise RuntimeError(
            f"pip could not install {', '.join(missing)}{beside_these}. The book was tested with "
            f"{', '.join(f'{name} {tested[name]}' for name in tested)}. pip said: "
            + (done.stderr.strip() or "nothing")[-600:]
        )
    importlib.invalidate_caches()
