"""Print the built site as one PDF through Chromium: contents with page numbers, links inside it, solutions last.

python -m tools.pdf
"""

import html
import re
import shutil
from collections.abc import Collection, Iterator
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote, urljoin

import yaml
from bs4 import BeautifulSoup, Tag
from pypdf import PdfReader

from tools.common import BUILD, ROOT, SITE, require_writable, site_url, toc_parts

TARGET = BUILD / "book.pdf"
STYLE = Path(__file__).with_name("pdf.css")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
SCALE = 0.8  # so that the site's styles for wide pages hold
WIDTH, HEIGHT = 821, 1150  # of A4 between its margins, in CSS pixels at that scale; room for a line above a figure
SOLUTIONS = "Solutions of the exercises"
PRINTS = 4  # the second has the page numbers; more only if they move a page
FOOTER = (
    '<div style="width: 100%; padding: 0 18mm; display: flex; justify-content: space-between; font: 8px sans-serif">'
    '<span>{title}</span><span class="pageNumber"></span></div>'
)
# Widgets and navigation, which a sheet of paper cannot work.
UNPRINTED = (
    "script, noscript, link, button, output, a.headerlink, summary:-soup-contains('Show'), .toctree-wrapper, "
    ".qb-slider > label, .qb-slider [data-frame]:not([data-frame='0']), .qb-playground > :not(figure), "
    ".qb-switcher > :is(style, input, label), .qb-switcher .qb-panel:not(:first-child)"
)
READY = """async (height) => {
  await window.MathJax?.startup?.promise;
  await document.fonts.ready;
  for (const big of document.querySelectorAll("table, mjx-container[display], .qb-figure")) {
    const high = big.matches(".qb-figure") ? big.offsetHeight : 0;
    const fits = Math.min(big.parentElement.clientWidth / big.scrollWidth, height / high);
    if (fits < 1) big.style.zoom = fits;
  }
}"""
FILL = "numbers => document.querySelectorAll('[data-of]').forEach(e => { e.textContent = numbers[e.dataset.of]; })"


def title(root: Path = ROOT) -> str:
    """The book's title, for HTML."""
    return html.escape(yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))["title"])


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
        note = "On the site this is a playground with sliders and buttons."
        if frames := [str(frame["data-label"]) for frame in figure.select("[data-frame]")]:
            note = f"On the site this figure has a slider with {len(frames)} steps. This is the first: {frames[0]}."
        if views := [label.get_text(" ", strip=True) for label in figure.select(":scope.qb-switcher > label")]:
            note = f"On the site this figure switches between {'; '.join(views)}. This is the first."
        figure.append(_tag(f'<p class="pdf-note">{html.escape(note)}</p>'))
    for left in article.select(UNPRINTED):
        left.decompose()
    for plain in article.select(".highlight :is(.n, .p, .w), code .pre"):
        plain.unwrap()  # each would be an element of the PDF, and look like the text around it
    for folded in article.find_all("details"):
        folded["open"] = ""
        if folded.summary is None:
            folded.unwrap()


def address(value: str, page: str, pages: Collection[str], folder: Path) -> str:
    """An address on a page, inside the one document where it can be.

    >>> [address(one, "a", {"a", "b"}, Path("/site")) for one in ("#x", "b.html", "b.html#x", "https://b.c/#x")]
    ['#a--x', '#b', '#b--x', 'https://b.c/#x']
    >>> address("../_static/a.css?v=1", "a", {"a"}, Path("/site/book"))
    'file:///site/_static/a.css'
    """
    place, _, anchor = unquote(value).partition("#")
    to = place.removesuffix(".html") or page
    if re.match(r"[a-z]+:|//", value, re.IGNORECASE):
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
    for style in article.find_all("style"):
        style.string = f"@scope (#{page}) {{ {style.get_text()} }}"
    for nowhere in article.select("a[href='']"):
        nowhere.unwrap()
    article.attrs = {"id": page}


def take_solutions(article: Tag) -> Iterator[Tag]:
    """Take a page's solutions out of it, with links there and back."""
    for solution in article.select("div.solution"):
        name, back = str(solution["id"]), solution.select_one(".admonition-title a")
        link = f'<a href="#{html.escape(name)}">Solution on page {_page_of(name)}</a>'
        solution.replace_with(_tag(f'<p class="pdf-solution">{link}</p>'))
        if back is not None:
            back.append(_tag(f"<span>, page {_page_of(str(back['href']).removeprefix('#'))}</span>"))
        yield solution


def head(soup: BeautifulSoup, folder: Path) -> Iterator[str]:
    """A page's styles, and the scripts that typeset its mathematics."""
    for tag in soup.select("head link[rel=stylesheet], head script"):
        if tag.name == "link" or "mathjax" in str(tag).lower():
            for name in {"href", "src"} & tag.attrs.keys():
                tag[name] = address(str(tag[name]), "", (), folder)
            yield str(tag)


def document(site: Path, root: Path = ROOT) -> str:
    """The whole book as one HTML page.

    Raises:
        SystemExit: if the site was not built, a page was not executed, or a link leads nowhere.
    """
    if not (site / "index.html").is_file():
        raise SystemExit(f"There is no site in {site}: make book builds it.")
    parts = toc_parts(root)
    pages = {Path(name).name for _, names in parts for name in names}
    heads: dict[str, None] = {}  # in their order, each once
    contents, body, solved = "", "", ""
    for caption, names in parts:
        contents += f"<li><b>{html.escape(caption)}</b><ol>"
        body += f'<section class="pdf-part"><h1>{html.escape(caption)}</h1>'
        for name in names:
            soup, folder, page = read(site, name), (site / name).parent, Path(name).name
            heads |= dict.fromkeys(head(soup, folder))
            article = soup.find("article")
            assert isinstance(article, Tag)
            still(article)
            join(article, page, pages, folder)
            heading = article.h2.decode_contents() if article.h2 else page
            contents += f'<li><a href="#{page}">{heading}</a>{_page_of(page)}</li>'
            solutions = "".join(map(str, take_solutions(article)))
            solved += f'<h2><a href="#{page}">{heading}</a></h2>{solutions}' if solutions else ""
            body += str(article)
        contents, body = f"{contents}</ol></li>", f"{body}</section>"
    text = f"""<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8">
<title>{title(root)}</title>{"".join(heads)}<style>{STYLE.read_text(encoding="utf-8")}</style></head><body>
<p class="pdf-title">{title(root)}</p><p>{site_url()}</p>
<nav><h1>Contents</h1><ol class="pdf-contents">{contents}
<li><b><a href="#solutions">{SOLUTIONS}</a></b>{_page_of("solutions")}</li></ol></nav>
{body}<section class="pdf-part" id="solutions"><h1>{SOLUTIONS}</h1>{solved}</section></body></html>"""
    if lost := set(re.findall(r'<a [^>]*href="#([^"]*)"', text)) - set(re.findall(r' id="([^"]*)"', text)):
        raise SystemExit(f"Links lead nowhere in the document: {', '.join(sorted(lost))}.")
    return text


def page_numbers(pdf: bytes) -> dict[str, int]:
    """On which page, counted from 1, each element lies that a link leads to."""
    reader = PdfReader(BytesIO(pdf))
    pages = {name: reader.get_destination_page_number(at) for name, at in reader.named_destinations.items()}
    return {name.removeprefix("/"): page + 1 for name, page in pages.items() if page is not None}


def printed(source: Path, footer: str) -> bytes:
    """Print the document until the page numbers that it names are right.

    Raises:
        SystemExit: if there is no Chromium, or the numbers never settle.
    """
    if not (program := shutil.which("chromium") or shutil.which("google-chrome")):
        raise SystemExit("There is no Chromium to print with: install it (apt install chromium) or Google Chrome.")
    from playwright.sync_api import sync_playwright

    numbers: dict[str, int] = {}
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=program, args=FLAGS) as browser:
        tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        tab.emulate_media(media="print")
        tab.goto(source.as_uri(), timeout=0)
        tab.evaluate(READY, HEIGHT)
        for _ in range(PRINTS):
            pdf = tab.pdf(
                format="A4",
                scale=SCALE,
                margin={"top": "16mm", "bottom": "18mm", "left": "18mm", "right": "18mm"},
                print_background=True,
                display_header_footer=True,
                header_template="<span></span>",
                footer_template=FOOTER.format(title=footer),
                outline=True,
                tagged=True,
            )
            if (found := page_numbers(pdf)) == numbers:
                return pdf
            numbers = found
            tab.evaluate(FILL, numbers)
    raise SystemExit(f"The page numbers of the contents were still wrong after {PRINTS} prints.")


def main() -> None:
    """Print the site's book into ``build/book.pdf``."""
    require_writable(BUILD)
    (source := TARGET.with_suffix(".html")).write_text(document(SITE), encoding="utf-8")
    TARGET.write_bytes(printed(source, title()))
    print(f"{TARGET}: {len(PdfReader(TARGET).pages)} pages, {TARGET.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
