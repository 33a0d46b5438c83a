"""What integer kernels ONNX Runtime's CPU provider has, and for which nodes they will do."""

from __future__ import annotations

import enum
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from graphopt.passes.quantization._expand import hard_sigmoid, pools_globally
from graphopt.passes.quantization._graphs import attribute, constant, input_of, is_constant, is_float


class Role(enum.Enum):
    """What a unit does to integers."""

    ANCHOR = "multiplies by constant or computed matrices: what int8 speeds up"
    ARITHMETIC = "computes with integers of one scale, and yields integers of another"
    CARRIER = "passes integers on as they are"
    RESCALE = "changes nothing but the scale"


MANY_INPUTS = ("Add", "Mul", "Concat", "MatMul", "Div", "Max", "Min", "Where")
"""Operators of which more than the first input can be an activation; the condition of Where is none."""

ANCHORS = ("Conv", "Gemm", "MatMul")
"""Operators that int8 speeds up."""

CLAMPS = ("Relu", "Clip", "Max", "Min")
"""Operators that bound their input, Max and Min by a constant."""


def classify(node: ir.Node) -> Role | str:
    """Return the role that a node's integer kernel plays, or why it has none."""
    rule = _RULES.get(node.op_type) if node.domain == "" else None
    if rule is None:
        hint = "; run fold-batchnorm first" if node.op_type == "BatchNormalization" else ""
        return f"ONNX Runtime's CPU provider has no integer kernel for {node.op_type}{hint}"
    if not is_float(input_of(node, 1 if node.op_type == "Where" else 0)) or not is_float(node.outputs[0]):
        return "not a float32 tensor, or of unknown type"
    if is_constant(node.inputs[0]) and node.op_type not in MANY_INPUTS:
        return "what it reads is constant"
    return rule(node)


def clamp_bounds(node: ir.Node) -> tuple[float, float] | None:
    """Return the bounds that a node puts on its input, or None when they are computed or differ by element."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    if node.op_type in ("Max", "Min"):
        bound = _scalar_operand(node)
        if bound is None:
            return None
        return (bound, np.inf) if node.op_type == "Max" else (-np.inf, bound)
    bounds = []
    for index, name, default in ((1, "min", -np.inf), (2, "max", np.inf)):
        value = input_of(node, index)
        array = constant(value)
        if value is not None and (array is None or array.size != 1):
            return None
        bounds.append(float(array.item()) if array is not None else float(attribute(node, name, default)))
    return bounds[0], bounds[1]


def rescale(node: ir.Node) -> float | None:
    """Return by how much a Mul or Div by a positive constant scalar multiplies; None for any other."""
    factor = _scalar_operand(node)
    if factor is None or not 1e-6 <= factor <= 1e6:
        return None
    if node.op_type == "Div":
        return None if is_constant(node.inputs[0]) else 1 / factor
    return factor


def _scalar_operand(node: ir.Node) -> float | None:
    """Return the one number that an operator of two inputs combines all elements of an activation with, or None."""
    if len(node.inputs) != 2:
        return None
    for value, other in (node.inputs, reversed(node.inputs)):
        array = constant(other)
        if value is None or is_constant(value) or array is None or array.size != 1:
            continue
        rank = len(value.shape) if value.shape is not None else 1
        return float(array.item()) if array.ndim <= rank else None
    return None


def _conv(node: ir.Node) -> Role | str:
    weight, bias = constant(input_of(node, 1)), constant(input_of(node, 2))
    if weight is None or (bias is None and input_of(node, 2) is not None):
        return "its weight or bias is computed, not constant"
    return Role.ANCHOR if np.isfinite(weight).all() else "its weights are not finite"


def _gemm(node: ir.Node) -> Role | str:
    reason = _conv(node)
    if isinstance(reason, str):
        return reason
    if attribute(node, "transA", 0):
        return "ONNX Runtime's integer Gemm does not transpose activations"
    bias = constant(input_of(node, 2))
    if bias is not None and bias.ndim == 2 and bias.shape[0] != 1:
        return "its bias differs from row to row"
    return Role.ANCHOR


def _matmul(node: ir.Node) -> Role | str:
    arrays = [constant(value) for value in node.inputs]
    return Role.ANCHOR if _finite(arrays) else "its weights are not finite"


def _elementwise(node: ir.Node) -> Role | str:
    arrays = [constant(value) for value in node.inputs]
    return Role.ARITHMETIC if _finite(arrays) else "a constant operand is not finite"


def _mul(node: ir.Node) -> Role | str:
    return Role.RESCALE if rescale(node) else _elementwise(node)


def _div(node: ir.Node) -> Role | str:
    return Role.RESCALE if rescale(node) else "ONNX Runtime's CPU provider has no integer kernel for Div"


def _pool(node: ir.Node) -> Role | str:
    if any(d != 1 for d in attribute(node, "dilations", ())):
        return "ONNX Runtime's integer AveragePool has no dilations"
    return Role.ARITHMETIC


def _clamp(node: ir.Node) -> Role | str:
    return Role.CARRIER if clamp_bounds(node) else "its bounds are not constant scalars"


def _max_pool(node: ir.Node) -> Role | str:
    return "its indices are used" if len([v for v in node.outputs if v.name]) > 1 else Role.CARRIER


def _pad(node: ir.Node) -> Role | str:
    fill = constant(input_of(node, 2))
    known = input_of(node, 2) is None or (fill is not None and fill.size == 1 and not fill.any())
    if attribute(node, "mode", "constant") == "constant" and not known:
        return "it pads with something other than zero"
    return Role.CARRIER


def _resize(node: ir.Node) -> Role | str:
    crops = attribute(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize"
    if attribute(node, "mode", "nearest") != "nearest" or crops:
        return "ONNX Runtime's integer Resize interpolates by truncation, slower than the float one"
    return Role.CARRIER


def _dropout(node: ir.Node) -> Role | str:
    training = constant(input_of(node, 2))
    off = input_of(node, 2) is None or (training is not None and not training.any())
    return Role.CARRIER if off and len([v for v in node.outputs if v.name]) == 1 else "it may drop elements"


def _reduce_mean(node: ir.Node) -> Role | str:
    return Role.ARITHMETIC if pools_globally(node) else "it averages over other axes than all spatial ones"


def _hard_sigmoid(node: ir.Node) -> Role | str:
    return Role.ARITHMETIC if hard_sigmoid(node)[0] > 0 else "its slope is not positive"


def _softmax(node: ir.Node) -> Role | str:
    rank = len(node.outputs[0].shape) if node.outputs[0].shape is not None else None
    last = rank is not None and attribute(node, "axis", -1) in (-1, rank - 1)
    return Role.ARITHMETIC if last else "ONNX Runtime's integer Softmax moves other axes than the last to the end first"


def _finite(arrays: list[np.ndarray | None]) -> bool:
    return all(array is None or bool(np.isfinite(array).all()) for array in arrays)


def _arithmetic(node: ir.Node) -> Role | str:
    del node
    return Role.ARITHMETIC


def _carrier(node: ir.Node) -> Role | str:
    del node
    return Role.CARRIER


_RULES: dict[str, Callable[[ir.Node], Role | str]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Add": _elementwise,
    "Mul": _mul,
    "Div": _div,
    "Concat": _elementwise,
    "AveragePool": _pool,
    "GlobalAveragePool": _arithmetic,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_sigmoid,
    "LeakyRelu": _arithmetic,
    "Sigmoid": _arithmetic,
    "Softmax": _softmax,
    "Where": _elementwise,
    "Relu": _clamp,
    "Clip": _clamp,
    "Max": _clamp,
    "Min": _clamp,
    "MaxPool": _max_pool,
    "Pad": _pad,
    "ReduceMean": _reduce_mean,
    "Resize": _resize,
    "Dropout": _dropout,
    **dict.fromkeys(
        (
            "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "ReduceMax", "Reshape", "Slice",
            "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
        ),
        _carrier,
    ),
}  # fmt: skip
