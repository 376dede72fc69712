"""Check a built site: complete and light, no traceback, every picture described, no other host asked.

python -m tools.check_site [FOLDER]
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from bs4 import BeautifulSoup, Tag

from tools import site_frames
from tools.common import ROOT, repository_url, toc_pages

# Elements that make a browser fetch something, with the attribute that names it. Links to click are fine.
LOADS = {
    "script": "src",
    "img": "src",
    "link": "href",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "embed": "src",
}
ELSEWHERE = re.compile(r"^(https?:)?//", re.IGNORECASE)
IN_STYLES = re.compile(r"(?:@import\s+|url\()\s*['\"]?(?:https?:)?//", re.IGNORECASE)
SCRIPT_URL = re.compile(r"['\"](?:https?:)?//[^'\"]+\.(?:m?js|css|json|wasm)\b", re.IGNORECASE)
ROLE = re.compile(r"\{(?:glue:text|term|cite:[pt])\}")
FILE_HASH = re.compile(r"[0-9a-f]{16,}")
MOST_BYTES = 1_000_000  # of a page: its HTML and its own pictures
VERDICTS = Path("book") / "verdicts.ipynb"  # where each verdict is shown, and at most once elsewhere
STATEMENTS = ROOT / "qhelpers" / "book" / "claims.json"
SHORTEST_ALT = 15  # shorter alt texts name a thing, but do not say what it shows


def problems(site: Path, pages: list[Path]) -> list[str]:
    """What is wrong with a site; an empty list if nothing is.

    Args:
        site: the folder of the built site.
        pages: the book's source files relative to the project.
    """
    found, shown = [], {}
    if not (site / "index.html").is_file():
        found.append("index.html is missing")
    for page in pages:
        path = site / page.with_suffix(".html")
        if not path.is_file():
            found.append(f"{page}: its page is missing")
            continue
        soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        found += [f"{page}: {problem}" for problem in [*_content(soup), *_figures(soup), *_requests(soup)]]
        found += [f"{page}: {problem}" for problem in [*_buttons(soup, path), *_weight(soup, path)]]
        shown[page] = [box.get_text().split("·")[0].strip() for box in soup.select(".qb-claim .qb-verdict")]
    for path in sorted((site / site_frames.FOLDER).glob("*.js")):
        frames = "".join(site_frames.frames_of(path.read_text(encoding="utf-8")))
        figure = BeautifulSoup(f"<figure>{frames}<figcaption>A slider.</figcaption></figure>", "html.parser")
        found += [f"{path.relative_to(site)}: {problem}" for problem in _figures(figure)]
    if VERDICTS in shown:
        found += _verdicts(shown)
    for style in site.rglob("*.css"):
        if IN_STYLES.search(style.read_text(encoding="utf-8", errors="replace")):
            found.append(f"{style.relative_to(site)}: loads from another host")
    return found


def _verdicts(shown: Mapping[Path, list[str]]) -> Iterator[str]:
    """Verdicts that are missing, or that a reader meets too often.

    Args:
        shown: the ids of the boxes of each page.
    """
    gathered = Counter(shown[VERDICTS])
    for name in json.loads(STATEMENTS.read_text(encoding="utf-8")):
        if gathered[name] != 1:
            yield f"{VERDICTS}: shows the verdict on {name} {gathered[name]} times, not once"
        chapters = [page for page, names in shown.items() if page != VERDICTS for one in names if one == name]
        if len(chapters) > 1:
            yield f"the verdict on {name} is shown twice outside {VERDICTS.name}: {', '.join(map(str, chapters))}"


def _content(soup: BeautifulSoup) -> Iterator[str]:
    text = soup.get_text()
    if "Traceback (most recent call last)" in text:
        yield "shows a traceback"
    if soup.select(".cell_output .stderr"):
        words = soup.select(".cell_output .stderr")[0].get_text().strip()[:120]
        yield f"shows standard error: {words}"
    for part in soup.select("article p, article li, article td"):
        if role := ROLE.search(part.get_text()):
            yield f"shows a role as it is written: {role.group(0)}"
    if len(soup.select("article h1")) != 1:
        yield "does not have exactly one title"


def _figures(soup: BeautifulSoup) -> Iterator[str]:
    article = soup.find("article") or soup
    assert isinstance(article, Tag)
    for image in article.select("img, svg[role=img], .cell_output svg"):
        words = str(image.get("alt" if image.name == "img" else "aria-label") or "").strip()
        if len(words) < SHORTEST_ALT or FILE_HASH.search(words):
            yield f"a picture has no useful alt text: {words!r}"
        if image.find_parent("figure") is None:
            yield f"a picture stands outside a figure: {words!r}"
    for figure in article.find_all("figure"):
        caption = figure.find("figcaption")
        if caption is None or not caption.get_text().strip():
            yield "a figure has no caption"


def _weight(soup: BeautifulSoup, path: Path) -> Iterator[str]:
    sources = {str(image.get("src")).split("?")[0] for image in soup.select("article img")}
    pictures = [path.parent / source for source in sources if not source.startswith("data:")]
    weight = path.stat().st_size + sum(picture.stat().st_size for picture in pictures if picture.is_file())
    if weight > MOST_BYTES:
        yield f"weighs {weight / 1e6:.2f} MB with its pictures, more than {MOST_BYTES / 1e6:.0f}"


def _buttons(soup: BeautifulSoup, path: Path) -> Iterator[str]:
    for button in soup.select(".article-header-buttons a[href]"):
        address = str(button["href"])
        if ELSEWHERE.match(address):
            if not repository_url():
                yield f"a launch button, but repository.url in _config.yml is empty: {address}"
        elif address.endswith(".ipynb") and "_sources/" in address and (path.parents[1] / "notebooks").is_dir():
            yield f"a button leads to the chapter's source, not to its copy: {address}"
        elif not (path.parent / address.split("#")[0]).is_file():
            yield f"a button leads to a file that is not there: {address}"


def _requests(soup: BeautifulSoup) -> Iterator[str]:
    for name, attribute in LOADS.items():
        for element in soup.find_all(name):
            if name == "link" and "stylesheet" not in str(element.get("rel")) and "load" not in str(element.get("rel")):
                continue
            if ELSEWHERE.match(str(element.get(attribute) or "")):
                yield f"loads from another host: {element.get(attribute)}"
    for element in soup.find_all(["script", "style"]):
        match = SCRIPT_URL.search(element.get_text()) or IN_STYLES.search(element.get_text())
        if match:
            yield f"names a file of another host in a script or style: {match.group(0)}"


def main() -> int:
    """Print the problems of a site and how many there are."""
    site = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "_build" / "html"
    found = problems(site, [page.relative_to(ROOT) for page in toc_pages()])
    print("\n".join([*found, f"{site}: {len(found)} problems"]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
