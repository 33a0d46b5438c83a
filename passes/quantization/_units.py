"""Group nodes into units: what can become one integer kernel of ONNX Runtime's CPU provider.

ONNX Runtime turns `DequantizeLinear -> operator -> QuantizeLinear` into one integer kernel for a fixed set
of operators (its "QDQ node units"). A Relu or Clip after such an operator costs nothing: the saturation of
QuantizeLinear does its work (Jacob et al. 2018, arXiv:1712.05877, section 2.4). Operators that only move
elements, or compare them, run on the integers as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from graphopt.passes.quantization._graphs import (
    computed_constants,
    constant,
    input_of,
    is_constant,
    is_float,
    sole_consumer,
)
from graphopt.passes.quantization._kernels import CLAMPS, MANY_INPUTS, Role, clamp_bounds, classify, rescale


@dataclasses.dataclass(eq=False)
class Unit:
    """Nodes that run as one kernel.

    Attributes:
        role: what it does to integers.
        node: the operator.
        bias: the Add that holds the bias of a MatMul.
        clamps: Relu and Clip nodes that QuantizeLinear's saturation replaces, in order.
    """

    role: Role
    node: ir.Node
    bias: ir.Node | None = None
    clamps: list[ir.Node] = dataclasses.field(default_factory=list)

    @property
    def nodes(self) -> Iterator[ir.Node]:
        """All its nodes, in order."""
        yield self.node
        if self.bias:
            yield self.bias
        yield from self.clamps

    @property
    def inputs(self) -> list[ir.Value]:
        """The activations it reads: float32 tensors that are not constant, each once."""
        values = self.node.inputs if self.node.op_type in MANY_INPUTS else self.node.inputs[:1]
        values = values[1:] if self.node.op_type == "Where" else values
        return list(dict.fromkeys(v for v in values if v is not None and not is_constant(v)))

    @property
    def result(self) -> ir.Value:
        """What the operator (with its bias) computes, before any clamp."""
        return (self.bias or self.node).outputs[0]

    @property
    def outputs(self) -> list[ir.Value]:
        """What other nodes read of it."""
        if self.clamps:
            return [self.clamps[-1].outputs[0]]
        return [self.result] if self.bias else [v for v in self.node.outputs if v.name]

    def map_range(self, range_: tuple[float, float]) -> tuple[float, float]:
        """Return the range of what a carrier or rescaler yields, given that of what it reads."""
        lo, hi = range_
        if self.role is Role.RESCALE:
            factor = rescale(self.node)
            assert factor is not None
            return lo * factor, hi * factor
        bounds = clamp_bounds(self.node) if self.node.op_type in CLAMPS else None
        return (max(lo, bounds[0]), min(hi, bounds[1])) if bounds else range_

    @property
    def has_weight(self) -> bool:
        """Whether it multiplies by constants that deserve a scale per channel."""
        weight = constant(input_of(self.node, 1)) if self.role is Role.ANCHOR else None
        return weight is not None and (self.node.op_type != "MatMul" or weight.ndim == 2)

    @property
    def float_result(self) -> bool:
        """Whether the kernel can yield float at no cost, as those of Gemm and MatMul can.

        ONNX Runtime 1.31 makes no integer kernel of one that yields float to a Relu or Clip, or to an addition
        of which it can make the C of a float Gemm.
        """
        if self.node.op_type not in ("Gemm", "MatMul"):
            return False
        spoilers = {*_ABSORBED}
        if self.node.op_type == "Gemm":
            spoilers |= {"Sum"} if input_of(self.node, 2) is None else set()
        elif not self.bias and (self.result.shape is None or len(self.result.shape) <= 2):
            spoilers.add("Add")
        return all(user.op_type not in spoilers for user in self.result.consumers())


_ABSORBED = ("Relu", "Clip")

_FOLD = "it reads what is computed from constants alone; run fold-constants first"


def group(graph: ir.Graph) -> tuple[list[Unit], dict[ir.Node, str]]:
    """Return the units of a graph in order, and for nodes that compute in float32 but form none, why.

    Nodes that touch no float32 activation (shapes, indices, strings) are in neither.
    """
    units: list[Unit] = []
    refused: dict[ir.Node, str] = {}
    of_result: dict[ir.Value, Unit] = {}
    computed = computed_constants(graph)
    for node in graph:
        if not any(is_float(v) and not is_constant(v) for v in (*node.inputs, *node.outputs)):
            continue
        before = next((of_result[v] for v in node.inputs if v in of_result and sole_consumer(v) is node), None)
        if before and before.role in (Role.ANCHOR, Role.ARITHMETIC) and _folds(node):
            before.clamps.append(node)
            of_result[node.outputs[0]] = before
        elif before and _holds_bias(node, before):
            before.bias = node
            of_result[node.outputs[0]] = before
        else:
            unfolded = any(value in computed and is_float(value) for value in (*node.inputs, *node.outputs))
            role = _FOLD if unfolded else classify(node)
            unit = Unit(role, node) if isinstance(role, Role) else None
            if unit and not unit.inputs:
                refused[node] = "all that it reads is constant"
            elif unit:
                units.append(unit)
                of_result.update(dict.fromkeys(unit.outputs, unit))
            elif node.op_type != "Constant":
                assert isinstance(role, str)
                refused[node] = role
    return units, refused


def _folds(node: ir.Node) -> bool:
    if node.op_type not in CLAMPS or node.domain:
        return False
    bounds = clamp_bounds(node)
    return bounds is not None and bounds[0] <= 0 <= bounds[1]


def _holds_bias(node: ir.Node, unit: Unit) -> bool:
    """Tell whether an Add gives a MatMul by constant weights its bias.

    The two must stay together: ONNX Runtime makes a Gemm of them, a float one unless the bias is int32.
    """
    if node.op_type != "Add" or node.domain or unit.node.op_type != "MatMul" or unit.bias or unit.clamps:
        return False
    weight = constant(unit.node.inputs[1])
    bias = next((array for array in map(constant, node.inputs) if array is not None), None)
    return weight is not None and weight.ndim == 2 and bias is not None and _is_row(bias, weight.shape[1])


def _is_row(array: np.ndarray, length: int) -> bool:
    return array.ndim > 0 and array.shape[-1] == length == array.size
