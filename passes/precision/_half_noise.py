"""How noisy a network becomes by a plan: in the simulation, and as the target runs it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt import compare, runtime
from graphopt.passes.precision import _half_measure
from graphopt.passes.precision._half_plan import Plan
from graphopt.passes.precision._half_rewrite import Rewriter
from graphopt.runtime import Arrays
from graphopt.target import Target

AGREE = 0.99
"""Part of the integers and booleans of an output that must be equal."""

Noise = Mapping[str, float]
"""By output how well it is kept: the signal-to-noise ratio in dB of a float, the equal part of anything else."""


@dataclasses.dataclass(frozen=True)
class Deployed:
    """A plan, carried out for good.

    Attributes:
        model: the result.
        casts: how many more Cast nodes it has.
        rows: its noise on the target, by batch.
    """

    model: ir.Model
    casts: int
    rows: Sequence[Noise]


class Bench:
    """Runs a network and its variants on the same inputs.

    Attributes:
        feeds: the inputs.
    """

    def __init__(self, model: ir.Model, feeds: Sequence[Arrays], place: Target, target: Target) -> None:
        """Run the network in float32.

        Args:
            model: never changed.
            feeds: inputs.
            place: where simulations run.
            target: where results run.

        Raises:
            ExecutionError: it does not run at one of both.
        """
        self.feeds = feeds
        self._place, self._target = place, target
        self._expected = _outputs(model, place, feeds)
        self._goal = self._expected if target == place else _outputs(model, target, feeds)

    def simulate(self, model: ir.Model, plan: Plan, dtype: ir.DataType, batches: Iterable[int]) -> list[Noise]:
        """Return the noise, by batch, if everything is rounded that is narrow in a plan of `model`."""
        copy = _half_measure.unshaped(model)
        Rewriter(copy, plan.on(_half_measure.twins(model, copy)), dtype, simulate=True).run()
        return self.compare(copy, batches)

    def deploy(self, model: ir.Model, plan: Plan, dtype: ir.DataType) -> Deployed:
        """Carry a plan out on a copy of `model`, and run that on the target.

        Raises:
            ExecutionError: it does not load or run there.
        """
        copy = model.clone()
        rewriter = Rewriter(copy, plan.on(_half_measure.twins(model, copy)), dtype, simulate=False)
        rewriter.run()
        rows = self._compare(copy, self._target, self._goal, range(len(self.feeds)))
        return Deployed(copy, rewriter.casts[0] - rewriter.casts[1], rows)

    def compare(self, other: ir.Model, batches: Iterable[int] | None = None) -> list[Noise]:
        """Return the noise of another version, by batch, where simulations run."""
        return self._compare(other, self._place, self._expected, range(len(self.feeds)) if batches is None else batches)

    def _compare(self, other: ir.Model, place: Target, goal: Sequence[Arrays], batches: Iterable[int]) -> list[Noise]:
        session = runtime.open_session(other, place)
        types = {value.name: value.dtype for value in other.graph.inputs}
        rows: list[Noise] = []
        for index in batches:
            actual = session.run(as_types(self.feeds[index], types))
            rows.append({name: _kept(array, actual.get(name)) for name, array in goal[index].items()})
        return rows

    def loads(self, noise: Noise, min_sqnr: float) -> dict[str, float]:
        """Return how much of the noise that each output is allowed there is: 1 is all of it."""
        return {
            name: 10 ** ((min_sqnr - kept) / 10) if self.is_float(name) else (1 - kept) / (1 - AGREE)
            for name, kept in noise.items()
        }

    def is_float(self, name: str) -> bool:
        """Tell whether an output is floating-point."""
        return any(name in expected and compare.is_float(expected[name].dtype) for expected in self._expected)


def worst(rows: Sequence[Noise]) -> dict[str, float]:
    """Return how well each output is kept where it is kept worst."""
    return {name: min(row.get(name, np.inf) for row in rows) for row in rows for name in row}


def as_types(arrays: Arrays, types: Mapping[str | None, ir.DataType | None]) -> dict[str, np.ndarray]:
    """Return arrays in the types that inputs or outputs have."""
    made = {}
    for name, array in arrays.items():
        dtype = types.get(name)
        made[name] = array if dtype is None or dtype == ir.DataType.STRING else array.astype(dtype.numpy(), copy=False)
    return made


def _outputs(model: ir.Model, place: Target, feeds: Sequence[Arrays]) -> list[dict[str, np.ndarray]]:
    session = runtime.open_session(model, place)
    return [session.run(arrays) for arrays in feeds]


def _kept(reference: np.ndarray, actual: np.ndarray | None) -> float:
    """Return the signal-to-noise ratio of a float in dB, the equal part of anything else; below 0 for another shape."""
    if actual is None or reference.shape != actual.shape:
        return -np.inf
    if compare.is_float(reference.dtype):
        return _half_measure.decibels(reference, actual)
    return float(np.mean(reference == actual)) if reference.size else 1.0
