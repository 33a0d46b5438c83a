"""Densely connected networks: every layer reads the outputs of all layers before it.

Huang et al. (2017), "Densely Connected Convolutional Networks", arXiv:1608.06993 (DenseNet-BC).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from graphopt.models._settling import settled

DYNAMIC = {"image": {0: "batch"}}
OUTPUTS = ("logits",)


class NormConv(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Batch normalization, ReLU and convolution, in this order, so that no convolution can absorb the norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` [batch, inputs, height, width] to [batch, outputs, height, width]."""
        return self.convolution(functional.relu(self.norm(x)))


class DenseLayer(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Compute `growth` new channels and put them behind the old ones."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bottleneck = NormConv(inputs, 4 * growth, 1)
        self.convolution = NormConv(4 * growth, growth, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` [batch, inputs, height, width] to [batch, inputs + growth, height, width]."""
        return torch.cat((x, self.convolution(self.bottleneck(x))), 1)


class DenseNet(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Classify colour images; the channels and the image are halved between dense blocks."""

    def __init__(self, blocks: tuple[int, ...], growth: int, classes: int, large_images: bool) -> None:
        super().__init__()
        channels = 2 * growth
        if large_images:
            layers = [
                nn.Conv2d(3, channels, 7, 2, 3, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
                nn.MaxPool2d(3, 2, 1),
            ]
        else:
            layers = [nn.Conv2d(3, channels, 3, padding=1, bias=False)]
        for index, count in enumerate(blocks):
            if index:
                layers += [NormConv(channels, channels // 2, 1), nn.AvgPool2d(2)]
                channels //= 2
            for _ in range(count):
                layers.append(DenseLayer(channels, growth))
                channels += growth
        self.features = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits [batch, classes] of `image` [batch, 3, height, width]."""
        return self.linear(functional.relu(self.norm(self.features(image))).mean((2, 3)))


def densenet(
    blocks: tuple[int, ...] = (6, 6, 6), growth: int = 12, classes: int = 10, large_images: bool = False
) -> nn.Module:
    """A DenseNet-BC; `densenet((6, 12, 24, 16), 32, 1000, large_images=True)` is DenseNet-121.

    Args:
        blocks: layers of each dense block.
        growth: channels that each layer adds.
        classes: how many there are.
        large_images: whether the network starts by halving the image twice, as for ImageNet.
    """
    return settled(DenseNet(blocks, growth, classes, large_images), example_inputs(8))


def example_inputs(batch: int = 2, size: int = 32) -> dict[str, Tensor]:
    """Noise: `image` float32 [batch, 3, size, size]."""
    return {"image": torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))}
