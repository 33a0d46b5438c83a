"""Encode weights in blocks: some neighbours along the axis that is summed over share a scale.

Symmetric integers use the whole of their range: the element of the largest magnitude becomes the smallest integer, with
a scale of whichever sign that takes. For the integers so found, the scale of least squared error has a closed form.
`search` also tries smaller scales, which clip a little to round the rest more finely.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_PART = 1 << 18
"""Elements to encode at a time: they stay in the cache."""
_THREADS = 2
_SHRUNK = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7)
"""Parts of the full scale that `search` tries."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """How weights are kept.

    Attributes:
        low, high: smallest and largest integer.
        symmetric: whether zero stands for 0, or each block has a zero point.
    """

    low: int
    high: int
    symmetric: bool


KINDS = {
    "int4": Kind(-8, 7, True),
    "uint4": Kind(0, 15, False),
    "int8": Kind(-128, 127, True),
    "uint8": Kind(0, 255, False),
}


def encode(
    weight: np.ndarray, block: int, kind: Kind, scale_type: np.dtype, *, search: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return integers int16 [K, N] (in the range of `kind`), scales [ceil(K / block), N], and zero points or None.

    Args:
        weight: [K, N], floating-point; blocks lie along the first axis.
        block: elements that share a scale.
        kind: how they are kept.
        scale_type: type of the scales, to which they are rounded before the integers are chosen.
        search: look for better scales than those that cover the block.
    """
    rows, columns = weight.shape
    count = -(-rows // block)
    integers = np.empty((rows, columns), np.uint8 if not kind.symmetric else np.int8)
    scales = np.empty((count, columns), scale_type)
    zeros = None if kind.symmetric else np.empty((count, columns), np.uint8)

    def work(part: tuple[int, int, slice]) -> None:
        first, last, where = part
        piece = np.ascontiguousarray(weight[first * block : last * block, where], np.float32)
        full = (last - first) * block
        if len(piece) < full:  # the last block may be short; zeros change neither its extremes nor its error
            piece = np.concatenate([piece, np.zeros((full - len(piece), piece.shape[1]), np.float32)])
        found = _encode(piece.reshape(last - first, block, -1), kind, scale_type, search=search)
        kept = min(last * block, rows) - first * block
        integers[first * block : first * block + kept, where] = found[0].reshape(full, -1)[:kept]
        scales[first:last, where] = found[1]
        if zeros is not None:
            zeros[first:last, where] = found[2]

    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(work, _parts(count, columns, block)):
            pass
    return integers, scales, zeros


def decode(integers: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, block: int) -> np.ndarray:
    """Return what integers stand for, float32 [K, N]."""
    rows = len(integers)
    wide = np.repeat(scales.astype(np.float32), block, axis=0)[:rows]
    offset = 0 if zeros is None else np.repeat(zeros.astype(np.float32), block, axis=0)[:rows]
    result: np.ndarray = (integers.astype(np.float32) - offset) * wide
    return result


def _encode(
    weight: np.ndarray, kind: Kind, scale_type: np.dtype, *, search: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Encode float32 [blocks, block, N]."""
    high, low = weight.max(1), weight.min(1)
    if kind.symmetric:
        full, zeros = np.where(high > -low, high, low) / kind.low, None
    else:
        np.maximum(high, 0, out=high)
        np.minimum(low, 0, out=low)
        full = (high - low) / kind.high
        zeros = np.rint(np.divide(-low, full, out=np.zeros_like(full), where=full != 0))
    best = _round(weight, full, zeros, kind, scale_type)
    if search:
        error = _error(weight, *best, zeros)
        for share in _SHRUNK[1:]:
            moved = zeros
            if zeros is not None:
                moved = np.rint(np.divide(-low, full, out=np.zeros_like(full), where=full != 0))
            tried = _round(weight, full * np.float32(share), moved, kind, scale_type)
            found = _error(weight, *tried, moved)
            better = found < error
            error = np.where(better, found, error)
            best = np.where(better[:, None], tried[0], best[0]), np.where(better, tried[1], best[1])
    return best[0], best[1], zeros


def _round(
    weight: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, kind: Kind, scale_type: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest integers, float32, and the scales that suit them best."""
    scales = scales.astype(scale_type).astype(np.float32)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    steps = weight * inverse[:, None]
    np.rint(steps, out=steps)
    low, high = kind.low, kind.high
    if zeros is not None:
        steps += zeros[:, None]
    np.clip(steps, low, high, out=steps)
    centred = steps if zeros is None else steps - zeros[:, None]
    power = np.einsum("kbn,kbn->kn", centred, centred)
    fitted = np.divide(np.einsum("kbn,kbn->kn", centred, weight), power, out=scales.copy(), where=power != 0)
    fitted = fitted.astype(scale_type)
    unfit = ~np.isfinite(fitted) | (fitted == 0)
    return steps, np.where(unfit, scales.astype(scale_type), fitted)


def _error(weight: np.ndarray, steps: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None) -> np.ndarray:
    centred = steps if zeros is None else steps - zeros[:, None]
    wrong = weight - centred * scales.astype(np.float32)[:, None]
    found: np.ndarray = np.einsum("kbn,kbn->kn", wrong, wrong)
    return found


def _parts(count: int, columns: int, block: int) -> Iterator[tuple[int, int, slice]]:
    """Cut [count blocks, columns] into parts of `_PART` elements or a little more: whole rows where these are short."""
    wide = min(columns, max(64, _PART // block))
    each = max(1, _PART // (block * wide))
    for first in range(0, count, each):
        for start in range(0, columns, wide):
            yield first, min(first + each, count), slice(start, min(start + wide, columns))
