"""Arithmetic and activation, element by element."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from graphopt.runtimes._torch.table import operator


@operator("Add", 7)
def add(a: Tensor, b: Tensor) -> Tensor:
    """A + B."""
    return a + b


@operator("Relu")
def relu(x: Tensor) -> Tensor:
    """max(X, 0)."""
    return torch.relu(x)


@operator("Softplus")
def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(X))."""
    return functional.softplus(x)
