"""Models that an earlier checker failed on, and others of their kind: a good file, or a refusal in words."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from qhelpers import check
from qhelpers.check import checker, diagnose, float_paths, folding, repair, reports, targets
from qhelpers.check.checker import advice
from qhelpers.check.errors import ModelError
from qhelpers.check.result import Result
from qhelpers.metrics import sqnr_db

pytestmark = pytest.mark.usefixtures("one_thread", "random_weights")
FILES = ("executorch", "onnx-x86")
LOWEST = torch.finfo(torch.float32).min


@pytest.fixture(autouse=True)
def no_speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speeds cost most of a check, and none of these tests looks at them."""
    monkeypatch.setattr(checker, "_compare_speeds", lambda *given: None)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Result]:
    """A check of a model on normal random numbers of some shape, judged by the outputs of each channel."""

    def checked(model: nn.Module, shape: tuple[int, ...], target: str, **more: Any) -> Result:
        inputs = torch.randn(32, *shape)
        data = {"validation": [inputs[:16]], "calibration": [inputs[16:]]}
        return check.run(model.eval(), **data | {"target": target, "folder": tmp_path, "progress": False} | more)

    return checked


def worst_db(result: Result) -> float:
    return float(result.report["quality"]["validation"]["worst_db"])


def trained(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """With statistics in its norms that are not those of a new one."""
    with torch.no_grad():
        for _ in range(20):
            model.train()(torch.randn(16, *shape))
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_()
    return model.eval()


# --- 1 and 7: control flow ---------------------------------------------------------------------------


class Optional(nn.Module):
    """Arguments with defaults: a flag, a word, a tensor or none; and a branch on a shape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor, features: bool = False, *, pool: str = "mean", bias: Tensor | None = None) -> Tensor:
        x = self.norm(self.conv(x)).relu()
        if x.shape[-1] > 4:
            x = nn.functional.avg_pool2d(x, 2)
        x = x.mean((2, 3)) if pool == "mean" else x.amax((2, 3))
        if features:
            return x
        outputs: Tensor = self.head(x)
        return outputs if bias is None else outputs + bias


@pytest.mark.parametrize("target", [*FILES, "pytorch"])
def test_1_and_7_optional_arguments_are_fixed_and_branches_on_shapes_followed(
    target: str, run: Callable[..., Result]
) -> None:
    result = run(trained(Optional(), (3, 8, 8)), (3, 8, 8), target, budget=100)
    assert result.status == "kept"
    assert worst_db(result) > 20
    assert not any("not folded" in one for one in result.report["notes"]), "torch.fx fails on the shape, PT2E does not"


class Chooses(nn.Module):
    """Needs values: how is a statement of its forward."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.head = how, nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "if" and x.sum() > 0:
            x = x * 2
        if self.how == "int":
            x = x[:, : int(x.amax().item())]
        if self.how == "numpy":
            x = torch.from_numpy(x.numpy())
        if self.how == "for":
            for _ in range(int(x.abs().sum())):
                x = x * 0.99
        outputs: Tensor = self.head(nn.functional.pad(x, (0, 8 - x.shape[1])))
        return outputs


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("if", r"The model branches on values in forward, line \d+ \('if self.how == \"if\" and x.sum\(\) > 0:'\)"),
        ("int", r"branches on values in forward, line \d+ \('x = x\[:, : int"),
        ("for", r"turns a tensor into a Python number in forward, line \d+ \('for _ in range"),
        ("numpy", r"hands a tensor to NumPy in forward, line \d+ \('x = torch.from_numpy"),
    ],
)
def test_7_what_needs_values_is_refused_at_once_with_its_line(how: str, words: str, run: Callable[..., Result]) -> None:
    result = run(Chooses(how), (8,), "executorch")
    assert result.status == "refused"
    assert result.file is None
    assert not result.report["tries"], "nothing was computed before"
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(result.report["do"])


# --- 2 and 3: layers that eager mode had no int8 for -------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "layer"),
    [
        ("PReLU", nn.PReLU(8)),
        ("ConvTranspose2d", nn.ConvTranspose2d(8, 8, 2, 2)),
        ("ConvTranspose2d", nn.ConvTranspose2d(8, 8, 3, groups=2)),
    ],
    ids=["PReLU", "transposed", "transposed in groups"],
)
def test_2_and_3_inside_pytorch_such_layers_stay_in_float_and_are_named(
    kind: str, layer: nn.Module, run: Callable[..., Result]
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), layer, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 16))
    result = run(model, (3, 8, 8), "pytorch", budget=100)
    assert worst_db(result) > 25
    assert result.report["census"]["int8"] == ["4"]
    assert "1" in dict(result.report["census"]["float"]), kind


def test_2_and_3_a_model_without_linear_layers_is_sent_to_another_target() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.PReLU(16), nn.ConvTranspose2d(16, 6, 2, 2))
    with pytest.raises(targets.TargetError, match=r"none; its parameters: 838 in convolution.* Choose aotinductor"):
        targets.modes(model, "pytorch")


@pytest.mark.parametrize("target", FILES)
@pytest.mark.parametrize("groups", [1, 2])
def test_2_and_3_files_have_them_and_a_norm_behind_a_transposed_convolution_is_right(
    target: str, groups: int, run: Callable[..., Result]
) -> None:
    up = nn.ConvTranspose2d(8, 8, 2, 2, groups=groups)
    model = trained(nn.Sequential(nn.Conv2d(3, 8, 3), nn.PReLU(8), up, nn.BatchNorm2d(8), nn.ReLU()), (3, 8, 8))
    result = run(model, (3, 8, 8), target)
    assert worst_db(result) > 25
    assert len(result.report["tries"]) == 1, "it is right from the start"


# --- 4: masks ----------------------------------------------------------------------------------------


class Masked(nn.Module):
    """Convolutions, of which static quantization comes first, and attention with a mask."""

    def __init__(self, low: float, added: bool = True) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(16, 16, 5, padding=2), nn.ReLU(), nn.Conv1d(16, 16, 5, padding=2))
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))
        self.low, self.added = low, added
        self.register_buffer("hidden", torch.ones(6, 6).triu(1))
        self.register_buffer("mask", torch.zeros(6, 6).masked_fill(self.hidden.bool(), low))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) + x
        x = x.transpose(1, 2)
        scores = self.q(x) @ self.k(x).transpose(1, 2) / 4
        scores = scores + (self.mask if self.added else self.hidden * self.low)
        outputs: Tensor = scores.softmax(-1) @ self.v(x)
        return outputs


@pytest.mark.parametrize(
    ("target", "low", "added"),
    [("executorch", LOWEST, True), ("onnx-x86", -math.inf, True), ("onnx-x86", -1e9, False)],
    ids=["lowest", "infinite", "a product"],
)
def test_4_the_sum_with_a_mask_is_named_left_in_float_and_the_file_is_good(
    target: str, low: float, added: bool, run: Callable[..., Result]
) -> None:
    report = (result := run(Masked(low, added), (16, 6), target)).report
    assert report["mode"] == "static"
    first = report["tries"][0]
    assert first["worst_db"] < 15 < 20 < worst_db(result)
    assert result.status == "kept"
    assert "`scores = scores + (self.mask" in report["left_in_float"][0]["where"]
    assert report["left_in_float"][0]["where"].startswith("line ")
    words = report["diagnosis"][0]
    assert "256 steps over that range are worth nothing. Leave it in float; a mask of -30 does the same" in words
    assert "stem.0" in report["census"]["int8"], "convolutions are not given up for it"


class Coder(nn.Module):
    """Layers of PyTorch with a causal mask."""

    def __init__(self, decoder: bool) -> None:
        super().__init__()
        kind = nn.TransformerDecoderLayer if decoder else nn.TransformerEncoderLayer
        self.decoder, self.layer = decoder, kind(16, 2, 32, batch_first=True)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(6))

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layer(x, x, tgt_mask=self.mask) if self.decoder else self.layer(x, self.mask)
        return outputs


@pytest.mark.parametrize(("decoder", "target"), [(False, "executorch"), (True, "onnx-x86"), (False, "pytorch")])
def test_4_masks_of_transformer_layers_can_be_captured(decoder: bool, target: str, run: Callable[..., Result]) -> None:
    detect = nn.modules.transformer._detect_is_causal_mask
    result = run(Coder(decoder), (6, 16), target)
    assert result.status == "kept"
    assert worst_db(result) > 25
    assert nn.modules.transformer._detect_is_causal_mask is detect


# --- 5: parts of different scale ---------------------------------------------------------------------


class Detector(nn.Module):
    """Boxes in pixels beside confidences, in images or in rows; joined by cat, or by stack."""

    def __init__(self, rows: bool = False, stacked: bool = False) -> None:
        super().__init__()
        self.rows, self.stacked = rows, stacked
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())
        heads = [nn.Linear(16, 2) if rows else nn.Conv2d(16, 2, 1) for _ in range(2)]
        self.box, self.conf = heads
        with torch.no_grad():
            for head in heads:
                head.weight *= 30  # as a trained one answers: not the same for all inputs

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        x = x.mean((2, 3)) if self.rows else x
        parts = [torch.sigmoid(self.box(x)) * 640, torch.sigmoid(self.conf(x))]
        return torch.stack(parts, 1).flatten(1, 2) if self.stacked else torch.cat(parts, 1)


@pytest.mark.parametrize(
    ("target", "made"),
    [("executorch", {}), ("onnx-x86", {"rows": True}), ("onnx-x86", {"stacked": True})],
    ids=["images", "rows", "stacked"],
)
def test_5_confidences_beside_boxes_are_alive_and_what_joins_them_is_named(
    target: str, made: dict[str, bool], run: Callable[..., Result]
) -> None:
    report = (result := run(Detector(**made), (3, 8, 8), target)).report
    assert result.status == "kept"
    assert worst_db(result) > 20
    assert not report["quality"]["dead"]
    if made.get("stacked"):
        return  # a stack has no range of its own: nothing is lost
    assert report["tries"][0]["worst_db"] == pytest.approx(0, abs=3), "every confidence was the same number"
    assert report["left_in_float"][0]["operator"] == "cat"
    assert "joins parts of different scale" in report["diagnosis"][0]
    assert "Return the parts as separate outputs, or leave the cat in float." in report["diagnosis"][0]
    assert report["mode"] == "static"


# --- 6: activations ----------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [*FILES, "pytorch"])
def test_6_smooth_activations_and_a_norm_behind_a_linear_layer(target: str, run: Callable[..., Result]) -> None:
    rows = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.BatchNorm1d(16), nn.Softplus(), nn.Linear(16, 16))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 1), nn.Mish(), nn.AvgPool2d(2), rows)
    model.append(nn.Softmax(1))
    result = run(trained(model, (3, 8, 8)), (3, 8, 8), target, budget=100)
    assert worst_db(result) > 25
    folded = any("without a change of the function: 1." in one for one in result.report["notes"])
    assert folded == (target != "pytorch"), "whose file is read into the reader's own model"


# --- 8 and 12: batch norms that cannot be folded -----------------------------------------------------


class PreActivation(nn.Module):
    """A norm at the front, and one that reads a convolution beside a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.front, self.stem = nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3)
        self.norm, self.conv = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(self.front(x))
        outputs: Tensor = x + self.last(self.conv(self.norm(x).relu()))
        return outputs


class SharedHead(nn.Module):
    """One convolution on two inputs, with a norm for each, as detectors have it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.first(self.conv(x)).relu() + self.second(self.conv(3 * x)).relu()
        return outputs


@pytest.mark.parametrize(("kind", "stay"), [(PreActivation, ["front", "norm"]), (SharedHead, ["first", "second"])])
def test_8_the_graph_is_still_the_model(kind: type[nn.Module], stay: list[str]) -> None:
    model, inputs = trained(kind(), (3, 8, 8)), torch.randn(4, 3, 8, 8)
    folded, count = folding.fold_norms(model)
    assert count == (kind is PreActivation)
    with float_paths.quiet(), torch.no_grad():
        captured = targets.captured(folded, (inputs,), "executorch")
        int8 = targets.converted(targets.prepared(captured, [(inputs,)], targets.quantizer("executorch", "static")))
        assert sqnr_db(model(inputs), int8(inputs)) > 25
    assert targets.norms(int8) == stay


def test_8_fusing_is_advised_only_where_it_leaves_the_model_as_it_is() -> None:
    model, data = trained(PreActivation(), (3, 8, 8)), [torch.randn(8, 3, 8, 8)]
    words = diagnose.diagnose(model, data, data).verdicts
    hint = "int8 would have it folded, so fuse last first; fusing another one would change the model."
    assert f"Passed through in float: BatchNorm2d (front, norm, last); {hint}" in words
    with pytest.raises(diagnose.DiagnosisError, match=r"Some batch norms are not folded .* \(last\)"):
        repair.equalize(model)
    folded, _ = folding.fold_norms(model)
    words = diagnose.diagnose(folded, data, data).verdicts
    assert any("(front, norm); not to be fused, since it does not alone read a convolution" in one for one in words)
    assert not any("fuse" in one and "not to be fused" not in one for one in words)
    assert "a branch" in repair.equalize(folded)[1].skipped["stem"]


def test_8_of_a_model_that_cannot_be_followed_the_rule_is_told() -> None:
    class Wilful(PreActivation):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() < math.inf else x

    data = [torch.randn(8, 3, 8, 8)]
    words = " ".join(diagnose.diagnose(Wilful().eval(), data, data).verdicts)
    assert "int8 would have one folded that alone reads a convolution or Linear: fuse only such ones first." in words


@pytest.mark.parametrize("target", FILES)
def test_12_the_report_says_what_a_norm_behind_an_activation_costs(target: str, run: Callable[..., Result]) -> None:
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)]
    report = run(trained(nn.Sequential(*layers), (3, 8, 8)), (3, 8, 8), target).report
    assert "2" in dict(report["census"]["float"])
    assert not report["census"]["folded"]
    note = report["notes"][-1]
    assert note.startswith("Batch norms that do not alone read a convolution or Linear are not folded: 1 here (2).")
    assert f"of the {report['census']['conversions']} conversions between float and int8" in note
    plain = run(nn.Sequential(layers[0], layers[1], layers[3]), (3, 8, 8), target).report
    assert plain["census"]["conversions"] < report["census"]["conversions"], "so it does cost some"
    assert not any("Batch norms" in one for one in plain["notes"])


# --- 9: computed weights -----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*is deprecated in favor of:FutureWarning")
@pytest.mark.parametrize("how", ["weight_norm", "spectral_norm", "prune"])
def test_9_weights_computed_by_a_hook_are_refused_with_the_cure_and_go_with_it(
    how: str, run: Callable[..., Result]
) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 16))
    layer, utils = model[1], torch.nn.utils
    makes = {"weight_norm": utils.weight_norm, "spectral_norm": utils.spectral_norm}
    takes = {"weight_norm": utils.remove_weight_norm, "spectral_norm": utils.remove_spectral_norm}
    if how == "prune":
        prune.random_unstructured(layer, "weight", 0.5)
        cure = "Call torch.nn.utils.prune.remove(layer, 'weight') on each"
    else:
        makes[how](layer)
        cure = f"Call torch.nn.utils.remove_{how}(layer) on each"
    with pytest.raises(ModelError) as refused:
        run(model, (3, 4, 4), "pytorch")
    assert str(refused.value).startswith(f"1: torch.nn.utils.{how} computes the weight before each call")
    assert cure in str(refused.value)
    prune.remove(layer, "weight") if how == "prune" else takes[how](layer)
    assert run(model, (3, 4, 4), "pytorch", budget=100).status == "kept"


@pytest.mark.parametrize("target", ["onnx-x86", "executorch", "pytorch"])
@pytest.mark.parametrize("how", ["weight_norm", "spectral_norm", "orthogonal"])
def test_9_other_computed_weights_are_taken(how: str, target: str, run: Callable[..., Result]) -> None:
    made = getattr(torch.nn.utils.parametrizations, how)
    model = nn.Sequential(made(nn.Conv2d(3, 16, 3)), nn.ReLU(), nn.Flatten(), made(nn.Linear(576, 8)))
    model(torch.randn(4, 3, 8, 8)).sum().backward()
    result = run(model, (3, 8, 8), target, budget=100)
    assert worst_db(result) > 25
    assert "3" in result.report["census"]["int8"]
    assert type(model[0]).__name__ == "ParametrizedConv2d"


def test_weights_in_channels_last_can_be_lowered(run: Callable[..., Result]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Flatten(), nn.Linear(576, 8)).to(memory_format=torch.channels_last)
    assert run(model, (3, 8, 8), "executorch", budget=100).status == "kept"
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)


# --- 10: what the delegate refuses -------------------------------------------------------------------


@pytest.mark.parametrize("activation", [nn.PReLU(16), nn.PReLU()])
def test_10_prelu_behind_linear_is_computed_by_executorch_itself(
    activation: nn.Module, run: Callable[..., Result]
) -> None:
    first = [nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Flatten(), nn.Linear(32, 16)]
    result = run(nn.Sequential(*first, activation, nn.Linear(16, 16)), (3, 4, 4), "executorch", budget=100)
    assert worst_db(result) > 25
    assert any("XNNPACK refuses prelu of this model, in float too" in one for one in result.report["notes"])


# --- 11: larger, or slower ---------------------------------------------------------------------------


def test_11_a_file_larger_than_float_is_said_first_and_not_shipped(run: Callable[..., Result]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 16))
    report = run(model, (3, 4, 4), "executorch", budget=100).report
    assert report["first"][0].startswith("The file is no smaller than float: 0.0")
    assert " 0.00 MB" not in report["first"][0]
    assert report["do"].startswith("Ship float: model-int8.pte is within the budget, but it takes ")


def test_11_nothing_is_shipped_for_a_size_that_hardly_differs(report: Callable[..., dict[str, Any]]) -> None:
    found = report()
    slower = {"ratio": 0.8, "low": 0.7, "high": 0.9}
    found["file"] |= {"mb": 13.9, "float_mb": 13.98}
    found["speed"] |= {"own": slower, "best": slower | {"name": "compiled"}}
    assert reports.first_lines(found)[0].startswith("The file is slower than float: 0.80 times")
    assert advice(found) == (
        "Ship float: model.onnx is within the budget, but it takes 99 % of float's size, and no gain in speed was "
        "found that makes up for that."
    )
