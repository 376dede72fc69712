"""Turn a chapter into a notebook that reads well outside the site: plain Markdown, and the figures of the build.

Roles become text or links, directives plain Markdown; solutions are folded; a check no longer stops *Run all*.
"""

import ast
import html
import json
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markdown_it.renderer import RendererHTML
from myst_parser.config.main import MdParserConfig
from myst_parser.parsers.mdit import create_md_parser
from pybtex import PybtexEngine
from pybtex.database import BibliographyData, Entry, parse_string

from tools.common import ROOT, site_url, toc_pages
from tools.still import still

Cell = dict[str, Any]
MARK = "†"
SCRAP = "application/papermill.record/text/plain"  # how myst-nb keeps what a notebook glues
UNREAD = {"hide-input", "hide-cell", "remove-input", "remove-cell"}
UNSHOWN = {"remove-cell", "remove-output"}
KERNEL = re.compile(r"\s*\*\*Kernel:\*\* [^.]*\.")  # what the site works without; a copy has one
PAGE = re.compile(r'href="(?P<page>[\w-]+)\.html(?P<place>#[^"]*)?"')  # in HTML, as the site has it
SOLUTION, SOLVED = "\0solution\0", "\0solved\0"

FENCE = re.compile(r"^(?P<marks>`{3,}|:{3,}|~{3,})(?P<rest>.*)$")
DIRECTIVE = re.compile(r"^\{(?P<name>[\w:-]+)\}\s*(?P<argument>.*)$")
LABEL = re.compile(r"^\((?P<label>[\w-]+)\)=\n+(?=#+ +(?P<heading>.+))", re.MULTILINE)
INLINE = re.compile(
    r"\{(?P<role>[\w:-]+)\}(?P<quotes>`+)(?P<content>.+?)(?<!`)(?P=quotes)(?!`)"
    r"|(?P<code>(?P<ticks>`+).+?(?<!`)(?P=ticks)(?!`)|\$\$.+?\$\$|\$[^$\n]+\$)"
    r"|(?<!!)\[(?P<text>(?:[^\[\]`]|`[^`]*`)*)\]\((?P<target>[^()\s]+)\)",
    re.DOTALL,
)


class PortableError(Exception):
    """A chapter has something that no plain form is known for."""


@dataclass(frozen=True)
class Book:
    """What a chapter may refer to."""

    site: str  # address of the published site with a slash at its end, or ""
    titles: dict[str, str]  # of each page by its name
    labels: dict[str, tuple[str, str]]  # the page that a label stands in, and the heading below it
    bibliography: str
    folder: Path  # where included files lie

    def written(self, term: str) -> str:
        """A term as the glossary writes it, whose capitals the address keeps: SQNR, Hessian, fusing."""
        glossary = self.folder / "glossary.md"
        text = glossary.read_text(encoding="utf-8") if glossary.is_file() else ""
        found = re.search(rf"^{re.escape(term)}$", text, re.MULTILINE | re.IGNORECASE)
        return found[0] if found else term

    def address(self, page: str) -> str:
        """Where a page is to be read: on the site, or else as the copy beside this one."""
        return f"{self.site}book/{page}.html" if self.site else f"{page}.ipynb"


def book(root: Path = ROOT) -> Book:
    """Read titles, labels and papers of the book."""
    titles: dict[str, str] = {}
    labels: dict[str, tuple[str, str]] = {}
    for path in toc_pages(root):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            cells = json.loads(text)["cells"]
            text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        titles[path.stem] = text.split("\n", 1)[0].removeprefix("# ")
        labels |= {match["label"]: (path.stem, match["heading"]) for match in LABEL.finditer(text)}
    papers = (root / "book" / "references.bib").read_text(encoding="utf-8")
    return Book(site_url(root), titles, labels, papers, root / "book")


def glued(executed: dict[str, Any]) -> dict[str, str]:
    """What an executed notebook glues, by key."""
    found = {}
    for cell in executed["cells"]:
        for output in cell.get("outputs", []):
            name = output.get("metadata", {}).get("scrapbook", {}).get("name")
            if name and SCRAP in output["data"]:
                found[name] = str(ast.literal_eval("".join(output["data"][SCRAP])))
    return found


@dataclass
class _Page:
    """One chapter on its way: what its roles stand for, and the papers that it cites."""

    name: str
    book: Book
    values: Mapping[str, str]
    cited: list[str]
    papers: BibliographyData

    def text(self, markdown: str) -> str:
        """Markdown of the book as plain Markdown; solutions are left between two marks."""
        blocks: list[str] = []
        for kind, content in _blocks(markdown):
            blocks.append(content if kind == "code" else self.inline(content) if kind == "prose" else self._of(content))
        return re.sub(r"\n{3,}", "\n\n", "\n".join(blocks)).strip()

    def _of(self, block: str) -> str:
        opening, *body = block.split("\n")
        fence = FENCE.match(opening)
        directive = DIRECTIVE.match(fence["rest"]) if fence else None
        assert directive is not None
        while body and re.match(r":[\w-]+:", body[0]):
            del body[0]
        text, argument = "\n".join(body).strip("\n"), directive["argument"]
        forms: dict[str, Callable[[], str]] = {
            "admonition": lambda: textwrap.indent(
                f"**{self.inline(argument)}**\n\n{self.text(text)}", "> ", lambda _: True
            ).replace("> \n", ">\n"),
            "include": lambda: self.text((self.book.folder / argument).read_text(encoding="utf-8")),
            "code-block": lambda: f"```{argument}\n{text}\n```",
            "literalinclude": lambda: self._file(argument),
            "dropdown": lambda: (
                f"<details>\n<summary>{html.escape(argument)}</summary>\n\n{self.text(text)}\n\n</details>"
            ),
            "list-table": lambda: self.text(text),  # its rows are lists
            "glossary": lambda: re.sub(r"^(?=\S)(.+)\n  ", r"**\1**: ", self.text(text), flags=re.MULTILINE),
            "bibliography": lambda: references(self.book.bibliography),
            "exercise-start": lambda: f"**Exercise: {self.inline(argument)}**\n",
            "exercise-end": lambda: "",
            "solution-start": lambda: SOLUTION,
            "solution-end": lambda: SOLVED,
        }
        if directive["name"] not in forms:
            raise PortableError(f"{self.name}: no plain form is known for the directive {directive['name']}.")
        return forms[directive["name"]]()

    def _file(self, name: str) -> str:
        path = self.book.folder / name
        language = {".py": "python"}.get(path.suffix, "")
        return f"```{language}\n{path.read_text(encoding='utf-8').rstrip()}\n```"

    def inline(self, text: str) -> str:
        """Text without fences: roles, links and labels."""
        text = LABEL.sub(lambda match: f'<a id="{html.escape(_slug(match["heading"]))}"></a>\n\n', text)
        return _led(INLINE.sub(self._inline, text), self.book)

    def _inline(self, match: re.Match[str]) -> str:
        if match["code"]:
            return match[0]
        if match["role"]:
            return self._role(match["role"], " ".join(match["content"].split()))
        return self._link(self.inline(match["text"]), match["target"])

    def _role(self, name: str, content: str) -> str:
        if name == "glue:text":
            try:
                return self.values[content] + MARK
            except KeyError:
                raise PortableError(f"{self.name}: the run glued nothing called {content}.") from None
        if name == "term":
            words, _, term = content.rstrip(">").partition(" <")
            anchor = "term-" + re.sub(r"[^\w]+", "-", self.book.written(term or words))
            return f"[{words}]({self.book.site}book/glossary.html#{anchor})" if self.book.site else words
        if name == "download":  # the file is shown beside it
            return f"`{content.partition(' <')[0]}`"
        if name in ("cite:p", "cite:t"):
            keys = [key.strip() for key in content.split(",")]
            self.cited += [key for key in keys if key not in self.cited]
            cited = "; ".join(_citation(self.papers.entries[key], name == "cite:t") for key in keys)
            return cited if name == "cite:t" else f"({cited})"
        raise PortableError(f"{self.name}: no plain form is known for the role {name}.")

    def _link(self, text: str, target: str) -> str:
        if re.match(r"[a-z]+:", target):
            return f"[{text}]({target})"
        page, _, label = target.removeprefix("./").partition("#")
        if not page.endswith((".ipynb", ".md")):
            if (label or page) not in self.book.labels:
                raise PortableError(f"{self.name}: no heading of the book is labelled {label or page}.")
            page, heading = self.book.labels[label or page]
            if page == self.name:
                return f"[{text or heading}](#{quote(_slug(heading))})"
        stem, ending = Path(page).stem, Path(page).suffix
        text = text or self.book.titles[stem]
        return f"[{text}]({self.book.address(stem)})" if self.book.site or ending != ".md" else text


def _blocks(markdown: str) -> Iterator[tuple[str, str]]:
    """Split Markdown into prose, code and directives; the last without their closing fence."""
    prose: list[str] = []
    lines = iter(markdown.split("\n"))
    for line in lines:
        fence = FENCE.match(line)
        if fence is None:
            prose.append(line)
            continue
        if prose:
            yield "prose", "\n".join(prose)
            prose = []
        inside = []
        for inner in lines:
            if re.fullmatch(rf"{re.escape(fence['marks'][0])}{{{len(fence['marks'])},}} *", inner):
                break
            inside.append(inner)
        if DIRECTIVE.match(fence["rest"]):
            yield "directive", "\n".join([line, *inside])
        else:
            yield "code", "\n".join([line, *inside, fence["marks"]])
    if prose:
        yield "prose", "\n".join(prose)


def _slug(heading: str) -> str:
    """The id that JupyterLab gives a heading."""
    return re.sub(r"[`*]", "", heading).strip().replace(" ", "-")


def _citation(entry: Entry, in_text: bool) -> str:
    names = [" ".join(person.last_names).strip("{}") for person in entry.persons["author"]]
    who = names[0] if len(names) == 1 else " and ".join(names) if len(names) == 2 else f"{names[0]} et al."
    year = entry.fields["year"]
    words = f"{who} ({year})" if in_text else f"{who}, {year}"
    eprint, doi = entry.fields.get("eprint"), entry.fields.get("doi")
    address = f"https://arxiv.org/abs/{eprint}" if eprint else f"https://doi.org/{doi}" if doi else None
    address = address or entry.fields.get("url")
    return f"[{words}]({address})" if address else words


def written(page: Path, among: Book) -> str:
    """A page that is no notebook, as plain Markdown.

    Raises:
        PortableError: if it has a role, a directive or a target without a plain form.
    """
    text = re.sub(r"\A---\n.*?\n---\n", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)  # for the theme
    text = _Page(page.stem, among, {}, [], parse_string(among.bibliography, "bibtex")).text(text)
    _refuse_leftovers(page.stem, [_markdown(page.stem, text)])
    return text


def portable(
    executed: dict[str, Any], name: str, among: Book, first_cell: str, values: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The copy of a chapter, with the outputs of its run.

    Args:
        executed: the chapter after its run.
        name: its file name without ending.
        among: the book that it belongs to.
        first_cell: the code that installs what the chapter needs.
        values: what its glue roles stand for; what the run glued if None.

    Raises:
        PortableError: if it has a role, a directive or a target without a plain form.
    """
    page = _Page(
        name, among, glued(executed) if values is None else values, [], parse_string(among.bibliography, "bibtex")
    )
    cells: list[Cell] = []
    solution: list[str] | None = None
    for cell in executed["cells"]:
        code = "".join(cell["source"])
        if cell["cell_type"] == "code":
            if solution is None:
                cells.append(_code(cell, among))
            else:
                solution.append(f"```python\n{code}\n```")
            continue
        for number, part in enumerate(re.split(f"({SOLUTION}|{SOLVED})", page.text(KERNEL.sub("", code)))):
            if part == SOLUTION:
                solution = []
            elif part == SOLVED:
                folded = "\n\n".join(solution or [])
                cells.append(_markdown(f"{cell['id']}-{number}", f"<details>\n<summary>Solution</summary>\n\n{folded}"))
                cells[-1]["source"] += "\n\n</details>"
                solution = None
            elif solution is not None:
                solution += [part.strip()] if part.strip() else []
            elif part.strip():
                cells.append(_markdown(f"{cell['id']}-{number}" if number else cell["id"], part.strip()))
    install = {"tags": ["install"], "jupyter": {"source_hidden": True}}
    title, _, text = cells[0]["source"].partition("\n")
    cells[:1] = [
        _markdown(cells[0]["id"], title),
        _markdown("copy", _note(executed, name, among)),
        _new_code("install", first_cell, install),
        *([_markdown("lead", text.strip())] if text else []),
    ]
    if page.cited:
        cells.append(_markdown("papers", f"## Papers\n\n{references(among.bibliography, page.cited)}"))
    metadata = {
        key: executed["metadata"][key] for key in ("kernelspec", "language_info") if key in executed["metadata"]
    }
    _refuse_leftovers(name, cells)
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def _refuse_leftovers(name: str, cells: list[Cell]) -> None:
    if left := leftovers(cells):
        raise PortableError(f"{name}: what only the site's builder reads is left in its copy: {'; '.join(left)}")


def leftovers(cells: list[Cell]) -> list[str]:
    """Roles, directives, labels and comments of MyST in Markdown cells and outputs, found by its own parser."""
    parser = create_md_parser(MdParserConfig(enable_extensions={"colon_fence"}), RendererHTML)
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    texts += [
        "".join(output["data"]["text/markdown"]) for output in outputs if "text/markdown" in output.get("data", ())
    ]
    found = []
    for token in (
        inner for text in texts for outer in parser.parse(text) for inner in [outer, *(outer.children or [])]
    ):
        if token.type.startswith("myst_") or token.type == "colon_fence" or token.info.startswith("{"):
            found.append(
                " ".join(f"{token.type} {token.meta.get('name', '')} {token.info} {token.content[:60]}".split())
            )
    return found


def references(bibliography: str, cited: Sequence[str] = ("*",)) -> str:
    """A list of the works that are cited, all by default."""
    text = PybtexEngine().format_from_string(bibliography, style="unsrt", output_backend="text", citations=[*cited])
    entries = [" ".join(one.split()) for one in re.split(r"^\[\d+\] ", text, flags=re.MULTILINE)[1:]]
    return "\n".join(f"- {entry}" for entry in entries)


def _note(executed: dict[str, Any], name: str, among: Book) -> str:
    setups = [cell for cell in executed["cells"] if "setup" in cell["metadata"].get("tags", [])]
    printed = "".join("".join(out.get("text", "")) for cell in setups for out in cell["outputs"]).strip()
    where = f"in [its published form]({among.address(name)})" if among.site else "on the book's site"
    marked = f"{MARK} marks what the build of the book put into the text, a number or a finding"
    machine = [f"{marked} from this machine:", "", *(f"    {line}" for line in printed.split("\n"))]
    lines = [
        "**A copy to run.** This is a chapter of *Quantization with PyTorch, executed*; read it with sliders and "
        f"numbered citations {where}. The next cell installs what is missing, and leaves your PyTorch as it is.",
        "",
        *(machine if printed else [f"{marked}."]),
        "",
        "Your own run prints its own numbers below the cells; the text stays as it is.",
    ]
    return "\n".join(f"> {line}".rstrip() for line in lines)


def _markdown(name: str, text: str) -> Cell:
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": text}


def _new_code(name: str, code: str, metadata: dict[str, Any]) -> Cell:
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": name,
        "metadata": metadata,
        "outputs": [],
        "source": code,
    }


def _code(cell: Cell, among: Book) -> Cell:
    tags = cell["metadata"].get("tags", [])
    metadata: dict[str, Any] = {"tags": tags} if tags else {}
    if UNREAD & set(tags):
        metadata["jupyter"] = {"source_hidden": True}
    copy = _new_code(cell["id"], "".join(cell["source"]), metadata)
    if "exercise-check" in tags:
        copy["source"] = _told(copy["source"])  # what a run showed was the check of the solution
        return copy
    if not UNSHOWN & set(tags):
        seen = [out for out in cell["outputs"] if out.get("name") != "stderr" or "remove-stderr" not in tags]
        copy["outputs"] = [one for output in seen if (one := _output(output, among)) is not None]
    copy["execution_count"] = cell["execution_count"]
    return copy


def _told(check: str) -> str:
    """A check that says that an exercise is not solved, instead of stopping *Run all*."""
    return (
        f"try:\n{textwrap.indent(check, '    ')}\n"
        "except AssertionError as error:\n"
        '    print("Not solved yet:", str(error) or "an assertion of this cell does not hold.")'
    )


def _output(output: dict[str, Any], among: Book) -> dict[str, Any] | None:
    """An output without what only the site's builder reads; None if nothing is left."""
    if "data" not in output:
        return output
    dropped = (SCRAP, "application/vnd.jupyter.widget-view+json")
    data = {kind: value for kind, value in output["data"].items() if kind not in dropped}
    if "text/html" in data:
        data["text/html"] = _led(still("".join(data["text/html"])), among)
    return output | {"data": data, "metadata": {}} if data else None


def _led(text: str, among: Book) -> str:
    """HTML whose links to pages of the site lead to where the copy's reader finds them."""
    page = among.address(r"\g<page>") + (r"\g<place>" if among.site else "")
    return PAGE.sub(f'href="{page}"', text)


def cleared(notebook: dict[str, Any]) -> dict[str, Any]:
    """A copy without outputs."""
    cells = [
        cell | {"outputs": [], "execution_count": None} if cell["cell_type"] == "code" else cell
        for cell in notebook["cells"]
    ]
    return notebook | {"cells": cells}
