"""Build the HTML book from the executed notebooks, check it, and let it replace the previous one.

python -m tools.build_site
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tools import copies, moved, site_search
from tools.check_site import problems
from tools.common import BUILD, ROOT, SITE, commit, files_below, hash_files, notebooks, require_writable, toc_pages
from tools.run_notebooks import EXECUTED, RESULTS, all_stale, stamp_file

STAGE = BUILD / "site"
STAMP = BUILD / "site.sha256"
EXTENSIONS = ["site_buttons", "site_access", "site_frames"]


def stage(
    other_copies: dict[str, Path] | None = None, folder: Path | None = None, execute: dict[str, Any] | None = None
) -> None:
    """Lay out what jupyter-book reads: pages and executed notebooks.

    Args:
        other_copies: notebooks to take instead, by name without ending.
        folder: where; ``STAGE`` if None.
        execute: what changes in the settings that say what jupyter-book executes; nothing is executed if None.
    """
    folder = folder or STAGE
    shutil.rmtree(folder, ignore_errors=True)
    for source in files_below(ROOT / "book"):
        target = folder / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix != ".ipynb":
            shutil.copy(source, target)
    for source in notebooks():
        copy = (other_copies or {}).get(source.stem, EXECUTED / source.name)
        executed = json.loads(copy.read_text())
        executed["metadata"].pop("widgets", None)  # its players would be asked of another host
        (folder / source.relative_to(ROOT)).write_text(json.dumps(executed))
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    config["execute"] |= execute or {"execute_notebooks": "off"}
    (folder / "_config.yml").write_text(yaml.safe_dump(config))
    shutil.copy(ROOT / "_toc.yml", folder / "_toc.yml")
    from tools import executions, needs, symptoms  # take seconds, which an unchanged site need not wait for

    symptoms.fill(folder)
    executions.fill(folder, notebooks())
    needs.fill(folder, notebooks())


def extend(folder: Path) -> None:
    """Add what only the published site has: buttons that lead to the copies, mended roles, lighter sliders."""
    path = folder / "_config.yml"
    config = yaml.safe_load(path.read_text())
    config["sphinx"]["local_extensions"] = {name: str(Path(__file__).parent) for name in EXTENSIONS}
    config["sphinx"]["config"]["extensions"] += EXTENSIONS  # the project's own list hides the former
    path.write_text(yaml.safe_dump(config))


def build(folder: Path | None = None, environment: dict[str, str] | None = None) -> Path:
    """Run jupyter-book with warnings as errors on what was staged; return the folder of the new site.

    Raises:
        SystemExit: if it fails; the previous site is left as it was.
    """
    folder = folder or STAGE
    command = ["jupyter-book", "build", str(folder), "-W", "-n", "--keep-going", "-q"]
    done = subprocess.run([str(Path(sys.executable).parent / command[0]), *command[1:]], env=environment)
    if done.returncode != 0:
        raise SystemExit("jupyter-book failed or warned; the previous site was left as it was.")
    return folder / "_build" / "html"


def check(new: Path) -> None:
    """Refuse a site that has problems.

    Raises:
        SystemExit: naming them all.
    """
    found = problems(new, [page.relative_to(ROOT) for page in toc_pages()])
    if found:
        raise SystemExit("The new site was not published:\n" + "\n".join(found))


def published_files() -> str:
    """Hash of the files that stand in the site's place: another build may have written over them."""
    return hash_files(path for path in SITE.rglob("*") if path.is_file())


def origins() -> str:
    """What ``commit.txt`` says: the commit of the site, and those at which its notebooks were executed."""
    executed = {json.loads(stamp_file(notebook).read_text()).get("commit", "unknown") for notebook in notebooks()}
    return "".join(f"{line}\n" for line in [f"site {commit(ROOT)}", *(f"notebooks {at}" for at in sorted(executed))])


def replace_site(new: Path) -> None:
    """Let the new site take the place of the previous one."""
    SITE.parent.mkdir(exist_ok=True)
    old = SITE.with_name("html.previous")
    shutil.rmtree(old, ignore_errors=True)
    if SITE.exists():
        os.replace(SITE, old)
    os.replace(new, SITE)
    shutil.rmtree(old, ignore_errors=True)


def main() -> None:
    """Build, check and publish, unless nothing has changed."""
    require_writable(STAGE.parent, SITE.parent)
    if stale := all_stale():
        raise SystemExit(f"Run the notebooks first (make book does): {', '.join(stale)}.")
    inputs = [*files_below(ROOT / "book"), *files_below(EXECUTED), *files_below(ROOT / "tools")]
    inputs += RESULTS.rglob("*.json")
    inputs += [ROOT / name for name in ("_config.yml", "_toc.yml", "requirements.txt", *copies.PACKED)]
    inputs += files_below(ROOT / "qhelpers")
    digest = hash_files(inputs)
    if STAMP.is_file() and STAMP.read_text() == f"{digest} {published_files()}":
        print("site: unchanged")
    else:
        from tools import (
            executions,
            plain,
            results,
            symptoms,
        )  # take seconds, which an unchanged site need not wait for

        STAMP.unlink(missing_ok=True)
        stage()
        extend(STAGE)
        new = build()
        copies.write(new)
        site_search.write(new)
        moved.write(new, moved.mapping(ROOT))
        check(new)
        (new / "commit.txt").write_text(origins())
        results.write(new, RESULTS)
        symptoms.write(new, STAGE)
        executions.write(new, notebooks())
        plain.write(new, STAGE)
        replace_site(new)
        STAMP.write_text(f"{digest} {published_files()}")
    print(f"The book: {SITE / 'index.html'}")


if __name__ == "__main__":
    main()
