"""Products of matrices."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from graphopt.runtimes._torch.operators.casting import to_float
from graphopt.runtimes._torch.operators.elementwise import add, widened
from graphopt.runtimes._torch.operators.quantization import cast_quantized
from graphopt.runtimes._torch.table import operator
from graphopt.runtimes._torch.values import plain


@widened
def _whole(*operands: Tensor, function: Callable[..., Tensor]) -> Tensor:
    """Return a product of whole numbers, which torch computes on the processor only."""
    return function(*(x.cpu() for x in operands)).to(operands[0].device)


@operator("MatMul")
def mat_mul(a: Tensor, b: Tensor) -> Tensor:
    """A B."""
    return torch.matmul(a, b) if a.dtype.is_floating_point else _whole(a, b, function=torch.matmul)


@operator("Gemm", 7)
def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803 (the attribute's name)
    transB: int = 0,  # noqa: N803
) -> Tensor:
    """Alpha A B + beta C."""
    one, other = a.T if transA else a, b.T if transB else b
    if c is None:
        return _scaled(mat_mul(one, other), alpha)
    if a.dtype.is_floating_point:
        return torch.addmm(c, one, other, beta=beta, alpha=alpha)
    made: Tensor = add(_scaled(mat_mul(one, other), alpha), _scaled(c, beta))
    return made


def _scaled(x: Tensor, factor: float) -> Tensor:
    if factor == 1:
        return x
    return x * factor if x.dtype.is_floating_point else (x.to(torch.float64) * factor).to(x.dtype)


@operator("MatMulInteger", 10)
def mat_mul_integer(
    a: Tensor, b: Tensor, a_zero_point: Tensor | None = None, b_zero_point: Tensor | None = None
) -> Tensor:
    """(A - its zero point) (B - its zero point), in 32 bits; in floats where A or B is whole numbers held in floats."""
    held = next((x.dtype for x in (a, b) if x.dtype.is_floating_point), None)
    kind = held or torch.float64  # whose sums of products of bytes are exact, and faster than those of integers
    left, right = plain(a).to(kind), plain(b).to(kind)
    if a_zero_point is not None:
        left = left - _column(plain(a_zero_point).to(kind))
    if b_zero_point is not None:
        right = right - plain(b_zero_point).to(kind)
    return torch.matmul(left, right).to(held or torch.int32)


@operator("QLinearMatMul", 10)
def q_linear_mat_mul(
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
) -> Tensor:
    """The product of quantized matrices, quantized."""

    def wide(x: Tensor) -> Tensor:
        return (to_float(x) if x.dtype.is_floating_point else plain(x)).to(torch.float64)

    left, right = wide(a) - _column(wide(a_zero_point)), wide(b) - wide(b_zero_point)
    ratio = torch.matmul(left, right) * (_column(wide(a_scale)) * wide(b_scale)) / _column(wide(y_scale))
    return cast_quantized(ratio, _column(wide(y_zero_point)), y_zero_point.dtype)


def _column(x: Tensor) -> Tensor:
    """Return one parameter per row in a shape that broadcasts against the rows of a matrix."""
    return x.unsqueeze(-1) if x.ndim == 1 and x.numel() > 1 else x


@operator("Einsum", 12)
def einsum(*inputs: Tensor, equation: str) -> Tensor:
    """A sum of products, by its indices."""
    function = functools.partial(torch.einsum, equation)
    return function(*inputs) if inputs[0].dtype.is_floating_point else _whole(*inputs, function=function)


@operator("Det", 11)
def determinant(x: Tensor) -> Tensor:
    """Determinants of matrices."""
    return torch.linalg.det(x) if x.dtype.itemsize > 2 else torch.linalg.det(x.to(torch.float32)).to(x.dtype)
