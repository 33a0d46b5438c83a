"""Quantize a model in the way that serves it best, by measurement

Several ways are tried on the target: integers on fixed scales (calibrate, quantize-static), with each kind of range that
calibration records, and integers on scales found at run time (quantize-dynamic). Their outputs are compared with those of
the float model on samples, their speed with the float model's. Nodes that take longer in integers than in float are put
back. What comes out is the fastest of those that keep `min_sqnr`; where none is at least as fast as the float model, the
model stays as it is, and the reason says what was measured.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from graphopt import runtime, spec, target
from graphopt.data import Data, batch_size, open_data
from graphopt.fidelity import Fidelity
from graphopt.latency import Latency, compare_latency
from graphopt.passbase import LOSSY, Pass, PreconditionError, Result, param
from graphopt.passes.quantization import _placement
from graphopt.passes.quantization._kernels import ANCHORS
from graphopt.pipeline import duplicate
from graphopt.runtime import ExecutionError
from graphopt.target import Target

_QUANTIZED = (
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "MatMulNBits",
    "ConvInteger",
)
OBSERVERS = ("mse", "moving-average", "min-max", "percentile", "entropy")
"""Kinds of ranges to try."""
_FIDELITY_SAMPLES = 256
_STRICTER = (30.0, 40.0)
"""What to ask for, dB, where the first result is rolled back."""
_ROUNDS = 2
"""How many times nodes are put back into float at most."""
_TIE = 0.97
"""An interval of the speed-up that contains 1 and starts no lower than this counts as no slower."""
_LONGER = 3
"""How much longer to measure where an interval leaves it open whether the result is slower."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to quantize that was tried.

    Attributes:
        how: the way, in words.
        model: the result.
        sqnr: of its worst output, dB.
        rows: `(node, reason)` of what stays in float.
    """

    how: str
    model: ir.Model
    sqnr: float
    rows: list[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Quantize(Pass):
    """Quantize to integers where that keeps the outputs and pays on the target.

    Raises:
        PreconditionError: there is no data, the model is quantized already, the target has no fast integer kernels, or no
            way to quantize keeps the outputs at the speed of the float model.
    """

    contract = LOSSY

    data: str | Path | Mapping[str, np.ndarray] | Data = param(
        "", "representative inputs: a .npz file or package.module:factory", source="data"
    )
    method: Literal["auto", "static", "dynamic"] = param(
        "auto", "fixed scales, scales found at run time, or the faster"
    )
    min_sqnr: float = param(20.0, "signal-to-noise ratio that every output keeps at least, dB")
    samples: int = param(512, "how many samples to calibrate on at most")
    batch: int = param(64, "samples per run, where the model leaves the choice")
    seconds: float = param(1.5, "time for one latency comparison")
    target: str = param("", "where the model will run, and where it is measured; cpu by default")

    def requires(self, model: ir.Model) -> None:
        """Refuse to run without data, on what is quantized already, and for targets without integer kernels."""
        if isinstance(self.data, str) and not self.data:
            raise PreconditionError("no calibration data; name some with data=FILE.npz, a few hundred typical inputs")
        done = next((node for node in model.graph.all_nodes() if node.op_type in _QUANTIZED), None)
        if done is not None:
            raise PreconditionError(f"the model is quantized already: it has {done.op_type}")
        place = target.find(self.target or "cpu")
        if place.provider != target.CPU:
            raise PreconditionError(
                f"ONNX Runtime's {place.provider} computes convolutions and products of integers on the CPU, with copies; "
                "use to-float16 there"
            )
        open_data(self.data).check(runtime.model_inputs(model))

    def call(self, model: ir.Model) -> Result:
        place, data = target.find(self.target or "cpu"), open_data(self.data)
        ports = runtime.model_inputs(model)
        fidelity = Fidelity(
            runtime.open_session(model, place), data, ports, samples=_FIDELITY_SAMPLES, skip=self.samples
        )
        feeds = next(data.batches(size := batch_size(ports, 1), size))[0]
        trial = _Trial(model, place, fidelity, feeds, size, self)
        faithful, refused = [], []
        for candidate in trial.candidates():
            if candidate.sqnr >= self.min_sqnr:
                faithful.append((candidate, trial.verdict(model, candidate.model)))
            else:
                refused.append(f"{candidate.how}: {candidate.sqnr:.1f} dB, under {self.min_sqnr:g} dB")
        rows = [f"{c.how}: {c.sqnr:.1f} dB, {_speed(latency)}" for c, latency in faithful] + refused
        paying = [(candidate, latency) for candidate, latency in faithful if _pays(latency)]
        if not paying:
            raise PreconditionError("; ".join(rows) or "there is nothing to quantize")
        best, latency = max(paying, key=lambda pair: pair[1].speedup)
        _become(model, best.model)
        report = {"how": best.how, "sqnr": round(best.sqnr, 2), "speedup": round(latency.speedup, 3), "tried": rows}
        return Result(model, True, report, best.rows, parts=self._fallbacks(best, [c for c, _ in paying]))

    def _fallbacks(self, best: Candidate, others: list[Candidate]) -> list[Pass]:
        """Return what to try where the metric forbids the best: the same more closely, then another way."""
        del others
        return [dataclasses.replace(self, min_sqnr=least) for least in _STRICTER if least > best.sqnr]


class _Trial:
    """Tries ways to quantize one model."""

    def __init__(
        self,
        model: ir.Model,
        place: Target,
        fidelity: Fidelity,
        feeds: Mapping[str, np.ndarray],
        batch: int,
        asked: Quantize,
    ) -> None:
        self._model, self._place, self._fidelity = model, place, fidelity
        self._feeds, self._batch, self._asked = feeds, batch, asked

    def candidates(self) -> Iterator[Candidate]:
        """Yield what each way makes of the model."""
        if self._asked.method in ("auto", "static"):
            yield from self._static()

    def race(self, before: ir.Model, after: ir.Model, times: float = 1) -> Latency:
        """Time two models against each other, for some times what was asked for."""
        one, two = (functools.partial(runtime.open_session, model, self._place) for model in (before, after))
        return compare_latency(one, two, self._feeds, self._batch, seconds=self._asked.seconds * times)

    def verdict(self, before: ir.Model, after: ir.Model) -> Latency:
        """Time two models until it is known whether the second is slower, or the first attempt and a longer one are over."""
        latency = self.race(before, after)
        open_ = latency.ci95[0] < _TIE and latency.ci95[1] >= 1
        return self.race(before, after, _LONGER) if open_ else latency

    def _static(self) -> Iterator[Candidate]:
        calibrated = duplicate(self._model)
        for node in calibrated.graph.all_nodes():  # nodes are put back into float by their names
            node.name = node.name or node.outputs[0].name
        asked = self._asked
        _run("calibrate", calibrated, data=asked.data, samples=asked.samples, batch=asked.batch, observers=OBSERVERS)
        best: Candidate | None = None
        for observer in OBSERVERS:
            candidate = self._quantized(calibrated, observer=observer)
            if candidate is not None and (best is None or candidate.sqnr > best.sqnr):
                best, chosen = candidate, observer
        if best is not None:
            yield self._placed(calibrated, best, observer=chosen)

    def _quantized(self, calibrated: ir.Model, **fields: Any) -> Candidate | None:
        made = duplicate(calibrated)
        result = _run("quantize-static", made, **fields)
        if not result.modified:
            return None
        try:
            sqnr = self._fidelity.worst(runtime.open_session(made, self._place))
        except ExecutionError:
            return None
        return Candidate(f"static, {fields['observer']}", made, sqnr, list(result.skipped))

    def _placed(self, calibrated: ir.Model, best: Candidate, **fields: Any) -> Candidate:
        """Put nodes back into float that take longer in integers, as long as that makes the whole faster."""
        data, observer = open_data(self._asked.data), fields["observer"]
        for _ in range(_ROUNDS):
            times = _placement.node_times(calibrated, best.model, data, self._place, seconds=self._asked.seconds / 3)
            rows = _placement.left_in_float(calibrated, times, observer, ANCHORS)
            candidate = self._quantized(calibrated, exclude=tuple(rows), **fields) if rows else None
            if candidate is None or self.race(best.model, candidate.model).ci95[0] <= 1:
                break
            left = [(name, rows.get(name, reason)) for name, reason in candidate.rows]
            best = dataclasses.replace(candidate, rows=left)
        return best


def _run(name: str, model: ir.Model, **fields: Any) -> Result:
    result = spec.build(name, fields)(model)
    assert isinstance(result, Result)
    return result


def _pays(latency: Latency) -> bool:
    return latency.ci95[0] >= _TIE and latency.ci95[1] >= 1


def _speed(latency: Latency) -> str:
    return f"{latency.speedup:.2f}x the speed ({latency.ci95[0]:.2f} to {latency.ci95[1]:.2f})"


def _become(model: ir.Model, made: ir.Model) -> None:
    """Give a model what a changed copy of it holds."""
    model.graph, model.ir_version = made.graph, made.ir_version
    model.functions.clear()
    model.functions.update(made.functions)
