"""Residual networks for CIFAR, with shortcuts that have no weights.

He et al. (2016), "Deep Residual Learning for Image Recognition", arXiv:1512.03385, section 4.2, option A.
The names of the weights are those of the reimplementation akamaster/pytorch_resnet_cifar10, so its files load.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from graphopt.models._settling import settled

DYNAMIC = {"image": {0: "batch"}}
OUTPUTS = ("logits",)


class Block(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Two convolutions, the first of which may halve the image, and a shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.missing = outputs - inputs

    def shortcut(self, x: Tensor) -> Tensor:
        """Skip every other pixel where the image is halved, and put half of the new channels, zero, on each side."""
        if not self.missing:
            return x
        before = self.missing // 2
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.missing - before))

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` [batch, inputs, height, width] to [batch, outputs, height / stride, width / stride]."""
        out = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class Stage(nn.Sequential):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Blocks in a row, the first of which changes the size and the channels."""

    def __init__(self, inputs: int, outputs: int, stride: int, blocks: int) -> None:
        super().__init__(Block(inputs, outputs, stride), *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))


class ResNet(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Classify colour images; three stages of `blocks` blocks make 6 * `blocks` + 2 layers with weights."""

    def __init__(self, blocks: int, width: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = Stage(width, width, 1, blocks)
        self.layer2 = Stage(width, 2 * width, 2, blocks)
        self.layer3 = Stage(2 * width, 4 * width, 2, blocks)
        self.linear = nn.Linear(4 * width, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits [batch, classes] of `image` [batch, 3, height, width]."""
        x = functional.relu(self.bn1(self.conv1(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def resnet20(width: int = 16, classes: int = 10) -> nn.Module:
    """The network of 20 layers."""
    return settled(ResNet(3, width, classes), example_inputs(8))


def resnet32(width: int = 16, classes: int = 10) -> nn.Module:
    """The network of 32 layers."""
    return settled(ResNet(5, width, classes), example_inputs(8))


def resnet56(width: int = 16, classes: int = 10) -> nn.Module:
    """The network of 56 layers."""
    return settled(ResNet(9, width, classes), example_inputs(8))


def example_inputs(batch: int = 2, size: int = 32) -> dict[str, Tensor]:
    """Noise: `image` float32 [batch, 3, size, size]."""
    return {"image": torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))}
