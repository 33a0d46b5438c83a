"""Recurrent text classifiers that read forwards and backwards.

Hochreiter and Schmidhuber (1997), "Long Short-Term Memory"; Cho et al. (2014), "Learning Phrase Representations
using RNN Encoder-Decoder for Statistical Machine Translation", arXiv:1406.1078 (the gated recurrent unit); Schuster
and Paliwal (1997), "Bidirectional Recurrent Neural Networks".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

DYNAMIC = {"input_ids": {0: "batch", 1: "sequence"}}
OUTPUTS = ("logits",)


class Classifier(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Classify text by the largest value that each unit of the last recurrent layer takes."""

    def __init__(self, layer: type[nn.Module], vocabulary: int, width: int, depth: int, classes: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.recurrent = layer(width, width, depth, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(2 * width, classes)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the logits [batch, classes] of `input_ids` int64 [batch, sequence]."""
        states, _ = self.recurrent(self.tokens(input_ids))  # [batch, sequence, 2 * width]
        return self.linear(states.amax(1))


def lstm(vocabulary: int = 256, width: int = 64, depth: int = 2, classes: int = 4) -> nn.Module:
    """A classifier with `depth` layers of long short-term memory, `width` units in each direction."""
    return Classifier(nn.LSTM, vocabulary, width, depth, classes).eval()


def gru(vocabulary: int = 256, width: int = 64, depth: int = 2, classes: int = 4) -> nn.Module:
    """A classifier with `depth` layers of gated recurrent units, `width` in each direction."""
    return Classifier(nn.GRU, vocabulary, width, depth, classes).eval()


def example_inputs(batch: int = 2, sequence: int = 16, vocabulary: int = 256) -> dict[str, Tensor]:
    """Random tokens: `input_ids` int64 [batch, sequence] below `vocabulary`."""
    draw = torch.Generator().manual_seed(0)
    return {"input_ids": torch.randint(vocabulary, (batch, sequence), generator=draw)}
