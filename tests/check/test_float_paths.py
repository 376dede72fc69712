"""The float rivals of a model: each computes what the model does, or is named with the reason why it is not there."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qhelpers import engines, guards, metrics
from qhelpers.check import float_paths, rivals

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
EVERY = {
    float_paths.EAGER,
    float_paths.TORCHSCRIPT,
    float_paths.COMPILED,
    float_paths.ONNX,
    float_paths.PTE,
    float_paths.BF16,
    float_paths.BF16_EAGER,
}


class Small(nn.Module):
    """A convolution, a batch norm with statistics of its own, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
        self.body[1].running_mean.fill_(0.3)
        self.body[1].running_var.fill_(0.25)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.body(images)
        return outputs


class Untraceable(Small):
    """No exporter can follow it: what it does next depends on the values."""

    def forward(self, images: Tensor) -> Tensor:
        if float(images.sum()) > 1e9:
            return images
        return super().forward(images)


def made(kind: type[Small]) -> Small:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind()
    return model.eval()  # type: ignore[return-value]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rivals")


@pytest.fixture(scope="module")
def found(folder: Path) -> float_paths.Rivals:
    return rivals(made(Small), IMAGES, folder=folder)


def test_every_path_is_there_or_named(found: float_paths.Rivals) -> None:
    there, missing = set(found.candidates), set(found.missing)
    assert not there & missing
    assert there | missing == (EVERY if engines.has_bf16() else EVERY - {float_paths.BF16_EAGER})
    assert there >= {float_paths.EAGER, float_paths.TORCHSCRIPT, float_paths.ONNX, float_paths.PTE}
    for name in there | missing:
        assert name in str(found)


def test_each_path_computes_what_the_model_does(found: float_paths.Rivals) -> None:
    with torch.inference_mode():
        expected = made(Small)(IMAGES)
        for name, run in found.candidates.items():
            assert metrics.sqnr_db(expected, run()) > (20 if "bf16" in name else 60), name


def test_batch_norms_are_folded() -> None:
    with torch.inference_mode():
        twin = float_paths.fused_copy(made(Small), IMAGES)
        assert not [layer for layer in twin.modules() if isinstance(layer, nn.BatchNorm2d)]
        assert torch.allclose(twin(IMAGES), made(Small)(IMAGES), atol=1e-5)


def test_each_path_can_be_handed_to_another_process(found: float_paths.Rivals) -> None:
    with torch.inference_mode():
        for name, run in found.candidates.items():
            again = pickle.loads(engines.pickled(run))
            assert torch.equal(again(), run()), name


@pytest.mark.skipif(not engines.has_bf16(), reason="one path less")
def test_a_compiled_path_is_made_for_each_number_of_threads(folder: Path, found: float_paths.Rivals) -> None:
    made_for = torch.get_num_threads() + 1
    compiled = found.candidates.get(float_paths.COMPILED)
    if compiled is None:
        pytest.skip("no compiler")
    with (
        float_paths.using_threads(made_for),
        pytest.raises(float_paths.RivalsError, match=f"not compiled for {made_for} threads"),
    ):
        pickle.loads(pickle.dumps(compiled))
    more = rivals(made(Small), IMAGES, folder=folder, threads=[made_for])
    assert set(more.candidates) == set(found.candidates)
    with float_paths.using_threads(made_for), torch.inference_mode():
        again = pickle.loads(pickle.dumps(more.candidates[float_paths.COMPILED]))
        assert torch.allclose(again(), made(Small)(IMAGES), atol=1e-5)
    assert torch.get_num_threads() == made_for - 1


def test_files_are_written_once_and_not_taken_for_another_model(
    found: float_paths.Rivals, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("written again")

    for writer in ("_write_torchscript", "_compile_side_by_side", "_write_onnx", "_write_pte"):
        monkeypatch.setattr(float_paths, writer, refuse)
    assert set(rivals(made(Small), IMAGES, folder=folder).candidates) == set(found.candidates)
    other = made(Small)
    with torch.no_grad():
        other.body[0].weight.mul_(2)
    for model, images in ((other, IMAGES), (made(Small), IMAGES[:1])):
        missing = rivals(model, images, folder=folder).missing
        assert "written again" in missing[float_paths.ONNX]


def test_a_path_that_cannot_be_built_is_named_with_its_reason(folder: Path) -> None:
    found = rivals(made(Untraceable), IMAGES, folder=folder)
    assert float_paths.EAGER in found.candidates
    for name in (float_paths.COMPILED, float_paths.ONNX, float_paths.PTE):
        assert name not in found.candidates
        assert len(found.missing[name]) > 20
        assert f"{name}: not here. {found.missing[name]}" in str(found)


def test_a_path_with_other_outputs_is_no_rival(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(path: Path, inputs: Sequence[Tensor]) -> float_paths.Run:
        return lambda: torch.ones(2, 5)

    monkeypatch.setattr(float_paths, "_compile_side_by_side", lambda *arguments: None)
    monkeypatch.setattr(float_paths, "open_onnx", wrong)
    found = rivals(made(Small), IMAGES, folder=tmp_path)
    assert float_paths.ONNX not in found.candidates
    assert "Its outputs are not those of the float model (SQNR" in found.missing[float_paths.ONNX]


def test_a_compiler_that_fails_in_its_process_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    found = rivals(made(Small), IMAGES, folder=tmp_path)
    assert "The compiler failed: " in found.missing[float_paths.COMPILED]
    assert "no-such-compiler" in found.missing[float_paths.COMPILED]
    assert float_paths.ONNX in found.candidates


def test_without_the_runtime_its_path_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(extra: str, *packages: str) -> None:
        raise guards.GuardError(f"{packages[0]} is not installed")

    monkeypatch.setattr(guards, "require_packages", absent)
    monkeypatch.setattr(engines, "has_bf16", lambda: False)
    found = rivals(made(Small), IMAGES, folder=tmp_path)
    assert "onnx is not installed" in found.missing[float_paths.ONNX]
    assert "executorch is not installed" in found.missing[float_paths.PTE]
    assert found.missing[float_paths.BF16] == "This processor has no instructions for bf16."


def test_a_model_that_cannot_be_timed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(guards.GuardError, match="training mode"):
        rivals(made(Small).train(), IMAGES, folder=tmp_path)
    with pytest.raises(float_paths.RivalsError, match="fails on these inputs"):
        rivals(made(Small), IMAGES[:, :1], folder=tmp_path)
