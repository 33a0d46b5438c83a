"""ConvNeXt: a convolutional network built like a vision transformer.

Liu et al. (2022), "A ConvNet for the 2020s", arXiv:2201.03545.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

DYNAMIC = {"image": {0: "batch"}}
OUTPUTS = ("logits",)

EPSILON = 1e-6


class ChannelNorm(nn.LayerNorm):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Layer normalization over the channels of an image."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize every pixel of `x` [batch, channels, height, width]."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """A 7x7 depthwise convolution and two linear layers on every pixel, scaled, inside a shortcut."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, EPSILON)
        self.up = nn.Linear(channels, 4 * channels)
        self.down = nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), scale))

    def forward(self, image: Tensor) -> Tensor:
        """Refine `image` [batch, channels, height, width]; the shape stays."""
        x = self.norm(self.depthwise(image).permute(0, 2, 3, 1))
        x = self.scale * self.down(functional.gelu(self.up(x)))
        return image + x.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Classify colour images; every stage starts by shrinking the image, the first by `patch`, the others by two."""

    def __init__(
        self, depths: tuple[int, ...], widths: tuple[int, ...], patch: int, classes: int, scale: float
    ) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, widths[0], patch, patch), ChannelNorm(widths[0], EPSILON)]
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            if stage:
                layers += [ChannelNorm(widths[stage - 1], EPSILON), nn.Conv2d(widths[stage - 1], width, 2, 2)]
            layers += [Block(width, scale) for _ in range(depth)]
        self.features = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(widths[-1], EPSILON)
        self.linear = nn.Linear(widths[-1], classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits [batch, classes] of `image` [batch, 3, height, width]."""
        return self.linear(self.norm(self.features(image).mean((2, 3))))


def convnext(
    depths: tuple[int, ...] = (1, 1, 2, 1),
    widths: tuple[int, ...] = (24, 48, 96, 192),
    patch: int = 2,
    classes: int = 10,
    scale: float = 0.1,
) -> nn.Module:
    """A ConvNeXt; `convnext((3, 3, 9, 3), (96, 192, 384, 768), 4, 1000, 1e-6)` is ConvNeXt-T.

    Args:
        depths: blocks of each stage.
        widths: channels of each stage.
        patch: how many times the first layer shrinks the image.
        classes: how many there are.
        scale: what the blocks' scales are at first. With the paper's 1e-6 an untrained network shows none of them.
    """
    return ConvNeXt(depths, widths, patch, classes, scale).eval()


def example_inputs(batch: int = 2, size: int = 32) -> dict[str, Tensor]:
    """Noise: `image` float32 [batch, 3, size, size]."""
    return {"image": torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))}
