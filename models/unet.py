"""U-Net: an image goes in, a mask of the same size comes out.

Ronneberger et al. (2015), "U-Net: Convolutional Networks for Biomedical Image Segmentation", arXiv:1505.04597;
the convolutions are padded, so nothing is cropped, and followed by batch normalization.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from graphopt.models._convolution import conv_norm
from graphopt.models._settling import settled

DYNAMIC = {"image": {0: "batch"}}
OUTPUTS = ("mask",)


class DoubleConv(nn.Sequential):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Two convolutions: [batch, inputs, height, width] -> [batch, outputs, height, width]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(conv_norm(inputs, outputs), conv_norm(outputs, outputs))


class UNet(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Halve the image `depth` times and double it again, beside what it was on the way down."""

    def __init__(self, channels: int, classes: int, width: int, depth: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.first = DoubleConv(channels, width)
        self.down = nn.ModuleList(DoubleConv(widths[level], widths[level + 1]) for level in range(depth))
        self.enlarge = nn.ModuleList(
            nn.ConvTranspose2d(widths[level + 1], widths[level], 2, 2) for level in reversed(range(depth))
        )
        self.up = nn.ModuleList(DoubleConv(2 * widths[level], widths[level]) for level in reversed(range(depth)))
        self.last = nn.Conv2d(width, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of the mask, [batch, classes, height, width], of `image` [batch, channels, height, width].

        Height and width are multiples of 2 ** depth.
        """
        levels = [self.first(image)]
        for down in self.down:
            levels.append(down(functional.max_pool2d(levels[-1], 2)))
        x = levels.pop()
        for enlarge, up in zip(self.enlarge, self.up, strict=True):
            x = up(torch.cat((levels.pop(), enlarge(x)), 1))
        return self.last(x)


def unet(channels: int = 3, classes: int = 1, width: int = 16, depth: int = 3) -> nn.Module:
    """A U-Net; `unet(1, 2, 64, 4)` is as wide and as deep as the paper's."""
    return settled(UNet(channels, classes, width, depth), example_inputs(8, channels))


def example_inputs(batch: int = 2, channels: int = 3, size: int = 32) -> dict[str, Tensor]:
    """Noise: `image` float32 [batch, channels, size, size]."""
    return {"image": torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(0))}
