"""The tools of diagnosis and repair, on a small CNN, a residual network and the digits model."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization as tq

from qhelpers import calibration, data, diagnose, models, repair, simulate
from qhelpers.diagnose import Scheme

EIGHT = Scheme()


def seeded(build: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net: nn.Module = build()
    return net.eval()


def small_cnn() -> nn.Module:
    """Two convolutions, the first with one channel a thousand times wider, and a Linear behind pooling."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    )
    net.extend([nn.Linear(32, 5)])
    with torch.no_grad():
        net[0].weight[1] *= 1000
        net[2].weight[1] /= 1000
    return net


class Residual(nn.Module):
    """A block whose input is added to its output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.outer = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 4, 1)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = x + self.outer(torch.relu(self.inner(x)))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))  # type: ignore[no-any-return]


def images(n: int = 32) -> Tensor:
    return torch.rand(n, 3, 10, 10, generator=torch.Generator().manual_seed(1))


def same_function(one: nn.Module, other: nn.Module, inputs: Tensor) -> bool:
    with torch.inference_mode():
        return torch.allclose(one(inputs), other(inputs), atol=1e-4)


def fused_digits() -> nn.Module:
    net = models.load_digits_float()
    net.fuse_model(is_qat=False)  # type: ignore[operator]
    return net


# --- simulation ----------------------------------------------------------------------------------------


def test_a_simulation_leaves_the_model_as_it_was() -> None:
    net = seeded(small_cnn)
    before, exact = copy.deepcopy(net.state_dict()), net(images())
    ranges = diagnose.activation_ranges(net, [images()])

    def fail_inside() -> None:
        with diagnose.simulated(net, ranges, Scheme(2, 2)):
            assert not torch.allclose(net(images()), exact, atol=1e-3)
            raise KeyError("an error inside the block")

    with pytest.raises(KeyError):
        fail_inside()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(net(images()), exact)


@pytest.mark.parametrize("per_channel", [False, True])
def test_simulated_weights_are_those_that_pytorch_packs(per_channel: bool) -> None:
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    observer = tq.default_per_channel_weight_observer() if per_channel else tq.default_weight_observer()
    observer(weight)
    scale, zero_point = observer.calculate_qparams()
    if per_channel:
        packed = torch.quantize_per_channel(weight, scale, zero_point, 0, torch.qint8)
    else:
        packed = torch.quantize_per_tensor(weight, float(scale), int(zero_point), torch.qint8)
    off = (simulate.quantize_weight(weight, 8, per_channel) - packed.dequantize()).abs()
    largest = weight.abs() == (weight.abs().amax((1, 2, 3), keepdim=True) if per_channel else weight.abs().max())
    assert float(off[~largest].max()) < 1e-6
    assert float(off.max()) <= 1.01 * float(
        scale.max()
    )  # the largest lies between two codes, and ties break either way


def test_a_simulation_agrees_with_the_converted_model() -> None:
    net = seeded(lambda: tq.QuantWrapper(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(256, 5))))
    activation = tq.MinMaxObserver.with_args(dtype=torch.quint8, reduce_range=False)
    with torch.random.fork_rng(devices=[]):
        net.qconfig = tq.QConfig(activation=activation, weight=tq.default_weight_observer)  # type: ignore[assignment]
        prepared = tq.prepare(net)
    calibration.calibrate(prepared, [images()], progress=False)
    int8 = tq.convert(prepared)
    with diagnose.simulated(net, diagnose.activation_ranges(net, [images()]), EIGHT), torch.inference_mode():
        simulated = net(images())
    step = float(int8.module[2].scale)  # type: ignore[index, union-attr, arg-type]
    assert float((simulated - int8(images())).abs().max()) <= 1.01 * step


def test_a_sum_through_a_float_functional_is_quantized() -> None:
    assert "features.3.skip_add.activation_post_process" in diagnose.activation_ranges(
        fused_digits(), data.calibration_batches(1)
    )


def test_layers_that_are_not_known_pass_through_and_are_reported() -> None:
    net = seeded(lambda: nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4)))
    found = diagnose.diagnose(net, [torch.ones(20, 4)], [torch.ones(20, 4)])
    assert found.unknown == {"1": "LSTM"}
    assert "Passed through in float: 1 (LSTM)." in found.verdicts
    ranges = diagnose.activation_ranges(net, [torch.ones(2, 4)])
    weight = net[1].weight_ih_l0.clone()  # type: ignore[index, operator, union-attr]
    with diagnose.simulated(net, ranges, Scheme(2, 2)):
        assert torch.equal(net[1].weight_ih_l0, weight)  # type: ignore[index, arg-type, union-attr]


# --- diagnosis -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [small_cnn, Residual])
def test_the_layer_that_was_broken_is_named(build: Any) -> None:
    net = seeded(build)
    name = "0" if build is small_cnn else "inner"
    if build is Residual:
        with torch.no_grad():
            net.inner.weight[1] *= 1000  # type: ignore[index, operator, union-attr]
            net.outer.weight[:, 1] /= 1000  # type: ignore[index, operator, union-attr]
    with torch.no_grad():
        net.get_submodule(name).bias.zero_()  # type: ignore[operator, union-attr]
    found = diagnose.diagnose(net, [images()], [images()], Scheme(8, None))
    assert found.culprit == name
    assert found.verdicts[-1].startswith(f"Culprit: {name}. Left in float it gains")
    row = next(row for row in found.rows if row.name == name)
    assert row.alone_db == min(one.alone_db for one in found.rows)
    local, accumulated = diagnose.layer_sqnr(net, [images()], {}, Scheme(8, None))[name]
    assert abs(local - accumulated) < 6  # what comes before it does little


def test_no_layer_is_accused_where_none_stands_out() -> None:
    net = seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)))
    inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    found = diagnose.diagnose(net, [inputs], [inputs])
    assert found.culprit is None
    assert found.verdicts[-1].startswith("No single culprit")


def test_the_digits_model_names_its_depthwise_layer(one_thread: None) -> None:
    torch.set_num_threads(1)
    net = fused_digits()
    few = list(data.digit_loader("validation", batch_size=16, limit=16))
    ranges = diagnose.activation_ranges(net, few)
    with diagnose.simulated(net, ranges, EIGHT, activations=()):
        everything = diagnose.compare_outputs(simulate.outputs(fused_digits(), [few[0][0]]), net(few[0][0]))[0]
    rows = diagnose.sensitivity(net, few, ranges, EIGHT)
    worst = max(rows, key=lambda row: row.left_out_db)
    assert worst.name == "features.1.conv.0.0" == min(rows, key=lambda row: row.alone_db).name
    assert worst.left_out_db > everything + diagnose.CULPRIT_DB


def test_few_inputs_are_said_to_be_few() -> None:
    net = seeded(small_cnn)
    assert diagnose.diagnose(net, [images(1)], [images()]).verdicts[0].startswith("Only 1 inputs")
    assert not diagnose.diagnose(net, [images(16)], [images()]).verdicts[0].startswith("Only")


# --- equalization --------------------------------------------------------------------------------------


def test_equalization_keeps_the_function_and_evens_the_ranges() -> None:
    net = seeded(small_cnn)
    equal, done = diagnose.equalize(net)
    assert done.pairs == [("0", "2"), ("2", "6")]
    assert done.skipped == {"6": "it is the last layer"}
    assert same_function(net, equal, images())
    ratio = [
        float(diagnose.channel_ranges(one[0]).max() / diagnose.channel_ranges(one[0]).min()) for one in (net, equal)
    ]
    assert ratio[0] > 500 > 10 > ratio[1]
    ranges = diagnose.activation_ranges(equal, [images()])
    with diagnose.simulated(equal, ranges, EIGHT):
        repaired = diagnose.compare_outputs(net(images()), equal(images()))[0]
    with diagnose.simulated(net, diagnose.activation_ranges(net, [images()]), EIGHT):
        broken = diagnose.compare_outputs(seeded(small_cnn)(images()), net(images()))[0]
    assert repaired > broken + 10


def test_a_residual_blocks_equalization_and_is_reported() -> None:
    net = seeded(Residual)
    equal, done = diagnose.equalize(net)
    assert done.pairs == [("inner", "outer")]
    assert done.skipped["first"] == "its output is read 2 times (a branch)"
    assert done.skipped["outer"] == "add lies behind it, and does not pass factors through"
    assert same_function(net, equal, images())


def test_the_digits_model_keeps_its_function() -> None:
    net = fused_digits()
    equal, done = diagnose.equalize(net)
    assert len(done.pairs) == 37
    assert same_function(net, equal, next(iter(data.calibration_batches(8)))[0])


@pytest.mark.parametrize("activation", [nn.ReLU6, nn.Hardswish, nn.GELU, nn.Sigmoid])
def test_activations_through_which_scaling_is_not_exact_are_refused_by_name(activation: type[nn.Module]) -> None:
    net = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 1), activation(), nn.Conv2d(4, 4, 1)))
    equal, done = diagnose.equalize(net)
    assert not done.pairs
    assert done.skipped["0"] == f"{activation.__name__} lies behind it, and does not pass factors through"
    assert torch.equal(equal[0].weight, net[0].weight)  # type: ignore[index, arg-type, union-attr]


def test_shared_weights_are_left_alone() -> None:
    def twice() -> nn.Module:
        layer = nn.Linear(4, 4)
        return nn.Sequential(layer, nn.ReLU(), layer)

    _, done = diagnose.equalize(seeded(twice))
    assert done.skipped == {"0": "the weights of 0 are shared"}
    net = seeded(lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)))
    net[4].weight = net[2].weight  # type: ignore[index, union-attr]
    equal, done = diagnose.equalize(net)
    assert not done.pairs
    assert done.skipped["0"] == "the weights of 2 are shared"
    assert torch.equal(equal[2].weight, net[2].weight)  # type: ignore[index, arg-type, union-attr]


def test_an_unfused_batch_norm_is_refused_by_name() -> None:
    net = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)))
    with pytest.raises(repair.UnfusedError, match=r"1 batch norms are not folded .* \(1\): call fuse_model"):
        diagnose.equalize(net)
    fused = tq.fuse_modules(net, [["0", "1", "2"]])
    assert diagnose.equalize(fused)[1].pairs == [("0", "3")]


def test_dead_channels_stay_dead_and_are_reported() -> None:
    net = seeded(small_cnn)
    with torch.no_grad():
        net[0].weight[3] = 0  # type: ignore[index, operator, union-attr]
        net[2].weight[5] = 0  # type: ignore[index, operator, union-attr]
    equal, done = diagnose.equalize(net)
    assert done.dead == {"0": 1, "2": 1}
    assert all(bool(torch.isfinite(value).all()) for value in equal.state_dict().values())
    assert same_function(net, equal, images())
    assert diagnose.channel_ranges(equal[0])[3] == 0  # type: ignore[index]


def test_a_grouped_convolution_is_left_alone() -> None:
    net = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=2)))
    assert diagnose.equalize(net)[1].skipped["0"] == "2 is a grouped convolution"


def test_a_model_that_cannot_be_followed_is_refused() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if x.sum() > 0 else x  # type: ignore[no-any-return]

    with pytest.raises(repair.NotTraceableError, match=r"torch\.fx cannot follow this Branching: symbolically traced"):
        diagnose.equalize(seeded(Branching))


# --- bias correction -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_bias_correction_restores_the_mean_of_each_channel(bias: bool) -> None:
    coarse = Scheme(weight_bits=3, activation_bits=None)
    net = seeded(lambda: nn.Sequential(nn.Conv2d(3, 8, 3, bias=bias), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5)))
    mended, added = diagnose.correct_bias(net, [images(16), images(32)[16:]], coarse)
    assert set(added) == {"0", "3"}

    def mean(one: nn.Module, quantized: bool) -> Tensor:
        with diagnose.simulated(one, {}, coarse if quantized else Scheme(None, None)), torch.inference_mode():
            return one[0](torch.cat([images(16), images(32)[16:]])).mean((0, 2, 3))  # type: ignore[index, no-any-return]

    off = (mean(net, True) - mean(net, False)).abs().max()
    assert float((mean(mended, True) - mean(net, False)).abs().max()) < 0.01 * float(off)


# --- bad input -----------------------------------------------------------------------------------------


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(simulate.NoLayersError, match="This LSTM has no convolution and no Linear"):
        diagnose.find_layers(seeded(lambda: nn.LSTM(2, 2)))


def test_a_model_without_convolutions_works() -> None:
    net = seeded(lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)))
    assert diagnose.equalize(net)[1].pairs == [("0", "2")]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    net = seeded(small_cnn)
    net[2].weight.data[0] = value  # type: ignore[index, union-attr, operator]
    for call in (diagnose.equalize, lambda one: diagnose.diagnose(one, [images()], [images()])):
        with pytest.raises(simulate.NotFiniteError, match="Weights are NaN or infinite in 2"):
            call(net)


def test_an_empty_loader_is_refused() -> None:
    net = seeded(small_cnn)
    with pytest.raises(calibration.EmptyLoaderError):
        diagnose.diagnose(net, [], [images()])
    with pytest.raises(calibration.EmptyLoaderError):
        diagnose.diagnose(net, [images()], [images(0)])
    with pytest.raises(calibration.EmptyLoaderError):
        diagnose.correct_bias(net, [], EIGHT)


def test_a_model_in_training_mode_is_refused() -> None:
    with pytest.raises(models.TrainingModeError):
        diagnose.diagnose(seeded(small_cnn).train(), [images()], [images()])
