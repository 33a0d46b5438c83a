"""Does a step pay? Measured: the metric within its budget, and the latency on the target."""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Sequence

import onnx_ir as ir

from graphopt import metrics, pipeline, runtime
from graphopt.data import Data
from graphopt.errors import UserError
from graphopt.latency import Latency, compare_latency
from graphopt.metrics import Change, CustomMetric, Metric, Score
from graphopt.pipeline import Start, Verdict
from graphopt.runtime import Arrays, ExecutionError, Port, Session
from graphopt.target import Target

_SECONDS = 2.0
"""Longest time for one latency comparison."""
_SMALLER = 0.9
"""A step that leaves the speed as it was pays if it leaves at most this share of the bytes."""
_TIE = 0.97
"""An interval of the speed-up that contains 1 and starts no lower than this counts as "the speed as it was"."""


@dataclasses.dataclass(frozen=True)
class Exam:
    """What quality means for this model: a metric, the data to compute it on, and the accepted drop."""

    metric: Metric | CustomMetric
    data: Data
    max_drop: str


class Referee:
    """Compares candidates with the input model."""

    def __init__(
        self,
        origin: Start,
        target: Target,
        ports: Sequence[Port],
        exam: Exam | None,
        timing: Arrays,
        batch: int,
        seed: int,
    ) -> None:
        """Prepare to judge.

        Args:
            origin: the input model.
            target: where latency is measured.
            ports: the input model's inputs.
            exam: what to hold candidates to, or None to look at latency alone.
            timing: inputs for latency measurements.
            batch: samples in `timing`.
            seed: of resampling.

        Raises:
            UserError: the metric cannot be computed on this data, or the budget cannot be read.
        """
        self._origin, self._target, self._ports, self._exam = origin, target, ports, exam
        self._timing, self._batch, self._seed = timing, batch, seed
        self._changes: weakref.WeakKeyDictionary[Session, Change] = weakref.WeakKeyDictionary()
        self._baseline: Score | None = None
        if exam:
            self._baseline = self._score(origin.session)
            self.budget = metrics.budget(exam.max_drop, self._baseline.value)

    def judge(self, current: ir.Model, candidate: ir.Model, session: Session) -> Verdict:
        """Decide about a candidate, of which there is a session, against the model that it would replace."""
        change = self.change(session)
        if change and not change.within(self.budget):
            return Verdict(False, self._over_budget(change))
        kept = f"{change.name} {change.before:.4f} to {change.after:.4f}, " if change else ""
        latency = self._race(current, candidate)
        speed = f"{latency.speedup:.2f}x the speed ({latency.ci95[0]:.2f} to {latency.ci95[1]:.2f})"
        if latency.ci95[0] > 1:
            return Verdict(True, kept + speed)
        shrunk = pipeline.measure(candidate)[1] <= _SMALLER * pipeline.measure(self._origin.model)[1]
        if shrunk and latency.ci95[0] >= _TIE and latency.ci95[1] >= 1:
            return Verdict(True, f"{kept}{speed}, and smaller")
        return Verdict(False, f"does not pay on this target: {speed}")

    def judge_metric(self, current: Session, session: Session) -> Verdict:
        """Decide about a candidate that was trained, by its session and that of the model that it would replace."""
        before, after = self.change(current), self.change(session)
        if before is None or after is None:
            return Verdict(True, "verified; there is no evaluation data to judge it by")
        text = f"{after.name} {before.after:.4f} to {after.after:.4f}"
        return Verdict(
            after.drop <= before.drop, text if after.drop <= before.drop else f"{text}: worse than before it"
        )

    def judge_speed(self, current: ir.Model, candidate: ir.Model, session: Session) -> Verdict:
        """Decide about a candidate that computes the same numbers as the model that it would replace."""
        del session  # the metric cannot have changed
        latency = self._race(current, candidate)
        speed = f"{latency.speedup:.2f}x the speed ({latency.ci95[0]:.2f} to {latency.ci95[1]:.2f})"
        if latency.ci95[0] > 1:
            return Verdict(True, f"verified, {speed}")
        return Verdict(False, f"does not pay on this target: {speed}")

    def change(self, session: Session) -> Change | None:
        """Return how the metric changed from the input model to this session's model, or None without an exam."""
        if self._exam is None:
            return None
        assert self._baseline is not None
        if session not in self._changes:
            after = self._score(session) if session is not self._origin.session else self._baseline
            self._changes[session] = metrics.change(self._exam.metric, self._baseline, after, self._seed)
        return self._changes[session]

    def latency(self, model: ir.Model) -> Latency:
        """Time a model against the input model; a verdict of "slower" is checked by a second measurement."""
        origin = self._origin.model
        latency = self._race(origin, model)
        if model is origin:
            return dataclasses.replace(latency, after_ms=latency.before_ms, speedup=1.0, ci95=(1.0, 1.0))
        return self._race(origin, model) if latency.ci95[1] < 1 else latency

    def _race(self, before: ir.Model, after: ir.Model) -> Latency:
        one, two = (functools.partial(runtime.open_session, model, self._target) for model in (before, after))
        return compare_latency(one, two, self._timing, self._batch, seconds=_SECONDS)

    def _score(self, session: Session) -> Score:
        assert self._exam is not None
        try:
            return metrics.evaluate(self._exam.metric, session, self._exam.data, self._ports, self._origin.session)
        except ExecutionError as error:
            raise UserError(f"{self._exam.data.name}: the model does not run on this data: {error}") from None

    def _over_budget(self, change: Change) -> str:
        text = f"{change.name} {change.before:.4f} to {change.after:.4f}: a drop of {change.drop:.4f}"
        if change.ci95 is None or change.drop > self.budget:
            return f"{text} is over the budget of {self.budget:g}"
        needed = change.samples_needed(self.budget)
        return f"{text} may be up to {change.ci95[1]:.4f} (95 % interval), over the budget of {self.budget:g}; " + (
            f"about {needed:,} evaluation samples would settle it" if needed else "more would not settle it"
        )
