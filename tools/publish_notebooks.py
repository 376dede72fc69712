"""Push the cleared copies of a published site to the branch ``notebooks``, from which Colab opens them.

    python3 tools/publish_notebooks.py SITE

SITE is the folder of the site, or the ``artifact.tar`` that GitHub Pages was given. The branch has one commit, which is
replaced. Needs git and nothing but the standard library: it runs where the book is not set up.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BRANCH = "notebooks"
README = (
    "The cleared copies of the book's notebooks, for Colab. A deployment makes this branch anew: change nothing here.\n"
)


def git(*arguments: str, **environment: str) -> str:
    """Run git in the checkout; its output.

    Raises:
        SystemExit: with git's own words, if it fails.
    """
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, env=os.environ | environment)
    if done.returncode != 0:
        raise SystemExit(f"git {arguments[0]} failed: {done.stderr.strip()}")
    return done.stdout.strip()


def push(site: Path, remote: str = "origin") -> str:
    """Make one commit of a site's cleared copies, and let it be the branch; its message.

    Raises:
        SystemExit: if the site comes from another commit than the one checked out, or has no copies.
    """
    origin, head = site / "commit.txt", git("rev-parse", "HEAD")
    built = origin.read_text().splitlines() if origin.is_file() else []
    if f"site {head}" not in built:
        raise SystemExit(f"The site's commit.txt says {built or 'nothing'}, but commit {head} is checked out.")
    copies = sorted((site / "notebooks" / "cleared").glob("*.ipynb"))
    if not copies:
        raise SystemExit(f"{site} has no notebooks in notebooks/cleared.")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        (tree / "notebooks").mkdir(parents=True)
        (tree / "README.md").write_text(README)
        for copy in copies:
            (tree / "notebooks" / copy.name).write_bytes(copy.read_bytes())
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        git("--work-tree", str(tree), "add", "--all", "--force", ".", **index)
        written = git("write-tree", **index)
    message = f"{len(copies)} cleared notebooks of the site of commit {head}"
    who = ("-c", "user.name=github-actions[bot]", "-c", "user.email=github-actions[bot]@users.noreply.github.com")
    made = git(*who, "commit-tree", written, "-m", message)
    git("push", "--force", remote, f"{made}:refs/heads/{BRANCH}")
    return message


def main() -> None:
    """Unpack the site where it is an archive, and push."""
    if len(sys.argv) != 2 or not Path(sys.argv[1]).exists():
        raise SystemExit("Give the folder of the site, or its artifact.tar: make publish-notebooks SITE=_build/html")
    given = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        if given.is_file():
            try:
                with tarfile.open(given) as archive:
                    archive.extractall(folder, filter="data")
            except tarfile.TarError as error:
                raise SystemExit(f"{given} is no archive of a site, or a damaged one.") from error
        print(f"branch {BRANCH}: {push(Path(folder) if given.is_file() else given.resolve())}")


if __name__ == "__main__":
    main()
