"""Write a plan into the graph, as QuantizeLinear and DequantizeLinear nodes around float operators.

Activations have one scale per tensor; weights are symmetric, with one scale per channel or tensor; biases are int32.
By default activations are uint8 and weights int8 (see `_scheme`). A tensor is quantized once, whoever reads it, and nothing is left in float between two integer
kernels. What only moves elements stands on the integers themselves, between QuantizeLinear and
DequantizeLinear: every runtime then moves bytes, without having to recognise anything.
Specification: ONNX operators QuantizeLinear and DequantizeLinear, opset 13, and 19, 21 and 25 for further types.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from graphopt.passes.quantization import _parameters
from graphopt.passes.quantization._expand import hard_sigmoid
from graphopt.passes.quantization._graphs import attribute, constant, is_float, sole_consumer
from graphopt.passes.quantization._grid import Grid, Number, grid
from graphopt.passes.quantization._kernels import CLAMPS, MANY_INPUTS, Role, clamp_bounds, rescale
from graphopt.passes.quantization._nodes import Nodes
from graphopt.passes.quantization._plan import Plan
from graphopt.passes.quantization._scheme import Scheme
from graphopt.passes.quantization._units import Unit


@dataclasses.dataclass(frozen=True)
class Stored:
    """A float tensor as it is kept: a tensor of integers, and what they stand for."""

    integers: ir.Value
    grid: Grid


class Writer:
    """Rewrites one graph, once."""

    def __init__(self, graph: ir.Graph, plan: Plan, scheme: Scheme, taken: set[str]) -> None:
        """Prepare to write.

        Args:
            graph: the main graph, or one inside it.
            plan: what to quantize in it.
            scheme: the types to keep tensors in.
            taken: names that are in use; new ones are added.
        """
        self._graph = graph
        self._plan = plan
        self._scheme = scheme
        self._wide = scheme.wide(plan.units)
        self._saturates = not (scheme.symmetric or scheme.number(wide=False).is_float)
        """Whether integers end where clamps do, so that these are superfluous."""
        self._new = Nodes(graph, taken)
        self._stored: dict[ir.Value, Stored] = {}
        self._dequantized: dict[Stored, ir.Value] = {}
        self._obsolete: list[ir.Node] = []
        self._inferable: list[ir.Value] = []
        self._unit_of = {unit.node: unit for unit in plan.units}
        self._read_as_integers = {value for unit in plan.units for value in unit.inputs}
        self._read_as_float = {
            value: [(node, index) for node, index in value.uses() if not self._reads_integers(node, index)]
            for unit in plan.units
            for value in unit.outputs
        }

    def write(self) -> None:
        """Write every unit, then give float readers of integers what they expect."""
        for unit in self._plan.units:
            if unit.role is Role.CARRIER:
                self._carry(unit)
            elif unit.role is Role.RESCALE:
                self._rescale(unit)
            else:
                self._compute(unit)
        for value, readers in self._read_as_float.items():
            if value in self._stored:
                self._serve(value, readers)
        for node in reversed(self._obsolete):
            self._graph.remove(node, safe=True)
        for value in self._inferable:  # what follows from the operator; spelling it out costs bytes
            value.type = value.shape = None

    def _reads_integers(self, node: ir.Node, index: int) -> bool:
        return node in self._unit_of and (index == 0 or node.op_type in MANY_INPUTS)

    def _compute(self, unit: Unit) -> None:
        node = unit.node
        activations, output = unit.inputs, unit.outputs[0]
        result = unit.result if self._saturates else output
        number = self._scheme.number(wide=any(value in self._wide for value in (*activations, output)))
        yields_float = unit.float_result and output not in self._read_as_integers
        if unit.has_weight:
            scale = self._store(unit.inputs[0]).grid.scale
            kind = self._scheme.weight(unit)
            _parameters.write(self._new, unit, scale, kind, per_channel=self._scheme.per_channel)
        for index, value in enumerate(node.inputs):
            array = constant(value) if node.op_type in MANY_INPUTS and is_float(value) else None
            if value in activations:
                assert value is not None
                node.replace_input_with(index, self._read(value))
            elif array is not None:
                assert value is not None
                node.replace_input_with(index, self._operand(array, value.name, node, number))
        if node.op_type in ("HardSigmoid", "HardSwish"):
            self._harden(node, self._store(activations[0]), number)
        if yields_float:
            return
        kept = self._grid(output)
        integers = self._new.quantize(result, kept, f"{output.name}_q")
        if node.op_type == "ReduceMean":
            integers = self._pool(node, integers, len(activations[0].shape or ()))
        self._stored[output] = Stored(integers, kept)
        self._obsolete += unit.clamps if self._saturates else []
        self._inferable.append(result)

    def _pool(self, node: ir.Node, integers: ir.Value, rank: int) -> ir.Value:
        """Turn a ReduceMean over all spatial axes into GlobalAveragePool; return its integers in the right shape."""
        keepdims = attribute(node, "keepdims", 1)
        node.op_type = "GlobalAveragePool"
        node.attributes.clear()
        node.resize_inputs(1)
        if keepdims:
            return integers
        squeeze = self._new.make(
            "Squeeze", [integers, self._new.tensor(np.arange(2, rank), "axes")], f"{integers.name}_s"
        )
        self._new.insert_after(integers, squeeze)
        return squeeze.outputs[0]

    def _harden(self, node: ir.Node, stored: Stored, number: Number) -> None:
        """Turn HardSigmoid into an addition, and HardSwish into that and a multiplication (see `_expand`)."""
        slope, offset = hard_sigmoid(node)
        steep = self._float(Stored(stored.integers, stored.grid.times(slope)), f"{stored.integers.name}_dq")
        added = self._operand(np.array(offset, np.float32), "offset", node, number)
        node.attributes.clear()
        if node.op_type == "HardSigmoid":
            node.op_type = "Add"
            node.resize_inputs(2)
            node.replace_input_with(0, steep)
            node.replace_input_with(1, added)
        else:
            gate = self._new.make("Add", [steep, added], f"{node.outputs[0].name}_gate")
            self._graph.insert_before(node, gate)
            kept = self._cover(0, 1, number)
            integers = self._new.quantize(gate.outputs[0], kept, f"{gate.name}_q")
            node.op_type = "Mul"
            node.resize_inputs(2)
            node.replace_input_with(1, self._float(Stored(integers, kept), f"{gate.name}_dq"))

    def _carry(self, unit: Unit) -> None:
        node = unit.node
        stored = self._store(unit.inputs[0])
        if node.op_type in ("Identity", "Dropout"):
            self._stored[node.outputs[0]] = stored
            self._obsolete.append(node)
        elif not _moves(node.op_type, stored.grid):
            node.replace_input_with(0, self._read(unit.inputs[0]))
            for value in unit.outputs:
                self._stored[value] = Stored(self._new.quantize(value, stored.grid, f"{value.name}_q"), stored.grid)
        elif node.op_type in CLAMPS:
            self._clamp(node, stored)
        else:
            node.replace_input_with(0, stored.integers)
            if node.op_type == "Pad" and attribute(node, "mode", "constant") == "constant":
                node.resize_inputs(max(3, len(node.inputs)))
                node.replace_input_with(2, self._new.zero_point(stored.grid))
            for value in unit.outputs:
                value.dtype = stored.grid.number.dtype
                self._stored[value] = Stored(value, stored.grid)

    def _clamp(self, node: ir.Node, stored: Stored) -> None:
        """Clamp the integers themselves. Bounds beyond the grid do nothing and are left out."""
        bounds = clamp_bounds(node)
        assert bounds is not None
        lo, hi = stored.grid.quantize(np.array(bounds))
        largest = stored.grid.number.high
        inputs = [
            stored.integers,
            self._new.tensor(lo, "min"),
            *([self._new.tensor(hi, "max")] if hi < largest else []),
        ]
        clip = self._new.make("Clip", inputs, f"{node.outputs[0].name}_q")
        self._graph.insert_after(node, clip)
        self._stored[node.outputs[0]] = Stored(clip.outputs[0], stored.grid)
        self._obsolete.append(node)

    def _rescale(self, unit: Unit) -> None:
        factor = rescale(unit.node)
        assert factor is not None
        stored = self._store(unit.inputs[0])
        self._stored[unit.node.outputs[0]] = Stored(stored.integers, stored.grid.times(factor))
        self._obsolete.append(unit.node)

    def _grid(self, value: ir.Value) -> Grid:
        """Return the grid of an activation; what only a Concat reads is put on the Concat's own at once."""
        reader = sole_consumer(value)
        unit = self._unit_of.get(reader) if reader else None
        if unit and unit.node.op_type == "Concat":
            return self._grid(unit.outputs[0])
        return self._cover(*self._plan.ranges[value], self._scheme.number(wide=value in self._wide))

    def _cover(self, lo: float, hi: float, number: Number) -> Grid:
        return grid(lo, hi, number, symmetric=self._scheme.symmetric)

    def _store(self, value: ir.Value) -> Stored:
        """Return a tensor's integers; what a float node makes is quantized when it is first asked for."""
        if value not in self._stored:
            kept = self._grid(value)
            self._stored[value] = Stored(self._new.quantize(value, kept, f"{value.name}_q"), kept)
        return self._stored[value]

    def _read(self, value: ir.Value) -> ir.Value:
        """Return a stored tensor in float, for whoever wants it."""
        return self._float(self._store(value), f"{value.name}_dq")

    def _float(self, stored: Stored, name: str) -> ir.Value:
        if stored not in self._dequantized:
            self._dequantized[stored] = self._new.dequantize(stored.integers, stored.grid, name)
        return self._dequantized[stored]

    def _serve(self, value: ir.Value, readers: Iterable[tuple[ir.Node, int]]) -> None:
        """Give the float readers of a value that is now kept as integers its float form."""
        for node, index in readers:
            node.replace_input_with(index, self._read(value))
        if not value.is_graph_output():
            return
        stored = self._stored[value]
        output = self._new.dequantize(stored.integers, stored.grid, f"{value.name}_dq")
        output.name, value.name = value.name, self._new.fresh(f"{value.name}_f")
        output.type, output.shape, output.doc_string = ir.TensorType(ir.DataType.FLOAT), value.shape, value.doc_string
        output.metadata_props.update(value.metadata_props)
        value.metadata_props.clear()
        for index, old in enumerate(self._graph.outputs):
            if old is value:
                self._graph.outputs[index] = output

    def _operand(self, array: np.ndarray, name: str | None, user: ir.Node, number: Number) -> ir.Value:
        """Return a constant operand in integers, on a grid of its own."""
        kept = self._cover(float(array.min(initial=0)), float(array.max(initial=0)), number)
        scale, zero_point = np.array(kept.scale, np.float32), np.array(kept.zero_point, number.dtype.numpy())
        return self._new.dequantize_constant(kept.quantize(array), scale, zero_point, name, axis=None, user=user)


_COMPUTING = (*CLAMPS, "DepthToSpace", "MaxPool", "Pad", "ReduceMax", "Resize", "SpaceToDepth")
"""Carriers that compare or gather elements, for which ONNX Runtime has kernels of 8-bit integers only."""


def _moves(op_type: str, kept: Grid) -> bool:
    """Tell whether ONNX Runtime has a kernel of a carrier for the integers of a grid."""
    return not kept.number.is_float and (kept.number.bits == 8 or op_type not in _COMPUTING)
