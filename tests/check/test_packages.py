"""Packages compiled ahead of time: what is in them, where they load, and what is refused in words."""

import copy
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qhelpers import census, guards
from qhelpers.check import compiled, packages

IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
on_x86 = pytest.mark.skipif(
    torch.cpu.get_capabilities()["architecture"] != "x86_64", reason="inductor's int8 patterns are for x86"
)
pytestmark = [on_x86, pytest.mark.filterwarnings("ignore")]


def quantized(model: nn.Module, *, left: type[nn.Module] | None = None, batch: Any = None) -> Any:
    """The converted PT2E graph, exported."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    config = x86.get_default_x86_inductor_quantization_config()
    quantizer = x86.X86InductorQuantizer().set_global(config)
    if left:
        quantizer.set_module_type_qconfig(left, None)
    shapes = ({0: batch},) if batch is not None else None
    prepared = prepare_pt2e(torch.export.export(model, (IMAGES,), dynamic_shapes=shapes).module(), quantizer)
    prepared(IMAGES)
    return torch.export.export(convert_pt2e(prepared), (IMAGES,), dynamic_shapes=shapes)


@pytest.fixture(scope="module")
def written(small: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, census.Census]:
    """One package for the tests that only read: compiling takes seconds. It takes batches from 2 to 6."""
    path = tmp_path_factory.mktemp("packages") / "new" / "small.pt2"
    with torch.random.fork_rng(devices=[]):
        program = quantized(small, batch=torch.export.Dim("batch", min=2, max=6))
        return path, packages.write(small, program, path)


@pytest.fixture(scope="module")
def package(written: tuple[Path, census.Census]) -> Path:
    return written[0]


def verdicts(found: census.Census) -> dict[str, str]:
    return {layer.name: layer.computes for layer in found.layers}


ALL_INT8 = {"first.0": "int8", "first.1": "folded", "depthwise": "int8", "head": "int8"}


def test_a_package_computes_in_int8_what_the_model_does(small: nn.Module, package: Path) -> None:
    loaded = packages.load(package)
    for count in (2, 4):
        found = loaded(IMAGES[:count])
        assert found.shape == (count, 5)
        assert float((found - small(IMAGES[:count])).norm() / found.norm()) < 0.1
    assert torch.equal(loaded(IMAGES), loaded(IMAGES.to(memory_format=torch.channels_last)))
    assert torch.equal(pickle.loads(pickle.dumps(loaded))(IMAGES), loaded(IMAGES))


def test_the_census_is_that_of_the_generated_code(written: tuple[Path, census.Census]) -> None:
    path, found = written
    assert verdicts(found) == ALL_INT8
    assert "onednn.qconv_pointwise" in found.layers[0].how
    assert packages.read_census(path) == found == packages.load(path).census
    with zipfile.ZipFile(path) as archive:
        code = "".join(archive.read(name).decode() for name in archive.namelist() if name.endswith("wrapper.cpp"))
    written_calls = code.count("aoti_torch_cpu__qconv_pointwise_tensor("), code.count("_qlinear_pointwise_tensor(")
    assert written_calls == (2, 1)
    assert found.kernels["_qconv_pointwise_tensor"] == 2
    assert found.conversions >= 2


def test_a_linear_layer_with_one_row_is_unpacked_and_computed_in_float(small: nn.Module, tmp_path: Path) -> None:
    """Inductor writes a product with one row out as multiplications and a sum, before it looks for int8 patterns."""
    with torch.random.fork_rng(devices=[]):
        net = nn.Sequential(copy.deepcopy(small.head)).eval()
        one = torch.ones(1, 8)
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(torch.export.export(net, (one,)).module(), quantizer)
        prepared(one)
        program = torch.export.export(convert_pt2e(prepared), (one,))
        with pytest.raises(census.CensusError, match=r"Quantized nothing: 0 of 1 layers in int8; float: 0"):
            packages.write(net, program, tmp_path / "row.pt2")
    assert not list(tmp_path.iterdir())


def test_gradients_may_be_on_where_it_is_written(written: tuple[Path, census.Census]) -> None:
    """With them inductor compiles a quantized graph in float; the fixture has written with them on."""
    assert torch.is_grad_enabled()
    assert written[1].named("int8")


def test_torch_compile_has_the_same_census(small: nn.Module) -> None:
    with torch.random.fork_rng(devices=[]):
        found = compiled.of_compiled(small, quantized(small).module(), IMAGES)
    assert verdicts(found) == ALL_INT8
    assert sum(count for name, count in found.kernels.items() if "qconv" in name) == 2


def test_layers_that_were_left_in_float_are_told(small: nn.Module) -> None:
    with torch.random.fork_rng(devices=[]):
        found = compiled.of_compiled(small, quantized(small, left=nn.Conv2d).module(), IMAGES)
    assert verdicts(found) == {"first.0": "float", "first.1": "folded", "depthwise": "float", "head": "int8"}
    assert found.layers[0].how == "mkldnn._convolution_pointwise"


FRESH = """
import os, sys
import torch
loader = torch._C._aoti.AOTIModelPackageLoader(sys.argv[1], "model", False, 1, -1)
outputs = loader.boxed_run([torch.ones(2, 3, 8, 8)])
assert not {"torchao", "qhelpers", "torch._inductor"} & set(sys.modules)
print(tuple(outputs[0].shape))
"""
CHECKED = """
import sys
from pathlib import Path
import torch
from qhelpers.check import packages
print(tuple(packages.load(Path(sys.argv[1]))(torch.ones(2, 3, 8, 8)).shape))
"""


@pytest.mark.parametrize("code", [FRESH, CHECKED])
def test_loading_needs_no_compiler_and_no_class(code: str, package: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PATH": str(tmp_path), "CXX": "no-such-compiler", "TMPDIR": str(tmp_path)}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, package], env=environment, capture_output=True, text=True
    )
    assert (done.stdout.strip(), done.returncode) == ("(2, 5)", 0), done.stderr


def test_writing_without_a_compiler_is_refused_at_once(
    small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.random.fork_rng(devices=[]):
        program = torch.export.export(small, (IMAGES,))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(guards.GuardError, match="needs a C\\+\\+ compiler, and there is no no-such-compiler"):
        packages.write(small, program, tmp_path / "a.pt2")
    assert not list(tmp_path.iterdir())


def test_another_ending_is_refused(small: nn.Module, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        program = torch.export.export(small, (IMAGES,))
    with pytest.raises(packages.PackageError, match=r"A package ends with \.pt2, a\.zip does not"):
        packages.write(small, program, str(tmp_path / "a.zip"))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ((IMAGES[:1],), r"takes float32 \(2 to 6, 3, 8, 8\), got float32 \(1, 3, 8, 8\)"),
        ((torch.ones(7, 3, 8, 8),), r"got float32 \(7, 3, 8, 8\): bring it to that shape"),
        ((IMAGES.double(),), r"got float64 \(4, 3, 8, 8\)"),
        ((IMAGES, IMAGES), "takes another number of inputs: 1, not 2"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(inputs: tuple[Tensor, ...], words: str, package: Path) -> None:
    with pytest.raises(packages.PackageError, match=words):
        packages.load(package)(*inputs)


def rewritten(package: Path, path: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """A copy in which the archive's checksums are right whatever was changed."""
    with zipfile.ZipFile(package) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return path


def manifest_with(**values: Any) -> Callable[[str, bytes], bytes]:
    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("qhelpers.json"):
            return content
        return json.dumps(packages.sealed(json.loads(content) | values)).encode()

    return change


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"torch": "2.10.0"}, r"was compiled by torch 2\.10\.0, and this is .*: compile it again here"),
        ({"system": "Darwin arm64"}, r"was compiled for Darwin arm64, and this is"),
        ({"instructions": ["avx512", "avx1024"]}, r"needs avx1024, which .+ lacks: compile it again here"),
    ],
)
def test_a_package_for_another_place_is_refused(values: Any, words: str, package: Path, tmp_path: Path) -> None:
    with pytest.raises(packages.PackageError, match=words):
        packages.load(rewritten(package, tmp_path / "other.pt2", manifest_with(**values)))


def test_another_number_of_threads_is_warned_of(package: Path, tmp_path: Path) -> None:
    other = rewritten(package, tmp_path / "other.pt2", manifest_with(threads=63))
    with pytest.warns(UserWarning, match=r"compiled for another number of threads \(63\) than is set \(\d+\)"):
        packages.load(other)


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_a_changed_byte_is_refused(place: float, package: Path, tmp_path: Path) -> None:
    content = bytearray(package.read_bytes())
    content[int(place * len(content))] ^= 1
    (tmp_path / "changed.pt2").write_bytes(content)
    with pytest.raises(packages.PackageError, match=r"changed\.pt2 is cut off or damaged: copy it again"):
        packages.load(tmp_path / "changed.pt2")


def test_code_that_was_exchanged_is_refused(package: Path, tmp_path: Path) -> None:
    def change(name: str, content: bytes) -> bytes:
        return content + b" " if name.endswith(".so") else content

    with pytest.raises(packages.PackageError, match=r"was changed after it was written \(\.so file\)"):
        packages.load(rewritten(package, tmp_path / "changed.pt2", change))


def test_the_hash_of_the_file_is_compared(package: Path) -> None:
    assert packages.load(package, sha256=packages.digest(package)).path == package
    with pytest.raises(packages.PackageError, match="is not the file whose SHA-256 was given"):
        packages.load(package, sha256="0" * 64)


def test_what_is_no_package_is_refused(small: nn.Module, package: Path, tmp_path: Path) -> None:
    half, text, empty, graph = (tmp_path / f"{name}.pt2" for name in ("half", "text", "empty", "graph"))
    half.write_bytes(package.read_bytes()[: package.stat().st_size // 2])
    text.write_text("nothing of the kind")
    empty.touch()
    with torch.random.fork_rng(devices=[]):
        torch.export.save(torch.export.export(small, (IMAGES,)), graph)
    for path, words in (
        (half, "is cut off or damaged"),
        (text, r"is no package \(\.pt2\): it is something else"),
        (empty, "it is empty"),
        (graph, "holds no compiled code: it may be a graph of torch.export.save"),
    ):
        with pytest.raises(packages.PackageError, match=words):
            packages.load(path)


def test_a_package_without_a_manifest_is_refused(package: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.pt2"
    with zipfile.ZipFile(package) as old, zipfile.ZipFile(bare, "w") as new:
        for name in old.namelist():
            if not name.endswith("qhelpers.json"):
                new.writestr(name, old.read(name))
    with pytest.raises(packages.PackageError, match="does not say what it was compiled for"):
        packages.load(bare)
    with pytest.raises(packages.PackageError, match="does not say what it was compiled for"):
        packages.read_census(bare)


def test_concurrent_callers_are_timed(package: Path, tmp_path: Path) -> None:
    with packages.Workers(2) as workers:
        with pytest.raises(packages.PackageError, match=r"takes float32 .*, got float32 \(9, 3, 8, 8\)"):
            workers.throughput(package, torch.ones(9, 3, 8, 8), callers=2)
        found = workers.throughput(one_thread(package, tmp_path), IMAGES, callers=4, seconds=0.2)
        assert found.calls >= 4
        assert found.per_second > 0
        assert 0 < found.median_ms <= found.p99_ms
        with pytest.raises(packages.PackageError, match="1 callers cannot be spread over 2 processes"):
            workers.throughput(package, IMAGES, callers=1)


def one_thread(package: Path, tmp_path: Path) -> Path:
    return rewritten(package, tmp_path / "one.pt2", manifest_with(threads=1))


def test_no_process_is_refused() -> None:
    with pytest.raises(packages.PackageError, match="at least one process, got 0"):
        packages.Workers(0)


# --- what others bring -------------------------------------------------------------------------------


def test_inputs_of_an_unusual_layout_are_refused_before_compiling(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Linear(4, 2)).eval()
        program = torch.export.export(model, (torch.rand(2, 4, 3).transpose(1, 2),))
    with pytest.raises(packages.PackageError, match="neither contiguous nor channels_last: export it so"):
        packages.write(model, program, tmp_path / "a.pt2")


class Two(nn.Module):
    """Two inputs of one batch size, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        logits: Tensor = self.fc(one + other)
        return logits


def test_inputs_that_share_a_size_have_to_agree(tmp_path: Path) -> None:
    batch = torch.export.Dim("batch", min=1, max=8)
    with torch.random.fork_rng(devices=[]):
        model = Two().eval()
        program = torch.export.export(model, (torch.ones(2, 4), torch.ones(2, 4)), dynamic_shapes=({0: batch},) * 2)
    packages.write(model, program, tmp_path / "two.pt2")
    package = packages.load(str(tmp_path / "two.pt2"))
    assert package(torch.ones(5, 4), torch.ones(5, 4)).shape == (5, 2)
    with pytest.raises(packages.PackageError, match="inputs of one common size, got 5 and 2"):
        package(torch.ones(5, 4), torch.ones(2, 4))
    with pytest.raises(packages.PackageError, match="takes tensors, got int"):
        package(1, torch.ones(2, 4))


class Pairs(nn.Module):
    """Two inputs, the second with two rows for each of the first."""

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return one + other.view(-1, 2, 4).sum(1)


def test_a_size_that_follows_from_another_is_refused_before_compiling(tmp_path: Path) -> None:
    batch = torch.export.Dim("batch", min=2, max=8)
    with torch.random.fork_rng(devices=[]):
        shapes = ({0: batch}, {0: 2 * batch})
        program = torch.export.export(Pairs(), (torch.ones(3, 4), torch.ones(6, 4)), dynamic_shapes=shapes)
    with pytest.raises(packages.PackageError, match=r"other has a size that follows from another \(2\*\w+\)"):
        packages.write(Pairs(), program, tmp_path / "a.pt2")


@pytest.mark.parametrize("content", [b"{}", b"[]", b'{"threads": 1}'])
def test_a_manifest_that_does_not_say_all_is_refused(content: bytes, package: Path, tmp_path: Path) -> None:
    other = rewritten(package, tmp_path / "a.pt2", lambda name, old: content if name.endswith("qhelpers.json") else old)
    with pytest.raises(packages.PackageError, match=r"a\.pt2 was changed after it was written \(\.json file\)"):
        packages.load(other)


def test_a_census_that_was_edited_is_refused(package: Path, tmp_path: Path) -> None:
    def change(name: str, content: bytes) -> bytes:
        return content.replace(b'"int8"', b'"float"') if name.endswith("qhelpers.json") else content

    other = rewritten(package, tmp_path / "a.pt2", change)
    for read in (packages.load, packages.read_census):
        with pytest.raises(packages.PackageError, match=r"was changed after it was written \(\.json file\)"):
            read(other)


def test_an_archive_whose_directory_is_damaged_is_refused(package: Path, tmp_path: Path) -> None:
    content = bytearray(package.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1  # the last file is said to be encrypted
    (tmp_path / "a.pt2").write_bytes(content)
    with pytest.raises(packages.PackageError, match=r"a\.pt2 is cut off or damaged"):
        packages.load(tmp_path / "a.pt2")


def test_a_folder_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "dir.pt2").mkdir()
    for read in (packages.load, packages.read_census):
        with pytest.raises(packages.PackageError, match=r"dir\.pt2 cannot be loaded: it is a folder"):
            read(str(tmp_path / "dir.pt2"))


def test_code_without_vectors_needs_no_instructions(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a/b.wrapper_metadata.json", json.dumps({"AOTI_CPU_ISA": "INVALID_VEC_ISA"}))
        assert packages._instructions(archive) == []


class Placed(nn.Module):
    """A layer, and a parameter that is added to what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.places = nn.Linear(64, 64), nn.Parameter(torch.rand(4, 64))

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.fc(inputs) + self.places
        return logits


def test_a_parameter_that_an_int8_kernel_adds_is_float() -> None:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    with torch.random.fork_rng(devices=[]):
        model, inputs = Placed().eval(), torch.rand(4, 64)
        prepared = prepare_pt2e(torch.export.export(model, (inputs,)).module(), quantizer)
        prepared(inputs)
        found = compiled.of_compiled(model, convert_pt2e(prepared), inputs)
    assert {layer.name: layer.computes for layer in found.layers} == {"fc": "int8", "places": "float"}
