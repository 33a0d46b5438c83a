"""Make inner values of a model observable, those inside control flow too.

A value in the body of a Loop or Scan becomes a scan output, stacked over the iterations; one in a branch of an If
becomes an output of both branches, empty in the other one. So it climbs to the main graph, and gains one leading axis
for every Loop and Scan on its way.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from graphopt import scopes

_ITERATING = ("Loop", "Scan")


@dataclasses.dataclass(frozen=True)
class Tapped:
    """A copy of a model that outputs inner values, too.

    Attributes:
        model: the copy.
        names: of the output at which each value can be read, in the order asked for; None for a value that cannot
            be led out.
    """

    model: ir.Model
    names: Sequence[str | None]


def tap(model: ir.Model, values: Sequence[ir.Value]) -> Tapped:
    """Return a copy of a model that also outputs these of its values.

    Args:
        model: never changed.
        values: of its main graph and the bodies in it; not of its functions, which must be inlined before.
    """
    copy = model.clone()
    twin_of = twins(model, copy)
    tapper = _Tapper(copy)
    led = [tapper.lead(twin_of[value]) for value in values]
    present = set(copy.graph.outputs)
    copy.graph.outputs.extend(dict.fromkeys(value for value in led if value is not None and value not in present))
    return Tapped(copy, [None if value is None else value.name for value in led])


def twins(model: ir.Model, copy: ir.Model) -> dict[ir.Value, ir.Value]:
    """Return what stands in a copy for each value of the main graph and the bodies in it."""
    return dict(zip(_values(model.graph), _values(copy.graph), strict=True))


def owners(graph: ir.Graph) -> dict[ir.Graph, ir.Node]:
    """Return the node that each graph inside `graph` is a body of."""
    found: dict[ir.Graph, ir.Node] = {}
    for node in graph:
        for attribute in node.attributes.values():
            for body in scopes.subgraphs(attribute):
                found[body] = node
                found |= owners(body)
    return found


def iterations(value: ir.Value, owner_of: dict[ir.Graph, ir.Node]) -> int:
    """Return how many leading axes a value gains on its way out."""
    graph, count = value.graph, 0
    while graph in owner_of:
        node = owner_of[graph]
        count += node.op_type in _ITERATING
        graph = node.graph if isinstance(node.graph, ir.Graph) else None
    return count


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yield every value that a graph or a body in it defines, in an order that a copy shares."""
    yield from graph.inputs
    for node in graph:
        for attribute in node.attributes.values():
            for body in scopes.subgraphs(attribute):
                yield from _values(body)
        yield from node.outputs


class _Tapper:
    """Leads values of one model out to its main graph."""

    def __init__(self, model: ir.Model) -> None:
        self._main = model.graph
        self._owner_of = owners(model.graph)
        self._taken = {value.name for value in _values(model.graph)}
        self._fresh = itertools.count()

    def lead(self, value: ir.Value) -> ir.Value | None:
        """Return the value of the main graph at which a value can be read, or None if there is no way out."""
        graph = value.graph
        if not isinstance(graph, ir.Graph) or graph is self._main:
            return value
        node = self._owner_of[graph]
        if node.op_type == "If":
            for attribute in node.attributes.values():
                for branch in scopes.subgraphs(attribute):
                    branch.outputs.append(self._passed_on(value) if branch is graph else self._nothing(branch, value))
        elif node.op_type in _ITERATING:
            graph.outputs.append(self._passed_on(value))
            axes = node.attributes.get("scan_output_axes")
            if axes is not None:
                node.attributes.add(ir.AttrInt64s("scan_output_axes", [*axes.as_ints(), 0]))
            directions = node.attributes.get("scan_output_directions")
            if directions is not None:
                node.attributes.add(ir.AttrInt64s("scan_output_directions", [*directions.as_ints(), 0]))
        else:
            return None
        node.resize_outputs(len(node.outputs) + 1)
        out = node.outputs[-1]
        out.name = self._name(value.name or "value")
        return self.lead(out)

    def _passed_on(self, value: ir.Value) -> ir.Value:
        """Return a copy of a value under a name of its own, since a body may not output one value twice."""
        graph = value.graph
        assert isinstance(graph, ir.Graph)
        node = ir.node("Identity", [value])
        node.outputs[0].name = self._name(value.name or "value")
        node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
        graph.append(node)
        return node.outputs[0]

    def _nothing(self, branch: ir.Graph, like: ir.Value) -> ir.Value:
        """Return a constant of no elements, for the branch that does not compute a value."""
        dtype = like.dtype or ir.DataType.FLOAT
        rank = 1 if like.shape is None else max(1, len(like.shape))
        node = ir.node("Constant", [], {"value": ir.tensor(np.zeros([0] * rank, dtype.numpy()), dtype)})
        node.outputs[0].name = self._name(like.name or "value")
        branch.append(node)
        return node.outputs[0]

    def _name(self, like: str) -> str:
        while True:
            name = f"{like}_seen{next(self._fresh)}"
            if name not in self._taken:
                self._taken.add(name)
                return name
