"""Run models with and without the profiler, in turn, and keep what it recorded.

Blocks of a few milliseconds alternate between the models, and in each between runs that are recorded and runs that
are not, so that a machine that slows down or speeds up does so for all of them. The order of models is drawn every round.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.errors import UsageError, UserError
from graphopt.profiling.trace import Run, Trace
from graphopt.runtime import Arrays, Runtime, Session
from graphopt.target import Target

FEWEST_RUNS = 5

_BLOCK_SECONDS = 0.004
_SLOW = 0.05
"""A run that takes longer than this, in seconds, needs no uncounted run before it."""
_WARMUP_SECONDS = 0.1
_MOST_WARMUPS = 200
_USUAL_EVENTS = 100_000
"""Events that are recorded at most unless the caller asks for more runs; reading them takes about a second."""
_SPARE = 0.5
"""Share of the events that a profiler keeps which is ever used; what is read takes up memory."""
_EVENT_SECONDS = 5e-6
"""What it takes to record an event, about."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """A model to record.

    Attributes:
        name: what to call it in messages.
        model: what the runtime is given; every node has a name.
        plain: a session of it that is not recorded.
    """

    name: str
    model: ir.Model
    plain: Session


@dataclasses.dataclass(frozen=True)
class Recording:
    """What was recorded of one model.

    Attributes:
        runs: the runs that count.
        plain_seconds: median seconds of a run without the profiler, as the caller sees it, by round, [rounds].
        recorded_seconds: the same with the profiler, [rounds].
        call_seconds: of each of `runs`, as the caller sees it, [runs].
        content: the profiler's own file, of all runs; empty if it was not asked for.
    """

    runs: Sequence[Run]
    plain_seconds: np.ndarray
    recorded_seconds: np.ndarray
    call_seconds: np.ndarray
    content: bytes


def record(
    contenders: Sequence[Contender],
    feeds: Arrays,
    runtime: Runtime,
    target: Target,
    *,
    runs: int | None,
    seconds: float,
    seed: int,
    keep: bool,
) -> list[Recording]:
    """Record runs of models on the same inputs.

    Args:
        contenders: the models.
        feeds: inputs of every run.
        runtime, target: where to run.
        runs: how many runs of each model to record; by default as many as fit into `seconds`.
        seconds: how long the recorded runs of a model may take.
        seed: of the order in which models take turns.
        keep: whether to return the profiler's own files, too.

    Raises:
        ExecutionError: a model does not load or run.
        UserError: there would be more events than the profiler keeps.
    """
    plans = [_plan(contender, feeds, runtime, target, runs, seconds) for contender in contenders]
    with contextlib.ExitStack() as stack:
        recorders = [stack.enter_context(runtime.recorder(contender.model, target)) for contender in contenders]
        lanes = [
            _Lane(contender.plain.prepare(feeds), recorder.session.prepare(feeds), plan)
            for contender, recorder, plan in zip(contenders, recorders, plans, strict=True)
        ]
        rounds = min(plan.rounds for plan in plans)
        rng = np.random.default_rng(seed)
        for number in range(rounds):
            for index in rng.permutation(len(lanes)):
                lanes[index].visit(rounds - number)
        return [
            lane.recording(contender.name, recorder.finish(), keep=keep)
            for contender, lane, recorder in zip(contenders, lanes, recorders, strict=True)
        ]


@dataclasses.dataclass(frozen=True)
class _Plan:
    """How to record a model: how many runs, in how many blocks of 4 ms or one run, and the seconds of a run."""

    runs: int
    rounds: int
    seconds: float


def _plan(
    contender: Contender, feeds: Arrays, runtime: Runtime, target: Target, runs: int | None, seconds: float
) -> _Plan:
    """Run a model a few times to see how long it takes, and how many events a run makes."""
    typical = min(_timed(contender.plain.prepare(feeds)) for _ in range(3))
    with runtime.recorder(contender.model, target) as recorder:
        recorder.session.prepare(feeds)()
        events = recorder.finish().events
    typical += events * _EVENT_SECONDS
    most = int(_SPARE * recorder.most_events / events) - _warmups(typical)
    if typical < _SLOW:  # the first run of every block does not count
        most = most * _block(typical) // (_block(typical) + 1)
    if most < FEWEST_RUNS:
        raise UserError(
            f"{contender.name}: a run makes {events:,} events or more, too many for a profiler that keeps "
            f"{recorder.most_events:,}; give it smaller inputs"
        )
    if runs is None:
        runs = min(most, max(FEWEST_RUNS, min(int(seconds / typical), _USUAL_EVENTS // events)))
    elif runs > most:
        raise UsageError(
            f"{contender.name}: a run makes {events:,} events, and the profiler keeps {recorder.most_events:,}; "
            f"profile it with at most --runs {most}"
        )
    return _Plan(runs, math.ceil(runs / _block(typical)), typical)


class _Lane:
    """A model being recorded."""

    def __init__(self, plain: Callable[[], object], recorded: Callable[[], object], plan: _Plan) -> None:
        self._counts: list[bool] = []
        """For each recorded run, whether it counts: those of the warm-up and the first of a block do not."""
        self._plain_seconds: list[float] = []
        self._recorded_seconds: list[float] = []
        self._call_seconds: list[float] = []
        self._is_fast = plan.seconds < _SLOW
        self._plain, self._recorded = plain, recorded
        self._left = plan.runs
        for _ in range(_warmups(plan.seconds)):
            plain()
            self._record(counts=False)

    def visit(self, rounds: int) -> None:
        """Run a block without the profiler and one with it, given how many rounds are left."""
        block = math.ceil(self._left / rounds)
        self._left -= block
        if self._is_fast:  # the first run finds the caches full of another session's data
            self._plain()
        self._plain_seconds.append(float(np.median([_timed(self._plain) for _ in range(block)])))
        if self._is_fast:
            self._record(counts=False)
        recorded = [self._record(counts=True) for _ in range(block)]
        self._recorded_seconds.append(float(np.median(recorded)))
        self._call_seconds += recorded

    def recording(self, name: str, trace: Trace, *, keep: bool) -> Recording:
        """Return what was recorded.

        Raises:
            UserError: something was lost.
        """
        runs = trace.read()
        if len(runs) != len(self._counts):
            raise UserError(f"{name}: the profiler lost events of some runs; profile it with fewer --runs")
        return Recording(
            [run for run, counts in zip(runs, self._counts, strict=True) if counts],
            np.array(self._plain_seconds),
            np.array(self._recorded_seconds),
            np.array(self._call_seconds),
            trace.file.read_bytes() if keep else b"",
        )

    def _record(self, *, counts: bool) -> float:
        self._counts.append(counts)
        return _timed(self._recorded)


def _block(typical: float) -> int:
    """Return how many runs of so many seconds make a block."""
    return max(1, round(_BLOCK_SECONDS / typical))


def _warmups(typical: float) -> int:
    """Return how many runs of so many seconds come before those that are timed."""
    return min(_MOST_WARMUPS, max(1, round(_WARMUP_SECONDS / typical)))


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
