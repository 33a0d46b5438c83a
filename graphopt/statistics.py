"""Confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Interval = tuple[float, float]

_Z95 = 1.959963984540054


def bootstrap(statistic: Callable[[np.ndarray], float], samples: int, seed: int, resamples: int = 1000) -> Interval:
    """Return the 95 % percentile bootstrap interval of a statistic.

    Args:
        statistic: maps indices into the samples, [samples], to a number.
        samples: how many samples there are.
        seed: of the resampling.
        resamples: how often to resample.

    Reference: B. Efron, R. Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(0, samples, samples)) for _ in range(resamples)]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def paired_proportions(before: np.ndarray, after: np.ndarray) -> Interval:
    """Return the 95 % interval of mean(before) - mean(after) for paired 0/1 outcomes, [N] each.

    The adjusted Wald interval, which stays honest when few or no pairs differ, where a bootstrap would
    collapse to a point: D. Bonett, R. Price, "Adjusted Wald Confidence Interval for a Difference of
    Binomial Proportions Based on Paired Data", J. Educ. Behav. Stat. 37(4), 2012.
    """
    lost = (float(np.sum((before == 1) & (after == 0))) + 1) / (len(before) + 2)
    won = (float(np.sum((before == 0) & (after == 1))) + 1) / (len(before) + 2)
    width = _Z95 * math.sqrt((lost + won - (lost - won) ** 2) / (len(before) + 2))
    return lost - won - width, lost - won + width


def median_ratio(numerator: np.ndarray, denominator: np.ndarray, seed: int) -> tuple[float, Interval]:
    """Return the median of paired ratios, [rounds] each, and its 95 % percentile bootstrap interval."""
    ratios = numerator / denominator
    chosen = np.random.default_rng(seed).integers(0, len(ratios), (1000, len(ratios)))
    low, high = np.percentile(np.median(ratios[chosen], axis=1), [2.5, 97.5])
    return float(np.median(ratios)), (float(low), float(high))
