"""Quality figures against values worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

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
    with pytest.raises(guards.GuardError, match="training mode"):
        metrics.top1(model, batch)


# --- pairs -------------------------------------------------------------------------------------------


def outcomes(both: int, lost: int, won: int, neither: int) -> tuple[Tensor, Tensor, Tensor]:
    """Answers of two models and labels with so many outcomes of each kind."""
    right_one = [True] * both + [True] * lost + [False] * won + [False] * neither
    right_two = [True] * both + [False] * lost + [True] * won + [False] * neither
    labels = torch.arange(len(right_one)) % 5
    one, two = (
        torch.where(torch.tensor(right, dtype=torch.bool), labels, labels + 1) for right in (right_one, right_two)
    )
    return one, two, labels


def test_paired_agrees_with_published_figures() -> None:
    """Fagerland, Lydersen and Laake 2014, table II: airway hyper-responsiveness before and after transplantation."""
    found = metrics.paired(*outcomes(1, 1, 7, 12))
    assert (found.lost, found.won, found.n) == (1, 7, 21)
    assert found.difference == pytest.approx(28.6, abs=0.05)
    assert found.interval == pytest.approx((2.6, 51.7), abs=0.05)
    assert found.p_value == pytest.approx(0.0703, abs=1e-4)
    assert not found.shown


def test_paired_turns_round_with_its_arguments() -> None:
    one, two, labels = outcomes(970, 20, 4, 6)
    loss, gain = metrics.paired(one, two, labels), metrics.paired(two, one, labels)
    assert (loss.worse, gain.worse, gain.shown) == (True, False, True)
    assert (loss.difference, loss.p_value) == (-gain.difference, gain.p_value)
    assert loss.interval == pytest.approx((-gain.interval[1], -gain.interval[0]))
    assert loss.interval[0] < loss.bound < loss.difference


def test_overlapping_intervals_hide_what_pairs_show() -> None:
    one, two, labels = outcomes(980, 13, 1, 6)
    first, second = (metrics.wilson_interval(int((answers == labels).sum()), 1000) for answers in (one, two))
    assert second[1] > first[0], "the intervals overlap"
    assert metrics.paired(one, two, labels).shown


def test_without_a_changed_answer_the_interval_is_not_empty() -> None:
    found = metrics.paired(*outcomes(98, 0, 0, 2))
    z2 = 1.959964**2
    assert found.interval == pytest.approx((-100 * z2 / (100 + z2), 100 * z2 / (100 + z2)), abs=1e-3)
    assert found.p_value == 1


def test_paired_takes_logits_too() -> None:
    one, two, labels = outcomes(5, 2, 1, 2)
    logits = torch.nn.functional.one_hot(one, 6).double()
    assert metrics.paired(logits, two, labels) == metrics.paired(one, two, labels)


@pytest.mark.parametrize("counts", [(10, 0, 0, 0), (0, 0, 0, 10), (0, 10, 0, 0), (0, 0, 10, 0), (0, 0, 0, 0)])
def test_outcomes_of_one_kind_are_no_evidence(counts: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="have the same outcome"):
        metrics.paired(*outcomes(*counts))


def test_pairs_of_different_lengths_are_refused() -> None:
    one, two, labels = outcomes(5, 2, 1, 2)
    for wrong in ((one[1:], two, labels), (one, two[1:], labels), (one, two, labels[1:])):
        with pytest.raises(ValueError, match="the same images in the same order"):
            metrics.paired(*wrong)


def test_answers_of_another_order_are_refused_if_the_caller_says_which() -> None:
    one, two, labels = outcomes(5, 2, 1, 2)
    order = torch.arange(len(labels))
    assert metrics.paired(one, two, labels, ids=(order, order)) == metrics.paired(one, two, labels)
    with pytest.raises(ValueError, match="another order: first at place 0"):
        metrics.paired(one, two, labels, ids=(order, order.flip(0)))


LOGITS = torch.eye(4).repeat(3, 1)[:10]


@pytest.mark.parametrize("labels", [torch.zeros(10, 1), torch.eye(4).repeat(3, 1)[:10], torch.zeros(10, 2, 2)])
def test_labels_that_would_be_broadcast_are_refused(labels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"Each answer needs one label: answers of shape \(10, 4\)"):
        metrics.paired(LOGITS, LOGITS, labels)
    with pytest.raises(ValueError, match="Each answer needs one label"):
        metrics.top1(lambda x: x, [(LOGITS, labels)])


def test_one_label_for_many_images_is_refused() -> None:
    with pytest.raises(ValueError, match="Each answer needs one label"):
        metrics.top1(lambda x: x, [(LOGITS, torch.zeros(1))])


def test_models_that_answer_another_number_of_images_are_refused() -> None:
    with pytest.raises(ValueError, match="10 images need as many answers; got \\(1,\\)"):
        metrics.top1(lambda x: x[:1], [(LOGITS, torch.zeros(1))])


@pytest.mark.parametrize("ids", [(range(10), range(9)), (range(2), range(2))])
def test_ids_of_another_number_are_refused(ids: tuple[range, range]) -> None:
    with pytest.raises(ValueError, match="10 pairs need as many ids"):
        metrics.paired(LOGITS, LOGITS, torch.arange(10), ids)


def test_ids_may_be_words() -> None:
    names = [f"image {i}" for i in range(10)]
    assert metrics.paired(LOGITS, LOGITS, torch.arange(10) % 5, (names, names)).n == 10


def test_sqnr_of_infinite_or_overwhelming_noise_is_a_number() -> None:
    assert metrics.sqnr_db(torch.ones(3), torch.tensor([1.0, math.inf, 1.0])) == -math.inf
    tiny, huge = torch.full((2,), 1e-100, dtype=torch.double), torch.full((2,), 1e100, dtype=torch.double)
    assert metrics.sqnr_db(tiny, huge) == pytest.approx(-4000)


@pytest.mark.parametrize("nothing", [torch.ones(0), torch.ones(2, dtype=torch.complex64)])
def test_sqnr_of_nothing_or_of_complex_numbers_is_refused(nothing: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="SQNR needs real numbers, at least one"):
        metrics.sqnr_db(nothing, nothing)
