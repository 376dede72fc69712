"""A stranger's model is copied and run, or refused by name."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.ao import quantization as tq

from qhelpers.check import models
from qhelpers.check.adapter import Flat
from qhelpers.check.calls import Call
from qhelpers.check.errors import AlreadyQuantizedError, CannotRunError, ModelError

pytestmark = pytest.mark.usefixtures("random_weights")


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()


# --- what is no float model in PyTorch on the CPU ----------------------------------------------------------


def test_an_int8_model_is_refused_by_name() -> None:
    int8 = tq.quantize_dynamic(net(), {nn.Linear})
    with pytest.raises(AlreadyQuantizedError, match=r"is quantized already \(0, 2\): give the float model"):
        models.checked_model(int8)


def test_a_converted_graph_is_refused_too() -> None:
    graph = net()
    graph.register_buffer("_frozen_param0", torch.zeros(2, dtype=torch.int8))
    with pytest.raises(AlreadyQuantizedError, match="_frozen_param0"):
        models.checked_model(graph)


def test_bytes_as_weights_are_quantized() -> None:
    model = net()
    model.packed = nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(AlreadyQuantizedError, match="packed"):
        models.checked_model(model)


def test_masks_and_bytes_in_buffers_are_no_reason_to_refuse() -> None:
    model = net()
    model.register_buffer("mask", torch.full((2, 2), float("-inf")))
    model.register_buffer("palette", torch.zeros(2, dtype=torch.uint8))
    checked, notes = models.checked_model(model)
    assert torch.equal(checked.mask, model.mask)
    assert notes == []


def test_the_statistics_of_a_norm_must_be_finite() -> None:
    model = nn.Sequential(net(), nn.BatchNorm1d(2))
    model[1].running_var[0] = float("inf")  # type: ignore[index]
    with pytest.raises(ModelError, match=r"NaN or infinity in 1\.running_var"):
        models.checked_model(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value: float) -> None:
    broken = net()
    with torch.no_grad():
        broken[2].bias[0] = value  # type: ignore[index]
    with pytest.raises(ModelError, match=r"NaN or infinity in 2\.bias"):
        models.checked_model(broken)


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (
            {"dtype": torch.float64},
            r"0.weight is float64 on cpu; load the weights, then give model\.float\(\)\.cpu\(\)",
        ),
        ({"dtype": torch.float16}, "0.weight is float16 on cpu"),
        ({"dtype": torch.bfloat16}, "0.weight is bfloat16 on cpu"),
        ({"device": "meta"}, "0.weight is on the device meta, which holds no values: load the weights first"),
    ],
)
def test_another_type_or_device_is_refused(where: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        models.checked_model(net().to(**where))


class ElsewhereTensor:
    """What the check asks of a tensor, on a device that this machine may not have."""

    dtype, is_quantized = torch.float32, False
    device = torch.device("cuda", 0)
    data = torch.zeros(1)


def test_a_model_on_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    monkeypatch.setattr(model, "named_buffers", lambda: [("table", ElsewhereTensor())])
    with pytest.raises(
        ModelError, match=r"table is float32 on cuda; load the weights, then give model\.float\(\)\.cpu"
    ):
        models.checked_model(model)


def exported() -> nn.Module:
    return torch.export.export(net(), (torch.zeros(1, 4),)).module()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: "resnet18", r"^model must be an nn\.Module; it is a str\.$"),
        (lambda: nn.DataParallel(net()), r"is a DataParallel: give model\.module, on the CPU"),
        (lambda: torch.jit.script(net()), r"ScriptModule: TorchScript cannot be exported; give the nn\.Module from"),
        (
            lambda: torch.compile(net()),
            "is an OptimizedModule: it is compiled; give the model as it was before torch.com",
        ),
        (exported, r"Module: it is an exported graph; give the nn\.Module from which it was made"),
        (lambda: nn.Sequential(nn.LazyLinear(3)), r"0\.weight has no shape yet: call the model once"),
    ],
    ids=["str", "DataParallel", "TorchScript", "compiled", "exported", "lazy"],
)
def test_what_only_wraps_a_model_is_refused_with_what_to_give(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        models.checked_model(make())


@pytest.mark.filterwarnings("ignore:`?torch.nn.utils.weight_norm:FutureWarning")
@pytest.mark.parametrize("called", [False, True])
def test_the_old_weight_norm_is_refused_with_its_cure(called: bool) -> None:
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)), nn.ReLU(), nn.utils.weight_norm(nn.Linear(4, 2)))
    wanted = model(torch.ones(1, 4)) if called else None
    with pytest.raises(
        ModelError, match=r"^0, 2: torch\.nn\.utils\.weight_norm computes .* Call torch\.nn\.utils\.remove_weight_norm"
    ):
        models.checked_model(model)
    for layer in (model[0], model[2]):
        nn.utils.remove_weight_norm(layer)
    checked, _ = models.checked_model(model)
    if wanted is not None:
        torch.testing.assert_close(checked(torch.ones(1, 4)), wanted)
    with pytest.raises(ModelError, match=r"^the model itself: torch"):
        models.checked_model(nn.utils.weight_norm(nn.Linear(4, 4)))


def test_the_new_weight_norm_is_taken() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)))
    wanted = model(torch.ones(1, 4))
    torch.testing.assert_close(models.checked_model(model)[0](torch.ones(1, 4)), wanted)


def test_a_model_that_keeps_computed_tensors_is_refused_by_name() -> None:
    model = net()
    model[0].cache = model[0].weight * 2  # type: ignore[index]
    with pytest.raises(
        ModelError, match=r"This Sequential cannot be copied\. It keeps computed tensors \(0\.cache\): det"
    ):
        models.checked_model(model)


def test_a_model_that_cannot_be_copied_for_its_own_reason_says_it() -> None:
    class Selfish(nn.Module):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("there can be only one")

    with pytest.raises(ModelError, match=r"This Selfish cannot be copied\. PyTorch says: there can be only one"):
        models.checked_model(Selfish())


def test_a_model_in_training_mode_is_copied() -> None:
    model = net().train()
    checked, notes = models.checked_model(model)
    assert not checked.training
    assert model.training
    assert notes == ["The model came in training mode: the checker works on a copy in evaluation mode."]
    with torch.no_grad():
        checked[0].weight.zero_()  # type: ignore[index]
    assert model[0].weight.abs().sum() > 0


def test_a_model_whose_own_train_returns_nothing_is_taken() -> None:
    class Frozen(nn.Linear):
        def train(self, mode: bool = True) -> Any:
            super().train(mode)

    assert not models.checked_model(Frozen(2, 2))[0].training


# --- running it ----------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """A model whose answers cannot be compared."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.calls = kind, 0

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        if self.kind == "dropout":
            return nn.functional.dropout(x)
        if self.kind == "sampling":
            return torch.multinomial(x.softmax(-1), 1)
        if self.kind == "state":
            return x * self.calls
        if self.kind == "growing":
            return x.repeat(self.calls, 1)
        if self.kind == "parts":
            return (x,) * self.calls
        if self.kind == "text":
            return "a dog"
        return {"boxes": x, "scores": x * float(self.kind)}


@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_outputs_must_be_finite(kind: str) -> None:
    with pytest.raises(
        CannotRunError, match=r"Odd gives NaN or infinity in scores for test, float32 of shape \(1, 99\)"
    ):
        models.check_run(Odd(kind), Call((torch.ones(1, 99),)), "test")


@pytest.mark.parametrize("kind", ["dropout", "sampling", "state", "growing", "parts"])
def test_a_model_that_answers_otherwise_the_second_time_is_refused(kind: str) -> None:
    with pytest.raises(
        CannotRunError, match=r"other outputs when example is given a second time, .* F\.dropout without"
    ):
        models.check_run(Odd(kind), Call((torch.ones(64, 99),)))


def test_outputs_that_are_no_tensors_are_refused() -> None:
    with pytest.raises(CannotRunError, match=r"^Odd gives a str in which there is no tensor: return a tensor"):
        models.check_run(Odd("text"), Call((torch.ones(1, 3),)))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Tensor.to_sparse, r"^Gives gives a sparse tensor in output: return tensor\.to_dense\(\)\.$"),
        (
            lambda x: (x, torch.fft.fft(x)),
            r"gives complex numbers in output\[1\]: return their two parts, torch\.view_as_real\(tensor\)",
        ),
        (
            lambda x: {"y": torch.quantize_per_tensor(x, 1.0, 0, torch.quint8)},
            r"gives a quantized tensor in y: return tensor\.dequantize\(\)",
        ),
    ],
)
def test_outputs_that_are_no_dense_numbers_are_refused_with_their_cure(
    answer: Callable[[Tensor], Any], words: str, gives: Callable[..., nn.Module]
) -> None:
    with pytest.raises(CannotRunError, match=words):
        models.check_run(gives(answer), Call((torch.ones(1, 3),)))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            Call((torch.zeros(1, 5),)),
            r"Sequential cannot run on example, float32 of shape \(1, 5\): RuntimeError: mat1",
        ),
        (
            Call((torch.zeros(1, 4).double(),)),
            r"run on example, float64 of shape \(1, 4\): RuntimeError: mat1 and mat2",
        ),
        (Call((), {"x": torch.zeros(1, 4)}), r"run on example, x: float32 of shape \(1, 4\): TypeError: .*'x'"),
    ],
)
def test_a_model_that_fails_is_refused_with_shapes_and_pytorch_s_words(call: Call, words: str) -> None:
    with pytest.raises(CannotRunError, match=words):
        models.check_run(net(), call)


@pytest.mark.parametrize(
    ("make", "example", "shapes"),
    [
        (lambda: net(), Call((torch.ones(2, 4),)), [(2, 2)]),
        (lambda: nn.LSTM(4, 3, batch_first=True), Call((torch.ones(2, 5, 4),)), [(2, 5, 3), (1, 2, 3), (1, 2, 3)]),
        (lambda: nn.EmbeddingBag(9, 3), Call((torch.arange(4), torch.tensor([0, 2]))), [(2, 3)]),
        (lambda: nn.Bilinear(4, 4, 1), Call((torch.ones(2, 4), torch.ones(2, 4))), [(2, 1)]),
        (
            lambda: nn.MultiheadAttention(4, 1, batch_first=True),
            Call(tuple(torch.ones(3, 2, 5, 4)), {"need_weights": False}),
            [(2, 5, 4)],
        ),
        (
            lambda: torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=3),
            Call((torch.ones(1, 3, 32, 32),)),
            [(1, 3, 32, 32)],
        ),
    ],
    ids=["mlp", "lstm", "embedding bag", "two inputs", "attention", "segmentation"],
)
def test_other_people_s_models_run(make: Callable[[], nn.Module], example: Call, shapes: list[Any]) -> None:
    before = torch.get_rng_state()
    model, before = make().eval(), torch.get_rng_state()
    flat = models.check_run(model, example)
    assert torch.equal(torch.get_rng_state(), before)
    found = flat(*example.tensors)
    assert [tuple(one.shape) for one in ([found] if isinstance(found, Tensor) else found)] == shapes


# --- batches in pieces -----------------------------------------------------------------------------------------


class Mean(nn.Module):
    """One number for a whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean()


def test_samples_that_do_not_know_of_each_other_are_worth_no_note() -> None:
    one = models.check_run(net(), Call((torch.ones(2, 4),)))
    assert models.notes_of_batches(one, Call((torch.randn(7, 4),)), "test") == []
    lstm = models.check_run(nn.LSTM(4, 3, batch_first=True).eval(), Call((torch.ones(2, 5, 4),)))
    assert models.notes_of_batches(lstm, Call((torch.randn(7, 5, 4),)), "test") == []


@pytest.mark.parametrize(
    ("model", "shape", "output"),
    [
        (lambda: nn.LSTM(4, 3), (5, 2, 4), "output[0]"),  # the first dimension is time
        (lambda: nn.Softmax(0), (5, 4), "output"),
        (Mean, (5, 4), "output"),
    ],
    ids=["time first", "mixes samples", "one number for all"],
)
def test_a_first_dimension_that_is_not_the_batch_is_noted(model: Any, shape: Any, output: str) -> None:
    call = Call((torch.randn(shape),))
    one = Flat(model().eval(), call.sized(1))
    (note,) = models.notes_of_batches(one, call, "validation")
    words = "of 5 samples at once is not that of 1 at a time, which is what is measured here"
    assert note.startswith(f"validation: {output} {words}")
    assert note.endswith("give batch=5, and batches of that size.")


def test_a_mask_as_long_as_the_batch_is_noted() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return mask @ x

    x, mask = torch.randn(3, 3, 2), torch.tril(torch.ones(3, 3))
    cut = Flat(Masked(), Call((x, mask)).sized(1))
    (note,) = models.notes_of_batches(cut, Call((x, mask)), "validation")
    assert "an input for all samples is as long as the batch" in note
    whole = Flat(Masked(), Call((x[:1], mask)))
    assert models.notes_of_batches(whole, Call((x, mask)), "validation") == []


def test_a_model_for_one_size_of_batch_is_measured_at_it() -> None:
    one = Flat(nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Flatten(0), nn.Linear(4, 2)).eval(), Call((torch.ones(1, 4),)))
    assert models.notes_of_batches(one, Call((torch.ones(3, 4),)), "test") == []


def test_a_model_that_gives_a_tensor_for_each_sample_is_measured_one_by_one(gives: Callable[..., nn.Module]) -> None:
    flat = models.check_run(gives(lambda x: x.unbind()), Call((torch.zeros(1, 4),)))
    assert models.notes_of_batches(flat, Call((torch.randn(6, 4),)), "validation") == []


def test_a_model_that_fails_on_a_part_is_refused() -> None:
    class Full(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x[0, 0] == x[1, 0]:
                raise ValueError("twins")
            return x

    call = Call((torch.arange(3.0)[:, None],))
    one = Flat(Full(), call.sized(2))
    with pytest.raises(CannotRunError, match="Full cannot run on a part of test: ValueError: twins"):
        models.notes_of_batches(one, call, "test")
