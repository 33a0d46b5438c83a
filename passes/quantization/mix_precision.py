"""Quantize as much as the outputs bear, and leave in float what they do not

What rounding the weights of each node and each activation does to the outputs is measured, one at a time (see
`graphopt sensitivity`). Noise powers of small independent perturbations add, so the noise of every placement can be
predicted; the cheapest placement is a minimum cut over the measured times of nodes. Nodes go back to float in the order
of the noise they save per microsecond that they cost, until the prediction meets the budget. How many really have to is
then found by bisection on quantized models, on samples that had no part in the ranking, and the result is timed against
the float model: it is no slower, or the model stays as it is.

Partial quantization by a ranking of layers: Wu et al. 2020 (arXiv:2004.09602, section 5.1). Sums of single perturbations
as the cost of a mixed precision: Dong et al. 2020 (HAWQ-V2, arXiv:1911.03852). Here every tensor counts once, whoever reads it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir

from graphopt import metrics, runtime, target
from graphopt.data import Data, fitted_batches, open_data
from graphopt.fidelity import Fidelity
from graphopt.latency import Latency
from graphopt.passbase import LOSSY, Pass, PreconditionError, Result, param
from graphopt.passes.quantization import _ranges
from graphopt.passes.quantization._graphs import infer_types
from graphopt.passes.quantization._kernels import ANCHORS, CLAMPS
from graphopt.passes.quantization._mix_narrow import narrow
from graphopt.passes.quantization._mix_plan import Planner
from graphopt.passes.quantization._mix_retreat import Retreat
from graphopt.passes.quantization._mix_search import Move
from graphopt.passes.quantization._mix_trial import Placement, Trial, Tried
from graphopt.passes.quantization._quantized import INTEGER
from graphopt.passes.quantization._race import Race, pays, speed
from graphopt.pipeline import become
from graphopt.sensitivity import layers, noise, preparing
from graphopt.sensitivity.scoring import Referee
from graphopt.sensitivity.sources import Source, Sources
from graphopt.sensitivity.times import node_times

_HELD = 256
"""Samples to verify on at most."""
_BATCH = 32
"""Samples per run. A batch is used for the one or the other."""
_STRICTER = (10.0, 20.0)
"""By how many dB more to ask for, where the result is rolled back."""
_TOLD = 3
"""Fragile layers to name where all must stay in float."""
_SLOW = "integers do not pay here: {:.0f} us in float, {:.0f} us in integers, and conversions"


@dataclasses.dataclass(frozen=True)
class MixPrecision(Pass):
    """Quantize statically all but the nodes whose rounding the outputs do not bear.

    A model that carries activation ranges is quantized on those; any other is calibrated first.

    Raises:
        PreconditionError: there is no data, the model is quantized already, the target has no integer kernels, or no
            placement keeps the outputs at the speed of the float model.
        UserError: the data does not fit the model, or there is no such metric.
    """

    contract = LOSSY

    data: str | Path | Mapping[str, np.ndarray] | Data = param(
        "", "representative inputs: a .npz file or package.module:factory", source="data"
    )
    min_sqnr: float = param(20.0, "signal-to-noise ratio that every output keeps at least, dB")
    metric: str = param("", "a metric to keep, too, such as accuracy, or package.module:function")
    max_drop: str = param("0.005", "how much of the metric may be lost, absolute (0.005) or relative (0.5%)")
    eval_data: str | Path | Mapping[str, np.ndarray] | Data = param(
        "", "what to compute the metric on; by default the data", source="data"
    )
    observer: str = param("min-max", "which ranges to use: min-max, percentile, mse, ...")
    weights: Literal["int8", "int4", "mixed"] = param(
        "int8", "what weights are kept in; mixed: in 4 bits as far as the outputs bear it, else in 8"
    )
    int16: bool = param(
        False, "keep activations of fragile nodes in 16 bits, not in float, if that is no slower than the float model"
    )
    samples: int = param(512, "how many samples to calibrate on at most")
    ranking: int = param(64, "how many of these to measure every layer on")
    seconds: float = param(1.5, "time for one latency comparison")
    target: str = param("", "where the model will run, and where it is measured; cpu by default")

    def __post_init__(self) -> None:
        for name in ("samples", "ranking"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.seconds <= 0:
            raise ValueError(f"seconds is {self.seconds}; it must be positive")

    def requires(self, model: ir.Model) -> None:
        """Refuse to run without data, on what is quantized already, and for targets without integer kernels."""
        if isinstance(self.data, str) and not self.data:
            raise PreconditionError("no data; name some with data=FILE.npz, a few hundred typical inputs")
        done = next((node for node in model.graph.all_nodes() if node.op_type in INTEGER), None)
        if done is not None:
            raise PreconditionError(f"the model is quantized already: it has {done.op_type}")
        place = target.find(self.target or "cpu")
        if place.provider != target.CPU:
            raise PreconditionError(
                f"ONNX Runtime's {place.provider} has no fast integer kernels; use to-float16 there"
            )
        open_data(self.data).check(runtime.model_inputs(model))

    def call(self, model: ir.Model) -> Result:
        place, data = target.find(self.target or "cpu"), open_data(self.data)
        ports = runtime.model_inputs(model)
        seen = self._seen(data, ports)
        named = preparing.calibrated(model, data, samples=seen, observers=(self.observer,), target=self.target)
        infer_types(named)
        reference = runtime.open_session(named, place)
        held = Fidelity(reference, data, ports, samples=_HELD, skip=seen, batch=min(seen, _BATCH))
        fields = {"observer": self.observer, "weights": "int8" if self.weights == "mixed" else self.weights}
        trial = Trial(named, place, fields, held, self.min_sqnr, *self._referee(reference, ports))
        whole = trial.make(Placement())
        if whole is None:
            raise PreconditionError("there is nothing to quantize, or the model does not run when it is quantized")
        sources = Sources(named, whole.model)
        ranking = Fidelity(reference, data, ports, samples=min(self.ranking, seen))
        each = noise.Meter(sources, ranking, place).each()
        times = node_times(named, whole.model, data, place, seconds=self.seconds / 5)
        recorded, outputs = _ranges.read(named, self.observer), held.sqnr(reference)
        race = Race(model, place, data, self.seconds)
        found: list[_Candidate] = []
        for by_time in (True, False):  # what nodes take alone does not tell all of what they take together
            planner = Planner(named, recorded, ANCHORS, times, sources, by_time=by_time)
            path = Retreat(planner, trial, each, self.min_sqnr, outputs)
            taken = path.shortest()
            tried = path.tried(len(taken)) if taken is not None else None
            if taken is None or tried is None or any(tried is candidate.tried for candidate in found):
                continue
            reasons = self._reasons(taken, each)
            slow = {name: _SLOW.format(*times[name]) for name in planner.excluded(reasons) if name in times}
            latency = race.against_float(tried.model)
            placement = Placement(planner.excluded(taken[-1].floats if taken else ()))
            found.append(
                _Candidate(
                    tried, placement, path.predicted(len(taken)), {**slow, **reasons}, frozenset(reasons), latency
                )
            )
        if not found:
            raise PreconditionError(self._failure(whole, named, each))
        best = max(found, key=lambda candidate: candidate.latency.speedup)
        if not best.pays:
            raise PreconditionError(f"quantization does not pay: {best}, {whole} when everything is quantized")
        if self.int16 and best.fragile:
            floats = best.placement.floats - best.fragile
            best = best.instead(Placement(floats, int16=best.fragile), trial, race)
        if self.weights == "mixed":
            best = best.instead(narrow(named, best.placement, trial, ranking, place), trial, race)
        become(model, best.tried.model)
        rows = _explained(named, best.tried.rows, best.reasons)
        report = {
            "sqnr": round(best.tried.sqnr, 2),
            "predicted": round(best.predicted, 2),
            "everything_quantized": round(whole.sqnr, 2),
            "quantized": best.tried.quantized,
            "in_float": len(rows),
            **({"int16": len(best.placement.int16)} if self.int16 else {}),
            **({"int4": len(best.placement.int4)} if self.weights == "mixed" else {}),
            "speedup": round(best.latency.speedup, 3),
            "verified_on": held.samples,
            **({} if best.tried.drop is None else {"drop": round(best.tried.drop, 5)}),
        }
        stricter = [dataclasses.replace(self, min_sqnr=self.min_sqnr + more) for more in _STRICTER]
        return Result(model, True, report, rows, parts=stricter)

    def _seen(self, data: Data, ports: tuple[runtime.Port, ...]) -> int:
        """Return how many samples to calibrate and to rank on; at least as many come after them, or enough to verify on."""
        given = sum(count for _, _, count in fitted_batches(data, ports, limit=self.samples + _HELD))
        seen = min(self.samples, given - min(_HELD, (given + 1) // 2))
        return max(1, seen - seen % _BATCH if seen > _BATCH else seen)

    def _referee(self, reference: runtime.Session, ports: tuple[runtime.Port, ...]) -> tuple[Referee | None, float]:
        """Return who scores models, and how much of the score may be lost."""
        if not self.metric:
            return None, 0.0
        source = self.data if isinstance(self.eval_data, str) and not self.eval_data else self.eval_data
        referee = Referee(metrics.find(self.metric), open_data(source), reference, ports)
        return referee, metrics.budget(self.max_drop, referee.before)

    def _reasons(self, taken: list[Move], each: Mapping[Source, noise.Noise]) -> dict[str, str]:
        """Return why nodes stay in float, by name."""
        reasons: dict[str, str] = {}
        for move in taken:
            what = "its weights" if move.source.kind == "weights" else f"'{move.source.name}'"
            alone = noise.worst(each[move.source])
            least = f"{self.min_sqnr:g} dB"
            rest = f"needs {least}" if alone < self.min_sqnr else f"too much, with all others, for {least}"
            for name in move.floats:
                reasons.setdefault(name, f"rounding {what} alone leaves {alone:.1f} dB: {rest}")
        return reasons

    def _failure(self, whole: Tried, model: ir.Model, each: Mapping[Source, noise.Noise]) -> str:
        """Return in words why no placement will do."""
        rows = sorted(layers.describe(model, each, list(next(iter(each.values()), ())), {}), key=lambda row: row.sqnr)
        fragile = ", ".join(f"{row.name} {row.sqnr:.1f} dB" for row in rows[:_TOLD])
        kept = f"{self.min_sqnr:g} dB" + (f" and {self.metric} within {self.max_drop}" if self.metric else "")
        return f"only floats keep {kept}: {whole} when everything is quantized; alone {fragile}"


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """A model within the budget.

    Attributes:
        tried: the model and what was measured of it.
        placement: which nodes stay in float, and which weights and activations take how many bits.
        predicted: its signal-to-noise ratio by the sum over sources, dB, when all that is quantized takes 8 bits.
        reasons: why nodes stay in float, by name.
        fragile: those that do for the sake of the outputs.
        latency: against the float model.
    """

    tried: Tried
    placement: Placement
    predicted: float
    reasons: dict[str, str]
    fragile: frozenset[str]
    latency: Latency

    @property
    def pays(self) -> bool:
        return pays(self.latency)

    def instead(self, placement: Placement, trial: Trial, race: Race) -> _Candidate:
        """Return what another placement comes to if it keeps the budget and pays, else this one."""
        tried = trial.make(placement)
        if placement == self.placement or tried is None or not tried.fits:
            return self
        made = dataclasses.replace(self, tried=tried, placement=placement, latency=race.against_float(tried.model))
        return made if made.pays else self

    def __str__(self) -> str:
        return f"{self.tried} at {speed(self.latency)}"


def _explained(model: ir.Model, rows: list[tuple[str, str]], reasons: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return why nodes stay in float; what was excluded along with a node has that node's reason."""
    known = dict(reasons)
    for node in model.graph.all_nodes():
        before = [value.producer() for value in node.inputs if value is not None]
        told = [known[maker.name] for maker in before if maker is not None and maker.name in known]
        if told and node.name and node.op_type in CLAMPS:
            known.setdefault(node.name, told[0])
    return [(name, known.get(name, reason) if reason == "excluded" else reason) for name, reason in rows]
