"""The census of what inductor compiles: which kernels of the generated code take the weights of the float model."""

import re
from collections import Counter
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch import _inductor as inductor
from torch._inductor.custom_graph_pass import CustomGraphPass

from qhelpers import census
from qhelpers.check import packages

CONVERTS = ("quantize_per_tensor", "quantize_affine", "quantize_per_token", "choose_qparams")
# A call in the generated code: of a library's kernel in C++ and in Python, and of a kernel that inductor wrote.
CALLS = re.compile(
    r"AOTI_TORCH_ERROR_CODE_CHECK\(aoti_torch_cpu_(\w+)\("
    r"|torch\.ops\.((?:onednn|mkldnn|quantized|aten|mkl)\.\w+)[\w.]*\("
    r"|extern_kernels\.(\w+)\("
    r"|^\s+(cpp_fused_\w+)\(",
    re.MULTILINE,
)
INTEGER = re.compile(r"qconv|qlinear|_int_mm|(?<!woq_)int8(?!pack)")  # weight-only kernels multiply in bf16


class Lowered(CustomGraphPass):
    """Looks at a graph that inductor has rewritten and is about to turn into code; changes nothing.

    Give it to inductor as ``post_grad_custom_post_pass``. By then frozen weights are packed for oneDNN.
    """

    def __init__(self) -> None:
        self.used: list[census.Used] = []
        self.conversions = 0
        self.int8_kernels = 0  # that take a weight

    def __call__(self, graph: fx.Graph) -> None:
        """Note the weights that each operator takes, and the steps between float and int8."""
        constants: dict[fx.Node, tuple[Tensor, bool]] = {}  # in float, and whether they are kept as integers
        for node in graph.nodes:
            if node.op == "get_attr":
                value = reduce(getattr, str(node.target).split("."), graph.owning_module)
                if isinstance(value, Tensor):
                    constants[node] = _plain(value), not value.is_floating_point()
            if node.op != "call_function":
                continue
            known = [constants[one] for one in node.all_input_nodes if one in constants]
            if known and len(known) == len(node.all_input_nodes):  # made of constants alone: a weight that is unpacked
                constants[node] = max(known, key=lambda one: one[0].numel())
                continue
            kernel = _kernel(node.target)
            integer = bool(INTEGER.search(kernel))
            self.conversions += any(name in kernel for name in CONVERTS)
            self.int8_kernels += integer and any(kept for _, kept in known)
            self.used += [  # an int8 kernel may also add a parameter in float
                census.Used(kernel, weight, integer and kept, census.UNPACKED if kept and not integer else "")
                for weight, kept in known
                if weight.numel() > 1
            ]

    def __deepcopy__(self, memo: Any) -> "Lowered":
        return self  # inductor copies its configuration

    def uuid(self) -> None:
        """None: what was compiled before is not taken from inductor's cache, which would not call this."""


def _plain(value: Tensor) -> Tensor:
    value = value.detach()
    return (value.to_dense() if value.is_mkldnn else value).float()


def _kernel(target: Any) -> str:
    """The name of an operator; a call of oneDNN stands in the graph as the pattern that it replaces."""
    match = (getattr(target, "args", None) or [None])[0]
    found = [one.target for one in getattr(match, "nodes", []) if "dnn" in str(one.target)]
    return str(found[0] if found else target).removesuffix(".default")


def calls(code: str) -> Counter[str]:
    """How often generated code calls each kernel, as it is written there.

    >>> calls("AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu__qlinear_pointwise_tensor(buf0));\\n  cpp_fused_mean_3(p);")
    Counter({'_qlinear_pointwise_tensor': 1, 'cpp_fused_mean_3': 1})
    """
    return Counter(next(filter(None, found)) for found in CALLS.findall(code))


def taken(model: nn.Module, lowered: Lowered, code: str) -> census.Census:
    """The census of a compiled graph, from what inductor lowered and the code that it wrote.

    Args:
        model: the float model.
        lowered: as it was handed to inductor.
        code: generated, all of it.

    Raises:
        CensusError: if the graph was not seen, or if the code does not call the int8 kernels that the graph names.
    """
    if not lowered.used:
        raise census.CensusError("Inductor compiled no graph with weights: what it kept from before has no census.")
    kernels = dict(calls(code))
    written = sum(count for name, count in kernels.items() if INTEGER.search(name) and not name.startswith("cpp_"))
    if written != lowered.int8_kernels:
        raise census.CensusError(
            f"The graph has {lowered.int8_kernels} int8 kernels with weights, the code calls {written}."
        )
    return census.taken(model, lowered.used, kernels, lowered.conversions)


def of_compiled(model: nn.Module, graph: Callable[..., Any], *inputs: Any) -> census.Census:
    """The census of a model that ``torch.compile`` compiles in this process, with frozen weights.

    Args:
        model: the float model.
        graph: the one to be compiled, such as a converted PT2E graph.
        inputs: for the one call that compiles it.

    Raises:
        GuardError: if there is no C++ compiler.
        CensusError: if the float model has no weights, or the code is not what the graph says.
    """
    from torch._inductor.utils import run_and_get_code

    packages.require_compiler()
    lowered = Lowered()
    frozen = inductor.config.patch(
        freezing=True, post_grad_custom_post_pass=lowered
    )  # the argument options is too late
    with torch.no_grad(), frozen:  # with gradients inductor does not freeze, and finds no int8 pattern
        _, code = run_and_get_code(torch.compile(graph), *inputs)
    return taken(model, lowered, "\n".join(code))
