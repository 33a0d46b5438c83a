"""Look into a model while it runs: how large its floats become, and how far two results are apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import compare, graphs, runtime, tapping
from graphopt.passes.precision import _half_operators as operators
from graphopt.runtime import Arrays
from graphopt.target import Target

_WHERE = 9
"""Opset since which there is Where, which passes over infinities."""
_SUMS = ("ReduceSum", "ReduceL1")
_MEANS = ("ReduceMean", "GlobalAveragePool")


@dataclasses.dataclass(frozen=True)
class Magnitudes:
    """The largest finite magnitudes that were seen.

    Attributes:
        values: of values; those that were never computed are absent.
        sums: inside nodes that add elements up: of the sums of their magnitudes.
    """

    values: Mapping[ir.Value, float]
    sums: Mapping[ir.Node, float]


def twins(model: ir.Model, copy: ir.Model) -> dict[Any, Any]:
    """Return what stands in a clone for each graph, node and value of a model."""
    found: dict[Any, Any] = {}
    for graph, twin in zip(graphs.every(model), graphs.every(copy), strict=True):
        found[graph] = twin
        found.update(zip(graph, twin, strict=True))
        found.update(zip(graphs.definitions(graph), graphs.definitions(twin), strict=True))
    return found


def unshaped(model: ir.Model) -> ir.Model:
    """Return a clone that declares no shapes of inner values: those may be stale, which shows once nodes are added."""
    copy = model.clone()
    for node in copy.graph.all_nodes():
        for value in node.outputs:
            value.shape = None
    return copy


def magnitudes(model: ir.Model, values: Sequence[ir.Value], feeds: Iterable[Arrays], place: Target) -> Magnitudes:
    """Return the largest magnitudes of float32 values; inside the runtime, so that only single numbers are read out.

    Args:
        model: never changed; without functions.
        values: of it.
        feeds: what to run it on.
        place: where.

    Raises:
        ExecutionError: it does not run.
    """
    copy = unshaped(model)
    twin = twins(model, copy)
    observer = _Observer(copy)
    sums = [
        node
        for node in model.graph.all_nodes()
        if graphs.is_op(node, *_SUMS, *_MEANS) and set(node.outputs) <= {*values}
    ]
    watched = [observer.value(twin[value]) for value in values] + [observer.sum(twin[node]) for node in sums]
    tapped = tapping.tap(copy, watched)
    largest: dict[str, float] = {}
    session = runtime.open_session(tapped.model, place)
    names = list(dict.fromkeys(name for name in tapped.names if name))
    for arrays in feeds:
        for name, array in session.run(arrays, names).items():
            if array.size:
                largest[name] = max(largest.get(name, 0.0), float(np.max(array)))
    keys = [*values, *sums]
    found = {key: largest[name] for key, name in zip(keys, tapped.names, strict=True) if name in largest}
    return Magnitudes(
        {key: found[key] for key in values if key in found}, {key: found[key] for key in sums if key in found}
    )


class _Observer:
    """Adds nodes to a model that reduce values to their largest magnitude, [1]."""

    def __init__(self, model: ir.Model) -> None:
        self._taken = graphs.names(model)
        self._opset = operators.opset(model)
        self._magnitudes: dict[ir.Value, ir.Value] = {}
        self._constants = {
            key: self._initializer(model.graph, key, array)
            for key, array in (
                ("flat", np.array([-1], np.int64)),
                ("zero", np.zeros(1, np.float32)),
                ("infinity", np.full(1, np.inf, np.float32)),
            )
        }

    def value(self, value: ir.Value) -> ir.Value:
        """Return the largest finite magnitude of a value."""
        return self._largest(self._magnitude(value), value)

    def sum(self, node: ir.Node) -> ir.Value:
        """Return the largest sum of magnitudes that a node adds up."""
        (out,) = node.outputs
        source = node.inputs[0]
        assert source is not None
        inputs = [self._magnitude(source), *node.inputs[1:]]
        added = self._node(out, node.op_type, inputs, dict(node.attributes))
        if node.op_type in _MEANS:
            sizes = [self._node(out, "Cast", [self._node(out, "Size", [v])], {"to": 1}) for v in (source, added)]
            added = self._node(out, "Mul", [added, self._node(out, "Div", sizes)])
        return self._largest(added, out)

    def _magnitude(self, value: ir.Value) -> ir.Value:
        if value not in self._magnitudes:
            size = self._node(value, "Abs", [value])
            if self._opset >= _WHERE:
                finite = self._node(value, "Less", [size, self._constants["infinity"]])
                size = self._node(value, "Where", [finite, size, self._constants["zero"]])
            self._magnitudes[value] = size
        return self._magnitudes[value]

    def _largest(self, size: ir.Value, value: ir.Value) -> ir.Value:
        flat = self._node(value, "Reshape", [size, self._constants["flat"]])
        padded = self._node(value, "Concat", [self._constants["zero"], flat], {"axis": 0})
        result = self._node(value, "ReduceMax", [padded], {"keepdims": 1})
        result.type, result.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([1])
        return result

    def _node(
        self, value: ir.Value, op: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, Any] | None = None
    ) -> ir.Value:
        """Add a node at the end of the graph in which a value is defined."""
        node = ir.node(op, inputs, dict(attributes or {}))
        node.outputs[0].name = graphs.fresh(f"graphopt_{op}_{value.name}", self._taken)
        assert isinstance(value.graph, ir.Graph)
        value.graph.append(node)
        return node.outputs[0]

    def _initializer(self, graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
        name = graphs.fresh(f"graphopt_{name}", self._taken)
        value = ir.Value(
            name=name, type=ir.TensorType(ir.DataType.from_numpy(array.dtype)), shape=ir.Shape(array.shape),
            const_value=ir.tensor(array, name=name),
        )  # fmt: skip
        graph.register_initializer(value)
        return value


def decibels(expected: np.ndarray, actual: np.ndarray) -> float:
    """Return the signal-to-noise ratio of a value: infinity if equal, minus infinity if it has another shape or new NaN."""
    if expected.shape != actual.shape:
        return -np.inf
    wide, narrow = expected.astype(np.float64), actual.astype(np.float64)
    if not np.array_equal(np.isnan(wide), np.isnan(narrow)) or not np.isfinite(narrow[np.isfinite(wide)]).all():
        return -np.inf
    if not np.any(wide[np.isfinite(wide)]):
        return np.inf if not np.any(narrow[np.isfinite(wide)]) else 0.0
    return compare.sqnr(wide, narrow)
