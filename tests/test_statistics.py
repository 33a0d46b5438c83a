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


def test_center_is_the_median_of_pairwise_means():
    values = np.array([1.0, 2.0, 4.0])  # means: 1, 1.5, 2.5, 2, 3, 4
    assert statistics.center(values) == (2.25, (1.0, 4.0))


def test_center_shrugs_off_one_outlier():
    values = np.random.default_rng(5).normal(0.4, 0.01, 12)
    values[7] = 100.0
    middle, (low, high) = statistics.center(values)
    assert middle == pytest.approx(0.4, abs=0.01)
    assert 0.38 < low < middle < high < 0.5


@pytest.mark.parametrize(("count", "cut"), [(6, 0), (7, 2), (8, 3), (9, 5), (10, 8), (12, 13), (20, 52), (25, 89)])
def test_the_interval_of_the_center_is_that_of_wilcoxon_s_tables(count, cut):
    """Critical values of the two-sided signed-rank test at 5 %, as printed in textbooks."""
    values = np.arange(count, dtype=float) * np.sqrt(2) ** np.arange(count)
    first, second = np.triu_indices(count)
    means = np.sort((values[first] + values[second]) / 2)
    assert statistics.center(values)[1] == (means[cut], means[-1 - cut])


def test_large_samples_are_cut_as_the_exact_distribution_would():
    assert statistics._signed_rank_cut(50) == 434
    assert abs(statistics._signed_rank_cut(51) - 453) <= 1


def test_center_of_next_to_nothing():
    assert statistics.center(np.array([3.0])) == (3.0, (-np.inf, np.inf))
    assert statistics.center(np.array([3.0, 4.0])) == (3.5, (3.0, 4.0))


@pytest.mark.parametrize("scatter", ["normal", "cauchy", "bimodal"])
@pytest.mark.parametrize("count", [6, 8, 12, 60])
def test_center_covers_the_truth(scatter, count):
    rng = np.random.default_rng(6)
    draw = {
        "normal": lambda: rng.normal(1.0, 0.02, count),
        "cauchy": lambda: 1.0 + 0.01 * rng.standard_cauchy(count),
        "bimodal": lambda: 1.0 + 0.03 * rng.choice([-1, 1], count) + rng.normal(0, 0.004, count),
    }[scatter]
    hits = 0
    for _ in range(1000):
        _, (low, high) = statistics.center(draw())
        hits += low <= 1.0 <= high
    assert hits / 1000 >= 0.93


def test_mcnemar_by_hand():
    before = np.array([1] * 6 + [0] * 2 + [1] * 5)
    after = np.array([0] * 6 + [1] * 2 + [1] * 5)  # 6 lost, 2 won
    tail = (1 + 8) / 256  # at most one of eight, of which two has 28 in 256
    assert statistics.mcnemar(before, after) == pytest.approx(2 * (tail + 28 / 256 / 2))
    assert statistics.mcnemar(after, before) == statistics.mcnemar(before, after)
    assert statistics.mcnemar(before, before) == 1.0
    assert statistics.mcnemar(np.ones(20000), np.zeros(20000)) < 1e-300


def test_mcnemar_is_right_about_chance():
    rng = np.random.default_rng(7)
    p_values = []
    for _ in range(2000):
        kind = rng.random(300)
        p_values.append(statistics.mcnemar((kind > 0.1).astype(int), ((kind < 0.1) | (kind > 0.2)).astype(int)))
    assert 0.03 < np.mean(np.array(p_values) < 0.05) < 0.06
