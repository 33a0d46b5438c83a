"""QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear, on real integers and without gradients.

Where a gradient has to pass, `graphopt.runtimes._torch.quantizers` puts a simulation in their place, which also rests on
`spread` and `rounded`.
"""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import Tensor

from graphopt.runtimes._torch.table import operator
from graphopt.runtimes._torch.values import TYPES, limits, plain, tagged


def spread(parameter: Tensor, shape: torch.Size, axis: int, block: int) -> Tensor:
    """Shape a scale or zero point so that it broadcasts against the tensor that it belongs to.

    Args:
        parameter: one number, one per index of `axis`, or with `block` one per so many indices of `axis`.
        shape: of the quantized tensor.
        axis: of the quantized tensor.
        block: numbers on `axis` that share a parameter, or 0.
    """
    if parameter.numel() == 1 and not block:
        return plain(parameter).reshape(())
    if block:
        whole = plain(parameter).repeat_interleave(block, axis)
        return whole.narrow(axis, 0, shape[axis])  # the last block may be shorter
    sizes = [1] * len(shape)
    sizes[axis] = parameter.numel()
    return plain(parameter).reshape(sizes)


def rounded(x: Tensor, dtype: torch.dtype, low: float, high: float) -> Tensor:
    """Return the nearest numbers of a type, as floats: whole ones (ties to even) or floats of eight bits, saturated."""
    if dtype.is_floating_point:
        return x.clamp(low, high).to(dtype).to(x.dtype)
    return x.round().clamp(low, high)


def bounds(dtype: torch.dtype) -> tuple[float, float]:
    """Return the smallest and largest finite number of a type."""
    if dtype.is_floating_point:
        most = 6.0 if dtype == torch.float4_e2m1fn_x2 else torch.finfo(dtype).max
        return -most, most
    return limits(dtype)


def quantized_type(zero: Tensor | None, output_dtype: int) -> torch.dtype:
    """Return what QuantizeLinear quantizes to."""
    if output_dtype:
        return TYPES[_data_type(output_dtype)]
    return torch.uint8 if zero is None else zero.dtype


def _data_type(number: int) -> ir.DataType:

    return ir.DataType(number)


@operator("QuantizeLinear", 10)
def quantize_linear(
    x: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Tensor:
    """Saturate(round(X / scale) + zero point)."""
    dtype = quantized_type(y_zero_point, output_dtype)
    kind = TYPES[_data_type(precision)] if precision else y_scale.dtype
    kind = kind if kind.is_floating_point and kind.itemsize >= 2 else torch.float32
    scale = spread(y_scale, x.shape, axis % max(x.ndim, 1), block_size).to(kind)
    ratio = (x.to(kind) / scale).to(torch.float32)
    zero = 0.0
    if y_zero_point is not None and not dtype.is_floating_point:
        zero = spread(y_zero_point, x.shape, axis % max(x.ndim, 1), block_size).to(ratio.dtype)
    return cast_quantized(ratio, zero, dtype, saturate)


def cast_quantized(ratio: Tensor, zero: Tensor | float, dtype: torch.dtype, saturate: int = 1) -> Tensor:
    """Round numbers to a type, the zero point added after rounding."""
    if not dtype.is_floating_point:
        low, high = limits(dtype)
        return tagged((ratio.round() + zero).clamp(low, high), dtype)
    from graphopt.runtimes._torch.operators.casting import to_float8

    return to_float8(ratio, dtype, saturate)


@operator("DequantizeLinear", 10)
def dequantize_linear(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    """(X - zero point) * scale."""
    from graphopt.runtimes._torch.operators.casting import to_float

    kind = TYPES[_data_type(output_dtype)] if output_dtype else x_scale.dtype
    axis = axis % max(x.ndim, 1)
    scale = spread(x_scale, x.shape, axis, block_size)
    scale = to_float(scale) if scale.dtype.itemsize < 2 else scale
    numbers = to_float(x) if x.dtype.is_floating_point else plain(x).to(torch.int64)
    if x_zero_point is not None and not x.dtype.is_floating_point:
        numbers = numbers - spread(x_zero_point, x.shape, axis, block_size).to(torch.int64)
    return (numbers.to(scale.dtype) * scale).to(kind)


@operator("DynamicQuantizeLinear", 11)
def dynamic_quantize_linear(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize to uint8 over the range of X, which is made to hold zero; returns Y, scale and zero point."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = (-low / scale).round().clamp(0, 255)
    return ((x / scale).round() + zero).clamp(0, 255).to(torch.uint8), scale, zero.to(torch.uint8)
