"""Write the README's list of chapters from ``_toc.yml`` and the chapters' titles.

python -m tools.readme
"""

import json
import re
from pathlib import Path

import yaml

from tools.common import ROOT, source_of

BLOCK = re.compile(r"(<!-- chapters[^\n]*-->\n).*?(<!-- end of chapters -->)", re.DOTALL)


def title(page: Path) -> str:
    """A page's title up to its colon, from a notebook or a Markdown file."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        text = "".join(json.loads(text)["cells"][0]["source"])
    found = re.search(r"^# ([^:\n]+)", text, re.MULTILINE)
    if found is None:
        raise ValueError(f"{page.name} has no title.")
    return found[1].strip()


def chapters(root: Path = ROOT) -> str:
    """The list: a line for each part of the book, with a link to each of its pages."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    lines = []
    for part in toc["parts"]:
        links = []
        for entry in part["chapters"]:
            page = source_of(root, entry["file"])
            links.append(f"[{title(page)}]({page.relative_to(root).as_posix()})")
        lines.append(f"- **{part['caption']}:** {' · '.join(links)}\n")
    return "".join(lines)


def renewed(readme: str, root: Path = ROOT) -> str:
    """The README with its present list of chapters."""
    return BLOCK.sub(lambda found: f"{found[1]}{chapters(root)}{found[2]}", readme)


def main() -> None:
    """Renew the list in ``README.md``."""
    path = ROOT / "README.md"
    path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
