"""Compare a model with a reference, output by output and on a task."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt import compare, io, metrics, pipeline, runtime
from graphopt.data import Data, open_data
from graphopt.errors import UserError
from graphopt.metrics import Change, CustomMetric, Metric
from graphopt.runtime import ExecutionError
from graphopt.target import Target
from graphopt.target import find as find_target


@dataclasses.dataclass(frozen=True)
class OutputError:
    """How far one output is from the reference, over all inputs that were run.

    Attributes:
        name: the output.
        max_error, mean_error: absolute, over finite reference elements; 0 where types are not floating-point and equal.
        sqnr: signal-to-quantization-noise ratio in dB; infinity when equal.
        mismatch: what is beyond the tolerance of exact passes, in words, or None.
    """

    name: str
    max_error: float
    mean_error: float
    sqnr: float
    mismatch: str | None


@dataclasses.dataclass(frozen=True)
class Validation:
    """The result of `validate`.

    Attributes:
        model, reference: paths; without a reference the model is only loaded, run and scored.
        outputs: one row per output, empty without a reference.
        score: the metric of the model alone, or None.
        metric: the change of the metric from the reference, or None.
        failures: gates that were not met, in words.
        met: whether all gates were met.
    """

    model: str
    reference: str | None
    outputs: list[OutputError]
    score: float | None
    metric: Change | None
    failures: list[str]
    met: bool

    def to_json(self) -> dict[str, Any]:
        """Return the object of `validate --json`."""
        return dataclasses.asdict(self)


def validate(
    model: str | Path,
    reference: str | Path | None = None,
    *,
    data: str | Path | Mapping[str, np.ndarray] | Data | None = None,
    metric: str | None = None,
    max_drop: str | float | None = None,
    min_sqnr: float | None = None,
    target: str | Target = "cpu",
    seed: int = 0,
) -> Validation:
    """Check that a model loads, runs, and computes what its reference computes.

    Args:
        model: path of the .onnx file.
        reference: path of the model it should agree with.
        data: what to run on, labelled for most metrics; by default seeded random inputs.
        metric: a built-in name or `package.module:function`.
        max_drop: gate on the metric's drop against the reference: absolute, or "0.5%" relative.
        min_sqnr: gate on the signal-to-noise ratio of every output, dB. Without any gate the outputs
            must be equal within the tolerance of exact passes.
        target: where to run.
        seed: of random inputs and resampling.

    Raises:
        UserError: anything the caller can fix.
    """
    if reference is None and (max_drop is not None or min_sqnr is not None):
        raise UserError("a gate compares with a reference; add --reference")
    if data is None and metric is not None:
        raise UserError(f"metric '{metric}' needs data; add --data")
    if max_drop is not None and metric is None:
        raise UserError("--max-drop limits a metric; add --metric, such as accuracy")
    place = find_target(target) if isinstance(target, str) else target
    start = _open(model, place)
    source = open_data(data) if data is not None else None
    feeds = pipeline.feeds_for(start, source, seed, str(model))
    ports = runtime.model_inputs(start.model)
    truth = _open(reference, place) if reference is not None else None
    chosen = metrics.find(metric) if metric else None
    score, change, failures = None, None, []
    if chosen and source:
        labels = isinstance(chosen, Metric) and chosen.needs == "labels"
        source.check(ports, labels=labels)
        if isinstance(chosen, Metric) and not labels and truth is None:
            raise UserError(f"metric '{metric}' compares with a reference; add --reference")
        score, change = _score(chosen, start, truth, source, seed)
    outputs = [] if truth is None else _errors(start, truth, feeds)
    if change and max_drop is not None:
        budget = metrics.budget(str(max_drop), change.before)
        if not change.within(budget):
            end = f", up to {change.ci95[1]:.4f} (95 %)" if change.ci95 else ""
            failures.append(f"{change.name} drops by {change.drop:.4f}{end}; the budget is {budget:g}")
    if min_sqnr is not None:
        failures += [
            f"output '{o.name}': {o.sqnr:.1f} dB, under {min_sqnr:g} dB" for o in outputs if not o.sqnr >= min_sqnr
        ]
    if max_drop is None and min_sqnr is None:
        failures += [f"output '{o.name}': {o.mismatch}" for o in outputs if o.mismatch]
    return Validation(
        str(model), None if reference is None else str(reference), outputs, score, change, failures, not failures
    )


def _open(path: str | Path, target: Target) -> pipeline.Start:
    return pipeline.begin(io.load(path), target, (), str(path))


def _score(
    metric: Metric | CustomMetric, start: pipeline.Start, truth: pipeline.Start | None, data: Data, seed: int
) -> tuple[float, Change | None]:
    ports = runtime.model_inputs(start.model)
    session = truth.session if truth else None
    after = metrics.evaluate(metric, start.session, data, ports, session)
    if truth is None:
        return after.value, None
    before = metrics.evaluate(metric, truth.session, data, ports, session)
    return after.value, metrics.change(metric, before, after, seed)


def _errors(
    start: pipeline.Start, truth: pipeline.Start, feeds: Sequence[Mapping[str, np.ndarray]]
) -> list[OutputError]:
    """Compare all outputs over all feeds."""
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for inputs in feeds:
        try:
            expected, actual = truth.session.run(inputs), start.session.run(inputs)
        except ExecutionError as error:
            raise UserError(f"the models do not take the same inputs: {error}") from None
        if list(expected) != list(actual):
            raise UserError(
                f"the models have different outputs: {', '.join(actual)} and {', '.join(expected)} in the reference"
            )
        for name, array in expected.items():
            pairs.setdefault(name, []).append((array, actual[name]))
    return [_error(name, rows) for name, rows in pairs.items()]


def _error(name: str, rows: list[tuple[np.ndarray, np.ndarray]]) -> OutputError:
    mismatch = next((why for a, b in rows if (why := compare.mismatch(a, b, 1e-4))), None)
    same_kind = all(a.shape == b.shape and a.dtype.kind in "fiub" and b.dtype.kind in "fiub" for a, b in rows)
    if not same_kind:
        equal = mismatch is None
        return OutputError(
            name,
            0.0 if equal else float("nan"),
            0.0 if equal else float("nan"),
            float("inf") if equal else float("-inf"),
            mismatch,
        )
    flat = np.concatenate([_absolute_errors(a, b) for a, b in rows])
    sums = np.sum([compare.sqnr_sums(a, b) for a, b in rows], axis=0)
    largest, mean = (float(flat.max()), float(flat.mean())) if flat.size else (0.0, 0.0)
    return OutputError(name, largest, mean, compare.decibels(*map(float, sums)), mismatch)


def _absolute_errors(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """Return |candidate - reference| where the reference is finite, flat."""
    a, b = reference.astype(np.float64), candidate.astype(np.float64)
    finite = np.isfinite(a)
    return np.asarray(np.abs(b[finite] - a[finite]))
