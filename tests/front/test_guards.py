"""Mistakes in a quantization workflow that PyTorch passes over, and the guards that name them."""

import pytest
import torch
from torch import nn
from torch.ao import quantization as tq

from qhelpers import engines, guards
from qhelpers.tasks import checkpoints, networks

pytestmark = pytest.mark.usefixtures("random_weights")


def prepared(net: nn.Module) -> nn.Module:
    net.qconfig = tq.get_default_qconfig("qnnpack")
    return tq.prepare(net)


def test_float16_layers_are_not_int8(language_model: networks.CharLSTM) -> None:
    if "fbgemm" not in engines.available_engines():
        pytest.skip("float16 needs fbgemm")
    with engines.using_engine("fbgemm"):
        half = tq.quantize_dynamic(language_model, {nn.LSTM, nn.Linear}, dtype=torch.float16)
    assert guards.int8_modules(half) == []


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


def test_float_model_is_no_int8_model() -> None:
    with pytest.raises(guards.GuardError, match="was a qconfig set before prepare"):
        guards.require_quantized(checkpoints.load_digits_float())


def test_training_mode_names_the_module() -> None:
    model = checkpoints.load_digits_float()
    model.classifier[0].train()
    with pytest.raises(guards.GuardError, match=r"classifier\.0"):
        guards.require_eval(model)
