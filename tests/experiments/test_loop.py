"""The training loop: what it refuses, where it stops, how it resumes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization as tq

from experiments import loop, qat_runs
from qhelpers import guards
from qhelpers.tasks import checkpoints

pytestmark = pytest.mark.usefixtures("random_weights")


def small_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 2)
    )


def batch_of(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(4, 1, 6, 6, generator=generator), torch.arange(4) % 2


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_loss_falls_and_the_random_state_stays() -> None:
    model = small_net()
    before = torch.get_rng_state()
    losses = loop.fit(model, lambda step: batch_of(0), sgd(model), 30)
    assert len(losses) == 30
    assert losses[-1] < losses[0]
    assert torch.equal(before, torch.get_rng_state())


def test_a_learning_rate_that_is_far_too_high_stops_the_run_and_gives_good_weights_back() -> None:
    model = small_net()
    seen: list[dict[str, Tensor]] = []

    def remember(step: int, losses: list[float]) -> None:
        seen.append({name: value.clone() for name, value in model.state_dict().items()})

    optimizer = sgd(model, lr=0.01)

    def explode(model: nn.Module) -> None:
        optimizer.param_groups[0]["lr"] = 1e38

    with pytest.raises(loop.DivergedError, match=r"The loss of step 4 is .*last good weights again") as caught:
        loop.fit(model, batch_of, optimizer, 10, before_step={3: explode}, on_step=remember)
    assert caught.value.step == 4
    assert caught.value.layer in dict(model.named_modules())
    assert equal({k: v for k, v in seen[2].items() if "running" not in k and "tracked" not in k}, model.state_dict())
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())


def test_a_damaged_image_is_named_and_does_not_reach_the_statistics() -> None:
    model = small_net()

    def damaged(step: int) -> tuple[Tensor, Tensor]:
        images, labels = batch_of(step)
        if step == 2:
            images[0, 0, 0, 0] = float("inf")
        return images, labels

    with pytest.raises(loop.DivergedError, match=r"step 2 is .*the batch itself.*look at its images"):
        loop.fit(model, damaged, sgd(model), 5)
    assert bool(model[1].running_mean.isfinite().all())


def test_the_first_layer_whose_output_overflows_is_named() -> None:
    model = small_net()
    with torch.no_grad():
        model[5].weight.fill_(1e38)
    with pytest.raises(loop.DivergedError) as caught:
        loop.fit(model.eval(), lambda step: (10 * batch_of(step)[0], batch_of(step)[1]), sgd(model), 1)
    assert caught.value.layer == "5"


def test_a_fake_quantized_network_survives_a_nan_batch() -> None:
    model = qat_runs.prepared()
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([0, 1])
    bad = images.clone()
    bad[0] = float("nan")
    with pytest.raises(loop.DivergedError, match="the batch itself"):
        loop.fit(model, lambda step: (images if step == 0 else bad, labels), sgd(model, 1e-4), 2)
    assert bool(model(images).isfinite().all())


def test_a_fake_quantizer_that_complains_of_infinite_weights_is_named() -> None:
    net = tq.QuantWrapper(small_net()).train()
    tq.fuse_modules_qat(net, ["module.0", "module.1", "module.2"], inplace=True)
    net.qconfig = tq.get_default_qat_qconfig("qnnpack")
    model = tq.prepare_qat(net)
    with pytest.raises(loop.DivergedError) as caught:
        loop.fit(model, batch_of, sgd(model, lr=1e30), 5)
    assert caught.value.layer.startswith("module.")
    assert bool(torch.cat([value.flatten() for value in model.parameters()]).isfinite().all())


def test_other_errors_are_passed_on() -> None:
    model = small_net()
    with pytest.raises(RuntimeError, match=r"size mismatch|shapes cannot be multiplied"):
        loop.fit(model, lambda step: (torch.zeros(4, 1, 9, 9), batch_of(0)[1]), sgd(model), 1)


def test_weights_that_the_last_step_ruins_are_found_too() -> None:
    model = small_net()
    before = {name: value.clone() for name, value in model.named_parameters()}
    with pytest.raises(loop.DivergedError, match="After step 0, the last one, weights are not finite"):
        loop.fit(model, batch_of, sgd(model, lr=float("inf")), 1)
    assert equal(before, dict(model.named_parameters()))


def test_finding_the_layer_leaves_the_random_state_alone() -> None:
    model = small_net()  # it has a dropout
    before = torch.get_rng_state()
    bad = (torch.full((4, 1, 6, 6), float("nan")), batch_of(0)[1])
    with pytest.raises(loop.DivergedError):
        loop.fit(model, lambda step: bad, sgd(model), 1)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("eval_first", [False, True])
def test_a_batch_of_one_is_refused_while_norms_take_statistics(eval_first: bool) -> None:
    model = small_net()
    one = (batch_of(0)[0][:1], batch_of(0)[1][:1])
    if eval_first:  # frozen statistics: nothing is wrong with one image
        assert len(loop.fit(model.eval(), lambda step: one, sgd(model), 1)) == 1
    else:
        with pytest.raises(loop.TrainingError, match="A batch of 1 while 1 takes statistics"):
            loop.fit(model, lambda step: one, sgd(model), 1)


def test_a_batch_of_one_is_refused_by_fused_layers_too() -> None:
    model = qat_runs.prepared()
    one = (torch.randn(1, 3, 64, 64), torch.tensor([0]))
    with pytest.raises(loop.TrainingError, match=r"A batch of 1 while features\.0\.0\.bn"):
        loop.fit(model, lambda step: one, sgd(model), 1)
    qat_runs.freeze("norms at once", 3)[0](model)
    assert len(loop.fit(model, lambda step: one, sgd(model, 1e-4), 1)) == 1


def test_a_converted_model_is_not_trained() -> None:
    int8 = checkpoints.load_digits_int8()
    with pytest.raises(guards.GuardError, match="are int8 and cannot be trained"):
        loop.fit(int8, batch_of, sgd(nn.Linear(1, 1)), 1)


def run(
    state_file: Path | None, stop_at: int | None = None, seed: int = 0, steps: int = 9, lr: float = 0.1
) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = small_net()
    optimizer = sgd(model, lr)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        if step == stop_at:
            raise KeyboardInterrupt
        return batch_of(step)

    loop.fit(
        model,
        batch,
        optimizer,
        steps,
        schedule=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
        before_step={2: lambda net: net[1].eval()},  # a mode is in no state_dict: it must be applied again
        state_file=state_file,
        save_every=4,
        seed=seed,
    )
    return model.state_dict()


def test_an_interrupted_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    file = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        run(file, stop_at=7)
    assert file.is_file()
    assert equal(run(file), run(None))
    assert not file.exists()


def test_the_state_of_another_run_is_refused_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        run(file, stop_at=7)
    for other in ({"seed": 1}, {"steps": 12}, {"lr": 0.2}):
        with pytest.raises(loop.TrainingError, match="the state of another run"):
            run(file, **other)  # type: ignore[arg-type]
    assert file.is_file()


def test_a_state_of_another_network_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        run(file, stop_at=7)
    other = nn.Linear(3, 2)
    with pytest.raises(loop.TrainingError, match="does not fit"):
        loop.fit(other, batch_of, sgd(other), 9, state_file=file)


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "state.pt"
    file.write_bytes(b"half a file")
    with pytest.raises(loop.TrainingError, match="cannot be read"):
        run(file)
