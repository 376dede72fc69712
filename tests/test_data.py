"""The digits: splits that never overlap, and images that are read or refused."""

import hashlib
import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from qhelpers import data


def test_splits_are_disjoint_and_complete() -> None:
    parts = [set(data.split_indices(name).tolist()) for name in data.PER_CLASS]
    assert [len(part) for part in parts] == [3500, 500, 1000]
    assert set.union(*parts) == set(range(5000))


def test_splits_do_not_share_an_image() -> None:
    seen: set[bytes] = set()
    for name in data.PER_CLASS:
        images = {bytes(image.numpy().tobytes()) for image in data.digits(name).tensors[0]}
        assert not images & seen
        seen |= images


def test_splits_hold_each_digit_equally_often() -> None:
    for name, count in data.PER_CLASS.items():
        assert torch.bincount(data.digits(name).tensors[1]).tolist() == [count] * 10


def test_the_split_is_the_one_that_the_checkpoints_were_trained_on() -> None:
    digest = hashlib.sha256(data.split_indices("test").numpy().tobytes()).hexdigest()
    assert digest.startswith("fb9bf8320af41495")


def test_calibration_uses_training_images_only() -> None:
    training = data.prepare_images(data.digits("train").tensors[0])
    sums = {round(float(image.sum()), 3) for image in training}
    images = torch.cat([batch for batch, _ in data.calibration_batches(64)])
    assert len(images) == 64
    assert all(round(float(image.sum()), 3) in sums for image in images)


def test_loader_covers_all_digits_when_limited() -> None:
    labels = torch.cat([labels for _, labels in data.digit_loader("validation", limit=20)])
    assert sorted(labels.tolist()) == sorted(list(range(10)) * 2)


@pytest.mark.parametrize("limit", [0, -1, 501])
def test_loader_rejects_an_impossible_limit(limit: int) -> None:
    with pytest.raises(ValueError, match="between 1 and 500"):
        data.digit_loader("validation", limit=limit)


def test_unknown_split_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"no split 'holdout'"):
        data.split_indices("holdout")  # type: ignore[arg-type]


def test_black_and_white_become_the_ends_of_the_normalized_range() -> None:
    raw = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None].expand(2, 28, 28)
    black, white = data.prepare_images(raw)
    expected = [(value - mean) / std for value in (0, 1) for mean, std in zip(data.MEAN, data.STD, strict=True)]
    found = torch.cat([black[:, 0, 0], white[:, 0, 0]])
    torch.testing.assert_close(found, torch.tensor(expected))


def test_a_truncated_image_is_refused() -> None:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "JPEG")
    with pytest.raises(data.ImageError, match="The image cannot be read as an image: image file is truncated"):
        data.read_image(io.BytesIO(buffer.getvalue()[:-200]))


def test_text_is_refused_as_an_image(tmp_path: object) -> None:
    with pytest.raises(data.ImageError, match="format is not known"):
        data.read_image(io.BytesIO(b"not an image"))


def test_an_image_is_read_as_rgb() -> None:
    buffer = io.BytesIO()
    Image.new("L", (4, 3), 7).save(buffer, "PNG")
    buffer.seek(0)
    assert data.read_image(buffer).mode == "RGB"


def test_a_training_batch_follows_from_its_arguments_alone() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        before = torch.get_rng_state()
        one, labels = data.training_batch(3, batch_size=4, seed=1)
        assert torch.equal(before, torch.get_rng_state())
        torch.manual_seed(6)
        again, _ = data.training_batch(3, batch_size=4, seed=1)
    assert torch.equal(one, again)
    assert not torch.equal(one, data.training_batch(3, batch_size=4, seed=2)[0])
    assert labels.shape == (4,)


def test_a_pass_shows_each_digit_once() -> None:
    seen = torch.cat([data.training_batch(step, batch_size=5, images_per_class=1)[1] for step in range(2)])
    assert seen.sort()[0].tolist() == list(range(10))


def test_few_digits_are_equally_many_of_each_class_and_depend_on_the_seed() -> None:
    labels = data.few_digits(5, seed=1).tensors[1]
    assert torch.bincount(labels).tolist() == [5] * 10
    assert not torch.equal(data.few_positions(5, seed=1), data.few_positions(5, seed=2))
    assert data.few_positions(350).unique().shape == (3500,)


def test_too_many_or_too_few_digits_are_refused() -> None:
    with pytest.raises(ValueError, match="between 1 and 350; got 351"):
        data.few_positions(351)
    with pytest.raises(ValueError, match="at least as many digits; there are 10"):
        data.training_batch(0, batch_size=16, images_per_class=1)


def test_altered_features_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "SHA256SUMS").write_text((data.FEATURES.parent / "SHA256SUMS").read_text())
    monkeypatch.setattr(data, "FEATURES", tmp_path / data.FEATURES.name)
    data.digit_features.cache_clear()
    with pytest.raises(data.FeaturesError, match="missing or altered"):
        data.digit_features("test")
    data.FEATURES.write_bytes(b"other")
    with pytest.raises(data.FeaturesError, match="missing or altered"):
        data.digit_features("test")
