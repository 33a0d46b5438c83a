"""What a choice of nodes that stay in float comes to: what is rounded then, and how long a run takes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping

import onnx_ir as ir

from graphopt import scopes
from graphopt.passes.quantization import _plan
from graphopt.passes.quantization._kernels import Role
from graphopt.passes.quantization._ranges import Range
from graphopt.passes.quantization._units import Unit
from graphopt.sensitivity.sources import Source


@dataclasses.dataclass(frozen=True)
class Choice:
    """A placement.

    Attributes:
        rounded: the sources of noise that remain.
        integers: names of the convolutions and matrix products that compute with integers.
        us: microseconds per run of everything that integers may touch, conversions included.
    """

    rounded: frozenset[Source]
    integers: frozenset[str]
    us: float


class Planner:
    """Places the units of one model, at the lowest cost or with the most integers."""

    def __init__(
        self,
        model: ir.Model,
        recorded: Mapping[str, Range],
        ops: Collection[str],
        times: Mapping[str, _plan.Times],
        sources: Iterable[Source],
        *,
        by_time: bool,
    ) -> None:
        """Prepare.

        Args:
            model: the float model with named nodes.
            recorded: ranges by value name.
            ops: operator types to quantize.
            times: microseconds of nodes in floats and in integers.
            sources: the sources of noise when as much as possible is quantized.
            by_time: leave in float what takes less time there, as far as times tell; else quantize as much as possible.
        """
        self._graphs = scopes.main_and_bodies(model)
        self._recorded, self._ops, self._times = recorded, ops, times
        self._weighed = times if by_time else None
        self._known = frozenset(sources)
        self._made: dict[frozenset[str], Choice] = {}
        self._around: dict[Source, frozenset[str]] = {}
        for unit, touched in self._touched(self._units(())):
            if unit.role in (Role.ANCHOR, Role.ARITHMETIC):
                for source in touched:
                    self._around[source] = self._around.get(source, frozenset()) | {unit.node.name or ""}

    def around(self, source: Source) -> frozenset[str]:
        """Return the nodes that must compute in float to be rid of a source; none if it is not known which."""
        return self._around.get(source, frozenset())

    def choose(self, floats: Collection[str]) -> Choice:
        """Return the best placement that leaves these nodes, by name, in float."""
        key = frozenset(floats)
        if key not in self._made:
            units = self._units(key, self._weighed)
            rounded = frozenset(source for _, touched in self._touched(units) for source in touched)
            anchors = frozenset(unit.node.name or "" for units_ in units for unit in units_ if unit.role is Role.ANCHOR)
            self._made[key] = Choice(rounded & self._known, anchors, self._microseconds(units))
        return self._made[key]

    def excluded(self, floats: Collection[str]) -> frozenset[str]:
        """Return what to exclude from quantization so that it comes to `choose(floats)`."""
        usual = {unit.node.name or "" for units in self._units(floats) for unit in units if unit.role is Role.ANCHOR}
        return frozenset(floats) | (usual - self.choose(floats).integers)

    def _units(self, floats: Collection[str], times: Mapping[str, _plan.Times] | None = None) -> list[list[Unit]]:
        return [_plan.make(graph, self._recorded, floats, self._ops, times).units for graph in self._graphs]

    def _touched(self, planned: Iterable[list[Unit]]) -> list[tuple[Unit, set[Source]]]:
        """Return the sources in what each unit reads, multiplies by and makes."""
        found = []
        for units in planned:
            grids: dict[ir.Value, set[Source]] = {}
            read = {value for unit in units for value in unit.inputs}
            for unit in units:
                own = {Source("weights", node.name or "") for node in unit.nodes}
                reads = {source for value in unit.inputs for source in grids.setdefault(value, {_activation(value)})}
                made = {_activation(value) for value in (unit.result, *unit.outputs)}
                if unit.role in (Role.CARRIER, Role.RESCALE):
                    made = reads
                elif unit.node.op_type == "Concat":
                    made |= reads
                elif _yields_float(unit, read):
                    made = set()
                grids.update(dict.fromkeys(unit.outputs, made))
                found.append((unit, (own | reads | made) & self._known))
        return found

    def _microseconds(self, planned: Iterable[list[Unit]]) -> float:
        fast = {node.name for units in planned for unit in units for node in unit.nodes}
        costs = [after if name in fast else before for name, (before, after) in self._times.items()]
        for units in planned:
            read = {value for unit in units for value in unit.inputs}
            made = {value for unit in units if not _yields_float(unit, read) for value in unit.outputs}
            inside = {node for unit in units for node in unit.nodes}
            leaving = {v for v in made if v.is_graph_output() or any(user not in inside for user in v.consumers())}
            costs += [_conversion_us(value) for value in (*(read - made), *leaving)]
        return math.fsum(costs)


def _yields_float(unit: Unit, read: set[ir.Value]) -> bool:
    """Tell whether a unit's kernel yields float by itself, because nothing reads its result as integers."""
    return unit.float_result and not read & set(unit.outputs)


def _conversion_us(value: ir.Value) -> float:
    """Return the microseconds that a change between float and integers takes, as the plan reckons them."""
    sizes = [dim for dim in value.shape or () if isinstance(dim, int)]
    return _plan.CALL_US + _plan.ELEMENT_US * (math.prod(sizes) or 1)


def _activation(value: ir.Value) -> Source:
    return Source("activation", value.name or "")
