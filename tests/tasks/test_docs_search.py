"""The search task: pairs from the installed torch, the same each time, and the places at which queries find them."""

import operator

import pytest
import torch

from qhelpers.tasks import docs_search


def test_pairs_are_disjoint_unique_and_the_same_each_time() -> None:
    pairs = docs_search.load_pairs(400)
    docs_search.load_pairs.cache_clear()
    assert docs_search.load_pairs(400) == pairs
    assert [pair.name for pair in pairs] == sorted(pair.name for pair in pairs)
    assert len({pair.query.lower() for pair in pairs}) == len({pair.document for pair in pairs}) == 400
    assert not [pair.name for pair in pairs if pair.query in pair.document]


def test_pairs_come_from_all_over_the_api() -> None:
    names = {pair.name.rpartition(".")[0] for pair in docs_search.load_pairs(400)}
    assert names >= {"torch", "torch.nn", "torch.nn.functional", "torch.linalg", "torch.optim"}


def test_what_torch_only_passes_on_is_left_out() -> None:
    found = [operator.attrgetter(pair.name.removeprefix("torch."))(torch) for pair in docs_search._all_pairs()]
    homes = {getattr(value, "__module__", None) or "torch" for value in found}  # functional.DType, say, is int
    assert not [home for home in homes if not home.startswith("torch")]


def test_fewer_pairs_are_some_of_the_same() -> None:
    assert set(docs_search.load_pairs(50)) < set(docs_search.load_pairs(100))


@pytest.mark.parametrize("count", [0, 100_000])
def test_more_pairs_than_there_are_is_refused(count: int) -> None:
    with pytest.raises(
        docs_search.SearchError, match=rf"count must lie between 1 and \d+, the pairs in torch .*{count}"
    ):
        docs_search.load_pairs(count)


@pytest.mark.parametrize(
    ("text", "query", "document"),
    [
        ("add(input, other) -> Tensor\n\nAdds two. Rest\nof it.", "Adds two.", "Rest of it."),
        ("f(a,\n  b)\n\nOne. Two.", "One.", "Two."),
        ("Sums, e.g. of rows, i.e. all. Next.", "Sums, e.g. of rows, i.e. all.", "Next."),
        ("No full stop\n\nArgs: none", "No full stop", "Args: none"),
        (
            "Uses version 1.5 of ``x``. Then :class:`~torch.nn.Linear`.",
            "Uses version 1.5 of x.",
            "Then torch.nn.Linear.",
        ),
        ("Only one sentence.", "Only one sentence.", ""),
        ("Said. Twice. Said.", "Said.", "Twice."),
        ("", "", ""),
        ("Calls(f) on rows.\nMore (of it)\n\nRest.", "Calls(f) on rows.", "More (of it) Rest."),
        ("Tensor(s) of a list\nare joined (all)\n\nRest.", "Tensor(s) of a list are joined (all)", "Rest."),
        ("relu(x)\nclips at 0. Rest.", "relu(x) clips at 0.", "Rest."),
        ("relu(x) -> Tensor. It clips. Rest.", "relu(x) -> Tensor.", "It clips. Rest."),
        ("f(a, b=(1, 2),\n  c=g(3)) -> Tensor\nOne (of them).\nTwo.", "One (of them).", "Two."),
        ("f(a, b=(1, 2))\n\nOne. Two.", "One.", "Two."),
        ("f(a\nis open. Two.", "f(a is open.", "Two."),
        ("f(x)", "", ""),
    ],
)
def test_a_docstring_is_cut_behind_its_first_sentence(text: str, query: str, document: str) -> None:
    assert docs_search.split_docstring(text) == (query, document)


def test_docstrings_of_one_sentence_and_repeated_ones_are_left_out() -> None:
    rest = "word " * docs_search.FEWEST_DOCUMENT_WORDS
    first, again = (
        docs_search.Pair("a", "Adds two numbers.", rest),
        docs_search.Pair("b", "adds two numbers.", rest + "x"),
    )
    same_document = docs_search.Pair("c", "Takes two numbers.", rest)
    alone, terse = docs_search.Pair("d", "Does something new.", ""), docs_search.Pair("e", "Short.", rest + "y")
    assert list(docs_search._unique(iter([first, again, same_document, alone, terse]))) == [first]


def test_ranks_count_from_one_and_ties_count_against_the_query() -> None:
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]])
    documents = torch.tensor([[2.0, 0.0], [0.0, 5.0], [0.0, 5.0]])
    places = docs_search.ranks(queries, documents)
    assert places.tolist() == [1, 2, 3]
    assert docs_search.hits(places).tolist() == [True, False, False]
    assert docs_search.reciprocal_ranks(places).mean() == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def test_a_model_that_says_the_same_to_everything_finds_nothing() -> None:
    assert docs_search.ranks(torch.ones(5, 4), torch.ones(5, 4)).tolist() == [5] * 5


def test_cosines_do_not_depend_on_length() -> None:
    table = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    assert torch.allclose(docs_search.cosines(table, 7 * table), torch.ones(2))
    assert torch.allclose(docs_search.cosines(table, -table), -torch.ones(2))


@pytest.mark.parametrize("function", [docs_search.ranks, docs_search.cosines])
@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (torch.ones(2, 3), torch.ones(3, 3), r"got \(2, 3\) and \(3, 3\)"),
        (torch.ones(0, 3), torch.ones(0, 3), r"n >= 1 are needed"),
        (torch.ones(3), torch.ones(3), r"got \(3,\)"),
        (torch.ones(2, 3), torch.tensor([[1.0, 1, 1], [0, 0, 0]]), "embedding in row 1 is zero or not finite"),
        (torch.full((2, 3), torch.nan), torch.ones(2, 3), "embedding in row 0 is zero or not finite"),
    ],
    ids=["other count", "empty", "no table", "zero", "nan"],
)
def test_what_cannot_be_compared_is_refused(
    function: object, first: torch.Tensor, second: torch.Tensor, words: str
) -> None:
    assert callable(function)
    with pytest.raises(docs_search.SearchError, match=words):
        function(first, second)
