"""The range at which rounding to integers errs least in squares.

On a grid of step s with ends lo and hi, an element x inside errs by its distance to the nearest multiple of s, one
outside by its distance to the end. With the elements of a bucket spread evenly over it, the expected squared error has a
closed form: its integral up to u steps is n/12 + f^3/3 + o^3/3 squared steps, where n is the nearest integer, f what is
left inside and o what is left outside. So small numbers that all round to zero, and elements that are zero, err by what
they do, not by the usual twelfth of a squared step.
"""

from __future__ import annotations

import numpy as np

from graphopt.passes.quantization._histogram import Masses
from graphopt.passes.quantization._ranges import Range

_ENDS = np.geomspace(1, 1e-4, 97)
"""Candidates for each end of a range, as parts of the extreme: each a tenth narrower than the one before."""
_STEPS = 33
"""Sizes of steps for which the error inside is computed; between them it is interpolated."""
_NARROW = 1e-4
"""A bucket of so few steps counts as one number: differences of integrals would lose their digits."""


def least_error(masses: Masses, bits: int) -> Range:
    """Return the range with the least expected squared error of rounding to integers of so many bits.

    It holds zero, and begins and ends on a multiple of the step. Pairs of ends are compared first, with the error inside
    taken from a table; then the best are compared, and the best of them is refined, with the true error.
    """
    levels = 2**bits - 1
    low, high = min(float(masses.starts[0]), 0.0), max(float(masses.ends[-1]), 0.0)
    if low == high:
        return low, high
    steps, zeros = _coarse(masses, low, high, levels)
    widest = (high - low) / levels
    for factors in (np.ones(1), np.geomspace(1.12, 1 / 1.12, 9), np.geomspace(1.03, 1 / 1.03, 9)):
        steps, zeros = (each.reshape(-1) for each in np.broadcast_arrays(steps * factors[:, None], zeros))
        steps, zeros = _best(masses, np.minimum(steps, widest), zeros, levels)
        if low < 0 < high:
            near = np.clip(zeros + np.array([-1, 0, 1]), 0, levels)
            steps, zeros = _best(masses, np.repeat(steps, 3), near, levels)
    step, zero = float(steps[0]), int(zeros[0])
    return -zero * step, (levels - zero) * step


def _best(masses: Masses, steps: np.ndarray, zeros: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the best of some grids, as arrays of one."""
    best = [int(np.argmin(expected_error(masses, steps, zeros, levels)))]
    return steps[best], zeros[best]


def expected_error(masses: Masses, steps: np.ndarray, zeros: np.ndarray, levels: int) -> np.ndarray:
    """Return the sum of expected squared errors on each of some grids.

    Args:
        masses: the elements.
        steps: size of a step, [grids].
        zeros: integer that stands for zero, [grids].
        levels: the largest integer; the smallest is 0.
    """
    low, high = -zeros[:, None].astype(np.float64), (levels - zeros)[:, None].astype(np.float64)
    errors: np.ndarray = steps**2 * _errors(masses, steps, low, high)
    return errors


def _errors(masses: Masses, steps: np.ndarray, low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
    """Return the sums of squared errors, in squared steps, where the grid reaches from `low` to `high` steps."""
    starts, ends = masses.starts / steps[:, None], masses.ends / steps[:, None]
    width = ends - starts
    wide = width > _NARROW
    inside = _integral(ends, low, high) - _integral(starts, low, high)
    middle = (starts + ends) / 2
    alone = (middle - np.rint(np.clip(middle, low, high))) ** 2
    mean = np.divide(inside, width, out=alone, where=wide)
    found: np.ndarray = mean @ masses.counts
    return found


def _integral(at: np.ndarray, low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
    """Return the integral of the squared error, up to a constant; everything in steps."""
    clipped = np.clip(at, low, high)
    nearest = np.rint(clipped)
    inside, outside = clipped - nearest, at - clipped
    found: np.ndarray = nearest / 12 + (inside * inside * inside + outside * outside * outside) / 3
    return found


def _coarse(masses: Masses, low: float, high: float, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the most promising grids, one for every octave of steps: their steps, and the integers that stand for zero.

    What lies outside is taken to err like a twelfth of a squared step before it is clipped.
    """
    lows, highs = (np.append(end * _ENDS, 0.0) if end else np.zeros(1) for end in (low, high))
    steps = np.maximum((highs[None, :] - lows[:, None]) / levels, np.finfo(np.float32).tiny)
    positive = masses.starts >= 0
    mirrored = Masses(-masses.ends[~positive][::-1], -masses.starts[~positive][::-1], masses.counts[~positive][::-1])
    error = _side(masses.where(positive), highs, steps) + _side(mirrored, -lows, steps.T).T
    zeros = np.rint(-lows[:, None] / steps).astype(np.int64)
    octaves = np.rint(np.log2(steps))
    found = [int(np.argmin(np.where(octaves == octave, error, np.inf))) for octave in np.unique(octaves)]
    return steps.reshape(-1)[found], zeros.reshape(-1)[found]


def _side(masses: Masses, ends: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Return the sums of squared errors of positive elements.

    Args:
        masses: the elements.
        ends: where the range may end on their side, [ends].
        steps: of the grid, by the range's other end and this one, [others, ends].
    """
    if not masses.counts.size:
        return np.zeros(steps.shape)
    table = np.geomspace(steps.min(), steps.max(), _STEPS)
    rounded = np.interp(np.log(steps), np.log(table), _errors(masses, table, -np.inf, np.inf))
    middle = (masses.starts + masses.ends) / 2
    squares = masses.counts * (middle**2 + (masses.ends - masses.starts) ** 2 / 12)
    index = np.searchsorted(middle, ends, "right")
    number, total, squared = (
        np.concatenate([np.cumsum(values[::-1])[::-1], [0.0]])[index]
        for values in (masses.counts, masses.counts * middle, squares)
    )
    clipped = np.maximum(squared - 2 * ends * total + ends**2 * number, 0)
    error = np.where(ends > 0, (rounded - number / 12) * steps**2 + clipped, clipped)
    return np.where((ends > 0) & (ends < steps), np.inf, error)  # such an end is no step away from zero
