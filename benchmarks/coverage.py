"""Do 95 % intervals of a change in a metric cover the truth 95 times in 100? Simulated, not asserted.

    python benchmarks/coverage.py [--trials 2000]

A population of samples is drawn on which one model is right where the other is wrong, and the other way round, with
known chances; data sets are drawn from it, and the interval that graphopt gives for the drop is compared with the true
drop. For comparison: the percentile bootstrap, which many tools use for the same purpose.
"""

from __future__ import annotations

import argparse

import numpy as np

from graphopt import metrics, statistics
from graphopt.metrics import Score

_CASES = [
    (n, lost, won)
    for n in (100, 1000, 10_000)
    for lost, won in ((0.0, 0.0), (0.001, 0.001), (0.01, 0.005), (0.05, 0.03))
]
_CLASSES = 5


def accuracy(n: int, lost: float, won: float, trials: int) -> tuple[float, float]:
    """Return how often two intervals of the drop in accuracy hold the truth: graphopt's, and the bootstrap's."""
    metric = metrics.find("accuracy")
    hits = [0, 0]
    for trial in range(trials):
        rng = np.random.default_rng([n, trial])
        kind = rng.random(n)
        before = ((kind >= lost + won) & (rng.random(n) < 0.8)) | (kind < lost)
        after = np.where(kind < lost + won, kind >= lost, before)
        a, b = (rows.astype(float)[:, None] for rows in (before, after))
        interval = metrics.change(metric, Score(float(a.mean()), a), Score(float(b.mean()), b), trial).ci95
        plain = statistics.bootstrap(lambda i, d=(a - b)[:, 0]: float(d[i].mean()), n, trial, resamples=200)  # type: ignore[misc]
        for index, found in enumerate((interval, plain)):
            assert found is not None
            hits[index] += found[0] <= lost - won <= found[1]
    return hits[0] / trials, hits[1] / trials


def f1(n: int, worse: float, trials: int) -> float:
    """Return how often the interval of the drop in macro F1 holds the truth, found with a million samples."""
    metric = metrics.find("f1")
    assert isinstance(metric, metrics.Metric)

    def draw(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        label = rng.integers(0, _CLASSES, count)
        wrong = (label + rng.integers(1, _CLASSES, count)) % _CLASSES
        one = np.where(rng.random(count) < 0.85, label, wrong)
        two = np.where(rng.random(count) < worse, wrong, one)
        return np.stack([one, label], axis=1), np.stack([two, label], axis=1)

    one, two = draw(1_000_000, np.random.default_rng(0))
    truth = metric.finish(one) - metric.finish(two)
    hits = 0
    for trial in range(trials):
        a, b = draw(n, np.random.default_rng([n, trial, 1]))
        interval = metrics.change(metric, Score(metric.finish(a), a), Score(metric.finish(b), b), trial).ci95
        assert interval is not None
        hits += interval[0] <= truth <= interval[1]
    return hits / trials


def main() -> None:
    """Run the simulation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    args = parser.parse_args()
    print("metric    samples  lost   won    coverage  percentile bootstrap")
    for n, lost, won in _CASES:
        ours, plain = accuracy(n, lost, won, args.trials)
        print(f"accuracy  {n:7} {lost:6.3f} {won:6.3f} {ours:8.1%} {plain:11.1%}", flush=True)
    for n in (200, 1000):
        print(f"macro F1  {n:7}                {f1(n, 0.03, max(200, args.trials // 10)):7.1%}", flush=True)


if __name__ == "__main__":
    main()
