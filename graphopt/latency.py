"""Latency of a model before and after a change."""

from __future__ import annotations

import dataclasses

from graphopt import statistics, timing
from graphopt.runtime import Arrays
from graphopt.timing import Opener


@dataclasses.dataclass(frozen=True)
class Latency:
    """Two models timed against each other on the same inputs.

    Attributes:
        batch: samples per run.
        before_ms, after_ms: median milliseconds per run.
        speedup: before / after (see `graphopt.timing.speedup`).
        ci95: 95 % interval of the speed-up.
    """

    batch: int
    before_ms: float
    after_ms: float
    speedup: float
    ci95: statistics.Interval


def compare_latency(before: Opener, after: Opener, feeds: Arrays, batch: int, *, seconds: float) -> Latency:
    """Time two models against each other until the interval of the speed-up is 2 % wide, or time is up."""
    openings = timing.race([before, after], feeds, seconds=seconds)
    speedup, interval = timing.speedup(openings, 1)
    before_ms, after_ms = (timing.cost(openings, index) * 1e3 for index in (0, 1))
    return Latency(batch, before_ms, after_ms, speedup, interval)
