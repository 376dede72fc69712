"""What is lost, how sure that is, and whether the budget is kept, from answers that are known beforehand."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qhelpers.check import adapter, inputs, quality
from qhelpers.check.calls import Call
from qhelpers.check.errors import CannotRunError

N = 40
Change = Callable[[Tensor], Tensor]


class Alike(nn.Module):
    """Gives what it is given, in another shape."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), *self.shape)


def values(width: int = 4) -> Tensor:
    return torch.randn(N, width, generator=torch.Generator().manual_seed(0))


def judge(model: nn.Module, given: Tensor, labels: Tensor | None = None, batch: int = 1, **more: Any) -> quality.Judge:
    batches = list(given.split(16)) if labels is None else list(zip(given.split(16), labels.split(16), strict=True))
    call = Call((given[:1],)).sized(batch)
    data = inputs.checked_data(batches, "validation", model, call)
    return quality.Judge(adapter.Flat(model, call), data, show=False, **more)


def classifier(labels: bool = True, **more: Any) -> quality.Judge:
    """All of float's answers are right; the classes are 0 to 3."""
    given = values()
    return judge(Alike(4), given, given.argmax(1) if labels else None, **more)


def changed(count: int) -> Callable[..., tuple[Tensor, ...]]:
    """A file that is called sample by sample, and gives another class for the first ones."""
    seen = 0

    def run(x: Tensor) -> tuple[Tensor, ...]:
        nonlocal seen
        seen += 1
        return (x.roll(1, 1) if seen <= count else x,)

    return run


def always(change: Change) -> Callable[..., tuple[Tensor, ...]]:
    return lambda *tensors: (change(*tensors),)


# --- classes -----------------------------------------------------------------------------------------


def test_top_1_is_lost_in_points_with_an_interval_in_pairs_and_no_bound_where_choices_were_made() -> None:
    judged = classifier()
    found = judged.judge(changed(2))
    assert judged.kind == "top-1"
    assert (found.n, found.exact, found.found, found.lost, found.same_percent) == (N, 100.0, 95.0, 5.0, 95.0)
    assert found.interval is not None
    assert found.interval[0] < 5 < found.interval[1]
    assert found.bound is None
    last = classifier().judge(changed(2), chosen_on=False)
    assert last.bound is not None
    assert 5 < last.bound < found.interval[1], "one-sided: of 95 %, not of 97.5"


def test_the_last_piece_s_filling_is_no_sample() -> None:
    found = classifier(batch=3).judge(always(lambda x: x))
    assert (found.n, found.lost, found.sqnr_db) == (N, 0.0, math.inf)
    assert judge(Alike(4), values(), batch=3).exact.outputs[0].shape == (N, 4)


def test_where_all_pairs_have_one_outcome_there_is_no_interval_and_the_bound_depends_on_their_number() -> None:
    found = classifier().judge(always(lambda x: x), chosen_on=False)
    assert (found.lost, found.interval) == (0.0, None)
    assert found.bound == pytest.approx(100 * (1 - 0.05 ** (1 / N)))
    found = classifier().judge(changed(N), chosen_on=False)
    assert (found.lost, found.interval, found.bound) == (100.0, None, None)


def test_without_labels_it_is_the_share_of_answers_that_change_and_none_of_few_is_no_proof() -> None:
    judged = classifier(labels=False)
    assert judged.kind == "agreement"
    found = judged.judge(changed(2), chosen_on=False)
    assert (found.exact, found.found, found.lost) == (100.0, 95.0, 5.0)
    none = classifier(labels=False).judge(always(lambda x: x), chosen_on=False)
    assert none.lost == 0
    assert none.bound == pytest.approx(100 * (1 - 0.05 ** (1 / N))), "the exact bound of no event among n"
    assert none.interval == (0.0, pytest.approx(100 * (1 - 0.025 ** (1 / N))))


def test_one_input_is_enough_to_measure() -> None:
    found = judge(Alike(4), values()[:1]).judge(always(lambda x: x), chosen_on=False)
    assert (found.n, found.lost) == (1, 0.0)
    assert found.bound == pytest.approx(95.0)


def test_a_loss_of_just_the_budget_keeps_it() -> None:
    judged = classifier(budget=5.0)
    assert judged.keeps(judged.judge(changed(2)))
    judged = classifier(budget=4.9)
    assert not judged.keeps(judged.judge(changed(2)))


def test_without_labels_an_output_that_holds_noise_is_over_the_budget() -> None:
    """As the confidence beside the coordinates of a box: too small to change the largest output."""
    given = values() * torch.tensor([100.0, 100.0, 100.0, 0.1])
    judged = judge(Alike(4), given, budget=100.0)
    found = judged.judge(always(lambda x: x * torch.tensor([1.0, 1.0, 1.0, 0.0])))
    assert [row["channel"] for row in found.dead] == [3]
    assert found.sqnr_db > 50
    assert not judged.keeps(found)
    with_labels = judge(Alike(4), given, given.argmax(1), budget=100.0)
    assert with_labels.keeps(with_labels.judge(always(lambda x: x * torch.tensor([1.0, 1.0, 1.0, 0.0]))))


# --- outputs that are no classes ---------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 2), (4, 1, 1), (1, 2, 2), (4, 1)])
def test_other_outputs_are_judged_by_their_worst_channel(shape: tuple[int, ...]) -> None:
    judged = judge(Alike(*shape), values(), budget=30.0)
    assert judged.kind == "SQNR"
    found = judged.judge(always(lambda x: x.reshape(1, *shape) * 0.99))
    assert found.worst_db == pytest.approx(40.0, abs=0.01)
    assert (found.lost, found.exact, found.interval, found.bound) == (None, None, None, None)
    assert judged.keeps(found)
    assert not judge(Alike(*shape), values(), budget=41.0).keeps(found)


def test_one_number_a_sample_has_decibels_too_and_numbers_that_are_none_have_none() -> None:
    judged = judge(Alike(), values(1))
    assert judged.kind == "SQNR"
    bad = judged.judge(always(lambda x: torch.zeros(len(x))))
    assert (bad.sqnr_db, bad.worst_db) == (0.0, 0.0)
    assert not judged.keeps(bad)
    broken = judged.judge(always(lambda x: torch.full((len(x),), math.nan)))
    assert broken.worst_db == -math.inf
    assert broken.channels[0]["deviation"] is None
    assert not judged.keeps(broken)


def test_nan_beside_good_numbers_is_over_the_budget_without_labels() -> None:
    judged = judge(Alike(4), values(), budget=100.0)

    def half(x: Tensor) -> Tensor:
        return torch.cat([x[:, :3], torch.full((len(x), 1), math.nan)], 1)

    found = judged.judge(always(half))
    assert [row["channel"] for row in found.dead] == [3]
    assert not judged.keeps(found)


def test_integers_alone_cannot_be_compared() -> None:
    class Picks(Alike):
        def forward(self, x: Tensor) -> Tensor:
            return x.argmax(1)

    with pytest.raises(quality.EvaluateError, match="outputs are int64, of which no distance can be taken"):
        judge(Picks(), values())


def test_nothing_at_all_cannot_be_compared() -> None:
    with pytest.raises(quality.EvaluateError, match="outputs are empty, of which no distance can be taken"):
        judge(Alike(0), values(0))


@pytest.mark.parametrize("first", [lambda x: x > 0, lambda x: x.topk(2).indices], ids=["flags", "places"])
def test_only_numbers_have_classes(first: Change, gives: Callable[..., nn.Module]) -> None:
    assert judge(gives(lambda x: (first(x), x)), values()).kind == "SQNR"
    with pytest.raises(quality.EvaluateError, match="of which no distance can be taken"):
        judge(gives(first), values())


@pytest.mark.parametrize(
    ("answer", "shapes"),
    [
        (lambda x: x[:, x[0] > 0], r"\(1, \d\) for one input and \(1, \d\) for another"),
        (lambda x: (x, (x > 0).nonzero()), r"\(1, 4\), \(\d, 2\) for one input and \(1, 4\), \(\d, 2\) for another"),
        (lambda x: tuple(x[x > 0]), r"\(\).* for one input and \(\).* for another"),
    ],
    ids=["chosen", "places", "number"],
)
def test_outputs_whose_shapes_depend_on_values_are_refused(
    answer: Callable[[Tensor], Any], shapes: str, gives: Callable[..., nn.Module]
) -> None:
    with pytest.raises(CannotRunError, match=f"The outputs' shapes depend on .* {shapes}.* choose among them after"):
        judge(gives(answer), values().abs().index_fill(0, torch.tensor([9]), -1.0).index_fill(1, torch.tensor([2]), 1))


def test_float_s_own_answers_must_be_numbers_on_all_data() -> None:
    given = values().index_fill(0, torch.tensor([N - 1]), math.nan)
    with pytest.raises(
        CannotRunError, match="validation: the float model gives NaN or infinity in output; check the inputs"
    ):
        judge(Alike(4), given)


# --- a score of one's own ----------------------------------------------------------------------------


def score(predict: Any) -> float:
    found: Tensor = predict(values())
    return float((found.argmax(1) == values().argmax(1)).double().mean())


def each(predict: Any) -> list[float]:
    found: Tensor = predict(values())
    return (found.argmax(1) == values().argmax(1)).double().tolist()


def test_a_score_s_budget_is_a_hundredth_of_float_s_if_none_is_given() -> None:
    judged = judge(Alike(4), values(), evaluate=score)
    assert (judged.kind, judged.budget) == ("score", 0.01)
    assert judge(Alike(4), values(), evaluate=score, budget=0.0).budget == 0.0
    found = judged.judge(changed(2 + N))  # the data are run first, then the score's
    assert found.lost == pytest.approx(0.05)
    assert found.interval is None
    assert not judged.keeps(found)


def test_one_score_for_each_sample_gives_an_interval_unless_all_lose_the_same() -> None:
    judged = judge(Alike(4), values(), evaluate=each)
    found = judged.judge(changed(4 + N))
    assert found.interval is not None
    assert 0 <= found.interval[0] < 0.1 < found.interval[1] < 0.25
    assert judged.judge(always(lambda x: x)).interval is None, "a ceiling is no evidence"


def test_samples_are_those_that_were_scored() -> None:
    judged = judge(Alike(4), values(), evaluate=lambda predict: each(predict)[:10])
    assert judged.judge(always(lambda x: x)).n == 10


def test_the_last_digits_of_a_score_may_differ() -> None:
    answers = iter([0.3, 0.3 + 1e-9, 0.3])
    assert judge(Alike(4), values(), evaluate=lambda predict: next(answers)).kind == "score"


# --- which of two is better --------------------------------------------------------------------------


def of(lost: float, sqnr_db: float = 35.0, dead_db: float | None = None) -> quality.Quality:
    rows = [] if dead_db is None else [{"output": "output", "channel": 0, "sqnr_db": dead_db, "deviation": 1.0}]
    worst_db = sqnr_db if dead_db is None else dead_db
    return quality.Quality(N, 100.0, 100 - lost, lost, None, None, None, sqnr_db, worst_db, rows, rows)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (of(1.0, sqnr_db=10.0), of(5.1, sqnr_db=50.0)),  # within the budget
        (of(1.0, sqnr_db=20.0), of(2.0, sqnr_db=30.0)),  # less is lost
        (of(1.0, sqnr_db=30.0), of(1.0, sqnr_db=20.0)),  # as much, at more decibels
    ],
)
def test_the_budget_comes_first_then_what_is_lost_then_decibels(one: Any, other: Any) -> None:
    judged = classifier(budget=5.0)
    assert judged.better(one, other)
    assert not judged.better(other, one)


def test_of_two_that_lose_the_same_the_one_with_a_dead_channel_is_worse() -> None:
    judged = classifier(labels=False, budget=5.0)
    dead, alive = of(9.0, sqnr_db=40.0, dead_db=5.0), of(9.0, sqnr_db=30.0)
    assert judged.better(alive, dead)
    assert not judged.better(dead, alive)


def test_a_predict_that_is_given_nothing_is_refused() -> None:
    with pytest.raises(quality.EvaluateError, match="evaluate failed: DataError: predict was given no sample"):
        judge(Alike(4), values(), evaluate=lambda predict: len(predict(values()[:0])))


def test_a_predict_that_is_called_otherwise_is_refused_in_the_words_of_its_example() -> None:
    with pytest.raises(quality.EvaluateError, match="evaluate failed: DataError: A batch has the shape"):
        judge(Alike(4), values(), evaluate=lambda predict: float(predict(values(5)).sum()))
