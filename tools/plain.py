"""Pages for assistants and scripts: each one as Markdown with its printed outputs, and ``llms.txt``, which lists them.

They lie beside the site's pages, ``book/NAME.md`` beside ``book/NAME.html``, in the form of https://llmstxt.org.
"""

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup
from markdownify import markdownify

from tools import portable
from tools.common import toc_parts
from tools.copies import FOLDER
from tools.portable import MARK, UNREAD

LEFT_OUT = {"install", "copy"}  # cells that only a notebook needs
DATA = {
    "results.json": "rows of the table of all models, and every measured ratio of speeds",
    "verdicts.json": "the sources' statements, what was measured, and the verdict",
    "symptoms.json": "messages and symptoms, their causes and cures, and where each is executed",
    "gallery.json": "errors and surprises that users reported, with cause, cure and threads",
    "executions.json": "time, peak memory, versions, processor and date of each notebook",
}


def as_markdown(markup: str) -> str:
    """HTML of an output as Markdown: tables stay tables, a picture is its description and its caption.

    >>> as_markdown('<figure><svg aria-label="A line."><path/></svg><figcaption>It rises.</figcaption></figure>')
    '*Figure: A line.* It rises.'
    """
    soup = BeautifulSoup(markup, "html.parser")
    for unread in soup.select("script, style, template, noscript, input, button"):
        unread.decompose()
    for cell in soup.select("td, th"):
        for words in cell.find_all(string=re.compile(r"\|")):
            words.replace_with(words.replace("|", r"\|"))
    for picture in soup.select("svg, img"):
        label = html.escape(str(picture.get("aria-label") or picture.get("alt") or ""))
        picture.replace_with(BeautifulSoup(f"<p><em>Figure: {label}</em></p>" if label else "", "html.parser"))
    text: str = markdownify(str(soup), heading_style="ATX")
    text = re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", text)).strip()
    return re.sub(r"^(\*Figure: .*\*)\n\n", r"\1 ", text, count=1)


def _fenced(text: str, language: str) -> str:
    text = re.sub(r"\x1b\[[\d;]*m", "", text)  # a terminal's colours
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall(r"`{3,}", text)), 3)
    return f"{fence}{language}\n{text.strip(chr(10))}\n{fence}"


def _outputs(cell: dict[str, Any]) -> Iterator[str]:
    for output in cell.get("outputs", []):
        data = {kind: "".join(value) for kind, value in output.get("data", {}).items() if isinstance(value, str | list)}
        if output["output_type"] == "stream":
            yield _fenced("".join(output["text"]), "text")
        elif "text/markdown" in data:
            yield data["text/markdown"].strip()
        elif "text/html" in data:
            yield as_markdown(data["text/html"])
        elif "text/plain" in data:
            yield _fenced(data["text/plain"], "text")


def page(copy: dict[str, Any]) -> str:
    """A chapter's copy as Markdown: its prose, the code that its page shows, and what the run printed.

    Args:
        copy: the notebook as :func:`tools.portable.portable` makes it, with outputs.
    """
    parts: list[str] = []
    for cell in copy["cells"]:
        if cell["id"] in LEFT_OUT:
            continue
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        if UNREAD.isdisjoint(cell["metadata"].get("tags", [])):
            parts.append(_fenced(source, "python"))
        parts += [text for text in _outputs(cell) if text]
    return _linked("\n\n".join(parts).replace(MARK, ""))


def _linked(text: str) -> str:
    """Markdown whose links lead to the pages of this form."""
    return re.sub(r"\]\(([a-z0-9-]+)\.ipynb(?=[)#])", r"](\1.md", text) + "\n"


def _about(text: str) -> tuple[str, str]:
    """The title of a page in Markdown, and its first sentence."""
    title = re.search(r"^# (.+)$", text, re.MULTILINE)
    if not title:
        raise SystemExit(f"A page has no title, so llms.txt cannot list it: {text[:80]!r}")
    prose = re.search(r"^(?![#>|`<:\[(*-])\S.+?(?:\n\n|\Z)", text[title.end() :], re.MULTILINE | re.DOTALL)
    first = re.split(r"(?<=[.?!])\s", " ".join(prose[0].split()))[0] if prose else ""
    return title[1].strip(), re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", first)


def write(site: Path, stage: Path) -> None:
    """Lay the pages and ``llms.txt`` into a site that has its notebooks' copies.

    Args:
        site: the folder of the built site.
        stage: the book as it was laid out for jupyter-book, with the pages that are made then.

    Raises:
        SystemExit: for a page without a title.
    """
    lines = [
        "# Quantization with PyTorch, executed",
        "",
        "> Int8 with today's PyTorch. The numbers come from the run that built these pages, or from recorded runs.",
    ]
    among = portable.book(stage)
    for caption, names in toc_parts(stage):
        lines += ["", f"## {caption}", ""]
        for name in names:
            copy = site / FOLDER / f"{Path(name).name}.ipynb"
            notebook = json.loads(copy.read_text(encoding="utf-8")) if copy.is_file() else None
            text = page(notebook) if notebook else _linked(portable.written(stage / f"{name}.md", among))
            (site / f"{name}.md").write_text(text, encoding="utf-8")
            title, first = _about(text)
            lines.append(f"- [{title}]({name}.md)" + (f": {first}" if first else ""))
    lines += ["", "## Data", ""]
    for name, words in DATA.items():
        if (site / name).is_file():
            lines.append(f"- [{name}]({name}): {words}; its schema: {name.replace('.json', '.schema.json')}")
    (site / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
