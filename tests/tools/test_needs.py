"""What notebooks need of eager quantization: as they declare it, as code names it, and as a run without it shows."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools import check_no_eager, common, needs
from tools.check_no_eager import Stop
from tools.common import ROOT

ALL = [*needs.KINDS]


def notebook(folder: Path, name: str, code: str, **book: Any) -> Path:
    """A notebook with one cell of code, as this project's are."""
    cell = {"cell_type": "code", "id": "only", "execution_count": None, "metadata": {}, "outputs": [], "source": code}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = {"cells": [cell], "metadata": {"book": book, "kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    path = folder / f"{name}.ipynb"
    path.write_text(json.dumps(content))
    return path


# --- what code names, and what metadata declares -----------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kinds"),
    [
        ("from torch.ao import quantization as tq; tq.prepare(net)", {"eager calls"}),
        ("import torch; torch.ao.quantization.QuantStub()", {"eager calls"}),
        ("from torchvision.models import quantization", {"eager calls"}),
        ("import torch.ao.nn.intrinsic as nni", {"eager calls"}),
        ("import torch\nx.to(torch.quint8)", {"old dtypes"}),
        ("import torch\ntorch.quantize_per_channel(x, s, z, 0, d)", {"old dtypes"}),
        ("import torch as t\nt.ops.quantized.linear_prepack(w, None).unpack()", {"int8 kernels"}),
        ("from torch.ao import quantization as tq\ntq.convert(net)", {*ALL}),
        ("from torch.ao.quantization import quantize_fx\nquantize_fx.convert_fx(net)", {*ALL}),
        ("import torch\ntorch.ao.quantization.quantize_dynamic(net)", {*ALL}),
        ("code = 'import torch; torch.qint8'", {"old dtypes"}),
        ("import torch.ao.quantization", {"eager calls"}),
        (
            "from torch.ao import quantization as q; q.prepare(n)\nfrom torchao import quantization as q",
            {"eager calls"},
        ),
        ("from torch import qint8 as q\nfrom torch import int8 as q", {"old dtypes"}),
        ("models['a'].train().fuse_model(is_qat=True)", {"eager calls"}),
    ],
)
def test_what_code_names_is_found(code: str, kinds: set[str]) -> None:
    assert needs.named(code) == kinds


@pytest.mark.parametrize(
    "code",
    [
        "import torch; torch.int8, torch.uint8, torch.ops.quantized_decomposed",
        "from torchao.quantization import quantize_; quantize_(net, config)",
        "from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e; convert_pt2e(net)",
        "print('torch.ao.quantization is deprecated')",
        "net.convert(); quint8 = 3; codes.quantize_per_tensor",
    ],
)
def test_what_will_stay_is_no_need(code: str) -> None:
    assert not needs.named(code)


def test_code_that_names_more_than_its_metadata_is_found(tmp_path: Path) -> None:
    code = "import torch; torch.ops.quantized, torch.quint8"
    assert needs.undeclared(notebook(tmp_path, "one", code, needs=["int8 kernels"])) == {"old dtypes"}
    assert not needs.undeclared(notebook(tmp_path, "two", code, needs=ALL))


@pytest.mark.parametrize(
    "book", [{}, {"needs": None}, {"needs": ["eager"]}, {"needs": ALL[::-1]}, {"needs": "all"}, {"needs": 3}]
)
def test_a_notebook_that_does_not_say_what_it_needs_is_refused(book: dict[str, Any], tmp_path: Path) -> None:
    path = notebook(tmp_path, "one", "x = 1", **book)
    with pytest.raises(SystemExit, match=r"one\.ipynb: metadata\.book\.needs must list"):
        needs.declared(path)
    with pytest.raises(SystemExit, match="must list"):
        next(check_no_eager.check([path]))


@pytest.mark.parametrize("book", [{"needs": ALL, "taken_over_by": "three"}, {"needs": [], "taken_over_by": "two"}])
def test_a_successor_that_is_not_there_or_not_needed_is_refused(book: dict[str, Any], tmp_path: Path) -> None:
    notebook(tmp_path, "two", "x = 1", needs=[])
    with pytest.raises(SystemExit, match="taken_over_by must name a notebook"):
        needs.successor(notebook(tmp_path, "one", "x = 1", **book))


def test_the_page_gets_what_each_notebook_needs(tmp_path: Path) -> None:
    (tmp_path / "book").mkdir()
    pages = [
        notebook(tmp_path, "old", "x = 1", needs=ALL[:2], taken_over_by="new"),
        notebook(tmp_path, "new", "x = 1", needs=[]),
    ]
    needs.fill(tmp_path, pages)  # a book without the page
    page = tmp_path / needs.PAGE
    page.write_text("# Gone\n")
    with pytest.raises(SystemExit, match="once"):
        needs.fill(tmp_path, pages)
    page.write_text(f"# Gone\n\n{needs.PLACE}\n")
    needs.fill(tmp_path, pages)
    words = page.read_text()
    assert "- **nothing old**, 1: [](new.ipynb)." in words
    assert words.splitlines()[-1] == "- **eager calls, old dtypes**, 1: [](old.ipynb) (taken over by [](new.ipynb))."


# --- the run without it ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "stop"),
    [
        (
            "No module named 'torch.ao.quantization' (hidden here)",
            "stops at cell b for lack of torch.ao.quantization",
        ),
        ("module 'torch' has no attribute 'quint8' (hidden here)", "stops at cell b for lack of torch.quint8"),
        ("cannot import name 'qint8' from 'torch' (a.py)", "stops at cell b for lack of torch.qint8"),
        (
            "cannot import name 'other' from 'torch' (a.py)",
            "stops at cell b: SomeError: cannot import name 'other' from 'torch' (a.py)",
        ),
        ("'MobileNetV2' object has no attribute 'fuse_model'", "stops at cell b for lack of fuse_model"),
        ("Unknown name\nand more", "stops at cell b: SomeError: Unknown name"),
    ],
)
def test_the_cell_and_the_missing_name_are_read_from_the_notebook(error: str, stop: str) -> None:
    output = {"output_type": "error", "ename": "SomeError", "evalue": error, "traceback": []}
    cells = [{"id": "text"}, {"id": "a", "outputs": []}, {"id": "b", "outputs": [output]}]
    assert str(check_no_eager.stop_of({"cells": cells})) == stop


HIDDEN = """
import torch
from_ao, qat = "from torch import ao; ao.quantization", "from torch.ao.nn import qat"
for code in ["from torch import qint8", from_ao, "torch.ao", qat]:
    try:
        exec(code)
        print("found", code)
    except (ImportError, AttributeError) as error:
        print(error)
"""


def test_what_will_go_is_hidden_however_it_is_asked_for() -> None:
    environment = os.environ | common.environment_with("no_eager")
    run = subprocess.run([sys.executable, "-c", HIDDEN], env=environment, capture_output=True, text=True, check=True)
    names = [check_no_eager._hidden_name(line) for line in run.stdout.splitlines()]
    assert names == ["torch.qint8", "torch.ao.quantization", "torch.ao", "torch.ao.nn"]


def test_a_missing_name_that_a_helper_has_reported_is_read_from_what_was_printed() -> None:
    report = "not converted\nNo module named 'torch.ao' (hidden here)"
    printed = {"output_type": "stream", "name": "stdout", "text": report.splitlines(keepends=True)}
    error = {"output_type": "error", "ename": "TypeError", "evalue": "NoneType", "traceback": []}
    cells = [{"id": "a", "outputs": [printed]}, {"id": "b", "outputs": [error]}]
    assert str(check_no_eager.stop_of({"cells": cells})) == "stops at cell b for lack of torch.ao"


@pytest.mark.parametrize(
    ("declared", "stop", "words"),
    [
        (ALL, None, "it runs, but declares eager calls, old dtypes, int8 kernels"),
        ([], Stop("a", "torch.quint8", "AttributeError"), "declares that it needs nothing"),
        ([], Stop("a", "", "ValueError: no"), "declares that it needs nothing"),
        (ALL, Stop("a", "", "ValueError: no"), "did not stop for lack of what is hidden"),
        (["int8 kernels"], Stop("a", "torch.quint8", "AttributeError"), "does not declare old dtypes"),
    ],
)
def test_metadata_and_a_run_that_disagree_are_found(declared: list[str], stop: Stop | None, words: str) -> None:
    assert words in check_no_eager.disagreement(declared, stop)


def test_metadata_and_a_run_that_agree_are_found() -> None:
    assert not check_no_eager.disagreement([], None)
    assert not check_no_eager.disagreement(["old dtypes"], Stop("a", "torch.quint8", "AttributeError"))


def test_a_damaged_notebook_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(path: Path, folder: Path, environment: object) -> tuple[int, float, None]:
        folder.mkdir(parents=True)
        (folder / path.name).write_text('{"cells": [')
        return 1, 0.0, None

    monkeypatch.setattr(check_no_eager, "BUILD", tmp_path / "build")
    monkeypatch.setattr(check_no_eager, "run", run)
    (checked,) = check_no_eager.check([notebook(tmp_path, "cut", "x = 1", needs=["eager calls"])])
    assert "damaged notebook" in checked[1]
    assert "did not stop for lack" in checked[2]


def test_notebooks_are_run_on_after_one_has_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check_no_eager, "BUILD", tmp_path / "build")
    paths = [
        notebook(tmp_path, "wrong", "import torch.ao.quantization", needs=[]),
        notebook(tmp_path, "right", "import torch.ao.quantization", needs=["eager calls"]),
        notebook(tmp_path, "free", "x = 1", needs=[]),
    ]
    monkeypatch.setattr("sys.argv", ["check_no_eager", *map(str, paths)])
    assert check_no_eager.main() == 1
    printed = capsys.readouterr().out.splitlines()
    stopped = "stops at cell only for lack of torch.ao.quantization"
    assert printed[-4:] == [
        f"wrong: {stopped}  DISAGREES: it declares that it needs nothing",
        f"right: {stopped}",
        "free: runs",
        "3 notebooks; metadata and run disagree: wrong",
    ]
    monkeypatch.setattr(check_no_eager, "check", lambda chosen: iter([("free", "runs", "")]))
    assert check_no_eager.main() == 0


# --- the page ----------------------------------------------------------------------------------------


def test_the_scripts_that_the_page_links_have_new_calls_only() -> None:
    linked = re.findall(r"<scripts/(\w+\.py)>", (ROOT / needs.PAGE).read_text())
    assert len(linked) == 3
    assert not {kind for name in linked for kind in needs.named((ROOT / "book" / "scripts" / name).read_text())}


def test_the_chapters_that_the_page_says_need_both_do_and_the_others_do_not() -> None:
    text = (ROOT / needs.PAGE).read_text().partition("Which chapter takes over")[2].partition("## How to run")[0]
    chapters = {ROOT / "book" / name for name in re.findall(r"\]\(([\w-]+\.ipynb)\)", text)}
    both = {"dynamic-quantization", "layers-by-workflow", "eager-to-pt2e", "qat-today"}
    assert {path.stem for path in chapters if needs.declared(path)} == both
    assert {path.stem for path in chapters} - both == {"packages-for-servers", "mobile-export", "onnx-runtime"}


def test_the_pinned_torchao_imports_what_will_go() -> None:
    """When this fails, the page must say so."""
    found = importlib.util.find_spec("torchao.quantization.pt2e.prepare")
    assert found is not None
    assert found.origin is not None
    assert "eager calls" in needs.named(Path(found.origin).read_text())
