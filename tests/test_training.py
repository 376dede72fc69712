"""The steps of training/ that change a network without changing what it computes."""

import torch

from qhelpers import engines, models
from training import digits_float


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
