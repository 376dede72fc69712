"""The guards of the PT2E workflow: what torch.export, prepare_pt2e and convert_pt2e pass over or refuse obscurely."""

import copy
import functools
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import GraphModule

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of their imports
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnn
    from torchao.quantization import pt2e
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import Quantizer
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

from qhelpers.check import graphs

X = torch.linspace(-1, 1, 2 * 3 * 6 * 6).view(2, 3, 6, 6)


def xnnpack(**kind: bool) -> xnn.XNNPACKQuantizer:
    return xnn.XNNPACKQuantizer().set_global(xnn.get_symmetric_quantization_config(is_per_channel=True, **kind))


def inductor(**kind: bool) -> x86.X86InductorQuantizer:
    return x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config(**kind))


both = pytest.mark.parametrize("quantizer", [xnnpack, inductor])


@pytest.fixture(autouse=True)
def own_random_state() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="must run observer")  # what convert says of a graph that never ran
        warnings.filterwarnings("ignore", message="Module: Unable to customize quantization config")
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


def graph_of(training: bool = False) -> GraphModule:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    return torch.export.export(net.train(training), (X,)).module()


@functools.cache
def _prepared(quantizer: Callable[..., Quantizer], kind: str) -> GraphModule:
    if kind == "is_qat":
        return prepare_qat_pt2e(graph_of(training=True), quantizer(is_qat=True))
    return prepare_pt2e(graph_of(), quantizer(**({kind: True} if kind else {})))


def prepared_graph(quantizer: Callable[..., Quantizer], kind: str = "") -> GraphModule:
    """A copy of a graph that has seen no data: XNNPACK's quantizer takes seconds to prepare one."""
    return copy.deepcopy(_prepared(quantizer, kind))


@both
def test_a_graph_that_never_ran_is_found(quantizer: Callable[..., Quantizer]) -> None:
    prepared = prepared_graph(quantizer)
    with pytest.raises(graphs.GraphError, match=r"of the \d observers of this graph have seen no data \(of .*weight"):
        graphs.require_observed(prepared)
    int8 = convert_pt2e(prepared)
    assert torch.equal(int8(X), int8(2 * X)), "what the guard is for: whatever it sees, it answers its last bias, or 0"


@both
def test_a_calibrated_graph_passes(quantizer: Callable[..., Quantizer]) -> None:
    prepared = prepared_graph(quantizer)
    prepared(X)
    assert graphs.require_observed(prepared) is prepared
    assert graphs.require_observed(pt2e.move_exported_model_to_eval(prepared)) is prepared


@both
def test_a_graph_of_qat_that_never_ran_is_found(quantizer: Callable[..., Quantizer]) -> None:
    prepared = prepared_graph(quantizer, "is_qat")
    for graph in (prepared, pt2e.move_exported_model_to_eval(prepared)):
        with pytest.raises(graphs.GraphError, match="have seen no data"):
            graphs.require_observed(graph)
    pt2e.move_exported_model_to_train(prepared)
    prepared(X)
    assert graphs.require_observed(prepared) is prepared
    assert graphs.require_observed(pt2e.move_exported_model_to_eval(prepared)) is prepared


@both
def test_observers_that_were_switched_off_before_the_first_batch_are_found(
    quantizer: Callable[..., Quantizer],
) -> None:
    prepared = prepared_graph(quantizer, "is_qat")
    prepared.apply(pt2e.disable_observer)
    prepared(X)
    with pytest.raises(graphs.GraphError, match="have seen no data"):
        graphs.require_observed(prepared)


@both
def test_ranges_that_are_found_at_run_time_need_no_data_but_weights_do(
    quantizer: Callable[..., Quantizer],
) -> None:
    prepared = prepared_graph(quantizer, "is_dynamic")
    with pytest.raises(graphs.GraphError, match="weight"):
        graphs.require_observed(prepared)
    prepared(X)
    assert graphs.require_observed(prepared) is prepared


@pytest.mark.parametrize("quantizer", [xnn.XNNPACKQuantizer(), x86.X86InductorQuantizer()], ids=["xnnpack", "x86"])
def test_a_quantizer_without_a_configuration_is_found(quantizer: Quantizer) -> None:
    prepared = prepare_pt2e(graph_of(), quantizer)
    prepared(X)
    for guard in (graphs.require_annotated, graphs.require_observed):
        with pytest.raises(graphs.GraphError, match=r"would leave it in float.*set_global\(config\)"):
            guard(prepared)
    names = [str(node.target) for node in convert_pt2e(prepared).graph.nodes]
    assert not [name for name in names if "quantize" in name], "what the guard is for: float, without a word"


def test_a_quantizer_for_types_that_do_not_occur_is_found() -> None:
    quantizer = xnn.XNNPACKQuantizer().set_module_type(nn.Conv1d, xnn.get_symmetric_quantization_config())
    with pytest.raises(graphs.GraphError, match="annotated no operator"):
        graphs.require_annotated(prepare_pt2e(graph_of(), quantizer))
    config = x86.get_default_x86_inductor_quantization_config()
    quantizer = x86.X86InductorQuantizer().set_module_type_qconfig(nn.Conv1d, config)
    with pytest.raises(graphs.GraphError, match="annotated no operator"):
        graphs.require_annotated(prepare_pt2e(graph_of(), quantizer))


def test_a_quantizer_for_one_type_that_occurs_passes() -> None:
    quantizer = xnn.XNNPACKQuantizer().set_module_type(nn.Linear, xnn.get_symmetric_quantization_config())
    prepared = prepare_pt2e(graph_of(), quantizer)
    assert graphs.require_annotated(prepared) is prepared


class OnShape(nn.Module):
    def __init__(self, least: int = 1) -> None:
        super().__init__()
        self.least, self.layer = least, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        if x.shape[0] > self.least:
            return x - x.mean(0)
        return x


class OnValues(OnShape):
    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        if x.sum() > 0:
            return 2 * x
        return x


class Until(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        while x.norm() > 1:
            x = x / 2
        return x


class Cut(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[: int(x[0, 0])] if int(x[0, 0]) > 0 else x


ROWS = torch.linspace(-1, 1, 8).view(2, 4)


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.sum())


@pytest.mark.parametrize(
    ("model", "what", "line"),
    [
        (OnValues(), "branches on values", "if x.sum() > 0:"),
        (Until(), "branches on values", "while x.norm() > 1:"),
        (Cut(), "turns a tensor into a Python number", r"if int(x[0, 0]) > 0"),
        (Scaled(), "turns a tensor into a Python number", "return x * float(x.sum())"),
    ],
    ids=["if", "while", "int", "float"],
)
def test_what_needs_values_is_refused_in_words(
    model: nn.Module, what: str, line: str, capfd: pytest.CaptureFixture[str]
) -> None:
    level = logging.getLogger("torch.fx.experimental.symbolic_shapes").level
    with pytest.raises(graphs.GraphError, match=rf"The model {what} in forward, line \d+") as refused:
        graphs.capture(model.eval(), (ROWS,))
    assert line in str(refused.value)
    assert "torch.where" in str(refused.value)
    assert "torch.cond" in str(refused.value)
    assert logging.getLogger("torch.fx.experimental.symbolic_shapes").level == level
    assert not any(capfd.readouterr()), "the error says it all"


def test_the_cures_that_the_refusal_names_are_cures() -> None:
    class Where(OnShape):
        def forward(self, x: Tensor) -> Tensor:
            x = self.layer(x)
            return torch.where(x.sum() > 0, 2 * x, x)

    class Cond(OnShape):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, lambda y: 2 * self.layer(y), lambda y: self.layer(y), (x,))

    for model, observed in ((Where().eval(), True), (Cond().eval(), False)):
        program = graphs.capture(model, (ROWS,))
        assert torch.allclose(program.module()(ROWS), model(ROWS))
        prepared = prepare_pt2e(program.module(), inductor())
        if observed:
            assert graphs.require_annotated(prepared) is prepared
        else:
            with pytest.raises(graphs.GraphError, match=r"inside torch.cond are passed over"):
                graphs.require_annotated(prepared)


def test_control_flow_on_shapes_is_captured_with_the_branch_of_the_example() -> None:
    model = OnShape().eval()
    program = graphs.capture(model, (ROWS,))
    assert torch.allclose(program.module()(ROWS), model(ROWS))
    with pytest.raises(AssertionError, match="Guard failed"):
        program.module()(ROWS[:1])


def test_a_batch_of_one_that_the_graph_would_answer_wrongly_is_found() -> None:
    model = OnShape().eval()
    for dim in (Dim("batch"), Dim.DYNAMIC, Dim("batch", min=1, max=8), Dim("batch", min=2)):
        graph = torch.export.export(model, (ROWS,), dynamic_shapes=({0: dim},)).module()
        assert not torch.allclose(graph(ROWS[:1]), model(ROWS[:1])), "what the guard is for"
        with pytest.raises(graphs.GraphError, match="assumes that a dynamic dimension is not 1"):
            graphs.capture(model, (ROWS,), dynamic_shapes=({0: dim},))


def test_a_model_without_branches_passes() -> None:
    plain = nn.Linear(4, 4).eval()
    graph = graphs.capture(plain, (ROWS,), dynamic_shapes=({0: Dim("batch")},)).module()
    assert torch.allclose(graph(ROWS[:1]), plain(ROWS[:1]))


def test_outputs_that_are_no_number_for_one_input_are_alike() -> None:
    class Spread(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x.var(0)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*degrees of freedom")
        graph = graphs.capture(Spread().eval(), (ROWS,), dynamic_shapes=({0: Dim("batch")},)).module()
        assert graph(ROWS[:1])[1].isnan().all()


def test_torch_export_itself_refuses_a_range_that_takes_two_branches() -> None:
    with pytest.raises(Exception, match=r"Constraints violated|specialized"):
        graphs.capture(OnShape(least=4).eval(), (ROWS,), dynamic_shapes=({0: Dim("batch", min=2, max=8)},))


class Counting(nn.Module):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = nn.Buffer(torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls.add_(1)
        return inputs * self.calls


class Noisy(nn.Module):
    """Adds noise in evaluation, too."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + torch.randn_like(inputs)


@pytest.mark.parametrize("kind", [Counting, Noisy])
def test_a_model_that_counts_or_draws_does_not_branch(kind: type[nn.Module]) -> None:
    model = kind().eval()
    with torch.random.fork_rng(devices=[]):
        graphs.capture(model, (torch.ones(2, 3),), dynamic_shapes=({0: torch.export.Dim("batch", max=8)},))
    assert all(float(buffer) == 0 for buffer in model.buffers())


class Handed(nn.Module):
    """Hands its input to NumPy."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * inputs.detach().numpy().sum()


def test_numpy_in_a_model_is_refused_in_words() -> None:
    with pytest.raises(graphs.GraphError, match=r"hands a tensor to NumPy in forward, line \d+ .*numpy\(\)\.sum"):
        graphs.capture(Handed().eval(), (ROWS,))


@pytest.mark.parametrize("dim", [Dim("batch"), Dim.DYNAMIC], ids=["named", "dynamic"])
@pytest.mark.parametrize("size", [0, 1])
def test_an_example_that_is_too_small_for_a_dynamic_size_is_refused_in_words(dim: Any, size: int) -> None:
    with pytest.raises(graphs.GraphError, match=rf"the example has the size {size} there.* at least 2"):
        graphs.capture(nn.Linear(4, 4).eval(), (ROWS[:size],), dynamic_shapes=({0: dim},))


def test_other_errors_of_torch_export_are_left_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="must have same reduction dim"):
        graphs.capture(nn.Linear(5, 4).eval(), (ROWS,))


@pytest.mark.parametrize("guard", [graphs.require_annotated, graphs.require_observed])
def test_what_is_no_graph_is_refused_in_words(guard: Callable[[Any], Any]) -> None:
    with pytest.raises(graphs.GraphError, match="Linear is no graph: capture it"):
        guard(nn.Linear(4, 4))
    with pytest.raises(graphs.GraphError, match="ExportedProgram is no graph"):
        guard(graphs.capture(nn.Linear(4, 4).eval(), (ROWS,)))
