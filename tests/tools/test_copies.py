"""The copies of the chapters that are read and run outside the site: plain Markdown, and a first cell that installs."""

import ast
import collections
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup

from tools import check_site, common, copies, first_cell, portable, run_copies, site_buttons
from tools.common import ROOT, notebooks

REPOSITORY = "https://github.com/someone/quantization"
SITE = "https://someone.github.io/quantization/"
ANYTHING: collections.defaultdict[str, str] = collections.defaultdict(lambda: "7.5")
every_notebook = pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)


@functools.cache
def copy_of(path: Path) -> dict[str, Any]:
    """A chapter's copy without a run: whatever it glues is 7.5."""
    chapter = json.loads(path.read_text())
    return portable.portable(chapter, path.stem, portable.book(ROOT), "install_helpers()", ANYTHING)


def code_cells(notebook: dict[str, Any], tag: str) -> list[str]:
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return ["".join(cell["source"]) for cell in cells if tag in cell["metadata"].get("tags", [])]


@pytest.fixture
def small(tmp_path: Path) -> portable.Book:
    """A book of two pages that is not published."""
    (tmp_path / "status.md").write_text("```{admonition} State\nA {term}`scale`.\n```")
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "a.py").write_text("x = {1: `2`}\n")
    papers = "@misc{a, author={Jacob, B. and Kligys, S. and Chen, B.}, title={T}, year={2018}, eprint={1712.05877}}"
    papers += "@misc{b, author={Migacz, Szymon}, title={U}, year={2017}}"
    titles, labels = {"one": "The one", "two": "The two"}, {"here": ("one", "What `x` is"), "there": ("two", "Far")}
    return portable.Book("", titles, labels, papers, tmp_path)


def plain(markdown: str, among: portable.Book, **values: str) -> str:
    cell = {"cell_type": "markdown", "id": "m", "metadata": {}, "source": markdown}
    title = {"cell_type": "markdown", "id": "t", "metadata": {}, "source": "# One"}
    made = portable.portable({"cells": [title, cell], "metadata": {}}, "one", among, "", values)
    return str(made["cells"][3]["source"])


@every_notebook
def test_no_role_and_no_directive_is_left_in_a_copy(path: Path) -> None:
    copy = copy_of(path)
    assert not portable.leftovers(copy["cells"])
    prose = "\n".join("".join(cell["source"]) for cell in copy["cells"] if cell["cell_type"] == "markdown")
    prose = re.sub(r"(`+).+?(?<!`)\1(?!`)|\$[^$]+\$", "", prose, flags=re.DOTALL)
    assert not re.findall(r"\{[a-z]+(?::[a-z]+)?\}|^:::|^\([\w-]+\)=|\[\]\(", prose, flags=re.MULTILINE)


@pytest.mark.parametrize(
    "left",
    ["{glue:text}`mb` MB", "a {term}`scale`", "```{note}\nx\n```", ":::{note}\nx\n:::", "(label)=\n# x", "% comment"],
)
def test_what_is_left_in_a_copy_is_found(left: str) -> None:
    assert portable.leftovers([{"cell_type": "markdown", "source": left}])
    output = {"output_type": "display_data", "data": {"text/markdown": left}}
    assert portable.leftovers([{"cell_type": "code", "source": "", "outputs": [output]}])


def test_code_that_looks_like_a_role_is_none() -> None:
    texts = [
        "``{glue:text}`mb` `` is a role",
        "```python\nf'{name}`x`'\n```",
        "$\\hat{x}$",
        "<details>\n\nx\n\n</details>",
    ]
    assert not portable.leftovers([{"cell_type": "markdown", "source": text} for text in texts])


@every_notebook
def test_a_copy_begins_with_title_note_install_and_setup(path: Path) -> None:
    title, note, install, *rest = copy_of(path)["cells"]
    assert re.fullmatch("# [^\n†]+", title["source"])
    assert "† marks" in note["source"]  # before the first that it explains
    assert install["metadata"]["tags"] == ["install"]
    assert "setup" in next(cell for cell in rest if cell["cell_type"] == "code")["metadata"]["tags"]
    assert "**Kernel:**" not in json.dumps(rest)  # a copy has one
    names = [cell["id"] for cell in copy_of(path)["cells"]]
    assert len({*names}) == len(names)
    assert "install" not in json.dumps([cell["metadata"] for cell in json.loads(path.read_text())["cells"]])


@every_notebook
def test_a_copy_s_checks_are_the_chapter_s_and_its_solutions_are_folded(path: Path) -> None:
    chapter, copy = json.loads(path.read_text()), copy_of(path)
    assert code_cells(copy, "exercise-stub") == code_cells(chapter, "exercise-stub")
    assert not code_cells(copy, "exercise-solution")
    folded = [cell["source"] for cell in copy["cells"] if "<summary>Solution</summary>" in cell["source"]]
    solutions = code_cells(chapter, "exercise-solution")
    assert [code in text for code, text in zip(solutions, folded, strict=True)] == [True] * len(solutions)
    assert all(text.endswith("</details>") for text in folded)
    for told, check in zip(code_cells(copy, "exercise-check"), code_cells(chapter, "exercise-check"), strict=True):
        attempt = ast.parse(told).body[0]
        assert isinstance(attempt, ast.Try)
        assert [ast.dump(one) for one in attempt.body] == [ast.dump(one) for one in ast.parse(check).body]


def test_an_unsolved_exercise_is_told_and_stops_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    exec(portable._told("assert 1 == 2, 'one is not two'"))
    exec(portable._told("assert 1 == 2"))
    exec(portable._told("print('Right.')"))
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "Not solved yet: one is not two",
        "Not solved yet: an assertion of this cell does not hold.",
        "Right.",
    ]


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("takes {glue:text}`mb` MB", "takes 3.6† MB"),
        ("{term}`scale`, {term}`saturate <saturation>`", "scale, saturate"),
        ("So {cite:p}`a,b`.", "So ([Jacob et al., 2018](https://arxiv.org/abs/1712.05877); Migacz, 2017)."),
        ("{cite:t}`b` says", "Migacz (2017) says"),
        ("[](two.ipynb), [so](./two.ipynb#x)", "[The two](two.ipynb), [so](two.ipynb)"),
        ("[](glossary.md) [`a`](#here)", "The glossary [`a`](#What-x-is)"),
        ("[far](#there) [web](https://a.b/c)", "[far](two.ipynb) [web](https://a.b/c)"),
        ("(here)=\n## What `x` is", '<a id="What-x-is"></a>\n\n## What `x` is'),
        ("```{admonition} Do\n:class: note\nTake {glue:text}`mb`.\n\n- a\n```", "> **Do**\n>\n> Take 3.6†.\n>\n> - a"),
        ("```{include} status.md\n```\nx", "> **State**\n>\n> A scale.\nx"),
        ("{download}`a.py <scripts/a.py>` needs torch", "`a.py` needs torch"),
        ("```{literalinclude} scripts/a.py\n:language: python\n```", "```python\nx = {1: `2`}\n```"),
        (
            "````{dropdown} a.py\n```{literalinclude} scripts/a.py\n```\n````\nx",
            "<details>\n<summary>a.py</summary>\n\n```python\nx = {1: `2`}\n```\n\n</details>\nx",
        ),
        (":::{code-block} kotlin\nval x = 1\n:::", "```kotlin\nval x = 1\n```"),
        ("`{glue:text}` and ```{term}`x` ``` stay", "`{glue:text}` and ```{term}`x` ``` stay"),
    ],
)
def test_markdown_of_the_book_becomes_plain(markdown: str, expected: str, small: portable.Book) -> None:
    small.titles["glossary"] = "The glossary"
    assert plain(markdown, small, mb="3.6") == expected


def test_links_lead_to_the_site_where_it_is_published(small: portable.Book) -> None:
    published = portable.Book(SITE, small.titles, small.labels, small.bibliography, small.folder)
    assert plain("[](two.ipynb)", published) == f"[The two]({SITE}book/two.html)"
    glossary = f"{SITE}book/glossary.html#term-zero-point"
    assert plain("{term}`zeros <zero point>`", published) == f"[zeros]({glossary})"


def test_each_term_leads_to_where_the_glossary_defines_it() -> None:
    terms = re.findall(r"^(\w.*)\n  \S", (ROOT / "book" / "glossary.md").read_text(), re.MULTILINE)
    defined = {"term-" + re.sub(r"[^\w]+", "-", term) for term in terms}
    published = replace(portable.book(ROOT), site=SITE)
    copies = [
        portable.portable(json.loads(path.read_text()), path.stem, published, "", ANYTHING) for path in notebooks()
    ]
    linked = set(re.findall(r"glossary\.html#(term-[^)]+)", json.dumps([copy["cells"] for copy in copies])))
    assert len(linked) > 20
    assert not linked - defined


@pytest.mark.parametrize(
    ("markdown", "words"),
    [
        ("{glue:text}`absent`", "one: the run glued nothing called absent."),
        ("{ref}`x`", "one: no plain form is known for the role ref."),
        ("```{figure} a.png\n```", "one: no plain form is known for the directive figure."),
        ("[x](#nowhere)", "one: no heading of the book is labelled nowhere."),
        ("% a comment", "one: what only the site's builder reads is left in its copy: myst_line_comment"),
    ],
)
def test_what_has_no_plain_form_is_refused_by_name(markdown: str, words: str, small: portable.Book) -> None:
    with pytest.raises(portable.PortableError, match=re.escape(words)):
        plain(markdown, small)


def test_drawings_and_sliders_are_kept_so_that_they_are_shown_before_anyone_trusts_the_copy(
    small: portable.Book,
) -> None:
    data = {"text/html": ['<svg aria-label="A line.">', "<path/></svg>"], "text/plain": "x"}
    output = {"output_type": "display_data", "metadata": {}, "data": data}
    drawn = {"cell_type": "code", "id": "c", "metadata": {}, "source": "", "outputs": [output], "execution_count": 1}
    title = {"cell_type": "markdown", "id": "t", "metadata": {}, "source": "# One"}
    made = portable.portable({"cells": [title, drawn], "metadata": {}}, "one", small, "", {})
    shown = made["cells"][3]["outputs"][0]["data"]["text/html"]
    assert shown.startswith('<img alt="A line." src="data:image/svg+xml;base64,')


@pytest.mark.parametrize(
    ("site", "led"), [("", ["two.ipynb", "two.ipynb"]), (SITE, [f"{SITE}book/two.html#a", f"{SITE}book/two.html"])]
)
def test_a_link_in_an_output_leads_to_the_other_copy_or_to_the_site(
    site: str, led: list[str], small: portable.Book
) -> None:
    shown = '<a href="two.html#a">x</a> <a href="two.html">y</a> <a href="https://a.b/c.html">z</a> <a href="#d">w</a>'
    output = {"output_type": "display_data", "data": {"text/html": shown}, "metadata": {}}
    copied = portable._output(output, dataclasses.replace(small, site=site))
    assert copied is not None
    assert re.findall('href="(.*?)"', copied["data"]["text/html"]) == [*led, "https://a.b/c.html", "#d"]


@pytest.mark.parametrize(("site", "led"), [("", "two.ipynb"), (SITE, f"{SITE}book/two.html#w=4&a=8")])
def test_a_link_in_prose_to_a_page_with_a_setting_leads_to_the_other_copy_or_to_the_site(
    site: str, led: str, small: portable.Book
) -> None:
    prose = 'See <a href="two.html#w=4&a=8">it collapse</a>.'
    assert plain(prose, dataclasses.replace(small, site=site)) == f'See <a href="{led}">it collapse</a>.'


def test_outputs_are_kept_in_one_copy_and_cleared_in_the_other(small: portable.Book) -> None:
    scrap = {
        "output_type": "display_data",
        "data": {portable.SCRAP: "'3.6'"},
        "metadata": {"scrapbook": {"name": "mb"}},
    }
    shown = {"output_type": "stream", "name": "stdout", "text": ["hello\n"]}
    code = {
        "cell_type": "code",
        "id": "c",
        "metadata": {"tags": ["remove-input"]},
        "source": ["1"],
        "execution_count": 3,
    }
    text = {"cell_type": "markdown", "id": "m", "metadata": {}, "source": ["# {glue:text}`mb`"]}
    run = {"cells": [text, code | {"outputs": [scrap, shown]}], "metadata": {}}
    copy = portable.portable(run, "one", small, "")
    assert copy["cells"][0]["source"] == "# 3.6†"
    assert copy["cells"][3]["outputs"] == [shown]
    assert copy["cells"][3]["metadata"]["jupyter"] == {"source_hidden": True}
    cleared = portable.cleared(copy)
    assert cleared["cells"][3]["outputs"] == []
    assert cleared["cells"][3]["execution_count"] is None
    assert cleared["cells"][3]["source"] == copy["cells"][3]["source"]


@pytest.mark.parametrize(
    ("tag", "left"),
    [("remove-input", ["out", "log"]), ("remove-stderr", ["out"]), ("remove-output", []), ("remove-cell", [])],
)
def test_outputs_that_the_site_hides_are_not_in_the_copy(tag: str, left: list[str], small: portable.Book) -> None:
    streams = [("stdout", "out"), ("stderr", "log")]
    outputs = [{"output_type": "stream", "name": name, "text": text} for name, text in streams]
    code = {"cell_type": "code", "id": "c", "metadata": {"tags": [tag]}, "source": "1", "execution_count": 1}
    title = {"cell_type": "markdown", "id": "t", "metadata": {}, "source": "# One"}
    copy = portable.portable({"cells": [title, code | {"outputs": outputs}], "metadata": {}}, "one", small, "")
    assert [output["text"] for output in copy["cells"][3]["outputs"]] == left


def test_the_note_says_where_the_figures_come_from_whichever_set_up_cell_prints_it(small: portable.Book) -> None:
    title = {"cell_type": "markdown", "id": "t", "metadata": {}, "source": "# One"}
    setup = {"cell_type": "code", "metadata": {"tags": ["setup"]}, "source": "", "execution_count": 1}
    lines = {"output_type": "stream", "name": "stdout", "text": ["torch 2\n", "a processor\n"]}
    cells = [title, setup | {"id": "imports", "outputs": []}, setup | {"id": "start", "outputs": [lines]}]
    note = portable.portable({"cells": cells, "metadata": {}}, "one", small, "")["cells"][1]["source"]
    assert ">     torch 2\n>     a processor\n" in note
    silent = portable.portable({"cells": cells[:2], "metadata": {}}, "one", small, "")["cells"][1]["source"]
    assert "a number or a finding.\n>\n> Your own run" in silent


# The first cell


@pytest.fixture
def tiny_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel that lies beside the notebook; it would install, as qhelpers, nothing."""
    wheel = tmp_path / "qhelpers-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("qhelpers-0.1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: qhelpers\nVersion: 0.1.0\n")
        archive.writestr(
            "qhelpers-0.1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("qhelpers-0.1.0.dist-info/RECORD", "")
    monkeypatch.chdir(tmp_path)
    return wheel


def installs(wheel: str = "w.whl", sha256: str = "0" * 64, site: str = "", **changed: Any) -> None:
    tested = {name: importlib.metadata.version(name).split("+")[0] for name in ("torch", "torchvision")}
    given = {"extras": "book", "needed": {"qhelpers": "", "matplotlib": "3.9"}, "tested": tested} | changed
    first_cell.install_helpers(wheel, sha256, site, **given)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the first cell calls, instead of calling it."""
    called: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        called.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(first_cell.subprocess, "run", run)
    return called


def test_in_a_set_up_checkout_the_first_cell_does_nothing(
    commands: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    installs()
    assert commands == []
    assert capsys.readouterr().out == ""


def test_the_first_cell_installs_the_published_wheel_by_its_hash_and_leaves_torch(
    commands: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    installs(site=f"{SITE}notebooks/", needed={"qhelpers": "", "not-there-at-all": "1.2"})
    here = [f"{name}=={importlib.metadata.version(name)}" for name in ("torch", "torchvision")]
    assert commands[0][-4:] == [
        *here,
        "not-there-at-all==1.2",
        f"qhelpers[book] @ {SITE}notebooks/w.whl#sha256={'0' * 64}",
    ]
    assert capsys.readouterr().out.startswith("Installing not-there-at-all")


def test_another_torch_is_told_and_stays(commands: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    there = importlib.metadata.version("torch")
    installs(tested={"torch": "9.9.9"}, needed={"not-there-at-all": "1.2"}, site=SITE)
    assert f"tested with torch 9.9.9. Here is {there}, which stays" in capsys.readouterr().out
    assert f"torch=={there}" in commands[0]
    assert "not-there-at-all==1.2" not in commands[0]  # another may suit that torch better


def test_helpers_of_another_build_are_told(
    commands: list[list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Installed:
        read_text = staticmethod(lambda name: json.dumps({"archive_info": {"hash": f"sha256={'1' * 64}"}}))

    of = importlib.metadata.distribution
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Installed if name == "qhelpers" else of(name))
    installs(sha256="1" * 64)
    assert capsys.readouterr().out == ""
    installs(sha256="2" * 64)
    assert "The helpers here come from another build of the book." in capsys.readouterr().out
    assert commands == []


def test_without_a_published_site_the_wheel_has_to_lie_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match=r"not-there missing, and this copy comes from a book that is not published"):
        installs(needed={"not-there": "1"})


def test_a_wheel_with_another_hash_is_refused(tiny_wheel: Path) -> None:
    """pip itself compares: no package index is asked before that."""
    with pytest.raises(RuntimeError, match=r"Refused: file:.*whl is not the wheel that belongs to this notebook"):
        installs(wheel=tiny_wheel.name, needed={"not-there": "1"})


def test_a_torch_that_the_helpers_cannot_use_is_not_replaced(tiny_wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0")  # another than is there
    given = {"needed": {"not-there": "1"}, "tested": {"torch": "2.14.1"}, "extras": "book"}
    digest = hashlib.sha256(tiny_wheel.read_bytes()).hexdigest()
    with pytest.raises(RuntimeError, match=r"could not install not-there beside torch 1\.0, which it must not replace"):
        first_cell.install_helpers(tiny_wheel.name, digest, "", **given)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "ERROR: Could not find torch",
            r"could not install not-there\. The book was tested with torch 2\. pip said: ERR",
        ),
        (
            "python: No module named pip",
            r"This environment has no pip\. Call .* -m ensurepip, then run this cell again\.",
        ),
    ],
)
def test_where_torch_or_pip_is_not_there_nothing_else_is_said_of_it(
    said: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.CompletedProcess([], 1, "", said)
    monkeypatch.setattr(importlib.metadata, "distributions", list)
    monkeypatch.setattr(first_cell.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(RuntimeError, match=words):
        installs(needed={"not-there": ""}, tested={"torch": "2"}, site=SITE)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copies.build_wheel(tmp_path_factory.mktemp("wheel"))


@every_notebook
def test_the_first_cell_names_wheel_hash_and_extras(path: Path, wheel: Path) -> None:
    cell = copies.first_cell(path, wheel)
    call = ast.parse(cell).body[-1]
    assert isinstance(call, ast.Expr)
    assert isinstance(call.value, ast.Call)
    given = {word.arg: ast.literal_eval(word.value) for word in call.value.keywords}
    assert given["wheel"] == wheel.name
    assert given["sha256"] == hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert given["extras"].split(",")[0] == "book"
    assert set(given["needed"]) >= {"qhelpers", "matplotlib"}
    pinned = re.findall(r"^(torch|torchvision)==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert given["tested"] == dict(pinned)
    assert given["needed"]["matplotlib"] == importlib.metadata.version("matplotlib")


def test_a_chapter_that_exports_needs_the_extra_for_that() -> None:
    needs = {path.stem: copies.extras(path) for path in notebooks()}
    assert needs["onnx-runtime"] == ["book", "deploy"]
    assert needs["where-each-call-went"] == ["book", "deploy"], "names that it looks up, such as torchao's, count"
    assert needs["what-an-int8-number-is"] == ["book"]


# Buttons and addresses


def config(folder: Path, url: str) -> Path:
    (folder / "_config.yml").write_text(f"repository: {{url: '{url}'}}\n")
    return folder


@pytest.mark.parametrize(
    ("url", "repository", "site"),
    [
        ("", "", ""),
        (REPOSITORY, REPOSITORY, SITE),
        (f"{REPOSITORY}.git", REPOSITORY, SITE),
        (f"{REPOSITORY}/", REPOSITORY, SITE),
        ("https://github.com/One/One.github.io", "https://github.com/One/One.github.io", "https://one.github.io/"),
    ],
)
def test_the_site_s_address_follows_from_the_repository(url: str, repository: str, site: str, tmp_path: Path) -> None:
    assert common.site_url(config(tmp_path, url)) == site
    assert common.repository_url(tmp_path) == repository


def test_a_repository_that_colab_cannot_open_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"repository.url in _config.yml is https://gitlab.com/a/b, but buttons"):
        common.repository_url(config(tmp_path, "https://gitlab.com/a/b"))


def theme() -> list[dict[str, Any]]:
    link = {"type": "link", "url": "../_sources/book/one.ipynb", "label": "download-source-button", "text": ".ipynb"}
    return [{"type": "group", "label": "download-buttons", "buttons": [link]}, {"type": "javascript", "label": "x"}]


def test_the_download_leads_to_the_copy_and_there_is_no_launch_without_a_repository() -> None:
    made = site_buttons.buttons(theme(), "book/one", "../", "")
    assert made[0]["buttons"][0]["url"] == "../notebooks/one.ipynb"
    assert "colab" not in json.dumps(made)


def test_the_launch_opens_the_cleared_copy_in_colab() -> None:
    made = site_buttons.buttons(theme(), "book/one", "../", REPOSITORY)
    colab = "https://colab.research.google.com/github/someone/quantization/blob/notebooks/notebooks/one.ipynb"
    assert made[0]["url"] == colab


def test_a_theme_without_the_button_is_told() -> None:
    with pytest.raises(LookupError, match="book/one: the theme no longer makes a button download-source-button"):
        site_buttons.buttons([], "book/one", "../", "")


def test_a_dead_button_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there.ipynb").write_text("")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "book").mkdir()
    addresses = ("https://colab.research.google.com/x", "gone.ipynb", "../there.ipynb", "../_sources/book/x.ipynb")
    links = "".join(f'<a href="{to}">x</a>' for to in addresses)
    soup = BeautifulSoup(f'<div class="article-header-buttons">{links}</div>', "html.parser")
    found = list(check_site._buttons(soup, tmp_path / "book" / "page.html"))
    assert found == [
        "a launch button, but repository.url in _config.yml is empty: https://colab.research.google.com/x",
        "a button leads to a file that is not there: gone.ipynb",
        "a button leads to the chapter's source, not to its copy: ../_sources/book/x.ipynb",
    ]
    monkeypatch.setattr(check_site, "repository_url", lambda: REPOSITORY)
    assert len(list(check_site._buttons(soup, tmp_path / "book" / "page.html"))) == 2


# Running them


def test_torch_is_lent_with_what_it_needs_and_nothing_else() -> None:
    lent = run_copies.needed_by(("torch", "torchvision"))
    assert {"torch", "torchvision", "numpy", "sympy"} <= set(lent)
    assert not {"qhelpers", "matplotlib", "onnxruntime", "torchao", "myst-nb", "scipy"} & set(lent)


def test_a_copy_is_directed_to_another_place_for_its_wheel(wheel: Path) -> None:
    install = {"source": copies.first_cell(notebooks()[0], wheel), "metadata": {"tags": ["install"]}}
    made = run_copies.directed({"cells": [install]}, "http://127.0.0.1:1/")
    assert "\n    site='http://127.0.0.1:1/',\n" in made["cells"][0]["source"]
    with pytest.raises(SystemExit, match="no first cell that names where its wheel is published"):
        run_copies.directed({"cells": []}, "http://127.0.0.1:1/")


def test_without_a_built_site_there_is_nothing_to_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run_copies, "SITE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["run_copies"])
    with pytest.raises(SystemExit, match="There are no copies yet: make book writes them"):
        run_copies.main()
