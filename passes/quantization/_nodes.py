"""Make QuantizeLinear, DequantizeLinear and the constants they need, each constant once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.passes.quantization._grid import Grid


class Nodes:
    """New nodes and initializers for one graph, under names that nothing else has."""

    def __init__(self, graph: ir.Graph, taken: set[str]) -> None:
        """Prepare to add to `graph`, where the names `taken` are in use; new ones are added to them."""
        self._graph = graph
        self._taken = taken
        self._tensors: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def fresh(self, name: str) -> str:
        """Return `name`, with a number if it is in use, and reserve it."""
        candidate, number = name, 0
        while candidate in self._taken:
            number += 1
            candidate = f"{name}_{number}"
        self._taken.add(candidate)
        return candidate

    def tensor(self, array: np.ndarray, name: str) -> ir.Value:
        """Return an initializer that holds `array`; an equal one that was made before, if there is one."""
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._tensors:
            tensor = ir.tensor(array, name=self.fresh(name))
            self._tensors[key] = ir.Value(
                name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
            )
            self._graph.register_initializer(self._tensors[key])
        return self._tensors[key]

    def zero_point(self, grid: Grid) -> ir.Value:
        """Return the scalar that stands for zero."""
        return self.tensor(np.array(grid.zero_point, grid.number.dtype.numpy()), f"zero_{grid.zero_point}")

    def quantize(self, value: ir.Value, grid: Grid, name: str) -> ir.Value:
        """Quantize a float activation right where it is made."""
        node = self.make("QuantizeLinear", [value, *self._parameters(grid)], name)
        self.insert_after(value, node)
        return node.outputs[0]

    def dequantize(self, integers: ir.Value, grid: Grid, name: str) -> ir.Value:
        """Turn an integer activation back to float right where it is made."""
        node = self.make("DequantizeLinear", [integers, *self._parameters(grid)], name)
        self.insert_after(integers, node)
        return node.outputs[0]

    def dequantize_constant(
        self,
        array: np.ndarray,
        scale: np.ndarray,
        zero_point: np.ndarray | None,
        name: str | None,
        axis: int | None,
        user: ir.Node,
    ) -> ir.Value:
        """Turn constant integers to float for `user`.

        Integers of less than 8 bits pass through a Cast to int8, which ONNX Runtime carries out when the model loads:
        it has integer kernels for int8, and none for narrower types.

        Args:
            array: the integers.
            scale: float32, a scalar, or [channels] along `axis`.
            zero_point: of the type of `array` and the shape of `scale`; None for zero.
            name: what to name everything after.
            axis: the channel axis, or None for a scalar scale.
            user: the first node to read the result.
        """
        name = name or "constant"
        integers = self.tensor(array, f"{name}_q")
        assert integers.dtype is not None
        if integers.dtype.bitwidth < 8:
            to = ir.Attr("to", ir.AttributeType.INT, ir.DataType.INT8)
            cast = self.make("Cast", [integers], f"{name}_c", [to])
            self._graph.insert_before(user, cast)
            integers = cast.outputs[0]
            zero_point = None if zero_point is None else zero_point.astype(np.int8)
        inputs = [integers, self.tensor(scale, f"{name}_s")]
        if zero_point is not None:
            inputs.append(self.tensor(zero_point, "zero"))
        attributes = [] if axis is None else [ir.Attr("axis", ir.AttributeType.INT, axis)]
        node = self.make("DequantizeLinear", inputs, f"{name}_dq", attributes)
        self._graph.insert_before(user, node)
        return node.outputs[0]

    def make(self, op: str, inputs: Sequence[ir.Value], name: str, attributes: Sequence[ir.Attr] = ()) -> ir.Node:
        """Make a node of one output, both called `name` or like it; it is not in the graph yet."""
        name = self.fresh(name)
        return ir.Node("", op, inputs, attributes, name=name, outputs=[ir.Value(name=name)])

    def insert_after(self, value: ir.Value, node: ir.Node) -> None:
        """Put a node right behind what makes `value`: its producer, or the beginning of this graph."""
        producer = value.producer()
        if producer is None or producer.graph is not self._graph:
            self._graph.insert_before(self._graph[0], node)
        else:
            self._graph.insert_after(producer, node)

    def _parameters(self, grid: Grid) -> tuple[ir.Value, ir.Value]:
        return self.tensor(np.array(grid.scale, np.float32), "scale"), self.zero_point(grid)
