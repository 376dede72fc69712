"""The notebooks' structure: what a reader may rely on in every chapter."""

import ast
import importlib
import importlib.util
import json
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest

from qhelpers.book import claims
from tools import needs
from tools.common import ROOT, notebooks
from tools.imports import code_of, imported_names

Cell = dict[str, Any]
TEMPLATE = ROOT / "book" / "template.ipynb"  # what a new chapter is copied from: no page, but held to the same rules
NOTEBOOKS = [*notebooks(), TEMPLATE]
MOST_LINES = 25  # of a cell that is read
FOLDED, LEFT_OUT = {"hide-input", "hide-cell"}, {"remove-input", "remove-cell"}  # tags of code that the page ...
UNREAD = FOLDED | LEFT_OUT  # ... folds away, or does not have
MOST_WORDS, MOST_CELLS, MOST_FOLDED = 2_000, 35, 0.2  # of a page: of Markdown, of code that is read, of lines of code
# A number with a unit, or a factor: 3.6 MB, 12 ms, 98 %, 2.5 ×
MEASURED = re.compile(r"(?<![\w`.])\d+(?:[.,]\d+)?\s?(?:MB|GB|kB|ms|s|µs|%|×|times|points|dB)(?![\w])")

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[Cell]:
    found: list[Cell] = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]
    return found


def source(cell: Cell) -> str:
    return "".join(cell["source"])


def tagged(path: Path, tag: str) -> list[Cell]:
    return [cell for cell in cells(path, "code") if tag in cell["metadata"].get("tags", [])]


def unglued(markdown: str) -> list[str]:
    """Numbers with units in prose that no run has computed."""
    prose = re.sub(r"```.*?```", "", markdown, flags=re.DOTALL)
    prose = re.sub(r"\{glue:text\}`[^`]*`|`[^`]*`|\$[^$]*\$", "", prose)
    return MEASURED.findall(prose)


def claimed(path: Path) -> list[str]:
    """Ids of the claims that a notebook settles, read from its syntax tree."""
    found = []
    for node in ast.walk(ast.parse(code_of(path))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "claims.settle":
            arguments = [*node.args, *(word.value for word in node.keywords if word.arg == "name")]
            found += [arguments[0].value] if isinstance(arguments[0], ast.Constant) else []
    return found


@every_notebook
def test_committed_without_outputs(path: Path) -> None:
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells(path, "code"))


@every_notebook
def test_cannot_pass_with_errors(path: Path) -> None:
    notebook = json.loads(path.read_text())
    assert "allow_errors" not in json.dumps(notebook["metadata"])
    assert not tagged(path, "raises-exception"), "use chapter.expected_error, which checks type and message"
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"


@every_notebook
def test_names_are_hyphenated(path: Path) -> None:
    assert re.fullmatch(r"[a-z0-9-]+", path.stem)


@every_notebook
def test_cells_that_are_read_are_short(path: Path) -> None:
    for cell in cells(path, "code"):
        if UNREAD.isdisjoint(cell["metadata"].get("tags", [])):
            assert len(cell["source"]) <= MOST_LINES, cell["id"]


SAY_NOTHING = {"one", "found", "few", "said", "thing", "wild", "apart", "stuff"}


def names_that_say_nothing(code: str) -> list[str]:
    """Names of variables, parameters and functions that a reader would have to look up."""
    bound = [
        node.id if isinstance(node, ast.Name) else node.arg if isinstance(node, ast.arg) else node.name
        for node in ast.walk(ast.parse(re.sub(r"^%%.*\n", "", code)))  # a cell that is written to a file
        if isinstance(node, ast.arg | ast.FunctionDef)
        or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    ]
    return [name for name in bound if name in SAY_NOTHING]


@every_notebook
def test_names_in_code_that_is_read_say_what_a_thing_is(path: Path) -> None:
    read = [
        cell for cell in cells(path, "code") if UNREAD.isdisjoint(tags(cell)) and "exercise-check" not in tags(cell)
    ]
    assert not {cell["id"]: names for cell in read if (names := names_that_say_nothing(source(cell)))}


@pytest.mark.parametrize("code", ["found = 1", "def apart(a, b): ...", "lambda one: one", "for few in (): ..."])
def test_a_name_that_says_nothing_is_found(code: str) -> None:
    assert names_that_say_nothing(code)
    assert not names_that_say_nothing("other = 1; print(one)")


def tags(cell: Cell) -> set[str]:
    return set(cell["metadata"].get("tags", []))


def too_long(page: list[Cell]) -> list[str]:
    """How a page goes past the rule of length; solutions are closed, and code that the page leaves out is no code."""
    words = sum(len(source(cell).split()) for cell in page if cell["cell_type"] == "markdown")
    code = [cell for cell in page if cell["cell_type"] == "code" and not tags(cell) & LEFT_OUT]
    read = [cell for cell in code if not tags(cell) & {*FOLDED, "exercise-solution"}]
    lines = {cell["id"]: len(source(cell).splitlines()) for cell in code}
    folded, all_lines = sum(lines[cell["id"]] for cell in code if tags(cell) & FOLDED), sum(lines.values())
    found = [f"{words} words"] if words > MOST_WORDS else []
    found += [f"{len(read)} cells"] if len(read) > MOST_CELLS else []
    over = folded > max(MOST_LINES, MOST_FOLDED * all_lines)  # so a page with little code may fold its setup cell
    return found + ([f"{folded} of {all_lines} lines folded"] if over else [])


@every_notebook
def test_a_page_is_short(path: Path) -> None:
    assert not too_long(json.loads(path.read_text())["cells"])


def page_of(words: int, read: int, folded: int, left_out: int) -> list[Cell]:
    """A page with so many words and cells of three lines."""
    kinds = [["hide-input"]] * folded + [["remove-input"]] * left_out + [["exercise-solution"]] + [[]] * read
    code = [
        {"cell_type": "code", "id": str(i), "source": ["x\n", "y\n", "z"], "metadata": {"tags": kind}}
        for i, kind in enumerate(kinds)
    ]
    return [{"cell_type": "markdown", "id": "text", "source": ["word\n"] * words, "metadata": {}}, *code]


@pytest.mark.parametrize(
    ("page", "fault"),
    [
        (page_of(2_001, 35, 8, 99), "2001 words"),
        (page_of(2_000, 36, 8, 99), "36 cells"),
        (page_of(2_000, 35, 10, 99), "30 of 138 lines folded"),
    ],
)
def test_a_page_over_the_rule_of_length_is_found(page: list[Cell], fault: str) -> None:
    assert too_long(page) == [fault]
    assert not too_long(page_of(2_000, 35, 8, 99))


def modules_of(tree: ast.AST) -> dict[str, Any]:
    """The modules of the package that code imports, by the name that it gives them."""
    return {
        alias.asname or alias.name: importlib.import_module(f"{node.module}.{alias.name}")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and re.fullmatch(r"qhelpers(\.(tasks|check|book))?", node.module or "")
        for alias in node.names
        if importlib.util.find_spec(f"{node.module}.{alias.name}") is not None  # else a function, as check.rivals
    }


def wrong_names(code: str) -> list[str]:
    """What code takes from the package that is not there, and modules of the package that it hides."""
    tree = ast.parse(code)
    modules, found = modules_of(tree), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            found += [] if hasattr(modules[node.value.id], node.attr) else [f"no {ast.unparse(node)}"]
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in modules:
            found.append(f"{node.id} hides the module")
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in modules:
            found.append(f"{node.name} hides the module")
    names = sorted(name for name in imported_names(code) if name.startswith("qhelpers."))
    return [*found, *(f"no {name}" for name in names if not exists(name))]


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    module, _, last = name.rpartition(".")
    parent = importlib.import_module(module)
    return hasattr(parent, last) or (hasattr(parent, "__path__") and importlib.util.find_spec(name) is not None)


@every_notebook
def test_names_taken_from_the_package_exist(path: Path) -> None:
    assert not wrong_names(code_of(path))


@pytest.mark.parametrize(
    "fault",
    [
        "size.weigh(1)",
        "size = 3",
        "for size in (1, 2): pass",
        "def size(): ...",
        "SETUP = 'from qhelpers.tasks import validation'",
        "from qhelpers.tasks.digits import few",
    ],
)
def test_a_name_that_is_not_there_or_hides_a_module_is_found(fault: str) -> None:
    assert len(wrong_names(f"from qhelpers import size\n{fault}")) == 1
    assert not wrong_names("from qhelpers import size\nsize.size_mb(1)")


@every_notebook
def test_names_in_prose_exist(path: Path) -> None:
    modules = modules_of(ast.parse(code_of(path)))
    prose = "\n".join(source(cell) for cell in cells(path, "markdown"))
    before_the_move = "models|data|nets|text|reports|compare|plots|training|export|sheet_checks|onepager|choose|page"
    named = re.findall(rf"`({'|'.join([*modules, before_the_move])})\.(?!py\b)(\w+)", prose)
    assert not [f"{module}.{name}" for module, name in named if not hasattr(modules.get(module), name)]


@every_notebook
def test_begins_with_title_and_setup(path: Path) -> None:
    first, second = json.loads(path.read_text())["cells"][:2]
    assert source(first).startswith("# ")
    assert "setup" in second["metadata"]["tags"]


@every_notebook
def test_measured_numbers_in_prose_are_glued(path: Path) -> None:
    found = {cell["id"]: unglued(source(cell)) for cell in cells(path, "markdown")}
    assert not {name: numbers for name, numbers in found.items() if numbers}


TIMES = {"ratio", "steady_ms", "cold_ms", "noise_percent", "fastest", "speed", "best"}  # what a busy machine changes


def timed_asserts(code: str) -> list[str]:
    """Assertions that name a measured time: on a busy machine they would fail."""
    asserts = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Assert)]
    return [
        ast.unparse(one)
        for one in asserts
        if any(isinstance(node, ast.Attribute) and node.attr in TIMES for node in ast.walk(one.test))
    ]


@every_notebook
def test_no_assertion_depends_on_a_time(path: Path) -> None:
    assert not timed_asserts(code_of(path))


def test_an_assertion_that_depends_on_a_time_is_found() -> None:
    assert timed_asserts('assert latency.ratio("int8").value > 1')
    assert not timed_asserts("assert row.value > 97")


@every_notebook
def test_what_a_chapter_leaves_bears_its_name(path: Path) -> None:
    """Notebooks that are run where they lie share one results folder."""
    named = {"table.speeds", "table.write_rows"}
    calls = [node for node in ast.walk(ast.parse(code_of(path))) if isinstance(node, ast.Call)]
    assert {ast.unparse(one.args[0]) for one in calls if ast.unparse(one.func) in named} <= {repr(path.stem)}


@every_notebook
def test_the_processor_is_asked_for_instructions(path: Path) -> None:
    assert "get_cpu_capability" not in code_of(path), "engines.int8_instructions tells VNNI, which this does not"


@every_notebook
def test_glue_keys_are_used_once_and_exist(path: Path) -> None:
    used = set(re.findall(r"\{glue:text\}`([^`]+)`", "\n".join(source(cell) for cell in cells(path, "markdown"))))
    code = "\n".join(source(cell) for cell in cells(path, "code"))
    named = set(re.findall(r"[\"']([a-z0-9]+(?:-[a-z0-9]+)*)[\"']", code))
    patterns = [re.escape(key) for key in re.findall(r"glue\(\s*f\"([^\"]+)\"", code)]
    patterns = [re.sub(r"\\\{.*?\\\}", ".+", pattern) for pattern in patterns]
    unknown = {key for key in used - named if not any(re.fullmatch(pattern, key) for pattern in patterns)}
    assert not unknown


@every_notebook
def test_claims_exist_and_belong_to_the_chapter(path: Path) -> None:
    found = claimed(path)
    assert len(found) == len(set(found)), "a claim is checked once"
    owned = {name for name, one in claims.statements().items() if one["chapter"] == path.stem}
    assert set(found) <= set(claims.statements())
    assert set(found) <= owned, "each claim is recorded in its own chapter"


def test_the_book_settles_claims() -> None:
    assert len([name for path in NOTEBOOKS for name in claimed(path)]) == len(claims.statements())


@every_notebook
def test_a_finished_chapter_leaves_no_claim_unchecked(path: Path) -> None:
    if json.loads(path.read_text())["metadata"]["book"]["finished"]:
        owned = {name for name, one in claims.statements().items() if one["chapter"] == path.stem}
        assert owned - set(claimed(path)) == set()


def exercises() -> list[Any]:
    found = []
    for path in NOTEBOOKS:
        parts = [tagged(path, f"exercise-{part}") for part in ("stub", "solution", "check")]
        assert len({len(part) for part in parts}) == 1, f"{path.stem}: a stub, a solution and a check for each exercise"
        for number, (stub, solution, check) in enumerate(zip(*parts, strict=True), start=1):
            codes = [source(cell) for cell in (stub, solution, check)]
            found.append(pytest.param(path, *codes, id=f"{path.stem}-{number}"))
    return found


def test_each_exercise_of_the_book_has_a_label_of_its_own() -> None:
    prose = "\n".join(source(cell) for path in NOTEBOOKS for cell in cells(path, "markdown"))
    labels = re.findall(r"^:label: (\S+)", prose, re.MULTILINE)
    assert not [label for label in labels if labels.count(label) > 1]


def run_cells(path: Path, *codes: str) -> None:
    """Run a notebook's setup cells and then some code, as a reader would who skips the rest."""
    names: dict[str, Any] = {"__name__": "__main__"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for code in [*(source(cell) for cell in tagged(path, "setup")), *codes]:
                exec(compile(code, str(path), "exec"), names)
    finally:
        for value in names.values():
            if isinstance(value, tempfile.TemporaryDirectory):
                value.cleanup()  # a kernel does it when it ends; here a warning would fail whatever test comes next


@pytest.mark.parametrize(("path", "stub", "solution", "check"), exercises())
def test_an_exercise_accepts_its_solution(path: Path, stub: str, solution: str, check: str, one_thread: None) -> None:
    run_cells(path, stub, solution, check)


@pytest.mark.parametrize(("path", "stub", "solution", "check"), exercises())
def test_an_exercise_rejects_its_stub(path: Path, stub: str, solution: str, check: str, one_thread: None) -> None:
    with pytest.raises(AssertionError):
        run_cells(path, stub, check)


def test_the_template_of_a_chapter_runs_and_is_no_page(one_thread: None) -> None:
    run_cells(TEMPLATE, *(source(cell) for cell in cells(TEMPLATE, "code")))
    assert TEMPLATE not in notebooks()


@pytest.mark.parametrize(
    "prose", ["It takes 3.6 MB.", "It is 2.5 times faster.", "98 % are right", "about 12 ms each", "loses 3 points"]
)
def test_the_check_of_prose_finds_numbers(prose: str) -> None:
    assert unglued(prose)


@pytest.mark.parametrize("prose", ["{glue:text}`mb` MB", "`3.6 MB`", "three times", "8-bit", "int8 × 2", "V1", "4 s8"])
def test_the_check_of_prose_lets_the_rest_pass(prose: str) -> None:
    assert not unglued(prose)


@every_notebook
def test_what_its_code_needs_of_eager_quantization_is_declared(path: Path) -> None:
    assert not needs.undeclared(path), "add it to metadata.book.needs"
    needs.successor(path)


STATUS = "```{include} status.md\n```"
OLD = re.compile(r"eager|\bFX\b|torch\.ao|quantize_dynamic|prepare_fx|quint8")
ENDS = re.compile(r"deprecat|announced|to be removed|will be removed|removed in|184982|2259|[Ss]tay (?:on|with) eager")


def said_again(prose: str) -> list[str]:
    """Sentences and table cells that say what the box of ``book/status.md`` says."""
    sentences = re.split(r"(?<=[.:;])\s|\s\|\s", prose.replace(STATUS, ""))
    return [one.strip() for one in sentences if OLD.search(one) and ENDS.search(one)]


@every_notebook
def test_chapters_of_eager_mode_and_fx_say_their_status_once(path: Path) -> None:
    prose = "\n".join(source(cell) for cell in cells(path, "markdown"))
    old = any(re.match(r"torch\.(ao\.)?quantization\b|torch\.ao$", name) for name in imported_names(code_of(path)))
    assert prose.count(STATUS) == int(old)
    assert not said_again(prose)


@pytest.mark.parametrize(
    "prose",
    [
        "Eager mode is fine. FX is deprecated.",
        "Stay on eager mode for a model that runs.",
        "| `quantize_dynamic` | deprecated |\n| `torch.ao.quantization` will be removed |",
        "See pytorch issue 184982 on quint8.",
    ],
)
def test_a_second_word_on_the_status_is_found(prose: str) -> None:
    assert said_again(prose)
    assert not said_again("TorchScript is deprecated. Eager mode and FX run.")
    assert not said_again(STATUS)


def test_the_status_box_says_when_it_was_read_and_links_what_to_write_instead() -> None:
    box = (ROOT / "book" / "status.md").read_text()
    references = (ROOT / "book" / "references.bib").read_text()
    assert re.search(r"read on \d+ \w+ \d{4}", box)
    assert all(f"{{{key}," in references for key in re.findall(r"\{cite:p\}`(\w+)`", box))
    linked = re.findall(r"\]\(([a-z0-9-]+\.ipynb)\)", box)
    assert {"dynamic-quantization.ipynb", "eager-to-pt2e.ipynb", "mobile-export.ipynb"} <= set(linked)
    assert all((ROOT / "book" / name).is_file() for name in linked)


def test_the_quantizer_for_arm_gets_one_scale_for_each_channel(one_thread: None) -> None:
    """No machine of ours takes that branch of the chapter, but its configuration is plain Python."""
    path = next(path for path in NOTEBOOKS if path.stem == "eager-to-pt2e")
    by_id = {cell["id"]: source(cell) for cell in cells(path, "code")}
    check = """
net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 2)).eval(), torch.ones(2, 3, 6, 6)
arm_quantizer = arm.ArmInductorQuantizer().set_global(arm_config_per_channel())
prepared = prepare_pt2e(torch.export.export(net, (x,)).module(), arm_quantizer)
prepared(x)
names = [n.target.__name__ for n in convert_pt2e(prepared).graph.nodes if n.op == "call_function"]
assert names.count("dequantize_per_channel.default") == 2, names
"""
    run_cells(path, by_id["pt2e"], check)
