"""One form for every way of calling a model: it takes tensors one after another, and returns tensors.

A stranger's model takes a tensor, several, or keywords, and gives a tensor, a tuple, a dict or an object. ``Flat``
hides that, so that whatever exports, converts or measures a model sees only tuples of tensors.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qhelpers.check.calls import Call, an, filled, like, not_dense
from qhelpers.check.errors import CannotRunError

_MAIN = ("logits", "last_hidden_state")  # of an object with one of these attributes only that is an output


class Fields(dict[str, Any]):
    """Outputs by name, as an attribute, a key or a number, as the outputs of transformers' models are.

    >>> found = Fields(logits=1)
    >>> found.logits, found["logits"], found[0]
    (1, 1, 1)
    """

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"The outputs have no {name}; they have: {', '.join(self)}.")

    def __getitem__(self, name: Any) -> Any:
        return [*self.values()][name] if isinstance(name, int) else super().__getitem__(name)


class Flat(nn.Module):
    """A model that takes the tensors of a call one after another, and gives a tensor or a tuple of tensors.

    Everything in the call that is not a tensor is fixed at the example's value. A model that changes its input in place
    is given a copy. Can be exported and deep-copied.

    Attributes:
        names: one for each output: "output", "output[1]", "logits", "boxes".
        shapes: of the outputs for the example.

    Raises:
        CannotRunError: if there is no tensor among the outputs, or one that no file can return.

    >>> flat = Flat(nn.Linear(3, 2), Call((torch.zeros(1, 3),)))
    >>> flat.names, flat(torch.zeros(4, 3)).shape
    (('output',), torch.Size([4, 2]))
    """

    def __init__(self, model: nn.Module, example: Call) -> None:
        super().__init__()
        self.model, self.example = model, example
        self.train(model.training)
        self._leaves, self._spec = pytree.tree_flatten((example.args, example.kwargs))
        self._copies = False
        given = [tensor.clone() for tensor in example.tensors]
        with torch.inference_mode():
            found = self._call(given)
        self._copies = not all(map(torch.equal, given, example.tensors))
        self._fields = _opened(found) is not found
        paths, self._found_spec = pytree.tree_flatten_with_path(_opened(found))
        self._constants = [Tensor if isinstance(leaf, Tensor) else leaf for _, leaf in paths]
        self.names = tuple(_name(path) for path, leaf in paths if isinstance(leaf, Tensor))
        if not self.names:
            raise CannotRunError(
                f"{type(model).__name__} gives {an(type(found).__name__)} in which there is no tensor: "
                "return a tensor, a tuple or a dict of tensors."
            )
        outputs = [leaf for _, leaf in paths if isinstance(leaf, Tensor)]
        self.shapes = [one.shape for one in outputs]
        for name, one in zip(self.names, outputs, strict=True):
            if cure := not_dense(one):
                raise CannotRunError(f"{type(model).__name__} gives {cure[0]} in {name}: return {cure[1]}.")

    def _call(self, tensors: Sequence[Tensor]) -> Any:
        args, kwargs = pytree.tree_unflatten(filled(self._leaves, tensors), self._spec)
        return self.model(*args, **kwargs)

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The tensors among the model's outputs, in order; a single one as it is."""
        outputs = self.outputs(*tensors)
        return outputs[0] if len(outputs) == 1 else outputs

    def outputs(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The tensors among the model's outputs, in order."""
        found = self._call([tensor.clone() for tensor in tensors] if self._copies else tensors)
        return tuple(leaf for leaf in pytree.tree_leaves(_opened(found)) if isinstance(leaf, Tensor))

    def inputs(self, call: Call) -> tuple[Tensor, ...]:
        """The tensors of another call.

        Raises:
            DataError: as :func:`like`, if it is not made as the example is.
        """
        return like(call, self.example).tensors

    def restore(self, outputs: Tensor | Sequence[Tensor]) -> Any:
        """What the model itself would have returned for these outputs of ``forward``, or of its file."""
        left = iter([outputs] if isinstance(outputs, Tensor) else outputs)
        leaves = [next(left) if constant is Tensor else constant for constant in self._constants]
        found = pytree.tree_unflatten(leaves, self._found_spec)
        return Fields(found) if self._fields else found


def _opened(found: Any) -> Any:
    """Outputs in Python's own containers: of an object with logits these, of other mappings a dict."""
    for name in _MAIN:
        if isinstance(getattr(found, name, None), Tensor):
            return {name: getattr(found, name)}
    return dict(found) if isinstance(found, Mapping) and type(found) is not dict else found


def _name(path: Sequence[Any]) -> str:
    joined = "".join(f".{key.key}" if isinstance(key, pytree.MappingKey) else str(key) for key in path)
    return joined.removeprefix(".") if joined.startswith(".") else f"output{joined}"
