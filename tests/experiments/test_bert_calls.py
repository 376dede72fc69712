"""The record of a transformer's calls: fixed shapes, and compiled models that live side by side."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from experiments import bert_calls
from qhelpers.tasks import docs_search


def test_what_was_made_for_one_shape_gets_that_shape() -> None:
    shapes: list[tuple[int, ...]] = []

    def fixed(ids: Tensor, mask: Tensor) -> Tensor:
        shapes.append(tuple(ids.shape))
        return (ids * mask).float().sum(1, keepdim=True)  # padding has to be masked

    ids = torch.arange(1, 31).view(3, 10)
    found = bert_calls.at_fixed_shape(fixed)(ids, torch.ones_like(ids))
    assert shapes == [(bert_calls.BATCH, docs_search.MOST_TOKENS)]
    assert found.flatten().tolist() == ids.sum(1).tolist()


class Small(nn.Module):
    """A network in the encoder's place."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(float(factor)))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return input_ids.float() * self.factor * attention_mask


def test_compiling_a_second_model_does_not_compile_the_first_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[int] = []

    def backend(graph: nn.Module, _: object) -> Callable[..., object]:
        compiled.append(1)
        return graph.forward

    compile_now = torch.compile
    monkeypatch.setattr(bert_calls.minilm, "SentenceEncoder", lambda net: net)
    monkeypatch.setattr(torch, "compile", lambda net, **options: compile_now(net, backend=backend, **options))
    inputs = torch.ones(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.long)
    first, second = (bert_calls.compiled_here(partial(Small, factor), inputs, False) for factor in (2, 3))
    with torch.inference_mode():  # as the benchmark calls them
        for built, factor in ((first, 2), (second, 3), (first, 2)):
            assert built.encoder(*inputs).unique().item() == factor
    assert len(compiled) == 2


def test_eager_calls_are_told_from_those_of_one_shape() -> None:
    assert {"float, eager", "quantize_dynamic, words too", "torchao dynamic, eager"} <= set(bert_calls.EAGER)
    assert not {"PT2E dynamic, inductor", "torchao dynamic, compiled", "XNNPACK dynamic (.pte)"} & set(bert_calls.EAGER)
