"""Fewer bits: rounding, ranges, adaptive rounding, the loop, and fair comparisons, with tiny nets."""

import copy
import json
from collections import Counter
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments import few_bits, loop, runs
from experiments.few_bits import FakeQuantize, QuantizedLayer
from qhelpers import metrics
from qhelpers.book import recorded
from qhelpers.tasks import digits


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def net() -> nn.Module:
    """Convolutions of the kinds that the two networks have, and a Linear."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = (
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * 4 * 4, 10),
        )
        return nn.Sequential(*layers).eval()


@pytest.fixture
def images() -> Tensor:
    return noise(40, 3, 8, 8)


def batch(step: int, first: float = 0.0) -> tuple[Tensor, Tensor]:
    images = noise(8, 3, 8, 8, seed=step)
    images[0, 0, 0, 0] += first
    return images, torch.arange(8)


# --- rounding and ranges -------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [0, -4, 2.5, True, "4"])
@pytest.mark.parametrize("signed", [True, False])
def test_a_bit_width_without_codes_is_refused_by_name(bits: Any, signed: bool) -> None:
    with pytest.raises(few_bits.BitsError, match=f"{bits!r} is no bit width"):
        few_bits.require_bits(bits, signed)


def test_one_bit_has_codes_only_without_a_sign(net: nn.Module, images: Tensor) -> None:
    assert few_bits.require_bits(1, signed=False) == 1
    with pytest.raises(few_bits.BitsError, match="one bit has no positive one"):
        few_bits.quantized(net, (1, 8), images, optimal=False)


def test_values_are_rounded_to_codes_and_clamped() -> None:
    rounded = FakeQuantize(torch.tensor([0.5]), -2, 1)(torch.tensor([[-9.0, -0.3, 0.2, 0.3, 9.0]]))
    assert rounded.tolist() == [[-1.0, -0.5, 0.0, 0.5, 0.5]]


def test_gradients_are_straight_through_and_the_scale_has_its_own() -> None:
    x = torch.tensor([[-9.0, -0.62, 0.13, 0.41, 9.0]], requires_grad=True)
    quantize = FakeQuantize(torch.tensor([0.25]), -8, 7)
    quantize(x).sum().backward()
    scale = torch.tensor([0.25], requires_grad=True)
    theirs = x.detach().clone().requires_grad_()
    factor = 1 / (5 * 7) ** 0.5
    rounded = torch._fake_quantize_learnable_per_tensor_affine(theirs, scale, torch.zeros(1), -8, 7, factor)
    rounded.sum().backward()
    torch.testing.assert_close(x.grad, theirs.grad)
    torch.testing.assert_close(quantize.scale.grad, scale.grad)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_optimal_ranges_have_the_smaller_error(bits: int) -> None:
    weight, values = noise(6, 4, 3, 3), noise(1, 5000).abs()
    for make, x in ((few_bits.weight_quantizer, weight), (few_bits.input_quantizer, values)):
        plain, optimal = ((make(x, bits, best)(x) - x).flatten(1).square().sum(1) for best in (False, True))
        assert (optimal <= plain * 1.001).all()
        assert bits > 4 or optimal.sum() < 0.9 * plain.sum()


def test_inputs_have_a_zero_point_where_they_have_two_signs() -> None:
    quantize = few_bits.input_quantizer(torch.tensor([-1.0, 2.0]), 2, optimal=False)
    assert (quantize.low, quantize.high) == (-1, 2)
    assert few_bits.input_quantizer(torch.tensor([0.0, 2.0]), 2, optimal=False).low == 0


def test_the_first_and_last_layer_keep_eight_bits(net: nn.Module, images: Tensor) -> None:
    layers = few_bits.layers_of(few_bits.quantized(net, (3, 4), images, optimal=False)).values()
    assert [layer.weights.high for layer in layers] == [127, 3, 3, 127]
    assert [layer.inputs.high - layer.inputs.low + 1 for layer in layers] == [256, 16, 16, 256]


def test_weights_have_a_scale_for_each_channel_and_a_dead_one_does_no_harm(net: nn.Module, images: Tensor) -> None:
    net[2].weight.data[3] = 0
    quantized = few_bits.quantized(net, (4, 8), images, optimal=True)
    assert quantized[2].weights.scale.shape == (8, 1, 1, 1)
    assert torch.isfinite(quantized(images)).all()


def test_many_bits_are_nearly_float(net: nn.Module, images: Tensor) -> None:
    with torch.inference_mode():
        exact = net(images)
        found = [metrics.sqnr_db(exact, few_bits.quantized(net, (b, 8), images, False)(images)) for b in (2, 4, 8)]
    assert found == sorted(found)
    assert found[-1] > 30


def test_folded_networks_have_no_norms_left_and_compute_the_same() -> None:
    images = few_bits.calibration_images(0, per_class=1)
    for name, load in few_bits.NETWORKS.items():
        folded = few_bits.float_network(name)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
        with torch.inference_mode():
            torch.testing.assert_close(folded(images), load()(images), atol=2e-3, rtol=1e-3)


# --- adaptive rounding ---------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 2, 4, 7])
def test_patches_times_weights_are_the_layers_outputs(net: nn.Module, images: Tensor, place: int) -> None:
    layer, x = net[place], net[:place](images)
    y = layer(x)
    places = torch.tensor([0, 5, 39])
    found = few_bits.patches(layer, x, places)
    weight = layer.weight.reshape(found.shape[1], -1, found.shape[2])
    product = torch.einsum("sgk,gok->sgo", found, weight).flatten(1) + layer.bias
    torch.testing.assert_close(product, y.movedim(1, -1).reshape(-1, y.shape[1])[places], atol=1e-5, rtol=1e-4)


def test_adaptive_rounding_lowers_the_error_and_moves_no_weight_by_more_than_a_step(
    net: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(few_bits, "ROUNDING_STEPS", 60)
    nearest = few_bits.quantized(net, (3, 8), 20 * images, optimal=True)
    adapted = copy.deepcopy(nearest)
    few_bits.adaptive_rounding(adapted, net, 20 * images, rate=0.1, seed=0)
    test = 20 * noise(100, 3, 8, 8, seed=1)
    with torch.inference_mode():
        before, after = (metrics.sqnr_db(net(test), one(test)) for one in (nearest, adapted))
    assert after > before + 1
    for name, layer in few_bits.layers_of(adapted).items():
        weight, old = layer.weights(layer.layer.weight), nearest.get_submodule(name)
        torch.testing.assert_close(weight, layer.layer.weight)  # lies on the grid already
        steps = (weight - old.weights(old.layer.weight)) / layer.weights.scale
        assert steps.abs().max() < 1.01


# --- training ------------------------------------------------------------------------------------------


def test_training_moves_weights_and_scales_and_lowers_the_loss(net: nn.Module, images: Tensor) -> None:
    quantized = few_bits.quantized(net, (3, 4), images, optimal=True)
    before = copy.deepcopy(quantized)
    inputs, labels = batch(0)
    few_bits.train(quantized, lambda step: batch(0), 30, 0.05)
    assert not quantized.training
    losses = [F.cross_entropy(one(inputs), labels).item() for one in (before, quantized)]
    assert losses[1] < 0.95 * losses[0]
    changed = [not torch.equal(a, b) for a, b in zip(before.parameters(), quantized.parameters(), strict=True)]
    assert all(changed)


def test_a_constant_rate_trains_otherwise_than_a_falling_one(net: nn.Module) -> None:
    twins = [copy.deepcopy(net) for _ in range(2)]
    for cosine, twin in zip((True, False), twins, strict=True):
        few_bits.train(twin, batch, 4, 0.1, cosine=cosine)
    assert not torch.equal(twins[0][0].weight, twins[1][0].weight)


def test_dropout_follows_from_the_seed_and_the_global_state_stays(net: nn.Module) -> None:
    net.append(nn.Dropout())
    twins = [copy.deepcopy(net) for _ in range(3)]
    state = torch.get_rng_state()
    for twin, seed in zip(twins, (1, 1, 2), strict=True):
        few_bits.train(twin, batch, 2, 0.1, seed=seed)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(twins[0][0].weight, twins[1][0].weight)
    assert not torch.equal(twins[0][0].weight, twins[2][0].weight)


def test_a_loss_that_is_not_finite_names_step_and_layer(net: nn.Module, images: Tensor) -> None:
    quantized = few_bits.quantized(net, (4, 8), images, optimal=False)

    def damaging(step: int) -> tuple[Tensor, Tensor]:
        if step == 2:
            quantized[4].layer.bias.data[0] = float("nan")  # an infinite one would be clamped
        return batch(step)

    with pytest.raises(loop.DivergedError, match=r"loss of step 2 is nan; the first that is not finite is 4") as caught:
        few_bits.train(quantized, damaging, 5, 1e-3)
    assert (caught.value.step, caught.value.layer) == (2, "4")


def test_a_damaged_image_is_named_instead_of_a_layer(net: nn.Module) -> None:
    with pytest.raises(loop.DivergedError, match=r"step 0 is .*the batch itself"):
        few_bits.train(net, partial(batch, first=float("nan")), 1, 1e-3)


def test_a_control_that_did_not_get_the_same_batches_is_refused(net: nn.Module) -> None:
    same, again, other = (
        few_bits.train(copy.deepcopy(net), partial(batch, first=first), 2, 1e-3) for first in (0.0, 0.0, 1e-3)
    )
    run = {"arm": "QAT", "bits": "4/8", "seed": 0, "batches": same}
    few_bits.require_same_batches(run, run | {"arm": "control", "batches": again})
    with pytest.raises(few_bits.BatchesError, match="QAT 4/8 seed 0 and control 4/8 seed 0 were not trained on the"):
        few_bits.require_same_batches(run, run | {"arm": "control", "batches": other})


# --- the recorded runs ---------------------------------------------------------------------------------


@cache
def labels_of_test() -> Tensor:
    return digits.dataset("test").tensors[1]


def faked(run: dict[str, Any]) -> dict[str, Any]:
    """As if the middle rate were the best one, and every seventh digit were read wrong."""
    labels = labels_of_test().clone()
    labels[:: 7 + run["seed"]] = 0
    top1 = {0.001: 99.0, 0.0003: 98.0}.get(run.get("lr", 0), 90.0) + (run["arm"] == "MSE")
    found = {"validation": top1, "validation_loss": 0.1, "test": top1, "answers": "".join(map(str, labels.tolist()))}
    return found | ({"batches": str(run["seed"])} if "lr" in run else {})


def fake_run(list_of_runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [run | faked(run) for run in list_of_runs]


def fake_rows(network: str = "residual net") -> list[dict[str, Any]]:
    rows = fake_run(few_bits.plain_rounding(network))
    rows += fake_run(few_bits.tuning(network, rows))
    return rows + fake_run(few_bits.repeated(network, rows))


def test_each_step_chooses_on_validation_what_the_next_one_runs() -> None:
    rows = fake_run(few_bits.plain_rounding("residual net"))
    tuned = few_bits.tuning("residual net", rows)
    arms = len(few_bits.SCHEMES) + 1
    assert len(tuned) == arms * len(few_bits.RATES)
    assert {run["ranges"] for run in tuned if run["arm"] == "QAT"} == {"MSE"}
    rows += fake_run(tuned)
    repeated = few_bits.repeated("residual net", rows)
    assert {run["lr"] for run in repeated} == {0.001}
    assert len(repeated) == arms * len(few_bits.SEEDS)


def test_one_thing_is_varied_at_a_time() -> None:
    around = few_bits.one_at_a_time(fake_rows())
    center = around[0]
    changed = [{key for key in run if key != "seed" and run[key] != center.get(key)} for run in around]
    assert max(map(len, changed)) == 1
    assert set.union(*changed) == {"lr", "schedule", "scales", "ranges", "steps"}


def test_what_is_written_has_pairs_instead_of_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    monkeypatch.setattr(few_bits, "COSTS", tmp_path / "none.json")
    rows = fake_rows()
    few_bits.write("few_bits", rows)
    found = recorded.results("few_bits", tmp_path)
    assert len(found["rows"]) < len(rows), "chosen tuning runs stand there once"
    assert "answers" not in json.dumps(found)
    row = recorded.rows_where(found, network="residual net", arm="QAT", bits="4/4", lr=0.001, seed=1)[0]
    control = recorded.rows_where(found, network="residual net", arm="control", lr=0.001, seed=1)[0]
    assert (row["lost_to_control"], row["won_from_control"]) == (0, 0)
    assert row["lost_to_float"] == control["lost_to_float"] > 0
    assert row["untrained"] == "MSE", "it reads more validation digits than min-max"
    assert (row["lost_to_untrained"], row["won_from_untrained"]) == (0, 0)


@pytest.mark.parametrize("network", few_bits.NETWORKS)
def test_committed_results_have_all_arms_with_three_seeds_and_the_controls_batches(network: str) -> None:
    found = recorded.results("few_bits")
    for run in few_bits.plain_rounding(network) + few_bits.adaptively_rounded(network):
        assert recorded.rows_where(found, **run)
    mine = recorded.rows_where(found, network=network)
    control = {row["seed"]: row["batches"] for row in mine if row["arm"] == "control"}
    trained = [row for row in mine if row["arm"] == "QAT" and "part" not in row]
    for bits in few_bits.SCHEMES:
        by_rate = Counter(row["lr"] for row in trained if row["bits"] == bits)
        assert sorted(by_rate.values()) == [1, 1, 3], "three rates were tried, and one was repeated"
    assert all(row["batches"] == control[row["seed"]] for row in trained)
    assert {row["process"] for row in found["step"]} == {0, 1, 2, 3, 4}


def test_training_after_adaptive_rounding_starts_from_it() -> None:
    asked: list[dict[str, Any]] = []

    def run(list_of_runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        asked.extend(list_of_runs)
        return fake_run(list_of_runs)

    few_bits.after_rounding(run)
    trained = [one for one in asked if one["arm"] == "QAT"]
    assert {one["ranges"] for one in trained} == {"adaptive rounding"}
    assert {(one["network"], one["bits"]) for one in trained} == {
        (network, bits) for network, schemes in few_bits.AFTER_ROUNDING.items() for bits in schemes
    }


def test_longer_training_has_a_control_that_is_as_long() -> None:
    rows = few_bits.after_rounding(fake_run, longer=8)
    for network in few_bits.NETWORKS:
        long = [row for row in rows if row["network"] == network and "steps" in row]
        assert {row["steps"] for row in long} == {8 * few_bits.STEPS[network]}
        assert {row["arm"] for row in long} == {"QAT", "control"}
        assert {row["bits"] for row in long if row["arm"] == "QAT"} == {"2/2"}
    trained = next(row for row in rows if row["arm"] == "QAT")
    assert {"lost_to_control", "lost_to_untrained"} <= set(few_bits.compared(trained, rows))


def test_runs_on_other_batches_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    rows = fake_rows()
    next(row for row in rows if row["arm"] == "QAT")["batches"] = "others"
    with pytest.raises(few_bits.BatchesError):
        few_bits.write("few_bits", rows)


def test_a_diverged_run_is_recorded_with_step_and_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*arguments: Any, **options: Any) -> str:
        raise loop.DivergedError("", 7, "layer1.0.conv1")

    monkeypatch.setattr(few_bits, "train", diverge)
    run = {"network": "residual net", "arm": "control", "lr": 1.0, "steps": 1, "seed": 0}
    assert few_bits.measure(run) == {"diverged": 7, "layer": "layer1.0.conv1"}


def test_scales_can_be_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[bool]] = []

    def look(net: nn.Module, *arguments: Any, **options: Any) -> str:
        scales = [module.scale for module in net.modules() if isinstance(module, FakeQuantize)]
        seen.append([scale.requires_grad for scale in scales])
        return ""

    monkeypatch.setattr(few_bits, "train", look)
    run = {"network": "residual net", "arm": "QAT", "bits": "4/4", "ranges": "min-max", "lr": 1e-3, "steps": 1}
    for scales in ("learned", "fixed"):
        net, _ = few_bits.made(run | {"scales": scales, "seed": 0})
    assert len([module for module in net.modules() if isinstance(module, QuantizedLayer)]) == 16
    assert [set(flags) for flags in seen] == [{True}, {False}]


def test_a_step_has_a_time_and_a_peak_that_rounding_raises() -> None:
    plain, rounded = (few_bits.cost("residual net", kind, steps=3) for kind in ("float", "QAT"))
    assert plain["ms"] > 0
    assert 0 < plain["peak_mb"] < rounded["peak_mb"]


@pytest.mark.parametrize("other", [{"dilation": 2}, {"padding_mode": "reflect"}, {"padding": "same"}])
def test_patches_of_other_convolutions_are_refused(other: dict[str, Any]) -> None:
    with torch.random.fork_rng(devices=[]):
        layer = nn.Conv2d(3, 3, 3, **{"padding": 1} | other)
    with pytest.raises(NotImplementedError, match="only of plain zero padding"):
        few_bits.patches(layer, torch.zeros(1, 3, 8, 8), torch.arange(4))
