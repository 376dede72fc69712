"""The tools that run, build and check: they reuse what is current, and they are able to fail."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools import build_site, check_arm_like, check_repeat, check_site, common, run_notebooks

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


@pytest.mark.parametrize("changed", ["book/one.ipynb", "qhelpers/helper.py", "requirements.txt", "weights source"])
def test_a_change_makes_the_copy_stale(small_book: Path, changed: str) -> None:
    one = small_book / "book" / "one.ipynb"
    run_notebooks.EXECUTED.mkdir(parents=True)
    (run_notebooks.EXECUTED / "one.ipynb").write_text(one.read_text())
    run_notebooks.stamp_file(one).write_text(json.dumps({"hash": run_notebooks.inputs_hash(one)}))
    assert run_notebooks.is_current(one)
    if changed == "weights source":
        cache = small_book / "torch_home" / "hub" / "checkpoints"
        cache.mkdir(parents=True)
        (cache / WEIGHTS).write_text("x")
    else:
        path = small_book / changed
        path.write_text(path.read_text() + " ")
    assert not run_notebooks.is_current(one)


def test_force_runs_again(
    small_book: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_notebooks.main()
    monkeypatch.setattr(sys, "argv", ["run_notebooks", "--force"])
    run_notebooks.main()
    assert capsys.readouterr().out.count("one: executed in") == 2


def test_a_failing_notebook_fails_and_keeps_the_previous_copy(
    small_book: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_notebooks.main()
    (small_book / "book" / "one.ipynb").write_text(notebook("print(1)", "assert False"))
    assert run_notebooks.main() == 1
    assert "failed: one" in capsys.readouterr().out
    assert outputs(small_book) == ["42\n"]
    assert not run_notebooks.is_current(small_book / "book" / "one.ipynb")


def test_a_notebook_that_fills_the_hub_cache_is_reused_afterwards(small_book: Path) -> None:
    target = small_book / "torch_home" / "hub" / "checkpoints" / WEIGHTS
    code = f"import pathlib; p = pathlib.Path({str(target)!r}); p.parent.mkdir(parents=True); p.write_text('x')"
    (small_book / "book" / "one.ipynb").write_text(notebook(code))
    assert run_notebooks.main() == 0
    assert target.is_file()
    assert run_notebooks.is_current(small_book / "book" / "one.ipynb")


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


def test_results_of_removed_notebooks_are_forgotten(small_book: Path) -> None:
    (run_notebooks.RESULTS / "gone").mkdir(parents=True)
    run_notebooks.main()
    assert not (run_notebooks.RESULTS / "gone").exists()


def test_a_gathering_notebook_runs_last_and_depends_on_results(small_book: Path) -> None:
    (small_book / "_toc.yml").write_text(
        "format: jb-book\nroot: book/intro\nchapters:\n- file: book/all\n- file: book/one\n"
    )
    gathering = small_book / "book" / "all.ipynb"
    gathering.write_text(notebook("1", gathers_results=True))
    assert [path.stem for path in common.notebooks(small_book)] == ["one", "all"]
    before = run_notebooks.inputs_hash(gathering)
    (run_notebooks.RESULTS / "one").mkdir(parents=True)
    (run_notebooks.RESULTS / "one" / "claim.json").write_text("{}")
    assert run_notebooks.inputs_hash(gathering) != before


def test_a_missing_page_is_named(small_book: Path) -> None:
    (small_book / "book" / "one.ipynb").unlink()
    with pytest.raises(FileNotFoundError, match=r"_toc\.yml names book/one"):
        common.toc_pages(small_book)


def test_a_site_is_not_built_from_stale_copies(small_book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_site, "notebooks", lambda: common.notebooks(small_book))
    with pytest.raises(SystemExit, match=r"Run the notebooks first.*one"):
        build_site.main()


@pytest.fixture
def small_site(small_book: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small book's tools for building, with the notebook run."""
    monkeypatch.setattr(build_site, "notebooks", lambda: common.notebooks(small_book))
    monkeypatch.setattr(build_site, "toc_pages", lambda: common.toc_pages(small_book))
    monkeypatch.setattr(build_site, "EXECUTED", small_book / "build" / "executed")
    monkeypatch.setattr(build_site, "STAGE", small_book / "build" / "site")
    monkeypatch.setattr(build_site, "STAMP", small_book / "build" / "site.sha256")
    monkeypatch.setattr(build_site, "SITE", small_book / "_build" / "html")
    settings = (PROJECT / "_config.yml").read_text()
    (small_book / "_config.yml").write_text(settings)
    (small_book / "book" / "references.bib").write_text("")
    (small_book / "book" / "_static").mkdir()
    (small_book / "book" / "_static" / "book.css").write_text("")
    (small_book / "book" / "one.ipynb").write_text(
        notebook("print(6 * 7)").replace(
            '"cells": [', '"cells": [{"cell_type": "markdown", "id": "t", "metadata": {}, "source": ["# One"]}, '
        )
    )
    (small_book / "tools").mkdir()
    run_notebooks.main()
    return small_book


def test_a_site_is_published_once_and_then_reused(small_site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_site.main()
    assert "42" in (small_site / "_build" / "html" / "book" / "one.html").read_text()
    build_site.main()
    assert "site: unchanged" in capsys.readouterr().out
    (small_site / "_build" / "html" / "book" / "one.html").write_text("written over by another build")
    build_site.main()
    assert "42" in (small_site / "_build" / "html" / "book" / "one.html").read_text()


def test_what_lint_jupyter_and_a_reader_leave_beside_the_notebooks_is_no_part_of_the_site(
    small_site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_site.main()
    for folder in (".ruff_cache", ".ipynb_checkpoints", "worksheet-results"):
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


# --- the commands ------------------------------------------------------------------------------------


def dry_run(*arguments: str, folder: Path = common.ROOT) -> str:
    """What make would do in a fresh clone."""
    command = ["make", "--dry-run", "VENV=/nowhere/venv", *arguments]
    # What an outer make hands down (make test FORCE=1 runs these tests) is not for this one.
    outer = ("MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "MFLAGS", "FORCE", "TORCH_INDEX")
    env = {name: value for name, value in os.environ.items() if name not in outer}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, env=env).stdout


def test_make_book_installs_executes_and_builds_in_this_order() -> None:
    lines = dry_run("book")
    steps = ["-m venv", "pip install --quiet -r requirements.txt", "pip check", "run_notebooks", "build_site"]
    positions = [lines.index(step) for step in steps]
    assert positions == sorted(positions)
    assert "--index-url" not in lines


def test_torch_index_fetches_torch_and_torchvision_there_first() -> None:
    lines = dry_run("book", "TORCH_INDEX=https://download.pytorch.org/whl/cpu")
    composed = f"/nowhere/venv/bin/pip install --index-url https://download.pytorch.org/whl/cpu {PIN}"
    assert composed in lines
    assert lines.index(composed) < lines.index("-r requirements.txt")


def test_make_test_forces_on_demand() -> None:
    assert "run_notebooks --force" in dry_run("test", "FORCE=1")
    assert "--force" not in dry_run("test")


def test_requirements_pin_everything_and_end_with_the_project() -> None:
    lines = [line for line in (common.ROOT / "requirements.txt").read_text().splitlines() if line.strip()]
    pins = [line for line in lines if not line.startswith("#")]
    assert pins[-1] == "-e ."
    assert all(line.count("==") == 1 for line in pins[:-1])
    assert set(PIN.split()) <= set(pins)


def test_links_of_the_readme_lead_somewhere() -> None:
    text = (common.ROOT / "README.md").read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert len(links) > 5
    assert [link for link in links if not (common.ROOT / link).exists()] == []


def two_runs(tmp_path: Path, second: dict[str, object]) -> Path:
    row = dict.fromkeys(check_repeat.REPEATED, 1.0) | {"model": "float", "speed": 1.0}
    for folder, rows in (("one", [row]), ("by-hand", [row | second])):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rows-one.json").write_text(json.dumps({"rows": rows, "sources": "same"}))
    return tmp_path


def test_a_second_run_may_differ_in_speed(tmp_path: Path) -> None:
    assert check_repeat.differences(two_runs(tmp_path, {"speed": 1.2})) == ([], 1)


def test_a_second_run_must_not_differ_in_accuracy(tmp_path: Path) -> None:
    found, compared = check_repeat.differences(two_runs(tmp_path, {"value": 0.9}))
    assert (found, compared) == (["one, float: value 1.0 then 0.9"], 1)


def test_a_chapter_that_did_not_run_twice_is_named(tmp_path: Path) -> None:
    (two_runs(tmp_path, {}) / "by-hand" / "rows-one.json").unlink()
    assert check_repeat.differences(tmp_path) == (["one: the second run left no rows"], 0)


def test_runs_of_different_sources_are_not_compared_silently(tmp_path: Path) -> None:
    path = two_runs(tmp_path, {}) / "by-hand" / "rows-one.json"
    path.write_text(path.read_text().replace("same", "older"))
    assert check_repeat.differences(tmp_path) == (["one: the two runs had different sources"], 1)


# --- as on ARM ---------------------------------------------------------------------------------------


def arm_like(code: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(PROJECT / "tools" / "arm_like")}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=PROJECT)


def test_hiding_leaves_the_engines_of_arm_and_macos() -> None:
    done = arm_like(
        "import torch; from qhelpers import engines\n"
        "print(torch.backends.quantized.supported_engines, torch.backends.quantized.engine, engines.default_engine())"
    )
    assert done.stdout == "['qnnpack', 'none'] qnnpack qnnpack\n"


@pytest.mark.parametrize("engine", ["x86", "fbgemm", "onednn"])
def test_a_hidden_engine_cannot_be_set(engine: str) -> None:
    done = arm_like(f"import torch; torch.backends.quantized.engine = {engine!r}")
    assert f"quantized engine {engine} is not supported" in done.stderr


def test_the_arm_like_check_notices_that_nothing_was_hidden(
    small_book: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check_arm_like, "BUILD", small_book / "build")
    assert check_arm_like.check([small_book / "book" / "one.ipynb"]) == ["one"]
    assert "one, x86 engines hidden: FAILED" in capsys.readouterr().out
