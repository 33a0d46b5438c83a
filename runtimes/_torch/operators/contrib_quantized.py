"""ONNX Runtime's contrib operators on quantized tensors: dequantize, compute, quantize."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from graphopt.runtimes._torch.operators import joining, matrix, pooling, quantization
from graphopt.runtimes._torch.table import CONTRIB, operator

operator("QuantizeLinear", 1, CONTRIB)(quantization.quantize_linear)
operator("DequantizeLinear", 1, CONTRIB)(quantization.dequantize_linear)

_wide = quantization.dequantize_linear
_narrow = quantization.quantize_linear


def _of_two(name: str, compute: Callable[[Tensor, Tensor], Tensor]) -> None:
    @operator(name, 1, CONTRIB)
    def both(
        a: Tensor,
        a_scale: Tensor,
        a_zero_point: Tensor | None,
        b: Tensor,
        b_scale: Tensor,
        b_zero_point: Tensor | None,
        c_scale: Tensor,
        c_zero_point: Tensor | None = None,
    ) -> Tensor:
        """An operation of two quantized tensors, quantized."""
        zero = c_zero_point if c_zero_point is not None else torch.zeros((), dtype=a.dtype)
        return _narrow(compute(_wide(a, a_scale, a_zero_point), _wide(b, b_scale, b_zero_point)), c_scale, zero)


_of_two("QLinearAdd", torch.add)
_of_two("QLinearMul", torch.mul)


def _zero(zero: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros((), dtype=like.dtype) if zero is None else zero


@operator("QLinearSigmoid", 1, CONTRIB)
def q_linear_sigmoid(
    x: Tensor, x_scale: Tensor, x_zero_point: Tensor | None, y_scale: Tensor, y_zero_point: Tensor | None = None
) -> Tensor:
    """Sigmoid of a quantized tensor, quantized."""
    return _narrow(torch.sigmoid(_wide(x, x_scale, x_zero_point)), y_scale, _zero(y_zero_point, x))


@operator("QLinearLeakyRelu", 1, CONTRIB)
def q_linear_leaky_relu(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    y_scale: Tensor,
    y_zero_point: Tensor | None = None,
    *,
    alpha: float = 0.01,
) -> Tensor:
    """LeakyRelu of a quantized tensor, quantized."""
    made = torch.nn.functional.leaky_relu(_wide(x, x_scale, x_zero_point), alpha)
    return _narrow(made, y_scale, _zero(y_zero_point, x))


@operator("QLinearSoftmax", 1, CONTRIB)
def q_linear_softmax(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    y_scale: Tensor,
    y_zero_point: Tensor,
    *,
    axis: int = -1,
    opset: int,
) -> Tensor:
    """Softmax of a quantized tensor, quantized; before opset 13 over all axes from one on."""
    wide = _wide(x, x_scale, x_zero_point)
    if opset < 13:
        made = wide.reshape(*wide.shape[: axis % wide.ndim], -1).softmax(-1).reshape(wide.shape)
    else:
        made = wide.softmax(axis)
    return _narrow(made, y_scale, y_zero_point)


@operator("QLinearGlobalAveragePool", 1, CONTRIB)
def q_linear_global_average_pool(
    x: Tensor, x_scale: Tensor, x_zero_point: Tensor, y_scale: Tensor, y_zero_point: Tensor, *, channels_last: int = 0
) -> Tensor:
    """The mean of every channel of a quantized tensor, quantized."""
    wide = _wide(x, x_scale, x_zero_point)
    axes = list(range(1, x.ndim - 1)) if channels_last else list(range(2, x.ndim))
    return _narrow(wide.mean(axes, keepdim=True), y_scale, y_zero_point)


@operator("QLinearAveragePool", 1, CONTRIB)
def q_linear_average_pool(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    y_scale: Tensor,
    y_zero_point: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    channels_last: int = 0,
    count_include_pad: int = 0,
    kernel_shape: tuple[int, ...],
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> Tensor:
    """The mean of each window of a quantized tensor, quantized."""
    wide = _wide(x, x_scale, x_zero_point)
    wide = wide.movedim(-1, 1) if channels_last else wide
    made = pooling.average_pool(
        wide,
        kernel_shape=kernel_shape,
        auto_pad=auto_pad,
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
        pads=pads,
        strides=strides,
    )
    return _narrow(made.movedim(1, -1) if channels_last else made, y_scale, _zero(y_zero_point, x))


@operator("QLinearConcat", 1, CONTRIB)
def q_linear_concat(y_scale: Tensor, y_zero_point: Tensor, *inputs: Tensor, axis: int) -> Tensor:
    """Quantized tensors one after the other; each comes with its scale and zero point."""
    parts = [_wide(*inputs[i : i + 3]) for i in range(0, len(inputs), 3)]
    return _narrow(joining.concat(*parts, axis=axis), y_scale, y_zero_point)


@operator("QGemm", 1, CONTRIB)
def q_gemm(
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor,
    c: Tensor | None = None,
    y_scale: Tensor | None = None,
    y_zero_point: Tensor | None = None,
    *,
    alpha: float = 1.0,
    transA: int = 0,  # noqa: N803 (the attribute's name)
    transB: int = 0,  # noqa: N803
) -> Tensor:
    """Gemm of quantized matrices, quantized if a scale is given; C is of the products' scale."""
    left = _wide(a, a_scale, a_zero_point)
    right = _wide(b, b_scale, b_zero_point, axis=0 if transB else 1)
    bias = None if c is None else c.to(torch.float64) * (a_scale * b_scale).to(torch.float64) * alpha
    made = matrix.gemm(left.double(), right.double(), bias, alpha=alpha, transA=transA, transB=transB).to(a_scale.dtype)
    return made if y_scale is None else _narrow(made, y_scale, y_zero_point)


@operator("MatMulIntegerToFloat", 1, CONTRIB)
def mat_mul_integer_to_float(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero_point: Tensor | None = None,
    b_zero_point: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The product of quantized matrices as floats."""
    made = matrix.mat_mul_integer(a, b, a_zero_point, b_zero_point).to(a_scale.dtype) * (a_scale * b_scale)
    return made if bias is None else made + bias


@operator("DynamicQuantizeMatMul", 1, CONTRIB)
def dynamic_quantize_mat_mul(
    a: Tensor, b: Tensor, b_scale: Tensor, b_zero_point: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """The product of a matrix, quantized on the way, and a quantized one."""
    codes, scale, zero = quantization.dynamic_quantize_linear(a)
    return mat_mul_integer_to_float(codes, b, scale, b_scale, zero, b_zero_point, bias)


@operator("MatMulNBits", 1, CONTRIB)
def mat_mul_n_bits(
    a: Tensor,
    b: Tensor,
    scales: Tensor,
    zero_points: Tensor | None = None,
    g_idx: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    K: int,  # noqa: N803 (the attributes' names)
    N: int,  # noqa: N803
    accuracy_level: int = 0,
    bits: int = 4,
    block_size: int,
) -> Tensor:
    """A times a matrix [N, K] in blocks of few bits, transposed."""
    del accuracy_level  # how others round A
    if g_idx is not None:
        raise ValueError("MatMulNBits with an order of its own (g_idx) is not computed")
    blocks = -(-K // block_size)
    codes = _unpacked(b.reshape(N, blocks, -1), bits).to(scales.dtype)
    if zero_points is None:
        zeros: Tensor = scales.new_full((N, blocks, 1), 2 ** (bits - 1))
    elif zero_points.dtype.is_floating_point:
        zeros = zero_points.reshape(N, blocks, 1)
    else:
        zeros = _unpacked(zero_points.reshape(N, -1), bits)[:, :blocks, None].to(scales.dtype)
    matrix_ = ((codes - zeros) * scales.reshape(N, blocks, 1)).reshape(N, -1)[:, :K].to(a.dtype)
    made = a @ matrix_.T
    return made if bias is None else made + bias


def _unpacked(x: Tensor, bits: int) -> Tensor:
    """Return the numbers in bytes, the lowest bits first."""
    if bits == 8:
        return x
    parts = [(x >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    return torch.stack(parts, -1).flatten(-2)
