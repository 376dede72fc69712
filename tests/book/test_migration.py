"""Old code and new code do the same job: both are executed, and agree within two steps of a 7-bit code."""

import copy
import functools
import pydoc
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from qhelpers import guards
from qhelpers.book import migration

every_pair = pytest.mark.parametrize("pair", migration.PAIRS.values(), ids=[*migration.PAIRS])


@pytest.fixture(autouse=True)
def own_random_state() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the old calls, and of imports
        yield


def small(pair: ModuleType) -> tuple[nn.Module, list[torch.Tensor]]:
    torch.manual_seed(0)
    return migration.network(pair), [torch.rand(8, 3, 6, 6) for _ in range(2)]


@functools.cache
def both(pair: ModuleType) -> tuple[nn.Module, nn.Module]:
    net, batches = small(pair)
    return pair.before(copy.deepcopy(net), batches), pair.after(copy.deepcopy(net), batches)


@every_pair
def test_before_and_after_agree_within_two_steps(pair: ModuleType) -> None:
    old, new = both(pair)
    net, batches = small(pair)
    with torch.no_grad():
        reference, one, other = (run(batches[0]) for run in (net, old, new))
    assert (one - reference).abs().max() <= 2 * step(reference)
    assert (other - one).abs().max() <= 2 * step(one)


def step(outputs: torch.Tensor) -> float:
    """How far neighbouring codes lie apart; seven bits, since some engines halve the range."""
    low, high = min(float(outputs.min()), 0.0), max(float(outputs.max()), 0.0)
    return (high - low) / 127


@pytest.mark.parametrize("name", sorted(set(migration.PAIRS) - {"saving"}))  # that one keeps a float network
def test_both_are_int8_where_they_should_be(name: str) -> None:
    pair = migration.PAIRS[name]
    old, new = both(pair)
    assert guards.int8_modules(old)
    kept = [value for value in [*new.state_dict().values()] if isinstance(value, torch.Tensor)]
    assert any(value.dtype == torch.int8 or "Int8" in type(value).__name__ for value in kept)
    if name == "one layer in float":
        assert type(old.get_submodule("4")) is nn.Linear
        assert "4.weight" in {node.target for node in new.graph.nodes if node.op == "get_attr"}


def test_every_file_of_the_folder_is_shown() -> None:
    files = {path.stem for path in Path(migration.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == {pair.__name__.rpartition(".")[2] for pair in migration.PAIRS.values()}


@every_pair
def test_what_is_shown_is_what_the_file_says(pair: ModuleType) -> None:
    text = Path(str(pair.__file__)).read_text()
    for code in migration.shown(pair):
        assert code in text
        assert max(map(len, code.splitlines())) <= 100, "it is read in a narrow column"


def test_every_name_exists() -> None:
    names = [*migration.CALLS, *migration.WITHOUT, *(new for found in migration.CALLS.values() for new in found)]
    assert not [name for name in names if pydoc.locate(name) is None]
