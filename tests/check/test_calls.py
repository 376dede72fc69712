"""Every kind of batch becomes one call, is compared with the example, and is cut into pieces of its size."""

from collections import UserDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qhelpers.check import calls
from qhelpers.check.calls import Call
from qhelpers.check.errors import DataError

ONE, TWO, LABELS = torch.zeros(4, 3), torch.ones(4, 5), torch.arange(4)
with torch.random.fork_rng(devices=[]):
    LINEAR, BILINEAR, LSTM = nn.Linear(3, 2), nn.Bilinear(3, 5, 2), nn.LSTM(3, 5)


class Encoder(nn.Module):
    """Called as transformers' models are."""

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> Any:
        return input_ids


class Loss(nn.Module):
    """A model that cannot do without labels."""

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return images.sum() + labels.sum()


class Batchwise(nn.Module):
    """A model that takes the loader's dict itself."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["image"]


class Anything(nn.Module):
    """As a wrapper whose signature says nothing."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args, kwargs


def read(batch: Any, model: nn.Module, example: Call | None = None) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Arguments, keywords and labels of a batch."""
    call, labels = calls.as_call(batch, model, example)
    return call.args, call.kwargs, labels


def same(found: Any, wanted: Any) -> None:
    """Both have the same structure and tensors."""
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


# --- kinds of batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [LINEAR, nn.Sequential(LINEAR), Anything()])
def test_a_tensor_and_a_pair_with_labels(model: nn.Module) -> None:
    assert read(ONE, model)[2] is None
    same(read(ONE, model)[0], (ONE,))
    for batch in ((ONE, LABELS), [ONE, LABELS], (ONE, LABELS, "file names")):
        args, kwargs, labels = read(batch, model)
        same(args, (ONE,))
        assert kwargs == {}
        assert labels is LABELS
    assert read([ONE], model)[2] is None


def test_as_many_inputs_as_forward_requires() -> None:
    for batch in ((ONE, TWO, LABELS), ((ONE, TWO), LABELS), [[ONE, TWO], LABELS]):
        args, _, labels = read(batch, BILINEAR)
        same(args, (ONE, TWO))
        assert labels is LABELS
    assert read((ONE, TWO), BILINEAR)[2] is None
    assert read(((ONE, TWO),), BILINEAR)[2] is None


def test_the_example_says_how_many_inputs_there_are() -> None:
    state = (torch.zeros(1, 3, 5), torch.zeros(1, 3, 5))
    assert read((ONE, state), LSTM)[2] is state  # forward requires the first input only
    example = calls.as_example((ONE, state), LSTM)
    args, _, labels = read((ONE, state, LABELS), LSTM, example)
    same(args, (ONE, state))
    assert labels is LABELS


def test_a_first_input_that_is_a_tuple_needs_an_example() -> None:
    class Head(nn.Module):
        def forward(self, features: tuple[Tensor, Tensor], scale: Tensor) -> Tensor:
            return features[0] * scale

    example = calls.as_example(((ONE, TWO), ONE), Head())
    args, _, labels = read(((ONE, TWO), ONE, LABELS), Head(), example)
    same(args, ((ONE, TWO), ONE))
    assert labels is LABELS


@pytest.mark.parametrize("kind", [dict, UserDict], ids=["dict", "like BatchEncoding"])
@pytest.mark.parametrize("key", ["labels", "label"])
def test_a_tokenizer_s_dict_becomes_keywords_without_its_labels(kind: type, key: str) -> None:
    ids = torch.zeros(4, 7, dtype=torch.int64)
    args, kwargs, labels = read(kind({"input_ids": ids, key: LABELS, "attention_mask": ids}), Encoder())
    assert args == ()
    same(kwargs, {"input_ids": ids, "attention_mask": ids})
    assert labels is LABELS
    _, kwargs, labels = read((kind(input_ids=ids), LABELS), Encoder())
    same(kwargs, {"input_ids": ids})
    assert labels is LABELS


def test_labels_that_forward_requires_are_an_input() -> None:
    _, kwargs, labels = read({"images": ONE, "labels": LABELS}, Loss())
    same(kwargs, {"images": ONE, "labels": LABELS})
    assert labels is None


def test_a_model_may_take_the_dict_itself() -> None:
    args, kwargs, labels = read({"image": ONE, "label": LABELS}, Batchwise())
    same(args, ({"image": ONE},))
    assert kwargs == {}
    assert labels is LABELS


def test_inputs_that_hang_on_a_graph_are_cut_off() -> None:
    call, _ = calls.as_call(torch.zeros(2, 3, requires_grad=True) * 2, LINEAR)
    assert not call.tensors[0].requires_grad


@pytest.mark.parametrize(
    ("batch", "model", "words"),
    [
        ("text", Encoder(), r"^A batch must be a tensor, a tuple or a dict of tensors; it is a str\.$"),
        (5, Encoder(), "dict of tensors; it is an int"),
        ((), Encoder(), "dict of tensors; it is an empty tuple"),
        (np.zeros((4, 3)), LINEAR, r"holds a NumPy array, and models take tensors: use torch\.from_numpy"),
        ((np.zeros((4, 3)), LABELS), LINEAR, "holds a NumPy array"),
        ({"input_ids": np.zeros((4, 3))}, Encoder(), "holds a NumPy array"),
        ((object(), LABELS), LINEAR, "holds an object of type object: a model's inputs are tensors, numbers"),
        (torch.zeros(4, 3, device="meta"), LINEAR, r"is on the device meta: give tensor\.cpu\(\)"),
        (ONE.to_sparse(), LINEAR, r"^A batch holds a sparse tensor: give tensor\.to_dense\(\)\.$"),
        (torch.quantize_per_tensor(ONE, 1.0, 0, torch.quint8), LINEAR, r"a quantized tensor: give tensor\.dequantize"),
        (
            torch.nested.nested_tensor([ONE, ONE[:2]], layout=torch.jagged),
            LINEAR,
            r"a nested tensor: give torch\.nested\.to_padded_tensor\(tensor, 0\.0\)",
        ),
        (("a", LABELS), LINEAR, "holds no tensor among the model's inputs"),
        ({"input_ids": None}, Encoder(), "holds no tensor among the model's inputs"),
        (torch.tensor(1.0), LINEAR, r"a batch is a single number; it should have the shape \(n, …\)"),
        (
            (ONE,),
            BILINEAR,
            r"^Bilinear\.forward\(input1, input2\) cannot take float32 of shape \(4, 3\): missing a required argument: "
            r"'input2'\. A batch has each required input in order, then the labels; or is a dict of forward's own",
        ),
        (
            {"input_ids": ONE, "idx": LABELS},
            Encoder(),
            r"Encoder\.forward\(input_ids, attention_mask, labels\) cannot take input_ids: float32 of shape \(4, 3\), "
            r"idx: int64 of shape \(4,\): got an unexpected keyword argument 'idx'",
        ),
        (((ONE, TWO), LABELS), LINEAR, r"Linear\.forward\(input\) cannot take .*: too many positional"),
    ],
)
def test_a_batch_that_is_no_call_is_refused_in_words(batch: Any, model: nn.Module, words: str) -> None:
    with pytest.raises(DataError, match=words):
        calls.as_call(batch, model)


# --- the example ---------------------------------------------------------------------------------------------


def test_every_part_of_an_example_is_an_input() -> None:
    for given, args, kwargs in [
        (ONE, (ONE,), {}),
        ((ONE, TWO), (ONE, TWO), {}),
        ({"input_ids": ONE}, (), {"input_ids": ONE}),
        (((ONE,), {"attention_mask": TWO}), (ONE,), {"attention_mask": TWO}),
    ]:
        model = BILINEAR if isinstance(given, tuple) and isinstance(given[1], Tensor) else Encoder()
        call = calls.as_example(given, model)
        same(call.args, args)
        same(call.kwargs, kwargs)


def test_an_example_with_labels_is_refused() -> None:
    with pytest.raises(DataError, match=r"Linear.forward\(input\) cannot take .*, int64 of shape \(4,\): too many"):
        calls.as_example((ONE, LABELS), LINEAR)
    with pytest.raises(DataError, match="a batch is a single number"):
        calls.as_example(torch.tensor(0.0), LINEAR)
    with pytest.raises(DataError, match="holds no tensor"):
        calls.as_example([0.0], LINEAR)


def test_an_example_is_cut_or_filled_to_its_size_and_keeps_what_is_for_all() -> None:
    call = Call((ONE, torch.eye(7)), {"flag": True, "mask": torch.zeros(1, 4)})
    assert call.n == 4
    one = call.sized(1)
    assert one.shapes == ((1, 3), (7, 7), (1, 4))
    assert one.kwargs["flag"] is True
    ids = Call((torch.arange(3),)).sized(5)
    assert ids.tensors[0].tolist() == [0, 1, 2, 2, 2]
    with pytest.raises(DataError, match="A batch without a sample is no example"):
        Call((torch.zeros(0, 3),)).sized(1)


EXAMPLE = Call((torch.zeros(1, 3),), {"mask": torch.zeros(1, 5), "deep": [torch.zeros(1)], "flag": False})


def test_keywords_may_come_in_another_order() -> None:
    call = Call((ONE,), {"flag": False, "deep": [torch.zeros(4)], "mask": TWO})
    assert calls.like(call, EXAMPLE).shapes == ((4, 3), (4, 5), (4,))
    assert call.shapes == ((4, 3), (4,), (4, 5))


@pytest.mark.parametrize(
    ("args", "changed", "words"),
    [
        ((ONE.double(),), {}, r"A batch gives float64 of shape \(4, 3\), .*; the example is float32 of shape \(1, 3\)"),
        ((ONE[None],), {}, r"A batch gives float32 of shape \(1, 4, 3\)"),
        ((ONE, ONE), {}, r"A batch gives float32 of shape \(4, 3\), float32 of shape \(4, 3\), mask"),
        ((ONE,), {"deep": [ONE[:, 0], ONE]}, r"deep: \(float32 of shape \(4,\), float32 of shape \(4, 3\)\)"),
        ((ONE,), {"mask": None}, "mask: None"),
        ((ONE,), {"more": ONE}, r"more: float32 of shape \(4, 3\); the example is"),
        ((ONE,), {"flag": True}, "gives True where the example has False: what is no tensor is fixed in the file"),
    ],
)
def test_a_call_of_another_form_is_refused(args: tuple[Any, ...], changed: dict[str, Any], words: str) -> None:
    call = Call(args, {"mask": TWO, "deep": [torch.zeros(4)], "flag": False} | changed)
    with pytest.raises(DataError, match=words):
        calls.like(call, EXAMPLE)


# --- pieces ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 4, 7])
def test_pieces_put_together_are_the_batch(size: int) -> None:
    batch, other, mask = torch.arange(14.0).view(7, 2), torch.arange(7), torch.eye(3)
    found = list(calls.pieces((batch, other, mask), [(size, 2), (size,), (3, 3)]))
    assert all([tuple(part.shape) for part in parts] == [(size, 2), (size,), (3, 3)] for parts, _ in found)
    same(torch.cat([parts[0][:n] for parts, n in found]), batch)
    same(torch.cat([parts[1][:n] for parts, n in found]), other)
    assert all(parts[2] is mask for parts, _ in found)
    same(found[-1][0][0][-1], batch[-1])


def test_a_batch_of_the_example_s_shapes_is_passed_as_it_is() -> None:
    mask = torch.eye(4)
    (found, n), *more = calls.pieces((ONE, mask), [(4, 3), (4, 4)])
    assert (found[0] is ONE, found[1] is mask, n, more) == (True, True, 4, [])


def test_a_mask_for_all_is_not_cut_when_a_last_batch_is_as_long_as_it() -> None:
    mask = torch.eye(3)
    found = list(calls.pieces((torch.zeros(3, 2), mask), [(1, 2), (3, 3)]))
    assert len(found) == 3
    assert all(parts[1] is mask for parts, _ in found)


@pytest.mark.parametrize(
    ("tensors", "shapes", "words"),
    [
        (
            [torch.zeros(4, 9)],
            [(1, 7)],
            r"has the shape \(4, 9\), the example \(1, 7\): .* pad sequences to one length",
        ),
        (
            [ONE, torch.eye(4)],
            [(1, 3), (5, 5)],
            r"has the shape \(4, 4\), the example \(5, 5\): a file takes one shape",
        ),
        ([torch.zeros(4, 3, 1)], [(1, 3)], r"has the shape \(4, 3, 1\), the example \(1, 3\)"),
    ],
)
def test_samples_of_another_shape_are_refused(tensors: list[Tensor], shapes: list[calls.Shape], words: str) -> None:
    with pytest.raises(DataError, match=words):
        list(calls.pieces(tensors, shapes))
