"""Conformer: a speech recognizer whose blocks hold both attention and convolution.

Gulati et al. (2020), "Conformer: Convolution-augmented Transformer for Speech Recognition", arXiv:2005.08100, with
the fixed sinusoidal positions of arXiv:1706.03762 added to the frames in place of relative ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from graphopt.models._attention import SelfAttention
from graphopt.models._settling import settled

DYNAMIC = {"frames": {0: "batch", 1: "frames"}}
OUTPUTS = ("logits",)


class FeedForward(nn.Sequential):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """A normalization and two linear layers: [batch, steps, width] -> the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))


class Convolution(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """A gated and a depthwise convolution along time."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gated = nn.Conv1d(width, 2 * width, 1)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.batch_norm = nn.BatchNorm1d(width)
        self.last = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` [batch, steps, width] to the same shape."""
        x = functional.glu(self.gated(self.norm(x).transpose(1, 2)), 1)
        return self.last(functional.silu(self.batch_norm(self.depthwise(x)))).transpose(1, 2)


class Block(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Half a feed-forward network, attention, convolution, and the other half, each inside a shortcut."""

    def __init__(self, width: int, heads: int, kernel: int) -> None:
        super().__init__()
        self.first = FeedForward(width)
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.convolution = Convolution(width, kernel)
        self.second = FeedForward(width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Refine the steps `x` [batch, steps, width]; the shape stays."""
        x = x + self.first(x) / 2
        x = x + self.attention(self.attention_norm(x))
        x = x + self.convolution(x)
        return self.norm(x + self.second(x) / 2)


class Conformer(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Tell the token at every fourth frame of a spectrogram."""

    def __init__(self, bands: int, tokens: int, width: int, depth: int, heads: int, kernel: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(bands, width, 3, 2, 1)
        self.second = nn.Conv1d(width, width, 3, 2, 1)
        frequencies = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.blocks = nn.Sequential(*(Block(width, heads, kernel) for _ in range(depth)))
        self.linear = nn.Linear(width, tokens)

    def positions(self, steps: int) -> Tensor:
        """Return sines and cosines of the steps at many frequencies, [steps, width]."""
        angles = torch.arange(steps, device=self.frequencies.device)[:, None] * self.frequencies
        return torch.cat((angles.sin(), angles.cos()), 1)

    def forward(self, frames: Tensor) -> Tensor:
        """Return the logits [batch, frames / 4 rounded up, tokens] of `frames` [batch, frames, bands]."""
        x = functional.silu(self.second(functional.silu(self.first(frames.transpose(1, 2))))).transpose(1, 2)
        return self.linear(self.blocks(x + self.positions(x.shape[1])))


def speech(
    bands: int = 40, tokens: int = 32, width: int = 64, depth: int = 2, heads: int = 4, kernel: int = 15
) -> nn.Module:
    """A Conformer; `speech(80, 1024, 256, 16, 4, 31)` is as wide and as deep as the paper's medium one."""
    return settled(Conformer(bands, tokens, width, depth, heads, kernel), example_inputs(8, bands=bands))


def example_inputs(batch: int = 2, frames: int = 50, bands: int = 40) -> dict[str, Tensor]:
    """Noise: `frames` float32 [batch, frames, bands]."""
    return {"frames": torch.randn(batch, frames, bands, generator=torch.Generator().manual_seed(0))}
