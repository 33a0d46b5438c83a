"""Write out loops that run a known, small number of times

A Loop whose trip count is constant, and whose condition is constant or passed on unchanged, is replaced by as many copies
of its body; a Scan by as many as the scanned axis is long. What a loop carries goes from copy to copy; scan outputs are
stacked with Unsqueeze and Concat. A loop that never runs passes on its initial values. By default only loops that take no
more operators written out than as they are: `max_growth` allows more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt import graphs
from graphopt.inference import dims
from graphopt.passbase import Result, param
from graphopt.passes.structural._informed import Facts, Informed, dtype, sites, sizes

_AXES_ARE_INPUT = 13
"""Opset since which the axes of Unsqueeze are an input."""
_WITHOUT_BATCHES = 9
"""Opset since which Scan runs over one sequence rather than a batch of them."""
_NEGATIVE_AXES = 11
_IR_VERSION = 4
"""First IR version in which an initializer need not be a graph input."""


@dataclass(frozen=True)
class UnrollLoops(Informed):
    """Write out loops that run a known number of times."""

    max_growth: int = param(0, "operators by which writing out one loop may enlarge the model")

    def apply(self, model: ir.Model, facts: Facts) -> Result:
        """Write out in place, inner loops first; the report counts the loops."""
        opset, unrolled, again = model.opset_imports.get("", 1), 0, True
        skipped: list[tuple[str, str]] = []
        while again:  # what an outer loop gave to an inner one is constant once it is written out
            again = False
            skipped.clear()
            for graph, node in [*sites(facts, "Loop", "Scan")][::-1]:
                plan = _loop(node) if node.op_type == "Loop" else _scan(node, facts, opset)
                reason = plan if isinstance(plan, str) else _obstacle(plan, facts, self.max_growth)
                if isinstance(plan, str) or reason:
                    skipped.append((graphs.label(node), str(reason)))
                    continue
                _Unrolling(graph, plan, facts, opset).run()
                unrolled, again = unrolled + 1, True
        if unrolled:
            model.ir_version = max(model.ir_version, _IR_VERSION)
        return Result(model, bool(unrolled), {"unrolled": unrolled}, skipped)


@dataclass(frozen=True)
class _Axis:
    """Along which axis a Scan takes a sequence apart or puts one together, and whether from its end."""

    axis: int = 0
    reverse: bool = False


@dataclass(frozen=True)
class _Plan:
    """How a loop runs.

    Attributes:
        node: the Loop or Scan.
        body: its body.
        trips: how often it runs.
        counts: whether the body's first two inputs are the number of the iteration and the condition, and its first
            output the condition.
        carried: initial values of what is carried.
        scanned: sequences that are taken apart.
        stacked: how each sequence of results is put together.
    """

    node: ir.Node
    body: ir.Graph
    trips: int
    counts: bool
    carried: tuple[ir.Value | None, ...]
    scanned: tuple[tuple[ir.Value, _Axis], ...]
    stacked: tuple[_Axis, ...]

    @property
    def results(self) -> Sequence[ir.Value]:
        """What the body computes, without the condition."""
        return self.body.outputs[1:] if self.counts else self.body.outputs


def _loop(node: ir.Node) -> _Plan | str:
    """Return how a Loop runs, or why that is not known."""
    body = node.attributes["body"].as_graph()
    limit, condition = (node.inputs[i] if i < len(node.inputs) else None for i in (0, 1))
    count, start = graphs.array(limit), graphs.array(condition)
    if limit is not None and (count is None or count.size != 1):
        return "its trip count is not constant"
    if condition is not None and (start is None or start.size != 1):
        return "its condition is not constant"
    trips = None if count is None else max(0, int(count.item()))
    if start is not None and not start.item():
        trips = 0
    elif trips is None or trips > 1:
        goes_on = _goes_on(body)
        if goes_on is None:
            return "its body computes whether to go on"
        if trips is None and goes_on:
            return "it has no end"
        trips = trips if goes_on else 1
    assert trips is not None
    carried = tuple(node.inputs[2:])
    return _Plan(node, body, trips, True, carried, (), (_Axis(),) * (len(body.outputs) - 1 - len(carried)))


def _goes_on(body: ir.Graph) -> bool | None:
    """Tell whether a body returns a constant condition, or the true one that it was given."""
    value = body.outputs[0]
    while graphs.is_op(value.producer(), "Identity"):
        node = value.producer()
        assert node is not None
        source = node.inputs[0]
        if source is None:
            return None
        value = source
    if value is body.inputs[1]:
        return True
    array = graphs.array(value)
    return None if array is None or array.size != 1 else bool(array.item())


def _scan(node: ir.Node, facts: Facts, opset: int) -> _Plan | str:
    """Return how a Scan runs, or why that is not known."""
    if opset < _WITHOUT_BATCHES:
        return f"before opset {_WITHOUT_BATCHES}, Scan runs over batches"
    body, count = node.attributes["body"].as_graph(), node.attributes["num_scan_inputs"].as_int()
    carried, sequences = node.inputs[: len(node.inputs) - count], node.inputs[len(node.inputs) - count :]
    inputs = _axes(node, "scan_input", count)
    scanned = tuple((value, axis) for value, axis in zip(sequences, inputs, strict=True) if value is not None)
    lengths = set()
    for value, axis in scanned:
        known = sizes(facts, value)
        lengths.add(None if known is None else known[axis.axis])
    length = lengths.pop() if len(lengths) == 1 else None
    if not isinstance(length, int) or len(scanned) < count:
        return "how long the scanned axis is varies"
    stacked = _axes(node, "scan_output", len(body.outputs) - len(carried))
    if opset < _NEGATIVE_AXES and any(axis.axis < 0 for axis in (*inputs, *stacked)):
        return f"its axes are negative, before opset {_NEGATIVE_AXES}"
    return _Plan(node, body, length, False, tuple(carried), scanned, stacked)


def _axes(node: ir.Node, name: str, count: int) -> tuple[_Axis, ...]:
    axes, directions = node.attributes.get(f"{name}_axes"), node.attributes.get(f"{name}_directions")
    return tuple(
        _Axis(axis, bool(direction))
        for axis, direction in zip(
            axes.as_ints() if axes else [0] * count, directions.as_ints() if directions else [0] * count, strict=True
        )
    )


def _obstacle(plan: _Plan, facts: Facts, max_growth: int) -> str | None:
    """Return why a loop should stay."""
    if any(value.is_graph_input() for value in plan.body.initializers.values()):
        return "its body has inputs with defaults"
    if any(value is None for value in plan.carried):
        return "an initial value is left out"
    outputs = plan.node.outputs[len(plan.carried) :]
    if plan.trips == 0 and any(
        graphs.is_needed(output) and _empty(facts, value, axis) is None
        for output, value, axis in zip(outputs, plan.results[len(plan.carried) :], plan.stacked, strict=False)
    ):
        return "it never runs, and the shape of an empty scan output is not known"
    before = 1 + sum(1 for _ in plan.body.all_nodes())
    nodes = _needed(plan)
    copied = sum(1 + sum(1 for graph in graphs.subgraphs(node) for _ in graph.all_nodes()) for node in nodes)
    parts = sum(map(graphs.is_needed, outputs))
    joined = (parts * plan.trips + parts * (plan.trips > 1)) if plan.trips else 0
    growth = plan.trips * (copied + len(plan.scanned)) + joined + _passed_on(plan, nodes) - before
    if growth > max_growth:
        return f"its {plan.trips} iterations would take {growth} operators more; see max_growth"
    return None


def _passed_on(plan: _Plan, nodes: set[ir.Node]) -> int:
    """Count the carried values that need an Identity to become graph outputs, at most."""
    pairs = zip(plan.node.outputs[: len(plan.carried)], plan.results, strict=False)
    given = [result for output, result in pairs if output.is_graph_output()]
    computed = {result for result in given if result.producer() in nodes} if plan.trips else set()
    return len(given) - len(computed)


def _needed(plan: _Plan) -> set[ir.Node]:
    """Return the nodes of a body that compute something else than whether to go on."""
    todo, found = list(plan.results), set()
    while todo:
        node = todo.pop().producer()
        if node is not None and node.graph is plan.body and node not in found:
            found.add(node)
            todo.extend(value for value in (*node.inputs, *graphs.captured(node)) if value is not None)
    return found


def _empty(facts: Facts, value: ir.Value, axis: _Axis) -> np.ndarray | None:
    """Return a scan output of no iterations, given what the body computes for one."""
    known, type_ = sizes(facts, value), dtype(facts, value)
    if known is None or None in known:
        known = dims(value.shape)  # what was declared, which is what runtimes go by, since there is no value
    if known is None or type_ is None or not all(isinstance(size, int) for size in known):
        return None
    shape = [size for size in known if isinstance(size, int)]
    shape.insert(axis.axis % (len(shape) + 1), 0)
    return np.zeros(shape, type_.numpy())


class _Unrolling:
    """The writing out of one loop."""

    def __init__(self, graph: ir.Graph, plan: _Plan, facts: Facts, opset: int) -> None:
        self._graph, self._plan, self._facts, self._opset = graph, plan, facts, opset
        self._nodes = Counter(inner.name for inner in graph if inner.name)
        self._results = tuple(plan.results)
        self._copied: list[ir.Value] = []

    def run(self) -> None:
        """Replace the loop."""
        plan, node = self._plan, self._plan.node
        self._move_initializers()
        bodies = [plan.body, *plan.body.subgraphs()]
        self._facts.names.subtract(value.name or "" for graph in bodies for value in graphs.definitions(graph))
        carried = [value for value in plan.carried if value is not None]
        parts: list[list[ir.Value]] = [[] for _ in plan.stacked]
        for trip in range(plan.trips):
            results = self._copy(trip, carried)
            carried, stacked = results[: len(carried)], results[len(carried) :]
            for part, value in zip(parts, stacked, strict=True):
                part.append(value)
        for old, new in zip(node.outputs, carried, strict=False):
            self._pass_on(old, new)
        for index, old in enumerate(node.outputs[len(carried) :]):
            if graphs.is_needed(old):
                self._pass_on(old, self._stack(old, parts[index], index))
        sources = {value for value in (*node.inputs, *graphs.captured(node)) if value is not None}
        self._facts.graphs = [graph for graph in self._facts.graphs if graph not in bodies]
        graphs.detach(node)
        self._graph.remove(node, safe=True)
        for value in (*self._copied, *sources):
            graphs.discard(value)

    def _copy(self, trip: int, carried: Sequence[ir.Value]) -> list[ir.Value]:
        """Write one iteration before the loop and return its results."""
        plan, node = self._plan, self._plan.node
        body = plan.body.clone(allow_outer_scope_values=True)
        for old, new in zip(plan.body.all_nodes(), body.all_nodes(), strict=True):
            self._facts.update(
                (b, self._facts[a]) for a, b in zip(old.outputs, new.outputs, strict=True) if a in self._facts
            )
        inputs, outputs, nodes = list(body.inputs), list(body.outputs[int(plan.counts) :]), list(body)
        body.outputs.clear()
        actual: dict[ir.Value, ir.Value] = {}
        if plan.counts:
            for value, array, role in (
                (inputs[0], np.asarray(trip, np.int64), "iteration"),
                (inputs[1], np.asarray(True), "condition"),
            ):
                if value.uses() or value in outputs:
                    name = f"{node.outputs[0].name}_{role}"
                    actual[value] = graphs.initializer(self._graph, array, name, self._facts.names)
            inputs = inputs[2:]
        actual.update(zip(inputs, carried, strict=False))
        for value, (sequence, axis) in zip(inputs[len(carried) :], plan.scanned, strict=True):
            index = np.asarray(plan.trips - 1 - trip if axis.reverse else trip, np.int64)
            name = f"{sequence.name}_{trip}"
            position = graphs.initializer(self._graph, index, f"{name}_index", self._facts.names)
            actual[value] = self._insert("Gather", [sequence, position], name, axis=axis.axis)
        for value, replacement in actual.items():
            value.replace_all_uses_with(replacement)
        body.remove(nodes)
        for inner in nodes:
            inner.name = graphs.fresh(inner.name, self._nodes) if inner.name else inner.name
            for value in inner.outputs:
                value.name = graphs.fresh(value.name, self._facts.names) if value.name else value.name
            nested = [part for graph in graphs.subgraphs(inner) for part in (graph, *graph.subgraphs())]
            self._facts.graphs.extend(nested)
            self._facts.names.update(value.name or "" for graph in nested for value in graphs.definitions(graph))
        self._graph.insert_before(node, nodes)
        results = [actual.get(value, value) for value in outputs]
        self._copied.extend(value for inner in nodes for value in inner.outputs)
        return results

    def _move_initializers(self) -> None:
        """Give the initializers of the body to the graph around it."""
        body = self._plan.body
        for value in list(body.initializers.values()):
            del body.initializers[value.name or ""]
            if self._facts.names[value.name or ""] > 1:
                self._facts.names[value.name or ""] -= 1
                value.name = graphs.fresh(value.name or "", self._facts.names)
            self._graph.register_initializer(value)

    def _stack(self, like: ir.Value, parts: list[ir.Value], index: int) -> ir.Value:
        """Return the results of all iterations as one sequence."""
        axis, name = self._plan.stacked[index], like.name or "scan"
        if not parts:
            array = _empty(self._facts, self._results[len(self._plan.carried) + index], axis)
            assert array is not None
            return graphs.initializer(self._graph, array, f"{name}_empty", self._facts.names)
        wider = [self._unsqueeze(part, axis.axis, name) for part in (parts[::-1] if axis.reverse else parts)]
        return wider[0] if len(wider) == 1 else self._insert("Concat", wider, name, axis=axis.axis)

    def _unsqueeze(self, value: ir.Value, axis: int, name: str) -> ir.Value:
        if self._opset < _AXES_ARE_INPUT:
            return self._insert("Unsqueeze", [value], name, axes=[axis])
        axes = graphs.initializer(self._graph, np.asarray([axis], np.int64), f"{name}_axes", self._facts.names)
        return self._insert("Unsqueeze", [value, axes], name)

    def _insert(
        self, op_type: str, inputs: Sequence[ir.Value], name: str, **attributes: int | Sequence[int]
    ) -> ir.Value:
        node = ir.node(op_type, inputs, attributes)
        self._graph.insert_before(self._plan.node, node)
        result = node.outputs[0]
        result.name = graphs.fresh(name, self._facts.names)
        type_ = dtype(self._facts, inputs[0])
        result.type = None if type_ is None else ir.TensorType(type_)
        return result

    def _pass_on(self, old: ir.Value, new: ir.Value) -> None:
        if graphs.redirect(old, new, self._facts.names):
            graphs.compute_by_identity(old, new)
