"""Fixtures shared by the tests and the doctests."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")  # before tqdm is imported, as torch does

import pytest
import torch

from qhelpers.book import chapter
from qhelpers.tasks import published

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # two workers share the cores


@pytest.fixture(autouse=True)
def nothing_global_left_changed(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Every test must leave engine, threads and random state alone; doctests have a seed of their own."""
    monkeypatch.setenv("QHELPERS_RESULTS", str(tmp_path / "results"))
    before = (torch.backends.quantized.engine, torch.get_num_threads())
    random_state = torch.get_rng_state()
    doctest = isinstance(request.node, pytest.DoctestItem)
    if doctest:
        torch.manual_seed(0)
    yield
    assert (torch.backends.quantized.engine, torch.get_num_threads()) == before
    if doctest:
        torch.set_rng_state(random_state)
    assert torch.equal(torch.get_rng_state(), random_state), "the global random state was changed"


@pytest.fixture
def random_weights(nothing_global_left_changed: None) -> Iterator[None]:
    """Networks of a test draw their weights, the same each time; the random state is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch hub; returns where the published weights would lie."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    return tmp_path / "torch_home" / "hub" / "checkpoints" / published.OFFICIAL.url.rsplit("/", 1)[1]


@pytest.fixture
def fresh_results(tmp_path: Path) -> Path:
    """Where claims of this test are written."""
    return chapter.results_folder()


@pytest.fixture
def one_thread(nothing_global_left_changed: None) -> Iterator[None]:
    """Chapters choose one thread, a seed and an engine for their own process; undo that here."""
    threads, random_state = torch.get_num_threads(), torch.get_rng_state()
    engine = torch.backends.quantized.engine
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(random_state)
    torch.backends.quantized.engine = engine
