"""Which initializers are weights, by what the graph does with them.

A number that an exporter had to put somewhere (the epsilon of a normalization, the 0.5 in a decomposed GELU, the scale
of attention scores, a causal mask, mean and deviation of a picture's colours) is an initializer like any other. What
training may change is told by the place where it is used.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.errors import UserError, did_you_mean

_PLACES: dict[str, tuple[int, ...]] = {
    "Attention": (1, 2),
    "BatchNormalization": (1, 2),
    "BiasGelu": (1,),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "DeformConv": (1, 3),
    "Einsum": (0, 1, 2, 3),
    "EmbedLayerNormalization": (2, 3, 4, 5, 6),
    "FastGelu": (1,),
    "FusedConv": (1, 2),
    "FusedGemm": (0, 1, 2),
    "FusedMatMul": (0, 1),
    "GRU": (1, 2, 3),
    "Gather": (0,),
    "Gemm": (0, 1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LSTM": (1, 2, 3, 7),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "MultiHeadAttention": (3,),
    "PRelu": (1,),
    "RMSNormalization": (1,),
    "RNN": (1, 2, 3),
    "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (2, 3, 4),
    "SkipSimplifiedLayerNormalization": (2, 3),
}
"""Operands that are weights where they are constant. An attention that gets both projections in one has its own entry:
com.microsoft::Attention reads weight and bias at 1 and 2, where the standard operator has key and value."""

_ELEMENTWISE = ("Add", "Mul")
_PASSING = [
    "Cast",
    "DequantizeLinear",
    "Flatten",
    "Identity",
    "QuantizeLinear",
    "Reshape",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
    "Concat",
    "Slice",
    "Expand",
]
"""Operators through which a weight stays one."""

_BEFORE_WEIGHTS = [
    "Add",
    "Cast",
    "Clip",
    "Concat",
    "Div",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "Max",
    "Min",
    "Mul",
    "Neg",
    "Pad",
    "QuantizeLinear",
    "DequantizeLinear",
    "Reshape",
    "Resize",
    "Shape",
    "Slice",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Transpose",
    "Unsqueeze",
    "Upsample",
]
"""Operators of which preprocessing consists."""

_MASKED = -1e4
"""Numbers this low are there to be added to scores, so that a softmax makes nothing of them."""


def trainable(model: ir.Model, train: Sequence[str] = (), freeze: Sequence[str] = ()) -> list[str]:
    """Return the names of the initializers of the main graph to train, in graph order.

    Args:
        model: never changed.
        train: patterns of names (as in the shell) that are weights whatever the graph does with them; when given,
            nothing else is trained.
        freeze: patterns of names that are not trained.

    Raises:
        UserError: a pattern fits no initializer that could be trained.
    """
    candidates = [name for name, value in model.graph.initializers.items() if _numeric(value)]
    for pattern in (*train, *freeze):
        if not fnmatch.filter(candidates, pattern):
            raise UserError(f"no weight is called '{pattern}'{did_you_mean(pattern, candidates)}")
    if train:
        chosen = {name for pattern in train for name in fnmatch.filter(candidates, pattern)}
    else:
        raw = _raw(model.graph)
        chosen = {name for name in candidates if _is_weight(model.graph.initializers[name], raw)}
    frozen = {name for pattern in freeze for name in fnmatch.filter(candidates, pattern)}
    return [name for name in candidates if name in chosen - frozen]


def output_axis(value: ir.Value) -> int:
    """Return the axis of a weight that counts the channels of what it makes; 0 where the graph does not tell."""
    for node, index, operand in _places(value):
        producer = operand.producer()
        if producer is not None and producer.op_type == "Transpose":
            continue
        if node.op_type == "ConvTranspose" and index == 1:
            return 1
        if node.op_type in ("MatMul", "FusedMatMul") and index == 1:
            return _rank(value) - 1
        if node.op_type in ("Gemm", "FusedGemm") and index == 1:
            transposed = node.attributes.get("transB")
            return 0 if transposed is not None and transposed.as_int() else 1
        if node.op_type == "Attention" and index == 1:
            return 1
        return 0
    return 0


def _rank(value: ir.Value) -> int:
    return len(value.shape) if value.shape is not None else 2


def _numeric(value: ir.Value) -> bool:
    """Tell whether an initializer could be trained: floats, or what DequantizeLinear turns into floats."""
    if value.dtype is None or value.const_value is None:
        return False
    if value.dtype.is_floating_point() and value.dtype.bitwidth > 8:
        return True
    return any(node.op_type in ("Cast", "DequantizeLinear") and index == 0 for node, index in value.uses())


def _is_weight(value: ir.Value, raw: set[ir.Value]) -> bool:
    places = list(_places(value))
    if any(node.op_type in _PLACES and index in _PLACES[node.op_type] for node, index, _ in places):
        return not any(node.op_type == "Attention" and node.domain == "" for node, *_ in places)
    for node, index, operand in places:
        if node.op_type not in _ELEMENTWISE or _count(value) < 2:
            continue
        other = node.inputs[1 - index]
        if other is not None and other not in raw and other is not operand and not _is_mask(value):
            return True
    return False


def _places(value: ir.Value) -> Iterator[tuple[ir.Node, int, ir.Value]]:
    """Yield where a value ends up: `(node, index, operand)`, past operators that only move or convert it."""
    for node, index in value.uses():
        if node.op_type in _PASSING and (index == 0 or node.op_type == "Concat"):
            yield from _places(node.outputs[0])
        else:
            yield node, index, value


def _raw(graph: ir.Graph) -> set[ir.Value]:
    """Return what is computed before the first operator that has weights: inputs, and what preprocessing makes."""
    found = set(graph.inputs)
    for node in graph:
        inputs = [value for value in node.inputs if value is not None and not value.is_initializer()]
        if node.op_type in _BEFORE_WEIGHTS and inputs and all(value in found for value in inputs):
            found.update(node.outputs)
    return found


def _count(value: ir.Value) -> int:
    return value.const_value.size if value.const_value is not None else 0


def _is_mask(value: ir.Value) -> bool:
    assert value.const_value is not None
    array = value.const_value.numpy()
    if array.dtype.kind not in "f":
        return False
    if array.min(initial=0) <= _MASKED:
        return True
    return array.ndim > 2 and len(np.unique(array)) < 3
