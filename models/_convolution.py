"""The unit that most convolutional networks repeat."""

from __future__ import annotations

from torch import nn


def conv_norm(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, activation: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Convolution, batch normalization and activation; `nn.Identity` stands for none.

    Images [batch, inputs, height, width] become [batch, outputs, height / stride, width / stride], rounded up.
    """
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), activation())
