"""Which layers lose a model's accuracy when it is quantized."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt import io, metrics, pipeline, runtime, spec
from graphopt.data import Source, open_data
from graphopt.errors import UsageError, UserError
from graphopt.fidelity import Fidelity
from graphopt.passbase import PreconditionError
from graphopt.runtime import ExecutionError
from graphopt.sensitivity import layers, noise, preparing
from graphopt.sensitivity.layers import Layer
from graphopt.sensitivity.scoring import Referee
from graphopt.sensitivity.sources import Sources
from graphopt.sensitivity.times import node_times
from graphopt.target import Target
from graphopt.target import find as find_target


@dataclasses.dataclass(frozen=True)
class Output:
    """Signal-to-noise ratios of an output when everything is rounded, dB: from the sum over layers, and measured."""

    name: str
    predicted: float
    measured: float


@dataclasses.dataclass(frozen=True)
class Score:
    """A metric of the float model and of the quantized one."""

    name: str
    before: float
    after: float


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """What `analyse` found.

    Attributes:
        model: its path.
        scheme: how it was quantized.
        target: where it ran.
        samples: how many the noise was measured on.
        runs: how many models were run over them.
        layers: the one that makes the most noise at an output first.
        outputs: of the model, floating-point ones.
        metric: or None.
        unmatched: names of what is rounded in the quantized model and has no counterpart in the float one, so that no
            layer accounts for it.
        skipped: `(node, reason)` of what stays in float.
        seconds: how long it took.
    """

    model: str
    scheme: str
    target: str
    samples: int
    runs: int
    layers: list[Layer]
    outputs: list[Output]
    metric: Score | None
    unmatched: list[str]
    skipped: list[tuple[str, str]]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the object of `sensitivity --json`."""
        return dataclasses.asdict(self)


def analyse(
    model: str | Path,
    data: Source,
    *,
    samples: int = 64,
    eval_data: Source | None = None,
    metric: str | None = None,
    scheme: str = "quantize-static",
    target: str | Target = "cpu",
    seconds: float = 1.0,
    progress: Callable[[str], None] = lambda text: None,
) -> Sensitivity:
    """Measure what rounding each layer of a float model costs, one at a time.

    Args:
        model: path of the .onnx file.
        data: representative inputs, to calibrate on and to measure with.
        samples: how many to measure with.
        eval_data: what to compute the metric on; by default `data`.
        metric: a metric, computed once for every layer.
        scheme: the pass that quantizes, with its fields.
        target: where to run.
        seconds: how long to record the float and the quantized model for the times of nodes; 0 for no times.
        progress: told what is going on.

    Raises:
        UserError: the model does not run, the data does not fit, or there is nothing to quantize.
    """
    start = time.perf_counter()
    place = find_target(target) if isinstance(target, str) else target
    if eval_data is not None and metric is None:
        raise UsageError("evaluation data is for a metric; name one, such as --metric accuracy")
    judge = metrics.find(metric) if metric is not None else None
    quantizer = spec.parse(scheme)
    loaded = pipeline.begin(io.load(model), place, (), str(model)).model
    read, ports = open_data(data), runtime.model_inputs(loaded)
    read.check(ports)
    progress("calibrating")
    observer = getattr(quantizer, "observer", "min-max")
    try:
        named = preparing.calibrated(loaded, read, observers=(observer,))
        made, result = preparing.quantized(named, quantizer)
    except PreconditionError as reason:
        raise UserError(f"{model}: {reason}") from None
    reference = runtime.open_session(named, place)
    referee = None if judge is None else Referee(judge, open_data(eval_data or read), reference, ports)
    found = Sources(named, made)
    fidelity = Fidelity(reference, read, ports, samples=samples)
    try:
        session = runtime.open_session(made, place)
        measured = fidelity.sqnr(session)
    except ExecutionError as error:
        raise UserError(f"{model}: does not run when quantized: {error}") from None
    if not measured:
        raise UserError(f"{model}: has no floating-point output, by which sensitivity is measured")
    meter = noise.Meter(found, fidelity, place)
    each = meter.each(progress)
    took = {}
    if seconds and _has_profiler(named, place):
        progress("timing")
        took = node_times(named, made, read, place, seconds=seconds)
    rows = layers.describe(named, each, list(measured), took)
    if referee is not None:
        parts = layers.group(named, each)
        for number, row in enumerate(rows):
            progress(f"{referee.name}: {number + 1} of {len(rows)}: {row.name}")
            drop = referee.drop(runtime.open_session(found.apply(parts[row.name]), place))
            rows[number] = dataclasses.replace(row, drop=drop)
    predicted = noise.decibels(noise.total(each.values(), measured))
    return Sensitivity(
        str(model),
        spec.render(quantizer, sources=False),
        str(place),
        fidelity.samples,
        meter.runs,
        sorted(rows, key=lambda row: row.sqnr),
        [Output(name, predicted[name], measured[name]) for name in measured],
        None if referee is None else Score(referee.name, referee.before, referee.score(session)),
        found.unmatched,
        list(result.skipped),
        time.perf_counter() - start,
    )


def _has_profiler(model: ir.Model, place: Target) -> bool:
    try:
        runtime.find(place).recorder(model, place)
    except UserError:
        return False
    return True
