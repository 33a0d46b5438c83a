"""ONNX Runtime's contrib operators on weights of few bits, quantized in blocks; differentiable in all that is a float."""

from __future__ import annotations

import torch
from torch import Tensor

from graphopt.runtimes._torch.operators.quantization import dequantize_linear
from graphopt.runtimes._torch.table import CONTRIB, operator
from graphopt.runtimes._torch.values import plain


def _unpacked(x: Tensor, bits: int) -> Tensor:
    """Return the numbers that bytes on the last axis hold, the lowest bits first."""
    if bits == 8:
        return x
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=x.device)
    return (x.unsqueeze(-1) >> shifts & 2**bits - 1).flatten(-2)


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
    weight_prepacked: int = 0,
) -> Tensor:
    """A times a matrix [N, K] in blocks of few bits, transposed."""
    del accuracy_level  # how others round A
    if weight_prepacked:
        raise ValueError("MatMulNBits with weights in the order of a device is not computed")
    blocks = -(-K // block_size)
    scales = scales.reshape(N, blocks)
    if zero_points is None:
        zeros = torch.full_like(scales, 2 ** (bits - 1))
    elif zero_points.dtype.is_floating_point:
        zeros = zero_points.reshape(N, blocks)
    else:
        zeros = _unpacked(zero_points.reshape(N, -1), bits)[:, :blocks].to(scales.dtype)
    codes = _unpacked(b.reshape(N, -1), bits)[:, :K].to(scales.dtype)
    if g_idx is None:
        scales, zeros = (x.repeat_interleave(block_size, 1)[:, :K] for x in (scales, zeros))
    else:  # the block of each column
        scales, zeros = scales[:, g_idx[:K]], zeros[:, g_idx[:K]]
    weight = ((codes - zeros) * scales).to(a.dtype)
    return torch.nn.functional.linear(a, weight, bias)


@operator("GatherBlockQuantized", 1, CONTRIB)
def gather_block_quantized(
    data: Tensor,
    indices: Tensor,
    scales: Tensor,
    zero_points: Tensor | None = None,
    *,
    bits: int = 4,
    block_size: int = 128,
    gather_axis: int = 0,
    quantize_axis: int = 1,
) -> Tensor:
    """Slices of a tensor that is quantized in blocks, as floats."""
    axis, blocked = gather_axis % data.ndim, quantize_axis % data.ndim
    if axis == blocked or data.dtype.is_floating_point:
        raise ValueError("GatherBlockQuantized along the blocks, or of floats, is not computed")
    packed = data.dtype == torch.uint8
    if packed and zero_points is None:
        zero_points = torch.full_like(scales, 2 ** (bits - 1), dtype=torch.uint8)
    elif packed and zero_points is not None:
        zero_points = _unpacked(zero_points, bits)[tuple(slice(n) for n in scales.shape)]
    places = indices.reshape(-1) % data.shape[axis]
    codes = plain(data).index_select(axis, places)
    codes = _unpacked(codes, bits) if packed else codes
    scale = scales.index_select(axis, places)
    zero = None if zero_points is None else plain(zero_points).index_select(axis, places)
    made = dequantize_linear(codes, scale, zero, axis=blocked, block_size=block_size)
    return made.reshape(*made.shape[:axis], *indices.shape, *made.shape[axis + 1 :])
