"""MobileNets: inverted residuals around depthwise convolutions.

Sandler et al. (2018), "MobileNetV2: Inverted Residuals and Linear Bottlenecks", arXiv:1801.04381, table 2;
Howard et al. (2019), "Searching for MobileNetV3", arXiv:1905.02244, table 1 (the large network).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from graphopt.models._convolution import conv_norm
from graphopt.models._settling import settled
from graphopt.models.squeeze_excite import SqueezeExcite

DYNAMIC = {"image": {0: "batch"}}
OUTPUTS = ("logits",)

V2_STAGES = (
    # expansion, outputs, blocks, first stride
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
V3_BLOCKS = (
    # kernel, expanded channels, outputs, squeeze and excite, activation, stride
    (3, 16, 16, False, nn.ReLU, 1),
    (3, 64, 24, False, nn.ReLU, 2),
    (3, 72, 24, False, nn.ReLU, 1),
    (5, 72, 40, True, nn.ReLU, 2),
    (5, 120, 40, True, nn.ReLU, 1),
    (5, 120, 40, True, nn.ReLU, 1),
    (3, 240, 80, False, nn.Hardswish, 2),
    (3, 200, 80, False, nn.Hardswish, 1),
    (3, 184, 80, False, nn.Hardswish, 1),
    (3, 184, 80, False, nn.Hardswish, 1),
    (3, 480, 112, True, nn.Hardswish, 1),
    (3, 672, 112, True, nn.Hardswish, 1),
    (5, 672, 160, True, nn.Hardswish, 2),
    (5, 960, 160, True, nn.Hardswish, 1),
    (5, 960, 160, True, nn.Hardswish, 1),
)


class InvertedResidual(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Widen by a 1x1 convolution, filter each channel, and narrow without activation; a shortcut if the shape stays."""

    def __init__(
        self,
        inputs: int,
        expanded: int,
        outputs: int,
        stride: int,
        kernel: int = 3,
        excite: bool = False,
        activation: type[nn.Module] = nn.ReLU6,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if expanded != inputs:
            layers.append(conv_norm(inputs, expanded, 1, activation=activation))
        layers.append(conv_norm(expanded, expanded, kernel, stride, groups=expanded, activation=activation))
        if excite:
            layers.append(SqueezeExcite(expanded, _scaled(expanded, 0.25), nn.Hardsigmoid))
        layers.append(conv_norm(expanded, outputs, 1, activation=nn.Identity))
        self.body = nn.Sequential(*layers)
        self.residual = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` [batch, inputs, height, width] to [batch, outputs, height / stride, width / stride]."""
        return x + self.body(x) if self.residual else self.body(x)


class MobileNet(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Features, their means, and a classifier."""

    def __init__(self, features: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits [batch, classes] of `image` [batch, 3, height, width]."""
        return self.classifier(functional.adaptive_avg_pool2d(self.features(image), 1).flatten(1))


def _scaled(channels: int, width: float) -> int:
    """Scale a number of channels and round it to a multiple of eight, down by no more than a tenth."""
    rounded = max(8, int(channels * width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels * width else rounded


def mobilenet_v2(width: float = 0.5, classes: int = 10) -> nn.Module:
    """MobileNetV2 for images of 32 pixels or more; `mobilenet_v2(1.0, 1000)` is the paper's."""
    inputs = _scaled(32, width)
    layers = [conv_norm(3, inputs, stride=2, activation=nn.ReLU6)]
    for expansion, channels, blocks, first in V2_STAGES:
        outputs = _scaled(channels, width)
        for block in range(blocks):
            layers.append(InvertedResidual(inputs, expansion * inputs, outputs, 1 if block else first))
            inputs = outputs
    last = _scaled(1280, max(width, 1.0))  # the paper narrows all layers but this one
    layers.append(conv_norm(inputs, last, 1, activation=nn.ReLU6))
    return settled(MobileNet(nn.Sequential(*layers), nn.Linear(last, classes)), example_inputs(8))


def mobilenet_v3(width: float = 0.5, classes: int = 10) -> nn.Module:
    """MobileNetV3-Large for images of 32 pixels or more; `mobilenet_v3(1.0, 1000)` is the paper's."""
    inputs = _scaled(16, width)
    layers = [conv_norm(3, inputs, stride=2, activation=nn.Hardswish)]
    for kernel, expanded, channels, excite, activation, stride in V3_BLOCKS:
        hidden, outputs = _scaled(expanded, width), _scaled(channels, width)
        layers.append(InvertedResidual(inputs, hidden, outputs, stride, kernel, excite, activation))
        inputs = outputs
    last, hidden = _scaled(960, width), _scaled(1280, width)
    layers.append(conv_norm(inputs, last, 1, activation=nn.Hardswish))
    classifier = nn.Sequential(nn.Linear(last, hidden), nn.Hardswish(), nn.Linear(hidden, classes))
    return settled(MobileNet(nn.Sequential(*layers), classifier), example_inputs(8))


def example_inputs(batch: int = 2, size: int = 64) -> dict[str, Tensor]:
    """Noise: `image` float32 [batch, 3, size, size]."""
    return {"image": torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))}
