"""ONNX Runtime's contrib operators on quantized tensors: dequantize, compute, quantize."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from graphopt.runtimes._torch.operators import (
    contrib_attention,
    integer_convolution,
    joining,
    matrix,
    pooling,
)
from graphopt.runtimes._torch.operators.quantization import dequantize_linear, dynamic_quantize_linear, quantize_linear
from graphopt.runtimes._torch.table import CONTRIB, operator

operator("QuantizeLinear", 1, CONTRIB)(quantize_linear)
operator("DequantizeLinear", 1, CONTRIB)(dequantize_linear)


def _zero(zero: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros((), dtype=like.dtype, device=like.device) if zero is None else zero


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
        made = compute(dequantize_linear(a, a_scale, a_zero_point), dequantize_linear(b, b_scale, b_zero_point))
        return quantize_linear(made, c_scale, _zero(c_zero_point, a))


_of_two("QLinearAdd", torch.add)
_of_two("QLinearMul", torch.mul)


@operator("QLinearSigmoid", 1, CONTRIB)
def q_linear_sigmoid(
    x: Tensor, x_scale: Tensor, x_zero_point: Tensor | None, y_scale: Tensor, y_zero_point: Tensor | None = None
) -> Tensor:
    """Sigmoid of a quantized tensor, quantized."""
    return quantize_linear(torch.sigmoid(dequantize_linear(x, x_scale, x_zero_point)), y_scale, _zero(y_zero_point, x))


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
    made = torch.nn.functional.leaky_relu(dequantize_linear(x, x_scale, x_zero_point), alpha)
    return quantize_linear(made, y_scale, _zero(y_zero_point, x))


@operator("QLinearSoftmax", 1, CONTRIB)
def q_linear_softmax(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    y_scale: Tensor,
    y_zero_point: Tensor,
    *,
    axis: int | None = None,
    opset: int,
) -> Tensor:
    """Softmax of a quantized tensor, quantized; before opset 13 over all axes from one on."""
    wide = dequantize_linear(x, x_scale, x_zero_point)
    if opset < 13:
        made = wide.flatten(1 if axis is None else axis % wide.ndim).softmax(-1).reshape(wide.shape)
    else:
        made = wide.softmax(-1 if axis is None else axis)
    return quantize_linear(made, y_scale, y_zero_point)


@operator("QLinearGlobalAveragePool", 1, CONTRIB)
def q_linear_global_average_pool(
    x: Tensor, x_scale: Tensor, x_zero_point: Tensor, y_scale: Tensor, y_zero_point: Tensor, *, channels_last: int = 0
) -> Tensor:
    """The mean of every channel of a quantized tensor, quantized."""
    wide = dequantize_linear(x, x_scale, x_zero_point)
    axes = list(range(1, x.ndim - 1)) if channels_last else list(range(2, x.ndim))
    return quantize_linear(wide.mean(axes, keepdim=True), y_scale, y_zero_point)


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
    wide = dequantize_linear(x, x_scale, x_zero_point)
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
    return quantize_linear(made.movedim(1, -1) if channels_last else made, y_scale, _zero(y_zero_point, x))


@operator("QLinearConcat", 1, CONTRIB)
def q_linear_concat(y_scale: Tensor, y_zero_point: Tensor, *inputs: Tensor, axis: int) -> Tensor:
    """Quantized tensors one after the other; each comes with its scale and zero point."""
    parts = [dequantize_linear(*inputs[i : i + 3]) for i in range(0, len(inputs), 3)]
    return quantize_linear(joining.concat(*parts, axis=axis), y_scale, y_zero_point)


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
    left = dequantize_linear(a, a_scale, a_zero_point)
    right = dequantize_linear(b, b_scale, b_zero_point, axis=0 if transB else 1)
    bias = None if c is None else c.to(torch.float64) * (a_scale * b_scale).to(torch.float64) * alpha
    made = matrix.gemm(left.double(), right.double(), bias, alpha=alpha, transA=transA, transB=transB).to(a_scale.dtype)
    return made if y_scale is None else quantize_linear(made, y_scale, y_zero_point)


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
    codes, scale, zero = dynamic_quantize_linear(a)
    return mat_mul_integer_to_float(codes, b, scale, b_scale, zero, b_zero_point, bias)


@operator("QAttention", 1, CONTRIB)
def q_attention(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    input_scale: Tensor,
    weight_scale: Tensor,
    mask_index: Tensor | None = None,
    input_zero_point: Tensor | None = None,
    weight_zero_point: Tensor | None = None,
    past: Tensor | None = None,
    *,
    do_rotary: int = 0,
    mask_filter_value: float = -10000.0,
    num_heads: int,
    past_present_share_buffer: int = 0,
    scale: float = 0.0,
    unidirectional: int = 0,
) -> tuple[Tensor, Tensor]:
    """Attention whose projection is of quantized matrices."""
    if do_rotary or past_present_share_buffer:
        raise ValueError("QAttention that rotates or writes into its cache is not computed")
    made = mat_mul_integer_to_float(input, weight, input_scale, weight_scale, input_zero_point, weight_zero_point, bias)
    parts = made.chunk(3, -1)
    return contrib_attention.self_attention(
        *parts,
        num_heads=num_heads,
        mask_index=mask_index,
        past=past,
        mask_filter_value=mask_filter_value,
        scale=scale,
        unidirectional=unidirectional,
    )


@operator("QLinearConv", 1, CONTRIB)
def q_linear_conv(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    channels_last: int = 0,
    dilations: tuple[int, ...] | None = None,
    group: int = 1,
    kernel_shape: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> Tensor:
    """Convolution of quantized tensors, quantized; channels perhaps last."""
    made: Tensor = integer_convolution.q_linear_conv(
        x.movedim(-1, 1) if channels_last else x,
        x_scale,
        x_zero_point,
        w,
        w_scale,
        w_zero_point,
        y_scale,
        y_zero_point,
        b,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
    )
    return made.movedim(1, -1) if channels_last else made


@operator("NhwcMaxPool", 1, CONTRIB)
def nhwc_max_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: tuple[int, ...] | None = None,
    kernel_shape: tuple[int, ...],
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> Tensor:
    """The largest element of each window; channels last."""
    made: Tensor = pooling.max_pool(
        x.movedim(-1, 1),
        auto_pad=auto_pad,
        ceil_mode=ceil_mode,
        dilations=dilations,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
        outputs_=1,
    )
    return made.movedim(1, -1)


@operator("QLinearWhere", 1, CONTRIB)
def q_linear_where(
    condition: Tensor,
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    y: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
    z_scale: Tensor,
    z_zero_point: Tensor,
) -> Tensor:
    """X where the condition holds, else Y, of quantized tensors, quantized."""
    left, right = dequantize_linear(x, x_scale, x_zero_point), dequantize_linear(y, y_scale, y_zero_point)
    return quantize_linear(torch.where(condition, left, right), z_scale, z_zero_point)
