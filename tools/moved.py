"""Old addresses that still lead somewhere: pages and sections that have moved.

``book/moved.json`` maps old to new: ``"old-page": "new-page.html"`` for a page that is gone, and
``"page#section": "new-page.html#section"`` for a section that has left a page. A page that is gone becomes one that
forwards; a page that a section has left forwards the section's address, where a browser runs scripts.

    python -m tools.moved OLD_SITE

lists the sections of an earlier site whose addresses lead nowhere in the present one.
"""

import html
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tools.common import ROOT, SITE

MAPPING = Path("book") / "moved.json"
FOLDER = "book"  # of the pages, below the site
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="robots" content="noindex">
<meta http-equiv="refresh" content="0; url={target}">
<title>This page has moved</title>
</head>
<body><p>This page has moved: <a href="{target}">{target}</a></p></body>
</html>
"""
SCRIPT = """<script>
(() => {{
  const moved = {sections};
  const follow = () => {{
    const target = moved[decodeURIComponent(location.hash.slice(1))];
    if (target) location.replace(target);
  }};
  addEventListener("hashchange", follow);
  follow();
}})();
</script>
"""


def mapping(root: Path = ROOT) -> dict[str, str]:
    """Old addresses to new ones, both below the folder of the book; none where there is no such file."""
    path = root / MAPPING
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def problems(site: Path, moved: dict[str, str]) -> list[str]:
    """What is wrong with a mapping; an empty list if nothing is.

    Args:
        site: the folder of the built site, before anything was written there.
        moved: old addresses to new ones.
    """
    found = []
    for old, new in moved.items():
        page, _, section = old.partition("#")
        exists = (site / FOLDER / f"{page}.html").is_file()
        if exists and not section:
            found.append(f"{old} is said to have moved, but the page is there")
        elif not exists and section:
            found.append(f"{old} is said to have moved, but so has its whole page")
        elif exists and section in _ids(site, page):
            found.append(f"{old} is said to have moved, but the section is there")
        target, _, place = new.partition("#")
        if not (site / FOLDER / target).is_file():
            found.append(f"{old} leads to {target}, which is not there")
        elif place and place not in _ids(site, target.removesuffix(".html")):
            found.append(f"{old} leads to {new}, but the page has no such section")
    return found


def _ids(site: Path, page: str) -> set[str]:
    return set(re.findall(r'\bid="([^"]+)"', (site / FOLDER / f"{page}.html").read_text(encoding="utf-8")))


def write(site: Path, moved: dict[str, str]) -> None:
    """Let the old addresses of a built site lead to the new ones.

    Args:
        site: the folder of the built site.
        moved: old addresses to new ones.

    Raises:
        SystemExit: naming each address that has not moved, or leads nowhere.
    """
    if found := problems(site, moved):
        raise SystemExit("The new site was not published; see book/moved.json:\n" + "\n".join(found))
    sections: dict[str, dict[str, str]] = defaultdict(dict)
    for old, new in moved.items():
        page, _, section = old.partition("#")
        if section:
            sections[page][section] = new
        else:
            (site / FOLDER / f"{page}.html").write_text(PAGE.format(target=html.escape(new)), encoding="utf-8")
    for page, targets in sections.items():
        path = site / FOLDER / f"{page}.html"
        script = SCRIPT.format(sections=json.dumps(targets, ensure_ascii=False).replace("<", "\\u003c"))
        path.write_text(path.read_text(encoding="utf-8").replace("</head>", f"{script}</head>", 1), encoding="utf-8")


def lost(old: Path, new: Path, moved: dict[str, str]) -> Iterator[str]:
    """The pages and sections of an earlier site whose addresses lead nowhere in a later one.

    Args:
        old: the folder of the earlier site.
        new: the folder of the later site.
        moved: old addresses to new ones.
    """
    for page in sorted((old / FOLDER).glob("*.html")):
        exists = (new / FOLDER / page.name).is_file()
        if not exists and page.stem not in moved:
            yield page.stem
        if exists:
            gone = set(re.findall(r'<section[^>]*\bid="([^"]+)"', page.read_text(encoding="utf-8")))
            addresses = sorted(f"{page.stem}#{section}" for section in gone - _ids(new, page.stem))
            yield from (address for address in addresses if address not in moved)


def main() -> None:
    """Print what an earlier site had and the present one lacks."""
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / FOLDER).is_dir():
        raise SystemExit("Name the folder of an earlier site: python -m tools.moved OLD_SITE")
    print("\n".join(lost(Path(sys.argv[1]), SITE, mapping())))


if __name__ == "__main__":
    main()
