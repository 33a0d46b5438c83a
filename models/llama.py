"""LLaMA: a decoder with root-mean-square norms, rotary positions, grouped queries and gated linear units.

Touvron et al. (2023), "LLaMA: Open and Efficient Foundation Language Models", arXiv:2302.13971, and "Llama 2",
arXiv:2307.09288. Its parts: Zhang and Sennrich (2019), arXiv:1910.07467 (RMSNorm); Su et al. (2021),
arXiv:2104.09864 (rotary positions); Ainslie et al. (2023), arXiv:2305.13245 (grouped queries); Shazeer (2020),
arXiv:2002.05202 (SwiGLU).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

DYNAMIC = {"input_ids": {0: "batch", 1: "sequence"}}
OUTPUTS = ("logits",)

EPSILON = 1e-5


class Rotary(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Turn pairs of numbers by angles that grow with the position of their token."""

    def __init__(self, size: int, base: float) -> None:
        super().__init__()
        self.register_buffer("frequencies", base ** (-torch.arange(0, size, 2) / size), persistent=False)

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cosines and sines, [sequence, size], of `positions` int64 [sequence]."""
        angles = positions[:, None] * self.frequencies
        angles = torch.cat((angles, angles), 1)
        return angles.cos(), angles.sin()

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        """Turn `x` [batch, heads, sequence, size]; the partner of each number is half the size away."""
        first, second = x.chunk(2, 3)
        return x * cosines + torch.cat((-second, first), 3) * sines


class Attention(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Self-attention in which several query heads share one head of keys and values."""

    def __init__(self, width: int, heads: int, kv_heads: int, base: float) -> None:
        super().__init__()
        self.size = width // heads
        self.shared = heads // kv_heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, kv_heads * self.size, bias=False)
        self.value = nn.Linear(width, kv_heads * self.size, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.rotary = Rotary(self.size, base)

    def split(self, x: Tensor) -> Tensor:
        """Give each head its share: [batch, sequence, heads * size] -> [batch, heads, sequence, size]."""
        return x.unflatten(2, (-1, self.size)).transpose(1, 2)

    def repeat(self, x: Tensor) -> Tensor:
        """Give every query head its own copy: [batch, kv_heads, total, size] -> [batch, heads, total, size]."""
        return x[:, :, None].expand(-1, -1, self.shared, -1, -1).flatten(1, 2)

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Mix the tokens with themselves and with those before them.

        Args:
            x: the new tokens [batch, sequence, width].
            past: keys and values of earlier tokens, [batch, kv_heads, past, size] each.

        Returns:
            The new tokens [batch, sequence, width], and the keys and values of all, [batch, kv_heads, total, size].
        """
        before = past[0].shape[2] if past else 0
        total = before + x.shape[1]
        places = torch.arange(total, device=x.device)
        cosines, sines = self.rotary.angles(places[before:])
        queries = self.rotary(self.split(self.query(x)), cosines, sines)
        keys = self.rotary(self.split(self.key(x)), cosines, sines)
        values = self.split(self.value(x))
        if past:
            keys, values = torch.cat((past[0], keys), 2), torch.cat((past[1], values), 2)
        mask = places <= places[before:, None]  # [sequence, total]
        mixed = functional.scaled_dot_product_attention(queries, self.repeat(keys), self.repeat(values), mask)
        return self.output(mixed.transpose(1, 2).flatten(2)), keys, values


class Block(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Attention and a gated feed-forward network, each behind a normalization and inside a shortcut."""

    def __init__(self, width: int, heads: int, kv_heads: int, hidden: int, base: float) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, EPSILON)
        self.attention = Attention(width, heads, kv_heads, base)
        self.forward_norm = nn.RMSNorm(width, EPSILON)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Refine the tokens `x` [batch, sequence, width]; also return all keys and values, as the attention does."""
        mixed, keys, values = self.attention(self.attention_norm(x), past)
        x = x + mixed
        normed = self.forward_norm(x)
        return x + self.down(functional.silu(self.gate(normed)) * self.up(normed)), keys, values


class Decoder(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Predict the next token at every position, with or without a cache."""

    def __init__(
        self, vocabulary: int, width: int, depth: int, heads: int, kv_heads: int, hidden: int, base: float
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, heads, kv_heads, hidden, base) for _ in range(depth))
        self.norm = nn.RMSNorm(width, EPSILON)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def step(self, input_ids: Tensor, past: list[tuple[Tensor, Tensor] | None]) -> tuple[Tensor, Tensor, Tensor]:
        """Read tokens after others, whose keys and values are known.

        Args:
            input_ids: int64 [batch, sequence].
            past: for each block, keys and values [batch, kv_heads, past, size] of the tokens before, or None.

        Returns:
            Logits [batch, sequence, vocabulary]; keys and values of all tokens, each
            [batch, depth, kv_heads, past + sequence, size].
        """
        x = self.tokens(input_ids)
        all_keys, all_values = [], []
        for block, known in zip(self.blocks, past, strict=True):
            x, keys, values = block(x, known)
            all_keys.append(keys)
            all_values.append(values)
        return self.head(self.norm(x)), torch.stack(all_keys, 1), torch.stack(all_values, 1)


class Llama(Decoder):
    """Predict the next token at every position of a whole text."""

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the logits [batch, sequence, vocabulary] of what follows `input_ids` int64 [batch, sequence]."""
        return self.step(input_ids, [None] * len(self.blocks))[0]


def llama(
    vocabulary: int = 512,
    width: int = 64,
    depth: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    hidden: int = 176,
    base: float = 10000.0,
) -> nn.Module:
    """A LLaMA without a cache; `llama(128256, 4096, 32, 32, 8, 14336, 500000.0)` is Llama 3 8B."""
    return Llama(vocabulary, width, depth, heads, kv_heads, hidden, base).eval()


def example_inputs(batch: int = 2, sequence: int = 16, vocabulary: int = 512) -> dict[str, Tensor]:
    """Random tokens: `input_ids` int64 [batch, sequence] below `vocabulary`."""
    draw = torch.Generator().manual_seed(0)
    return {"input_ids": torch.randint(vocabulary, (batch, sequence), generator=draw)}
