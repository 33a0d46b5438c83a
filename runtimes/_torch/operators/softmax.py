"""Softmax and other normalizations of scores, and the losses built on them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from graphopt.runtimes._torch.table import operator


def _enter(name: str, function: Callable[[Tensor, int], Tensor]) -> None:
    @operator(name, 13)
    def along(input: Tensor, *, axis: int = -1) -> Tensor:
        """Normalize along one axis."""
        return function(input, axis)

    @operator(name)
    def flattened(input: Tensor, *, axis: int = 1) -> Tensor:
        """Normalize over all axes from one on."""
        if axis in (-1, input.ndim - 1):
            return function(input, -1)
        return function(input.flatten(axis), -1).reshape(input.shape)


def _hardmax(x: Tensor, axis: int) -> Tensor:
    first = x.argmax(axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, first, 1)


_enter("Softmax", lambda x, axis: functional.softmax(x, dim=axis))
_enter("LogSoftmax", lambda x, axis: functional.log_softmax(x, dim=axis))
_enter("Hardmax", _hardmax)


@operator("LpNormalization")
def lp_normalization(input: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """Divide by the norm along an axis; where that is 0, the result is."""
    norm = torch.linalg.vector_norm(input, p, axis, keepdim=True)
    return input / norm.masked_fill(norm == 0, torch.inf)


@operator("NegativeLogLikelihoodLoss", 12)
def negative_log_likelihood(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -(2**63),
    reduction: str = "mean",
) -> Tensor:
    """The loss of log-probabilities [N, C, ...] with classes [N, ...]."""
    return functional.nll_loss(input, target.long(), weight, ignore_index=ignore_index, reduction=reduction)


@operator("SoftmaxCrossEntropyLoss", 12)
def softmax_cross_entropy(
    scores: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    ignore_index: int = -(2**63),
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """The loss of scores [N, C, ...] with classes [N, ...], and the log-probabilities."""
    log = functional.log_softmax(scores, dim=1)
    return negative_log_likelihood(log, labels, weights, ignore_index=ignore_index, reduction=reduction), log
