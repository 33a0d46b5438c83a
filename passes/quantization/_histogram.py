"""Histograms of float32 tensors whose buckets cover every number there is.

The upper 16 bits of a float32 are a bfloat16: sign, exponent, 7 bits of fraction. They are the bucket. So a bucket is at
most 1/128 of its numbers wide, the histogram has the same 65,536 buckets whatever comes, nothing is read twice when the
range grows, and histograms of parts add up to the histogram of the whole, exactly.
"""

from __future__ import annotations

import dataclasses
import sys

import numpy as np

_BUCKETS = 1 << 16
_INFINITE = 0x7F80
"""The first bucket of magnitudes that are infinite or no numbers."""
_PIECE = 1 << 16
"""Elements to count at a time: what they widen to stays in the cache."""
_UPPER = 1 if sys.byteorder == "little" else 0


def extremes(array: np.ndarray) -> tuple[float, float]:
    """Return the smallest and the largest element that is a number."""
    return float(np.fmin.reduce(array, axis=None)), float(np.fmax.reduce(array, axis=None))


class Histogram:
    """Counts of the elements of a tensor."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BUCKETS, np.int64)

    def add(self, array: np.ndarray) -> None:
        """Count the elements of a float32 array of any shape."""
        flat = np.ascontiguousarray(array, np.float32).reshape(-1)
        upper = flat.view(np.uint16)[_UPPER::2]
        for start in range(0, len(upper), _PIECE):
            self._counts += np.bincount(upper[start : start + _PIECE], minlength=_BUCKETS)

    @property
    def is_finite(self) -> bool:
        """Whether every element was a finite number, and there was one."""
        infinite = self._counts[_INFINITE : _BUCKETS // 2].any() or self._counts[_BUCKETS // 2 + _INFINITE :].any()
        return bool(self._counts.any()) and not infinite

    def masses(self, low: float, high: float) -> Masses:
        """Return the buckets that are not empty, in ascending order of their numbers, cut at the exact extremes."""
        positive = self._counts[:_INFINITE]
        negative = self._counts[_BUCKETS // 2 : _BUCKETS // 2 + _INFINITE]
        codes = np.arange(_INFINITE + 1, dtype=np.uint32) << 16
        edges = codes.view(np.float32).astype(np.float64)
        edges[-1] = float(np.finfo(np.float32).max)
        starts = np.concatenate([-edges[:0:-1], edges[:-1]])
        ends = np.concatenate([-edges[-2::-1], edges[1:]])
        counts = np.concatenate([negative[::-1], positive])
        full = counts > 0
        return Masses(np.clip(starts[full], low, high), np.clip(ends[full], low, high), counts[full].astype(np.float64))


@dataclasses.dataclass(frozen=True)
class Masses:
    """How many elements lie between which numbers.

    Attributes:
        starts, ends: of the buckets, ascending.
        counts: elements in each.
    """

    starts: np.ndarray
    ends: np.ndarray
    counts: np.ndarray

    def below(self, values: np.ndarray) -> np.ndarray:
        """Return how many elements lie below each value; those of a bucket are spread evenly over it."""
        edges = np.concatenate([self.starts, self.ends[-1:]])
        sums = np.concatenate([[0.0], np.cumsum(self.counts)])
        index = np.clip(np.searchsorted(self.starts, values, "right") - 1, 0, len(self.starts) - 1)
        width = self.ends[index] - self.starts[index]
        inside = np.where(width > 0, np.clip((values - self.starts[index]) / np.where(width > 0, width, 1), 0, 1), 1.0)
        found: np.ndarray = np.where(values < edges[0], 0.0, sums[index] + inside * self.counts[index])
        return found

    def quantile(self, share: float) -> float:
        """Return the number below which a share of the elements lies."""
        sums = np.cumsum(self.counts)
        wanted = share * sums[-1]
        index = min(int(np.searchsorted(sums, wanted)), len(sums) - 1)
        before = sums[index] - self.counts[index]
        inside = (wanted - before) / self.counts[index]
        return float(self.starts[index] + inside * (self.ends[index] - self.starts[index]))
