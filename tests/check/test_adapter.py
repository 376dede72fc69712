"""Models of every form of call become one that takes and gives tensors, can be exported, and can be undone."""

import copy
from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qhelpers.check.adapter import Fields, Flat
from qhelpers.check.calls import Call
from qhelpers.check.errors import CannotRunError, DataError

Pair = namedtuple("Pair", "boxes scores")


class ModelOutput(OrderedDict[str, Any]):
    """Names that are keys and attributes, as transformers' outputs have."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Bare:
    """An object in which nothing can be found."""

    def __init__(self, values: Tensor) -> None:
        self.values = values


FORMS: dict[str, Any] = {
    "tensor": lambda x: x,
    "pair": lambda x: (x, x + 1),
    "nested": lambda x: (x, [x + 1, None, 3]),
    "dict": lambda x: {"boxes": x, "more": {"scores": x + 1}},
    "named tuple": lambda x: Pair(x, x + 1),
    "logits": lambda x: ModelOutput(logits=x, hidden_states=(x + 1,)),
    "hidden": lambda x: ModelOutput(last_hidden_state=x, pooler_output=x + 1),
    "other object": lambda x: ModelOutput(pred_boxes=x, scores=x + 1),
    "nothing": lambda x: Bare(x),
    "in place": lambda x: x.mul_(2),
}


class Gives(nn.Module):
    """A model with outputs of a chosen form."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Any:
        return FORMS[self.form](x)


class Many(nn.Module):
    """Two inputs by place, one in a list, one by name, and a flag."""

    def forward(self, ids: Tensor, parts: list[Tensor], *, mask: Tensor, negative: bool = False) -> Tensor:
        found = ids + parts[0] * mask
        return -found if negative else found


def flat(form: str) -> Flat:
    return Flat(Gives(form).eval(), Call((torch.zeros(1, 3),)))


@pytest.mark.parametrize(
    ("form", "names"),
    [
        ("tensor", ["output"]),
        ("pair", ["output[0]", "output[1]"]),
        ("nested", ["output[0]", "output[1][0]"]),
        ("dict", ["boxes", "more.scores"]),
        ("named tuple", ["boxes", "scores"]),
        ("logits", ["logits"]),
        ("hidden", ["last_hidden_state"]),
        ("other object", ["pred_boxes", "scores"]),
    ],
)
def test_outputs_are_tensors_with_names(form: str, names: list[str]) -> None:
    one, x = flat(form), torch.arange(6.0).view(2, 3)
    assert [*one.names] == names
    found = one(x)
    outputs = [found] if isinstance(found, Tensor) else [*found]
    assert isinstance(found, Tensor) == (len(names) == 1)
    torch.testing.assert_close(outputs, [x, x + 1][: len(names)], rtol=0, atol=0)


@pytest.mark.parametrize("form", ["tensor", "pair", "nested", "dict", "named tuple"])
def test_restored_outputs_are_what_the_model_itself_gives(form: str) -> None:
    one, x = flat(form), torch.arange(6.0).view(2, 3)
    wanted, found = Gives(form)(x), one.restore(one(x))
    assert type(found) is type(wanted)
    if form == "nested":
        assert found[1][1:] == [None, 3]
        found, wanted = (found[0], found[1][0]), (wanted[0], wanted[1][0])
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_restored_objects_are_read_by_attribute_key_and_number() -> None:
    x = torch.ones(2, 3)
    found = flat("logits").restore(x)
    assert all(one is x for one in (found.logits, found["logits"], found[0]))
    assert flat("other object").restore((x, x + 1)).scores[0, 0] == 2
    with pytest.raises(AttributeError, match=r"The outputs have no boxes; they have: logits\."):
        _ = found.boxes
    copied = copy.deepcopy(found)
    assert isinstance(copied, Fields)
    assert torch.equal(copied.logits, x)


def test_outputs_without_a_tensor_are_refused() -> None:
    with pytest.raises(CannotRunError, match="Gives gives a Bare in which there is no tensor: return a tensor, a tup"):
        flat("nothing")


def test_many_inputs_are_taken_in_order_and_what_is_no_tensor_is_fixed() -> None:
    ids, part, mask = torch.ones(1, 3, dtype=torch.int64), torch.full((1, 3), 2.0), torch.eye(3)[:1]
    one = Flat(Many(), Call((ids, [part]), {"mask": mask, "negative": True}))
    tensors = one.inputs(Call((ids + 1, [part]), {"negative": True, "mask": mask}))
    assert one(*tensors).tolist() == [[-4.0, -2.0, -2.0]]
    with pytest.raises(DataError, match="gives False where the example has True"):
        one.inputs(Call((ids, [part]), {"mask": mask, "negative": False}))
    with pytest.raises(DataError, match=r"gives float32 of shape \(1, 3\), .*; the example is int64 of shape \(1, 3\)"):
        one.inputs(Call((part, [part]), {"mask": mask, "negative": True}))


def test_a_model_that_changes_its_input_gets_a_copy() -> None:
    example, x = Call((torch.ones(1, 3),)), torch.ones(2, 3)
    one = Flat(Gives("in place"), example)
    assert one(x)[0, 0] == 2
    assert one(x)[0, 0] == 2
    assert x.sum() == 6
    assert example.tensors[0].sum() == 3


def test_it_is_in_the_model_s_mode() -> None:
    assert not flat("tensor").training
    assert Flat(Gives("tensor").train(), Call((torch.zeros(1, 3),))).training


@pytest.mark.parametrize("form", ["tensor", "nested", "dict", "logits", "other object", "in place"])
def test_it_can_be_copied_and_exported(form: str) -> None:
    one, x = flat(form), torch.arange(3.0)[None]
    wanted = one(x)
    with torch.random.fork_rng(devices=[]):
        exported = torch.export.export(copy.deepcopy(one), (x,)).module()
    torch.testing.assert_close(exported(x), wanted, rtol=0, atol=0)


def test_keywords_and_integers_can_be_exported(random_weights: None) -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, layer = nn.Embedding(10, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.body = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
            padding = None if attention_mask is None else attention_mask == 0
            return ModelOutput(last_hidden_state=self.body(self.table(input_ids), src_key_padding_mask=padding))

    model, ids = Encoder().eval(), torch.arange(8).view(2, 4)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    one = Flat(model, Call((), {"input_ids": ids, "attention_mask": mask}))
    exported = torch.export.export(one, (ids, mask)).module()
    wanted = model(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(exported(ids, mask), wanted, rtol=1e-4, atol=1e-5)
