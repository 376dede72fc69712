"""Batch norms and computed weights of an eager model, folded into its layers where that changes nothing."""

import copy
import inspect
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Tracer
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights, fuse_linear_bn_eval
from torch.utils import _pytree as pytree

from qhelpers import metrics
from qhelpers.check.adapter import Flat
from qhelpers.check.calls import Call
from qhelpers.check.errors import CheckError

SAME_DB = 60.0  # folding alters the last digits; with less than this, it is another model


class NotFollowedError(CheckError):
    """``torch.fx`` cannot follow a model, so it is unknown what reads a layer."""


def foldable(model: nn.Module, example: Call | None = None) -> dict[str, str]:
    """Batch norms that alone read a convolution or Linear, with the layer that each can be folded into, by name.

    Folding any other one changes the function: before a layer, behind a branch or an activation, of a shared layer.

    Args:
        model: in float.
        example: a call; arguments that it leaves out are fixed at their defaults, so that branches on them are
            followed.

    Raises:
        NotFollowedError: if the model branches on values, or has other code that only runs with tensors.

    >>> foldable(nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)))
    {'2': '1'}
    """
    try:
        graph = Tracer().trace(model, concrete_args=_defaults(model, example) if example else None)
    except Exception as error:  # whatever a stranger's model raises when it is shown a proxy
        raise NotFollowedError(f"torch.fx cannot follow this {type(model).__name__}.") from error
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    found = {}
    for node in graph.nodes:
        before: Any = node.args[0] if node.op == "call_module" and node.args else None
        if getattr(before, "op", "") != "call_module" or len(before.users) > 1:
            continue
        layer, norm = model.get_submodule(before.target), model.get_submodule(str(node.target))
        if not isinstance(norm, _BatchNorm) or norm.running_mean is None or not isinstance(layer, (_ConvNd, nn.Linear)):
            continue
        if max(calls[before.target], calls[node.target]) == 1:  # shared: right for one call, wrong for the other
            found[str(node.target)] = str(before.target)
    return found


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose weights lie in memory as they are, one after another.

    Weights that a parametrization computes are computed once: eager mode cannot quantize its layers, and graphs hold
    its operators. ExecuTorch's own passes fail on weights in ``channels_last``.

    >>> model = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    >>> type(model).__name__, type(plain_copy(model)).__name__
    ('ParametrizedLinear', 'Linear')
    """
    twin = copy.deepcopy(model)
    twin.eval()  # not "return twin.eval()": where a model has a train() of its own, that may return nothing
    for module in [one for one in twin.modules() if parametrize.is_parametrized(one)]:
        names = [name for name, _ in module.get_submodule("parametrizations").named_children()]
        computed = {name: getattr(module, name).detach() for name in names}
        # not remove_parametrizations(), which takes them from the class, and that is the original's, too
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module.parametrizations
        for name, weight in computed.items():
            setattr(module, name, nn.Parameter(weight))
    for weight in twin.parameters():
        weight.data = weight.data.contiguous()
    return twin


def fold_norms(model: nn.Module, example: Call | None = None) -> tuple[nn.Module, int]:
    """A copy in which each batch norm that alone reads a convolution or Linear is folded into it, and their number.

    A model that ``torch.fx`` cannot follow is copied unchanged, as is one that answers differently on the example with
    its norms folded, as where a norm runs over another dimension than its Linear.
    Source: Jacob et al. 2018, section 3.2.

    Args:
        model: in float, in evaluation mode.
        example: a call; see :func:`foldable`.

    >>> fold_norms(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).eval())[1]
    1
    """
    plain, model = model, copy.deepcopy(model)
    try:
        found = foldable(model, example)
    except NotFollowedError:
        return model, 0
    for name, before in found.items():
        layer: Any = model.get_submodule(before)
        norm: Any = model.get_submodule(name)
        if isinstance(layer, nn.Linear):
            folded: nn.Module = fuse_linear_bn_eval(layer, norm)
        elif isinstance(layer, _ConvTransposeNd):
            folded = _fold_transposed(layer, norm)
        else:
            folded = fuse_conv_bn_eval(layer, norm)
        model.set_submodule(before, folded)
        model.set_submodule(name, nn.Identity())
    if found and example and not _alike(plain, model, example):
        return copy.deepcopy(plain), 0
    return model, len(found)


def _fold_transposed(layer: _ConvTransposeNd, norm: _BatchNorm) -> nn.Module:
    """As PyTorch does it for one group, where it mixes the channels of several up."""

    def turned(weight: Tensor) -> Tensor:
        """From ``(inputs, outputs of a group, …)`` to ``(outputs, inputs of a group, …)``, and back."""
        return weight.reshape(layer.groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)

    folded = copy.deepcopy(layer)
    of_norm: Any = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    weight, folded.bias = fuse_conv_bn_weights(turned(layer.weight), layer.bias, *of_norm)
    folded.weight = nn.Parameter(turned(weight).detach())
    return folded


def _alike(model: nn.Module, folded: nn.Module, example: Call) -> bool:
    with torch.inference_mode():
        exact, found = (pytree.tree_leaves(Flat(one, example)(*example.tensors)) for one in (model, folded))
    pairs = [pair for pair in zip(exact, found, strict=True) if pair[0].is_floating_point() and pair[0].numel()]
    return all(metrics.sqnr_db(*pair) >= SAME_DB for pair in pairs)


def _defaults(model: nn.Module, example: Call) -> dict[str, Any]:
    """Arguments of forward that a call leaves out, with their defaults."""
    signature = inspect.signature(model.forward)
    given = signature.bind(*example.args, **example.kwargs).arguments
    return {
        name: one.default
        for name, one in signature.parameters.items()
        if name not in given and one.default is not inspect.Parameter.empty
    }
