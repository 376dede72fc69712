"""The steps of training/ that can be checked without training."""

import torch

from qhelpers import engines, models
from training import calibration_curve, digits_float, text_lstm


def test_the_float_network_computes_what_the_int8_one_does() -> None:
    int8 = models.skeleton(1000, quantize=True)
    image = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        rebuilt = digits_float.float_from_int8(int8)
    with torch.inference_mode(), engines.using_engine("qnnpack"):
        expected, found = int8(image), rebuilt(image)
    step = float(int8.classifier[1].scale)
    assert float((expected - found).abs().max()) < 8 * step


def test_norms_get_statistics_and_the_function_stays() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU()).eval()
        images = torch.randn(8, 3, 16, 16)
    norm, inputs = model[1], model[0](images)
    before = model(images)
    digits_float.give_norms_statistics(model, images)
    torch.testing.assert_close(model(images), before, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(norm.running_mean, inputs.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, inputs.var((0, 2, 3)))


def test_calibration_batches_have_just_the_images_asked_for() -> None:
    sizes = [len(images) for images in calibration_curve.batches(0, 70)]
    assert sizes == [32, 32, 6]


def test_more_images_begin_with_the_same_ones() -> None:
    few, many = (next(calibration_curve.batches(1, images)) for images in (16, 4000))
    assert torch.equal(few, many[:16])


def test_text_streams_follow_the_text() -> None:
    streams = text_lstm.streams(torch.arange(1000), offset=3)
    assert streams.shape == (text_lstm.STREAMS, 997 // text_lstm.STREAMS)
    assert torch.equal(streams.flatten(), torch.arange(3, 3 + streams.numel()))
