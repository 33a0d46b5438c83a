"""The range at which quantization loses least information (Migacz 2017, "8-bit inference with TensorRT").

The loss is the Kullback-Leibler divergence from the distribution of the elements to what is left of it on the grid. As
there, elements outside the range count at its ends, and what is left is known to the nearest integer alone: the elements
that one integer stands for are spread evenly over the parts of its cell that held any. Unlike there, cells lie around the
integers of an asymmetric grid, each end is searched for on its own once both are bounded by the same magnitude, and elements that are zero do not count, since every grid has a
zero (they would pull the range of what comes out of a Relu down to nothing).
"""

from __future__ import annotations

import numpy as np

from graphopt.passes.quantization._histogram import Masses
from graphopt.passes.quantization._ranges import Range

_PARTS = 4
"""Parts of a cell."""
_THRESHOLDS = np.geomspace(1, 1e-3, 67)
"""Candidates for the largest magnitude, as parts of the extreme: each a tenth smaller than the one before."""
_FINER = (np.geomspace(1.5, 1 / 1.5, 9), np.geomspace(1.08, 1 / 1.08, 5))
"""By what to change each end, one after the other."""


def least_divergence(masses: Masses, bits: int) -> Range:
    """Return the range, with zero inside, at which rounding to integers of so many bits loses least information."""
    levels = 2**bits - 1
    low, high = min(float(masses.starts[0]), 0.0), max(float(masses.ends[-1]), 0.0)
    rest = masses.where((masses.starts != 0) | (masses.ends != 0))
    if not rest.counts.size:
        return low, high

    def best(lows: np.ndarray, highs: np.ndarray) -> Range:
        pairs = list(zip(*np.broadcast_arrays(np.maximum(lows, low), np.minimum(highs, high)), strict=True))
        losses = [divergence(rest, lo, hi, levels) for lo, hi in pairs]
        lo, hi = pairs[int(np.argmin(losses))]
        return float(lo), float(hi)

    thresholds = max(-low, high) * _THRESHOLDS
    lo, hi = best(-thresholds, thresholds)
    for factors in _FINER if low < 0 < high else _FINER[1:]:
        lo, hi = best(np.array([lo]), hi * factors)
        lo, hi = best(lo * factors, np.array([hi]))
    return lo, hi


def divergence(masses: Masses, lo: float, hi: float, levels: int) -> float:
    """Return the divergence, in nats, from the elements to their integers on a grid of so many steps from lo to hi."""
    step = (hi - lo) / levels
    first = np.rint(lo / step)
    edges = (first - 0.5 + np.arange((levels + 1) * _PARTS + 1) / _PARTS) * step
    below = masses.below(edges)
    inside = np.diff(below)
    cells = inside.reshape(-1, _PARTS)
    held = cells > 0
    left = np.where(held, cells.sum(1, keepdims=True) / np.maximum(held.sum(1, keepdims=True), 1), 0.0).reshape(-1)
    total = masses.counts.sum()
    inside[0] += below[0]
    inside[-1] += total - below[-1]
    known = inside > 0
    truth, left = inside[known] / total, left[known] / max(below[-1] - below[0], 1.0)
    least = 0.5 / total  # an element alone at an end that held none before
    return float(np.sum(truth * np.log(truth / np.maximum(left, least))))
