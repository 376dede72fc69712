"""Mistakes in a quantization workflow that PyTorch passes over, and the guards that name them."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.ao import quantization as tq

from qhelpers import engines, guards
from qhelpers.tasks import checkpoints, networks


@pytest.fixture(autouse=True)
def random_weights(nothing_global_left_changed: None) -> Iterator[None]:
    """Networks of these tests draw their weights; the random state is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def quiet_qconfig(name: str) -> tq.QConfig:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onednn's default warns on CPUs without VNNI
        return tq.get_default_qconfig(name)


@pytest.fixture
def net() -> nn.Module:
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    return tq.QuantWrapper(inner).eval()


@pytest.fixture
def language_model() -> networks.CharLSTM:
    return networks.CharLSTM(hidden=8).eval()


def prepared(net: nn.Module) -> nn.Module:
    net.qconfig = quiet_qconfig("qnnpack")
    return tq.prepare(net)


# --- dynamic -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"heads"}, "no module 'heads'. Did you mean 'head'"),
        ({"xyz"}, "no module 'xyz'. It has: embedding, lstm, head"),
        ({nn.Conv2d}, "no module of type Conv2d"),
        ({"lstm": tq.default_dynamic_qconfig, "haed": tq.default_dynamic_qconfig}, "Did you mean 'head'"),
    ],
)
def test_a_spec_that_names_nothing_is_refused(language_model: networks.CharLSTM, spec: set[str], message: str) -> None:
    with engines.using_engine(engines.default_engine()):
        quantized = tq.quantize_dynamic(language_model, {part for part in spec if part != "lstm"})
    assert not guards.int8_modules(quantized), "PyTorch has begun to act on it"
    with pytest.raises(guards.GuardError, match=message):
        guards.check_dynamic_spec(language_model, spec)


def test_a_type_without_dynamic_counterpart_is_refused() -> None:
    with pytest.raises(guards.GuardError, match="Conv2d has no dynamic counterpart"):
        guards.check_dynamic_spec(nn.Sequential(nn.Conv2d(3, 4, 1)), {nn.Conv2d})
    with pytest.raises(guards.GuardError, match="'0' has no dynamic counterpart"):
        guards.check_dynamic_spec(nn.Sequential(nn.Conv2d(3, 4, 1)), {"0"})


@pytest.mark.parametrize("spec", [{nn.LSTM}, {"head"}, {"lstm", nn.Linear}, {""}, {networks.CharLSTM}])
def test_a_right_spec_is_returned(language_model: networks.CharLSTM, spec: set[object]) -> None:
    assert guards.check_dynamic_spec(language_model, spec) is spec


def test_float_layers_lists_what_dynamic_quantization_left(language_model: networks.CharLSTM) -> None:
    assert set(guards.float_layers(language_model)) == {"embedding", "lstm", "head"}
    with engines.using_engine(engines.default_engine()):
        quantized = tq.quantize_dynamic(language_model, {nn.LSTM, nn.Linear})
    assert guards.float_layers(quantized) == {"embedding": language_model.embedding.weight.numel()}
    assert guards.int8_modules(quantized) == ["lstm", "head"]


def test_float16_layers_are_not_int8(language_model: networks.CharLSTM) -> None:
    if "fbgemm" not in engines.available_engines():
        pytest.skip("float16 needs fbgemm")
    with engines.using_engine("fbgemm"):
        half = tq.quantize_dynamic(language_model, {nn.LSTM, nn.Linear}, dtype=torch.float16)
    assert guards.int8_modules(half) == []


# --- static ------------------------------------------------------------------------------------------


def test_a_model_without_stubs_is_refused(net: nn.Module) -> None:
    assert guards.require_stubs(net) is net
    with pytest.raises(guards.GuardError, match="Sequential has no QuantStub and no DeQuantStub"):
        guards.require_stubs(net.module)
    half_way = nn.Sequential(tq.QuantStub(), nn.Linear(2, 2))
    with pytest.raises(guards.GuardError, match="has no DeQuantStub"):
        guards.require_stubs(half_way)


def test_converting_before_preparing_is_refused(net: nn.Module) -> None:
    net.qconfig = quiet_qconfig("qnnpack")
    assert not guards.int8_modules(tq.convert(net)), "PyTorch has begun to act on it"
    with pytest.raises(guards.GuardError, match="call prepare before converting"):
        guards.require_calibrated(net)


def test_converting_before_calibrating_is_refused(net: nn.Module) -> None:
    ready = prepared(net)
    with pytest.raises(guards.GuardError, match=r"2 layers .* \(module.0, module.3\)"):
        guards.require_calibrated(ready)
    ready(torch.zeros(1, 3, 8, 8))
    assert guards.require_calibrated(ready) is ready


def test_fake_quantizers_that_saw_nothing_count_too(net: nn.Module) -> None:
    net.qconfig = tq.get_default_qat_qconfig("qnnpack")
    ready = tq.prepare_qat(net.train())
    with pytest.raises(guards.GuardError, match=r"module\.0, module\.3"):
        guards.require_calibrated(ready)
    ready(torch.zeros(1, 3, 8, 8))
    assert guards.require_calibrated(ready) is ready


def test_observers_of_unused_additions_may_be_empty(net: nn.Module) -> None:
    net.unused = nn.quantized.FloatFunctional()
    ready = prepared(net)
    ready(torch.zeros(1, 3, 8, 8))
    assert guards.require_calibrated(ready) is ready


def test_a_layer_that_the_data_missed_is_named(net: nn.Module) -> None:
    net.branch = nn.Linear(2, 2)
    ready = prepared(net)
    ready(torch.zeros(1, 3, 8, 8))
    with pytest.raises(guards.GuardError, match=r"1 layers .* \(branch\)"):
        guards.require_calibrated(ready)


@pytest.mark.parametrize("name", engines.KNOWN_ENGINES)
def test_the_recorded_reduce_range_is_pytorchs(name: str) -> None:
    assert quiet_qconfig(name).activation.p.keywords["reduce_range"] == engines.REDUCES_RANGE[name]


def test_an_engine_that_the_qconfig_was_not_made_for_is_refused(net: nn.Module) -> None:
    net.qconfig = quiet_qconfig("x86")
    with (
        engines.using_engine("qnnpack"),
        pytest.raises(engines.EngineError, match=r"suits x86 or fbgemm .* the engine is qnnpack"),
    ):
        engines.require_matching_engine(net)
    net.qconfig = quiet_qconfig("qnnpack")
    with engines.using_engine("qnnpack"):
        assert engines.require_matching_engine(net) is net
        assert engines.require_matching_engine(prepared(net))


@pytest.mark.parametrize(
    "activation",
    [
        tq.HistogramObserver.with_args(reduce_range=True).with_args(bins=64),
        tq.FakeQuantize.with_args(observer=tq.MinMaxObserver, reduce_range=True),
        tq.FakeQuantize.with_args(observer=tq.MinMaxObserver.with_args(reduce_range=True)),
    ],
)
def test_a_range_that_is_chosen_deep_inside_a_qconfig_is_seen(net: nn.Module, activation: Any) -> None:
    net.qconfig = tq.QConfig(activation=activation, weight=tq.default_weight_observer)
    with engines.using_engine("qnnpack"), pytest.raises(engines.EngineError, match="reduce_range=True"):
        engines.require_matching_engine(net)


def test_qconfigs_without_a_choice_of_range_pass(language_model: networks.CharLSTM) -> None:
    language_model.qconfig = tq.default_dynamic_qconfig
    assert engines.require_matching_engine(language_model) is language_model


def test_fusing_in_training_mode_fails_and_is_named() -> None:
    training = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    with pytest.raises(AssertionError, match="Fusion only for eval!"):
        tq.fuse_modules(training, [["0", "1"]])
    assert isinstance(training[1], nn.BatchNorm2d)
    with pytest.raises(guards.GuardError, match=r"call .eval\(\) first"):
        guards.require_eval(training)


def test_int8_norms_and_dropouts_do_not_count_as_training() -> None:
    model = tq.QuantWrapper(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout())).eval()
    ready = prepared(model)
    ready(torch.zeros(1, 3, 4, 4))
    with engines.using_engine("qnnpack"):
        assert guards.require_eval(tq.convert(ready))


def test_a_state_dict_of_the_other_kind_is_named(net: nn.Module, language_model: networks.CharLSTM) -> None:
    ready = prepared(net)
    ready(torch.zeros(1, 3, 8, 8))
    with engines.using_engine("qnnpack"):
        int8 = tq.convert(ready)
        dynamic = tq.quantize_dynamic(language_model, {nn.LSTM})
        for model, state in (
            (int8, net.state_dict()),
            (net, int8.state_dict()),
            (dynamic, language_model.state_dict()),
            (language_model, dynamic.state_dict()),
        ):
            with pytest.raises(checkpoints.CheckpointError, match="other kind does not fit this"):
                checkpoints.load_into(model, state, "other kind")


def test_sequences_of_length_zero_are_refused(language_model: networks.CharLSTM) -> None:
    with engines.using_engine(engines.default_engine()):
        dynamic = tq.quantize_dynamic(language_model, {nn.LSTM})
        for model in (language_model, dynamic):
            with pytest.raises(RuntimeError, match="sequence length to be larger than 0"):
                model(torch.zeros(1, 0, dtype=torch.int64))


def test_fusing_for_training_wants_training_mode(net: nn.Module) -> None:
    model = checkpoints.load_digits_float()
    with pytest.raises(guards.GuardError, match=r"in evaluation mode \(\(whole model\), features.0.1"):
        guards.require_training(model)
    model.train().features[0][1].eval()
    with pytest.raises(guards.GuardError, match=r"\(features.0.1\): call .train\(\) first"):
        guards.require_training(model)
    assert guards.require_training(model.train()) is model


def test_torchvision_folds_norms_away_in_evaluation_mode_without_a_word() -> None:
    model = checkpoints.load_digits_float()
    model.fuse_model()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_a_partly_converted_model_is_not_trainable() -> None:
    part = nn.Sequential(checkpoints.load_digits_int8(), nn.Linear(10, 2))
    with pytest.raises(guards.GuardError, match="53 layers of this Sequential are int8"):
        guards.require_trainable(part)


def test_prepare_qat_wants_training_mode(net: nn.Module) -> None:
    net.qconfig = tq.get_default_qat_qconfig("qnnpack")
    with pytest.raises(AssertionError, match="only works on models in training mode"):
        tq.prepare_qat(net)


def test_a_model_converted_in_training_mode_is_not_measured(net: nn.Module) -> None:
    net.train().qconfig = tq.get_default_qat_qconfig("qnnpack")
    trained = tq.prepare_qat(net)
    trained(torch.rand(2, 3, 8, 8))
    with engines.using_engine("qnnpack"):
        converted = tq.convert(trained)
    with pytest.raises(guards.GuardError, match=r"call \.eval"):
        guards.require_eval(converted)


def test_fake_quantizers_that_never_ran_are_found(net: nn.Module) -> None:
    net.train().qconfig = tq.get_default_qat_qconfig("qnnpack")
    with pytest.raises(guards.GuardError, match="2 layers with weights have not been calibrated"):
        guards.require_calibrated(tq.prepare_qat(net))


def test_float_model_is_no_int8_model() -> None:
    with pytest.raises(guards.GuardError, match="was a qconfig set before prepare"):
        guards.require_quantized(checkpoints.load_digits_float())


def test_training_mode_names_the_module() -> None:
    model = checkpoints.load_digits_float()
    model.classifier[0].train()
    with pytest.raises(guards.GuardError, match=r"classifier\.0"):
        guards.require_eval(model)
