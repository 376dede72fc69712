"""The plot of all models: what it draws of real rows, what its marks read out, and which rows it refuses."""

import json
from dataclasses import replace
from typing import Any

import pytest
from bs4 import BeautifulSoup, Tag

from qhelpers import benchmark, metrics
from qhelpers.book import compare_plot, figures, table
from qhelpers.book.compare_plot import CompareError, Model
from tools.common import ROOT
from tools.still import still

FASTER = benchmark.Ratio(1.93, 1.85, 1.98, "range of 2 processes", 1.0)
SLOWER = benchmark.Ratio(0.49, 0.43, 0.60, "range of 2 processes", 5.7)
EQUAL = metrics.Paired(0, 0, 1000, 0.0, (-0.383, 0.383), -0.27, 1.0)
RUINED = metrics.Paired(487, 2, 1000, -48.5, (-51.618, -45.384), -51.1, 0.0)
FEW = metrics.Paired(9, 4, 1000, -0.5, (-1.35, 0.239), -1.2, 0.27)
ROW = table.Row(
    model="int8, .pte",
    size_mb=2.48,
    speed=replace(FASTER, value=1.9),
    best=FASTER,
    best_float="float ONNX Runtime",
    metric="top-1 in %",
    value=99.3,
    interval=(98.56, 99.66),
    n=1000,
    paired=EQUAL,
    sqnr_db=30.5,
    agreement=100.0,
    setting="AMD EPYC, 1 thread, engine XNNPACK",
)
TEXT = replace(
    ROW,
    model="dynamic LSTM",
    metric="bits a character",
    value=1.595,
    interval=(1.341, 1.849),
    best=SLOWER,
    paired=metrics.Paired(8, 2, 10, 0.0011, (-0.0003, 0.0025), 0.0023, 0.13, "bits"),
)


def model(chapter: str = "mobile-export", task: str = "digits", float_mb: float = 9.19, **changed: Any) -> Model:
    return Model(replace(ROW, **changed), chapter, task, float_mb)


def shown(*models: Model) -> Tag:
    made = compare_plot.plot(models, alt="Size, speed and quality of a few models.", caption="A caption.")
    figure = BeautifulSoup(str(made.data), "html.parser").figure
    assert isinstance(figure, Tag)
    return figure


def test_a_model_wins_that_is_smaller_as_good_and_faster_than_the_best_float_path() -> None:
    assert model().wins
    assert model().verdict == "3.71 times smaller; as good; faster than the best float path"
    assert not model(best=SLOWER).wins
    assert not model(float_mb=2.0).wins
    assert not model(paired=RUINED).wins
    assert not model(paired=None).wins, "nothing in pairs is no evidence"
    assert not model(paired=FEW).wins, "no loss is shown, but one of 1.35 points may be there"


def test_a_loss_that_is_shown_is_worse_though_it_is_within_the_budget() -> None:
    small = metrics.Paired(60, 30, 100_000, -0.03, (-0.05, -0.01), -0.05, 0.002)
    assert model(paired=small).worse
    assert not model(paired=small).as_good


def test_fewer_bits_are_a_gain() -> None:
    gain = Model(TEXT, "dynamic-quantization", "text", 4.98).gain
    assert gain is not None
    assert gain == pytest.approx((-0.0011, -0.0025, 0.0003))
    assert Model(TEXT, "dynamic-quantization", "text", 4.98).as_good


def test_every_metric_of_the_table_can_be_drawn() -> None:
    assert compare_plot.SCALES.keys() == table.METRICS.keys()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"speed": None}, "no speed against float in the same runtime: time it"),
        ({"best": None}, "no speed against the best float path: time it"),
        ({"float_mb": float("nan")}, "the float model cannot have nan MB"),
        ({"float_mb": 0.0}, "the float model cannot have 0.0 MB"),
        ({"task": " "}, "needs the name of its chapter and of its task"),
    ],
)
def test_a_model_that_lacks_something_is_named(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(CompareError, match=f"'int8, .pte'.* ?{words}"):
        model(**changed)


def test_a_metric_that_cannot_be_drawn_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(table.METRICS, "MRR", (0.0, 1.0))
    with pytest.raises(CompareError, match="SCALES does not say how to draw 'MRR'"):
        model(metric="MRR", value=0.5, interval=(0.4, 0.6))


def test_numbers_that_are_none_do_not_reach_the_plot() -> None:
    with pytest.raises(table.RowError, match="size_mb is nan"):
        model(size_mb=float("nan"))
    with pytest.raises(table.RowError, match="best_float cannot be"):
        model(best_float=" ")
    with pytest.raises(ValueError, match="all finite"):
        replace(FASTER, value=float("nan"))


def test_without_models_there_is_no_plot_and_no_table() -> None:
    with pytest.raises(CompareError, match="no model to compare: run the chapters first"):
        shown()
    with pytest.raises(CompareError, match="no model to compare"):
        compare_plot.show_table([], "All models")


def test_models_of_one_task_have_one_metric() -> None:
    with pytest.raises(CompareError, match="'digits' have different metrics: top-1 in %, bits a character"):
        shown(model(), Model(TEXT, "dynamic-quantization", "digits", 4.98))


def test_a_plot_needs_words() -> None:
    with pytest.raises(figures.FigureError, match="alt text"):
        compare_plot.plot([model()], alt=" ", caption="A caption.")


def test_one_task_alone_is_drawn() -> None:
    figure = shown(model())
    assert len(figure.select(".qb-mark")) == 1
    assert next(text.get_text() for text in figure.select("text[font-weight=bold]")) == "digits (top-1 in %)"


def test_winners_come_first_and_then_the_faster() -> None:
    models = [
        model(model="slow", best=SLOWER),
        model(model="ruined, but fast", paired=RUINED),
        model(),
        Model(TEXT, "dynamic-quantization", "text", 4.98),
    ]
    names = ["int8, .pte", "ruined, but fast", "slow", "dynamic LSTM"]
    assert [one.row.model for one in compare_plot.in_order(models)] == names
    labels = [str(mark["aria-label"]) for mark in shown(*models).select(".qb-mark")]
    assert [label.split(", mobile")[0].split(", dynamic-")[0] for label in labels] == names
    assert labels[1].endswith("worse; faster than the best float path")


def test_a_mark_reads_the_row_of_the_table() -> None:
    models = [model(), model(chapter="backends", paired=RUINED), Model(TEXT, "dynamic-quantization", "text", 4.98)]
    frame = compare_plot.frame(models)
    for i, (mark, one) in enumerate(zip(shown(*models).select(".qb-mark"), models, strict=True)):
        cells = "; ".join(f"{name}: {cell}" for name, cell in frame.iloc[i].items())
        assert mark["data-row"] == f"{one.row.model}; {cells}"
        assert str(one.row.paired) in str(mark["data-row"])
        assert (mark["role"], mark["tabindex"]) == ("img", "0")


def test_rows_that_nobody_knows_to_be_current_are_dated(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compare_plot.frame([model(measured_on="2026-11-28")])["measured on"].item() == "2026-11-28"
    monkeypatch.setenv("QHELPERS_CURRENT", "[]")
    assert "measured on" not in compare_plot.frame([model()])


def test_models_of_one_name_keep_their_own_rows_in_the_table() -> None:
    made = compare_plot.show_table([model(), model(chapter="backends", size_mb=3.0)], "All <models>")
    region = BeautifulSoup(str(made.data), "html.parser").div
    assert region is not None
    assert (region["role"], region["tabindex"], region["aria-label"]) == ("region", "0", "All <models>")
    rows = [[cell.get_text() for cell in row.select("th, td")] for row in region.select("tbody tr")]
    assert [row[:3] for row in rows] == [["int8, .pte", "mobile export", "2.48"], ["int8, .pte", "backends", "3.00"]]
    assert [link["href"] for link in region.select("a")] == ["mobile-export.html", "backends.html"]
    assert all(heading.get_text() for heading in region.select("thead th")[:9])


def left_of(mark: Tag, circle: int, line: float) -> bool:
    return float(str(mark.select("circle")[circle]["cx"]).rstrip("%")) < line


def test_what_int8_loses_is_left_of_the_line() -> None:
    figure = shown(model(), model(model="slow", best=SLOWER, paired=FEW))
    heavy = [str(line["x1"]).rstrip("%") for line in figure.select('line[stroke-width="1.5"]')]
    _, speed, quality = map(float, heavy)
    first, second = figure.select(".qb-mark")
    assert [left_of(first, i, speed) for i in (1, 2)] == [False, False]
    assert [left_of(second, i, speed) for i in (1, 2)] == [False, True]
    assert left_of(second, 3, quality)


def test_a_loss_beyond_the_panel_and_a_missing_pair_are_written() -> None:
    ruined, unpaired = shown(model(paired=RUINED), model(model="z", paired=None, best=SLOWER)).select(".qb-mark")
    assert "◂ −48.5" in ruined.get_text()
    assert "not paired" in unpaired.get_text()
    assert len(ruined.select("circle")) == len(unpaired.select("circle")) == 3


def test_everything_is_drawn_inside_the_picture() -> None:
    slow = benchmark.Ratio(0.02, 0.01, 0.9, "")
    figure = shown(model(best=slow, speed=slow, float_mb=50.0), model(size_mb=20.0), model(paired=RUINED))
    places = [str(tag[name]) for tag in figure.select("svg *") for name in ("x1", "x2", "cx") if tag.has_attr(name)]
    assert places
    assert all(0 <= float(place.rstrip("%")) <= 100 for place in places)


def test_names_are_escaped() -> None:
    assert "<i>" not in str(compare_plot.plot([model(model="<i>'\"")], "Fifteen letters.", "A caption.").data)
    assert "<i>" not in str(compare_plot.show_table([model(model="<i>")], "All models").data)


def test_two_plots_share_no_id_and_ask_no_host() -> None:
    first, second = (shown(model()).select_one(".qb-compare") for _ in range(2))
    assert first is not None
    assert second is not None
    assert first["id"] != second["id"]
    assert "http" not in str(first).replace("http://www.w3.org/2000/svg", "")


def test_without_scripts_it_is_a_picture_with_its_words() -> None:
    made = str(compare_plot.plot([model()], "Size, speed and quality of one.", "A caption.").data)
    found = BeautifulSoup(still(made), "html.parser")
    assert found.img is not None
    assert (found.img["alt"], found.img["width"]) == ("Size, speed and quality of one.", "760")
    assert not found.select("script, output, .qb-hint"), "nothing that promises to answer a pointer"


def test_the_script_is_short() -> None:
    script = (ROOT / "qhelpers" / "book" / "compare_plot.js").read_text()
    assert len(script.splitlines()) <= 60
    assert json.dumps(script).count("</script") == 0
