"""The built-in search task: the first sentence of a docstring finds the rest of it, in PyTorch's own documentation.

The texts are read from the installed torch, so the task needs no download, and differs a little between releases.
"""

import hashlib
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

MODULES = (
    "torch",
    "torch.Tensor",
    "torch.fft",
    "torch.linalg",
    "torch.nn",
    "torch.nn.functional",
    "torch.optim",
    "torch.special",
)
PAIRS, MOST_TOKENS = 500, 64  # in float about a third is found at rank one, after some ten seconds on one thread
FEWEST_QUERY_WORDS, FEWEST_DOCUMENT_WORDS = 3, 12

_CALL = re.compile(r"[\w.]+\(")  # what a signature begins with
_AFTER_CALL = re.compile(r"[ \t]*(?:->(?:(?!\.\s)[^\n])*(?:\n|$)|\n[ \t]*(?:\n|$)|$)")  # a type, or a blank line
_ROLE = re.compile(r":[\w:]+:`~?\.?([^`]*)`")  # :attr:`input`, :class:`~torch.nn.Linear`
_END = re.compile(r"(?<!e\.g)(?<!i\.e)(?<!etc)(?<!vs)(?<!cf)[.!?](?=\s|$)|\n\s*\n")


class SearchError(ValueError):
    """A search task or its outcome cannot be used as it is."""


@dataclass(frozen=True)
class Pair:
    """A docstring in two parts."""

    name: str  # such as "torch.nn.Linear"
    query: str  # its first sentence
    document: str  # all that follows


@cache
def load_pairs(count: int = PAIRS) -> tuple[Pair, ...]:
    """Docstrings of PyTorch's public API, each cut after its first sentence.

    Left out are docstrings of one sentence, those whose query or document another one has already, and short ones.
    Which ones are taken depends on the SHA-256 of their names: a release that adds a function changes few of them.

    Args:
        count: how many.

    Returns:
        As many pairs, sorted by name.

    Raises:
        SearchError: if this torch has fewer, or ``count`` is not positive.

    >>> pairs = load_pairs(20)
    >>> len({pair.query for pair in pairs}), any(pair.query in pair.document for pair in pairs)
    (20, False)
    """
    found = list(_unique(_all_pairs()))
    if not 1 <= count <= len(found):
        raise SearchError(
            f"count must lie between 1 and {len(found)}, the pairs in torch {torch.__version__}: {count}."
        )
    drawn = sorted(found, key=lambda pair: hashlib.sha256(pair.name.encode()).hexdigest())[:count]
    return tuple(sorted(drawn, key=lambda pair: pair.name))


def split_docstring(text: str) -> tuple[str, str]:
    """A docstring's first sentence, and what follows it, without the signature and the markup of roles.

    The first sentence ends at a full stop or at a blank line; what follows does not hold it a second time.

    Returns:
        Query and document; the document of a docstring of one sentence is empty.

    >>> split_docstring("relu(input) -> Tensor\\n\\nClips :attr:`input` at 0. See also :func:`clip`.")
    ('Clips input at 0.', 'See also clip.')
    """
    body = _ROLE.sub(r"\1", _without_signature(text.strip())).strip()
    end = _END.search(body)
    if end is None:
        return _one_line(body), ""
    query, document = _one_line(body[: end.end()]), _one_line(body[end.end() :])
    return query, _one_line(document.replace(query, ""))


def _without_signature(text: str) -> str:
    """The text behind a call with balanced parentheses, if a type or a blank line follows it; else all of the text."""
    call = _CALL.match(text)
    depth, end = 1, call.end() if call else len(text)
    while depth and end < len(text):
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        end += 1
    after = _AFTER_CALL.match(text, end) if call and not depth else None
    return text[after.end() :] if after else text


def _one_line(text: str) -> str:
    return " ".join(text.replace("``", "").split())


def _all_pairs() -> Iterator[Pair]:
    for name in MODULES:
        parent, _, last = name.rpartition(".")
        home = torch.Tensor if last == "Tensor" else importlib.import_module(name if parent else "torch")
        for attribute in sorted(getattr(home, "__all__", vars(home))):
            value = getattr(home, attribute, None)
            text = getattr(value, "__doc__", None)
            of_torch = (getattr(value, "__module__", None) or "torch").startswith("torch")  # no int under another name
            if not attribute.startswith("_") and callable(value) and isinstance(text, str) and of_torch:
                yield Pair(f"{name}.{attribute}", *split_docstring(text))


def _unique(pairs: Iterator[Pair]) -> Iterator[Pair]:
    queries, documents = set(), set()
    for pair in pairs:
        long_enough = (
            len(pair.query.split()) >= FEWEST_QUERY_WORDS and len(pair.document.split()) >= FEWEST_DOCUMENT_WORDS
        )
        if long_enough and pair.query.lower() not in queries and pair.document not in documents:
            yield pair
            queries.add(pair.query.lower())
            documents.add(pair.document)


def ranks(queries: Tensor, documents: Tensor) -> Tensor:
    """The place of each query's own document among all, by cosine; 1 is best, and ties count against it.

    Args:
        queries: embeddings ``(n, width)``.
        documents: embeddings ``(n, width)``; the i-th belongs to the i-th query.

    Returns:
        int64 tensor of shape ``(n,)``.

    Raises:
        SearchError: if the shapes differ, there is nothing to rank, or an embedding is zero or no number.

    >>> ranks(torch.eye(3), torch.eye(3)[[0, 2, 1]]).tolist()
    [1, 3, 3]
    """
    _require_pairs(queries, documents)
    scores = _normalized(queries) @ _normalized(documents).T
    return (scores >= scores.diagonal()[:, None]).sum(1)


def cosines(first: Tensor, second: Tensor) -> Tensor:
    """Cosine of each row with the row of the same place, such as an int8 model's embeddings with float's.

    Args:
        first: embeddings ``(n, width)``.
        second: embeddings ``(n, width)``.

    Returns:
        float32 tensor of shape ``(n,)``; 1 where the directions agree.

    Raises:
        SearchError: as :func:`ranks`.

    >>> round(cosines(torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]])).item(), 4)
    0.96
    """
    _require_pairs(first, second)
    return (_normalized(first) * _normalized(second)).sum(1)


def hits(places: Tensor) -> Tensor:
    """Which queries found their document at rank one: bool tensor of the shape of ``places``.

    Args:
        places: from :func:`ranks`, shape ``(n,)``.

    >>> hits(torch.tensor([1, 3])).tolist()
    [True, False]
    """
    return places == 1


def reciprocal_ranks(places: Tensor) -> Tensor:
    """One over the rank of each query's document: float32 tensor of the shape of ``places``.

    Their mean is the mean reciprocal rank (MRR). Source: Voorhees 1999, "The TREC-8 Question Answering Track Report".

    Args:
        places: from :func:`ranks`, shape ``(n,)``.

    >>> reciprocal_ranks(torch.tensor([1, 4])).mean().item()
    0.625
    """
    return 1 / places.float()


def _require_pairs(first: Tensor, second: Tensor) -> None:
    if first.ndim != 2 or first.shape != second.shape or not len(first):
        raise SearchError(
            f"Two tables of embeddings (n, width) with n >= 1 are needed; got {tuple(first.shape)} and "
            f"{tuple(second.shape)}."
        )
    for table in (first, second):
        norms = table.detach().float().norm(dim=1)
        if not bool((norms > 0).all() and norms.isfinite().all()):
            row = int((~(norms.isfinite() & (norms > 0))).nonzero()[0])
            raise SearchError(f"The embedding in row {row} is zero or not finite: it has no direction.")


def _normalized(table: Tensor) -> Tensor:
    return torch.nn.functional.normalize(table.detach().float(), dim=1)
