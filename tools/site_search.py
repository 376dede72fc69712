"""Pagefind's index of a built site: a search finds sections, where the site is served.

Each section of a page is a record of its own, with its address, so that the words of a message lead to the place where
it is raised and cured.
"""

import asyncio
import html
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from bs4 import BeautifulSoup, Tag
from pagefind.index import IndexConfig
from pagefind.service import PagefindService

FOLDER = "pagefind"  # in the site
NEEDED = ("pagefind.js", "pagefind-entry.json", "pagefind-worker.js", "wasm.*", "*.pf_meta", "index/*", "fragment/*")
UNREAD = ".headerlink, script, style, .tag_hide-input > .cell_input, .toctree-wrapper"
MOST_LOOKS, PAUSE_S = 120, 0.25  # at the files of the index, until they are whole
# Pagefind's client sleeps for a tenth of a second before each answer: a minute for the book's sections.
AT_ONCE = mock.patch("pagefind.service.asyncio.sleep", partial(asyncio.sleep, 0))
CODE_WEIGHT = "0.5"  # of words in code cells; those of prose weigh 1
INDEX_WEIGHT = "0.1"  # of the index of symptoms, which quotes what other sections raise


class Section(NamedTuple):
    """A section without the sections inside it."""

    id: str
    page: str  # the page's title
    title: str
    content: str  # HTML


def sections(page: str) -> Iterator[Section]:
    """The sections of a built page, from the first to the last.

    >>> page = '<article><section id="a"><h1>A</h1><p>1</p><section id="b"><h2>B</h2></section></section></article>'
    >>> [(section.id, section.title) for section in sections(page)]
    [('a', 'A'), ('b', 'B')]
    """
    soup = BeautifulSoup(page, "html.parser")
    article = soup.find("article")
    if not isinstance(article, Tag):
        return
    for unread in article.select(UNREAD):
        unread.decompose()
    for code in article.select(".cell_input"):
        code["data-pagefind-weight"] = CODE_WEIGHT
    for table in article.select("table.qb-symptoms"):
        table["data-pagefind-weight"] = INDEX_WEIGHT
    main = article.find("h1")
    for section in article.select("section[id]"):
        heading = section.find(["h1", "h2", "h3", "h4"], recursive=False)
        if not isinstance(heading, Tag) or not isinstance(main, Tag):
            continue
        own = BeautifulSoup(str(section), "html.parser")
        for inner in own.select("section section[id]"):
            inner.decompose()
        yield Section(str(section["id"]), main.get_text().strip(), heading.get_text().strip(), str(own))


def _records(site: Path) -> Iterator[tuple[str, str]]:
    """The address and the HTML of each section of a site."""
    for path in sorted((site / "book").glob("*.html")):
        for section in sections(path.read_text(encoding="utf-8")):
            title = section.page if section.title == section.page else f"{section.page}: {section.title}"
            content = (
                f'<!doctype html><html lang="en"><head><title>{html.escape(title)}</title></head>'
                f'<body><p data-pagefind-ignore data-pagefind-meta="title">{html.escape(title)}</p>'
                f"{section.content}</body></html>"
            )
            yield f"/{path.relative_to(site).as_posix()}#{section.id}", content


async def _write(site: Path) -> int:
    records, folder = 0, site / FOLDER
    async with PagefindService() as service:
        index = await service.create_index(config=IndexConfig(output_path=str(folder)))
        with AT_ONCE:
            for address, content in _records(site):
                await index.add_html_file(content=content, url=address)
                records += 1
        await index.write_files()
        await _settled(folder)
    return records


async def _settled(folder: Path) -> None:
    """Wait for the files of the index: Pagefind answers before it has filled them, and is ended behind this block.

    Raises:
        SystemExit: if some stay empty.
    """
    before: dict[Path, int] = {}
    for _ in range(MOST_LOOKS):
        await asyncio.sleep(PAUSE_S)
        sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
        if sizes and sizes == before and all(sizes.values()):
            return
        before = sizes
    empty = ", ".join(path.name for path, size in before.items() if not size)
    raise SystemExit(f"The search's index was not written whole; empty: {empty or 'all'}. Build again.")


def write(site: Path) -> int:
    """Put the index into a built site, without Pagefind's own page elements; return how many sections it holds.

    Raises:
        SystemExit: if it could not be written whole.
    """
    folder = site / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    records = asyncio.run(_write(site))
    kept = {path for pattern in NEEDED for path in folder.glob(pattern)}
    for path in folder.rglob("*"):
        if path.is_file() and path not in kept:
            path.unlink()
    return records
