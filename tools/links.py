"""Ask each outside link of a built site, and of the project's own pages, whether it still leads somewhere.

python -m tools.links [SITE]

Sphinx's builder ``linkcheck`` asks: it follows redirects, tries a failed link again, and waits where a host limits
requests. A link is dead if its server says so, or if there is none; slow if nothing came within the limit; barred if
the host turns programs away, or is out of order; moved if it has a new address for good. Only a dead link is an error.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bs4 import BeautifulSoup
from markdown_it import MarkdownIt

from tools.common import ROOT, SITE

OUTSIDE = re.compile(r"https?://(?!localhost\b)", re.IGNORECASE)
LIMIT_S = 30
BARRED = re.compile(r"unauthorized|service unavailable|(?!404|410)\d{3} ")  # what linkcheck tells of such an answer
CONFIGURATION = """
from sphinx.builders.linkcheck import HyperlinkAvailabilityCheckWorker as Worker

limit_rate = Worker.limit_rate  # a host that always says when to come again would be asked without end
Worker.limit_rate = lambda worker, host, come_again: limit_rate(worker, host, None)
linkcheck_timeout = {limit}
linkcheck_rate_limit_timeout = 10 * {limit}
linkcheck_retries = 3
linkcheck_allow_unauthorized = False
linkcheck_report_timeouts_as_broken = False
linkcheck_anchors = False  # many pages make theirs by script
linkcheck_workers = 3
"""


def outside_links(site: Path) -> dict[str, list[str]]:
    """Each outside link of a site and of the project's own pages, with the names of the pages that have it.

    Raises:
        SystemExit: if there is no site.
    """
    if not (site / "index.html").is_file():
        raise SystemExit(f"{site} holds no site: make book, then make links.")
    built = {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    own = {path.name: MarkdownIt().render(path.read_text(encoding="utf-8")) for path in ROOT.glob("*.md")}
    found: dict[str, list[str]] = {}
    for name, text in sorted((built | own).items()):
        for link in BeautifulSoup(text, "html.parser").select("a[href]"):
            address = str(link["href"]).strip().replace(" ", "%20")
            if OUTSIDE.match(address) and name not in found.setdefault(address, []):
                found[address].append(name)
    return found


def answers(links: Iterable[str], limit: int = LIMIT_S) -> dict[str, dict[str, Any]]:
    """What ``linkcheck`` says about each link.

    Raises:
        SystemExit: if it says nothing about some.
    """
    unreadable = {link: words for link in links if (words := _fault(link))}
    listed = sorted({*links} - {*unreadable})
    with tempfile.TemporaryDirectory() as folder:
        escaped = (re.sub(r"([\\_<>])", r"\\\1", link) for link in listed)
        lines = "\n".join(f"- `{i} <{link}>`__" for i, link in enumerate(escaped))
        Path(folder, "index.rst").write_text(f"Links\n=====\n\n{lines}\n", encoding="utf-8")
        Path(folder, "conf.py").write_text(CONFIGURATION.format(limit=limit))
        # Its exit code is no use: it also fails because of links that are only slow.
        subprocess.run([sys.executable, "-m", "sphinx", "-Q", "-b", "linkcheck", folder, f"{folder}/out"])
        written = Path(folder, "out", "output.json")
        records = map(json.loads, written.read_text(encoding="utf-8").splitlines() if written.is_file() else [])
        found = {record["uri"]: record for record in records}
    if unasked := set(listed) - set(found):
        raise SystemExit(f"Sphinx's linkcheck says nothing about {len(unasked)} links, such as {min(unasked)}.")
    return found | {link: {"status": "broken", "info": words, "code": 0} for link, words in unreadable.items()}


def _fault(link: str) -> str:
    """Why an address is none; linkcheck would hang there."""
    try:
        urlsplit(link)
    except ValueError as error:
        return str(error)
    return ""


def kind(answer: Mapping[str, Any]) -> str:
    """Whether a link is dead, slow, barred, moved or fine.

    >>> kind({"status": "broken", "info": "404 Client Error: Not Found for url: ..", "code": 0})
    'dead'
    """
    if answer["status"] == "timeout":
        return "slow"
    if answer["status"] in ("broken", "ignored"):
        return "barred" if BARRED.match(answer["info"]) else "dead"
    return "moved" if answer["code"] in (301, 308) else "fine"


def report(links: Mapping[str, list[str]], found: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], int]:
    """A line for each link that is not fine and one for the sum; how many are dead.

    Raises:
        SystemExit: if no link led to a page: then the way out is missing, and not the links.
    """
    kinds = {link: kind(found[link]) for link in sorted(links)}
    if kinds and not {"fine", "moved"} & set(kinds.values()):
        cause = found[min(kinds)]["info"]
        raise SystemExit(f"No link of {len(links)} led to a page, so this says nothing about them. The first: {cause}")
    order = ("dead", "slow", "barred", "moved")
    listed = [link for which in order for link in kinds if kinds[link] == which]
    lines = [f"{kinds[link]}: {link} in {', '.join(links[link])}: {found[link]['info']}" for link in listed]
    counts = Counter(kinds.values())
    lines.append(f"{len(links)} links: {', '.join(f'{n} {which}' for which, n in sorted(counts.items()))}")
    return lines, counts["dead"]


def main() -> None:
    """Print the report; exit with 1 if a link is dead."""
    links = outside_links(Path(sys.argv[1]) if sys.argv[1:] else SITE)
    lines, dead = report(links, answers(links))
    print("\n".join(lines))
    raise SystemExit(1 if dead else 0)


if __name__ == "__main__":
    main()
