"""Quantize a calibrated model with some nodes left in float, and hold the result against the budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import onnx_ir as ir

from graphopt import runtime, spec
from graphopt.fidelity import Fidelity
from graphopt.passbase import Result
from graphopt.pipeline import duplicate
from graphopt.runtime import ExecutionError
from graphopt.sensitivity.scoring import Referee
from graphopt.target import Target


@dataclasses.dataclass(frozen=True)
class Placement:
    """What nodes, by name, compute with, where it is not 8 bits.

    Attributes:
        floats: these stay in float.
        int4: the weights of these take 4 bits.
        int16: the activations of these take 16 bits.
    """

    floats: frozenset[str] = frozenset()
    int4: frozenset[str] = frozenset()
    int16: frozenset[str] = frozenset()

    @property
    def fields(self) -> dict[str, tuple[str, ...]]:
        """The fields of quantize-static."""
        return {
            name: tuple(sorted(nodes))
            for name, nodes in (("exclude", self.floats), ("int4", self.int4), ("int16", self.int16))
        }


@dataclasses.dataclass(frozen=True)
class Tried:
    """A model with some nodes in integers.

    Attributes:
        model: the result.
        sqnr: of its worst output on samples kept for this, dB.
        drop: of the metric, if one was asked for.
        rows: `(node, reason)` of what stays in float.
        quantized: how many nodes compute with integers.
        fits: whether it is within the budget.
    """

    model: ir.Model
    sqnr: float
    drop: float | None
    rows: list[tuple[str, str]]
    quantized: int
    fits: bool

    def __str__(self) -> str:
        return f"{self.sqnr:.1f} dB" + ("" if self.drop is None else f" and a drop of {self.drop:.4f}")


class Trial:
    """Makes and measures candidates, each once."""

    def __init__(
        self,
        model: ir.Model,
        place: Target,
        fields: Mapping[str, str],
        fidelity: Fidelity,
        least: float,
        referee: Referee | None,
        budget: float,
    ) -> None:
        """Prepare.

        Args:
            model: the float model, with ranges and named nodes.
            place: where candidates run.
            fields: of quantize-static.
            fidelity: samples that had no part in the choice.
            least: signal-to-noise ratio that every output keeps, dB.
            referee: of the metric, if there is one.
            budget: how much that may drop.
        """
        self._model, self._place, self._fields, self._fidelity = model, place, fields, fidelity
        self._least, self._referee, self._budget = least, referee, budget
        self._made: dict[Placement, Tried | None] = {}

    def make(self, placement: Placement) -> Tried | None:
        """Return what comes of a placement; None where nothing is quantized then, or it does not run."""
        if placement not in self._made:
            self._made[placement] = self._make(placement)
        return self._made[placement]

    def _make(self, placement: Placement) -> Tried | None:
        model = duplicate(self._model)
        result = spec.build("quantize-static", {**self._fields, **placement.fields})(model)
        assert isinstance(result, Result)
        if not result.modified:
            return None
        try:
            session = runtime.open_session(model, self._place)
            sqnr = self._fidelity.worst(session)
        except ExecutionError:
            return None
        drop = self._referee.drop(session) if self._referee is not None and sqnr >= self._least else None
        fits = sqnr >= self._least and (drop is None or drop <= self._budget)
        return Tried(model, sqnr, drop, list(result.skipped), sum(result.report["quantized"].values()), fits)
