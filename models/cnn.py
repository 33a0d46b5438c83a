"""The convolutional network of every tutorial: two convolutions, two pools, two linear layers.

After LeCun et al. (1998), "Gradient-Based Learning Applied to Document Recognition".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

DYNAMIC = {"image": {0: "batch"}}
OUTPUTS = ("logits",)


class CNN(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Classify images [batch, channels, size, size]; the size is a multiple of four."""

    def __init__(self, channels: int, size: int, width: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.second = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.hidden = nn.Linear(2 * width * (size // 4) ** 2, 4 * width)
        self.linear = nn.Linear(4 * width, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits [batch, classes] of `image` [batch, channels, size, size]."""
        x = functional.max_pool2d(functional.relu(self.first(image)), 2)
        x = functional.max_pool2d(functional.relu(self.second(x)), 2)
        return self.linear(functional.relu(self.hidden(x.flatten(1))))


def cnn(channels: int = 1, size: int = 28, width: int = 32, classes: int = 10) -> nn.Module:
    """The network for MNIST; `cnn(channels=3, size=32)` is for CIFAR."""
    return CNN(channels, size, width, classes).eval()


def example_inputs(batch: int = 2, channels: int = 1, size: int = 28) -> dict[str, Tensor]:
    """Noise: `image` float32 [batch, channels, size, size]."""
    return {"image": torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(0))}
