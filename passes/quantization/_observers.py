"""Ranges of activations, each found in its own way from the same counts.

min-max         the smallest and the largest element
moving-average  the mean of the extremes of every batch: outliers of single batches weigh less
percentile      what leaves out a share of the elements at either end (0.01 % unless told otherwise)
entropy         least loss of information (see `_least_divergence`)
mse             least expected squared error (see `_least_error`)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphopt.passes.quantization._histogram import Histogram
from graphopt.passes.quantization._least_divergence import least_divergence
from graphopt.passes.quantization._least_error import least_error
from graphopt.passes.quantization._ranges import Range

EXTREMES = ("min-max", "moving-average")
"""Those that need nothing but the extremes of each batch."""


class Observer:
    """Watches one activation while data streams by, in runs of some samples each.

    Attributes:
        is_empty: whether there was no element yet.
        is_finite: whether all elements were finite numbers.
    """

    def __init__(self, batch: int) -> None:
        """Begin; a batch is `batch` samples, in however many runs they come."""
        self._batch = batch
        self._histogram = Histogram()
        self._low, self._high = np.inf, -np.inf
        self._part: tuple[float, float, int] = (np.inf, -np.inf, 0)
        self._sums = np.zeros(3)
        self.is_empty = self.is_finite = True

    def add(self, array: np.ndarray, samples: int) -> None:
        """Take in all elements of a run: a float32 array of any shape."""
        if array.size:
            self.widen(*self._histogram.add(array), samples)
            self.is_finite &= self._histogram.is_finite

    def widen(self, low: float, high: float, samples: int) -> None:
        """Take in the extremes of a run: NaN where there are any, inf and -inf where there is no element."""
        if low == np.inf and high == -np.inf:
            return
        self.is_empty = False
        self.is_finite &= bool(np.isfinite([low, high]).all())
        self._low, self._high = min(self._low, low), max(self._high, high)
        part = min(self._part[0], low), max(self._part[1], high), self._part[2] + samples
        self._part = part
        if part[2] >= self._batch:
            self._sums, self._part = self._weighed(), (np.inf, -np.inf, 0)

    def ranges(self, wanted: Sequence[str], percentile: float = 99.99, bits: int = 8) -> dict[str, Range]:
        """Return the ranges that observers find, in float32, none beyond what was seen; there must be something, finite.

        Args:
            wanted: names of observers; only those in `EXTREMES` if `add` was never called.
            percentile: per cent of the elements to keep below the upper end, and above the lower one.
            bits: of the integers.
        """
        found = {name: self._find(name, percentile, bits) for name in wanted}
        low, high = self._low, self._high
        return {
            name: (_rounded(np.clip(lo, low, high)), _rounded(np.clip(hi, low, high)))
            for name, (lo, hi) in found.items()
        }

    def _find(self, name: str, percentile: float, bits: int) -> Range:
        if name == "min-max":
            return self._low, self._high
        if name == "moving-average":
            low, high, samples = self._weighed()
            return low / samples, high / samples
        masses = self._histogram.masses(self._low, self._high)
        if name == "percentile":
            return masses.quantile((100 - percentile) / 100), masses.quantile(percentile / 100)
        return (least_error if name == "mse" else least_divergence)(masses, bits)

    def _weighed(self) -> np.ndarray:
        """Return the sums over the batches of the extremes, times their samples, and of the samples."""
        low, high, samples = self._part
        return self._sums + (np.array([low * samples, high * samples, samples]) if samples else 0)


def _rounded(end: float) -> float:
    return float(np.float32(end))
