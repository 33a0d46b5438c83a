"""Convert a float32 network to a narrower float, within a stated error: what to-float16 and to-bfloat16 share.

1. Types: which inputs and outputs of each operator may be narrow, by its schema.
2. What must stay float32: constants and ranges that do not fit, counting, what the user names.
3. Where to cast, so that it is seldom (`_half_plan`).
4. The network is simulated with everything rounded that would be narrow (`_half_rewrite`) and held against itself in
   float32 (`_half_noise`). While an output is noisier than stated, nodes go back to float32 (`_half_back_off`).
5. The result itself must load, and keep within the same error, on the target.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from graphopt import graphs, inputs, runtime
from graphopt.data import Data, fitted_batches, open_data
from graphopt.passbase import Before, Case, Cases, PreconditionError, Result
from graphopt.passes.precision import _half_masks, _half_measure, _half_rules, _half_types
from graphopt.passes.precision import _half_operators as operators
from graphopt.passes.precision._half_back_off import ATTEMPTS, BackOff
from graphopt.passes.precision._half_noise import Bench, Deployed, Noise, as_types, worst
from graphopt.passes.precision._half_plan import Plan
from graphopt.runtime import ExecutionError
from graphopt.target import find

_OBSERVED = "cpu{level=basic}"
"""Where the float32 network and its simulation run: nothing is fused that the simulation tells apart."""
_FIRST_CAST = {ir.DataType.FLOAT16: 7, ir.DataType.BFLOAT16: 13}
"""Opset since which operators broadcast, and since which Cast knows the type."""
_MASKS = 0.01
"""Part of the allowed noise that smaller fill values of masks may make."""
_FREE = 4
"""First version of the format in which an initializer need not be an input."""
_SILENCE = 200.0
"""dB that stand for no noise at all."""
_BATCH = 16
_CHECKED = 3
"""Batches of data on which errors are measured; ranges are, on all."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What a pass was asked for; see its fields."""

    name: str
    dtype: ir.DataType
    keep_io: bool
    min_sqnr: float
    headroom: float
    keep: tuple[str, ...]
    data: str | Path | Mapping[str, np.ndarray] | Data
    samples: int
    seed: int
    target: str


def convert(model: ir.Model, request: Request) -> Result:
    """Convert `model` in place.

    Raises:
        PreconditionError: it cannot be run, nothing can be converted within the error, or the result does not load.
        UserError: the data does not fit the model, or there is no such target or node to keep.
    """
    opset, least, name = operators.opset(model), _FIRST_CAST[request.dtype], operators.name(request.dtype)
    if 0 < opset < least:
        raise PreconditionError(f"opset {opset} is too old for {name}; first run graphopt convert-opset --to {least}")
    work = model.clone()
    if work.functions:
        InlinePass()(work)
    if (work.ir_version or _FREE) < _FREE:
        _list_no_weights(work)
    try:
        conversion = _Conversion(work, request)
        deployed = conversion.settle() if conversion.possible else None
    except ExecutionError as error:
        raise PreconditionError(f"the model does not run: {error}") from None
    if deployed is None:
        return Result(model, False, {name: 0}, conversion.skipped())
    model.graph, model.ir_version = deployed.model.graph, deployed.model.ir_version
    model.functions.clear()
    model.functions.update(deployed.model.functions)
    report = {**conversion.report(), "casts": deployed.casts}
    return Result(model, True, report, conversion.skipped(), None if request.keep_io else _cases(model))


class _Conversion:
    """One model on its way.

    Attributes:
        plan: which of its nodes are narrow.
    """

    def __init__(self, work: ir.Model, request: Request) -> None:
        """Find out what may be narrow before anything is run in another type.

        Args:
            work: a model without functions, which may be changed.
            request: what was asked for.

        Raises:
            ExecutionError: the model does not run.
            PreconditionError: no inputs are known on which it runs.
        """
        self._request, self._work, self._place = request, work, find(_OBSERVED)
        self._reach = _half_rules.Range(request.dtype, request.headroom)
        self._feeds = self._inputs()
        _half_types.settle(work, self._feeds[0], self._place)
        self._bench = Bench(work, self._feeds[:_CHECKED], self._place, find(request.target))
        self._saturate_masks()
        self._floats = _half_types.floats(self._work)
        self.plan = Plan(self._work, self._floats, request.dtype, keep_io=request.keep_io)
        _half_rules.by_name(self.plan, request.keep, request.name)
        _half_rules.by_neighbours(self.plan, self._floats, request.dtype)
        _half_rules.by_constants(self.plan, self._reach)
        self._noise: dict[str, float] = {}

    @property
    def possible(self) -> bool:
        """Whether any node that computes something may be narrow."""
        return any(site.half and not site.follows for site in self.plan.sites)

    def _inputs(self) -> list[dict[str, np.ndarray]]:
        """Return what to run on: the data, else seeded random inputs."""
        request = self._request
        if isinstance(request.data, str) and not request.data:
            session = runtime.open_session(self._work, self._place)
            try:
                return inputs.generate(self._work, session, request.seed)
            except inputs.CannotGenerate as reason:
                raise PreconditionError(
                    f"the model does not run on generated inputs ({reason}); give it data"
                ) from None
        ports, data = runtime.model_inputs(self._work), open_data(request.data)
        data.check(ports)
        return [arrays for arrays, _, _ in fitted_batches(data, ports, _BATCH, request.samples)]

    def _saturate_masks(self) -> None:
        """Make fill values of masks fit, if the network then computes the same."""
        copy = self._work.clone()
        if not _half_masks.saturate(copy, _half_types.floats(copy), self._reach.limit, self._reach.limit / 2):
            return
        noise = worst(self._bench.compare(copy))
        if all(load <= _MASKS for load in self._bench.loads(noise, self._request.min_sqnr).values()):
            self._work = copy

    def settle(self) -> Deployed | None:
        """Decide every type, so that outputs keep within the error in the simulation and on the target.

        Returns:
            The result; None if nothing is worth converting.

        Raises:
            ExecutionError: the model does not run.
            PreconditionError: nothing can be narrow within the error, or the result does not run on the target.
        """
        request, plan = self._request, self.plan
        computed = [v for graph in graphs.every(self._work) for v in graphs.definitions(graph) if v in self._floats]
        computed = [value for value in computed if graphs.constant(value) is None]
        seen = _half_measure.magnitudes(self._work, computed, self._feeds, self._place)
        _half_rules.by_range(plan, seen, self._reach)
        plan.solve()
        name = operators.name(request.dtype)
        search = BackOff(self._work, plan, request.dtype, self._bench, request.min_sqnr)
        for _ in range(ATTEMPTS):
            if not any(site.half for site in plan.sites):
                break
            deployed = None
            rows = self._bench.simulate(self._work, plan, request.dtype, range(len(self._bench.feeds)))
            self._noise = worst(rows)
            if self._holds(rows):
                try:
                    deployed = self._bench.deploy(self._work, plan, request.dtype)
                except ExecutionError as error:
                    raise PreconditionError(
                        f"the {name} model does not run on target '{request.target}': {error}"
                    ) from None
                if self._holds(deployed.rows):
                    return deployed
                rows = list(deployed.rows)
            search.step(max(range(len(rows)), key=lambda index: max(self._loads(rows[index]))))
            plan.solve()
        first = next((site for site in plan.sites if site.reason and not site.follows), None)
        if first is None:
            return None
        raise PreconditionError(f"nothing can be {name} within the error: {first.label}: {first.reason}")

    def _loads(self, noise: Noise) -> list[float]:
        return [0.0, *self._bench.loads(noise, self._request.min_sqnr).values()]

    def _holds(self, rows: Sequence[Noise]) -> bool:
        return all(load <= 1 for noise in rows for load in self._loads(noise))

    def report(self) -> dict[str, Any]:
        """Return how many nodes have which type, and the signal-to-noise ratio of the worst output in dB."""
        nodes = [site for site in self.plan.sites if site.node is not None]
        floating = [kept for output, kept in self._noise.items() if self._bench.is_float(output)]
        return {
            operators.name(self._request.dtype): sum(site.half for site in nodes),
            "float32": sum(not site.half for site in nodes),
            "sqnr": round(min([*floating, _SILENCE]), 1),
        }

    def skipped(self) -> list[tuple[str, str]]:
        """Return what stayed float32 for a reason."""
        return [(site.label, site.reason) for site in (*self.plan.ports, *self.plan.sites) if site.reason] + [
            (f"input '{value.name}'", "callers may override this weight, so it stays float32; see freeze-defaults")
            for value in self._work.graph.inputs
            if value.is_initializer() and value in self._floats and self._request.keep_io
        ]


def _list_no_weights(model: ir.Model) -> None:
    """Take initializers out of the list of inputs, where the format had them there for no choice of anybody."""
    for value in [value for value in model.graph.inputs if value.is_initializer()]:
        model.graph.inputs.remove(value)
    model.ir_version = _FREE


def _cases(model: ir.Model) -> Cases:
    """Return the check of a model whose inputs and outputs have become narrow."""
    takes = {value.name: value.dtype for value in model.graph.inputs}
    gives = {value.name: value.dtype for value in model.graph.outputs}

    def cases(before: Before) -> list[Case]:
        return [Case(as_types(feeds, takes), as_types(before.run(feeds), gives)) for feeds in before.feeds]

    return cases


def check(headroom: float, samples: int) -> None:
    """Refuse fields that make no sense.

    Raises:
        ValueError: one is out of its range.
    """
    if not headroom >= 1:
        raise ValueError(f"headroom is {headroom:g}; it must be at least 1")
    if samples < 1:
        raise ValueError(f"samples is {samples}; it must be at least 1")
