"""Print the built site as one PDF through Chromium: contents with page numbers, links inside it, solutions last.

python -m tools.pdf
"""

import html
import re
import shutil
import sys
from collections.abc import Collection, Iterator
from io import BytesIO
from pathlib import Path
from urllib.parse import urljoin

import yaml
from bs4 import BeautifulSoup, Tag
from pypdf import PdfReader

from tools.common import BUILD, ROOT, SITE, require_writable, site_url, toc_parts

TARGET = BUILD / "book.pdf"
STYLE = Path(__file__).with_name("pdf.css")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
WIDTH = 657  # of A4 between margins of 18 mm, in CSS pixels
MARGINS = {"top": "16mm", "bottom": "18mm", "left": "18mm", "right": "18mm"}
PRINTS = 4  # the second has the page numbers; more only if they move a page
FOOTER = (
    '<div style="width: 100%; padding: 0 18mm; display: flex; justify-content: space-between; font: 8px sans-serif">'
    '<span>{title}</span><span class="pageNumber"></span></div>'
)
# Widgets and navigation, which a sheet of paper cannot work.
UNPRINTED = (
    "script, noscript, link, button, output, a.headerlink, details.hide > summary, .toctree-wrapper, "
    ".qb-slider > label, .qb-slider [data-frame]:not([data-frame='0']), .qb-playground > :not(figure), "
    ".qb-switcher > :is(style, input, label), .qb-switcher .qb-panel:not(:first-child)"
)
READY = """async () => {
  await window.MathJax?.startup?.promise;
  await document.fonts.ready;
  for (const wide of document.querySelectorAll("table, mjx-container[display]")) {
    const room = wide.parentElement.clientWidth;
    if (wide.scrollWidth > room) wide.style.zoom = room / wide.scrollWidth;
  }
}"""
FILL = "numbers => document.querySelectorAll('[data-of]').forEach(e => { e.textContent = numbers[e.dataset.of]; })"


def _tag(markup: str) -> Tag:
    made = BeautifulSoup(markup, "html.parser").contents[0]
    assert isinstance(made, Tag)
    return made


def _page_of(name: str) -> str:
    """Where the number of an element's page is written after the first print."""
    return f'<span class="pdf-page" data-of="{html.escape(name)}">000</span>'


def read(site: Path, name: str) -> BeautifulSoup:
    """A page of the site.

    Raises:
        SystemExit: if it is missing, or has code but no output.
    """
    path = site / f"{name}.html"
    if not path.is_file():
        raise SystemExit(f"There is no page {path}: make book builds the site.")
    soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    if soup.select_one("article .cell_input") and not soup.select_one("article .cell_output"):
        raise SystemExit(f"{name} has code but no output: it was not executed. make book executes and builds it.")
    return soup


def still(article: Tag) -> None:
    """Leave of widgets their first frame, with a note, and open what is folded."""
    for figure in article.select("figure.qb-slider, figure.qb-switcher, .qb-playground > figure"):
        frames = [str(frame["data-label"]) for frame in figure.select("[data-frame]")]
        views = [label.get_text(" ", strip=True) for label in figure.select(":scope.qb-switcher > label")]
        if frames:
            note = f"On the site this figure has a slider with {len(frames)} steps. This is the first: {frames[0]}."
        elif views:
            note = f"On the site this figure switches between {'; '.join(views)}. This is the first."
        else:
            note = "On the site this is a playground with sliders and buttons."
        figure.append(_tag(f'<p class="pdf-note">{html.escape(note)}</p>'))
    for left in article.select(UNPRINTED):
        left.decompose()
    for folded in article.find_all("details"):
        folded["open"] = ""
        if folded.summary is None:
            folded.unwrap()
    for style in article.find_all("style"):
        style.string = f"@scope {{ {style.get_text()} }}"  # on the site it was alone on its page


def address(value: str, page: str, pages: Collection[str], folder: Path) -> str:
    """An address on a page, inside the one document where it can be.

    >>> [address(one, "a", {"a", "b"}, Path("/site")) for one in ("#x", "b.html", "b.html#x", "https://b.c/#x")]
    ['#a--x', '#b', '#b--x', 'https://b.c/#x']
    >>> address("../_static/a.css?v=1", "a", {"a"}, Path("/site/book"))
    'file:///site/_static/a.css'
    """
    place, _, anchor = value.partition("#")
    to = place.removesuffix(".html") or page
    if re.match(r"[a-z]+:", value):
        return value
    if to in pages:
        return f"#{to}--{anchor}" if anchor and "=" not in anchor else f"#{to}"  # with =, a state of the playground
    return (folder / place.split("?")[0]).resolve().as_uri()


def join(article: Tag, page: str, pages: Collection[str], folder: Path) -> None:
    """Make a page a part of the document: its ids get the page's name, its links follow, its headings step down."""
    for tag in article.find_all(True):
        for name, value in list(tag.attrs.items()):
            if not isinstance(value, str):
                continue
            if name in ("id", "for", "aria-labelledby", "aria-describedby"):
                tag[name] = " ".join(f"{page}--{one}" for one in value.split())
            elif name == "href" and tag.name == "a" and address(value, page, pages, folder).startswith("file:"):
                tag["href"] = urljoin(f"{site_url()}{folder.name}/", value) if site_url() else ""
            elif name in ("href", "xlink:href", "src"):
                tag[name] = address(value, page, pages, folder)
            elif "url(#" in value:
                tag[name] = value.replace("url(#", f"url(#{page}--")
        if re.fullmatch("h[1-5]", tag.name):
            tag.name = f"h{int(tag.name[1]) + 1}"
    for nowhere in article.select("a[href='']"):
        nowhere.unwrap()
    article.attrs = {"id": page, "class": ["pdf-article"]}


def take_solutions(article: Tag) -> Iterator[Tag]:
    """Take a page's solutions out of it, with links there and back."""
    for solution in article.select("div.solution"):
        name, back = str(solution["id"]), solution.select_one(".admonition-title a")
        link = f'<a href="#{html.escape(name)}">Solution on page {_page_of(name)}</a>'
        solution.replace_with(_tag(f'<p class="pdf-solution">{link}</p>'))
        if back is not None:
            back.append(_tag(f"<span>, page {_page_of(str(back['href']).removeprefix('#'))}</span>"))
        yield solution


def document(site: Path, root: Path = ROOT) -> str:
    """The whole book as one HTML page.

    Raises:
        SystemExit: if the site was not built, a page was not executed, or a link leads nowhere.
    """
    if not (site / "index.html").is_file():
        raise SystemExit(f"There is no site in {site}: make book builds it.")
    parts = toc_parts(root)
    title = html.escape(yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))["title"])
    pages = {Path(name).name for _, names in parts for name in names}
    head, contents, body, solved = {}, [], [], []
    for number, (caption, names) in enumerate(parts):
        contents.append(f"<li><b>{html.escape(caption)}</b><ol>")
        body.append(f'<section class="pdf-part" id="part-{number}"><h1>{html.escape(caption)}</h1>')
        for name in names:
            soup, folder, page = read(site, name), (site / name).parent, Path(name).name
            for tag in soup.select("head link[rel=stylesheet], head script"):
                if tag.name == "link" or "MathJax" in str(tag) or "mathjax" in str(tag):
                    attribute = "href" if tag.name == "link" else "src"
                    if attribute in tag.attrs:
                        tag[attribute] = address(str(tag[attribute]), page, (), folder)
                    head[str(tag)] = None
            article = soup.find("article")
            assert isinstance(article, Tag)
            still(article)
            join(article, page, pages, folder)
            heading = article.h2.decode_contents() if article.h2 else page
            contents.append(f'<li><a href="#{page}">{heading}</a>{_page_of(page)}</li>')
            if solutions := [str(solution) for solution in take_solutions(article)]:
                solved += [f'<h2><a href="#{page}">{heading}</a></h2>', *solutions]
            body.append(str(article))
        contents.append("</ol></li>")
        body.append("</section>")
    contents.append(f'<li><b><a href="#solutions">Solutions of the exercises</a></b>{_page_of("solutions")}</li>')
    text = "\n".join(
        [
            f'<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8"><title>{title}</title>',
            *head,
            f"<style>{STYLE.read_text(encoding='utf-8')}</style></head><body>",
            f'<header class="pdf-cover"><p class="pdf-title">{title}</p>',
            f"<p>{site_url()}</p></header><nav><h1>Contents</h1><ol class='pdf-contents'>",
            *contents,
            "</ol></nav>",
            *body,
            '<section class="pdf-part" id="solutions"><h1>Solutions of the exercises</h1>',
            *solved,
            "</section></body></html>",
        ]
    )
    if lost := set(re.findall(r'<a [^>]*href="#([^"]*)"', text)) - set(re.findall(r' id="([^"]*)"', text)):
        raise SystemExit(f"Links lead nowhere in the document: {', '.join(sorted(lost))}.")
    return text


def page_numbers(pdf: bytes) -> dict[str, int]:
    """On which page, counted from 1, each element lies that a link leads to."""
    reader = PdfReader(BytesIO(pdf))
    places = reader.named_destinations.items()
    return {name.removeprefix("/"): (reader.get_destination_page_number(place) or 0) + 1 for name, place in places}


def printed(source: Path, title: str) -> bytes:
    """Print the document until the page numbers that it names are right.

    Raises:
        SystemExit: if there is no Chromium, or the numbers never settle.
    """
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        raise SystemExit("There is no Chromium to print with: install it (apt install chromium) or Google Chrome.")
    from playwright.sync_api import sync_playwright

    numbers: dict[str, int] = {}
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=program, args=FLAGS) as browser:
        tab = browser.new_page(viewport={"width": WIDTH, "height": 1000})
        tab.emulate_media(media="print")
        tab.goto(source.as_uri(), timeout=0)
        tab.evaluate(READY)
        for _ in range(PRINTS):
            pdf = tab.pdf(
                format="A4",
                margin=MARGINS,
                print_background=True,
                display_header_footer=True,
                header_template="<span></span>",
                footer_template=FOOTER.format(title=html.escape(title)),
                outline=True,
                tagged=True,
            )
            found = page_numbers(pdf)
            if found == numbers:
                return pdf
            numbers = found
            tab.evaluate(FILL, numbers)
    raise SystemExit(f"The page numbers of the contents were still wrong after {PRINTS} prints.")


def main() -> None:
    """Print the site's book into ``build/book.pdf``."""
    require_writable(BUILD)
    source = BUILD / "book.html"
    source.write_text(document(SITE), encoding="utf-8")
    TARGET.write_bytes(printed(source, yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["title"]))
    print(f"{TARGET}: {len(PdfReader(TARGET).pages)} pages, {TARGET.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(main())
