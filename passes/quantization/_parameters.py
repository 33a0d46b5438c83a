"""Write the weights and biases of convolutions and matrix products as integers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.passes.quantization._graphs import attribute, constant, input_of, is_constant
from graphopt.passes.quantization._nodes import Nodes
from graphopt.passes.quantization._units import Unit
from graphopt.passes.quantization._weights import quantize_bias, quantize_weight, weight_scales


def write(new: Nodes, unit: Unit, input_scale: float) -> None:
    """Give a unit with a constant weight an int8 weight and an int32 bias.

    Args:
        new: makes the nodes.
        unit: a convolution or matrix product.
        input_scale: scale of the activations that it reads.
    """
    node = unit.node
    holder, index = _bias_of(unit)
    old_weight, old_bias = node.inputs[1], input_of(holder, index)
    assert old_weight is not None
    alpha, beta = (float(attribute(node, name, 1.0)) for name in ("alpha", "beta"))
    for name in ("alpha", "beta"):
        node.attributes.pop(name, None)
    axis = {"Conv": 0, "Gemm": 1 - attribute(node, "transB", 0), "MatMul": 1}[node.op_type]
    weight = _array(old_weight) * np.float32(alpha)
    bias = None
    if old_bias is not None:
        bias = np.broadcast_to(_array(old_bias).reshape(-1) * np.float32(beta), (weight.shape[axis],))
    scales = weight_scales(weight, axis, bias, input_scale)
    # Zero is the default, but ONNX Runtime 1.31 makes no integer Gemm of a weight that does not say so.
    zeros = np.zeros(scales.shape, np.int8)
    integers = quantize_weight(weight, scales, axis)
    node.replace_input_with(1, new.dequantize_constant(integers, scales, zeros, old_weight.name, axis, node))
    if old_bias is not None and bias is not None:
        scales = scales * np.float32(input_scale)
        integers = quantize_bias(bias, scales)
        if unit.bias:  # an Add may broadcast, so its operand keeps its shape
            integers = integers.reshape(_array(old_bias).shape)
        last = integers.ndim - 1
        holder.replace_input_with(index, new.dequantize_constant(integers, scales, None, old_bias.name, last, holder))


def _bias_of(unit: Unit) -> tuple[ir.Node, int]:
    """Return the node that holds a unit's bias, and at which input, present or not."""
    if unit.bias:
        return unit.bias, next(i for i, value in enumerate(unit.bias.inputs) if is_constant(value))
    return unit.node, 2


def _array(value: ir.Value) -> np.ndarray:
    array = constant(value)
    assert array is not None
    return array
