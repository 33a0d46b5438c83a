"""Latency of several models, measured interleaved in one process."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from graphopt import inputs, io, runtime, statistics
from graphopt.errors import UserError
from graphopt.runtime import Arrays, ExecutionError, Session
from graphopt.target import Target
from graphopt.target import find as find_target

_BLOCK_SECONDS = 0.004
_MANY_ROUNDS = 20
_FEW_ROUNDS = 5
_GRACE_SECONDS = 5.0
_WIDTH = 0.02


@dataclasses.dataclass(frozen=True)
class Latency:
    """Two models timed against each other on the same inputs.

    Attributes:
        batch: samples per run.
        before_ms, after_ms: median milliseconds per run.
        speedup: median over rounds of before / after.
        ci95: 95 % bootstrap interval of the speed-up.
    """

    batch: int
    before_ms: float
    after_ms: float
    speedup: float
    ci95: statistics.Interval


def interleave(
    sessions: Sequence[Session],
    feeds: Arrays,
    *,
    seconds: float,
    rounds: int | None = None,
    enough: Callable[[np.ndarray], bool] = lambda times: False,
) -> np.ndarray:
    """Time sessions in turn and return seconds per run, [rounds, sessions].

    Each round visits every session once, in alternating order, for a block of a few milliseconds. The
    first run of a block is not counted: it finds the caches full of the other session's data.

    Args:
        sessions: what to time.
        feeds: inputs of every run.
        seconds: how long to go on at most, but for 20 rounds at least; models too slow for that get 5
            seconds more, and 5 rounds at least.
        rounds: exactly this many rounds instead.
        enough: tells from the times so far whether to stop early; asked every 20 rounds.
    """
    repeats = [_repeats(session, feeds) for session in sessions]
    order = list(range(len(sessions)))
    times: list[list[float]] = []
    deadline = time.perf_counter() + seconds
    while rounds is None or len(times) < rounds:
        row = [0.0] * len(sessions)
        for index in order:
            row[index] = _block(sessions[index], feeds, repeats[index])
        times.append(row)
        order.reverse()
        late = time.perf_counter() - deadline
        if (
            rounds is None
            and late > (0 if len(times) >= _MANY_ROUNDS else _GRACE_SECONDS)
            and len(times) >= _FEW_ROUNDS
        ):
            break
        if rounds is None and len(times) % _MANY_ROUNDS == 0 and enough(np.array(times)):
            break
    return np.array(times)


def compare_latency(
    before: Session, after: Session, feeds: Arrays, batch: int, *, seconds: float, seed: int
) -> Latency:
    """Time two sessions against each other until the interval of the speed-up is 2 % wide, or time is up."""

    def narrow(times: np.ndarray) -> bool:
        speedup, (low, high) = statistics.median_ratio(times[:, 0], times[:, 1], seed)
        return high - low < _WIDTH * speedup

    times = interleave([before, after], feeds, seconds=seconds, enough=narrow)
    speedup, interval = statistics.median_ratio(times[:, 0], times[:, 1], seed)
    before_ms, after_ms = (float(v) for v in np.median(times, axis=0) * 1e3)
    return Latency(batch, before_ms, after_ms, speedup, interval)


@dataclasses.dataclass(frozen=True)
class Row:
    """One model at one batch size.

    Attributes:
        model: its path.
        batch: samples per run, or None when the model has no dynamic first axis.
        median_ms, p90_ms: milliseconds per run.
        per_second: samples per second at the median.
        speedup, ci95: against the first model, with its 95 % interval.
    """

    model: str
    batch: int
    median_ms: float
    p90_ms: float
    per_second: float
    speedup: float
    ci95: statistics.Interval


def benchmark(
    models: Sequence[str | Path],
    *,
    target: str | Target = "cpu",
    batch: Sequence[int] = (1,),
    runs: int | None = None,
    seconds: float = 3.0,
    seed: int = 0,
) -> list[Row]:
    """Time models against the first of them on seeded random inputs.

    Args:
        models: paths of .onnx files with the same inputs.
        target: where to run.
        batch: batch sizes.
        runs: rounds per batch size; by default as many as fit in `seconds`.
        seconds: time per batch size.
        seed: of the inputs and of the bootstrap.

    Raises:
        UserError: a model does not load or does not run on the inputs.
    """
    place = find_target(target) if isinstance(target, str) else target
    loaded = [io.load(path) for path in models]
    sessions = []
    for path, model in zip(models, loaded, strict=True):
        try:
            sessions.append(runtime.open_session(model, place))
        except ExecutionError as error:
            raise UserError(f"{path}: {error}; repair it with: graphopt apply MODEL repair -o OUT") from None
    rows = []
    for size in batch:
        feeds = inputs.of_batch(loaded[0], sessions[0], size, seed)
        for path, session in zip(models, sessions, strict=True):
            try:
                session.run(feeds)
            except ExecutionError as error:
                raise UserError(
                    f"{path}: does not run on inputs of {models[0]}: {error}; compare models with the same inputs"
                ) from None
        times = interleave(sessions, feeds, seconds=seconds, rounds=runs)
        actual = inputs.batch_of(feeds, runtime.model_inputs(loaded[0]))
        for index, path in enumerate(models):
            speedup, interval = statistics.median_ratio(times[:, 0], times[:, index], seed)
            median, p90 = np.percentile(times[:, index], [50, 90])
            rows.append(Row(str(path), actual, median * 1e3, p90 * 1e3, actual / median, speedup, interval))
    return rows


def _repeats(session: Session, feeds: Arrays) -> int:
    """Return how many runs make a block: as many as fit in a few milliseconds, not counting the first.

    A run that takes longer than a dozen blocks has no need for an uncounted first one; that is 0 repeats.
    """
    session.run(feeds)
    seconds = _block(session, feeds, 0)
    return 0 if seconds > 12 * _BLOCK_SECONDS else max(1, round(_BLOCK_SECONDS / seconds))


def _block(session: Session, feeds: Arrays, repeats: int) -> float:
    """Return seconds per run over `repeats` runs after one that is not counted, or of a single run if 0."""
    if repeats:
        session.run(feeds)
    start = time.perf_counter()
    for _ in range(max(repeats, 1)):
        session.run(feeds)
    return (time.perf_counter() - start) / max(repeats, 1)
