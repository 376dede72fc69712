"""Which operator of a PT2E graph does the damage: nets with one fault each, and the graph really made without it."""

import copy
import functools
import math
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of their imports
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnn
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from qhelpers.check import find, graphs, targets

LOWEST = torch.finfo(torch.float32).min


class Attention(nn.Module):
    """One head with a causal mask."""

    def __init__(self, masked: float = -30.0) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.register_buffer("mask", torch.zeros(6, 6).masked_fill(torch.ones(6, 6).triu(1).bool(), masked))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).transpose(-2, -1) / 4
        scores = scores + self.mask
        return self.out(scores.softmax(-1) @ self.v(x))


class Head(nn.Module):
    """A detection head: boxes in pixels beside confidences."""

    def __init__(self, together: bool = True) -> None:
        super().__init__()
        self.together = together
        self.body, self.box, self.conf = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = self.body(x).relu()
        parts = torch.sigmoid(self.box(x)) * 640, torch.sigmoid(self.conf(x))
        return torch.cat(parts, 1) if self.together else parts


class Branches(nn.Module):
    """A sum of two branches, of which one has a wide channel."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(3, 4, 1)
        with torch.no_grad():
            self.wide.weight[0] *= 500
            self.wide.weight[1:] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(x) + self.narrow(x)


class Outlier(nn.Module):
    """A layer whose widest channel the next one does not use: the rounding between both is to blame."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 4)
        with torch.no_grad():
            self.one.weight[0] *= 3000
            self.two.weight[:, 0] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))


class InPlace(nn.Module):
    """Norms that are folded, and operators that change their inputs, the graph's own included."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        out = self.relu(self.norm(self.conv(x)))
        out += x
        return out


def dead_channel() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    with torch.no_grad():
        net[0].weight[0] *= 400  # as a folded norm without variance makes it
        net[0].bias[0] = -1e4  # type: ignore[index]
    return net


def attention_lowest() -> nn.Module:
    return Attention(LOWEST)


def attention_infinite() -> nn.Module:
    return Attention(-math.inf)


def apart() -> nn.Module:
    return Head(together=False)


IMAGES = {Head, Branches, InPlace, apart, dead_channel}
Made = Callable[[], nn.Module]


@functools.cache
def _case(made: Made) -> tuple[nn.Module, list[tuple[Tensor]], list[Tensor]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = made().eval()
        shape = (2, 3, 8, 8) if made in IMAGES else (2, 6, 8 if made is Outlier else 16)
        batches = [(torch.randn(shape),) for _ in range(3)]
        with torch.no_grad():
            return net, batches, [net(one.clone()) for (one,) in batches]


def prepared_graph(
    made: Made, off: tuple[str, ...] = (), per_channel: bool = True, dynamic: bool = False
) -> GraphModule:
    net, batches, _ = _case(made)
    config = xnn.get_symmetric_quantization_config(is_per_channel=per_channel, is_dynamic=dynamic)
    quantizer = targets.quantizer("executorch", targets.STATIC, off).set_global(config)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        prepared = prepare_pt2e(torch.export.export(copy.deepcopy(net), batches[0]).module(), quantizer)
        for (one,) in batches:
            prepared(one.clone())
    return prepared


@functools.cache
def quantized_graph(made: Made, per_channel: bool = True, dynamic: bool = False) -> find.Quantized:
    return find.Quantized(prepared_graph(made, (), per_channel, dynamic))


def really_without(made: Made, off: tuple[str, ...], per_channel: bool = True) -> find.Outcome:
    """The quality of a graph that was prepared anew, with those operators in float, and converted."""
    _, batches, exact = _case(made)
    prepared = prepared_graph(made, off, per_channel)
    again = find.Quantized(prepared)
    assert not set(off) & set(again.operators)
    converted = convert_pt2e(prepared)
    outcome = find.measure(again.without(), batches, exact)
    assert torch.allclose(converted(*batches[0]), again.run(batches[0])[0], atol=1e-5), "what the book converts"
    return outcome


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


# --- known faults ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("made", "lowest"), [(attention_lowest, "-3.4e38"), (attention_infinite, "-inf")])
def test_a_mask_of_huge_numbers_is_found_and_a_small_one_advised(made: Made, lowest: str) -> None:
    _, batches, exact = _case(made)
    found = find.suggest(quantized_graph(made), batches, exact, enough_db=30)
    assert found.operators == ("add",)
    assert found.before.sqnr_db < 20 < 35 < found.sqnr_db
    assert found.words[0].startswith("add (line ")
    assert f"`scores = scores + self.mask`)): its values reach from {lowest} to " in found.words[0]
    assert "a mask of -30 does the same after softmax" in found.words[0]
    assert really_without(made, found.operators) == pytest.approx(found.after, abs=0.1)


def test_a_small_mask_needs_nothing() -> None:
    _, batches, exact = _case(Attention)
    found = find.suggest(quantized_graph(Attention), batches, exact, enough_db=25)
    assert found.operators == found.words == ()
    assert found.before == found.after
    assert found.sqnr_db > 30, "what the advice is for"


def test_a_cat_of_parts_of_different_scale_is_found_by_its_dead_channels() -> None:
    _, batches, exact = _case(Head)
    found = find.suggest(quantized_graph(Head), batches, exact, enough_db=35)
    assert found.before.sqnr_db > 45, "the boxes hide it"
    assert found.before.worst_db == 0, "a confidence is 0"
    assert found.operators == ("cat",)
    assert found.worst_db > 40
    assert "it joins parts of different scale" in found.words[0]
    assert "Return the parts as separate outputs, or leave the cat in float. In float, the outputs" in found.words[0]
    assert really_without(Head, found.operators) == pytest.approx(found.after, abs=3)


def test_the_cure_for_a_cat_cures() -> None:
    _, batches, exact = _case(apart)
    outcome = find.measure(quantized_graph(apart).without(), batches, exact)
    assert outcome.worst_db > 35


def test_a_sum_of_branches_of_different_scale_is_found() -> None:
    _, batches, exact = _case(Branches)
    found = find.suggest(quantized_graph(Branches), batches, exact, enough_db=35)
    assert (found.operators, found.before.worst_db < 3, found.worst_db > 35) == (("add",), True, True)
    assert "it adds values of different scale, from " in found.words[0]
    assert really_without(Branches, found.operators) == pytest.approx(found.after, abs=0.1)


def test_a_channel_that_takes_the_others_their_scale_is_found_per_tensor_and_is_none_per_channel() -> None:
    _, batches, exact = _case(dead_channel)
    found = find.suggest(quantized_graph(dead_channel, per_channel=False), batches, exact, enough_db=30)
    assert found.operators[0] == "conv2d"
    assert found.before.sqnr_db < 20 < 30 < found.sqnr_db
    assert "the widest channel of its weights is " in found.words[0]
    assert "Take one scale for each channel" in found.words[0]
    assert really_without(dead_channel, found.operators, per_channel=False) == pytest.approx(found.after, abs=0.1)
    table = {one.name: one.weights_apart for one in find.compare(quantized_graph(dead_channel), batches)}
    assert table["conv2d"] == 1


def test_two_operators_that_round_the_same_values_are_found_together() -> None:
    _, batches, exact = _case(Outlier)
    quantized = quantized_graph(Outlier)
    alone = find.alone_in_float(quantized, batches, exact, quantized.operators)
    found = find.suggest(quantized, batches, exact, enough_db=30)
    assert all(one.sqnr_db < found.before.sqnr_db + 1 for one in alone.values()), "neither helps alone"
    assert (found.operators, found.sqnr_db) == (("linear", "linear_1"), math.inf)
    assert found.before.sqnr_db < 10


# --- the simulation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [attention_lowest, attention_infinite, Head, InPlace, apart])
def test_with_everything_off_the_graph_is_the_float_model(made: Made) -> None:
    _, batches, exact = _case(made)
    quantized = quantized_graph(made)
    assert quantized.operators
    assert find.measure(quantized.without(weights=False, activations=False), batches, exact).sqnr_db > 100
    assert find.measure(quantized.without(quantized.operators), batches, exact).sqnr_db > 100
    assert find.measure(quantized.without(), batches, exact).sqnr_db < 60


def test_inputs_are_left_as_they_are_by_a_model_that_changes_them() -> None:
    _, batches, _ = _case(InPlace)
    before = batches[0][0].clone()
    quantized_graph(InPlace).run(batches[0])
    assert torch.equal(before, batches[0][0])


def test_a_layer_left_in_float_with_its_relu_is_as_in_a_graph_prepared_without_it() -> None:
    _, batches, exact = _case(InPlace)
    alone = find.alone_in_float(quantized_graph(InPlace), batches, exact, ["conv2d"])["conv2d"]
    assert really_without(InPlace, ("conv2d",)) == pytest.approx(alone, abs=1)


def test_weights_and_activations_are_told_apart() -> None:
    _, batches, exact = _case(attention_lowest)
    quantized = quantized_graph(attention_lowest)
    weights = find.measure(quantized.without(activations=False), batches, exact)
    activations = find.measure(quantized.without(weights=False), batches, exact)
    assert weights.sqnr_db > 40
    assert activations.sqnr_db < 20


def test_a_dynamic_graph_is_compared_too() -> None:
    _, batches, exact = _case(Attention)
    quantized = quantized_graph(Attention, dynamic=True)
    assert quantized.operators == ["linear", "linear_1", "linear_2", "linear_3"]
    assert 35 < find.measure(quantized.without(), batches, exact).sqnr_db < 60
    assert find.measure(quantized.without(quantized.operators), batches, exact).sqnr_db > 100


def test_a_row_tells_where_an_operator_is() -> None:
    _, batches, _ = _case(Attention)
    rows = {one.name: one for one in find.compare(quantized_graph(Attention), batches)}
    assert list(rows) == ["linear", "linear_1", "transpose", "add", "linear_2", "linear_3"]
    assert rows["linear_2"].module == "v"
    assert rows["add"].where.endswith("(`scores = scores + self.mask`)")
    assert rows["add"].kind == "add"
    assert rows["add"].range[0] < -25
    assert 30 < rows["linear"].sqnr_db < 60
    assert rows["linear"].fall_db == pytest.approx(60 - rows["linear"].sqnr_db)


# --- channels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 3), (5, 7, 3), (5, 3, 2, 2), (5, 3, 2, 2, 2)])
def test_the_worst_channel_is_found_in_outputs_of_all_kinds(shape: tuple[int, ...]) -> None:
    exact = torch.linspace(1, 2, math.prod(shape)).view(shape)
    found = exact.clone()
    found.select(2 if len(shape) == 3 else 1, 2)[0] = 0
    assert [one.number for one in find.channels(exact, found) if one.sqnr_db < math.inf] == [2]
    assert find.worst_channel(exact, found).number == 2


@pytest.mark.parametrize(("moved", "wrong"), [(0.05, False), (0.2, True)])
def test_a_constant_channel_is_wrong_only_if_it_moves_by_more_than_a_hundredth_of_the_range(
    moved: float, wrong: bool
) -> None:
    exact = torch.stack([torch.linspace(0, 10, 4), torch.zeros(4)], 1)
    found = exact + torch.tensor([0.0, moved])
    assert find.worst_channel(exact, found).sqnr_db == (-math.inf if wrong else math.inf)
    assert find.channels(exact, found)[1].deviation == pytest.approx(moved)


def test_infinite_values_are_right_only_where_both_have_them() -> None:
    exact = torch.tensor([-math.inf, 1.0, 2.0])
    assert find.worst_channel(exact, exact.clone()).sqnr_db == math.inf
    assert find.worst_channel(exact, torch.tensor([0.0, 1.0, 2.0])).sqnr_db == -math.inf
    assert find.worst_channel(exact, torch.tensor([-math.inf, 1.0, math.nan])).sqnr_db == -math.inf


# --- refusals ----------------------------------------------------------------------------------------


def test_outputs_of_other_inputs_are_refused() -> None:
    _, batches, exact = _case(Attention)
    with pytest.raises(find.FindError, match=r"Without any rounding the graph is -?[0-9] dB from the float model"):
        find.suggest(quantized_graph(Attention), batches, exact[::-1], enough_db=30)


def test_outputs_that_do_not_go_together_are_refused() -> None:
    _, batches, exact = _case(Attention)
    run = quantized_graph(Attention).without()
    with pytest.raises(find.FindError, match="The float model has 2 outputs, and the graph 1"):
        find.measure(run, batches, [(one, one) for one in exact])
    with pytest.raises(find.FindError, match="There are no inputs"):
        find.measure(run, [], [])
    with pytest.raises(find.FindError, match=r"Outputs of shapes \(2, 3\) and \(3, 2\) cannot be compared"):
        find.worst_channel(torch.ones(2, 3), torch.ones(3, 2))


def test_a_graph_that_saw_no_data_is_refused_and_a_good_one_is_not_changed() -> None:
    _, batches, _ = _case(Outlier)
    prepared = prepared_graph(Outlier)
    before = prepared(*batches[0])
    find.Quantized(prepared)
    assert torch.equal(prepared(*batches[0]), before)
    assert convert_pt2e(prepared)(*batches[0]).shape == (2, 6, 4)
    with pytest.raises(graphs.GraphError, match="no observers either"):
        find.Quantized(prepared)
