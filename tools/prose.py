"""Read the book's prose as an editor would: proselint's checks, and phrases that STYLE.md advises against.

python -m tools.prose [FILE ...]
"""

import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from proselint.checks import __register__
from proselint.config import DEFAULT, Config
from proselint.registry import CheckRegistry
from proselint.tools import LintFile

from tools.common import ROOT, toc_pages

# Phrases of ours, and what to write instead: STYLE.md has a sentence before and after for most of them.
OURS = {
    r"\b(?:stands?|stood) in (?:\[|its |the (?:table|issue|chapter))": "see …, or: is in",
    r"\bwhat (?:comes|came) out\b": "the result, the output",
    r"\bput(?:s|ting)? out\b": "output, write",
    r"\bas (?:it|they) comes?\b": "as shipped",
    r"\broads?\b": "workflow, way, path",
    r"\bstations?\b": "step",
    r"\bpatients?\b": "model, layer",
    r"\bgood for nothing\b": "useless",
    r"\bthat (?:the|a) \w+ has not\b": "that the … lacks",
    r"\bno mistake of ours\b": "real",
    r"\bas good as any\b": "as accurate as",
    r"\bheld against\b": "checked against",
    r"\badvises? to \w+": "advise …ing",
    r"\blose the network\b": "ruin the accuracy",
    r"\bstays? on the desk\b": "never leaves Python",
    r"\bvery\b": "(delete, or say how much)",
    r"\bsort(?:s|ed)? \w+ \w+ out\b": "separate, collect",
}
# Off: what MyST's marks set off, times of day ("a.m."), and "very", for which OURS has politer words.
OFF = {"typography": False, "dates_times": False, "weasel_words.very": False}
CONFIG: Config = {"max_errors": 1000, "checks": OFF | DEFAULT["checks"] | OFF}  # the first that fits counts
LEFT_OUT = ("STYLE.md", "CODE_OF_CONDUCT.md")  # one quotes what it advises against, the other is not ours
DIRECTIVE = re.compile(r"^(?:[`:~]{3,}.*|:[\w-]+:.*)$", re.MULTILINE)
TITLE = re.compile(r"^(?:#+ .*|\w.*(?=\n  \S))$", re.MULTILINE)  # of a section, or a term of the glossary
CODE_BLOCK = re.compile(r"^(?P<marks>`{3,}|~{3,})(?!\{(?!code-block|literalinclude)).*?^(?P=marks) *$", re.M | re.S)
VALUE = re.compile(r"\{(?:glue:text|cite:[pt])\}`[^`]*`|(?P<marks>`+).+?(?<!`)(?P=marks)(?!`)|\$[^$]+\$", re.DOTALL)
WORDS = re.compile(
    r"\{(?:term|download)\}`(?P<role>[^`<]+?)(?: <[^`]*)?`|\[(?P<link>(?:[^\]`]|`[^`]*`)*)\]\([^()\s]*\)"
)


def plain(markdown: str) -> str:
    """The words of MyST Markdown, line by line; code, numbers and citations become names that differ.

    >>> plain("A {term}`scale` of {glue:text}`mb` for [`x`](x.md).").strip()
    'A scale of v0 for v1.'
    """
    text = CODE_BLOCK.sub(lambda block: "\n" * block[0].count("\n"), markdown)
    text = TITLE.sub(lambda match: f"{match[0]}.", DIRECTIVE.sub("", text))
    text = WORDS.sub(lambda match: match["role"] or match["link"], text)
    numbers = itertools.count()
    return VALUE.sub(lambda match: f"v{next(numbers)}" + "\n" * match[0].count("\n"), text)


def findings(markdown: str) -> list[tuple[int, str]]:
    """What an editor would mark: the line, and the phrase with what is wrong with it."""
    text = plain(markdown)
    found = [
        (text.count("\n", 0, match.start()) + 1, f"“{match[0].strip()}”: {better}")
        for phrase, better in OURS.items()
        for match in re.finditer(phrase, text, re.IGNORECASE)
    ]
    if text.strip():
        if not CheckRegistry().checks:
            CheckRegistry().register_many(__register__)
        for result in LintFile("text", text).lint(CONFIG):
            found.append((result.pos[0], f"{result.check_result.message} ({result.check_result.check_path})"))
    return sorted(found)


def texts(path: Path) -> Iterator[tuple[str, str]]:
    """The Markdown of a file with where it is: each cell of a notebook, or the whole file."""
    name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
    if path.suffix != ".ipynb":
        yield name, path.read_text(encoding="utf-8")
        return
    cells: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    yield from ((f"{name}:{cell['id']}", "".join(cell["source"])) for cell in cells if cell["cell_type"] == "markdown")


def main() -> int:
    """Print what an editor would mark in the files that are named, or in the whole book."""
    book = [*toc_pages(), ROOT / "book" / "status.md", *sorted(ROOT.glob("*.md"))]
    files = [Path(name).resolve() for name in sys.argv[1:]] or [path for path in book if path.name not in LEFT_OUT]
    marked = [
        f"{where}:{line}: {words}" for path in files for where, text in texts(path) for line, words in findings(text)
    ]
    print("\n".join([*marked, f"prose: {len(marked)} findings in {len(files)} files"]))
    return 1 if marked else 0


if __name__ == "__main__":
    sys.exit(main())
