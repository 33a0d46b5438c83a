"""ShuffleNetV2: half of the channels pass by, and a shuffle mixes the halves.

Ma et al. (2018), "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", arXiv:1807.11164.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from graphopt.models._convolution import conv_norm
from graphopt.models._settling import settled

DYNAMIC = {"image": {0: "batch"}}
OUTPUTS = ("logits",)

BLOCKS = (4, 8, 4)


class Shuffle(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Deal the channels alternately from the first and the second half."""

    def forward(self, x: Tensor) -> Tensor:
        """Reorder the channels of `x` [batch, channels, height, width]."""
        return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


class Branch(nn.Sequential):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """A 1x1, a depthwise and a 1x1 convolution: [batch, inputs, ...] -> [batch, outputs, ...]."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(
            conv_norm(inputs, outputs, 1),
            conv_norm(outputs, outputs, 3, stride, groups=outputs, activation=nn.Identity),
            conv_norm(outputs, outputs, 1),
        )


class Unit(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Convolve the second half of the channels, leave the first as it is, and shuffle."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = Branch(channels // 2, channels // 2, 1)
        self.shuffle = Shuffle()

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` [batch, channels, height, width] to the same shape."""
        kept, changed = x.chunk(2, 1)
        return self.shuffle(torch.cat((kept, self.branch(changed)), 1))


class DownUnit(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Halve the image in two branches, both of which read all channels, and shuffle their outputs."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.short = nn.Sequential(
            conv_norm(inputs, inputs, 3, 2, groups=inputs, activation=nn.Identity),
            conv_norm(inputs, outputs // 2, 1),
        )
        self.branch = Branch(inputs, outputs // 2, 2)
        self.shuffle = Shuffle()

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` [batch, inputs, height, width] to [batch, outputs, height / 2, width / 2]."""
        return self.shuffle(torch.cat((self.short(x), self.branch(x)), 1))


class ShuffleNet(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Classify colour images of 32 pixels or more."""

    def __init__(self, channels: tuple[int, ...], last: int, classes: int) -> None:
        super().__init__()
        layers, inputs = [conv_norm(3, 24, stride=2), nn.MaxPool2d(3, 2, 1)], 24
        for outputs, count in zip(channels, BLOCKS, strict=True):
            layers += [DownUnit(inputs, outputs), *(Unit(outputs) for _ in range(count - 1))]
            inputs = outputs
        self.features = nn.Sequential(*layers, conv_norm(inputs, last, 1))
        self.linear = nn.Linear(last, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits [batch, classes] of `image` [batch, 3, height, width]."""
        return self.linear(functional.adaptive_avg_pool2d(self.features(image), 1).flatten(1))


def shufflenet(channels: tuple[int, int, int] = (48, 96, 192), last: int = 1024, classes: int = 10) -> nn.Module:
    """ShuffleNetV2 0.5x; `shufflenet((116, 232, 464), 1024, 1000)` is the paper's 1x."""
    return settled(ShuffleNet(channels, last, classes), example_inputs(8))


def example_inputs(batch: int = 2, size: int = 64) -> dict[str, Tensor]:
    """Noise: `image` float32 [batch, 3, size, size]."""
    return {"image": torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))}
