"""Where an adapter works: one node, the facts about its values, and a place for new nodes before it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import graphs
from graphopt.passbase import FACT_PREFIX
from graphopt.passes.precision._opset.facts import Facts


class Refusal(Exception):
    """There is no equal in the other version; the message says why."""


@dataclasses.dataclass
class Shared:
    """What all sites of a conversion share.

    Attributes:
        facts: types and shapes.
        values, nodes: names in use.
        conditions: what the result's being equal depends on, and of how many nodes.
    """

    facts: Facts
    values: Counter[str]
    nodes: Counter[str]
    conditions: Counter[str] = dataclasses.field(default_factory=Counter)


class Site:
    """One node on its way over one change of its operator.

    Attributes:
        node: the node.
        facts: types and shapes.
        version: the version of the operator set that new nodes are written in.
        made: the nodes emitted so far.
    """

    def __init__(self, node: ir.Node, shared: Shared, version: int, *, in_function: bool) -> None:
        self.node, self.facts, self.version = node, shared.facts, version
        self.made: list[ir.Node] = []
        self._shared, self._in_function = shared, in_function
        self._stem = node.name or next((value.name for value in node.outputs if value.name), node.op_type)

    @property
    def x(self) -> ir.Value:
        """The first input."""
        return self.given(0)

    def input(self, index: int) -> ir.Value | None:
        """Return an input; None if it is omitted."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def given(self, index: int) -> ir.Value:
        """Return an input that must be there."""
        value = self.input(index)
        if value is None:
            raise Refusal(f"its input {index + 1} is missing")
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of an attribute."""
        found = self.node.attributes.get(name)
        if found is None:
            return default
        if found.is_ref():
            raise Refusal(f"its '{name}' is a parameter of the function around it; inline the function first")
        return found.value

    def pop(self, name: str, default: Any = None) -> Any:
        """Remove an attribute and return its value."""
        value = self.get(name, default)
        self.node.attributes.pop(name, None)
        return value

    def set(self, name: str, value: Any) -> None:
        """Set an attribute."""
        self.node.attributes.add(ir.convenience.convert_attribute(name, value))

    def attributes(self, *without: str) -> dict[str, Any]:
        """Return the node's attributes but some, to be those of another node."""
        return {name: found for name, found in self.node.attributes.items() if name not in without}

    def used(self, index: int) -> bool:
        """Tell whether anything needs an output."""
        return index < len(self.node.outputs) and graphs.is_needed(self.node.outputs[index])

    def dtype(self, value: ir.Value) -> ir.DataType:
        """Return the element type of a tensor that the conversion depends on."""
        found = self.facts.dtype(value)
        if found is None:
            raise Refusal(f"the type of '{value.name}' is unknown; run infer-shapes first")
        return found

    def rank(self, value: ir.Value) -> int:
        """Return the number of axes of a tensor that the conversion depends on."""
        found = self.facts.rank(value)
        if found is None:
            raise Refusal(f"the rank of '{value.name}' is unknown; run infer-shapes first")
        return found

    def dim(self, value: ir.Value, axis: int) -> int | None:
        """Return the size of an axis, counted from either end; None if it is not certain."""
        dims = self.facts.dims(value)
        found = dims[axis] if dims is not None and -len(dims) <= axis < len(dims) else None
        return found if isinstance(found, int) and found >= 0 else None

    def constant(self, index: int, what: str) -> np.ndarray:
        """Return a constant input that the other version wants as an attribute."""
        array = graphs.array(self.input(index))
        if array is None:
            raise Refusal(f"its {what} must be constant there; it is computed, or a default that callers may override")
        return array

    def put(self, index: int, value: ir.Value | np.ndarray | None, name: str = "") -> None:
        """Set an input, or leave it out, and drop what nothing uses any more.

        Args:
            index: of the input.
            value: the value, or an array to be a constant.
            name: what the array is.
        """
        old = self.input(index)
        if index >= len(self.node.inputs):
            self.node.resize_inputs(index + 1)
        self.node.replace_input_with(index, self.const(value, name) if isinstance(value, np.ndarray) else value)
        while self.node.inputs and self.node.inputs[-1] is None:
            self.node.resize_inputs(len(self.node.inputs) - 1)
        if old is not None:
            graphs.discard(old)

    def unless(self, condition: str) -> None:
        """Tell users when the result is not equal."""
        self._shared.conditions[condition] += 1

    def const(self, array: np.ndarray, name: str) -> ir.Value:
        """Return a new constant: an initializer, or in the body of a function, which has none, a Constant node."""
        name = graphs.fresh(f"{self._stem}_{name}", self._shared.values)
        tensor = ir.tensor(array, name=name)
        if self._in_function:
            constant = self._insert(ir.node("Constant", [], {"value": tensor}))
            constant.outputs[0].name = name
            return constant.outputs[0]
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        assert isinstance(self.node.graph, ir.Graph)
        self.node.graph.register_initializer(value)
        return value

    def scalar(self, value: float, dtype: ir.DataType, name: str = "value") -> ir.Value:
        """Return a new constant without axes."""
        return self.const(np.asarray(value).astype(dtype.numpy()), name)

    def ints(self, *values: int, name: str = "value") -> ir.Value:
        """Return a new constant int64 vector."""
        return self.const(np.asarray(values, np.int64), name)

    def emit(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Insert a node with one output before this one, and return the output."""
        return self.emit_all(op_type, inputs, attributes, 1)[0]

    def emit_all(
        self, op_type: str, inputs: tuple[ir.Value | None, ...], attributes: dict[str, Any], outputs: int
    ) -> tuple[ir.Value, ...]:
        """Insert a node before this one, and return its outputs."""
        node = self._insert(ir.node(op_type, inputs, attributes, num_outputs=outputs))
        for value in node.outputs:
            value.name = graphs.fresh(f"{self._stem}_{op_type}", self._shared.values)
        return tuple(node.outputs)

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Return the value in another type."""
        return value if self.facts.dtype(value) == dtype else self.emit("Cast", value, to=int(dtype))

    def scatter(self, vector: ir.Value, places: np.ndarray, updates: ir.Value) -> ir.Value:
        """Return a vector with some elements replaced."""
        return self.emit("ScatterElements", vector, self.ints(*places.tolist(), name="places"), updates, axis=0)

    def adopt(self, nodes: list[ir.Node], version: int) -> None:
        """Insert nodes, written in some version of the operator set, before this one."""
        assert self.node.graph is not None
        self.node.graph.insert_before(self.node, nodes)
        for node in nodes:
            self._join(node, version)
            inner = [value for graph in graphs.subgraphs(node) for value in _all_definitions(graph)]
            for value in filter(lambda value: value.name, (*node.outputs, *inner)):
                value.name = graphs.fresh(f"{self._stem}_{value.name}", self._shared.values)

    def _insert(self, node: ir.Node) -> ir.Node:
        assert self.node.graph is not None
        self.node.graph.insert_before(self.node, node)
        self._join(node, self.version)
        return node

    def _join(self, node: ir.Node, version: int) -> None:
        """Mark a node and those inside it as new, with the origin of this one."""
        inner = [other for graph in graphs.subgraphs(node) for other in graph.all_nodes()]
        for new in (node, *inner):
            new.version = version
            new.name = graphs.fresh(f"{self._stem}_{new.op_type}", self._shared.nodes)
            self.facts.joined(new)
            self.made.append(new)
            for key, text in self.node.metadata_props.items():
                if not key.startswith(FACT_PREFIX):
                    new.metadata_props.setdefault(key, text)


def _all_definitions(graph: ir.Graph) -> Iterator[ir.Value]:
    for part in (graph, *graph.subgraphs()):
        yield from graphs.definitions(part)
