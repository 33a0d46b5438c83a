"""Integer weights on grids just coarse enough that no pair of products saturates.

For a channel of weights w, the factor f by which the step grows and the integers q minimize |f q - w|^2, where the
magnitudes of two neighbours of one sign add up to no more than `saturation.largest_sum` allows. With f = 1 the few pairs
that exceed it are cut; with the largest f nothing is. Between them lies the least error.
"""

from __future__ import annotations

import numpy as np

from graphopt import saturation

_STEPS = 24
"""Factors to try."""


def coarsen(wanted: np.ndarray, largest: int, *, any_order: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return integers [C, K] and the factor [C] by which the step of each channel grows.

    Args:
        wanted: what the integers are to stand for, in units of the steps until now, float32 [C, K].
        largest: how much the magnitudes of two neighbours of one sign may add up to.
        any_order: let any two weights of a row be neighbours.
    """
    integers, factors = np.zeros(wanted.shape, np.int32), np.ones(len(wanted), np.float32)
    for channel, row in enumerate(wanted):
        limited = _Limits(row, largest, any_order=any_order)
        steps = np.linspace(1, limited.factor, _STEPS, dtype=np.float32)
        errors = [float(np.sum((limited.integers(step) * step - row) ** 2)) for step in steps]
        factors[channel] = steps[int(np.argmin(errors))]
        integers[channel] = limited.integers(factors[channel])
    return integers, factors


class _Limits:
    """One row of weights, and the pairs in it that must not become too large.

    A larger step makes no integer larger, so only pairs that are too large at first need to be looked at.
    """

    def __init__(self, row: np.ndarray, largest: int, *, any_order: bool) -> None:
        self._row, self._largest, self._any_order = row, largest, any_order
        first = np.clip(np.rint(row), -128, 127)
        two = saturation.pairs(first[None])[0]
        excess = _excess(two, largest)
        self._guilty = np.flatnonzero(excess > 0)
        most = 2 * np.abs(first).max(initial=0) if any_order else excess.max(initial=0) + largest
        self.factor = max(1.0, float(most) / largest)

    def integers(self, step: np.float32) -> np.ndarray:
        """Return the nearest integers within int8 of which no pair is too large."""
        nearest = np.rint(self._row / step)
        if self._any_order:
            return np.asarray(np.clip(nearest, -(self._largest // 2), self._largest // 2))
        two = saturation.pairs(np.clip(nearest, -128, 127)[None])[0]
        chosen = two[self._guilty]
        more = np.maximum(_excess(chosen, self._largest), 0)[:, None]
        larger = np.arange(2) == np.abs(chosen).argmax(axis=1)[:, None]
        two[self._guilty] = chosen - np.sign(chosen) * (more // 2 + larger * (more % 2))
        return np.asarray(two.reshape(-1)[: self._row.size])


def _excess(two: np.ndarray, largest: int) -> np.ndarray:
    """Return by how much the magnitudes of pairs of one sign exceed the largest sum; negative where they do not."""
    magnitudes = np.abs(two)
    same = two[:, 0] * two[:, 1] > 0
    return np.asarray(np.where(same, magnitudes.sum(axis=1), magnitudes.max(axis=1, initial=0)) - largest)
