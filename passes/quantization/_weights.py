"""Integer weights and biases.

Weights are symmetric, with one scale per output channel or one for all (Krishnamoorthi 2018, arXiv:1806.08342, section
3.1): zero point 0 is what the fast kernels want, and -128 stays unused so that every value has its negative. 4-bit
weights have only 16 values, and -8 is one of them. Biases are int32 on the grid of the accumulator: the scale is input
scale times weight scale.
"""

from __future__ import annotations

import numpy as np

from graphopt.passes.quantization._grid import NUMBERS, Number
from graphopt.passes.quantization._scheme import WEIGHTS

_LARGEST_BIAS = 2.0**30
"""Half of int32, which leaves the other half to the accumulated products."""

_SMALLEST_SCALE = 1e-12
"""For channels that are zero throughout."""


def number(kind: str) -> Number:
    """Return the type that keeps weights of a scheme."""
    return NUMBERS[WEIGHTS.get(kind, kind)]


def weight_scales(
    weight: np.ndarray, axis: int | None, bias: np.ndarray | None, input_scale: float, kind: str = "int8"
) -> np.ndarray:
    """Return the scale of every channel, float32 [channels], or of all of them, a scalar.

    A channel of tiny weights and a large bias gets a larger scale than its weights need, lest its bias
    overflow int32.

    Args:
        weight: float32, any rank.
        axis: the channel axis; None for one scale for all.
        bias: float32 [channels], or None.
        input_scale: scale of the activations that the weights multiply.
        kind: how weights are kept (see `_scheme.Scheme`).
    """
    rows = weight.reshape(1, -1) if axis is None else np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    scales = _SCALES.get(kind, _covering)(rows.astype(np.float64), number(kind))
    if bias is not None:
        least = np.abs(bias.astype(np.float64)) / (input_scale * _LARGEST_BIAS)
        scales = np.maximum(scales, least if axis is not None else least.max(initial=0))
    scales = np.maximum(scales, _SMALLEST_SCALE).astype(np.float32)
    return np.asarray(scales if axis is not None else scales.reshape(()))


def quantize_weight(weight: np.ndarray, scales: np.ndarray, axis: int | None, kind: str = "int8") -> np.ndarray:
    """Return the nearest integers that the type keeps, of its type and of the same shape as `weight`."""
    shape = [1] * weight.ndim
    if axis is not None:
        shape[axis] = -1
    steps = weight.astype(np.float64) / scales.astype(np.float64).reshape(shape)
    type_ = number(kind)
    if kind == "binary":
        steps = np.where(steps < 0, -1, 1)
    elif not type_.is_float:
        steps = np.rint(steps)
    if type_.bits == 8 and not type_.is_float:
        low, high = -127, 127
    else:
        low, high = type_.low - type_.zero, type_.high - type_.zero
    result: np.ndarray = (np.clip(steps, low, high) + type_.zero).astype(type_.dtype.numpy())
    return result


def quantize_bias(bias: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return the nearest int32 values, [channels], for one scale per channel or for all."""
    result: np.ndarray = np.rint(bias.astype(np.float64) / scales.astype(np.float64)).astype(np.int32)
    return result


def _covering(rows: np.ndarray, type_: Number) -> np.ndarray:
    """Return the smallest scale of each row at which nothing saturates."""
    if type_.bits == 8 and not type_.is_float:
        result: np.ndarray = np.abs(rows).max(axis=1, initial=0) / 127
        return result
    above, below = rows.max(axis=1, initial=0), -rows.min(axis=1, initial=0)
    covering: np.ndarray = np.maximum(above / (type_.high - type_.zero), below / (type_.zero - type_.low))
    return covering


def _ternary(rows: np.ndarray, type_: Number) -> np.ndarray:
    """Return the scale s of each row for which rounding to -s, 0, s errs least in squares.

    With the k largest magnitudes kept, s is their mean, and the error falls by (their sum)^2 / k; so all k are tried
    (Li et al. 2016, arXiv:1605.04711, solve this for normal weights only). Nearest rounding then keeps at least as good
    a set.
    """
    del type_
    sums = np.cumsum(-np.sort(-np.abs(rows), axis=1), axis=1)
    counts = np.arange(1, rows.shape[1] + 1)
    best = np.argmax(sums**2 / counts, axis=1)
    result: np.ndarray = sums[np.arange(len(rows)), best] / counts[best]
    return result


def _binary(rows: np.ndarray, type_: Number) -> np.ndarray:
    """Return the scale of each row for which signs err least in squares: the mean magnitude (arXiv:1603.05279)."""
    del type_
    result: np.ndarray = np.abs(rows).mean(axis=1) if rows.shape[1] else np.zeros(len(rows))
    return result


_SCALES = {"ternary": _ternary, "binary": _binary}
