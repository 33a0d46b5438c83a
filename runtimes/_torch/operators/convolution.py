"""Convolution and its transpose, of one to three dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from graphopt.runtimes._torch.table import operator

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
    if rank not in _CONVOLUTIONS:
        raise ValueError(f"Conv over {rank} spatial axes is not computed; it can be over 1 to 3")
    dilations, strides = dilations or (1,) * rank, strides or (1,) * rank
    if auto_pad == "NOTSET" and (pads is None or pads[:rank] == pads[rank:]):
        return _CONVOLUTIONS[rank](x, w, b, strides, pads[:rank] if pads else 0, dilations, group)
    ends = paddings(auto_pad, pads, x.shape[2:], w.shape[2:], strides, dilations)
    if all(before == after for before, after in ends):
        return _CONVOLUTIONS[rank](x, w, b, strides, [before for before, _ in ends], dilations, group)
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
    if rank not in _TRANSPOSED:
        raise ValueError(f"ConvTranspose over {rank} spatial axes is not computed; it can be over 1 to 3")
    dilations, strides = dilations or (1,) * rank, strides or (1,) * rank
    more = list(output_padding or (0,) * rank)
    ends = paddings("NOTSET", pads, x.shape[2:], w.shape[2:], strides, dilations)
    if auto_pad != "NOTSET" or output_shape is not None:
        full = [
            (size - 1) * s + (k - 1) * d + 1 + o
            for size, s, k, d, o in zip(x.shape[2:], strides, w.shape[2:], dilations, more, strict=True)
        ]
        wanted = output_shape or full
        if output_shape is None and auto_pad != "VALID":
            wanted = [size * s for size, s in zip(x.shape[2:], strides, strict=True)]
        ends = []
        for i, (size, want) in enumerate(zip(full, wanted[-rank:], strict=True)):
            less, rest = max(size - want, 0) // 2, -(-max(size - want, 0) // 2)
            ends.append((less, rest) if auto_pad == "SAME_UPPER" else (rest, less))
            more[i] += max(want - size, 0) if output_shape else 0
    same = all(a == b >= 0 for a, b in ends) and all(
        o < max(s, d) for o, s, d in zip(more, strides, dilations, strict=True)
    )
    if same:
        return _TRANSPOSED[rank](x, w, b, strides, [a for a, _ in ends], more, group, dilations)
    whole = _TRANSPOSED[rank](x, w, None, strides, 0, 0, group, dilations)
    cropped = added(whole, [(-before, o - after) for (before, after), o in zip(ends, more, strict=True)])
    return cropped if b is None else cropped + b.reshape(-1, *(1,) * rank)


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
    if activation not in ("none", "silu", "swish"):
        raise ValueError(f"CausalConvWithState with activation '{activation}' is not computed")
    length = weight.shape[-1] - 1
    past = input.new_zeros(*input.shape[:-1], length) if past_state is None else past_state
    whole = torch.cat([past, input], -1)
    made = torch.conv1d(whole, weight, bias, groups=input.shape[1])
    made = made if activation == "none" else functional.silu(made)
    return made, whole[..., whole.shape[-1] - length :]
