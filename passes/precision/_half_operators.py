"""What each operator allows: which of its inputs and outputs may be a narrower float, and which it is wiser to leave."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import onnx
import onnx_ir as ir

from graphopt import graphs

MOVERS = frozenset({
    "Compress", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity",
    "MaxPool", "Pad", "Relu", "Reshape", "ReverseSequence", "ScatterElements", "ScatterND", "Slice", "SpaceToDepth", "Split",
    "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where",
})  # fmt: skip
"""Operators that move or select elements and so round nothing: they follow the type of what is around them."""

MAKERS = frozenset({"Cast", "CastLike", "ConstantOfShape", "EyeLike"})
"""Operators that make whatever type is asked of them."""

HEAVY = frozenset({
    "Attention", "Conv", "ConvTranspose", "DeformConv", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN", "FusedConv",
    "FusedGemm", "FusedMatMul", "MatMulNBits", "MultiHeadAttention", "GroupQueryAttention",
})  # fmt: skip
"""Operators that half precision is for: they never go back to float32 to save a conversion."""

ELEMENTWISE = frozenset({
    "Abs", "Add", "Ceil", "Clip", "Cos", "Div", "Exp", "Floor", "Log", "Max", "Min", "Mod", "Mul", "Neg", "Pow", "Range",
    "Reciprocal", "Round", "Sign", "Sin", "Sqrt", "Sub", "Tan",
})  # fmt: skip

CONTROL = frozenset({"If", "Loop", "Scan"})

_LEFT = {
    **dict.fromkeys(("AffineGrid", "RoiAlign", "MaxRoiPool", "NonMaxSuppression"), "its coordinates need more digits"),
    **dict.fromkeys(("Bernoulli", "Multinomial", "RandomNormal", "RandomUniform"), "it would draw other numbers"),
    **dict.fromkeys(("RandomNormalLike", "RandomUniformLike"), "it would draw other numbers"),
    **dict.fromkeys(("BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix"), "it makes a constant"),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"), "it belongs to a quantized network"),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul"), "it belongs to a quantized network"),
    "BitCast": "it reinterprets bits",
    "MeanVarianceNormalization": "ONNX Runtime computes it by a function that mixes types",
}  # fmt: skip
"""Operators that stay, and why."""

_PARAMETERS = {"Resize": (1, 2), "Upsample": (1,), "GridSample": (1,), "Dropout": (1,)}
"""Inputs that stay though the specification lets them be narrower: regions, scales, coordinates, ratios."""

_CONTRIB = {
    **dict.fromkeys((
        "Attention", "BiasAdd", "BiasGelu", "BiasSoftmax", "BiasSplitGelu", "EmbedLayerNormalization", "FastGelu",
        "FusedConv", "FusedGemm", "FusedMatMul", "FusedMatMulActivation", "GatedRelativePositionBias", "Gelu",
        "MultiHeadAttention", "QuickGelu", "RelativePositionBias", "RotaryEmbedding", "TransposeMatMul",
    ), ()),
    "GroupNorm": (), "SkipGroupNorm": (), "SkipLayerNormalization": (1, 2), "SkipSimplifiedLayerNormalization": (1, 2),
    "MatMulNBits": (),
}  # fmt: skip
"""Operators of com.microsoft whose floats may all be float16, but for these outputs (their schemas in onnxruntime 1.31)."""
_CONTRIB_DOMAIN = "com.microsoft"
_BESIDE = frozenset({"SimplifiedLayerNormalization"})
"""Operators that ONNX Runtime adds to the standard domain, of which the same holds."""


@dataclasses.dataclass(frozen=True)
class Allowed:
    """What of a node may be narrower.

    Attributes:
        inputs, outputs: one flag each.
        reason: why nothing may, if so.
    """

    inputs: tuple[bool, ...]
    outputs: tuple[bool, ...]
    reason: str = ""


def allowed(node: ir.Node, opset: int, dtype: ir.DataType) -> Allowed:
    """Return which floats of a node may be `dtype` in version `opset` of its operator set."""
    reason = _reason(node, opset, dtype)
    if reason:
        return Allowed((False,) * len(node.inputs), (False,) * len(node.outputs), reason)
    left = _PARAMETERS.get(node.op_type, ())
    if node.domain == _CONTRIB_DOMAIN or node.op_type in _BESIDE:
        single = _CONTRIB.get(node.op_type, (1,))
        outputs = tuple(index not in single for index in range(len(node.outputs)))
        return Allowed((True,) * len(node.inputs), outputs)
    schema, text = _schema(node.op_type, opset), _text(dtype)
    return Allowed(
        tuple(index not in left and text in _formal(schema.inputs, index).types for index in range(len(node.inputs))),
        tuple(text in _formal(schema.outputs, index).types for index in range(len(node.outputs))),
    )


def _reason(node: ir.Node, opset: int, dtype: ir.DataType) -> str:
    if node.op_type in _LEFT and node.domain == "":
        return _LEFT[node.op_type]
    if graphs.is_op(node, "Dropout") and len(node.inputs) > 2 and node.inputs[2] is not None:
        return "in training mode it would draw other numbers"
    if any(
        isinstance(v.type, (ir.SequenceType, ir.OptionalType)) for v in (*node.inputs, *node.outputs) if v is not None
    ):
        return "it holds a sequence or an optional"
    if node.domain == _CONTRIB_DOMAIN or (node.domain == "" and node.op_type in _BESIDE):
        known = node.op_type in _BESIDE or node.op_type in _CONTRIB
        return "" if known and dtype == ir.DataType.FLOAT16 else f"nothing says that it takes {name(dtype)}"
    if node.domain != "":
        return f"operators of {node.domain} take no {name(dtype)}"
    schema = _schema(node.op_type, opset)
    if schema is None:
        return f"opset {opset} has no such operator"
    if any(True for _ in graphs.subgraphs(node)):
        return "its body is not looked into"
    formals = [*schema.inputs, *schema.outputs]
    if not all(any(t.startswith("tensor(") for t in formal.types) for formal in formals):
        return "it holds a sequence or an optional"
    floats = [formal.types for formal in formals if "tensor(float)" in formal.types]
    if floats and not any(_text(dtype) in types for types in floats):
        return f"opset {opset} has it only without {name(dtype)}" + _remedy(node.op_type, dtype)
    return ""


def _remedy(op_type: str, dtype: ir.DataType) -> str:
    """Say from which opset on an operator takes a type, if the newest one does."""
    newest = _schema(op_type, onnx.defs.onnx_opset_version())
    if not any(_text(dtype) in formal.types for formal in newest.inputs):
        return ""
    return f"; opset {newest.since_version} has it with: see convert-opset"


def opset(model: ir.Model) -> int:
    """Return the version of the standard operator set; 0 without one."""
    return model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))


def name(dtype: ir.DataType) -> str:
    """Return what a type is called in ONNX."""
    return dtype.name.lower()


def _text(dtype: ir.DataType) -> str:
    return f"tensor({name(dtype)})"


def _formal(formals: Any, index: int) -> Any:
    return formals[min(index, len(formals) - 1)]


@functools.cache
def _schema(op_type: str, opset: int) -> Any:
    try:
        return onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
