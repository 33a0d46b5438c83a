"""Integer weights and biases.

Weights are symmetric int8 with one scale per output channel (Krishnamoorthi 2018, arXiv:1806.08342, section
3.1): zero point 0 is what the fast kernels want, and -128 stays unused so that every value has its negative.
Biases are int32 on the grid of the accumulator: the scale is input scale times weight scale.
"""

from __future__ import annotations

import numpy as np

_LARGEST_BIAS = 2.0**30
"""Half of int32, which leaves the other half to the accumulated products."""

_SMALLEST_SCALE = 1e-12
"""For channels that are zero throughout."""


def weight_scales(weight: np.ndarray, axis: int, bias: np.ndarray | None, input_scale: float) -> np.ndarray:
    """Return the scale of every channel, float32 [channels].

    A channel of tiny weights and a large bias gets a larger scale than its weights need, lest its bias
    overflow int32.

    Args:
        weight: float32, any rank.
        axis: the channel axis.
        bias: float32 [channels], or None.
        input_scale: scale of the activations that the weights multiply.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scales = np.abs(weight).max(axis=others, initial=0).astype(np.float64) / 127
    if bias is not None:
        scales = np.maximum(scales, np.abs(bias.astype(np.float64)) / (input_scale * _LARGEST_BIAS))
    result: np.ndarray = np.maximum(scales, _SMALLEST_SCALE).astype(np.float32)
    return result


def quantize_weight(weight: np.ndarray, scales: np.ndarray, axis: int) -> np.ndarray:
    """Return the nearest int8 values in -127..127, of the same shape as `weight`."""
    shape = [1] * weight.ndim
    shape[axis] = -1
    steps = np.rint(weight.astype(np.float64) / scales.astype(np.float64).reshape(shape))
    result: np.ndarray = steps.astype(np.int8)
    return result


def quantize_bias(bias: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return the nearest int32 values, [channels], for one scale per channel."""
    result: np.ndarray = np.rint(bias.astype(np.float64) / scales.astype(np.float64)).astype(np.int32)
    return result
