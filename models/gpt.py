"""GPT: a decoder-only transformer with learned positions and tied embeddings.

Radford et al. (2019), "Language Models are Unsupervised Multitask Learners" (GPT-2), after Vaswani et al.
(2017), "Attention Is All You Need", arXiv:1706.03762.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

DYNAMIC = {"input_ids": {0: "batch", 1: "sequence"}}
OUTPUTS = ("logits",)


class CausalAttention(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Self-attention in which no token sees a later one; one matrix makes queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inputs = nn.Linear(width, 3 * width)
        self.outputs = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of `x` [batch, sequence, width] into the same shape."""
        parts = self.inputs(x).unflatten(2, (3, self.heads, -1))  # [batch, sequence, 3, heads, width / heads]
        queries, keys, values = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return self.outputs(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Attention and a feed-forward network, each behind a normalization and inside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads)
        self.forward_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Refine the tokens `x` [batch, sequence, width]; the shape stays."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.down(functional.gelu(self.up(self.forward_norm(x)), approximate="tanh"))


class GPT(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Predict the next token at every position; the embedding of the tokens also reads out the logits."""

    def __init__(self, vocabulary: int, context: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                # What is added to the shortcuts is scaled so that their sum does not grow with the depth.
                added = name.endswith(("attention.outputs.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * depth) ** 0.5 if added else 0.02)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the logits [batch, sequence, vocabulary] of what follows `input_ids` int64 [batch, sequence].

        The sequence is at most as long as the context.
        """
        x = self.tokens(input_ids) + self.positions(torch.arange(input_ids.shape[1], device=input_ids.device))
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x), self.tokens.weight)


def gpt(vocabulary: int = 256, context: int = 128, width: int = 128, depth: int = 4, heads: int = 4) -> nn.Module:
    """A GPT; the paper's smallest is `gpt(50257, 1024, 768, 12, 12)`."""
    return GPT(vocabulary, context, width, depth, heads).eval()


def example_inputs(batch: int = 2, sequence: int = 16, vocabulary: int = 256) -> dict[str, Tensor]:
    """Random tokens: `input_ids` int64 [batch, sequence] below `vocabulary`."""
    draw = torch.Generator().manual_seed(0)
    return {"input_ids": torch.randint(vocabulary, (batch, sequence), generator=draw)}
