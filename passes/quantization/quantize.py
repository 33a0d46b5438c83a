"""Quantize a model in the way that serves it best, by measurement

Ways to quantize are tried on the target. Static ones (calibrate, quantize-static): the ranges that keep the outputs best
are taken, channels equalized where that helps, errors made up for without labels (round-weights); where
layers are too fragile or slower in integers than in float, mix-precision decides which stay in float. Dynamic ones
(smooth, quantize-dynamic, fuse), for matrix products. Outputs are compared with those of the float model on samples, speed with
the float model's. What comes out is the fastest result that keeps `min_sqnr`; where none is at least as fast as the float
model, the model stays as it is, and the reason says what was measured.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from graphopt import runtime, saturation, spec, target
from graphopt.data import Data, open_data
from graphopt.fidelity import Fidelity
from graphopt.latency import Latency
from graphopt.passbase import LOSSY, Pass, PreconditionError, Result, param
from graphopt.passes.quantization._kernels import ANCHORS
from graphopt.passes.quantization._quantized import INTEGER
from graphopt.passes.quantization._race import Race, pays, speed
from graphopt.pipeline import become, duplicate
from graphopt.runtime import ExecutionError

OBSERVERS = ("mse", "moving-average", "min-max")
"""Kinds of ranges to try: those that came out best on real networks."""
_RECOVERABLE, _ENOUGH = -6.0, 12.0
"""dB around the budget between which it is worth the time to make up for errors."""
_FIDELITY_SAMPLES = 256
_BATCH = 32
_STRICTER = (30.0, 40.0)
"""What to ask for, dB, where the first result is rolled back."""
_SHARES = (0.125, 0.25, 0.5, 1.0)
"""Of the products by constant matrices, how many are tried with scales for every row."""
_SMOOTHINGS: tuple[Mapping[str, Any] | None, ...] = (None, {"insert_mul": False}, {"insert_mul": True})
"""How `smooth` prepares what gets its scales at run time; None: not at all."""
_MATRICES = 0.5
"""Share of the weights in matrix products from which on scales found at run time are worth a trial."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to quantize that was tried.

    Attributes:
        how: the way, in words.
        model: the result.
        reference: the float model that was quantized, with equalized channels perhaps.
        sqnr: of its worst output, dB.
        rows: `(node, reason)` of what stays in float.
        promise: in words, how its integers fare on processors without VNNI, where that was seen to on the way.
    """

    how: str
    model: ir.Model
    reference: ir.Model
    sqnr: float
    rows: list[tuple[str, str]]
    promise: str = ""


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
    weights: Literal["int8", "int4"] = param("int8", "what static ways keep weights in; int4 is as fast, and smaller")
    min_sqnr: float = param(20.0, "signal-to-noise ratio that every output keeps at least, dB; with int4 12 may do")
    portable: bool = param(False, "give the same results on processors without VNNI")
    samples: int = param(512, "how many samples to calibrate on at most")
    batch: int = param(64, "samples per run, where the model leaves the choice")
    seconds: float = param(1.5, "time for one latency comparison")
    target: str = param("cpu", "where the model will run, and where it is measured")

    def requires(self, model: ir.Model) -> None:
        """Refuse to run without data, on what is quantized already, and for targets without integer kernels."""
        if isinstance(self.data, str) and not self.data:
            raise PreconditionError("no calibration data; name some with data=FILE.npz, a few hundred typical inputs")
        done = next((node for node in model.graph.all_nodes() if node.op_type in INTEGER), None)
        if done is not None:
            raise PreconditionError(f"the model is quantized already: it has {done.op_type}")
        place = target.find(self.target)
        if place.provider != target.CPU:
            raise PreconditionError(
                f"ONNX Runtime's {place.provider} computes convolutions and products of integers on the CPU, with copies; "
                "use to-float16 there"
            )
        open_data(self.data).check(runtime.model_inputs(model))

    def call(self, model: ir.Model) -> Result:
        trial = _Trial(model, self)
        faithful: list[tuple[Candidate, Latency]] = []
        rows = []
        for candidate in trial.candidates():
            if isinstance(candidate, str):
                rows.append(candidate)
            elif candidate.sqnr < self.min_sqnr:
                rows.append(f"{candidate.how}: {candidate.sqnr:.1f} dB, under {self.min_sqnr:g} dB")
            else:
                latency = trial.latency(candidate)
                rows.append(f"{candidate.how}: {candidate.sqnr:.1f} dB, {speed(latency)}")
                faithful.append((candidate, latency))
        paying = [(candidate, latency) for candidate, latency in faithful if pays(latency)]
        if not paying:
            raise PreconditionError("; ".join(rows) or "there is nothing to quantize")
        best, latency = max(paying, key=lambda pair: pair[1].speedup)
        report: dict[str, Any] = {
            "how": best.how,
            "sqnr": round(best.sqnr, 2),
            "speedup": round(latency.speedup, 3),
            "tried": rows,
        }
        if self.portable:
            best, report["portable"] = trial.portable(best)
            report["sqnr"] = round(best.sqnr, 2)
        become(model, best.model)
        parts = [dataclasses.replace(self, min_sqnr=least) for least in _STRICTER if least > best.sqnr]
        return Result(model, True, report, best.rows, parts=parts)


class _Trial:
    """Tries ways to quantize one model."""

    def __init__(self, model: ir.Model, asked: Quantize) -> None:
        self._asked, self._place = asked, target.find(asked.target)
        self._model = duplicate(model)
        for node in self._model.graph.all_nodes():  # nodes are put back into float by their names
            node.name = node.name or node.outputs[0].name
        self._data, ports = open_data(asked.data), runtime.model_inputs(model)
        session = runtime.open_session(model, self._place)
        size = min(_BATCH, asked.samples)  # a batch is either calibrated on or held out
        self._fidelity = Fidelity(session, self._data, ports, samples=_FIDELITY_SAMPLES, skip=asked.samples, batch=size)
        self._race = Race(self._model, self._place, self._data, asked.seconds)
        self._latencies: dict[int, Latency] = {}

    def candidates(self) -> Iterator[Candidate | str]:
        """Yield what each way makes of the model, or why it makes nothing of it."""
        settled = False
        if self._asked.method == "dynamic" or (self._asked.method == "auto" and self._is_of_matrices()):
            for made in self._dynamic():
                settled = settled or (isinstance(made, Candidate) and self._will_do(made))
                yield made
        if self._asked.method in ("auto", "static"):
            yield from self._static(settled=settled)

    def _will_do(self, candidate: Candidate) -> bool:
        """Tell whether a candidate keeps the outputs, and is no slower than the float model."""
        return candidate.sqnr >= self._asked.min_sqnr and pays(self.latency(candidate))

    def latency(self, candidate: Candidate) -> Latency:
        """Time a candidate against the float model."""
        if id(candidate) not in self._latencies:
            self._latencies[id(candidate)] = self._race.against_float(candidate.model)
        return self._latencies[id(candidate)]

    def portable(self, candidate: Candidate) -> tuple[Candidate, str]:
        """Return a candidate in which nothing saturates on processors without VNNI, and what that took, in words."""
        if candidate.promise:
            return candidate, candidate.promise
        made = duplicate(candidate.model)
        result = self._run("avoid-saturation", made, reference=candidate.reference, data=self._data)
        line = saturation.promise(result.report)
        return dataclasses.replace(candidate, model=made, sqnr=self._sqnr(made)) if result.modified else candidate, line

    def _static(self, *, settled: bool) -> Iterator[Candidate | str]:
        """Yield the best ranges on the whole model and, unless that or something else will do, a mixed placement."""
        calibrated = self._calibrated(self._model, OBSERVERS)
        tried = [(made, name) for name in OBSERVERS if (made := self._quantized(calibrated, name)) is not None]
        if not tried:
            first = next(self._data.batches(_BATCH, _BATCH))[0].values()
            yield (
                "static: there is nothing to quantize, or ONNX Runtime does not run the result"
                if all(np.isfinite(array).all() for array in first if array.dtype.kind == "f")
                else "static: the data holds NaN or infinity; take such samples out"
            )
            return
        best, observer = max(tried, key=lambda pair: pair[0].sqnr)
        equalized = duplicate(self._model)
        if self._run("equalize", equalized, data=self._data).modified:
            equalized = self._calibrated(equalized, (observer,))
            other = self._quantized(equalized, observer)
            if other is not None and other.sqnr > best.sqnr:
                best, calibrated = dataclasses.replace(other, how=f"{other.how}, equalized"), equalized
        best = self._recovered(best)
        yield best
        if not settled and not self._will_do(best):
            yield self._mixed(calibrated, observer)

    def _mixed(self, calibrated: ir.Model, observer: str) -> Candidate | str:
        """Return what comes of leaving in float what is fragile or slower in integers."""
        made, asked = duplicate(calibrated), self._asked
        fields = {
            "min_sqnr": asked.min_sqnr,
            "samples": asked.samples,
            "seconds": asked.seconds,
            "target": asked.target,
        }
        try:
            result = self._run("mix-precision", made, data=self._data, observer=observer, **fields)
        except PreconditionError as reason:
            return f"mixed: {reason}"
        mixed = Candidate(f"mixed, {observer}", made, calibrated, self._sqnr(made), list(result.skipped))
        return self._recovered(mixed)

    def _dynamic(self) -> Iterator[Candidate | str]:
        """Yield the model on scales of run time: as it is, smoothed and, if that is not enough, with scales for every row.

        More and more of the noisiest products get these, until the outputs are kept.
        """
        found = [made for fields in _SMOOTHINGS if (made := self._by_run(fields)) is not None]
        if not found:
            yield "dynamic: there is nothing to quantize"
            return
        best = max(found, key=lambda candidate: candidate.sqnr)
        yield from found
        noisiest = self._noisiest(best.reference) if best.sqnr < self._asked.min_sqnr else []
        for share in _SHARES:
            names = tuple(noisiest[: math.ceil(share * len(noisiest))])
            if best.sqnr >= self._asked.min_sqnr or not names:
                break
            made = self._in_integers(
                best.reference, f"{best.how.partition(', rows')[0]}, rows of {len(names)}", rows=names
            )
            best = made if made is not None and made.sqnr > best.sqnr else best
        if best not in found:
            yield best

    def _by_run(self, smoothing: Mapping[str, Any] | None) -> Candidate | None:
        """Return the model on scales of run time, its activations smoothed before, or None if that changes nothing."""
        base = duplicate(self._model)
        if smoothing is None:
            return self._in_integers(base, "dynamic")
        how = "dynamic, smoothed by Mul" if smoothing["insert_mul"] else "dynamic, smoothed"
        smoothed = self._run("smooth", base, data=self._data, **smoothing).modified
        return self._in_integers(base, how) if smoothed else None

    def _in_integers(self, base: ir.Model, how: str, **fields: Any) -> Candidate | None:
        """Return a model on scales of run time; its operators are fused, without which it is often slower than in float.

        Where it has to be portable, weights are unsigned: fused operators cannot be changed any more.
        """
        made, promise = duplicate(base), ""
        result = self._run("quantize-dynamic", made, weights="uint8" if self._asked.portable else "int8", **fields)
        if not result.modified:
            return None
        if self._asked.portable:
            promise = saturation.promise(self._run("avoid-saturation", made).report)
        self._run("fuse", made)
        return Candidate(how, made, base, self._sqnr(made), list(result.skipped), promise)

    def _noisiest(self, base: ir.Model) -> list[str]:
        """Return the names of matrix products, the one whose rounding alone leaves the worst outputs first."""
        names = [node.name or "" for node in base.graph.all_nodes() if node.op_type in ("MatMul", "Gemm")]
        ratios = {}
        for name in names:
            others = tuple(other for other in names if other != name)
            alone = self._in_integers(base, name, exclude=others)
            if alone is not None:
                ratios[name] = alone.sqnr
        return sorted(ratios, key=lambda name: ratios[name])

    def _calibrated(self, model: ir.Model, observers: tuple[str, ...]) -> ir.Model:
        made, asked = duplicate(model), self._asked
        fields = {"samples": asked.samples, "batch": asked.batch, "target": asked.target}
        self._run("calibrate", made, data=self._data, observers=observers, **fields)
        return made

    def _quantized(self, calibrated: ir.Model, observer: str) -> Candidate | None:
        made = duplicate(calibrated)
        try:
            result = self._run("quantize-static", made, observer=observer, weights=self._asked.weights)
        except PreconditionError:  # nothing was calibrated, because nothing can be quantized
            return None
        if not result.modified:
            return None
        sqnr = self._sqnr(made)
        return (
            None if np.isnan(sqnr) else Candidate(f"static, {observer}", made, calibrated, sqnr, list(result.skipped))
        )

    def _recovered(self, candidate: Candidate) -> Candidate:
        """Return a candidate whose weights were rounded anew to make up for errors, if that brings its outputs closer."""
        if not _RECOVERABLE <= candidate.sqnr - self._asked.min_sqnr < _ENOUGH:
            return candidate
        made = duplicate(candidate.model)
        fields = {"reference": candidate.reference, "data": self._data, "samples": self._asked.samples}
        self._run("round-weights", made, **fields)
        sqnr = self._sqnr(made)
        if sqnr <= candidate.sqnr:
            return candidate
        return dataclasses.replace(candidate, how=f"{candidate.how}, rounded by outputs", model=made, sqnr=sqnr)

    def _is_of_matrices(self) -> bool:
        """Tell whether most weights are those of matrix products."""
        sizes = {True: 0, False: 0}
        for node in self._model.graph.all_nodes():
            for value in node.inputs[1:2]:
                if value is not None and value.const_value is not None and node.op_type in ANCHORS:
                    sizes[node.op_type != "Conv"] += value.const_value.size
        return sizes[True] > 0 and sizes[True] >= _MATRICES * sum(sizes.values())

    def _sqnr(self, model: ir.Model) -> float:
        try:
            return self._fidelity.worst(runtime.open_session(model, self._place))
        except ExecutionError:
            return float("nan")

    def _run(self, name: str, model: ir.Model, **fields: Any) -> Result:
        result = spec.build(name, fields)(model)
        assert isinstance(result, Result)
        return result
