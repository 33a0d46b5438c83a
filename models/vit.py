"""Vision transformer: an image is a sequence of patches behind a class token.

Dosovitskiy et al. (2021), "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
arXiv:2010.11929.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from graphopt.models._attention import SelfAttention

DYNAMIC = {"image": {0: "batch"}}
OUTPUTS = ("logits",)

EPSILON = 1e-6


class Block(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Attention and a feed-forward network, each behind a normalization and inside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, EPSILON)
        self.attention = SelfAttention(width, heads)
        self.forward_norm = nn.LayerNorm(width, EPSILON)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Refine the tokens `x` [batch, tokens, width]; the shape stays."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.down(functional.gelu(self.up(self.forward_norm(x))))


class VisionTransformer(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Classify colour images of one size by what the class token has seen."""

    def __init__(self, classes: int, size: int, patch: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, EPSILON)
        self.linear = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits [batch, classes] of `image` [batch, 3, size, size]."""
        patches = self.patches(image).flatten(2).transpose(1, 2)  # [batch, patches, width]
        x = torch.cat((self.token.expand(patches.shape[0], -1, -1), patches), 1) + self.positions
        return self.linear(self.norm(self.blocks(x))[:, 0])


def vit(
    classes: int = 10, size: int = 32, patch: int = 4, width: int = 64, depth: int = 4, heads: int = 4
) -> nn.Module:
    """A vision transformer; `vit(1000, 224, 16, 768, 12, 12)` is ViT-B/16."""
    return VisionTransformer(classes, size, patch, width, depth, heads).eval()


def example_inputs(batch: int = 2, size: int = 32) -> dict[str, Tensor]:
    """Noise: `image` float32 [batch, 3, size, size]."""
    return {"image": torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))}
