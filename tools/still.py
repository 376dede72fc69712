"""A chapter's HTML outputs as they are shown where scripts, styles and inline SVG are not: a notebook that nobody has
trusted in JupyterLab yet, and GitHub's view of one.

Inline SVG becomes an image, and a slider or switcher a list of what it shows, the first part open. Of the playground
and of the plot of all models, the picture is left.
"""

import re
from base64 import b64encode

from bs4 import BeautifulSoup, Tag

SVG = re.compile(r"<svg\b(?P<head>[^>]*)>(?P<body>.*?)</svg>", re.DOTALL)


def still(html: str) -> str:
    """The HTML of an output without what only the site shows; other HTML is returned as it is."""
    html = SVG.sub(_image, html)
    if not any(kind in html for kind in ("qb-slider", "qb-switcher", "qb-playground", "qb-compare")):
        return html
    soup = BeautifulSoup(html, "html.parser")
    for left in soup.select(
        ".qb-playground > :not(figure), link, .qb-hint, .qb-compare > output, .qb-compare + script"
    ):
        left.decompose()
    for figure in soup.select("figure.qb-slider, figure.qb-switcher"):
        frames = figure.select("[data-frame]")
        labels = [str(frame["data-label"]) for frame in frames]
        if not frames:
            frames, labels = figure.select(".qb-panel"), [label.get_text() for label in figure.find_all("label")]
        for i, (frame, label) in enumerate(zip(frames, labels, strict=True)):
            _fold(soup, frame, label, opened=i == 0)
        for left in figure.find_all(["script", "style", "input", "label"]):
            left.decompose()
    return str(soup)


def _image(match: re.Match[str]) -> str:
    """The image of an inline SVG: black on white, since it cannot know the colours of the page around it."""
    head = match["head"]
    alt = re.search(r'aria-label="([^"]*)"', head)
    width = re.search(r"max-width:(\d+)px", head)
    head = re.sub(r' (?:style|role|aria-label)="[^"]*"', "", head)
    paper = '<rect width="100%" height="100%" fill="white"/>'
    text = f"<svg{head}>{paper}{match['body']}</svg>".replace("currentColor", "black")
    data = b64encode(text.encode()).decode()
    sized = f' width="{width[1]}"' if width else ""
    return f'<img alt="{alt[1] if alt else ""}"{sized} src="data:image/svg+xml;base64,{data}">'


def _fold(soup: BeautifulSoup, frame: Tag, label: str, opened: bool) -> None:
    summary = soup.new_tag("summary")
    summary.string = label
    details = soup.new_tag("details", attrs={"open": ""} if opened else {})
    frame.wrap(details).insert(0, summary)
    frame.attrs = {}
