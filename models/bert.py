"""BERT: an encoder that reads text in both directions.

Devlin et al. (2019), "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
arXiv:1810.04805.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from graphopt.models._attention import SelfAttention

DYNAMIC = {name: {0: "batch", 1: "sequence"} for name in ("input_ids", "attention_mask", "token_type_ids")}
OUTPUTS = ("hidden", "pooled")

EPSILON = 1e-12


class Layer(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Attention and a feed-forward network, each inside a shortcut and followed by a normalization."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads)
        self.attention_norm = nn.LayerNorm(width, EPSILON)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.forward_norm = nn.LayerNorm(width, EPSILON)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Refine the tokens `x` [batch, sequence, width], seeing those that `mask` [batch, 1, 1, sequence] allows."""
        x = self.attention_norm(x + self.attention(x, mask))
        return self.forward_norm(x + self.down(functional.gelu(self.up(x))))


class BERT(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Describe every token of one or two texts, and both texts together."""

    def __init__(self, vocabulary: int, positions: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(positions, width)
        self.types = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, EPSILON)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.pooler = nn.Linear(width, width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens [batch, sequence, width] and the pooled first token [batch, width].

        Args:
            input_ids: int64 [batch, sequence]; at most `positions` long.
            attention_mask: int64 [batch, sequence]; 1 for a token, 0 for padding.
            token_type_ids: int64 [batch, sequence]; 0 in the first text, 1 in the second.
        """
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.norm(self.words(input_ids) + self.positions(places) + self.types(token_type_ids))
        mask = attention_mask[:, None, None, :].bool()
        for layer in self.layers:
            x = layer(x, mask)
        return x, torch.tanh(self.pooler(x[:, 0]))


def bert(vocabulary: int = 1024, positions: int = 128, width: int = 64, depth: int = 2, heads: int = 4) -> nn.Module:
    """A BERT; `bert(30522, 512, 768, 12, 12)` is BERT-base."""
    return BERT(vocabulary, positions, width, depth, heads).eval()


def example_inputs(batch: int = 2, sequence: int = 16, vocabulary: int = 1024) -> dict[str, Tensor]:
    """Two texts of random tokens in each sample, all but the first sample ending in padding, int64 [batch, sequence]."""
    draw = torch.Generator().manual_seed(0)
    places = torch.arange(sequence).expand(batch, sequence)
    length = sequence - torch.arange(batch)[:, None] % max(sequence // 2, 1)
    return {
        "input_ids": torch.randint(vocabulary, (batch, sequence), generator=draw),
        "attention_mask": (places < length).long(),
        "token_type_ids": (places >= sequence // 2).long(),
    }
