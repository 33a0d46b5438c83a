"""Products of matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from graphopt.runtimes._torch.operators.quantization import cast_quantized
from graphopt.runtimes._torch.table import operator
from graphopt.runtimes._torch.values import plain


@operator("MatMul")
def mat_mul(a: Tensor, b: Tensor) -> Tensor:
    """A B."""
    return torch.matmul(a, b)


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
    if not a.dtype.is_floating_point:
        made = (alpha * (one.to(torch.float64) @ other.to(torch.float64))).to(a.dtype)
        return made if c is None else (made + (beta * c).to(a.dtype))
    if c is None:
        made = one @ other
        return made if alpha == 1 else alpha * made
    if c.ndim < 3 and c.device == a.device:
        return torch.addmm(c, one, other, beta=beta, alpha=alpha)
    return alpha * (one @ other) + beta * c


@operator("MatMulInteger", 10)
def mat_mul_integer(
    a: Tensor, b: Tensor, a_zero_point: Tensor | None = None, b_zero_point: Tensor | None = None
) -> Tensor:
    """(A - its zero point) (B - its zero point), in 32 bits; in floats where A is whole numbers held in floats."""
    kind = a.dtype if a.dtype.is_floating_point else torch.int32
    left, right = plain(a).to(kind), plain(b).to(kind)
    if a_zero_point is not None:
        zero = plain(a_zero_point).to(kind)
        left = left - (zero.unsqueeze(-1) if zero.ndim else zero)
    if b_zero_point is not None:
        right = right - plain(b_zero_point).to(kind)
    return torch.matmul(left, right)


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
    from graphopt.runtimes._torch.operators.casting import to_float

    def wide(x: Tensor) -> Tensor:
        return (to_float(x) if x.dtype.is_floating_point else plain(x)).to(torch.float64)

    left, right = wide(a) - _column(wide(a_zero_point)), wide(b) - wide(b_zero_point)
    scale = _column(a_scale.to(torch.float64)) * b_scale.to(torch.float64) / y_scale.to(torch.float64)
    return cast_quantized(torch.matmul(left, right) * scale, wide(y_zero_point), y_zero_point.dtype)


def _column(x: Tensor) -> Tensor:
    """Return one parameter per row in a shape that broadcasts against the rows of a matrix."""
    return x.unsqueeze(-1) if x.ndim and x.numel() > 1 else x.reshape(())


@operator("Einsum", 12)
def einsum(*inputs: Tensor, equation: str) -> Tensor:
    """A sum of products, by its indices."""
    return torch.einsum(equation.replace(" ", ""), *inputs)


@operator("Det", 11)
def determinant(x: Tensor) -> Tensor:
    """Determinants of matrices."""
    return torch.linalg.det(x)
