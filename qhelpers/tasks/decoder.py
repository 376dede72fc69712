"""A decoder-only transformer of Linear layers: the book's small language model, and larger ones of random weights.

It is called as the book's LSTM is: codes and a state in, logits and the new state out. The state is what the attention
keeps of the characters before (the key-value cache), so that one token at a time needs one step of work.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qhelpers.tasks import checkpoints, manual_text

State = list[Tensor]


class DecoderError(ValueError):
    """A decoder cannot have these sizes."""


WEIGHTS = "text_decoder_float16.pt"


def rotated(x: Tensor, first: int = 0) -> Tensor:
    """Turn pairs of channels by an angle that grows with the position: scores then depend on distances alone.

    Source: Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding".

    Args:
        x: of shape ``(batch, heads, positions, channels)``, with an even number of channels.
        first: the position of the first row.
    """
    half = x.shape[-1] // 2
    rates = torch.tensor([10_000.0 ** (-i / half) for i in range(half)])
    angles = torch.arange(first, first + x.shape[-2])[:, None] * rates
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    one, other = x[..., :half], x[..., half:]
    return torch.cat([one * cos - other * sin, one * sin + other * cos], dim=-1)


class Attention(nn.Module):
    """Causal self-attention over the last ``context`` positions."""

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.heads, self.context = heads, context
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        batch, length, width = x.shape
        split = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        kept = split[1:] if past is None else torch.cat([past, split[1:]], dim=3)
        before, total = kept.shape[3] - length, kept.shape[3]
        # keys are kept as they were before the rotation, so that the positions can always count from 0
        queries = rotated(split[0], before)
        plain, mask = bool(past is None and total <= self.context), None  # no symbol, where it is exported
        if not plain and length > 1:
            distance = torch.arange(before, total)[:, None] - torch.arange(total)
            mask = (distance >= 0) & (distance < self.context)
        mixed = F.scaled_dot_product_attention(queries, rotated(kept[0]), kept[1], attn_mask=mask, is_causal=plain)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return out, kept[:, :, :, max(total - self.context + 1, 0) :]


class Block(nn.Module):
    """Attention and two Linear layers, each on the normalized stream and added to it, as in GPT-2."""

    def __init__(self, width: int, heads: int, context: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, context)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        mixed, kept = self.attention(self.norm1(x), past)
        x = x + self.dropout(mixed)
        return x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))), kept


class Decoder(nn.Module):
    """Embedding, blocks, Linear: from each token to the logits of the next one.

    Takes codes of shape ``(batch, length)`` and the state of an earlier call, or None. Returns logits
    ``(batch, length, vocabulary)`` and the new state: for each block a tensor
    ``(2, batch, heads, positions, channels)``, with at most ``context - 1`` positions.
    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" (GPT-2), with rotary positions.

    Raises:
        DecoderError: if a size is below 1, or the width no multiple of twice the heads.
    """

    def __init__(
        self,
        width: int = 256,
        layers: int = 4,
        heads: int = 4,
        context: int = 256,
        vocabulary: int = len(manual_text.VOCABULARY),
        dropout: float = 0.0,
    ) -> None:
        if min(width, layers, heads, context, vocabulary) < 1 or width % (2 * heads):
            raise DecoderError(
                f"Every size must be at least 1, and the width a multiple of twice the heads (channels are turned in "
                f"pairs); got width {width}, {layers} layers, {heads} heads, context {context}, {vocabulary} tokens."
            )
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, context, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, codes: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        x, kept = self.dropout(self.embedding(codes)), []
        for i, block in enumerate(self.blocks):
            x, after = block(x, None if state is None else state[i])
            kept.append(after)
        return self.head(self.norm(x)), kept


def load_decoder() -> Decoder:
    """The committed decoder in float32, in evaluation mode; its file holds float16.

    Raises:
        CheckpointError: if the committed file is missing or altered.

    >>> load_decoder().head
    Linear(in_features=256, out_features=103, bias=False)
    """
    state = checkpoints.committed_state(WEIGHTS)
    with torch.random.fork_rng(devices=[]):
        model = Decoder()
    checkpoints.load_into(model, {key: value.float() for key, value in state.items()}, WEIGHTS)
    return model
