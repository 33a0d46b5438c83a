"""Confidence intervals cover what they say they cover."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt import statistics


def test_bootstrap_of_a_constant_is_a_point():
    assert statistics.bootstrap(lambda chosen: 3.0, 10, seed=0) == (3.0, 3.0)


def test_bootstrap_is_seeded():
    values = np.random.default_rng(0).standard_normal(50)
    intervals = [statistics.bootstrap(lambda chosen: float(values[chosen].mean()), 50, seed) for seed in (1, 1, 2)]
    assert intervals[0] == intervals[1] != intervals[2]


def test_bootstrap_of_a_mean_is_as_wide_as_theory_says():
    values = np.random.default_rng(0).standard_normal(400)
    low, high = statistics.bootstrap(lambda chosen: float(values[chosen].mean()), 400, seed=0)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_bootstrap_resamples_all_indices_with_replacement():
    seen = []
    statistics.bootstrap(lambda chosen: seen.append(chosen) or 0.0, 5, seed=0, resamples=100)
    assert len(seen) == 100
    assert {len(chosen) for chosen in seen} == {5}
    assert set(np.concatenate(seen)) == set(range(5))
    assert any(len(set(chosen)) < 5 for chosen in seen)


def test_bootstrap_covers_the_true_mean():
    rng = np.random.default_rng(3)
    hits = 0
    for trial in range(200):
        values = rng.normal(1.0, 2.0, 60)
        low, high = statistics.bootstrap(lambda chosen, v=values: float(v[chosen].mean()), 60, trial, resamples=300)
        hits += low <= 1.0 <= high
    assert 0.89 <= hits / 200 <= 0.985


def test_paired_proportions_by_hand():
    """20 samples: 3 lost, 1 won; +1 to each and +2 to the number of pairs."""
    before = np.array([1] * 13 + [0] * 7)
    after = np.array([0] * 3 + [1] * 10 + [1] + [0] * 6)
    lost, won = 4 / 22, 2 / 22
    width = 1.959964 * np.sqrt((lost + won - (lost - won) ** 2) / 22)
    assert statistics.paired_proportions(before, after) == pytest.approx((2 / 22 - width, 2 / 22 + width), rel=1e-6)


def test_paired_proportions_without_a_difference_is_not_a_point():
    same = np.ones(100)
    low, high = statistics.paired_proportions(same, same)
    assert low == pytest.approx(-high)
    assert 0.005 < high < 0.05
    assert statistics.paired_proportions(np.ones(1000), np.ones(1000))[1] < high / 5


@pytest.mark.parametrize(("lost", "won"), [(0.002, 0.002), (0.02, 0.005), (0.2, 0.1)])
def test_paired_proportions_covers_the_true_difference(lost, won):
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(500):
        kind = rng.random(300)
        before = np.where(kind < lost, 1, np.where(kind < lost + won, 0, 1))
        after = np.where(kind < lost, 0, 1)
        low, high = statistics.paired_proportions(before, after)
        hits += low <= lost - won <= high
    assert hits / 500 >= 0.93


def test_median_ratio():
    ratio, (low, high) = statistics.median_ratio(np.array([2.0, 4, 9]), np.array([1.0, 2, 3]), seed=0)
    assert ratio == 2.0
    assert low == 2.0
    assert high == 3.0


def test_median_ratio_shrugs_off_one_outlier():
    rng = np.random.default_rng(5)
    base = rng.normal(1.0, 0.01, 101)
    spoiled = base * 1.5
    spoiled[7] = 1000.0
    ratio, (low, high) = statistics.median_ratio(spoiled, base, seed=0)
    assert ratio == pytest.approx(1.5)
    assert low == pytest.approx(1.5)
    assert high == pytest.approx(1.5)
