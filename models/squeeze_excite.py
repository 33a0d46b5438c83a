"""A small residual network with squeeze-and-excitation.

Hu et al. (2018), "Squeeze-and-Excitation Networks", arXiv:1709.01507.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from graphopt.models._convolution import conv_norm
from graphopt.models._settling import settled

DYNAMIC = {"image": {0: "batch"}}
OUTPUTS = ("logits",)


class SqueezeExcite(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Scale every channel by a factor in 0..1 computed from the means of all channels."""

    def __init__(self, channels: int, squeezed: int, gate: type[nn.Module] = nn.Sigmoid) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, channels, 1)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        """Scale `x` [batch, channels, height, width] by factors [batch, channels, 1, 1]."""
        means = functional.adaptive_avg_pool2d(x, 1)
        return x * self.gate(self.excite(functional.relu(self.squeeze(means))))


class Block(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Two convolutions, the scaling, and a shortcut with a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_norm(inputs, outputs, stride=stride),
            conv_norm(outputs, outputs, activation=nn.Identity),
            SqueezeExcite(outputs, outputs // 4),
        )
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else conv_norm(inputs, outputs, 1, stride, activation=nn.Identity)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` [batch, inputs, height, width] to [batch, outputs, height / stride, width / stride]."""
        return functional.relu(self.body(x) + self.shortcut(x))


class SqueezeExciteNet(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Classify colour images; every stage after the first halves the image and doubles the channels."""

    def __init__(self, blocks: tuple[int, ...], width: int, classes: int) -> None:
        super().__init__()
        layers, inputs = [conv_norm(3, width)], width
        for stage, count in enumerate(blocks):
            outputs = width * 2**stage
            for block in range(count):
                layers.append(Block(inputs, outputs, 2 if stage and not block else 1))
                inputs = outputs
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(inputs, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits [batch, classes] of `image` [batch, 3, height, width]."""
        return self.linear(functional.adaptive_avg_pool2d(self.features(image), 1).flatten(1))


def squeeze_excite(blocks: tuple[int, ...] = (1, 1, 1), width: int = 32, classes: int = 10) -> nn.Module:
    """The network; `squeeze_excite((2, 2, 2, 2), 64)` has the stages of SE-ResNet-18."""
    return settled(SqueezeExciteNet(blocks, width, classes), example_inputs(8))


def example_inputs(batch: int = 2, size: int = 32) -> dict[str, Tensor]:
    """Noise: `image` float32 [batch, 3, size, size]."""
    return {"image": torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))}
