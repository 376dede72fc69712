"""Models that nobody wrote for the checker, through every target: finished and as good as stated, or refused in words.

Most classes are torchvision's, PyTorch's and other libraries' own, shallow and with random weights.
"""

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal import common_quantization
from torchvision import models

from qhelpers import check, engines
from qhelpers.check import calls, checker, graphs, inputs, quality, reports, targets
from qhelpers.check import models as accepted
from qhelpers.check.errors import ModelError

N = 8  # samples to calibrate with, and as many to measure on
FILES = ("executorch", "onnx-x86", "onnx-arm", "aotinductor")
EVERYWHERE = (*FILES, "pytorch")


@dataclass(frozen=True)
class Stranger:
    """A model, what it is called with, and what is asked of its files."""

    make: Callable[[], nn.Module]
    batch: Callable[[int], Any]  # so many samples, as a loader gives them
    floor: float  # dB of every file, some below what was found: untrained weights have less than trained ones
    targets: tuple[str, ...] = EVERYWHERE
    budget: float = 50.0  # points of answers that may change: of eight, with random weights


def images(size: int, channels: int = 3) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(n, channels, size, size)


# --- torchvision -------------------------------------------------------------------------------------


def residual() -> nn.Module:
    block = models.resnet.Bottleneck
    return models.resnet.ResNet(block, [1, 1, 1, 1], num_classes=10, width_per_group=4)


def inverted_residual() -> nn.Module:
    from torchvision.models import mobilenetv3

    settings = [
        mobilenetv3.InvertedResidualConfig(16, 3, 16, 16, True, "RE", 2, 1, 1.0),
        mobilenetv3.InvertedResidualConfig(16, 5, 48, 24, True, "HS", 2, 1, 1.0),
        mobilenetv3.InvertedResidualConfig(24, 3, 48, 24, False, "HS", 1, 1, 1.0),
    ]
    return mobilenetv3.MobileNetV3(settings, last_channel=64, num_classes=10)


def compound() -> nn.Module:
    from torchvision.models import efficientnet

    settings = [
        efficientnet.FusedMBConvConfig(2, 3, 2, 8, 16, 1),
        efficientnet.MBConvConfig(4, 3, 2, 16, 24, 1, 1.0, 1.0),
    ]
    return efficientnet.EfficientNet(settings, 0.1, num_classes=10, last_channel=64)


def dense() -> nn.Module:
    return models.DenseNet(growth_rate=8, block_config=(2, 2), num_init_features=16, num_classes=10)


def shuffle() -> nn.Module:
    return models.ShuffleNetV2([1, 1, 1], [24, 48, 64, 96, 64], num_classes=10)


def convnext() -> nn.Module:
    settings = [models.convnext.CNBlockConfig(16, 32, 1), models.convnext.CNBlockConfig(32, None, 1)]
    return models.ConvNeXt(settings, num_classes=10)


def vit() -> nn.Module:
    return models.VisionTransformer(16, 8, 1, 2, 32, 64, num_classes=10)


def swin() -> nn.Module:
    return models.SwinTransformer([4, 4], 32, [2, 1], [2, 2], [2, 2], num_classes=10)


def segmentation() -> nn.Module:
    backbone = models._utils.IntermediateLayerGetter(inverted_residual().features, {"2": "low", "4": "high"})
    return models.segmentation.LRASPP(backbone, 24, 144, 5, 32)


class DetectorWithoutPostprocessing(nn.Module):
    """Backbone and head of a torchvision detector: what is left when anchors, decoding and suppression go."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.head([*self.backbone(images).values()])


def detector() -> nn.Module:
    from torchvision.models.detection import retinanet
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    backbone = models.detection.backbone_utils.BackboneWithFPN(
        inverted_residual().features, {"2": "0", "4": "1"}, [24, 144], 16
    )
    anchors = AnchorGenerator(((16,), (32,), (64,)), ((1.0,),) * 3)
    return retinanet.RetinaNet(backbone, 3, min_size=32, max_size=32, anchor_generator=anchors)


def without_postprocessing() -> nn.Module:
    return DetectorWithoutPostprocessing(detector())


# --- PyTorch -----------------------------------------------------------------------------------------


def recurrent() -> nn.Module:
    return nn.GRU(12, 16, batch_first=True)


def masked_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)


def masked(n: int) -> dict[str, Tensor]:
    padding = torch.arange(6)[None] >= torch.randint(3, 7, (n, 1))
    mask = torch.triu(torch.full((6, 6), -math.inf), 1)
    padding_mask = torch.zeros(n, 6).masked_fill(padding, -math.inf)
    found = {"src": torch.randn(n, 6, 32), "mask": mask, "src_key_padding_mask": padding_mask}
    return found | {"is_causal": False}


def two_inputs() -> nn.Module:
    return nn.Transformer(32, 2, 1, 1, 64, batch_first=True)


class Bags(common_quantization.SparseNNModel):
    """PyTorch's, less narrow: inductor multiplies the smallest matrices without a kernel."""

    _NUM_EMBEDDINGS, _EMBEDDING_DIM, _DENSE_DIM, _DENSE_OUTPUT = 10, 32, 32, 32
    _TOP_OUT_IN, _TOP_OUT_OUT = 32, 32


# --- others' -----------------------------------------------------------------------------------------


def keyword_spotter() -> nn.Module:
    pytest.importorskip("executorch")
    from executorch.examples.models.mlperf_tiny import DSCNNKWS

    return DSCNNKWS()


def autoencoder() -> nn.Module:
    pytest.importorskip("executorch")
    from executorch.examples.models.mlperf_tiny import DeepAutoEncoder

    return DeepAutoEncoder(64)


def language() -> nn.Module:
    import transformers

    config = transformers.DistilBertConfig(
        vocab_size=50, max_position_embeddings=16, n_layers=1, n_heads=2, dim=32, hidden_dim=64, num_labels=3
    )
    return transformers.DistilBertForSequenceClassification(config)


def tokens(n: int) -> dict[str, Tensor]:
    return {
        "input_ids": torch.randint(0, 50, (n, 8)),
        "attention_mask": (torch.arange(8)[None] < torch.randint(3, 9, (n, 1))).long(),
    }


class UNetStep(nn.Module):
    """One step of denoising: what is noisy and the time go in, the noise comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 16))
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU())
        self.deep = nn.Sequential(nn.Conv2d(8, 16, 3, 2, padding=1), nn.GroupNorm(2, 16), nn.SiLU())
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.out = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, noisy: Tensor, time: Tensor) -> Tensor:
        waves = torch.exp(torch.arange(4) * -2.0) * time[:, None]
        embedded = self.time(torch.cat([waves.sin(), waves.cos()], 1))
        low = self.down(noisy)
        deep = self.deep(low) + embedded[:, :, None, None]
        return self.out(torch.cat([low, self.up(deep)], 1))


STRANGERS = {
    "residual": Stranger(residual, images(32), 13),
    "inverted residual": Stranger(inverted_residual, images(32), 15),
    "compound": Stranger(compound, images(32), 11, ("executorch", "aotinductor")),
    "dense": Stranger(dense, images(32), 20),
    "shuffle": Stranger(shuffle, images(32), 13),
    "ConvNeXt": Stranger(convnext, images(16), 20),
    "ViT": Stranger(vit, images(16), 20),
    "Swin": Stranger(swin, images(16), 20),
    "segmentation": Stranger(segmentation, images(32), 15, ("executorch", "onnx-arm"), 5.0),
    "detector": Stranger(without_postprocessing, images(32), 15, FILES, 5.0),
    "GRU": Stranger(recurrent, lambda n: torch.randn(n, 5, 12), 20, ("executorch", "aotinductor", "pytorch"), 5.0),
    "masked encoder": Stranger(masked_encoder, masked, 20, EVERYWHERE, 5.0),
    "two inputs": Stranger(two_inputs, lambda n: (torch.randn(n, 5, 32), torch.randn(n, 4, 32)), 20, EVERYWHERE, 5.0),
    "embedding bag": Stranger(
        Bags, lambda n: (torch.randint(0, 10, (n,)), torch.arange(n), torch.randn(n, 32)), 20, EVERYWHERE[1:]
    ),
    "keyword spotter": Stranger(keyword_spotter, lambda n: torch.randn(n, 1, 49, 10), 15, ("onnx-x86", "pytorch")),
    "autoencoder": Stranger(autoencoder, lambda n: torch.randn(n, 64), 15, ("onnx-x86", "pytorch")),
    "language": Stranger(language, tokens, 20),
    "U-Net": Stranger(UNetStep, lambda n: (torch.randn(n, 3, 16, 16), torch.rand(n) * 100), 20, EVERYWHERE, 5.0),
}


def alive(model: nn.Module, batch: Any) -> nn.Module:
    """With statistics in its batch norms, and without heads and scales that training would have moved from zero."""
    for value in model.parameters():
        if value.ndim > 1 and float(value.detach().abs().max()) < 1e-3:
            nn.init.normal_(value, std=0.2)
    for layer in model.modules():
        if isinstance(layer, models.convnext.CNBlock):
            nn.init.ones_(layer.layer_scale)
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.momentum = None
        if isinstance(layer, nn.Conv2d) and layer.weight.std() < 0.02:
            nn.init.kaiming_normal_(layer.weight)
    call = calls.as_call(batch, model)[0]
    with torch.no_grad():
        model.train()(*call.args, **call.kwargs)
    return model.eval()


@functools.cache
def stranger(name: str) -> tuple[nn.Module, list[Any], list[Any]]:
    """The model, its calibration data and its validation data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        one = STRANGERS[name]
        model = alive(one.make(), one.batch(N))
        return model, [one.batch(1) for _ in range(N)], [one.batch(1) for _ in range(N)]


@pytest.fixture(autouse=True)
def no_rivals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled to compare speeds, which other tests look at."""
    monkeypatch.setattr(checker, "_compare_speeds", lambda *_: None)


def tried(name: str, target: str, folder: Path, **more: Any) -> dict[str, Any]:
    """The report of a check, which has to be in words and free of contradictions."""
    model, calibration, validation = stranger(name)
    given = {"calibration": calibration, "validation": validation, "target": target} | more
    found = check.run(model, folder=folder, progress=False, **given).report
    reports.check_report(found)
    said = [found["do"], *found["notes"], *found["diagnosis"], *(one["why"] for one in found["tries"])]
    assert [words for words in said if "It failed:" in words or "Traceback" in words] == []
    return found


def decibels(name: str, target: str, path: Path) -> float:
    """What the file really computes, beside the float model."""
    model, _, validation = stranger(name)
    data = inputs.checked_data(validation, "validation", model)
    flat = accepted.check_run(model, data.first)
    run = targets.load(target, path, flat if target == "pytorch" else None)
    return quality.Judge(flat, data, show=False).judge(run).sqnr_db


@pytest.mark.parametrize(
    ("name", "target"), [(name, target) for name, one in STRANGERS.items() for target in one.targets]
)
def test_a_stranger_s_model_is_as_good_as_it_has_to_be(
    name: str, target: str, tmp_path: Path, one_thread: None
) -> None:
    torch.set_num_threads(1)
    found = tried(name, target, tmp_path, budget=STRANGERS[name].budget)
    assert found["status"] == "kept", found["do"]
    assert found["census"]["int8"]
    assert found["quality"]["validation"]["sqnr_db"] >= STRANGERS[name].floor
    for one in found["tries"]:
        if one["kept"] and one["graph_db"] is not None:
            assert one["sqnr_db"] >= one["graph_db"] - 3  # the file computes what its graph does
    with warnings.catch_warnings(), engines.using_engine(engines.default_engine()):
        warnings.simplefilter("ignore")
        again = decibels(name, target, tmp_path / found["file"]["name"])
    assert again == pytest.approx(found["quality"]["validation"]["sqnr_db"], abs=0.1)


# --- refused, in words -------------------------------------------------------------------------------


def test_a_detector_is_refused_with_what_to_do(tmp_path: Path) -> None:
    """What it is told to do is what the stranger of that name does, for all targets that write files."""
    with torch.random.fork_rng(devices=[]):
        model, image = detector(), torch.rand(1, 3, 32, 32)
    words = r"The model is a RetinaNet: .* check its backbone and head without the post-processing: a module whose"
    with pytest.raises(ModelError, match=words):
        check.run(model, validation=[image], target="onnx-x86", folder=tmp_path, progress=False)


def test_a_kernel_that_a_runtime_lacks_is_named_with_its_layer_and_line(tmp_path: Path) -> None:
    found = tried("embedding bag", "executorch", tmp_path)
    assert found["status"] == "refused"
    assert "kernel 'aten::_embedding_bag.out' not found" in found["do"]
    assert "It is computed by model_sparse.emb_bag in line" in found["do"]
    assert "(`return self.emb_bag(indices, offsets)`): rewrite that, or choose another target." in found["do"]


def test_where_a_runtime_has_no_int8_the_file_is_not_recommended(tmp_path: Path) -> None:
    found = tried("GRU", "onnx-x86", tmp_path)
    assert found["status"] == "over"
    assert found["census"]["int8"] == []
    assert found["do"].startswith("Ship float: nothing in this file computes in int8")
    assert found["tries"][1]["why"].startswith("Static quantization finds no operator in this model")


def test_a_transformer_that_looks_at_its_mask_is_told_to_be_told_and_the_checker_tells_it(tmp_path: Path) -> None:
    model, _, validation = stranger("masked encoder")
    asking = [{name: value for name, value in one.items() if name != "is_causal"} for one in validation]
    with pytest.raises(graphs.GraphError, match=r"in _detect_is_causal_mask, line .* give is_causal=True or"):
        graphs.capture(model, (), asking[0])
    found = check.run(model, validation=asking, target="executorch", folder=tmp_path, progress=False).report
    assert found["status"] == "kept"
    assert found["census"]["int8"]


def test_a_model_without_layers_for_eager_mode_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(targets.TargetError, match=r"this LRASPP has none; its parameters: .* in convolution layers"):
        tried("segmentation", "pytorch", tmp_path)
