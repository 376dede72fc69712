"""The tools that run, build and check: they reuse what is current, and they are able to fail."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from qhelpers import engines
from qhelpers.book import chapter
from tools import (
    build_site,
    check_offline,
    check_qnnpack_only,
    check_repeat,
    check_site,
    common,
    copies,
    imports,
    readme,
    remeasure,
    run_notebooks,
)

PROJECT = common.ROOT
WEIGHTS = "mobilenet_v2_qnnpack_37f702c5.pth"
PIN = "torch==2.14.1 torchvision==0.29.1"


def notebook(*code: str, **book: bool) -> str:
    cells = [
        {"cell_type": "code", "execution_count": None, "id": f"c{i}", "metadata": {}, "outputs": [], "source": [text]}
        for i, text in enumerate(code)
    ]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}, "book": book}
    return json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})


@pytest.fixture
def small_book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A book of one page and one notebook, with the tools turned towards it."""
    (tmp_path / "book").mkdir()
    (tmp_path / "qhelpers").mkdir()
    (tmp_path / "qhelpers" / "helper.py").write_text("x = 1")
    (tmp_path / "requirements.txt").write_text("")
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: book/intro\nchapters:\n- file: book/one\n")
    (tmp_path / "book" / "intro.md").write_text("# Hello")
    (tmp_path / "book" / "one.ipynb").write_text(notebook("print(6 * 7)"))
    for module in (common, run_notebooks, build_site):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    for name in ("EXECUTED", "RESULTS"):
        monkeypatch.setattr(run_notebooks, name, tmp_path / "build" / name.lower())
    monkeypatch.setattr(run_notebooks, "BUILD", tmp_path / "build")
    monkeypatch.setattr(run_notebooks, "notebooks", lambda: common.notebooks(tmp_path))
    monkeypatch.setattr(sys, "argv", ["run_notebooks"])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    return tmp_path


def executed_at_once(notebook: Path, folder: Path, extra_env: dict[str, str] | None = None) -> tuple[int, float, float]:
    """What ``run_notebooks.run`` does, without pytest and a kernel, which take seconds: for tests of what follows."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    content, names, code = json.loads(notebook.read_text()), {}, 0  # type: ignore[var-annotated]
    with pytest.MonkeyPatch.context() as patched:
        for name, value in ({"QHELPERS_RESULTS": str(folder / "results")} | (extra_env or {})).items():
            patched.setenv(name, value)
        for cell in (cell for cell in content["cells"] if cell["cell_type"] == "code"):
            printed = io.StringIO()
            try:
                with contextlib.redirect_stdout(printed):
                    exec("".join(cell["source"]), names)
            except AssertionError:
                code = 1
                break
            stream = {"output_type": "stream", "name": "stdout", "text": printed.getvalue()}
            cell["outputs"] = [stream] if printed.getvalue() else []
    (folder / notebook.name).write_text(json.dumps(content))
    return code, 0.1, 100.0


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_notebooks, "run", executed_at_once)


def outputs(book: Path) -> list[str]:
    executed = json.loads((book / "build" / "executed" / "one.ipynb").read_text())
    return ["".join(cell["outputs"][0]["text"]) for cell in executed["cells"] if cell["outputs"]]


# --- running -----------------------------------------------------------------------------------------


def test_a_notebook_is_run_once_and_then_reused(small_book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_notebooks.main() == 0
    assert outputs(small_book) == ["42\n"]
    assert run_notebooks.main() == 0
    assert "one: unchanged" in capsys.readouterr().out
    committed = json.loads((small_book / "book" / "one.ipynb").read_text())
    assert committed["cells"][0]["outputs"] == [], "the source stays as it was"


IMPORTS = ("from qhelpers import helper", "run('from qhelpers.room import used')")  # the second: another process's code


@pytest.fixture
def executed_copy(small_book: Path) -> Path:
    """A current copy of a notebook that reaches two modules and their data; returns the notebook."""
    package = small_book / "qhelpers"
    (package / "helper.py").write_text("import json\nDATA = open('data.json')\n")
    (package / "data.json").write_text("{}")
    (package / "other.json").write_text("{}")
    (package / "room").mkdir()
    for name, code in {"__init__": "", "used": "from qhelpers import deep", "unused": ""}.items():
        (package / "room" / f"{name}.py").write_text(code)
    (package / "deep.py").write_text("FOLDER = 'weights'")
    (package / "weights").mkdir()
    (package / "weights" / "a.pt").write_text("1")
    one = small_book / "book" / "one.ipynb"
    one.write_text(notebook(*IMPORTS))
    run_notebooks.EXECUTED.mkdir(parents=True)
    (run_notebooks.EXECUTED / "one.ipynb").write_text(one.read_text())
    stamp = {"hash": run_notebooks.inputs_hash(one), "has_results": False, "processes": 2, "most_rounds": None}
    run_notebooks.stamp_file(one).write_text(json.dumps(stamp))
    assert run_notebooks.is_current(one)
    return one


REACHED = ["qhelpers/helper.py", "qhelpers/data.json", "qhelpers/room/__init__.py", "qhelpers/room/used.py"]
REACHED += ["qhelpers/deep.py", "qhelpers/weights/a.pt", "book/one.ipynb", "requirements.txt"]


@pytest.mark.parametrize("changed", REACHED)
def test_a_change_of_what_a_chapter_reaches_makes_its_copy_stale(
    small_book: Path, executed_copy: Path, changed: str
) -> None:
    path = small_book / changed
    path.write_text(path.read_text() + " ")
    assert not run_notebooks.is_current(executed_copy)


@pytest.mark.parametrize("changed", ["qhelpers/room/unused.py", "qhelpers/other.json", "qhelpers/new.py"])
def test_a_change_of_what_no_import_reaches_does_not(small_book: Path, executed_copy: Path, changed: str) -> None:
    (small_book / changed).write_text("x = 2")
    assert run_notebooks.is_current(executed_copy)


CELLS = ["x = !ls", "%%bash\nls", "len?", "t = %timeit -o -n 1 -r 1 1", "if True:\n    !ls", "x = (10\n     % 3)"]


@pytest.mark.parametrize("cell", CELLS)
def test_ipython_s_own_syntax_is_no_obstacle(executed_copy: Path, small_book: Path, cell: str) -> None:
    executed_copy.write_text(notebook(cell, *IMPORTS))
    reached = imports.reached_files(executed_copy, small_book)
    assert small_book / "qhelpers" / "deep.py" in reached
    assert small_book / "qhelpers" / "room" / "unused.py" not in reached


@pytest.mark.parametrize("broken", ["book/one.ipynb", "qhelpers/deep.py"])
def test_where_something_is_no_python_the_whole_package_counts(
    executed_copy: Path, small_book: Path, broken: str
) -> None:
    (small_book / broken).write_text(notebook("def f(:") if broken.endswith("ipynb") else "def f(:")
    assert small_book / "qhelpers" / "room" / "unused.py" in imports.reached_files(executed_copy, small_book)


def test_a_copy_that_fewer_processes_have_measured_is_stale(
    executed_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wanted, current in (("1", True), ("2", True), ("5", False)):
        monkeypatch.setenv("QHELPERS_PROCESSES", wanted)
        assert run_notebooks.is_current(executed_copy) == current
    monkeypatch.setenv("QHELPERS_PROCESSES", "many")
    with pytest.raises(ValueError, match="QHELPERS_PROCESSES must be a whole number of at least 1, got 'many'"):
        chapter.processes()


def test_a_copy_whose_timings_were_cut_short_serves_only_those_who_want_that(
    small_book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_book / "book" / "one.ipynb"
    monkeypatch.setenv("QHELPERS_ROUNDS", "3")
    assert run_notebooks.run_and_keep(path)
    assert run_notebooks.is_current(path)
    monkeypatch.delenv("QHELPERS_ROUNDS")
    assert not run_notebooks.is_current(path)


@pytest.mark.parametrize("stamp", ["[]", "null", "3", '{"hash": ', "{}", "\x00"])
def test_a_damaged_stamp_counts_as_none(executed_copy: Path, stamp: str) -> None:
    run_notebooks.stamp_file(executed_copy).write_text(stamp)
    assert not run_notebooks.is_current(executed_copy)


@pytest.mark.usefixtures("at_once")
def test_a_chapter_whose_results_are_gone_is_run_again(small_book: Path) -> None:
    code = "import os, pathlib; p = pathlib.Path(os.environ['QHELPERS_RESULTS'])\np.mkdir(); (p / 'a').write_text('1')"
    (small_book / "book" / "one.ipynb").write_text(notebook(code))
    assert run_notebooks.main() == 0
    assert run_notebooks.is_current(small_book / "book" / "one.ipynb")
    shutil.rmtree(run_notebooks.RESULTS / "one")
    assert not run_notebooks.is_current(small_book / "book" / "one.ipynb")


@pytest.mark.parametrize("changed", ["Python", "torch", "processor", "weights source"])
def test_another_environment_makes_a_copy_stale(
    small_book: Path, executed_copy: Path, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if changed == "Python":
        monkeypatch.setattr(run_notebooks.platform, "python_version", lambda: "3.99.0")
    elif changed == "torch":
        monkeypatch.setattr(run_notebooks.importlib.metadata, "version", lambda name: "9.9")
    elif changed == "processor":
        monkeypatch.setattr(engines, "cpu_name", lambda: "another processor")
    else:
        cache = small_book / "torch_home" / "hub" / "checkpoints"
        cache.mkdir(parents=True)
        (cache / WEIGHTS).write_text("x")
    assert not run_notebooks.is_current(executed_copy)


@pytest.mark.usefixtures("at_once")
def test_force_runs_again(
    small_book: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_notebooks.main()
    monkeypatch.setattr(sys, "argv", ["run_notebooks", "--force"])
    run_notebooks.main()
    assert capsys.readouterr().out.count("one: executed in") == 2


def test_two_jobs_run_two_notebooks_side_by_side(
    small_book: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toc = small_book / "_toc.yml"
    toc.write_text(toc.read_text() + "- file: book/two\n")
    wait = "while not there.exists():\n    time.sleep(0.05); assert time.time() < end, 'the other one does not run'"
    for own, other in (("one", "two"), ("two", "one")):
        begin = (
            f"import time, pathlib; here, there = (pathlib.Path({str(small_book)!r}) / n for n in ({own!r}, {other!r}))"
        )
        code = notebook(f"{begin}\nend = time.time() + 60\nhere.touch()\n{wait}")
        (small_book / "book" / f"{own}.ipynb").write_text(code)
    monkeypatch.setattr(sys, "argv", ["run_notebooks", "--jobs", "2"])
    assert run_notebooks.main() == 0
    assert capsys.readouterr().out.count("executed in") == 2


def test_a_failing_notebook_fails_and_keeps_the_previous_copy(
    small_book: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_notebooks.main()
    (small_book / "book" / "one.ipynb").write_text(notebook("print(1)", "assert False"))
    assert run_notebooks.main() == 1
    assert "failed: one" in capsys.readouterr().out
    assert outputs(small_book) == ["42\n"]
    assert not run_notebooks.is_current(small_book / "book" / "one.ipynb")


@pytest.mark.usefixtures("at_once")
def test_a_notebook_that_fills_the_hub_cache_is_reused_afterwards(small_book: Path) -> None:
    target = small_book / "torch_home" / "hub" / "checkpoints" / WEIGHTS
    code = f"import pathlib; p = pathlib.Path({str(target)!r}); p.parent.mkdir(parents=True); p.write_text('x')"
    (small_book / "book" / "one.ipynb").write_text(notebook(code))
    assert run_notebooks.main() == 0
    assert target.is_file()
    assert run_notebooks.is_current(small_book / "book" / "one.ipynb")


@pytest.mark.usefixtures("at_once")
def test_a_run_that_was_cut_off_starts_again(small_book: Path) -> None:
    one = small_book / "book" / "one.ipynb"
    half = small_book / "build" / "running" / "one"
    half.mkdir(parents=True)
    (half / "one.ipynb").write_text("{")
    run_notebooks.EXECUTED.mkdir(parents=True)
    (run_notebooks.EXECUTED / "one.ipynb").write_text("{")  # a copy without its stamp
    run_notebooks.stamp_file(one).write_text('{"hash": ')  # a stamp that was cut off
    assert not run_notebooks.is_current(one)
    assert run_notebooks.main() == 0
    assert outputs(small_book) == ["42\n"]


@pytest.mark.usefixtures("at_once")
def test_results_of_removed_notebooks_are_forgotten(small_book: Path) -> None:
    (run_notebooks.RESULTS / "gone").mkdir(parents=True)
    run_notebooks.main()
    assert not (run_notebooks.RESULTS / "gone").exists()


GATHER = """
import json, os, pathlib
print([pathlib.Path(folder).name for folder in json.loads(os.environ["QHELPERS_CURRENT"])])
"""


@pytest.fixture
def gathering_book(small_book: Path, at_once: None) -> Path:
    """The small book with a second chapter, and a page before both that gathers their results."""
    (small_book / "_toc.yml").write_text(
        "format: jb-book\nroot: book/intro\nchapters:\n- file: book/all\n- file: book/one\n- file: book/two\n"
    )
    (small_book / "book" / "all.ipynb").write_text(notebook(GATHER, gathers_results=True))
    (small_book / "book" / "two.ipynb").write_text(notebook("2"))
    return small_book


def test_a_gathering_notebook_runs_last_and_depends_on_results(gathering_book: Path) -> None:
    gathering = gathering_book / "book" / "all.ipynb"
    assert [path.stem for path in common.notebooks(gathering_book)] == ["one", "two", "all"]
    assert run_notebooks.main() == 0
    before = run_notebooks.inputs_hash(gathering)
    (run_notebooks.RESULTS / "one").mkdir(parents=True)
    (run_notebooks.RESULTS / "one" / "claim.json").write_text("{}")
    assert run_notebooks.inputs_hash(gathering) != before


def test_a_page_is_run_again_when_a_script_that_it_shows_changes(small_book: Path) -> None:
    page = small_book / "book" / "one.ipynb"
    page.write_text(notebook('print("scripts/shown.py")'))
    (small_book / "book" / "scripts").mkdir()
    shown, other = (small_book / "book" / "scripts" / name for name in ("shown.py", "other.py"))
    shown.write_text("x = 1")
    before = run_notebooks.inputs_hash(page)
    other.write_text("x = 1")
    assert run_notebooks.inputs_hash(page) == before
    shown.write_text("x = 2")
    assert run_notebooks.inputs_hash(page) != before


def test_a_gathering_notebook_is_handed_the_chapters_that_are_current(gathering_book: Path) -> None:
    def gathered() -> str:
        executed = json.loads((run_notebooks.EXECUTED / "all.ipynb").read_text())
        return "".join(executed["cells"][0]["outputs"][0]["text"])

    assert run_notebooks.main() == 0
    assert gathered() == "['one', 'two']\n"
    (gathering_book / "book" / "one.ipynb").write_text(notebook("assert False"))
    (run_notebooks.RESULTS / "two").mkdir(parents=True)
    (run_notebooks.RESULTS / "two" / "claim.json").write_text("{}")
    assert run_notebooks.main() == 1
    assert gathered() == "['two']\n", "a chapter that failed hands over nothing"


def test_each_notebook_is_looked_at_once_to_find_the_stale_ones(
    gathering_book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_notebooks.main() == 0
    looked_at: list[str] = []
    follow = run_notebooks.reached_files
    monkeypatch.setattr(
        run_notebooks, "reached_files", lambda path, root: looked_at.append(path.stem) or follow(path, root)
    )
    assert run_notebooks.all_stale() == []
    assert sorted(looked_at) == ["all", "one", "two"]
    (gathering_book / "book" / "two.ipynb").write_text(notebook("3"))
    assert run_notebooks.all_stale() == ["two"]


def test_a_missing_page_is_named(small_book: Path) -> None:
    (small_book / "book" / "one.ipynb").unlink()
    with pytest.raises(FileNotFoundError, match=r"_toc\.yml names book/one"):
        common.toc_pages(small_book)


def test_a_site_is_not_built_from_stale_copies(small_book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_site, "notebooks", lambda: common.notebooks(small_book))
    with pytest.raises(SystemExit, match=r"Run the notebooks first.*one"):
        build_site.main()


@pytest.fixture
def small_site(small_book: Path, at_once: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small book's tools for building, with the notebook run."""
    monkeypatch.setattr(build_site, "notebooks", lambda: common.notebooks(small_book))
    monkeypatch.setattr(build_site, "toc_pages", lambda: common.toc_pages(small_book))
    for name in ("EXECUTED", "RESULTS"):
        monkeypatch.setattr(build_site, name, getattr(run_notebooks, name))
    monkeypatch.setattr(build_site, "STAGE", small_book / "build" / "site")
    monkeypatch.setattr(build_site, "STAMP", small_book / "build" / "site.sha256")
    monkeypatch.setattr(build_site, "SITE", small_book / "_build" / "html")
    settings = (PROJECT / "_config.yml").read_text()
    (small_book / "_config.yml").write_text(settings)
    (small_book / "book" / "references.bib").write_text("")
    (small_book / "book" / "_static").mkdir()
    for name in ("book.css", "favicon.svg"):
        (small_book / "book" / "_static" / name).write_text("")
    (small_book / "book" / "one.ipynb").write_text(
        notebook("print(6 * 7)").replace(
            '"cells": [', '"cells": [{"cell_type": "markdown", "id": "t", "metadata": {}, "source": ["# One"]}, '
        )
    )
    (small_book / "tools").mkdir()
    for name in (*copies.PACKED, "requirements.txt"):
        shutil.copy(PROJECT / name, small_book)
    monkeypatch.setattr(copies, "ROOT", small_book)
    monkeypatch.setattr(copies, "EXECUTED", small_book / "build" / "executed")
    monkeypatch.setattr(copies, "notebooks", lambda: common.notebooks(small_book))
    monkeypatch.setattr(copies, "build_wheel", lambda folder: shutil.copy(PROJECT / "LICENSE", folder / "q.whl"))
    run_notebooks.main()
    return small_book


WITH_AND_WITHOUT = ("one.ipynb", "cleared/one.ipynb")  # outputs


def test_a_site_is_published_once_and_then_reused(small_site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_site.main()
    assert "42" in (small_site / "_build" / "html" / "book" / "one.html").read_text()
    assert 'href="../notebooks/one.ipynb"' in (small_site / "_build" / "html" / "book" / "one.html").read_text()
    copied = [(small_site / "_build" / "html" / "notebooks" / name).read_text() for name in WITH_AND_WITHOUT]
    assert ["42" in copied[0], "42" in copied[1]] == [True, False]
    assert (small_site / "_build" / "html" / "commit.txt").read_text() == "site unknown\nnotebooks unknown\n"
    assert json.loads((small_site / "_build" / "html" / "results.json").read_text())["chapters"] == {}
    build_site.main()
    assert "site: unchanged" in capsys.readouterr().out
    (small_site / "_build" / "html" / "book" / "one.html").write_text("written over by another build")
    build_site.main()
    assert "42" in (small_site / "_build" / "html" / "book" / "one.html").read_text()


def test_what_lint_jupyter_and_a_reader_leave_beside_the_notebooks_is_no_part_of_the_site(
    small_site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_site.main()
    for folder in (".ruff_cache", ".ipynb_checkpoints", "checked", "qhelpers-results"):
        (small_site / "book" / folder).mkdir()
        (small_site / "book" / folder / "left.md").write_text("# Left here")
    capsys.readouterr()
    build_site.main()
    assert "site: unchanged" in capsys.readouterr().out
    build_site.stage()
    assert not list(build_site.STAGE.rglob("left.md"))


@pytest.mark.parametrize("fault", ["# Hello\n\n{term}`nowhere`", "# Hello\n\n![](data:image/png;base64,aaaa)"])
def test_a_warning_or_a_problem_keeps_the_previous_site(small_site: Path, fault: str) -> None:
    build_site.main()
    (small_site / "book" / "intro.md").write_text(fault)
    with pytest.raises(SystemExit, match=r"previous site was left as it was|was not published"):
        build_site.main()
    assert "Hello" in (small_site / "_build" / "html" / "book" / "intro.html").read_text()
    assert "nowhere" not in (small_site / "_build" / "html" / "book" / "intro.html").read_text()


# --- checking ----------------------------------------------------------------------------------------

GOOD = (
    "<article><h1>T</h1><figure><img src='data:,' alt='A cat on a sofa, asleep.'><figcaption>Cat.</figcaption>"
    "</figure><a href='https://example.org'>a link</a></article>"
)


def site(folder: Path, page: str) -> list[str]:
    (folder / "index.html").write_text("x")
    (folder / "p.html").write_text(page)
    return check_site.problems(folder, [Path("p.md")])


def test_a_good_page_has_no_problem(tmp_path: Path) -> None:
    assert site(tmp_path, GOOD) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("<h1>T</h1>", "", "exactly one title"),
        ("asleep.", "asleep. Traceback (most recent call last)", ""),
        ("T</h1>", "T</h1>Traceback (most recent call last)", "shows a traceback"),
        ("T</h1>", "T</h1><div class='cell_output'><div class='stderr'>oh</div></div>", "shows standard error: oh"),
        ("A cat on a sofa, asleep.", "", "no useful alt text"),
        ("A cat on a sofa, asleep.", "../_images/0a1b2c3d4e5f60718293a4b5c6d7e8f9.png", "no useful alt text"),
        ("<figcaption>Cat.</figcaption>", "<figcaption> </figcaption>", "no caption"),
        ("</h1>", "</h1><p>in <code>{glue:text}</code>ms``</p>", "shows a role as it is written: {glue:text}"),
        ("<figure>", "<svg role='img' aria-label='A cat on a sofa, asleep.'></svg><figure>", "outside a figure"),
        ("</article>", "</article><script src='https://cdn.example/x.js'></script>", "another host"),
        ("</article>", "</article><link rel='stylesheet' href='//cdn.example/x.css'>", "another host"),
        (
            "</article>",
            "</article><script>const U = 'https://cdn.example/x.js'</script>",
            "names a file of another host",
        ),
        ("data:,", "https://cdn.example/cat.png", "another host"),
        ("</article>", "</article><style>@import 'https://cdn.example/f.css'</style>", "names a file of another host"),
    ],
)
def test_a_bad_page_is_found(tmp_path: Path, old: str, new: str, problem: str) -> None:
    found = site(tmp_path, GOOD.replace(old, new))
    assert (not found) if not problem else any(problem in one for one in found)


def test_missing_pages_and_style_sheets_of_others_are_found(tmp_path: Path) -> None:
    (tmp_path / "x.css").write_text("body { background: url(https://cdn.example/x.png) }")
    found = check_site.problems(tmp_path, [Path("gone.md")])
    assert len(found) == 3


def verdicts_site(folder: Path, extra: str = "", elsewhere: Sequence[str] = ()) -> list[str]:
    names = json.loads(check_site.STATEMENTS.read_text())
    box = '<div class="qb-claim"><p><span class="qb-verdict">{} · holds</span></p></div>'
    (folder / "book").mkdir()
    gathered = "".join(map(box.format, names)) + extra
    texts = {"verdicts": gathered} | {f"chapter-{i}": box.format(name) for i, name in enumerate(elsewhere)}
    for name, text in texts.items():
        (folder / "book" / f"{name}.html").write_text(f"<article><h1>T</h1>{text}</article>")
    (folder / "index.html").write_text("x")
    return check_site.problems(folder, [Path(f"book/{name}.ipynb") for name in texts])


def test_a_verdict_is_shown_once_on_the_page_of_verdicts_and_may_be_shown_in_one_chapter(tmp_path: Path) -> None:
    assert verdicts_site(tmp_path, elsewhere=["R1", "R4"]) == []


def test_a_verdict_shown_twice_is_found(tmp_path: Path) -> None:
    (problem,) = verdicts_site(tmp_path, elsewhere=["R1", "R1"])
    assert problem == (
        "the verdict on R1 is shown twice outside verdicts.ipynb: book/chapter-0.ipynb, book/chapter-1.ipynb"
    )


def test_a_verdict_shown_twice_or_never_on_the_page_of_verdicts_is_found(tmp_path: Path) -> None:
    extra = '<div class="qb-claim"><span class="qb-verdict">V3 · holds</span></div>'
    assert verdicts_site(tmp_path, extra) == ["book/verdicts.ipynb: shows the verdict on V3 2 times, not once"]
    (tmp_path / "book" / "verdicts.html").write_text("<article><h1>T</h1></article>")
    assert len(check_site.problems(tmp_path, [check_site.VERDICTS])) == 57


# --- the commands ------------------------------------------------------------------------------------


def dry_run(*arguments: str, folder: Path = common.ROOT) -> str:
    """What make would do in a fresh clone."""
    command = ["make", "--dry-run", "VENV=/nowhere/venv", *arguments]
    # What an outer make hands down (make test FORCE=1 runs these tests), or a shell exports, is not for this one.
    settings = re.findall(r"^(\w+) \?=", (folder / "Makefile").read_text(), re.MULTILINE)
    outer = ("MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "MFLAGS", *settings)
    env = {name: value for name, value in os.environ.items() if name not in outer}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, env=env).stdout


def test_make_book_installs_executes_and_builds_in_this_order() -> None:
    lines = dry_run("book", "TORCH_INDEX=https://nowhere")
    steps = ["-m venv", f"--index-url https://nowhere {PIN}", "pip install --quiet -r requirements.txt", "pip check"]
    positions = [lines.index(step) for step in [*steps, "run_notebooks", "build_site"]]
    assert positions == sorted(positions)


def test_make_test_forces_on_demand() -> None:
    assert "run_notebooks --jobs 1 --force" in dry_run("test", "FORCE=1")
    assert "run_notebooks --jobs 2" in dry_run("test", "JOBS=2")
    assert "--force" not in dry_run("test")


def test_settings_of_the_shell_do_not_reach_a_dry_run(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"JOBS": "7", "PROCESSES": "1", "FORCE": "1", "PORT": "1", "LOCKED": "1"}
    settings["TORCH_INDEX"] = "https://nowhere"
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    lines = dry_run("test")
    assert "run_notebooks --jobs 1" in lines
    assert "--force" not in lines
    assert "https://nowhere" not in lines
    assert "--require-hashes" not in lines


def test_make_repeat_takes_the_whole_book_and_executes_it_first() -> None:
    lines = dry_run("repeat")
    assert lines.index("tools.run_notebooks") < lines.index("tools.check_repeat --all")


def test_make_hands_the_number_of_processes_to_the_chapters() -> None:
    assert "tools.remeasure" in dry_run("remeasure")
    makefile = (common.ROOT / "Makefile").read_text()
    assert "\nPROCESSES ?= 2\n" in makefile
    assert "\nexport QHELPERS_PROCESSES := $(PROCESSES)\n" in makefile


def test_what_ci_calls_beside_make_asks_for_the_processes_that_make_was_given() -> None:
    settings, begun, _ = (common.ROOT / ".ci" / "run").read_text().partition("\ntimes=()")
    assert begun
    asked = "import os; from qhelpers.book import chapter; print(os.environ['PROCESSES'], chapter.processes())"
    environment = {name: value for name, value in os.environ.items() if not name.endswith("PROCESSES")}
    script = settings.replace('cd "$(dirname "$0")/.."', "") + f'\n{sys.executable} -c "{asked}"'
    found = subprocess.run(["bash", "-c", script], cwd=common.ROOT, env=environment, capture_output=True, text=True)
    assert found.stdout == "1 1\n", found.stderr


def speeds(folder: Path, processes: int = 5, **ratios: float) -> None:
    """A chapter's recorded table with a ratio for each name, and an interval of 5 % to both sides."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = [
        {"name": name, "over": "float", "printed": name != "silent", "value": v, "low": 0.95 * v, "high": 1.05 * v}
        for name, v in ratios.items()
    ]
    table = {"label": "one", "processes": processes, "ratios": kept}
    (folder / "speeds-one.json").write_text(json.dumps(table))


@pytest.fixture
def measured_book(small_book: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A book whose chapter, when it runs again, finds one ratio inside its interval and one outside."""

    def run(notebook: Path, folder: Path, extra: dict[str, str]) -> tuple[int, float, float]:
        assert extra == {"QHELPERS_PROCESSES": "1"}
        speeds(folder / "results", 1, inside=2.08, outside=2.2, silent=9.0, new=1.0)
        return 0, 1.0, 100.0

    monkeypatch.setattr(remeasure, "RESULTS", run_notebooks.RESULTS)
    monkeypatch.setattr(remeasure, "notebooks", run_notebooks.notebooks)
    monkeypatch.setattr(remeasure, "AGAIN", small_book / "build" / "remeasured")
    monkeypatch.setattr(remeasure, "run", run)
    monkeypatch.setattr("sys.argv", ["remeasure"])
    return small_book


def test_remeasuring_counts_what_leaves_its_interval(measured_book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speeds(run_notebooks.RESULTS / "one", inside=2.0, outside=2.0, silent=2.0)
    assert remeasure.main() == 0
    said = capsys.readouterr().out
    assert "one: 1 of 2 ratios inside" in said
    assert "one, one: outside over float: 2.200, printed 1.900 to 2.100" in said
    assert "in one run only: one, one: new over float" in said
    assert "1 of 2 ratios (50.0 %) lie inside; median width 10.0 %; they moved by 7.3 % (root mean square)" in said


def test_remeasuring_wants_intervals(measured_book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert remeasure.main() == 1
    assert "No chapter has recorded speeds" in capsys.readouterr().out
    speeds(run_notebooks.RESULTS / "one", processes=2, inside=2.0)
    with pytest.raises(SystemExit, match="measured by 2 processes: make book PROCESSES=5 first"):
        remeasure.main()


def test_remeasuring_names_a_notebook_without_speeds(measured_book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds(run_notebooks.RESULTS / "one", inside=2.0)
    monkeypatch.setattr("sys.argv", ["remeasure", "one", "tow"])
    with pytest.raises(SystemExit, match=r"No speeds are recorded for tow; they are for one\."):
        remeasure.main()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"label": "one", "ratios": []}',
        '{"label": "one", "processes": 5, "ratios": [{"name": "a", "over": "b", "value": 1, "low": 1, "high": 1}]}',
    ],
)
def test_remeasuring_names_a_damaged_file(measured_book: Path, text: str) -> None:
    (run_notebooks.RESULTS / "one").mkdir(parents=True)
    (run_notebooks.RESULTS / "one" / "speeds-one.json").write_text(text)
    with pytest.raises(SystemExit, match=r"speeds-one\.json is damaged or of another version .*make book PROCESSES=5"):
        remeasure.main()


def test_remeasuring_refuses_a_ratio_that_cannot_be(measured_book: Path) -> None:
    speeds(run_notebooks.RESULTS / "one", inside=0.0)
    with pytest.raises(SystemExit, match=r"speeds-one\.json is damaged .*A ratio needs 0 < low"):
        remeasure.main()


def test_make_differs_hands_on_what_was_published() -> None:
    assert "tools.differs 'a file.json'" in dry_run("differs", "PUBLISHED=a file.json")


def test_make_package_builds_without_what_an_earlier_build_left() -> None:
    lines = dry_run("package")
    assert lines.index("rm -rf build/package") < lines.index("-m tools.copies build/package")


def test_requirements_pin_everything_and_name_the_project() -> None:
    lines = (common.ROOT / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert pins[0] == "-e ."
    assert all(re.match(r"[\w.-]+==[\w.]+( ; .+)?$", line) for line in pins[1:])
    assert set(PIN.split()) <= set(pins)


def test_links_of_the_readme_lead_somewhere() -> None:
    text = (common.ROOT / "README.md").read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert len(links) > 5
    assert [link for link in links if not (common.ROOT / link).exists()] == []


def test_the_readme_lists_the_chapters_of_the_contents() -> None:
    text = (common.ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.renewed(text) == text, "run python -m tools.readme"
    links = re.findall(r"\]\((book/[^)]+)\)", text.partition("<!-- chapters")[2].partition("<!-- end")[0])
    assert links == [path.relative_to(common.ROOT).as_posix() for path in common.toc_pages()[1:]]


def test_a_page_of_the_contents_that_is_missing_is_named(tmp_path: Path) -> None:
    toc = "root: book/intro\nparts:\n- caption: Understand\n  chapters:\n  - file: book/gone\n"
    (tmp_path / "_toc.yml").write_text(toc)
    with pytest.raises(FileNotFoundError, match=r"names book/gone, but there is no book/gone\.ipynb"):
        readme.chapters(tmp_path)


def two_runs(tmp_path: Path, second: dict[str, object]) -> tuple[Path, Path]:
    row = dict.fromkeys(check_repeat.REPEATED, 1.0) | {"model": "float", "speed": 1.0}
    folders = tmp_path / "first" / "one", tmp_path / "second"
    for folder, rows in zip(folders, ([row], [row | second]), strict=True):
        folder.mkdir(parents=True)
        (folder / "rows-one.json").write_text(json.dumps({"rows": rows}))
    return folders[0].parent, folders[1]


def test_a_second_run_may_differ_in_speed(tmp_path: Path) -> None:
    assert check_repeat.differences(*two_runs(tmp_path, {"speed": 1.2}), ["one"]) == ([], 1)


def test_a_second_run_must_not_differ_in_accuracy(tmp_path: Path) -> None:
    found, compared = check_repeat.differences(*two_runs(tmp_path, {"value": 0.9}), ["one"])
    assert (found, compared) == (["one, float: value 1.0 then 0.9"], 1)


def test_a_second_run_must_not_lose_a_row(tmp_path: Path) -> None:
    first, second = two_runs(tmp_path, {})
    (second / "rows-one.json").write_text(json.dumps({"rows": []}))
    assert check_repeat.differences(first, second, ["one"]) == (["one: 1 rows, then 0"], 1)


def test_a_chapter_that_did_not_run_twice_is_named(tmp_path: Path) -> None:
    first, second = two_runs(tmp_path, {})
    (second / "rows-one.json").unlink()
    assert check_repeat.differences(first, second, ["one"]) == (["one: the second run left no rows"], 0)
    assert check_repeat.differences(first, second, ["no-rows"]) == ([], 0)


def test_each_chapter_is_due_once_in_24_commits_and_after_a_change() -> None:
    names = [f"chapter-{i}" for i in range(28)]
    turns = [check_repeat.due(names, commits, []) for commits in range(96, 120)]
    assert sorted(name for turn in turns for name in turn) == sorted(names)
    assert max(map(len, turns)) == 2
    assert check_repeat.due(names, 100, ["chapter-3", "gone"]) == ["chapter-3", "chapter-4"]


def test_of_many_that_have_changed_the_last_are_due() -> None:
    names = [f"chapter-{i}" for i in range(28)]
    changed = ["chapter-9", "chapter-8", "chapter-9", "chapter-0", "chapter-7", "chapter-6"]
    assert check_repeat.due(names, 100, changed) == ["chapter-4", "chapter-9"]
    assert check_repeat.due(names, 96, changed) == ["chapter-0", "chapter-24"], "two have the turn, and no other is due"


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_what_is_due_follows_from_the_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_repeat, "ROOT", tmp_path)
    names = [f"chapter-{i}" for i in range(24)]
    assert check_repeat.due_now(names) == names, "without git there is no turn, so everything is due"
    (tmp_path / "book").mkdir()
    git(tmp_path, "init", "--quiet")
    for name in names[:2]:
        (tmp_path / "book" / f"{name}.ipynb").write_text("{}")
        git(tmp_path, "add", ".")
        git(tmp_path, "commit", "--quiet", "-m", name)
    assert check_repeat.due_now(names) == ["chapter-1", "chapter-2"]
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "--quiet", "--depth", "1", tmp_path.as_uri(), str(shallow))
    for part in (shallow, tmp_path / "book"):  # a part of the history, and a folder inside another project
        monkeypatch.setattr(check_repeat, "ROOT", part)
        assert check_repeat.due_now(names) == names
    monkeypatch.setattr(check_repeat, "ROOT", tmp_path)
    for i in range(check_repeat.RECENT_COMMITS):
        git(tmp_path, "commit", "--quiet", "--allow-empty", "-m", str(i))
    assert check_repeat.due_now(names) == ["chapter-22"]


def test_nothing_is_repeated_beside_stale_copies(small_book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_repeat, "notebooks", lambda: common.notebooks(small_book))
    with pytest.raises(SystemExit, match=r"Run the notebooks first.*one"):
        check_repeat.main()


def test_a_page_that_gathers_has_nothing_to_repeat(gathering_book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_repeat, "notebooks", lambda: common.notebooks(gathering_book))
    monkeypatch.setattr(check_repeat, "all_stale", list)
    monkeypatch.setattr(check_repeat, "due_now", lambda names: names)
    again: list[str] = []
    monkeypatch.setattr(check_repeat, "run_again", lambda chosen: again.extend(path.stem for path in chosen))
    monkeypatch.setattr(check_repeat, "differences", lambda *found: ([], 1))
    for arguments, expected in ((["--all"], {"all", "one", "two"}), ([], {"one", "two"})):
        again.clear()
        monkeypatch.setattr(sys, "argv", ["check_repeat", *arguments])
        assert check_repeat.main() == 0
        assert set(again) == expected


def test_the_second_run_executes_what_was_chosen_and_keeps_its_results_to_itself(
    small_site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (small_site / "_toc.yml").write_text(
        "format: jb-book\nroot: book/intro\nchapters:\n- file: book/one\n- file: book/not-due\n"
    )
    (small_site / "book" / "not-due.ipynb").write_text(
        (small_site / "book" / "one.ipynb").read_text().replace("print(6 * 7)", "print(7 * 7)")
    )
    assert run_notebooks.main() == 0
    executed = run_notebooks.EXECUTED / "not-due.ipynb"
    executed.write_text(executed.read_text().replace("print(7 * 7)", "assert False"))  # executed again, it would fail
    code = "import pathlib; p = pathlib.Path('qhelpers-results'); p.mkdir(); (p / 'rows-one.json').write_text('2')"
    source = json.loads((small_site / "book" / "one.ipynb").read_text())
    source["cells"][1]["source"] = [code + "; print(6 * 8)"]
    (small_site / "book" / "one.ipynb").write_text(json.dumps(source))
    monkeypatch.setattr(check_repeat, "STAGE", small_site / "build" / "alone")
    monkeypatch.setattr(check_repeat, "notebooks", lambda: common.notebooks(small_site))
    results = check_repeat.run_again([small_site / "book" / "one.ipynb"])
    assert (results / "rows-one.json").read_text() == "2"
    page = small_site / "build" / "alone" / "_build" / "html" / "book" / "one.html"
    assert "48" in page.read_text()
    assert "49" in page.with_name("not-due.html").read_text()


# --- without a network -------------------------------------------------------------------------------


ASKS = """
import json, os, pathlib, sys, urllib.request
try:
    urllib.request.urlopen("http://example.org")
except OSError as error:
    assert "cut for a test" in str(error)
folder = pathlib.Path(os.environ["QHELPERS_RESULTS"])
folder.mkdir()
(folder / "weights.json").write_text(json.dumps({"source": "built-in", "waited_s": 0.1}))
"""


def offline(book: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> str:
    """What the check says of a notebook whose first cell loads weights by ``code``, and whose second would fail."""
    content = json.loads(notebook(code, "assert False"))
    content["cells"][0]["metadata"]["tags"] = ["loads-weights"]
    path = book / "book" / "one.ipynb"
    path.write_text(json.dumps(content))
    monkeypatch.setattr(check_offline, "BUILD", book / "build")
    return check_offline.check(path, "refused")


def test_only_the_part_that_loads_weights_is_run(small_book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "one up to its weights, network refused: waited 0.1 s" in offline(small_book, monkeypatch, ASKS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("import json", "1 / 0; import json"), "failed with the network refused"),
        (("urllib.request.urlopen", "print"), "never asked for the network"),
        (("built-in", "hub cache"), "found weights without a network"),
        (("0.1", "99"), "waited 99 s"),
        (("folder.mkdir()", "folder.mkdir(); print('oh', file=sys.stderr)"), "writes to standard error .*oh"),
    ],
)
def test_a_chapter_that_goes_wrong_without_a_network_is_named(
    small_book: Path, monkeypatch: pytest.MonkeyPatch, change: tuple[str, str], words: str
) -> None:
    with pytest.raises(SystemExit, match=words):
        offline(small_book, monkeypatch, ASKS.replace(*change))


def test_a_notebook_that_loads_no_weights_is_refused(small_book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_offline, "BUILD", small_book / "build")
    with pytest.raises(SystemExit, match="no cell tagged loads-weights"):
        check_offline.check(small_book / "book" / "one.ipynb", "refused")


# --- qnnpack only -------------------------------------------------------------------------------------


def customized(folder: str, code: str) -> subprocess.CompletedProcess[str]:
    """Run code where a ``sitecustomize`` of the tools is loaded."""
    environment = os.environ | {"PYTHONPATH": str(PROJECT / "tools" / folder)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=PROJECT)


def qnnpack_only(code: str) -> subprocess.CompletedProcess[str]:
    return customized("qnnpack_only", code)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("from torch.ao import quantization", "No module named 'torch.ao.quantization'"),
        ("from torch import quint8", "cannot import name 'quint8'"),
        ("import torch; torch.quantize_per_tensor", "no attribute 'quantize_per_tensor'"),
        ("import torch; torch.ops.quantized", "no attribute 'quantized'"),
        ("from torchvision.models import quantization", "No module named 'torchvision.models.quantization'"),
    ],
)
def test_what_will_go_with_eager_quantization_is_hidden_from_the_book_alone(code: str, words: str) -> None:
    assert words in customized("no_eager", code).stderr
    still = "from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e; print('torchao works')"
    assert customized("no_eager", still).stdout == "torchao works\n"


IMPORT_ALL = """
import importlib, pkgutil, qhelpers
for module in pkgutil.walk_packages(qhelpers.__path__, "qhelpers."):
    try:
        importlib.import_module(module.name)
    except ImportError:
        print(module.name)
"""
LOAD = """
import torch
from qhelpers.tasks import checkpoints
with torch.no_grad():
    print(checkpoints.load_digits_float()(torch.linspace(-1, 1, 27648).view(1, 3, 96, 96)).tolist())
"""


def test_the_package_needs_eager_quantization_only_where_it_is_about_it() -> None:
    done = customized("no_eager", IMPORT_ALL)
    assert done.stdout.split() == ["qhelpers.book.migration", "qhelpers.check.eager_mode", "qhelpers.tasks.published"]


def test_the_float_digits_model_outlives_eager_quantization() -> None:
    logits = customized("no_eager", LOAD).stdout
    assert logits == customized("", LOAD).stdout
    assert len(json.loads(logits)[0]) == 10


def test_hiding_leaves_qnnpack_and_no_engine() -> None:
    done = qnnpack_only(
        "import torch; from qhelpers import engines\n"
        "print(torch.backends.quantized.supported_engines, torch.backends.quantized.engine, engines.default_engine())"
    )
    assert done.stdout == "['qnnpack', 'none'] qnnpack qnnpack\n"


@pytest.mark.parametrize("engine", ["x86", "fbgemm", "onednn"])
def test_a_hidden_engine_cannot_be_set(engine: str) -> None:
    done = qnnpack_only(f"import torch; torch.backends.quantized.engine = {engine!r}")
    assert f"quantized engine {engine} is not supported" in done.stderr


def test_the_check_with_one_engine_notices_that_nothing_was_hidden(
    small_book: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check_qnnpack_only, "BUILD", small_book / "build")
    assert check_qnnpack_only.check([small_book / "book" / "one.ipynb"]) == ["one"]
    assert "one, other engines hidden: FAILED" in capsys.readouterr().out
