"""Convolution of quantized tensors: exact, for float64 holds every sum of products of 8-bit numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from graphopt.runtimes._torch.operators.casting import to_float
from graphopt.runtimes._torch.operators.convolution import conv
from graphopt.runtimes._torch.operators.quantization import cast_quantized
from graphopt.runtimes._torch.table import operator
from graphopt.runtimes._torch.values import plain


def _centred(x: Tensor, zero: Tensor | None, kind: torch.dtype, axis: int) -> Tensor:
    """Return numbers less their zero point, which may differ along an axis."""
    wide = (to_float(x) if x.dtype.is_floating_point else plain(x)).to(kind)
    if zero is None:
        return wide
    offset = plain(zero).to(kind)
    return wide - (offset.reshape(()) if offset.numel() == 1 else offset.reshape(-1, *(1,) * (x.ndim - axis - 1)))


@operator("ConvInteger", 10)
def conv_integer(
    x: Tensor,
    w: Tensor,
    x_zero_point: Tensor | None = None,
    w_zero_point: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: tuple[int, ...] | None = None,
    group: int = 1,
    kernel_shape: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> Tensor:
    """Convolution of whole numbers in 32 bits; in floats where an operand is whole numbers held in floats."""
    simulated = next((t.dtype for t in (x, w) if t.dtype.is_floating_point), None)
    kind = simulated or torch.float64
    left, right = _centred(x, x_zero_point, kind, 1), _centred(w, w_zero_point, kind, 0)
    made = conv(
        left,
        right,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
    )
    return made if simulated else made.to(torch.int32)


@operator("QLinearConv", 10)
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
    dilations: tuple[int, ...] | None = None,
    group: int = 1,
    kernel_shape: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> Tensor:
    """Convolution of quantized tensors, quantized; the bias is of the products' scale."""
    left, right = _centred(x, x_zero_point, torch.float64, 1), _centred(w, w_zero_point, torch.float64, 0)
    bias = None if b is None else b.to(torch.float64)
    sums = conv(
        left,
        right,
        bias,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
    )
    scale = (x_scale * w_scale / y_scale).to(torch.float64)
    scale = scale.reshape(()) if scale.numel() == 1 else scale.reshape(-1, *(1,) * (x.ndim - 2))
    return cast_quantized(sums * scale, plain(y_zero_point).to(torch.float64).reshape(()), y_zero_point.dtype)
