"""The tools of diagnosis and repair, on a small CNN, a residual network and the digits model."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization as tq
from torch.nn import functional as F

from qhelpers import calibration, guards
from qhelpers.check import diagnose, repair, simulate
from qhelpers.check.diagnose import Scheme
from qhelpers.tasks import checkpoints, digits

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
    net = checkpoints.load_digits_float()
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
        fused_digits(), digits.calibration_batches(1)
    )


def test_layers_that_are_not_known_pass_through_and_are_reported() -> None:
    net = seeded(lambda: nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4)))
    found = diagnose.diagnose(net, [torch.ones(20, 4)], [torch.ones(20, 4)])
    assert found.unknown == {"1": "LSTM"}
    assert "Passed through in float: LSTM (1)." in found.verdicts
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
            net.outer.weight *= 30  # type: ignore[operator, union-attr]
    with torch.no_grad():
        net.get_submodule(name).bias.zero_()  # type: ignore[operator, union-attr]
    found = diagnose.diagnose(net, [images()], [images()], Scheme(8, None))
    assert found.culprit == name
    assert any(words.startswith(f"Culprit: {name}. Left in float it gains") for words in found.verdicts)
    row = next(row for row in found.rows if row.name == name)
    assert row.alone_db == min(one.alone_db for one in found.rows)
    local, accumulated = diagnose.layer_sqnr(net, [images()], {}, Scheme(8, None))[name]
    assert abs(local - accumulated) < 6  # what comes before it does little


def linear_net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))


def vectors(n: int = 64) -> Tensor:
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(0))


def test_a_healthy_model_is_told_so() -> None:
    found = diagnose.diagnose(seeded(linear_net), [vectors()], [vectors()])
    assert found.culprit is None
    assert found.verdicts[-1] == "Nothing to mend: rounding is 30 dB or more below the outputs."


def test_no_layer_is_accused_where_none_stands_out() -> None:
    found = diagnose.diagnose(seeded(linear_net), [vectors()], [vectors()], Scheme(4, 4))
    assert found.culprit is None
    assert "No single culprit: leaving one layer in float gains" in " ".join(found.verdicts)


class TwoBranches(nn.Module):
    """Two equal branches whose outputs are added."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = small_cnn(), small_cnn()

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.other(x)  # type: ignore[no-any-return]


def test_a_second_broken_layer_is_not_passed_over() -> None:
    found = diagnose.diagnose(seeded(TwoBranches), [images()], [images()], Scheme(8, None))
    named = f"{found.culprit} {found.verdicts[-1]}"
    assert found.verdicts[-1].startswith("Alone within 6 dB of all together")
    assert "one.0" in named
    assert "other.0" in named


def test_a_pipeline_that_fails_at_16_bits_is_not_blamed_on_int8() -> None:
    net = seeded(linear_net)
    found = diagnose.diagnose(net, [vectors()], [torch.zeros(4, 8)])  # ranges from other data
    assert "Already 16 bits are too few" in " ".join(found.verdicts)


def test_layers_that_share_a_weight_are_left_out_together() -> None:
    net = seeded(linear_net)
    net[4].weight = net[2].weight  # type: ignore[index, union-attr]
    ranges = diagnose.activation_ranges(net, [vectors()])
    rows = {row.name: row for row in diagnose.sensitivity(net, [vectors()], ranges, Scheme(4, None))}
    assert rows["2"].left_out_db == rows["4"].left_out_db == rows["0"].alone_db  # only the first is left quantized


def test_the_digits_model_names_its_depthwise_layer(one_thread: None) -> None:
    torch.set_num_threads(1)
    few = list(digits.loader("validation", batch_size=16, limit=16))
    found = diagnose.diagnose(fused_digits(), few, few)
    assert found.culprit == "features.1.conv.0.0" == min(found.rows, key=lambda row: row.alone_db).name
    assert "The weights do more damage." in found.verdicts
    assert len(found.rows) == 53


def test_few_inputs_are_said_to_be_few_and_labels_to_play_no_part() -> None:
    net = seeded(small_cnn)
    verdicts = diagnose.diagnose(net, [images(1)], [images()]).verdicts
    assert verdicts[0] == "Shares are of 1 inputs that keep the float model's class; labels play no part."
    assert verdicts[1] == "Here they say little: go by the SQNR."
    labelled = [(images(16), torch.zeros(16))]
    assert diagnose.diagnose(net, labelled, labelled).verdicts[1].startswith("16 bits")


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
    assert done.skipped["outer"] == "add comes after it, and does not pass factors through"
    assert same_function(net, equal, images())


def test_the_digits_model_keeps_its_function() -> None:
    net = fused_digits()
    equal, done = diagnose.equalize(net)
    assert len(done.pairs) == 37
    assert same_function(net, equal, next(iter(digits.calibration_batches(8)))[0])


class Through(nn.Module):
    """Two convolutions with any function between them."""

    def __init__(self, between: Any) -> None:
        super().__init__()
        self.one, self.between, self.other = nn.Conv2d(3, 4, 1), between, nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.between(self.one(x)))  # type: ignore[no-any-return]


def kind(between: Any) -> str:
    """A name that is the same in every process, as pytest's workers need."""
    return str(getattr(between, "__name__", type(between).__name__))


INEXACT = [nn.ReLU6(), nn.Hardswish(), nn.GELU(), nn.Sigmoid(), nn.Tanh(), nn.LeakyReLU(), nn.Softmax(dim=1)]
INEXACT_CALLS = [F.relu6, F.hardswish, F.gelu, torch.sigmoid, torch.tanh, lambda x: x.sigmoid(), lambda x: x.tanh()]


@pytest.mark.parametrize("between", [*INEXACT, *INEXACT_CALLS], ids=kind)
def test_activations_through_which_scaling_is_not_exact_are_refused_by_name(between: Any) -> None:
    net = seeded(lambda: Through(between))
    equal, done = diagnose.equalize(net)
    assert not done.pairs
    assert done.skipped["one"].endswith(" comes after it, and does not pass factors through")
    if isinstance(between, nn.Module):
        assert done.skipped["one"].startswith(type(between).__name__)
    assert torch.equal(equal.one.weight, net.one.weight)  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize(
    "between",
    [nn.ReLU(), F.relu, torch.relu, lambda x: x.relu(), nn.MaxPool2d(2), lambda x: F.avg_pool2d(x, 2)],
    ids=kind,
)
def test_what_passes_factors_through_is_known_as_module_function_and_method(between: Any) -> None:
    net = seeded(lambda: Through(between))
    with torch.no_grad():
        net.one.weight[1] *= 100  # type: ignore[union-attr, operator, index]
    equal, done = diagnose.equalize(net)
    assert done.pairs == [("one", "other")]
    assert float(diagnose.channel_ranges(equal.one)[1]) < float(diagnose.channel_ranges(net.one)[1]) / 5  # type: ignore[arg-type]
    assert same_function(net, equal, images())


AXES = {
    "tokens that are flattened": (lambda: [nn.Linear(4, 8), nn.ReLU(), nn.Flatten(), nn.Linear(40, 3)], (2, 5, 4)),
    "a flatten that keeps the channels": (
        lambda: [nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Flatten(2), nn.Linear(16, 3)],
        (2, 3, 4, 4),
    ),
    "a Linear on the width": (lambda: [nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Linear(8, 3)], (2, 3, 8, 8)),
    "a convolution on vectors": (lambda: [nn.Linear(8, 3), nn.ReLU(), nn.Conv2d(3, 4, 1)], (2, 3, 4, 8)),
    "a pooled vector": (lambda: [nn.Linear(8, 4), nn.MaxPool2d(1), nn.Linear(4, 4)], (2, 3, 4, 8)),
}


@pytest.mark.parametrize("name", AXES)
def test_a_layer_that_reads_along_another_axis_is_left_alone(name: str) -> None:
    build, shape = AXES[name]
    net = seeded(lambda: nn.Sequential(*build()))
    equal, done = diagnose.equalize(net)
    assert not done.pairs
    assert done.skipped["0"].endswith("reads something else than its channels")
    assert same_function(net, equal, torch.rand(shape, generator=torch.Generator().manual_seed(0)))


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
    tied = seeded(lambda: nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 6)))
    tied[1].weight = nn.Parameter(torch.eye(4))  # type: ignore[index, union-attr]
    tied[3].weight = tied[0].weight  # type: ignore[index, union-attr]
    equal, done = diagnose.equalize(tied)
    assert done.skipped["1"] == "the weights of 3 are shared"
    assert same_function(tied, equal, torch.arange(6))


def test_an_unfused_batch_norm_is_refused_by_name() -> None:
    net = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)))
    with pytest.raises(simulate.UnfusedError, match=r"Some batch norms are not folded .* \(1\): call fuse_model"):
        diagnose.equalize(net)
    verdicts = diagnose.diagnose(net, [images()], [images()]).verdicts
    assert "Passed through in float: BatchNorm2d (1); int8 would have it folded, so fuse first." in verdicts
    with pytest.raises(simulate.UnfusedError, match="0 is fused for training and keeps its batch norm"):
        diagnose.equalize(tq.fuse_modules_qat(copy.deepcopy(net).train(), [["0", "1", "2"]]).eval())
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
@pytest.mark.parametrize("part", ["weight", "bias"])
def test_parameters_that_are_not_finite_are_refused(value: float, part: str) -> None:
    net = seeded(small_cnn)
    getattr(net[2], part).data[0] = value  # type: ignore[index]
    for call in (diagnose.equalize, lambda one: diagnose.diagnose(one, [images()], [images()])):
        with pytest.raises(simulate.NotFiniteError, match=rf"NaN or infinity in 2\.{part}"):
            call(net)


def test_a_mask_may_be_infinite_and_a_statistic_may_not() -> None:
    net = seeded(lambda: nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    net.register_buffer("mask", torch.full((2, 2), float("-inf")))
    assert [*diagnose.find_layers(net).known] == ["0"]
    net[1].running_var[0] = float("nan")  # type: ignore[index, union-attr, operator]
    with pytest.raises(simulate.NotFiniteError, match=r"infinity in 1\.running_var"):
        diagnose.find_layers(net)


def test_inputs_that_are_not_finite_are_refused() -> None:
    net, broken = seeded(small_cnn), images()
    broken[0, 0, 0, 0] = float("nan")
    with pytest.raises(simulate.NotFiniteError, match="the float model's own outputs are NaN or infinite"):
        diagnose.diagnose(net, [broken], [images()])
    with pytest.raises(simulate.NotFiniteError, match="the values of input are NaN or infinite"):
        diagnose.diagnose(net, [images()], [broken])


def test_layers_with_a_computed_weight_or_a_forward_of_their_own_are_unknown() -> None:
    class Standardized(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return self._conv_forward(input, self.weight - self.weight.mean(), self.bias)

    def build() -> nn.Module:
        normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        return nn.Sequential(Standardized(3, 4, 1), nn.Conv2d(4, 4, 1), normed, nn.ConvTranspose2d(4, 4, 1))

    found = diagnose.find_layers(seeded(build))
    assert [*found.known] == ["1"]
    assert {"0": "Standardized", "3": "ConvTranspose2d"}.items() <= found.unknown.items()
    assert any(name.startswith("2") for name in found.unknown)


def test_names_that_the_model_does_not_have_are_refused() -> None:
    net = seeded(small_cnn)
    with pytest.raises(simulate.DiagnosisError, match="The model has no layer 'typo'; it has: 0, 2, 6"):
        diagnose.simulated(net, {}, EIGHT, weights={"typo"}).__enter__()


def test_other_outputs_than_tensors_are_refused() -> None:
    net = seeded(lambda: nn.Sequential(nn.Linear(2, 2)))
    net.forward = lambda x: {"logits": x}  # type: ignore[method-assign, assignment]
    with pytest.raises(simulate.DiagnosisError, match="it returned a dict"):
        diagnose.activation_ranges(net, [torch.ones(1, 2)])


def test_an_input_given_by_name_is_seen() -> None:
    class ByName(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(input=x)  # type: ignore[no-any-return]

    _, added = diagnose.correct_bias(seeded(ByName), [torch.ones(1, 2)], EIGHT)
    assert [*added] == ["layer"]


def test_a_quantized_model_is_told_so() -> None:
    int8 = tq.quantize_dynamic(seeded(lambda: nn.Sequential(nn.Linear(2, 2))))
    with pytest.raises(simulate.NoLayersError, match="This Sequential is quantized already"):
        diagnose.find_layers(int8)


def test_an_empty_loader_is_refused() -> None:
    net = seeded(small_cnn)
    with pytest.raises(calibration.CalibrationError, match="yielded no sample"):
        diagnose.diagnose(net, [], [images()])
    with pytest.raises(calibration.CalibrationError, match="yielded no sample"):
        diagnose.diagnose(net, [images()], [images(0)])
    with pytest.raises(calibration.CalibrationError, match="yielded no sample"):
        diagnose.correct_bias(net, [], EIGHT)


def test_a_model_in_training_mode_is_refused() -> None:
    with pytest.raises(guards.GuardError, match="training mode"):
        diagnose.diagnose(seeded(small_cnn).train(), [images()], [images()])
