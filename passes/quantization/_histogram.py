"""Histograms of float32 tensors whose buckets cover every number there is.

The upper 16 bits of a float32 are a bfloat16: sign, exponent, 7 bits of fraction. They are the bucket. So a bucket is at
most 1/128 of its numbers wide, there are 65,536 of them whatever comes, nothing is read twice when the range grows, and
histograms of parts add up to the histogram of the whole, exactly.
"""

from __future__ import annotations

import dataclasses
import sys

import numpy as np

_BUCKETS = 1 << 16
_MAGNITUDE = 0x7FFF
"""The bits of a bucket beside its sign."""
_INFINITE = 0x7F80
"""The first bucket of magnitudes that are infinite or no numbers."""
_PIECE = 1 << 17
"""Elements to count at a time: what they widen to stays in the cache."""
_UPPER = 1 if sys.byteorder == "little" else 0
_LARGEST = float(np.finfo(np.float32).max)


class Histogram:
    """Counts of the elements of a tensor, of which only the buckets that are not empty are kept."""

    def __init__(self) -> None:
        self._buckets = np.zeros(0, np.uint16)
        self._counts = np.zeros(0, np.int64)

    def add(self, array: np.ndarray) -> tuple[float, float]:
        """Count the elements of a float32 array of any shape, not empty; return the smallest and the largest, or NaN."""
        flat = np.ascontiguousarray(array, np.float32).reshape(-1)
        upper = flat.view(np.uint16)[_UPPER::2]
        counts = np.zeros(_BUCKETS, np.int64)
        counts[self._buckets] = self._counts
        low, high = np.float32(np.inf), np.float32(-np.inf)
        for start in range(0, len(flat), _PIECE):
            piece = slice(start, start + _PIECE)
            counts += np.bincount(upper[piece], minlength=_BUCKETS)
            low, high = np.minimum(low, flat[piece].min()), np.maximum(high, flat[piece].max())
        self._buckets = np.flatnonzero(counts).astype(np.uint16)
        self._counts = counts[self._buckets]
        return float(low), float(high)

    @property
    def is_finite(self) -> bool:
        """Whether every element was a finite number, and there was one."""
        return bool(self._buckets.size and ((self._buckets & _MAGNITUDE) < _INFINITE).all())

    def masses(self, low: float, high: float) -> Masses:
        """Return what was counted, all of it finite, in ascending order, with buckets cut at the exact extremes.

        Magnitudes below 2^-133 have a bucket of their own, which counts as zero.
        """
        magnitudes = (self._buckets & _MAGNITUDE).astype(np.uint32)
        inner = (magnitudes << 16).view(np.float32).astype(np.float64)
        outer = np.minimum(((magnitudes + 1) << 16).view(np.float32).astype(np.float64), _LARGEST)
        outer[magnitudes == 0] = 0.0
        negative = self._buckets > _MAGNITUDE
        starts, ends = np.where(negative, -outer, inner), np.where(negative, -inner, outer)
        order = np.argsort(starts, kind="stable")
        starts, ends = np.clip(starts[order], low, high), np.clip(ends[order], low, high)
        return Masses(starts, ends, self._counts[order].astype(np.float64))


@dataclasses.dataclass(frozen=True)
class Masses:
    """How many elements lie between which numbers; they count as spread evenly from start to end.

    Attributes:
        starts, ends: of the buckets, ascending, [buckets]; equal where all elements are the same number.
        counts: elements in each.
    """

    starts: np.ndarray
    ends: np.ndarray
    counts: np.ndarray

    def where(self, chosen: np.ndarray) -> Masses:
        """Return some of the buckets, given a mask [buckets]."""
        return Masses(self.starts[chosen], self.ends[chosen], self.counts[chosen])

    def below(self, values: np.ndarray) -> np.ndarray:
        """Return how many elements lie below each value."""
        sums = np.concatenate([[0.0], np.cumsum(self.counts)])
        index = np.maximum(np.searchsorted(self.starts, values, "right") - 1, 0)
        start, width = self.starts[index], self.ends[index] - self.starts[index]
        share = np.divide(values - start, width, out=(values > start).astype(np.float64), where=width > 0)
        found: np.ndarray = sums[index] + np.clip(share, 0, 1) * self.counts[index]
        return found

    def quantile(self, share: float) -> float:
        """Return the number below which a share of the elements lies."""
        sums = np.cumsum(self.counts)
        index = min(int(np.searchsorted(sums, share * sums[-1])), len(sums) - 1)
        inside = 1 - (sums[index] - share * sums[-1]) / self.counts[index]
        return float(self.starts[index] + inside * (self.ends[index] - self.starts[index]))
