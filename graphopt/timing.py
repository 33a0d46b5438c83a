"""Time several models against each other, interleaved in one process.

What makes two copies of one file look different, and what is done about it:

* The machine drifts: blocks of a few milliseconds alternate, and only their ratios count.
* The block that comes first has it better or worse: every second round reverses the order, and two rounds make one
  ratio. Which order comes first is drawn, and so is the length of blocks, or their rhythm may fall in with that of the
  scheduler on a loaded machine, to the advantage of one.
* A session keeps for its life the memory it happened to get (up to 3 % either way on a small network): sessions
  are opened anew many times, and the interval is taken over openings rather than over rounds.

Reference for repeating at the level that varies: T. Kalibera, R. Jones, "Rigorous Benchmarking in Reasonable Time",
ISMM 2013.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from graphopt import statistics
from graphopt.runtime import Arrays, Session

Opener = Callable[[], Session]

WIDTH = 0.02
"""Relative width of an interval that is narrow enough, unless the caller says otherwise."""

_BLOCK_SECONDS = 0.004
_JITTER = (0.6, 1.4)
_SLOW = 12
"""A run that takes longer than this many blocks needs no uncounted run before it."""
_OPENINGS = 12
_LONGEST_OPENING = 0.5
_FEW_OPENINGS = 6
_FEW_ROUNDS = 6
_MANY_ROUNDS = 20
_GRACE_SECONDS = 5.0
_WARMUP_BLOCKS = 50
_STEADY = 0.02


@dataclasses.dataclass(frozen=True)
class Block:
    """A few runs of one session in a row.

    Attributes:
        seconds: of each run, [runs].
        cost: seconds per run; with several clients, elapsed time over runs completed by all of them.
    """

    seconds: np.ndarray
    cost: float


@dataclasses.dataclass(frozen=True)
class Opening:
    """What was measured on one set of sessions.

    Attributes:
        load_seconds: how long it took to make each session, [contenders].
        rounds: [rounds][contenders].
    """

    load_seconds: list[float]
    rounds: list[list[Block]]


def race(
    openers: Sequence[Opener],
    feeds: Arrays,
    *,
    seconds: float,
    width: float = WIDTH,
    rounds: int | None = None,
    clients: int = 1,
    seed: int = 0,
) -> list[Opening]:
    """Time contenders in turn until every speed-up against the first is known well enough, or time is up.

    Args:
        openers: each makes a session of one contender.
        feeds: inputs of every run.
        seconds: how long to go on, opening and warming up included. Models too slow for 20 rounds get 5 seconds
            more, and 6 rounds at least; where opening takes little, there are 6 openings at least.
        width: relative width of the 95 % interval of a speed-up at which to stop early.
        rounds: exactly this many rounds instead, on one opening.
        clients: threads that run each session at the same time.
        seed: of the order and the length of blocks.
    """
    rng = np.random.default_rng(seed)
    part = 0.0  # seconds of an opening, where several are affordable

    def narrow(openings: Sequence[Opening]) -> bool:
        intervals = [speedup(openings, index) for index in range(1, len(openers))]
        return bool(intervals) and all(high - low < width * ratio for ratio, (low, high) in intervals)

    def enough(done: Opening) -> bool:
        count = len(done.rounds)
        if rounds is not None:
            return count >= rounds
        late = time.perf_counter() - start - seconds
        if late > (0 if count >= _MANY_ROUNDS else _GRACE_SECONDS):
            return count >= _FEW_ROUNDS
        return count % _MANY_ROUNDS == 0 and narrow([done])

    def opening(backwards: bool, plan: Callable[[float], Callable[[Opening], bool]]) -> Opening:
        """Measure on new sessions, for as long as the plan says, given the seconds that opening them took."""
        begin = time.perf_counter()
        with _lanes(openers, feeds, clients, backwards=backwards) as lanes:
            return _rounds(lanes, rng, plan(time.perf_counter() - begin))

    def first_plan(opening_seconds: float) -> Callable[[Opening], bool]:
        nonlocal part
        if rounds is not None or opening_seconds * _FEW_OPENINGS > seconds:
            return enough
        part = max(1.5 * opening_seconds, min(seconds / _OPENINGS, _LONGEST_OPENING)) - opening_seconds
        return _until(part)

    backwards = bool(rng.integers(2))
    start = time.perf_counter()
    openings = [opening(backwards, first_plan)]
    while part and (len(openings) < _FEW_OPENINGS or (time.perf_counter() < start + seconds and not narrow(openings))):
        backwards = not backwards
        openings.append(opening(backwards, lambda _: _until(part)))
    return openings


def speedup(openings: Sequence[Opening], index: int) -> tuple[float, statistics.Interval]:
    """Return how many times as fast a contender is as the first, with the 95 % interval.

    One opening counts as one observation, the median of its ratios; where there is only one opening, the ratios
    themselves are the observations.
    """
    ratios = [_log_ratios(opening, index) for opening in openings]
    units = ratios[0] if len(ratios) == 1 else np.array([np.median(part) for part in ratios])
    center, (low, high) = statistics.center(units)
    return float(np.exp(center)), (float(np.exp(low)), float(np.exp(high)))


def run_seconds(openings: Sequence[Opening], index: int) -> np.ndarray:
    """Return the seconds of every run of a contender, [runs]."""
    return np.concatenate([row[index].seconds for opening in openings for row in opening.rounds])


def cost(openings: Sequence[Opening], index: int) -> float:
    """Return the median seconds that a run of a contender takes (with several clients, of all their runs)."""
    return float(np.median([row[index].cost for opening in openings for row in opening.rounds]))


def _log_ratios(opening: Opening, index: int) -> np.ndarray:
    """Return log(first / contender) of every pair of rounds, or of every round where pairs are few."""
    logs = np.array([np.log(row[0].cost / row[index].cost) for row in opening.rounds])
    pairs = len(logs) // 2
    return logs[: 2 * pairs].reshape(pairs, 2).mean(axis=1) if pairs > 2 else logs


@dataclasses.dataclass(frozen=True)
class _Lane:
    """A session that is warm: how long it took to make, a function per client, seconds of a typical run."""

    load_seconds: float
    calls: Sequence[Callable[[], object]]
    typical: float
    pool: ThreadPoolExecutor | None

    def block(self, seconds: float) -> Block:
        """Time a block; the run before it finds the caches full of another session's data, and does not count."""
        repeats = max(1, round(seconds / self.typical))
        if self.typical < _SLOW * _BLOCK_SECONDS:
            self.calls[0]()
        start = time.perf_counter()
        if self.pool is None:
            runs = _timed(self.calls[0], repeats)
            return Block(runs, float(np.median(runs)))
        parts = list(self.pool.map(lambda call: _timed(call, repeats), self.calls))
        return Block(np.concatenate(parts), (time.perf_counter() - start) / sum(map(len, parts)))


@contextlib.contextmanager
def _lanes(openers: Sequence[Opener], feeds: Arrays, clients: int, *, backwards: bool = False) -> Iterator[list[_Lane]]:
    """Open all contenders, the last one first if `backwards`, and warm them up until they run no faster."""
    lanes: list[_Lane] = []
    with ThreadPoolExecutor(clients) as pool:
        for opener in reversed(openers) if backwards else openers:
            start = time.perf_counter()
            session = opener()
            load_seconds = time.perf_counter() - start
            calls = [session.prepare(feeds) for _ in range(clients)]
            lanes.append(_Lane(load_seconds, calls, _warm(calls[0]), pool if clients > 1 else None))
        if backwards:
            lanes.reverse()
        yield lanes


def _warm(call: Callable[[], object]) -> float:
    """Run until three blocks in a row are no faster than the best before; return seconds per run."""
    call()
    best, steady = np.inf, 0
    repeats = 1
    for _ in range(_WARMUP_BLOCKS):
        typical = float(np.median(_timed(call, repeats)))
        if typical > _SLOW * _BLOCK_SECONDS:
            return typical
        steady = 0 if typical < (1 - _STEADY) * best else steady + 1
        best = min(best, typical)
        if steady == 3:
            break
        repeats = max(1, round(_BLOCK_SECONDS / best))
    return best


def _timed(call: Callable[[], object], repeats: int) -> np.ndarray:
    """Return the seconds of each of some runs in a row."""
    marks = np.empty(repeats + 1)
    marks[0] = time.perf_counter()
    for index in range(1, repeats + 1):
        call()
        marks[index] = time.perf_counter()
    return np.diff(marks)


def _rounds(lanes: Sequence[_Lane], rng: np.random.Generator, enough: Callable[[Opening], bool]) -> Opening:
    """Visit all lanes once a round, in an order that is drawn and then reversed, until `enough` says so."""
    done = Opening([lane.load_seconds for lane in lanes], [])
    order: list[int] = []
    seconds = _BLOCK_SECONDS
    while not (done.rounds and enough(done)):
        if len(done.rounds) % 2 == 0:
            order, seconds = rng.permutation(len(lanes)).tolist(), _BLOCK_SECONDS * rng.uniform(*_JITTER)
        else:
            order = order[::-1]
        row = {index: lanes[index].block(seconds) for index in order}
        done.rounds.append([row[index] for index in range(len(lanes))])
    return done


def _until(seconds: float) -> Callable[[Opening], bool]:
    """Go on for so many seconds, for a few rounds at least and for whole pairs of them."""
    end = time.perf_counter() + seconds
    return lambda done: len(done.rounds) >= _FEW_ROUNDS and len(done.rounds) % 2 == 0 and time.perf_counter() >= end
