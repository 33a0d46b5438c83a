"""Self-attention as the encoders here share it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class SelfAttention(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Every token looks at every other, with a matrix each for queries, keys, values and the output.

    Vaswani et al. (2017), "Attention Is All You Need", arXiv:1706.03762.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        """Give each head its share: [batch, sequence, width] -> [batch, heads, sequence, width / heads]."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mix the tokens of `x` [batch, sequence, width] into the same shape.

        Args:
            x: the tokens.
            mask: bool, broadcast to [batch, heads, sequence, sequence]; whether a token (third axis) may look at
                another (fourth).
        """
        queries, keys, values = (self.split(make(x)) for make in (self.query, self.key, self.value))
        mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self.output(mixed.transpose(1, 2).flatten(2))
