"""Integer weights on grids just coarse enough that no pair of products saturates.

For a channel of weights w, the factor f by which the step grows and the integers q minimize |f q - w|^2, where the
magnitudes of two neighbours of one sign add up to no more than `saturation.largest_sum` allows. With f = 1 the few pairs
that exceed it are cut; with the largest f nothing is. Between them lies the least error.
"""

from __future__ import annotations

import numpy as np

from graphopt import saturation

_STEPS = 48
"""Factors to try."""


def coarsen(
    rows: np.ndarray, wanted: np.ndarray, largest: int, *, any_order: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return integers [C, K] and the factor [C] by which the step of each channel grows.

    Args:
        rows: the integers until now, whose largest pair tells how far the step may grow, [C, K].
        wanted: what the integers stand for, in units of the steps until now, [C, K].
        largest: how much the magnitudes of two neighbours of one sign may add up to.
        any_order: let any two weights of a row be neighbours.
    """
    integers, factors = np.zeros(rows.shape, np.int32), np.ones(len(rows), np.float32)
    for channel, (row, target) in enumerate(zip(rows, wanted, strict=True)):
        best = np.inf
        for factor in np.linspace(1, _needed(row, largest, any_order=any_order), _STEPS, dtype=np.float32):
            tried = _allowed(np.rint(target / factor), largest, any_order=any_order)
            error = float(np.sum((tried * factor - target) ** 2))
            if error < best:
                best, integers[channel], factors[channel] = error, tried, factor
    return integers, factors


def _needed(row: np.ndarray, largest: int, *, any_order: bool) -> float:
    """Return the factor at which no pair exceeds the largest sum."""
    if any_order:
        return max(1.0, 2 * float(np.abs(row).max(initial=0)) / largest)
    return max(1.0, float(_excess(row, 0).max(initial=0)) / largest)


def _allowed(integers: np.ndarray, largest: int, *, any_order: bool) -> np.ndarray:
    """Return the nearest integers of which no pair exceeds the largest sum; within int8."""
    if any_order:
        return np.asarray(np.clip(integers, -(largest // 2), largest // 2))
    two = saturation.pairs(np.clip(integers, -128, 127)[None])[0]
    more = np.maximum(_excess(integers, largest), 0)
    larger = np.argmax(np.abs(two), axis=1)
    cut = np.floor(more / 2)[:, None] * np.ones(2)
    cut[np.arange(len(two)), larger] += more % 2
    return np.asarray((two - np.sign(two) * cut).reshape(-1)[: integers.size])


def _excess(row: np.ndarray, largest: int) -> np.ndarray:
    """Return by how much the magnitudes of pairs of one sign exceed the largest sum; negative where they do not."""
    two = saturation.pairs(np.clip(row, -128, 127)[None])[0]
    result: np.ndarray = np.where(two.prod(axis=1) > 0, np.abs(two).sum(axis=1), np.abs(two).max(axis=1)) - largest
    return result
