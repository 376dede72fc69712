"""The built-in text task: the manual pages that Python itself carries, read and predicted character by character.

``pydoc_data.topics`` is what ``help("if")`` prints. It needs no download, but it differs between releases
of Python, so the hash of the text that the committed model was trained on is recorded here.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from qhelpers import guards, metrics

Split = Literal["train", "validation", "test"]

UNKNOWN = "<unk>"
CHARACTERS = "\n" + "".join(chr(code) for code in range(32, 127)) + "‘’“”–…"
VOCABULARY = (UNKNOWN, *CHARACTERS)
RECORDED_SHA256 = "e3bc5f879488b40118c161d14378a3dc4382aae3270068fb6d9aa0d4a9bd0006"  # Python 3.11.7
LAST_BUCKET: dict[Split, int] = {"test": 0, "validation": 1, "train": 9}

_CODES = {character: code for code, character in enumerate(VOCABULARY)}


class TextError(ValueError):
    """A text cannot be used as it is."""


def bucket(topic: str) -> int:
    """A number from 0 to 9 that follows from a topic's name alone, by its SHA-256.

    A topic thus stays in its split whatever else a release of Python adds or drops.

    >>> bucket("if"), bucket("while")
    (4, 7)
    """
    return int(hashlib.sha256(topic.encode()).hexdigest(), 16) % 10


@cache
def text_corpus(split: Split) -> str:
    """The topics of one split, sorted by name and joined by blank lines.

    Bucket 0 is for testing, bucket 1 for choices, the rest for training.

    Raises:
        ValueError: for a split that does not exist.

    >>> len(text_corpus("train")) > len(text_corpus("test")) > 10_000
    True
    """
    if split not in LAST_BUCKET:
        raise ValueError(f"There is no split {split!r}; choose one of {sorted(LAST_BUCKET)}.")
    from pydoc_data.topics import topics  # here: half a megabyte that only the text chapters need

    last = LAST_BUCKET[split]
    first = 1 + max((end for end in LAST_BUCKET.values() if end < last), default=-1)
    return "\n\n".join(topics[name] for name in sorted(topics) if first <= bucket(name) <= last)


def text_sha256() -> str:
    """Hexadecimal SHA-256 of the three splits, one after the other.

    >>> len(text_sha256())
    64
    """
    return hashlib.sha256("\0".join(text_corpus(split) for split in LAST_BUCKET).encode()).hexdigest()


def is_recorded_text() -> bool:
    """Whether this Python carries the text that the committed language model was trained on.

    >>> is_recorded_text() == (text_sha256() == RECORDED_SHA256)
    True
    """
    return text_sha256() == RECORDED_SHA256


def encode(text: str) -> Tensor:
    """Codes of a text's characters; those outside the vocabulary become ``<unk>``.

    Returns:
        int64 tensor of shape ``(n,)``.

    >>> encode("a€").tolist() == [VOCABULARY.index("a"), VOCABULARY.index(UNKNOWN)]
    True
    """
    return torch.tensor([_CODES.get(character, 0) for character in text], dtype=torch.int64)


def encode_prompt(prompt: str) -> Tensor:
    """Codes of a prompt, as a batch of one.

    Returns:
        int64 tensor of shape ``(1, n)``.

    Raises:
        TextError: if the prompt is empty, or has a character that the vocabulary lacks; the model would silently go
            on from ``<unk>``.

    >>> encode_prompt("naïve")
    Traceback (most recent call last):
        ...
    qhelpers.tasks.manual_text.TextError: The vocabulary lacks 'ï' (character 3 of the prompt 'naïve').
    """
    if not prompt:
        raise TextError("The prompt is empty: give at least one character to go on from.")
    for i, character in enumerate(prompt):
        if character not in _CODES:
            raise TextError(f"The vocabulary lacks {character!r} (character {i + 1} of the prompt {prompt!r}).")
    return encode(prompt)[None]


def generate(model: nn.Module, prompt: str, length: int, temperature: float = 0.5, seed: int = 0) -> str:
    """Go on from a prompt, one character at a time, drawing from the model's distribution.

    Args:
        model: as :class:`qhelpers.tasks.networks.CharLSTM`, float or quantized, in evaluation mode.
        prompt: at least one character, all of them in the vocabulary.
        length: how many characters to add.
        temperature: below 1 prefers the probable characters.
        seed: of the draws; the global random state is left alone.

    Raises:
        ValueError: if ``length`` or ``temperature`` is not positive.
        TextError: as :func:`encode_prompt`.
        GuardError: if the model is in training mode.

    >>> from qhelpers.tasks import networks
    >>> with torch.random.fork_rng(devices=[]):
    ...     model = networks.CharLSTM(hidden=8).eval()
    >>> len(generate(model, "The", 5))
    5
    """
    if length < 1 or temperature <= 0:
        raise ValueError(f"length and temperature must be positive; got {length} and {temperature}.")
    guards.require_eval(model)
    generator = torch.Generator().manual_seed(seed)
    codes, state, said = encode_prompt(prompt), None, ""
    with torch.inference_mode():
        for _ in range(length):
            logits, state = model(codes, state)
            logits[0, -1, 0] = -torch.inf  # never say <unk>
            probabilities = (logits[0, -1] / temperature).softmax(0)
            code = int(torch.multinomial(probabilities, 1, generator=generator))
            said += VOCABULARY[code]
            codes = torch.tensor([[code]])
    return said


def character_bits(model: Callable[..., Any], codes: Tensor, streams: int = 16, length: int = 128) -> Tensor:
    """What each character of a text costs a language model: -log2 of the probability that it gave to it.

    The text is cut into streams that are read side by side, and the model's state is carried along each.

    Args:
        model: maps codes ``(batch, length)`` and a state to logits ``(batch, length, vocabulary)`` and the
            new state.
        codes: int64 tensor of shape ``(n,)``; what does not fill the streams evenly is left out.
        streams: how many pieces are read side by side.
        length: how many characters are read in one call.

    Returns:
        float32 tensor of shape ``(streams, n // streams - 1)``, in bits.

    Raises:
        TextError: if a stream would have fewer than two characters.
        GuardError: if the model is in training mode.

    >>> from qhelpers.tasks import networks
    >>> with torch.random.fork_rng(devices=[]):
    ...     model = networks.CharLSTM(hidden=8).eval()
    >>> character_bits(model, encode("to be or not to be"), streams=2).shape
    torch.Size([2, 8])
    """
    if isinstance(model, nn.Module):
        guards.require_eval(model)
    each = len(codes) // streams
    if each < 2:
        raise TextError(f"{len(codes)} characters are too few for {streams} streams of at least two.")
    rows = codes[: each * streams].view(streams, each)
    state, bits = None, []
    with torch.inference_mode():
        for start in range(0, each - 1, length):
            window = rows[:, start : start + length + 1]
            logits, state = model(window[:, :-1], state)
            bits.append(F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten(), reduction="none") / math.log(2))
    return torch.cat([part.view(streams, -1) for part in bits], dim=1)


def bits_per_character(model: Callable[..., Any], codes: Tensor, streams: int = 16, length: int = 128) -> float:
    """Mean of :func:`character_bits`: the cross-entropy of a text in bits a character; lower is better.

    Raises:
        TextError, GuardError: as :func:`character_bits`.

    >>> uniform = lambda codes, state: (torch.zeros(*codes.shape, 8), state)
    >>> bits_per_character(uniform, torch.zeros(100, dtype=torch.int64))
    3.0
    """
    return float(character_bits(model, codes, streams, length).mean())


def paired_values(first: Sequence[float], second: Sequence[float], unit: str = "bits") -> metrics.Paired:
    """Compare two models by a value a topic or document of which less is better, such as bits a character, in pairs.

    The interval of the mean difference is Student's, the p value that of the signed-rank test, exact up to 50 topics.
    Source: Wilcoxon 1945, "Individual comparisons by ranking methods".

    Args:
        first: a value for each topic, usually the float model's.
        second: the other model's, in the same order.
        unit: of the values.

    Raises:
        ValueError: if the lengths differ, there are fewer than two topics, a value is no number, or none differs.

    >>> print(paired_values([2.0, 2.1, 2.2, 2.4], [2.1, 2.2, 2.3, 2.3]))
    +0.050 bits (-0.109 to +0.209); 3 lost, 1 won of 4, p = 0.62
    """
    if len(first) != len(second):
        raise ValueError(f"Pairs need the same topics in the same order; got {len(first)} and {len(second)} values.")
    gaps = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    if not np.isfinite(gaps).all():
        raise ValueError(f"A paired test needs numbers; at place {int(np.argmin(np.isfinite(gaps)))} there is none.")
    if len(gaps) < 2 or not gaps.any():
        raise ValueError(f"A paired test needs two topics and values that differ; got {len(gaps)} with equal values.")
    spread = stats.t.ppf([0.975, 0.95], len(gaps) - 1) * stats.sem(gaps)
    return metrics.Paired(
        lost=int((gaps > 0).sum()),
        won=int((gaps < 0).sum()),
        n=len(gaps),
        difference=float(gaps.mean()),
        interval=(float(gaps.mean() - spread[0]), float(gaps.mean() + spread[0])),
        bound=float(gaps.mean() + spread[1]),
        p_value=float(stats.wilcoxon(gaps, method="auto").pvalue),
        unit=unit,
    )
