"""The worksheet takes any model by an exchange of two cells, and refuses by name what it cannot take."""

import copy
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bs4 import BeautifulSoup
from torch import Tensor, nn
from torch.ao import quantization as tq
from torch.utils.data import DataLoader, TensorDataset

from qhelpers import guards, metrics
from qhelpers.book import chapter
from qhelpers.check import choose, inputs, page
from qhelpers.tasks import networks
from tools import common

NOTEBOOK = common.ROOT / "book" / "your-own-model.ipynb"
TRAIN = """
raw, answers = digits.dataset("train").tensors
inputs = SHAPE(raw)
rate = torch.optim.Adam(model.parameters(), 2e-3)
torch.manual_seed(0)
for _ in range(200):
    chosen = torch.randint(0, len(inputs), (64,))
    rate.zero_grad()
    nn.functional.cross_entropy(model(inputs[chosen]), answers[chosen]).backward()
    rate.step()
"""
SMALL_DIGITS = """
def batches(split, n, labelled=True):
    raw, answers = digits.dataset(split).tensors
    step = len(raw) // n
    inputs, answers = SHAPE(raw[::step]), answers[::step]
    return list(zip(inputs.split(50), answers.split(50))) if labelled else list(inputs.split(50))
calibration_loader = batches("train", 100, labelled=False)
validation_loader = batches("validation", 250)
test_loader = batches("test", 500)
example = test_loader[0][0][:1]
images_for_diagnosis = 50
"""
FEW_DIGITS = """
calibration_loader = digits.calibration_batches(32)
validation_loader = digits.loader("validation", limit=100)
test_loader = digits.loader("test", limit=200)
example = next(iter(test_loader))[0][:1]
images_for_diagnosis = 30
"""
MLP = """
SHAPE = lambda raw: raw[:, None] / 255
torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
target, accuracy_budget = "onnx", 1.0
"""
LSTM = """
SHAPE = lambda raw: raw / 255
class Rows(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(28, 96, batch_first=True), nn.Linear(96, 10)
        self.register_buffer("steps", torch.tensor(100_001))  # more than 16 bits of float can hold
    def forward(self, rows):
        return self.head(self.lstm(rows)[0][:, -1])
torch.manual_seed(0)
model = Rows()
target, accuracy_budget = "pytorch", 1.0
"""
TRANSFORMER = 'model, target, accuracy_budget = networks.load_digit_transformer(), "pytorch", 1.0'
RESNET = 'model, target, accuracy_budget = networks.load_digit_resnet(), "pytorch", 1.0'


def run_worksheet(your_model: str, your_data: str) -> dict[str, Any]:
    """Run the notebook's cells in order with two of them exchanged; give its report and its names."""
    exchanged = {"your-model": your_model, "your-data": your_data}
    names: dict[str, Any] = {"__name__": "__main__"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for cell in json.loads(NOTEBOOK.read_text())["cells"]:
            tags = cell["metadata"].get("tags", [])
            if cell["cell_type"] != "code" or any(tag.startswith("exercise") for tag in tags):
                continue
            code = next((exchanged.pop(tag) for tag in tags if tag in exchanged), "".join(cell["source"]))
            exec(compile(code, cell["id"], "exec"), names)
    assert not exchanged, "each of the two cells is there, once"
    return names


@pytest.fixture
def worksheet_process(one_thread: None) -> Iterator[None]:
    """Restore what the notebook changes in its process, also if it fails."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    yield
    torch.backends.mha.set_fastpath_enabled(fast_path)


@pytest.mark.parametrize(
    ("your_model", "your_data", "workflow", "suffix", "int8_percent"),
    [
        pytest.param(MLP + TRAIN, SMALL_DIGITS, "PT2E", ".onnx", 99, id="mlp"),
        pytest.param(LSTM + TRAIN, SMALL_DIGITS, "dynamic", ".pt", 98, id="lstm"),
        pytest.param(TRANSFORMER, FEW_DIGITS, "dynamic", ".pt", 66, id="transformer"),
        pytest.param(RESNET, FEW_DIGITS, "static", ".pt", 99, id="resnet in FX"),
    ],
)
def test_another_model_needs_two_cells(
    your_model: str, your_data: str, workflow: str, suffix: str, int8_percent: float, worksheet_process: None
) -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    names = run_worksheet(your_model, your_data)
    folder = chapter.results_folder()
    report = json.loads((folder / "worksheet-report.json").read_text())
    found = report["numbers"]
    assert found["workflow"] == workflow
    assert found["int8_share_percent"] > int8_percent
    assert (folder / f"worksheet-model{suffix}").stat().st_size == pytest.approx(1e6 * found["file_mb"])
    assert found["file_mb"] < found["float_mb"]
    assert found["float"]["test"]["top1_percent"] > 80
    assert found["int8"]["test"]["same_percent"] > 97
    assert found["within_budget"]
    assert all(ratio > 0 for ratio in found["times_speed_of"].values())
    shown = BeautifulSoup((folder / "worksheet-report.html").read_text(), "html.parser")
    titles = [title.get_text() for title in shown.find_all("h3")]
    assert titles[:5] == ["Summary", "Workflow", "Quality", "Speed", "Diagnosis"]
    assert not shown.find_all(["script", "img", "link"]), "the page needs no other file"
    assert torch.backends.mha.get_fastpath_enabled() == before
    headline = report["headline"]
    assert headline.startswith(f"int8 keeps the budget on these {found['int8']['validation']['n']} validation inputs")
    assert f"at most {found['changed_at_most_percent']:.1f} % of the answers change" in headline
    assert (found["float_file_mb"] is None) == (suffix == ".pt")
    assert not any("inf" in one.get_text() for one in names["axes"].texts), "folded norms are not drawn"
    check_what_is_left_out(names)
    check_the_recipe(names, shown.get_text(), suffix)


def check_what_is_left_out(names: dict[str, Any]) -> None:
    """Each converter leaves in float what the plan says, and only that."""
    layer = names["layers"][0].name
    whole = names["plans"]["per channel"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        without, everything = (
            names["ROADS"][names["choice"].tool](whole._replace(left_out=left)) for left in ((layer,), ())
        )
    names["plan"] = whole
    assert names["int8_parameters"](everything) - names["int8_parameters"](without) == {f"{layer}.weight"}


def check_the_recipe(names: dict[str, Any], page: str, suffix: str) -> None:
    """The file runs as the page says, in a process in which PyTorch's fast path is on."""
    if suffix != ".pt":
        assert f"worksheet-model-float{suffix} is the float model" in page
        return
    needed = "Before running: torch.backends.mha.set_fastpath_enabled(False)." in page
    assert needed == any(isinstance(one, nn.TransformerEncoderLayer) for one in names["model"].modules())
    torch.backends.mha.set_fastpath_enabled(True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded, example = names["load_state"](names["path"]), names["example"]
    assert getattr(loaded, "steps", 100_001) == 100_001
    if needed:
        with torch.inference_mode(), pytest.raises(AttributeError):
            loaded(example)
        torch.backends.mha.set_fastpath_enabled(False)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(example), names["loaded"](example))
    torch.backends.mha.set_fastpath_enabled(True)


def test_without_labels_it_goes_by_agreement_and_says_so(worksheet_process: None) -> None:
    unlabelled = SMALL_DIGITS.replace('batches("validation", 250)', 'batches("validation", 250, labelled=False)')
    unlabelled = unlabelled.replace('batches("test", 500)', 'batches("test", 500, labelled=False)')
    unlabelled = unlabelled.replace("test_loader[0][0][:1]", "test_loader[0][:1]")
    impossible = "accuracy_budget = -1.0\n"  # int8 would have to gain
    names = run_worksheet(MLP.replace("onnx", "pytorch") + TRAIN + impossible, unlabelled)
    found = names["report"]["numbers"]
    assert found["labelled"] == {"validation": False, "test": False}
    assert "top1_percent" not in found["int8"]["test"]
    notes = names["report"]["sections"]["Notes"]["words"]
    assert "The test data have no labels: agreement only." in notes
    assert "The model came in training mode: the worksheet works on a copy in evaluation mode." in notes
    assert "no labels" in names["summary"]["quality"]
    assert not found["within_budget"]
    assert names["report"]["headline"] == "int8 is over the budget after all repairs: go on to QAT."
    assert "One validation input is 0.4 points: the budget allows no loss." in notes
    assert names["model"].training, "the reader's model is left as it was"


def test_a_loader_that_shuffles_stops_the_notebook_early(worksheet_process: None) -> None:
    shuffled = "validation_loader = torch.utils.data.DataLoader(digits.dataset('validation'), 50, shuffle=True)\n"
    with pytest.raises(inputs.DataError, match="validation_loader yields other inputs or another order"):
        run_worksheet(MLP, "SHAPE = lambda raw: raw\n" + SMALL_DIGITS + shuffled)


def test_a_layer_that_is_the_whole_model_is_refused_in_words(worksheet_process: None) -> None:
    flat = "SHAPE = lambda raw: raw.flatten(1) / 255\n"
    with pytest.raises(inputs.ModelError, match=r"quantize_dynamic made no weight int8; .* wrap it in nn\.Seq"):
        run_worksheet('model, target, accuracy_budget = nn.Linear(784, 10), "pytorch", 1.0', flat + SMALL_DIGITS)


TIED = """
class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.body, self.unused = nn.Embedding(40, 16), nn.Linear(16, 16), nn.Linear(16, 64)
        self.head = nn.Linear(16, 40, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("places", torch.arange(8))
    def forward(self, x):
        return self.head(torch.relu(self.body(x + self.table(self.places).mean(0))))
torch.manual_seed(0)
model, accuracy_budget = Tied(), 100.0
"""
SIXTEEN = """
calibration_loader = validation_loader = test_loader = [torch.randn(20, 16)]
example, images_for_diagnosis = torch.randn(1, 16), 20
"""


@pytest.mark.parametrize("target", ["pytorch", "onnx"])
def test_shared_and_unused_weights_are_counted_for_what_they_are(target: str, worksheet_process: None) -> None:
    names = run_worksheet(f"{TIED}target = {target!r}\n", SIXTEEN)
    used = {"body.weight", "head.weight"}
    assert names["int8_names"] == (used if target == "onnx" else used | {"unused.weight"})  # the graph does not read it


def test_a_batch_that_the_model_cannot_take_stops_the_notebook_early(worksheet_process: None) -> None:
    wrong = FEW_DIGITS + "test_loader = [torch.zeros(2, 1, 96, 96)]\n"
    with pytest.raises(inputs.CannotRunError, match=r"test_loader, float32 of shape \(2, 1, 96, 96\): RuntimeError"):
        run_worksheet(RESNET, wrong)


# --- what the reader brings ----------------------------------------------------------------------------


def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()


def test_an_int8_model_is_refused_by_name() -> None:
    int8 = tq.quantize_dynamic(net(), {nn.Linear})
    with pytest.raises(inputs.AlreadyQuantizedError, match=r"is quantized already \(0, 2\): give the float model"):
        inputs.checked_model(int8)


def test_a_converted_graph_is_refused_too() -> None:
    graph = net()
    graph.register_buffer("_frozen_param0", torch.zeros(2, dtype=torch.int8))
    with pytest.raises(inputs.AlreadyQuantizedError, match="_frozen_param0"):
        inputs.checked_model(graph)


def test_masks_and_bytes_in_buffers_are_no_reason_to_refuse() -> None:
    model = net()
    model.register_buffer("mask", torch.full((2, 2), float("-inf")))
    model.register_buffer("palette", torch.zeros(2, dtype=torch.uint8))
    assert inputs.checked_model(model)[1] == []


def test_the_statistics_of_a_norm_must_be_finite() -> None:
    model = nn.Sequential(net(), nn.BatchNorm1d(2))
    model[1].running_var[0] = float("inf")  # type: ignore[index]
    with pytest.raises(inputs.ModelError, match=r"NaN or infinity in 1\.running_var"):
        inputs.checked_model(model)


def test_bytes_as_weights_are_quantized() -> None:
    model = net()
    model.packed = nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(inputs.AlreadyQuantizedError, match="packed"):
        inputs.checked_model(model)


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ({"dtype": torch.float64}, "0.weight is float64 on cpu; load the weights, then give model.float"),
        ({"dtype": torch.float16}, "float16 on cpu"),
        ({"dtype": torch.bfloat16}, "bfloat16 on cpu"),
        ({"device": "meta"}, "float32 on meta"),
    ],
)
def test_another_type_or_device_is_refused(where: dict[str, Any], words: str) -> None:
    with pytest.raises(inputs.ModelError, match=words):
        inputs.checked_model(net().to(**where))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value: float) -> None:
    broken = net()
    with torch.no_grad():
        broken[2].bias[0] = value  # type: ignore[index]
    with pytest.raises(inputs.ModelError, match=r"NaN or infinity in 2\.bias"):
        inputs.checked_model(broken)


def test_something_else_than_a_model_is_refused() -> None:
    with pytest.raises(inputs.ModelError, match=r"must be an nn\.Module; it is a str"):
        inputs.checked_model("resnet18")


def test_a_model_in_training_mode_is_copied() -> None:
    model = net().train()
    checked, notes = inputs.checked_model(model)
    assert not checked.training
    assert model.training
    assert len(notes) == 1


@pytest.mark.parametrize(
    ("loader", "least", "words"),
    [
        ([], 1, "test_loader yielded no input; it needs at least 1"),
        ([torch.zeros(0, 4)], 1, "test_loader yielded no input"),
        ([torch.zeros(1, 4)], 2, "test_loader yielded 1 input; it needs at least 2"),
        (iter([torch.zeros(2, 4)]), 1, "test_loader must be a loader or a list of batches"),
        ([{"pixels": torch.zeros(2, 4)}], 1, "test_loader: A batch must be a tensor"),
        ([(torch.zeros(2, 4), torch.zeros(2, 3))], 1, r"2 inputs came with labels of shape \(2, 3\), float32"),
        ([(torch.zeros(2, 4), ["a", "b"])], 1, "labels must be integers; torch cannot read this list"),
        ([(torch.zeros(2, 4), [0.5, 1.5])], 1, r"labels of shape \(2,\), float32"),
        ([(torch.zeros(2, 4), 1)], 1, r"labels of shape \(\), int64. Is it a dataset\? It goes into a DataLoader"),
        (TensorDataset(torch.zeros(2, 4)), 1, r"a TensorDataset \(a dataset goes into a DataLoader"),
        ([torch.tensor(1.0)], 1, "test_loader: a batch is a single number"),
    ],
)
def test_loaders_are_refused_by_name(loader: Any, least: int, words: str) -> None:
    with pytest.raises(inputs.DataError, match=words):
        inputs.checked_loader(loader, "test_loader", least)


def test_a_loader_must_repeat_its_inputs_and_labels() -> None:
    images, labels = torch.arange(64.0)[:, None], torch.arange(64)
    for parts in ((images, torch.zeros(64, dtype=torch.int64)), (torch.zeros(64, 1), labels)):
        shuffled = DataLoader(TensorDataset(*parts), 8, shuffle=True, generator=torch.Generator())
        assert inputs.checked_loader(shuffled, "calibration_loader") == (64, True)
        with pytest.raises(inputs.DataError, match="the second time: shuffle=False, no random augmentation"):
            inputs.checked_loader(shuffled, "test_loader", repeats=True)
        assert inputs.checked_loader([*zip(*(part.split(8) for part in parts), strict=True)], "it", repeats=True) == (
            64,
            True,
        )


def test_labels_may_be_a_list() -> None:
    assert inputs.checked_loader([(torch.zeros(2, 4), [0, 1])], "test_loader", repeats=True) == (2, True)


def test_labels_must_be_there_for_every_batch() -> None:
    batch = (torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))
    assert inputs.checked_loader([batch], "test_loader") == (2, True)
    assert inputs.checked_loader([batch, torch.zeros(1, 4)], "test_loader") == (3, False)
    assert inputs.checked_loader([(torch.zeros(1, 4), None)], "test_loader") == (1, False)


def test_one_input_is_enough_to_measure() -> None:
    assert inputs.checked_loader([torch.zeros(1, 2)], "test_loader") == (1, False)
    quality = choose.judge(torch.eye(2)[:1], torch.eye(2)[:1], None)
    low, high = quality.same.interval
    assert quality.same.n == 1
    assert low < 25
    assert high == 100


class Odd(nn.Module):
    """A model with outputs that are no logits."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        return {"dict": {"logits": x}, "column": x[:, :1], "sequence": x[:, None], "nan": x * float("nan")}[self.kind]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("dict", "gives a dict for example, float32 of shape"),
        ("sequence", r"gives shape \(1, 1, 4\)"),
        ("nan", "gives NaN or"),
        ("column", r"one column: argmax says nothing; for one logit x return torch.cat\(\[-x, x\], 1\)"),
    ],
)
def test_outputs_must_be_logits(kind: str, words: str) -> None:
    with pytest.raises(inputs.CannotRunError, match=words):
        inputs.check_run(Odd(kind), torch.zeros(1, 4), "example")


@pytest.mark.parametrize(
    ("example", "words"), [([0.0] * 4, "it is a list: take"), (torch.tensor(0.0), "it is a single number: take")]
)
def test_an_example_must_be_a_batch(example: Any, words: str) -> None:
    with pytest.raises(inputs.DataError, match=words):
        inputs.check_run(net(), example, "example")


# --- workflow, folding, sizes, report --------------------------------------------------------------------


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(choose.TargetError, match="no target 'coreml'; choose one of: pytorch, executorch, onnx"):
        choose.choose(net(), "coreml")


def test_a_file_takes_no_integers() -> None:
    with pytest.raises(choose.TargetError, match="takes float32 here; the example is int64"):
        choose.choose(net(), "onnx", torch.zeros(1, 4, dtype=torch.int64))


def test_the_larger_part_decides_between_convolutions_and_recurrent_layers(one_thread: None) -> None:
    mostly_recurrent = nn.ModuleList([nn.Conv1d(4, 4, 3), nn.LSTM(32, 32)])
    mostly_convolution = nn.ModuleList([nn.Conv1d(64, 64, 3), nn.LSTM(4, 4)])
    dynamic, static = (choose.choose(model, "pytorch") for model in (mostly_recurrent, mostly_convolution))
    assert (dynamic.workflow, static.workflow) == ("dynamic", "static")
    assert all(any("those stay in float" in reason for reason in one.why) for one in (dynamic, static))


@pytest.mark.parametrize(
    ("kind", "target"), [("BatchNorm1d", "pytorch"), ("LSTM", "onnx"), ("MultiheadAttention", "pytorch")]
)
def test_a_model_without_a_layer_to_quantize_is_refused(kind: str, target: str, one_thread: None) -> None:
    sizes = {"BatchNorm1d": (3,), "LSTM": (4, 4), "MultiheadAttention": (4, 1)}[kind]
    with pytest.raises(inputs.ModelError, match=f"This {kind} has no layer to quantize"):
        choose.choose(getattr(nn, kind)(*sizes), target)


def test_the_choice_says_what_stays_in_float(one_thread: None) -> None:
    recurrent = choose.choose(nn.ModuleList([nn.LSTM(4, 4), nn.Linear(4, 2)]), "executorch")
    assert any("stay in float on this road" in reason for reason in recurrent.why)
    attention = choose.choose(networks.load_digit_transformer(), "pytorch")
    assert any("leaves those in float" in reason for reason in attention.why)
    assert {"dynamic", "static", "QAT"} == set(recurrent.others)
    encoder = nn.TransformerEncoderLayer(8, 1, 8)
    static = choose.choose(nn.ModuleList([nn.Conv1d(64, 64, 3), encoder]), "pytorch")
    assert any("FX passes over attention and encoder layers whole" in reason for reason in static.why)
    for target in choose.TARGETS:
        plain = choose.choose(nn.ModuleList([nn.RNN(4, 4), nn.Linear(4, 2)]), target)
        assert any("in plain RNN layers" in reason for reason in plain.why)


@pytest.mark.parametrize("kind", choose.RECURRENT)
def test_what_counts_as_recurrent_becomes_int8(kind: type[nn.Module], one_thread: None) -> None:
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(kind(4, 4)).eval()
    assert guards.int8_modules(tq.quantize_dynamic(model, {kind: tq.default_dynamic_qconfig})) == ["0"]
    assert choose.weights_by_kind(model).keys() == {"recurrent"}


def test_a_plain_rnn_alone_has_nothing_to_quantize(one_thread: None) -> None:
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.RNN(4, 4)).eval()
    assert guards.int8_modules(tq.quantize_dynamic(model, {nn.RNN: tq.default_dynamic_qconfig})) == []
    with pytest.raises(inputs.ModelError, match="has no layer to quantize"):
        choose.choose(model, "pytorch")


def test_the_headline_says_what_was_tried_and_what_comes_next() -> None:
    same, kept = metrics.Share(250, 250), ["per channel", "per channel, bias corrected"]
    assert "on these 250 validation inputs" in choose.headline(same, True, "per channel", kept)
    assert "at most 1.5 % of the answers change" in choose.headline(same, True, "per channel", kept)
    over = choose.headline(same, False, "per channel", kept)
    assert "although its simulation was not: try the next plan (plan = plans['per channel, bias corrected'])" in over
    assert over.endswith("then QAT.")
    last = choose.headline(same, False, kept[1], kept)
    assert last.endswith("although its simulation was not: go on to QAT.")
    assert "after all repairs" in choose.headline(same, False, "per channel", [])
    assert "no layer can be simulated" in choose.headline(same, False, "per channel", kept, simulated=False)


def test_a_loss_of_just_the_budget_keeps_it() -> None:
    lost = metrics.Share(644, 1000).percent - metrics.Share(639, 1000).percent
    assert lost > 0.5
    assert choose.keeps(lost, 0.5)
    assert not choose.keeps(0.6, 0.5)


def test_norms_are_folded_into_what_they_alone_read(one_thread: None) -> None:
    model, images = networks.load_digit_resnet(), torch.rand(2, 3, 96, 96)
    folded, count = choose.fold_norms(model)
    assert count == 15
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), model(images), atol=1e-3, rtol=1e-3)


class Branch(nn.Module):
    """A convolution that is read twice: behind its norm, and before it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        outputs: Tensor = self.norm(y) + y
        return outputs


class Twice(Branch):
    """One convolution with its norm, called two times."""

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.norm(self.conv(self.norm(self.conv(x))[:, :1]))
        return outputs


class Wilful(Branch):
    """A model that torch.fx cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) if x.sum() > 0 else x


@pytest.mark.parametrize("kind", [Branch, Twice, Wilful])
def test_a_norm_that_cannot_be_folded_stays(kind: type[nn.Module]) -> None:
    with torch.random.fork_rng(devices=[]):
        model = kind().eval()
    assert choose.fold_norms(model)[1] == 0


def test_sizes_count_folded_norms_as_gone() -> None:
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Conv2d(1, 10, 10, bias=False), nn.BatchNorm2d(10)).eval()
    folded, _ = choose.fold_norms(model)
    conv, norm = choose.layer_sizes(model, folded, {"0.weight"}, per_channel=True)
    assert (conv["float kB"], conv["int8 kB"]) == (4.0, 1.08)  # 1,000 bytes, 10 scales, 10 biases
    assert (norm["float kB"], norm["int8 kB"], norm["int8"]) == (0.08, 0.0, False)


def test_a_report_escapes_what_it_shows(tmp_path: Path) -> None:
    sections = {"<i>": {"words": ["a < `b`"], "table": [{"x": "<b>", "y": 1}]}}
    written, numbers = page.write_report({"title": "A & B", "headline": "<h>", "sections": sections}, tmp_path)
    soup = BeautifulSoup(written.read_text(), "html.parser")
    assert soup.title is not None
    assert soup.title.get_text() == "A & B"
    assert [bold.get_text() for bold in soup.find_all("b")] == ["<h>"]
    assert not soup.find_all("i")
    assert [cell.get_text() for cell in soup.find_all("td")] == ["<b>", "1"]
    assert json.loads(numbers.read_text())["sections"] == sections


def test_the_network_is_the_one_that_the_provenance_describes() -> None:
    model = networks.load_digit_resnet()
    assert sum(parameter.numel() for parameter in model.parameters()) == 177_178
    assert guards.int8_modules(copy.deepcopy(model)) == []
