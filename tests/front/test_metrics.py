"""Quality figures against values worked out by hand."""

import math

import pytest
import torch

from qhelpers import guards, metrics


def test_wilson_interval_matches_the_formula() -> None:
    hits, n, z = 981, 1000, 1.959963984540054
    share = hits / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    assert metrics.wilson_interval(hits, n) == pytest.approx((100 * (middle - half), 100 * (middle + half)))


@pytest.mark.parametrize(("hits", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_interval_rejects_impossible_counts(hits: int, n: int) -> None:
    with pytest.raises(ValueError, match="0 <= hits <= n"):
        metrics.wilson_interval(hits, n)


def test_top1_over_several_batches() -> None:
    batches = [(torch.eye(3), torch.tensor([0, 1, 0])), (torch.eye(3), torch.tensor([0, 1, 2]))]
    share = metrics.top1(lambda x: x, batches)
    assert (share.hits, share.n) == (5, 6)


def test_agreement_ignores_labels() -> None:
    share = metrics.agreement(lambda x: x, lambda x: x + 1, [(torch.eye(3), torch.tensor([2, 2, 2]))])
    assert share.percent == 100


def test_nothing_to_measure_is_rejected() -> None:
    with pytest.raises(ValueError, match="no image"):
        metrics.top1(lambda x: x, [])


def test_sqnr_of_equal_tensors_is_infinite() -> None:
    assert metrics.sqnr_db(torch.ones(3), torch.ones(3)) == math.inf


def test_sqnr_rejects_different_shapes() -> None:
    with pytest.raises(ValueError, match="Shapes differ"):
        metrics.sqnr_db(torch.ones(3), torch.ones(4))


def test_a_model_in_training_mode_is_refused() -> None:
    batch = [(torch.eye(3), torch.tensor([0, 1, 2]))]
    model = torch.nn.Sequential(torch.nn.Dropout())
    for measure in (lambda: metrics.top1(model, batch), lambda: metrics.agreement(lambda x: x, model, batch)):
        with pytest.raises(guards.GuardError, match="training mode"):
            measure()
