"""The digits: splits that never overlap, and images that are read or refused."""

import hashlib
from pathlib import Path

import pytest
import torch

from qhelpers.tasks import checkpoints, digits


def test_splits_are_disjoint_and_complete() -> None:
    parts = [set(digits.split_indices(name).tolist()) for name in digits.PER_CLASS]
    assert [len(part) for part in parts] == [3500, 500, 1000]
    assert set.union(*parts) == set(range(5000))


def test_splits_do_not_share_an_image() -> None:
    seen: set[bytes] = set()
    for name in digits.PER_CLASS:
        images = {bytes(image.numpy().tobytes()) for image in digits.dataset(name).tensors[0]}
        assert not images & seen
        seen |= images


def test_splits_hold_each_digit_equally_often() -> None:
    for name, count in digits.PER_CLASS.items():
        assert torch.bincount(digits.dataset(name).tensors[1]).tolist() == [count] * 10


def test_the_split_is_the_one_that_the_checkpoints_were_trained_on() -> None:
    digest = hashlib.sha256(digits.split_indices("test").numpy().tobytes()).hexdigest()
    assert digest.startswith("fb9bf8320af41495")


def test_calibration_uses_training_images_only() -> None:
    training = digits.prepare_images(digits.dataset("train").tensors[0])
    sums = {round(float(image.sum()), 3) for image in training}
    images = torch.cat([batch for batch, _ in digits.calibration_batches(64)])
    assert len(images) == 64
    assert all(round(float(image.sum()), 3) in sums for image in images)


def test_loader_covers_all_digits_when_limited() -> None:
    labels = torch.cat([labels for _, labels in digits.loader("validation", limit=20)])
    assert sorted(labels.tolist()) == sorted(list(range(10)) * 2)


@pytest.mark.parametrize("limit", [0, -1, 501])
def test_loader_rejects_an_impossible_limit(limit: int) -> None:
    with pytest.raises(ValueError, match="between 1 and 500"):
        digits.loader("validation", limit=limit)


def test_unknown_split_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"no split 'holdout'"):
        digits.split_indices("holdout")  # type: ignore[arg-type]


def test_black_and_white_become_the_ends_of_the_normalized_range() -> None:
    raw = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None].expand(2, 28, 28)
    black, white = digits.prepare_images(raw)
    expected = [(value - mean) / std for value in (0, 1) for mean, std in zip(digits.MEAN, digits.STD, strict=True)]
    found = torch.cat([black[:, 0, 0], white[:, 0, 0]])
    torch.testing.assert_close(found, torch.tensor(expected))


def test_a_training_batch_follows_from_its_arguments_alone() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        before = torch.get_rng_state()
        one, labels = digits.training_batch(3, batch_size=4, seed=1)
        assert torch.equal(before, torch.get_rng_state())
        torch.manual_seed(6)
        again, _ = digits.training_batch(3, batch_size=4, seed=1)
    assert torch.equal(one, again)
    assert not torch.equal(one, digits.training_batch(3, batch_size=4, seed=2)[0])
    assert labels.shape == (4,)


def test_a_pass_shows_each_digit_once() -> None:
    seen = torch.cat([digits.training_batch(step, batch_size=5, images_per_class=1)[1] for step in range(2)])
    assert seen.sort()[0].tolist() == list(range(10))


def test_few_digits_are_equally_many_of_each_class_and_depend_on_the_seed() -> None:
    labels = digits.balanced_subset(5, seed=1).tensors[1]
    assert torch.bincount(labels).tolist() == [5] * 10
    assert not torch.equal(digits.balanced_positions(5, seed=1), digits.balanced_positions(5, seed=2))
    assert digits.balanced_positions(350).unique().shape == (3500,)


def test_too_many_or_too_few_digits_are_refused() -> None:
    with pytest.raises(ValueError, match="between 1 and 350; got 351"):
        digits.balanced_positions(351)
    with pytest.raises(ValueError, match="at least as many digits; there are 10"):
        digits.training_batch(0, batch_size=16, images_per_class=1)


def test_altered_features_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "SHA256SUMS").write_text((checkpoints.WEIGHTS_FOLDER / "SHA256SUMS").read_text())
    monkeypatch.setattr(checkpoints, "WEIGHTS_FOLDER", tmp_path)
    digits.features.cache_clear()
    with pytest.raises(checkpoints.CheckpointError, match=r"There is no checkpoint .*digit_features\.npz"):
        digits.features("test")
    (tmp_path / "digit_features.npz").write_bytes(b"other")
    with pytest.raises(checkpoints.CheckpointError, match=r"digit_features\.npz has SHA-256 .*, recorded is"):
        digits.features("test")
