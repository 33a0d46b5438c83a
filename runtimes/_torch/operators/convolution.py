"""Convolution and its transpose, of one to three dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from graphopt.runtimes._torch.operators.casting import to_float
from graphopt.runtimes._torch.operators.quantization import cast_quantized
from graphopt.runtimes._torch.table import operator
from graphopt.runtimes._torch.values import plain

_CONVOLUTIONS = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}
_TRANSPOSED = {1: torch.conv_transpose1d, 2: torch.conv_transpose2d, 3: torch.conv_transpose3d}


def paddings(
    auto_pad: str,
    pads: Sequence[int] | None,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> list[tuple[int, int]]:
    """Return what to add before and after each spatial axis, as `auto_pad` or `pads` say.

    Args:
        auto_pad: NOTSET, VALID, SAME_UPPER or SAME_LOWER.
        pads: all beginnings, then all ends.
        sizes: of the spatial axes.
        kernel, strides, dilations: of the window.
    """
    rank = len(sizes)
    if auto_pad in ("NOTSET", ""):
        whole = pads or (0,) * (2 * rank)
        return list(zip(whole[:rank], whole[rank:], strict=True))
    if auto_pad == "VALID":
        return [(0, 0)] * rank
    found = []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        missing = max((-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size, 0)
        less = missing // 2
        found.append((less, missing - less) if auto_pad == "SAME_UPPER" else (missing - less, less))
    return found


def added(x: Tensor, ends: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Return a tensor with its last axes padded."""
    return functional.pad(x, [end for pair in reversed(ends) for end in pair], value=value)


@operator("Conv")
def conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: tuple[int, ...] | None = None,
    group: int = 1,
    kernel_shape: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> Tensor:
    """Convolution of X [batch, channels, ...] with W [outputs, channels / group, ...]."""
    del kernel_shape  # the weight has it
    rank = w.ndim - 2
    dilations, strides = dilations or (1,) * rank, strides or (1,) * rank
    if auto_pad == "NOTSET" and (pads is None or pads[:rank] == pads[rank:]):
        return _CONVOLUTIONS[rank](x, w, b, strides, pads[:rank] if pads else 0, dilations, group)
    ends = paddings(auto_pad, pads, x.shape[2:], w.shape[2:], strides, dilations)
    return _CONVOLUTIONS[rank](added(x, ends), w, b, strides, 0, dilations, group)


@operator("ConvTranspose")
def conv_transpose(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: tuple[int, ...] | None = None,
    group: int = 1,
    kernel_shape: tuple[int, ...] | None = None,
    output_padding: tuple[int, ...] | None = None,
    output_shape: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> Tensor:
    """The transpose of convolution, with W [channels, outputs / group, ...]."""
    del kernel_shape
    rank = w.ndim - 2
    dilations, strides = dilations or (1,) * rank, strides or (1,) * rank
    more = list(output_padding or (0,) * rank)
    full = [
        (size - 1) * s + (k - 1) * d + 1 + o
        for size, s, k, d, o in zip(x.shape[2:], strides, w.shape[2:], dilations, more, strict=True)
    ]
    if output_shape is not None or auto_pad.startswith("SAME"):
        wanted = output_shape or [size * s for size, s in zip(x.shape[2:], strides, strict=True)]
        ends = []
        for size, want in zip(full, wanted[-rank:], strict=True):
            less, rest = (size - want) // 2, (size - want) - (size - want) // 2
            ends.append((less, rest) if auto_pad == "SAME_UPPER" else (rest, less))
    else:
        ends = paddings(auto_pad if auto_pad == "VALID" else "NOTSET", pads, full, full, strides, dilations)
    same = all(a == b >= 0 for a, b in ends) and all(
        o < max(s, d) for o, s, d in zip(more, strides, dilations, strict=True)
    )
    if same:
        return _TRANSPOSED[rank](x, w, b, strides, [a for a, _ in ends], more, group, dilations)
    whole = _TRANSPOSED[rank](x, w, None, strides, 0, 0, group, dilations)
    cropped = added(whole, [(-before, o - after) for (before, after), o in zip(ends, more, strict=True)])
    return cropped if b is None else cropped + b.reshape(-1, *(1,) * rank)


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
    """Convolution of whole numbers in 32 bits; in floats where X is whole numbers held in floats."""
    simulated = x.dtype.is_floating_point
    kind = x.dtype if simulated else torch.float64
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


@operator("CausalConvWithState", 27)
def causal_conv_with_state(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    past_state: Tensor | None = None,
    *,
    activation: str = "none",
) -> tuple[Tensor, Tensor]:
    """Depthwise convolution over time that sees the past only, and the past that the next call needs."""
    length = weight.shape[-1] - 1
    past = input.new_zeros(*input.shape[:-1], length) if past_state is None else past_state
    whole = torch.cat([past, input], -1)
    made = torch.conv1d(whole, weight, bias, groups=input.shape[1])
    made = functional.silu(made) if activation in ("silu", "swish") else made
    return made, whole[..., whole.shape[-1] - length :]
