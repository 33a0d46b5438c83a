"""Activation functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from graphopt.runtimes._torch.operators.elementwise import UNSIGNED, widened
from graphopt.runtimes._torch.table import operator


@operator("Relu")
def relu(x: Tensor) -> Tensor:
    """max(X, 0)."""
    return torch.relu(x)


@operator("Sigmoid")
def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-X))."""
    return torch.sigmoid(x)


@operator("LeakyRelu")
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """X, and alpha X below zero."""
    return functional.leaky_relu(x, alpha)


@operator("PRelu")
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """X, and slope X below zero."""
    return x if x.dtype in UNSIGNED else torch.where(x < 0, slope * x, x)


@operator("Elu")
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """X, and alpha (exp(X) - 1) below zero."""
    return functional.elu(x, alpha)


@operator("Celu", 12)
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """max(0, X) + min(0, alpha (exp(X / alpha) - 1))."""
    return functional.celu(x, alpha)


@operator("Selu")
def selu(x: Tensor, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Tensor:
    """Gamma times Elu."""
    return gamma * functional.elu(x, alpha)


@operator("Gelu", 20)
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """X times the normal distribution function of X."""
    return functional.gelu(x, approximate=approximate)


@operator("Swish", 24)
def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """X sigmoid(alpha X)."""
    if alpha == 1:
        return functional.silu(x)
    return x * torch.sigmoid(alpha * x)


@operator("Mish", 18)
def mish(x: Tensor) -> Tensor:
    """X tanh(softplus(X))."""
    return functional.mish(x)


@operator("HardSigmoid")
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """Alpha X + beta within 0 and 1."""
    return (alpha * x + beta).clamp(0, 1)


@operator("HardSwish", 14)
def hard_swish(x: Tensor) -> Tensor:
    """X times HardSigmoid with 1/6 and 1/2."""
    return functional.hardswish(x)


@operator("Softplus")
def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(X))."""
    return functional.softplus(x, threshold=40)  # from where on float64 makes no difference


@operator("Softsign")
def softsign(x: Tensor) -> Tensor:
    """X / (1 + |X|)."""
    return functional.softsign(x)


@operator("ThresholdedRelu", 10)
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """X where it is above alpha, else 0."""
    return torch.where(x > alpha, x, 0)


@operator("Shrink", 9)
@widened
def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    """X moved towards zero by bias outside of lambd, 0 inside."""
    wide = x if x.dtype.is_floating_point else x.to(torch.float64)
    moved = torch.where(wide < -lambd, wide + bias, wide - bias)
    return moved.masked_fill(wide.abs() <= lambd, 0).to(x.dtype)


@operator("SwiGLU", 28)
def swiglu(a: Tensor, b: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Swish(A) B."""
    return swish(a, alpha=alpha) * b
