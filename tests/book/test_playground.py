"""What is packed into the playground's page."""

import io
import json
import re
from base64 import b64decode

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from PIL import Image
from torch import nn

from qhelpers.book import playground


@pytest.fixture
def small(random_weights: None) -> nn.Sequential:
    layers = nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 3, 1, 1, groups=2), nn.Flatten())
    return layers.half().float()


def test_a_network_is_packed_with_its_shapes_and_every_number(small: nn.Sequential) -> None:
    packed = playground.packed_network(small)
    first, second = packed["layers"]
    assert (first["size"], first["out"], first["relu"], first["depthwise"]) == (28, 14, True, False)
    assert (second["size"], second["out"], second["relu"], second["depthwise"]) == (14, 14, False, True)
    numbers = np.frombuffer(b64decode(packed["weights"]), "<f2")
    assert np.array_equal(numbers, torch.cat([value.flatten() for value in small.state_dict().values()]).numpy())


def test_a_layer_that_the_page_does_not_run_is_refused(random_weights: None) -> None:
    with pytest.raises(playground.PlaygroundError, match="1 is a Sigmoid: the page runs convolutions and ReLUs only"):
        playground.packed_network(nn.Sequential(nn.Conv2d(1, 1, 1).half().float(), nn.Sigmoid()))


def test_weights_that_float16_would_round_are_refused(small: nn.Sequential) -> None:
    with torch.no_grad():
        small[0].bias[0] = 1 + 2**-12
    with pytest.raises(playground.PlaygroundError, match="no float16"):
        playground.packed_network(small)


def test_digits_are_packed_without_loss() -> None:
    images = torch.randint(0, 256, (50, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    packed = playground.packed_digits(images)
    with Image.open(io.BytesIO(b64decode(packed["picture"].split(",")[1]))) as opened:
        pixels = np.asarray(opened)[..., 0]
    assert np.array_equal(pixels[28:56, 28:56], images[26])
    assert packed["sum"] == images.long().sum()


@pytest.mark.parametrize("count", [0, 24])
def test_digits_that_fill_no_row_are_refused(count: int) -> None:
    with pytest.raises(playground.PlaygroundError, match=f"{count} does not fill rows of 25 digits"):
        playground.packed_digits(torch.zeros(count, 28, 28, dtype=torch.uint8))


def test_the_page_holds_its_data_a_row_for_each_layer_and_the_picture(small: nn.Sequential) -> None:
    data = playground.packed_network(small) | {"note": "</script>"}
    soup = BeautifulSoup(playground.page(data, "<svg></svg>", "What < it shows.").data, "html.parser")
    (packed,) = soup.select("#pg-data")
    assert json.loads(packed.string or "") == data
    assert [row["id"] for row in soup.select(".pg-layers tbody tr")] == ["pg-layer-0", "pg-layer-2"]
    assert [option["value"] for option in soup.select("#pg-layer option")] == ["", "0", "2"]
    assert soup.select_one("#pg-still figcaption").get_text() == "What < it shows."
    assert "<!--" not in str(soup)
    assert not soup.select("[id]:not([id^=pg])"), "ids of its own"


@pytest.mark.parametrize(("still", "caption"), [(" ", "words"), ("<svg></svg>", "")])
def test_a_page_without_picture_or_words_is_refused(still: str, caption: str) -> None:
    with pytest.raises(playground.PlaygroundError, match="give both"):
        playground.page({"layers": []}, still, caption)


def test_the_picture_shows_a_digit_that_rounding_loses(random_weights: None) -> None:
    net = nn.Sequential(nn.Conv2d(1, 10, 28), nn.Flatten())
    images = torch.randint(0, 256, (20, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = net(images[:, None] / 255).argmax(1)
    before = net[0].weight.clone()
    svg, words = playground.picture(net, images, labels, bits=2)
    assert re.fullmatch(r"float says (\d), weights of 2 bits say (?!\1)\d", words)
    assert words in svg
    assert torch.equal(net[0].weight, before), "it rounds a copy"
    with pytest.raises(playground.PlaygroundError, match="16 bits lose none"):
        playground.picture(net, images, labels, bits=16)
