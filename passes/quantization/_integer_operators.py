"""Operators on integers that can saturate: what dynamic quantization and the operator format make of layers.

Their weights can become unsigned, which gives the same numbers (see `graphopt.saturation`). Coarser weights would need
other scales, which these operators take from anywhere. ConvInteger is not among them: ONNX Runtime has it for unsigned
weights only.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from graphopt import graphs, saturation
from graphopt.passes.quantization._graphs import constant, input_of
from graphopt.passes.quantization._saturation import is_depthwise, rows

_PLACES = {"MatMulInteger": (2, 1, 3), "QLinearMatMul": (2, 3, 5), "QLinearConv": (2, 3, 5)}
"""Inputs: the zero point of the activations, the weights, and their zero point."""


@dataclasses.dataclass(frozen=True)
class IntegerOperator:
    """An operator of 8-bit activations and constant weights.

    Attributes:
        node: the operator.
        weight: its weights as they are stored.
        obstacle: why they cannot become unsigned; None if they can.
    """

    node: ir.Node
    weight: np.ndarray
    obstacle: str | None

    def channels(self, *, any_order: bool) -> np.ndarray:
        """Return which output channels can saturate, bool [C]."""
        laid_out = rows(self.node, self.weight)
        if self.weight.dtype != np.int8 or is_depthwise(self.node, self.weight):
            return np.zeros(len(laid_out), bool)
        if any_order:
            return saturation.can_saturate_in_any_order(laid_out, 0, 255)
        return np.asarray(saturation.can_saturate(laid_out, 0, 255).any(axis=1))

    def store_unsigned(self, taken: Counter[str]) -> None:
        """Store the weights as uint8, around another zero point."""
        _, weight, zero = _PLACES[self.node.op_type]
        old = constant(input_of(self.node, zero))
        zeros = np.array(0, np.int8) if old is None else old
        graph = self.node.graph
        assert isinstance(graph, ir.Graph)
        self.node.resize_inputs(max(len(self.node.inputs), zero + 1))
        for index, array in ((weight, self.weight), (zero, zeros)):
            raised = (array.astype(np.int16) + 128).astype(np.uint8)
            replaced = self.node.inputs[index]
            stem = replaced.name if replaced is not None else self.node.outputs[0].name
            self.node.replace_input_with(index, None)
            if replaced is not None:
                graphs.discard(replaced)
            self.node.replace_input_with(index, graphs.initializer(graph, raised, f"{stem}_unsigned", taken))


def integer_operators(graph: ir.Graph) -> Iterator[IntegerOperator]:
    """Yield the operators of one graph (not of bodies in it) that multiply 8-bit integers by constants, in order."""
    for node in graph:
        if node.domain != "" or node.op_type not in _PLACES:
            continue
        activation_zero, weight, zero = _PLACES[node.op_type]
        array = constant(input_of(node, weight))
        if array is None or array.dtype not in (np.int8, np.uint8):
            continue
        source = input_of(node, activation_zero) or node.inputs[0]
        obstacle = None
        if source is not None and source.dtype == ir.DataType.INT8:
            obstacle = "its activations are int8, for which there is no kernel with unsigned weights"
        elif input_of(node, zero) is not None and constant(input_of(node, zero)) is None:
            obstacle = "the zero point of its weights is computed"
        yield IntegerOperator(node, array, obstacle)
