"""Confidence intervals."""

from __future__ import annotations

import functools
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


def mcnemar(before: np.ndarray, after: np.ndarray) -> float:
    """Return the two-sided p-value of "as many got right as got wrong", for paired 0/1 outcomes, [N] each.

    McNemar's test with the mid-p correction: M. Fagerland, S. Lydersen, P. Laake, "The McNemar test for binary
    matched-pairs data: mid-p and asymptotic are better than exact conditional", BMC Med. Res. Methodol. 13, 2013.
    """
    lost, won = int(np.sum((before == 1) & (after == 0))), int(np.sum((before == 0) & (after == 1)))
    pairs, fewer = lost + won, min(lost, won)
    logs = [math.lgamma(pairs + 1) - math.lgamma(k + 1) - math.lgamma(pairs - k + 1) for k in range(fewer + 1)]
    chances = np.exp(np.array(logs) - pairs * math.log(2))
    return min(1.0, float(2 * np.sum(chances) - chances[-1]))


def center(values: np.ndarray) -> tuple[float, Interval]:
    """Return the center of independent observations, [N], and its 95 % interval: Hodges and Lehmann's estimate.

    The median of all pairwise means, with the interval that belongs to Wilcoxon's signed-rank test. It asks of the
    observations only that they scatter symmetrically, and shrugs off outliers; a bootstrap or Student's t of the
    ten observations that a benchmark has does neither. Fewer than 6 observations cannot give 95 %: the interval
    is then their range, and for a single one everything, (-infinity, infinity).

    Reference: J. Hodges, E. Lehmann, "Estimates of Location Based on Rank Tests", Ann. Math. Stat. 34(2), 1963.
    """
    count = len(values)
    if count == 1:
        return float(values[0]), (-math.inf, math.inf)
    first, second = np.triu_indices(count)
    means = np.sort((values[first] + values[second]) / 2)
    cut = _signed_rank_cut(count)
    return float(np.median(means)), (float(means[cut]), float(means[-1 - cut]))


@functools.cache
def _signed_rank_cut(count: int) -> int:
    """Return how many of the sorted pairwise means lie outside the 95 % interval, at each end.

    That is the largest k for which Wilcoxon's statistic, the sum of a random subset of the ranks 1 to `count`, is
    at most k with probability 2.5 % at most; exact up to 50 observations, a normal approximation beyond.
    """
    if count > 50:
        mean, variance = count * (count + 1) / 4, count * (count + 1) * (2 * count + 1) / 24
        return max(0, int(mean - _Z95 * math.sqrt(variance)))
    chances = np.array([1.0])
    for rank in range(1, count + 1):  # each rank is in the subset or not
        chances = (np.pad(chances, (0, rank)) + np.pad(chances, (rank, 0))) / 2
    return max(0, int(np.searchsorted(np.cumsum(chances), 0.025, side="right")) - 1)
