"""What rounds in a quantized model, and the float model with only some of that.

A QuantizeLinear rounds an activation, and the constants behind a DequantizeLinear were rounded when they were stored.
Each of these is a source of noise that can be put into the float model alone, whoever quantized it and however.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
import onnx_ir as ir

from graphopt import scopes

_MOVING = frozenset(
    (
        "Clip", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Max", "MaxPool", "Min", "Pad",
        "ReduceMax", "ReduceMin", "Relu", "Reshape", "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile",
        "Transpose", "Unsqueeze", "Where",
    )
)  # fmt: skip
"""Operators that yield elements of their inputs: on the grid of these, they need no rounding."""

_MAYBE_FLOAT = (None, ir.DataType.FLOAT, ir.DataType.FLOAT16)


@dataclasses.dataclass(frozen=True)
class Source:
    """Something that is rounded.

    Attributes:
        kind: "weights" (all constants of a node) or "activation" (a value).
        name: of the node in the float model that holds the constants; of the value.
    """

    kind: Literal["weights", "activation"]
    name: str


@dataclasses.dataclass(frozen=True)
class _Rounding:
    """How an activation is rounded, and for whom.

    Attributes:
        scale: step of the grid, in a shape that broadcasts.
        low, high: where it ends, in steps from zero.
        dtype: what the integers are kept in.
        spared: `(node, input)` that read the value as it is.
        as_output: whether the graph's output is the rounded value.
    """

    scale: np.ndarray
    low: np.ndarray
    high: np.ndarray
    dtype: ir.DataType
    spared: frozenset[tuple[str, int]]
    as_output: bool


@dataclasses.dataclass(frozen=True)
class _Constants:
    """What a node computes with in place of its constants: arrays by input, and the attributes that belong to them."""

    arrays: dict[int, np.ndarray]
    attributes: list[ir.Attr]


class Sources:
    """The sources of noise of a quantized model.

    Attributes:
        unmatched: names of rounded values and of nodes with rounded constants that the float model does not have.
    """

    def __init__(self, model: ir.Model, quantized: ir.Model) -> None:
        """Find them.

        Args:
            model: the float model; its nodes have names of their own, which the quantized one keeps.
            quantized: the same with QuantizeLinear and DequantizeLinear.
        """
        self._model = model
        self._roundings: dict[Source, _Rounding] = {}
        self._constants: dict[Source, _Constants] = {}
        self.unmatched: list[str] = []
        self._nodes = {node.name: node for node in model.graph.all_nodes()}
        values = _values(model)
        outputs = {id(value) for graph in _graphs(quantized.graph) for value in graph.outputs}
        for node in quantized.graph.all_nodes():
            if node.op_type == "QuantizeLinear":
                value = node.inputs[0]
                assert value is not None
                if constant(value) is not None or _is_on_grid(node, value):
                    continue
                name = self._counterpart(value)
                if name is None or name not in values:
                    self.unmatched.append(value.name or "")
                else:
                    rounding = _rounding(node, value, as_output=id(value) not in outputs)
                    self._roundings[Source("activation", name)] = rounding
            elif node.op_type != "DequantizeLinear":
                self._add_constants(node)

    def __iter__(self) -> Iterator[Source]:
        """Yield them in the order of the graph: what a node multiplies by comes before what it makes."""
        places: dict[str, int] = {}
        for place, node in enumerate(self._model.graph.all_nodes()):
            places[f"weights {node.name}"] = 2 * place
            places |= {f"activation {value.name}": 2 * place + 1 for value in node.outputs}
        found = (*self._constants, *self._roundings)
        yield from sorted(found, key=lambda source: places.get(f"{source.kind} {source.name}", -1))

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._constants) + len(self._roundings)

    def apply(self, sources: Iterable[Source]) -> ir.Model:
        """Return a copy of the float model in which only these round."""
        copy = self._model.clone()
        nodes = {node.name: node for node in copy.graph.all_nodes()}
        values = _values(copy)
        prefix = "graphopt"
        while any(name.startswith(prefix) for graph in _graphs(copy.graph) for name in (*values, *graph.initializers)):
            prefix += "_"
        for number, source in enumerate(sources):
            if source.kind == "weights":
                _hold(nodes[source.name], self._constants[source], f"{prefix}{number}")
            else:
                _round(values[source.name], self._roundings[source], f"{prefix}{number}")
        return copy

    def _counterpart(self, value: ir.Value) -> str | None:
        """Return what the float model calls a value: a pass may rename outputs, but keeps the names of nodes."""
        node, index = value.producer(), value.index()
        if node is None or index is None:
            return value.name
        twin = self._nodes.get(node.name)
        return twin.outputs[index].name if twin is not None and index < len(twin.outputs) else None

    def _add_constants(self, node: ir.Node) -> None:
        arrays = {index: array for index, v in enumerate(node.inputs) if (array := _stored(v)) is not None}
        if not arrays:
            return
        twin = self._nodes.get(node.name)
        same = twin is not None and twin.op_type == node.op_type and len(twin.inputs) == len(node.inputs)
        if twin is None or not same or any(constant(twin.inputs[index]) is None for index in arrays):
            self.unmatched.append(node.name or node.op_type)
            return
        source = Source("weights", node.name or "")
        self._constants[source] = _Constants(arrays, list(node.attributes.values()))


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the tensor of an initializer or of a Constant node; None for anything computed."""
    if value is None:
        return None
    if value.const_value is not None:
        return value.const_value
    node = value.producer()
    if node is not None and node.op_type == "Constant" and node.domain == "":
        return ir.convenience.get_const_tensor(value)
    return None


def _graphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    yield graph
    for node in graph:
        for attribute in node.attributes.values():
            for body in scopes.subgraphs(attribute):
                yield from _graphs(body)


def _values(model: ir.Model) -> dict[str, ir.Value]:
    """Return the values that are computed or fed, by names that only one of them has."""
    found: defaultdict[str, list[ir.Value]] = defaultdict(list)
    for graph in _graphs(model.graph):
        for value in (*graph.inputs, *(value for node in graph for value in node.outputs)):
            found[value.name or ""].append(value)
    return {name: values[0] for name, values in found.items() if name and len(values) == 1}


def _rounding(node: ir.Node, value: ir.Value, *, as_output: bool) -> _Rounding:
    spared = {(user.name or "", index) for user, index in value.uses() if user.op_type != "QuantizeLinear"}
    scale, zero = constant(node.inputs[1]), constant(node.inputs[2]) if len(node.inputs) > 2 else None
    assert scale is not None
    dtype = ir.DataType.UINT8 if zero is None else zero.dtype
    rank = len(value.shape) if value.shape is not None else 1
    wide = [1] * rank
    if scale.numpy().ndim and scale.size > 1:
        wide[node.attributes.get_int("axis", 1)] = -1
    steps = scale.numpy().reshape(wide if scale.size > 1 else ())
    zeros = np.zeros((), np.float64) if zero is None else zero.numpy().astype(np.float64).reshape(steps.shape)
    return _Rounding(steps, dtype.min - zeros, dtype.max - zeros, dtype, frozenset(spared), as_output)


def _is_on_grid(node: ir.Node, value: ir.Value) -> bool:
    """Tell whether what a QuantizeLinear reads was rounded to the same grid before, and only moved since."""
    producer = value.producer()
    if producer is None or producer.op_type not in _MOVING:
        return False
    moved = [v for v in producer.inputs if v is not None and constant(v) is None and v.dtype in _MAYBE_FLOAT]
    makers = [v.producer() for v in moved]
    return bool(makers) and all(
        maker is not None and maker.op_type == "DequantizeLinear" and _same_grid(maker, node) for maker in makers
    )


def _same_grid(one: ir.Node, two: ir.Node) -> bool:
    for a, b in zip(one.inputs[1:], two.inputs[1:], strict=False):
        first, second = constant(a), constant(b)
        if first is None or second is None or not np.array_equal(first.numpy(), second.numpy()):
            return False
    return True


def _stored(value: ir.Value | None) -> np.ndarray | None:
    """Return the floats that a DequantizeLinear of constants yields; None for any other value."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear":
        return None
    held = node.inputs[0]
    maker = held.producer() if held is not None else None
    tensor = constant(maker.inputs[0] if maker is not None and maker.op_type == "Cast" else held)
    scale = constant(node.inputs[1])
    if tensor is None or scale is None:
        return None
    integers = tensor.numpy().astype(np.float64)
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    axis, block = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
    factors = _spread(scale.numpy().astype(np.float64), integers.shape, axis, block)
    if zero is not None:
        integers = integers - _spread(zero.numpy().astype(np.float64), integers.shape, axis, block)
    result: np.ndarray = (integers * factors).astype(np.float32)
    return result


def _spread(parameter: np.ndarray, shape: tuple[int, ...], axis: int, block: int) -> np.ndarray:
    """Return a scale or zero point in a shape that broadcasts: for the tensor, for each channel or for each block."""
    if block:
        return parameter.repeat(block, axis)[tuple(slice(size) for size in shape)]
    if parameter.size == 1:
        return parameter.reshape(())
    wide = [1] * len(shape)
    wide[axis] = -1
    return parameter.reshape(wide)


def _hold(node: ir.Node, held: _Constants, prefix: str) -> None:
    """Let a node compute with other constants."""
    main = node.graph
    assert isinstance(main, ir.Graph)
    node.attributes.clear()
    for attribute in held.attributes:
        node.attributes.add(attribute)
    for index, array in held.arrays.items():
        old = node.inputs[index]
        assert old is not None
        shape = ir.Shape(array.shape)
        value = ir.Value(name=f"{prefix}_{index}", type=ir.TensorType(ir.DataType.FLOAT), shape=shape)
        value.const_value = ir.tensor(array, name=value.name)
        main.register_initializer(value)
        node.replace_input_with(index, value)


def _round(value: ir.Value, rounding: _Rounding, prefix: str) -> None:
    """Put behind a value what rounds it.

    Not as QuantizeLinear and DequantizeLinear: ONNX Runtime would quantize the weights between two pairs of these, too,
    in a way of its own.
    """
    graph = value.graph
    assert isinstance(graph, ir.Graph)
    uses = [(n, i) for n, i in value.uses() if (n.name, i) not in rounding.spared]
    chain: list[ir.Node] = []

    def step(op: str, operand: np.ndarray | None = None, more: np.ndarray | None = None, **attributes: int) -> None:
        inputs = [chain[-1].outputs[0] if chain else value]
        for array in (operand, more):
            if array is not None:
                held = ir.Value(name=f"{prefix}_{len(chain)}_{len(inputs)}", type=ir.TensorType(ir.DataType.FLOAT))
                held.shape = ir.Shape(array.shape)
                held.const_value = ir.tensor(array.astype(np.float32), name=held.name)
                graph.register_initializer(held)
                inputs.append(held)
        node = ir.node(op, inputs, attributes, name=f"{prefix}_{op}_{len(chain)}")
        node.outputs[0].name = f"{prefix}_{len(chain)}"
        chain.append(node)

    step("Div", rounding.scale)
    if rounding.dtype.is_floating_point():
        step("Cast", to=rounding.dtype)
        step("Cast", to=ir.DataType.FLOAT)
    else:
        step("Round")
        step("Max", rounding.low)
        step("Min", rounding.high)
    step("Mul", rounding.scale)
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], chain)
    else:
        graph.insert_after(producer, chain)
    rounded = chain[-1].outputs[0]
    for node, index in uses:
        node.replace_input_with(index, rounded)
    if not rounding.as_output:
        return
    for index, output in enumerate(graph.outputs):
        if output is value:
            rounded.name, value.name = value.name, f"{prefix}_f"
            rounded.type, rounded.shape = value.type, value.shape
            graph.outputs[index] = rounded
