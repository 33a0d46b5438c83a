"""Choose the scale and the zero point of every block, and round to them.

Symmetric integers use the whole of their range: the element of the largest magnitude becomes the smallest integer, with
a scale of whichever sign that takes. For the integers so found, the scale of least squared error has a closed form,
<q, w> / <q, q>. A search also tries scales and zero points that clip a little to round the rest more finely, and then
rounds again on the best of them and fits it again, as Half-Quadratic Quantization alternates (Badri and Shaji 2023).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from graphopt.passes.quantization._block_kinds import Kind
from graphopt.passes.quantization._weights import quantize_weight, weight_scales

_SHRUNK = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7)
"""Parts of the full scale that a search tries."""
_ENDS = (1.0, 0.92, 0.84, 0.76)
"""Parts of either end of the range that a search tries where there are zero points."""
_AGAIN = 2

Found = tuple[np.ndarray, np.ndarray, np.ndarray | None]
"""Numbers [blocks, block, N], scales [blocks, N], and zero points [blocks, N] where there are any."""
Try = tuple[np.ndarray, np.ndarray | None]


def choose(weight: np.ndarray, kind: Kind, scale_type: np.dtype, *, search: bool, scratch: np.ndarray) -> Found:
    """Encode blocks.

    Args:
        weight: float32 [blocks, block, N].
        kind: how weights are kept.
        scale_type: type of the scales, to which they are rounded before the integers are chosen.
        search: look for better scales than those that cover the block.
        scratch: memory of the shape of `weight`, in which the numbers may come back.
    """
    if not kind.uniform:
        return *_coarse(weight, kind, scale_type), None
    low, high = weight.min(1), weight.max(1)
    tries = (
        _symmetric(low, high, kind, search=search) if kind.symmetric else _asymmetric(low, high, kind, search=search)
    )
    tried, zeros = next(tries)
    steps, scales = _round(weight, tried, zeros, kind, scale_type, scratch)
    if not search:
        return steps, scales, zeros
    steps, error = steps.copy(), _error(weight, steps, scales, zeros)

    def consider(tried: np.ndarray, offsets: np.ndarray | None) -> None:
        nonlocal scales, zeros, error
        numbers, fitted = _round(weight, tried, offsets, kind, scale_type, scratch)
        found = _error(weight, numbers, fitted, offsets)
        better = found < error
        np.copyto(steps, numbers, where=better[:, None])
        error = np.where(better, found, error)
        scales = np.where(better, fitted, scales)
        zeros = None if zeros is None or offsets is None else np.where(better, offsets, zeros)

    for tried, offsets in tries:
        consider(tried, offsets)
    for _ in range(_AGAIN):
        consider(scales.astype(np.float32), zeros)
    return steps, scales, zeros


def _symmetric(low: np.ndarray, high: np.ndarray, kind: Kind, *, search: bool) -> Iterator[Try]:
    """Yield scales to try, the one that covers the block first."""
    full = np.where(high > -low, high, low) / np.float32(kind.low)
    yield full, None
    if search:
        other = full * np.float32(kind.low / kind.high)  # the largest magnitude becomes the largest integer
        for share in _SHRUNK:
            if share < 1:
                yield full * np.float32(share), None
            yield other * np.float32(share), None


def _asymmetric(low: np.ndarray, high: np.ndarray, kind: Kind, *, search: bool) -> Iterator[Try]:
    """Yield scales and zero points to try, those that cover the block and 0 first."""
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    for below, above in itertools.product(_ENDS, _ENDS) if search else [(1.0, 1.0)]:
        start = low * np.float32(below)
        scales = (high * np.float32(above) - start) / np.float32(kind.high)
        yield scales, np.rint(np.divide(-start, scales, out=np.zeros_like(scales), where=scales != 0))


def _round(
    weight: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray | None,
    kind: Kind,
    scale_type: np.dtype,
    out: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest integers, float32 and in `out`, and the scales that suit them best."""
    scales = scales.astype(scale_type).astype(np.float32)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    steps = np.multiply(weight, inverse[:, None], out=out)
    np.rint(steps, out=steps)
    if zeros is None:
        np.clip(steps, kind.low, kind.high, out=steps)
        centred = steps
    else:
        steps += zeros[:, None]
        np.clip(steps, kind.low, kind.high, out=steps)
        centred = steps - zeros[:, None]
    power = np.einsum("kbn,kbn->kn", centred, centred)
    fitted = np.divide(np.einsum("kbn,kbn->kn", centred, weight), power, out=scales.copy(), where=power != 0)
    unfit = np.abs(fitted) > np.float32(np.finfo(scale_type).max)
    return steps, np.where(unfit, scales, fitted).astype(scale_type)


def _error(weight: np.ndarray, steps: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None) -> np.ndarray:
    """Return the squared error of every block, [blocks, N]."""
    wrong = steps.copy() if zeros is None else steps - zeros[:, None]
    wrong *= scales.astype(np.float32)[:, None]
    wrong -= weight
    found: np.ndarray = np.einsum("kbn,kbn->kn", wrong, wrong)
    return found


def _coarse(weight: np.ndarray, kind: Kind, scale_type: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Encode in a kind that has its scales from `_weights`: the best ones for ternary and binary, covering ones for float8."""
    blocks, size, columns = weight.shape
    rows = weight.transpose(0, 2, 1).reshape(-1, size)
    scales = weight_scales(rows, 0, None, 1.0, kind.name)
    numbers = quantize_weight(rows, scales, 0, kind.name).astype(kind.memory)
    return numbers.reshape(blocks, columns, size).transpose(0, 2, 1), scales.reshape(blocks, columns).astype(scale_type)
