"""Write the weights and biases of convolutions and matrix products as integers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.passes.quantization._graphs import attribute, constant, input_of, is_constant
from graphopt.passes.quantization._nodes import Nodes
from graphopt.passes.quantization._units import Unit
from graphopt.passes.quantization._weights import number, quantize_bias, quantize_weight, weight_scales


def write(new: Nodes, unit: Unit, input_scale: float, kind: str, *, per_channel: bool) -> None:
    """Give a unit with a constant weight an integer weight and an int32 bias.

    Args:
        new: makes the nodes.
        unit: a convolution or matrix product.
        input_scale: scale of the activations that it reads.
        kind: how the weight is kept (see `_scheme.Scheme`).
        per_channel: give every output channel a scale of its own.
    """
    node = unit.node
    holder, index = _bias_of(unit)
    old_weight, old_bias = node.inputs[1], input_of(holder, index)
    assert old_weight is not None
    alpha, beta = (float(attribute(node, name, 1.0)) for name in ("alpha", "beta"))
    for name in ("alpha", "beta"):
        node.attributes.pop(name, None)
    channels = {"Conv": 0, "Gemm": 1 - attribute(node, "transB", 0), "MatMul": 1}[node.op_type]
    axis = channels if per_channel else None
    weight = _array(old_weight) * np.float32(alpha)
    bias = None
    if old_bias is not None:
        bias = np.broadcast_to(_array(old_bias).reshape(-1) * np.float32(beta), (weight.shape[channels],))
    type_ = number(kind)
    scales = weight_scales(weight, axis, None if type_.is_float else bias, input_scale, kind)
    # Zero is the default, but ONNX Runtime 1.31 makes no integer Gemm of a weight that does not say so.
    zeros = np.full(scales.shape, type_.zero, type_.dtype.numpy())
    integers = quantize_weight(weight, scales, axis, kind)
    node.replace_input_with(1, new.dequantize_constant(integers, scales, zeros, old_weight.name, axis, node))
    if old_bias is None or bias is None:
        return
    shape = _array(old_bias).shape if unit.bias else bias.shape  # an Add may broadcast, so its operand keeps its shape
    if type_.is_float:
        holder.replace_input_with(index, new.tensor(bias.reshape(shape), f"{old_bias.name}_b"))
        return
    scales = scales * np.float32(input_scale)
    integers = quantize_bias(bias, scales).reshape(shape)
    last = integers.ndim - 1 if per_channel else None
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
