"""Mistakes in a quantization workflow that PyTorch passes over, and the guards that name them."""

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.ao import quantization as tq
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx, prepare_qat_fx
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from qhelpers import engines, guards
from qhelpers.check import eager_mode
from qhelpers.tasks import checkpoints, networks

pytestmark = pytest.mark.usefixtures("random_weights")


def quiet_qconfig(name: str) -> tq.QConfig:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onednn's default warns on CPUs without VNNI
        return tq.get_default_qconfig(name)


def prepared(net: nn.Module) -> nn.Module:
    net.qconfig = quiet_qconfig("qnnpack")
    return tq.prepare(net)


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
        eager_mode.check_dynamic_spec(language_model, spec)


def test_a_type_without_dynamic_counterpart_is_refused() -> None:
    with pytest.raises(guards.GuardError, match="Conv2d has no dynamic counterpart"):
        eager_mode.check_dynamic_spec(nn.Sequential(nn.Conv2d(3, 4, 1)), {nn.Conv2d})
    with pytest.raises(guards.GuardError, match="'0' has no dynamic counterpart"):
        eager_mode.check_dynamic_spec(nn.Sequential(nn.Conv2d(3, 4, 1)), {"0"})


@pytest.mark.parametrize("spec", [{nn.LSTM}, {"head"}, {"lstm", nn.Linear}, {""}, {networks.CharLSTM}])
def test_a_right_spec_is_returned(language_model: networks.CharLSTM, spec: set[object]) -> None:
    assert eager_mode.check_dynamic_spec(language_model, spec) is spec


def test_float_layers_lists_what_dynamic_quantization_left(language_model: networks.CharLSTM) -> None:
    assert set(eager_mode.float_layers(language_model)) == {"embedding", "lstm", "head"}
    with engines.using_engine(engines.default_engine()):
        quantized = tq.quantize_dynamic(language_model, {nn.LSTM, nn.Linear})
    assert eager_mode.float_layers(quantized) == {"embedding": language_model.embedding.weight.numel()}
    assert guards.int8_modules(quantized) == ["lstm", "head"]


def test_a_model_without_stubs_is_refused(net: nn.Module) -> None:
    assert eager_mode.require_stubs(net) is net
    with pytest.raises(guards.GuardError, match="Sequential has no QuantStub and no DeQuantStub"):
        eager_mode.require_stubs(net.module)
    half_way = nn.Sequential(tq.QuantStub(), nn.Linear(2, 2))
    with pytest.raises(guards.GuardError, match="has no DeQuantStub"):
        eager_mode.require_stubs(half_way)


def test_converting_before_preparing_is_refused(net: nn.Module) -> None:
    net.qconfig = quiet_qconfig("qnnpack")
    assert not guards.int8_modules(tq.convert(net)), "PyTorch has begun to act on it"
    with pytest.raises(guards.GuardError, match="call prepare before converting"):
        eager_mode.require_calibrated(net)


def test_converting_before_calibrating_is_refused(net: nn.Module) -> None:
    ready = prepared(net)
    with pytest.raises(guards.GuardError, match=r"Some layers .* \(module.0, module.3\)"):
        eager_mode.require_calibrated(ready)
    ready(torch.zeros(1, 3, 8, 8))
    assert eager_mode.require_calibrated(ready) is ready


def test_fake_quantizers_that_saw_nothing_count_too(net: nn.Module) -> None:
    net.qconfig = tq.get_default_qat_qconfig("qnnpack")
    ready = tq.prepare_qat(net.train())
    with pytest.raises(guards.GuardError, match=r"module\.0, module\.3"):
        eager_mode.require_calibrated(ready)
    ready(torch.zeros(1, 3, 8, 8))
    assert eager_mode.require_calibrated(ready) is ready


def test_observers_of_unused_additions_may_be_empty(net: nn.Module) -> None:
    net.unused = nn.quantized.FloatFunctional()
    ready = prepared(net)
    ready(torch.zeros(1, 3, 8, 8))
    assert eager_mode.require_calibrated(ready) is ready


def test_a_layer_that_the_data_missed_is_named(net: nn.Module) -> None:
    net.branch = nn.Linear(2, 2)
    ready = prepared(net)
    ready(torch.zeros(1, 3, 8, 8))
    with pytest.raises(guards.GuardError, match=r"Some layers .* \(branch\)"):
        eager_mode.require_calibrated(ready)


@pytest.mark.parametrize("name", engines.KNOWN_ENGINES)
def test_the_recorded_reduce_range_is_pytorchs(name: str) -> None:
    assert quiet_qconfig(name).activation.p.keywords["reduce_range"] == engines.REDUCES_RANGE[name]


def test_an_engine_that_the_qconfig_was_not_made_for_is_refused(net: nn.Module) -> None:
    net.qconfig = quiet_qconfig("x86")
    with (
        engines.using_engine("qnnpack"),
        pytest.raises(engines.EngineError, match=r"suits x86 or fbgemm .* the engine is qnnpack"),
    ):
        eager_mode.require_matching_engine(net)
    net.qconfig = quiet_qconfig("qnnpack")
    with engines.using_engine("qnnpack"):
        assert eager_mode.require_matching_engine(net) is net
        assert eager_mode.require_matching_engine(prepared(net))


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
        eager_mode.require_matching_engine(net)


def test_qconfigs_without_a_choice_of_range_pass(language_model: networks.CharLSTM) -> None:
    language_model.qconfig = tq.default_dynamic_qconfig
    assert eager_mode.require_matching_engine(language_model) is language_model


def test_fusing_for_training_wants_training_mode(net: nn.Module) -> None:
    model = checkpoints.load_digits_float()
    with pytest.raises(guards.GuardError, match=r"in evaluation mode \(\(whole model\), features.0.1"):
        eager_mode.require_training(model)
    model.train().features[0][1].eval()
    with pytest.raises(guards.GuardError, match=r"\(features.0.1\): call .train\(\) first"):
        eager_mode.require_training(model)
    assert eager_mode.require_training(model.train()) is model


def test_fake_quantizers_that_never_ran_are_found(net: nn.Module) -> None:
    net.train().qconfig = tq.get_default_qat_qconfig("qnnpack")
    with pytest.raises(guards.GuardError, match="Some layers with weights have not been calibrated"):
        eager_mode.require_calibrated(tq.prepare_qat(net))


class Attends(nn.Module):
    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=batch_first), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.head(self.attention(x, x, x, need_weights=False)[0])
        return mixed


@pytest.mark.parametrize("qat", [False, True])
def test_attention_that_fx_left_in_float_is_named(qat: bool) -> None:
    make = tq.get_default_qat_qconfig_mapping if qat else tq.get_default_qconfig_mapping
    prepare, x = (prepare_qat_fx if qat else prepare_fx), torch.randn(3, 5, 8)
    with warnings.catch_warnings(), engines.using_engine("qnnpack"):
        warnings.simplefilter("ignore")
        ready = prepare(Attends().train(qat), make("qnnpack"), (x,))
        ready(x)
        int8 = convert_fx(ready.eval())
    assert guards.int8_modules(int8) == ["head"], "FX has begun to quantize attention"
    assert guards.require_quantized(int8) is int8
    with pytest.raises(guards.GuardError, match=r"left in float \(attention\): write it with nn\.Linear"):
        eager_mode.require_int8_attention(int8)


def test_attention_that_torchao_left_in_float_is_named() -> None:
    net = nn.Sequential(*(Attends() for _ in range(4)))
    quantize_(net, Int8WeightOnlyConfig())
    assert guards.require_quantized(net) is net
    named = r"0\.attention, 1\.attention, 2\.attention, …"
    with pytest.raises(guards.GuardError, match=named):
        eager_mode.require_int8_attention(net)


def test_a_model_without_linear_layers_is_not_quantized_by_torchao() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    quantize_(net, Int8WeightOnlyConfig())  # not a word
    with pytest.raises(guards.GuardError, match="quantize_ changes Linear layers only"):
        guards.require_quantized(net)


def test_prepared_attention_with_the_batch_first_is_refused() -> None:
    x = torch.randn(3, 5, 8)
    for batch_first in (False, True):
        net = Attends(batch_first).eval()
        exact = net(x)
        net.qconfig = quiet_qconfig("qnnpack")
        ready = tq.prepare(net)
        same = torch.allclose(ready(x), exact, atol=1e-5)  # nothing is rounded yet
        assert same is not batch_first, "pytorch issue 67651 is closed"
        with warnings.catch_warnings(), engines.using_engine("qnnpack"):
            warnings.simplefilter("ignore")  # the scaling of the query has an observer that it never calls
            int8 = tq.convert(ready)
        assert len(guards.int8_modules(int8)) == 5
        if same:
            assert eager_mode.require_int8_attention(int8) is int8
            continue
        for wrong in (ready, int8):
            with pytest.raises(guards.GuardError, match="batch_first=False, and transpose"):
                eager_mode.require_int8_attention(wrong)


def test_attention_is_named_before_prepare_qat_fails() -> None:
    net = Attends().train()
    assert eager_mode.require_attention_excluded(net) is net, "without a qconfig nothing is prepared"
    net.qconfig = tq.get_default_qat_qconfig("qnnpack")
    with pytest.raises(guards.GuardError, match=r"attention in int8 \(attention\).*qconfig .* to None"):
        eager_mode.require_attention_excluded(net)
    with pytest.raises(AssertionError, match="only works for Linear"):
        tq.prepare_qat(net)
    net = Attends().train()
    net.qconfig, net.attention.qconfig = tq.get_default_qat_qconfig("qnnpack"), None
    assert eager_mode.require_attention_excluded(net) is net
    assert tq.prepare_qat(net).attention.in_proj_weight is not None


def test_attention_whose_projection_is_left_out_can_be_prepared() -> None:
    net = Attends().train()
    net.qconfig, net.attention.out_proj.qconfig = tq.get_default_qat_qconfig("qnnpack"), None
    assert eager_mode.require_attention_excluded(net) is net
    tq.prepare_qat(net)
    attention = nn.MultiheadAttention(8, 2).train()
    attention.qconfig, attention.out_proj.qconfig = None, tq.get_default_qat_qconfig("qnnpack")
    with pytest.raises(guards.GuardError, match=r"attention in int8 \(the whole model\)"):
        eager_mode.require_attention_excluded(attention)


def test_prepared_attention_is_not_int8_yet() -> None:
    net = Attends(False).eval()
    net.qconfig = quiet_qconfig("qnnpack")
    with pytest.raises(guards.GuardError, match=r"prepared and still computes in float \(attention\): convert it"):
        eager_mode.require_int8_attention(tq.prepare(net))
