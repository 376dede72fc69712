"""Which layers can be int8 where, and with which way of quantizing a target begins."""

import functools
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization as tq
from torch.export import ExportedProgram

from qhelpers import guards
from qhelpers.check import find, folding, graphs, targets


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(targets.TargetError, match="no target 'coreml'; choose one of: executorch, onnx-x86, onnx-arm"):
        targets.checked("coreml")


@pytest.mark.parametrize("target", ["onnx-x86", "onnx-arm"])
def test_a_package_that_only_the_quantizer_needs_is_asked_for_at_once(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "executorch" else name)
    with pytest.raises(guards.GuardError, match=r"executorch is not installed\. .* install qhelpers\[deploy\]"):
        targets.checked(target)


def test_the_larger_part_of_the_weights_decides_what_is_tried_first() -> None:
    with torch.random.fork_rng(devices=[]):
        mostly_products = nn.Sequential(nn.Conv1d(4, 4, 3), nn.Linear(32, 32))
        mostly_convolution = nn.Sequential(nn.Conv1d(64, 64, 3), nn.Linear(4, 4))
    assert targets.modes(mostly_products, "executorch") == ["dynamic", "static"]
    assert targets.modes(mostly_convolution, "executorch") == ["static", "dynamic"]
    assert targets.modes(mostly_convolution[:1], "executorch") == ["static"]


def test_what_eager_mode_cannot_take_is_refused_with_a_place_to_go() -> None:
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Conv1d(4, 4, 3))
    with pytest.raises(targets.TargetError, match=r"this Sequential has none; its .* Choose aotinductor to stay in"):
        targets.modes(model, "pytorch")


@pytest.mark.parametrize("kind", targets.RECURRENT)
def test_what_counts_as_recurrent_becomes_int8(kind: type[nn.Module], one_thread: None) -> None:
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(kind(4, 4)).eval()
    assert guards.int8_modules(tq.quantize_dynamic(model, {kind: tq.default_dynamic_qconfig})) == ["0"]
    assert targets.weights_by_kind(model).keys() == {"recurrent"}


@pytest.mark.parametrize("options", [{"bias": False}, {"proj_size": 2}], ids=["no bias", "projection"])
def test_recurrent_layers_that_eager_mode_cannot_take_stay_in_float(
    options: dict[str, Any], tmp_path: Path, random_weights: None
) -> None:
    model = nn.Sequential(OrderedDict(lstm=nn.LSTM(4, 4, **options), head=nn.Linear(4, 4))).eval()
    with pytest.raises(targets.TargetError, match=r"none with bias=False or proj_size\), and this Sequential has none"):
        targets.modes(model[:1], "pytorch")
    int8 = targets.dynamic_layers(model)
    assert guards.int8_modules(int8) == ["head"]
    targets.write("pytorch", model, int8, (), tmp_path / "model.pt")
    assert torch.load(tmp_path / "model.pt", weights_only=True)["layers in float"] == ["lstm"]


@pytest.mark.parametrize("recurrent", [False, True])
def test_a_file_of_eager_mode_is_read_into_a_model_whose_weights_are_computed(
    recurrent: bool, tmp_path: Path, random_weights: None
) -> None:
    made = torch.nn.utils.parametrizations.weight_norm
    model: nn.Module = made(nn.LSTM(4, 8), "weight_hh_l0") if recurrent else made(nn.Linear(4, 8))
    given, path = torch.randn(2, 3, 4), tmp_path / "model.pt"
    int8 = targets.dynamic_layers(model)
    assert guards.int8_modules(int8) == [""]
    targets.write("pytorch", folding.plain_copy(model), int8, (given,), path)
    with torch.inference_mode():
        wanted, found = targets.leaves(int8(given)), targets.load("pytorch", path, model)(given)
        torch.testing.assert_close(found[0], wanted[0], atol=0.02, rtol=0)
    assert nn.utils.parametrize.is_parametrized(model)


def test_a_plain_rnn_alone_has_nothing_to_quantize(one_thread: None) -> None:
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.RNN(4, 4)).eval()
    assert guards.int8_modules(tq.quantize_dynamic(model, {nn.RNN: tq.default_dynamic_qconfig})) == []
    with pytest.raises(targets.TargetError, match=r"only Linear and recurrent layers .* 40 in recurrent"):
        targets.modes(model, "pytorch")


# --- one quantizer for all ---------------------------------------------------------------------------


class Joined(nn.Module):
    """Two convolutions, a sum, a cat and a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        outputs: Tensor = self.head(torch.cat([self.second(x) + x, x], 1).mean((2, 3)))
        return outputs


IMAGE = torch.linspace(-1, 1, 2 * 3 * 4 * 4).reshape(2, 3, 4, 4)


@functools.cache
def joined() -> tuple[nn.Module, ExportedProgram]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Joined().eval()
        return model, targets.captured(model, (IMAGE,), "executorch")


def int8_operators(target: str, mode: str, left_out: tuple[str, ...] = ()) -> list[str]:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = targets.prepared(joined()[1], [(IMAGE,)], targets.quantizer(target, mode, left_out))
        return find.Quantized(graph).operators


@pytest.mark.parametrize("target", ["executorch", "onnx-arm", "aotinductor"])
def test_what_is_left_out_stays_in_float_and_the_rest_does_not(target: str) -> None:
    everything = int8_operators(target, "static")
    assert {"conv2d", "conv2d_1", "add", "linear"} <= {*everything}
    assert ("cat" in everything) == (target != "aotinductor")
    for left_out in (("linear",), ("add",), ("conv2d", "linear")):
        assert {*int8_operators(target, "static", left_out)} == {*everything} - {*left_out}
    assert not {"conv2d_1", "cat"} & {*int8_operators(target, "static", ("conv2d_1", "cat"))}


@pytest.mark.parametrize("target", ["executorch", "aotinductor"])
def test_dynamic_quantization_is_of_linear_layers_alone(target: str) -> None:
    assert int8_operators(target, "dynamic") == ["linear"]
    with pytest.raises(graphs.GraphError, match="Nothing in this graph is observed"):
        int8_operators(target, "dynamic", ("linear",))


def test_each_call_of_a_shared_layer_is_int8_and_modules_keep_their_names(random_weights: None) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            outputs: Tensor = self.layer(self.layer(x).relu())
            return outputs

    given = (torch.randn(2, 4),)
    program = targets.captured(Shared().eval(), given, "executorch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = targets.prepared(program, [given], targets.quantizer("executorch", "static"))
    assert {"linear", "linear_1"} <= {*find.Quantized(graph).operators}
    stacks = {
        str([*node.meta["nn_module_stack"].values()][-1][0]) for node in graph.graph.nodes if "linear" in node.name
    }
    assert stacks == {"layer"}


# --- the eager target --------------------------------------------------------------------------------


class Rows(nn.Module):
    """A recurrent layer, and a buffer that half precision could not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 3)
        self.register_buffer("steps", torch.tensor(100_001))

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.lstm(x)[0][:, -1])
        return outputs


@pytest.mark.parametrize("left_out", [(), ("head",)])
@pytest.mark.parametrize("recurrent", [False, True])
def test_an_eager_file_computes_what_was_written(
    recurrent: bool, left_out: tuple[str, ...], tmp_path: Path, random_weights: None
) -> None:
    model = (
        Rows().eval() if recurrent else nn.Sequential(OrderedDict(body=nn.Linear(4, 8), head=nn.Linear(8, 3))).eval()
    )
    given = torch.randn(2, 5, 4) if recurrent else torch.randn(2, 4)
    path = tmp_path / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        int8 = targets.dynamic_layers(model, left_out)
        targets.write("pytorch", model, int8, (given,), path)
        run = targets.load("pytorch", path, model)
        assert guards.int8_modules(int8) == [
            name for name in ("lstm" if recurrent else "body", "head") if name not in left_out
        ]
        with torch.inference_mode():
            torch.testing.assert_close(run(given), (int8(given),), atol=0.02 if recurrent else 0, rtol=0)
    kept = torch.load(path, weights_only=True)
    assert kept["layers in float"] == [*left_out]
    state = kept["state"]
    if recurrent:
        assert state["steps"] == 100_001
        assert state["lstm.weight_ih_l0"].dtype == torch.float16
    assert not guards.int8_modules(model)
