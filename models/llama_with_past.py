"""The LLaMA of `llama.py` as it generates text: it reads new tokens after a cache of the keys and values of old ones.

The papers are named in `llama.py`; the weights have the same names.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from graphopt.models.llama import Decoder

DYNAMIC = {
    "input_ids": {0: "batch", 1: "sequence"},
    "past_keys": {0: "batch", 3: "past"},
    "past_values": {0: "batch", 3: "past"},
}
OUTPUTS = ("logits", "present_keys", "present_values")


class LlamaWithPast(Decoder):
    """Predict the next token at every position, given the cache of earlier calls."""

    def forward(self, input_ids: Tensor, past_keys: Tensor, past_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Read `input_ids` int64 [batch, sequence] after the tokens in the cache.

        Args:
            input_ids: the new tokens.
            past_keys: float32 [batch, depth, kv_heads, past, head_dim]; `past` is 0 at the start of a text.
            past_values: of the same shape.

        Returns:
            Logits float32 [batch, sequence, vocabulary], and keys and values with those of the new tokens added,
            float32 [batch, depth, kv_heads, past + sequence, head_dim].
        """
        return self.step(input_ids, list(zip(past_keys.unbind(1), past_values.unbind(1), strict=True)))


def llama_with_past(
    vocabulary: int = 512,
    width: int = 64,
    depth: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    hidden: int = 176,
    base: float = 10000.0,
) -> nn.Module:
    """A LLaMA with a cache; the same arguments and the same seed give the weights that `llama` gives."""
    return LlamaWithPast(vocabulary, width, depth, heads, kv_heads, hidden, base).eval()


def example_inputs(
    batch: int = 2,
    sequence: int = 3,
    past: int = 5,
    vocabulary: int = 512,
    depth: int = 2,
    kv_heads: int = 2,
    head_dim: int = 16,
) -> dict[str, Tensor]:
    """Random tokens int64 [batch, sequence], and noise as the cache, [batch, depth, kv_heads, past, head_dim] twice."""
    draw = torch.Generator().manual_seed(0)
    return {
        "input_ids": torch.randint(vocabulary, (batch, sequence), generator=draw),
        "past_keys": torch.randn(batch, depth, kv_heads, past, head_dim, generator=draw),
        "past_values": torch.randn(batch, depth, kv_heads, past, head_dim, generator=draw),
    }
