"""A stranger's loaders are gone through once, in every form that a batch may have, or refused by name."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms._presets import ImageClassification

from qhelpers.check import calls, image_folder, inputs
from qhelpers.check.calls import Call
from qhelpers.check.errors import DataError


class Takes(nn.Module):
    """A model that is looked at for its forward only."""

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return ids


class Breaks:
    """A loader whose dataset fails in the middle."""

    def __iter__(self) -> Iterator[Tensor]:
        yield torch.zeros(2, 4)
        raise KeyError("image_7")


MODEL = Takes()
FOUR, LABELS = torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("loader", "least", "words"),
    [
        ([], 1, "test yielded no sample; it needs at least 1"),
        ([torch.zeros(0, 4)], 1, "test yielded no sample"),
        ([torch.zeros(1, 4)], 2, "test yielded 1 sample; it needs at least 2: a hundred are a good number"),
        ([FOUR], 3, "test yielded 2 samples; it needs at least 3"),
        (
            iter([FOUR]),
            1,
            "test must be a loader or a list of batches, to be gone through more than once; it is a list_",
        ),
        ((batch for batch in [FOUR]), 1, "it is a generator"),
        (None, 1, "it is a NoneType"),
        (FOUR, 1, r"it is a Tensor \(.*a tensor into a list\)"),
        ({"ids": FOUR}, 1, "it is a dict"),
        (TensorDataset(FOUR), 1, r"a TensorDataset \(a dataset goes into a DataLoader"),
        (["a text"], 1, "test: A batch must be a tensor, a tuple or a dict of tensors; it is a str"),
        (
            [{"ids": FOUR, "idx": LABELS}],
            1,
            r"test: Takes\.forward\(ids, mask\) cannot take ids: .* keyword argument 'idx'",
        ),
        ([torch.tensor(1.0)], 1, "test: a batch is a single number"),
        ([FOUR, torch.zeros(2, 5)], 1, r"test: A batch has the shape \(2, 5\), the example \(2, 4\): .* pad sequences"),
        ([FOUR, FOUR.double()], 1, r"test: A batch gives float64 of shape \(2, 4\); the example is float32"),
        ([FOUR, {"ids": FOUR}], 1, r"test: A batch gives ids: float32 of shape \(2, 4\); the example is float32 of"),
        (Breaks(), 1, "test cannot be read: KeyError: 'image_7'"),
        (
            [(FOUR, torch.zeros(2, 3))],
            1,
            r"2 inputs came with labels of shape \(2, 3\), float32\. If .* evaluate=…; if",
        ),
        ([(FOUR, ["a", "b"])], 1, "test: labels must be integers; torch cannot read this list. If it is no classifier"),
        ([(FOUR, [0.5, 1.5])], 1, r"labels of shape \(2,\), float32"),
        ([(FOUR, [0j, 1j])], 1, r"labels of shape \(2,\), complex64"),
        ([(FOUR, {"boxes": FOUR})], 1, "torch cannot read this dict. If it is no classifier, give evaluate=…"),
        ([{"ids": FOUR, "labels": FOUR}], 1, r"labels of shape \(2, 4\), float32"),
        ([((FOUR, FOUR), FOUR)], 1, r"labels of shape \(2, 4\), float32"),
        ([(FOUR, FOUR, LABELS)], 1, r"labels of shape \(2, 4\), .* if this is an input, give example=\(…\) with all"),
        ([(FOUR, 1)], 1, r"labels of shape \(\), int64\. Is it a dataset\? It goes into a DataLoader"),
    ],
)
def test_loaders_are_refused_by_name(loader: Any, least: int, words: str) -> None:
    with pytest.raises(DataError, match=words):
        inputs.checked_data(loader, "test", MODEL, least=least)


def test_all_batches_are_compared_with_the_example() -> None:
    with pytest.raises(DataError, match=r"test: A batch has the shape \(2, 4\), the example \(1, 5\)"):
        inputs.checked_data([FOUR], "test", MODEL, Call((torch.zeros(1, 5),)))
    data = inputs.checked_data([(FOUR, FOUR, LABELS)], "test", MODEL, Call((FOUR[:1], FOUR[:1])))
    assert [call.shapes for call in data.calls()] == [((2, 4), (2, 4))]
    assert torch.equal(data.labels, LABELS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "form",
    [
        lambda x, y: (x, y),
        lambda x, y: [x, y],
        lambda x, y: {"ids": x, "labels": y},
        lambda x, y: ({"ids": x}, y),
        lambda x, y: ((x,), y),
    ],
    ids=["tuple", "list", "dict", "dict and labels", "nested"],
)
def test_a_loader_must_repeat_its_inputs_and_labels(form: Any) -> None:
    def collate(samples: list[Any]) -> Any:
        return form(*map(torch.stack, zip(*samples, strict=True)))

    values, labels = torch.arange(64.0)[:, None], torch.arange(64)
    for parts in ((values, torch.zeros(64, dtype=torch.int64)), (torch.zeros(64, 1), labels)):
        generator = torch.Generator()
        shuffled = DataLoader(TensorDataset(*parts), 8, shuffle=True, generator=generator, collate_fn=collate)
        assert inputs.checked_data(shuffled, "calibration", MODEL).n == 64
        with pytest.raises(DataError, match=r"^test yields other .* the second time: shuffle=False, no random augmen"):
            inputs.checked_data(shuffled, "test", MODEL, repeats=True)
        with torch.random.fork_rng(devices=[]):
            in_order = DataLoader(TensorDataset(*parts), 7, collate_fn=collate)
            data = inputs.checked_data(in_order, "test", MODEL, repeats=True)
            assert torch.equal(torch.cat([call.tensors[0] for call in data.calls()]), parts[0])
            assert torch.equal(torch.cat([call.tensors[0] for call in data.calls()]), parts[0])
        assert torch.equal(data.labels, parts[1])  # type: ignore[arg-type]
        assert (data.name, data.n, data.first.n, data.notes) == ("test", 64, 7, ())


def test_labels_may_be_a_list() -> None:
    data = inputs.checked_data([(FOUR, [0, 1])], "test", MODEL, repeats=True)
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1]


def test_labels_must_be_there_for_every_batch() -> None:
    batch = (FOUR, LABELS)
    assert inputs.checked_data([batch], "test", MODEL).labels is not None
    assert inputs.checked_data([batch, FOUR], "test", MODEL).labels is None
    assert inputs.checked_data([FOUR, batch], "test", MODEL).labels is None
    assert inputs.checked_data([(FOUR, None)], "test", MODEL).labels is None


def test_labels_that_nobody_reads_may_be_anything() -> None:
    loader = [(FOUR, [{"boxes": torch.zeros(3, 4)}, "text"])]
    data = inputs.checked_data(loader, "calibration", MODEL, labelled=False, repeats=True)
    assert (data.n, data.labels) == (2, None)


def test_batches_without_a_sample_are_passed_over() -> None:
    data = inputs.checked_data([torch.zeros(0, 4), FOUR, torch.zeros(0, 4)], "test", MODEL)
    assert (data.n, data.first.n, len(list(data.calls()))) == (2, 2, 1)


def test_a_last_short_batch_and_keywords_in_any_order_are_taken() -> None:
    loader = [{"ids": FOUR, "mask": FOUR + 1}, {"mask": FOUR[:1] + 1, "ids": FOUR[:1]}]
    data = inputs.checked_data(loader, "test", MODEL)
    assert [[float(one.sum()) for one in call.tensors] for call in data.calls()] == [[0.0, 8.0], [0.0, 4.0]]


# --- a folder of images ----------------------------------------------------------------------------------------


def images(folder: Path, n: int) -> None:
    folder.mkdir(parents=True)
    for i in range(n):
        Image.new("RGB", (40 + i, 30), (250, 10 * i, 0)).save(folder / f"{i}.png")


def test_a_folder_for_each_class_gives_images_and_labels(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        images(tmp_path / name, 4)
    data = inputs.checked_data(str(tmp_path), "test", MODEL, Call((torch.zeros(1, 3, 24, 32),)), repeats=True)
    assert (data.n, data.first.shapes) == (8, ((8, 3, 24, 32),))
    assert data.labels is not None
    assert data.labels.bincount().tolist() == [4, 4]
    assert 0 < data.labels[:4].sum() < 4, "the first part has both classes"
    (note,) = data.notes
    assert "8 images were scaled, cut to 24 x 32 and normalized as usual for ImageNet" in note
    assert "its 2 folders are the classes 0 to 1, in alphabetical order" in note


def test_images_in_one_folder_have_no_labels_and_the_usual_preprocessing(tmp_path: Path) -> None:
    images(tmp_path / "all", 1)
    (tmp_path / "all" / "notes.txt").write_text("no image")
    data = inputs.checked_data(tmp_path / "all", "calibration", MODEL)
    assert (data.n, data.labels) == (1, None)
    assert "they have no labels. If the model was trained otherwise, give a DataLoader." in data.notes[0]
    usual = ImageClassification(crop_size=224, resize_size=256, antialias=True)
    torch.testing.assert_close(data.first.tensors[0][0], usual(Image.open(tmp_path / "all" / "0.png")))


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^test: There is no folder .*nowhere\.$"):
        inputs.checked_data(tmp_path / "nowhere", "test", MODEL)
    with pytest.raises(DataError, match=r"^test: There is no image in .*: no \.jpg, "):
        inputs.checked_data(tmp_path, "test", MODEL)
    (tmp_path / "empty class").mkdir()
    with pytest.raises(DataError, match="There is no image in"):
        image_folder.images_in(tmp_path)


def test_images_do_not_fit_every_model_and_may_be_broken(tmp_path: Path) -> None:
    images(tmp_path / "all", 1)
    with pytest.raises(
        DataError, match=r"gives RGB images, \(n, 3, height, width\); the example has the shape \(1, 1, 8"
    ):
        inputs.checked_data(tmp_path / "all", "test", MODEL, Call((torch.zeros(1, 1, 8, 8),)))
    (tmp_path / "all" / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="test cannot be read: UnidentifiedImageError: cannot identify image file"):
        inputs.checked_data(tmp_path / "all", "test", MODEL)


def test_what_was_read_can_be_cut_to_the_size_of_an_example() -> None:
    data = inputs.checked_data([(FOUR, LABELS)], "test", MODEL)
    example = data.first.sized(1)
    assert example.shapes == ((1, 4),)
    assert [n for call in data.calls() for _, n in calls.pieces(call.tensors, example.shapes)] == [1, 1]
