"""Pages for assistants and scripts: nothing is left out, no markup is left in, and every listed file is there."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tools import executions, plain, portable, results
from tools.common import ROOT, toc_pages
from tools.copies import FOLDER

TABLE = (
    "<table><thead><tr><th>net</th><th>MB</th></tr></thead><tbody><tr><td>int8</td><td>3.6</td></tr></tbody></table>"
)
FIGURE = (
    '<figure><style>p {}</style><svg role="img" aria-label="Two bars: 9.2 and 2.6."><text>9.2</text></svg>'
    '<input type="range"><figcaption>int8 is smaller.</figcaption></figure>'
)


def code(name: str, source: str, *outputs: dict[str, Any], tags: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"cell_type": "code", "id": name, "source": source, "metadata": {"tags": [*tags]}, "outputs": [*outputs]}


def html(text: str) -> dict[str, Any]:
    return {"output_type": "display_data", "data": {"text/html": text, "text/plain": "<object>"}}


COPY = {
    "cells": [
        {"cell_type": "markdown", "id": "t", "source": "# Static quantization", "metadata": {}},
        code("install", "install_helpers()"),
        {"cell_type": "markdown", "id": "l", "source": "It fixes scales, see [one](two.ipynb#x). 3.6†", "metadata": {}},
        code("a", "print('```')", {"output_type": "stream", "text": ["```\n", "done\n"]}),
        code("b", "draw()", html(FIGURE), html(TABLE), tags=("remove-input",)),
        code("c", "6 * 7", {"output_type": "execute_result", "data": {"text/plain": ["42"]}}),
    ]
}


TERMS = """---
sidebar: none
---
# Terms

```{glossary}
scale
  What a code is multiplied by {cite:p}`a`.
  Not a {term}`zero point`.
```

``````{dropdown} A: 1 row

`````{list-table}
:header-rows: 1

* - [](static.ipynb#x)

    ```python
    x
    ```
`````
``````
"""


def test_a_page_has_its_prose_its_code_and_what_it_printed() -> None:
    text = plain.page(COPY)
    assert text.startswith("# Static quantization\n\nIt fixes scales, see [one](two.md#x). 3.6\n")
    assert "````python\nprint('```')\n````" in text
    assert "````text\n```\ndone\n````" in text
    assert "*Figure: Two bars: 9.2 and 2.6.* int8 is smaller." in text
    assert "| int8 | 3.6 |" in text
    assert "```text\n42\n```" in text


@pytest.mark.parametrize("left_out", ["install_helpers", "draw()", "<object>", "<svg", "p {}", "†"])
def test_a_page_is_free_of_what_only_a_browser_or_a_notebook_needs(left_out: str) -> None:
    assert left_out not in plain.page(COPY)


@pytest.fixture
def laid_out(tmp_path: Path) -> Path:
    (tmp_path / "site" / FOLDER).mkdir(parents=True)
    (tmp_path / "site" / FOLDER / "static.ipynb").write_text(json.dumps(COPY))
    (tmp_path / "site" / "results.json").write_text("{}")
    (tmp_path / "site" / "book").mkdir()
    (tmp_path / "stage" / "book").mkdir(parents=True)
    (tmp_path / "stage" / "_config.yml").write_text("title: A book\n")
    (tmp_path / "stage" / "_toc.yml").write_text(
        "root: book/static\nparts:\n- caption: Reference\n  chapters: [{file: book/references}, {file: book/terms}]\n"
    )
    (tmp_path / "stage" / "book" / "static.ipynb").write_text(json.dumps(COPY))
    (tmp_path / "stage" / "book" / "terms.md").write_text(TERMS)
    (tmp_path / "stage" / "book" / "references.md").write_text("# References\n\n```{bibliography}\n:all:\n```\n")
    (tmp_path / "stage" / "book" / "references.bib").write_text(
        "@article{a, author={Ann Example}, title={Rounding}, journal={J}, year={2020}}"
    )
    return tmp_path


def test_the_list_names_every_page_and_file_of_data(laid_out: Path) -> None:
    plain.write(laid_out / "site", laid_out / "stage")
    listed = (laid_out / "site" / "llms.txt").read_text()
    assert "- [Static quantization](book/static.md): It fixes scales, see one." in listed
    assert "- [References](book/references.md)" in listed
    assert "results.json" in listed
    assert "verdicts.json" not in listed, "what is not there is not listed"
    assert "Rounding" in (laid_out / "site" / "book" / "references.md").read_text()
    assert "bibliography" not in (laid_out / "site" / "book" / "references.md").read_text()


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ('<svg aria-label="x&lt;y and more"></svg>', "*Figure: x<y and more*"),
        ("<table><tr><th>a|b</th></tr><tr><td><code>c|d</code></td></tr></table>", "| a\\|b |\n| --- |\n| `c\\|d` |"),
        ("<p><b>Bold</b></p><table><tr><th>a</th></tr></table>", "**Bold**\n\n| a |\n| --- |"),
    ],
)
def test_markup_of_outputs_is_kept_as_markdown(markup: str, text: str) -> None:
    assert plain.as_markdown(markup) == text


def test_colours_of_a_terminal_are_left_out() -> None:
    stream = {"output_type": "stream", "text": ["\x1b[1mbold\x1b[0m"]}
    assert "```text\nbold\n```" in plain.page({"cells": [code("a", "x", stream)]})


def test_a_page_that_is_no_notebook_has_no_roles_and_no_directives_and_links_to_pages_of_this_form(
    laid_out: Path,
) -> None:
    plain.write(laid_out / "site", laid_out / "stage")
    assert (laid_out / "site" / "book" / "terms.md").read_text() == (
        "# Terms\n\n**scale**: What a code is multiplied by (Example, 2020).\n  Not a zero point.\n\n"
        "<details>\n<summary>A: 1 row</summary>\n\n"
        "* - [Static quantization](static.md)\n\n    ```python\n    x\n    ```\n\n</details>\n"
    )
    (laid_out / "stage" / "book" / "terms.md").write_text("# Terms\n\n% a comment\n")
    with pytest.raises(portable.PortableError, match="terms: what only the site's builder reads is left"):
        plain.write(laid_out / "site", laid_out / "stage")


def test_each_page_of_the_book_that_is_no_notebook_has_a_plain_form() -> None:
    among, pages = portable.book(ROOT), [path for path in toc_pages() if path.suffix == ".md"]
    assert len(pages) > 5
    for page in pages:
        assert portable.written(page, among).startswith("# ")


def test_a_page_without_a_title_is_refused(laid_out: Path) -> None:
    (laid_out / "stage" / "book" / "references.md").write_text("no title")
    with pytest.raises(SystemExit, match="no title"):
        plain.write(laid_out / "site", laid_out / "stage")


def test_the_gallery_is_published_by_its_schema() -> None:
    jsonschema.validate(results.of_gallery(), results.schema("gallery"))


# --- executions --------------------------------------------------------------------------------------

STAMP = {"seconds": 61.4, "peak_mb": 1234, "date": "2026-11-30", "commit": "0123456789", "processor": "A CPU"}
STAMP |= {"versions": {"torch": "2.14.1"}}


def kept(monkeypatch: pytest.MonkeyPatch, folder: Path, **stamps: Any) -> list[Path]:
    for name, stamp in stamps.items():
        (folder / f"{name}.json").write_text(json.dumps(stamp))
    monkeypatch.setattr(executions, "stamp_file", lambda path: folder / f"{path.stem}.json")
    return [Path(f"{name}.ipynb") for name in stamps]


def test_what_all_executions_share_is_said_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    books = kept(monkeypatch, tmp_path, one=STAMP, two=STAMP | {"date": "2026-12-01", "peak_mb": None})
    document = executions.document(books)
    jsonschema.validate(document, results.schema("executions"))
    table = executions.table(document)
    assert "All of them: A CPU; torch 2.14.1." in table
    assert "| [](one.ipynb) | 61 | 1,234 | 2026-11-30 | `0123456` |" in table
    assert "| [](two.ipynb) | 61 | – | 2026-12-01 | `0123456` |" in table


@pytest.mark.parametrize(
    "stamp",
    [
        {},
        STAMP | {"seconds": None},
        STAMP | {"peak_mb": -1},
        STAMP | {"versions": {}},
        {k: v for k, v in STAMP.items() if k != "date"},
    ],
)
def test_an_execution_that_is_not_known_is_refused(
    stamp: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    books = kept(monkeypatch, tmp_path, one=stamp)
    with pytest.raises((SystemExit, jsonschema.ValidationError)):
        jsonschema.validate(executions.document(books), results.schema("executions"))


def test_the_page_needs_the_table_s_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    books = kept(monkeypatch, tmp_path, one=STAMP)
    (tmp_path / "book").mkdir()
    (tmp_path / executions.PAGE).write_text("# Executions\n")
    with pytest.raises(SystemExit, match="once"):
        executions.fill(tmp_path, books)
    (tmp_path / executions.PAGE).write_text(f"# Executions\n\n{executions.PLACE}\n")
    executions.fill(tmp_path, books)
    assert "one.ipynb" in (tmp_path / executions.PAGE).read_text()
