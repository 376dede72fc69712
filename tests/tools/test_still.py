"""Outputs of a copy that nobody has trusted yet: pictures, and every part of a slider or switcher."""

import xml.etree.ElementTree as ET
from base64 import b64decode

from bs4 import BeautifulSoup

from qhelpers.book import figures, playground, widgets
from tools.still import still


def drawn(words: str) -> str:
    figure, axes = figures.new_figure(2, 1)
    axes.plot([0, 1])
    return figures.svg(figure, words)


def test_a_drawing_becomes_an_image_that_keeps_its_words_and_its_width() -> None:
    found = BeautifulSoup(still(figures.show(drawn("A line < 1."), "A line.", "A caption.").data), "html.parser")
    image = found.select_one("figure img")
    assert image is not None
    assert (image["alt"], image["width"]) == ("A line < 1.", "192")
    assert found.find("svg") is None
    kind, data = str(image["src"]).split(",")
    assert kind == "data:image/svg+xml;base64"
    picture = b64decode(data).decode()
    assert ET.fromstring(picture)[0].get("fill") == "white", "it is well-formed, and its paper is white"
    assert "currentColor" not in picture
    assert "A caption." in found.get_text()


def test_a_slider_becomes_a_list_of_its_frames() -> None:
    slider = widgets.frame_slider([drawn("One."), drawn("Two.")], ["one & 1", "two"], "Numbers.", "a number").data
    found = BeautifulSoup(still(slider), "html.parser")
    parts = found.find_all("details")
    assert [(part.summary.get_text(), part.img["alt"]) for part in parts] == [("one & 1", "One."), ("two", "Two.")]
    assert [part.has_attr("open") for part in parts] == [True, False]
    assert not found.find_all(["script", "input", "label"])
    assert not found.select("[hidden]")
    assert found.figcaption.get_text() == "Numbers."


def test_a_switcher_becomes_a_list_of_its_panels() -> None:
    switcher = widgets.switcher({"cat": "<pre>a\n  b</pre>", "dog": "<b>dog</b>"}, "Two animals.").data
    found = BeautifulSoup(still(switcher), "html.parser")
    assert [(part.summary.get_text(), part.div.decode_contents()) for part in found.find_all("details")] == [
        ("cat", "<pre>a\n  b</pre>"),
        ("dog", "<b>dog</b>"),
    ]
    assert not found.find_all(["style", "input", "label"])


def test_of_the_playground_its_picture_is_left() -> None:
    page = playground.page({"layers": [], "weights": ""}, drawn("A digit."), "What it shows.").data
    found = BeautifulSoup(still(page), "html.parser")
    assert [image["alt"] for image in found.find_all("img")] == ["A digit."]
    assert found.get_text().strip() == "What it shows."
    assert not found.find_all(["script", "link", "canvas", "input", "noscript"])


def test_a_table_is_left_as_it_is() -> None:
    table = "<style>td{color:red}</style><table><TR><td>1<td>2</table>"
    assert still(table) == table
