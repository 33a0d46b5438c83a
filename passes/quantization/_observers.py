"""Ranges of activations, each found in its own way from the same counts.

    min-max         the smallest and the largest element
    moving-average  of the extremes of each batch: outliers of single batches weigh less
    percentile      what leaves out a share of the elements at either end (0.01 % unless told otherwise)
    mse             least expected squared error of rounding inside and clipping outside
    entropy         least Kullback-Leibler divergence from the histogram to its quantized form (Migacz 2017, "8-bit
                    inference with TensorRT"), on asymmetric ranges
"""

from __future__ import annotations

import numpy as np

from graphopt.passes.quantization._histogram import Histogram, Masses, extremes
from graphopt.passes.quantization._ranges import Range

OBSERVERS = ("min-max", "moving-average", "percentile", "entropy", "mse")

EXTREMES = ("min-max", "moving-average")
"""Those that need nothing but the extremes of each batch."""

_WEIGHT = 0.1
"""Of a new batch in the moving average."""
_STEPS = 80
"""Candidates for each end of a range."""
_SMALLEST = 0.03
"""The smallest of them, as a part of the extreme."""
_ZERO = 1e-38
"""Magnitudes below it count as zero."""
_FINE = 2048
"""Equal buckets on which divergences are computed, as TensorRT does."""


class Extremes:
    """Watches the extremes of one activation, batch by batch.

    Attributes:
        count: batches that held any element.
        is_finite: whether all elements were finite numbers.
    """

    def __init__(self) -> None:
        self.count, self.is_finite = 0, True
        self._low, self._high = np.inf, -np.inf
        self._average = (0.0, 0.0)

    def widen(self, low: float, high: float, *, finite: bool) -> None:
        """Take in the extremes of a batch, and whether it was finite."""
        low, high = float(low), float(high)
        self._low, self._high = min(self._low, low), max(self._high, high)
        weight = _WEIGHT if self.count else 1.0
        self._average = tuple(old + weight * (new - old) for old, new in zip(self._average, (low, high), strict=True))  # type: ignore[assignment]
        self.count += 1
        self.is_finite &= finite

    def ranges(self, wanted: tuple[str, ...], percentile: float, bits: int) -> dict[str, Range]:
        """Return the range that each observer finds.

        Args:
            wanted: names in `OBSERVERS`.
            percentile: share of the elements to keep below the upper end, and above the lower one, in per cent.
            bits: of the integers.
        """
        found = self._found(wanted, percentile, bits)
        low, high = self._low, self._high
        return {
            name: (float(np.float32(max(found[name][0], low))), float(np.float32(min(found[name][1], high))))
            for name in wanted
        }

    def _found(self, wanted: tuple[str, ...], percentile: float, bits: int) -> dict[str, Range]:
        del wanted, percentile, bits
        return {"min-max": (self._low, self._high), "moving-average": self._average}


class Observer(Extremes):
    """Watches all elements of one activation."""

    def __init__(self) -> None:
        super().__init__()
        self._histogram = Histogram()

    def add(self, array: np.ndarray) -> None:
        """Look at a batch, a float32 array of any shape."""
        if not array.size:
            return
        self._histogram.add(array)
        self.widen(*extremes(array), finite=True)
        self.is_finite = self._histogram.is_finite

    def _found(self, wanted: tuple[str, ...], percentile: float, bits: int) -> dict[str, Range]:
        found = super()._found(wanted, percentile, bits)
        if set(wanted) <= set(EXTREMES):
            return found
        masses = self._histogram.masses(self._low, self._high)
        if "percentile" in wanted:
            found["percentile"] = masses.quantile(1 - percentile / 100), masses.quantile(percentile / 100)
        if "mse" in wanted:
            found["mse"] = least_error(masses, 2**bits - 1)
        if "entropy" in wanted:
            found["entropy"] = least_divergence(masses, 2**bits)
        return found


def least_error(masses: Masses, steps: int) -> Range:
    """Return the range whose grid of `steps` equal steps is expected to err least in squares.

    An element inside errs by a twelfth of the squared step on average, one outside by its distance to the end. Elements
    that are zero do not err: every grid holds zero.
    """
    low, high = min(float(masses.starts[0]), 0.0), max(float(masses.ends[-1]), 0.0)
    lows, highs = _candidates(low), _candidates(high)
    middle = (masses.starts + masses.ends) / 2
    spread = masses.counts * (middle**2 + (masses.ends - masses.starts) ** 2 / 12)
    above = _beyond(highs, middle, masses.counts, spread)
    below = _beyond(-lows, -middle[::-1], masses.counts[::-1], spread[::-1])
    total = masses.counts[np.abs(middle) > _ZERO].sum()
    step = (highs[None, :] - lows[:, None]) / steps
    error = total * step**2 / 12 + above[None, :] + below[:, None]
    i, j = np.unravel_index(np.argmin(error), error.shape)
    return float(lows[i]), float(highs[j])


def least_divergence(masses: Masses, levels: int) -> Range:
    """Return the range at which quantization to `levels` loses least information; the upper end is chosen first."""
    low, high = min(float(masses.starts[0]), 0.0), max(float(masses.ends[-1]), 0.0)
    high = min(_candidates(high), key=lambda end: _divergence(masses, low, float(end), levels))
    low = min(_candidates(low), key=lambda end: _divergence(masses, float(end), high, levels))
    return float(low), float(high)


def _divergence(masses: Masses, lo: float, hi: float, levels: int) -> float:
    """Return the divergence from the clipped histogram to what quantization leaves of it."""
    if hi <= lo:
        return np.inf
    fine = max(1, _FINE // levels) * levels
    edges = np.linspace(lo, hi, fine + 1)
    inside = np.diff(masses.below(edges))
    total = masses.counts.sum()
    true = inside.copy()
    true[0] += masses.below(np.array([lo]))[0]
    true[-1] += total - masses.below(np.array([hi]))[0]
    groups = inside.reshape(levels, -1)
    filled = (groups > 0).sum(1, keepdims=True)
    model = np.where(groups > 0, groups.sum(1, keepdims=True) / np.maximum(filled, 1), 0.0).reshape(-1)
    if not model.any():
        return np.inf
    p, q = true / true.sum(), model / model.sum()
    smallest = 1e-9
    used = p > 0
    return float(np.sum(p[used] * np.log(p[used] / np.maximum(q[used], smallest))))


def _candidates(end: float) -> np.ndarray:
    return end * np.geomspace(1, _SMALLEST, _STEPS) if end else np.zeros(1)


def _beyond(ends: np.ndarray, middle: np.ndarray, counts: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Return the squared error of clipping at each end: the sum over the buckets above of (x - end)^2."""
    index = np.searchsorted(middle, ends)

    def above(values: np.ndarray) -> np.ndarray:
        sums = np.concatenate([np.cumsum(values[::-1])[::-1], [0.0]])
        found: np.ndarray = sums[index]
        return found

    error: np.ndarray = above(spread) - 2 * ends * above(counts * middle) + ends**2 * above(counts)
    return np.maximum(error, 0)
