"""How operators relate the factors per channel of what they read and compute.

A rule takes the exponents of a node's inputs, says what they must satisfy, and sets those of the outputs. Where it returns a
reason instead, everything the node reads stays as it is. Factors are positive, so that max(s x, s y) = s max(x, y) and the
like hold, and powers of two, so that nothing is rounded.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt import graphs
from graphopt.passes.quantization import _equalize_moves as moves
from graphopt.passes.quantization import _equalize_operators as operators
from graphopt.passes.quantization._equalize_channels import Channels
from graphopt.passes.quantization._equalize_rule import Rule, does_not_commute

_MICROSOFT = "com.microsoft"


def analyse(model: ir.Model) -> Channels:
    """Return the exponents of a model's main graph; nothing is changed."""
    channels = Channels(model)
    for node in model.graph:
        _follow(channels, node)
    for value in model.graph.outputs:
        channels.fix(value, f"it is the model's output '{value.name}'")
    return channels


def _follow(channels: Channels, node: ir.Node) -> None:
    """Apply the rule for a node."""
    for outer in graphs.captured(node):
        channels.fix(outer, f"it is read in a body of {graphs.label(node)}")
    opaque = graphs.has_parameters(node) or "broadcast" in node.attributes  # as before opset 7
    rule = None if opaque else _RULES.get((node.domain, node.op_type))
    reason = rule(channels, node) if rule else does_not_commute(node)
    if reason:
        for value in node.inputs:
            if value is not None:
                channels.fix(value, reason)


def _ignored(channels: Channels, node: ir.Node) -> str | None:
    """Operators that look at sizes alone."""
    del channels, node
    return None


_REDUCTIONS = ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceL1", "ReduceL2")
_POOLS = ("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")

_RULES: dict[tuple[str, str], Rule] = {
    **dict.fromkeys((("", op) for op in ("Conv", "ConvTranspose", "Gemm", "MatMul")), operators.layer),
    **dict.fromkeys((("", op) for op in ("Mul", "Div")), operators.multiply),
    **dict.fromkeys((("", op) for op in ("Add", "Sub", "Sum", "Mean", "Max", "Min", "Where")), operators.alike),
    **dict.fromkeys((("", op) for op in ("Identity", "Relu", "LeakyRelu", "Abs", "Neg")), operators.same),
    **dict.fromkeys((("", op) for op in ("Reshape", "Flatten", "Squeeze", "Unsqueeze")), moves.reshape),
    **dict.fromkeys((("", op) for op in _REDUCTIONS), moves.reduce),
    **dict.fromkeys((("", op) for op in _POOLS), moves.pool),
    **dict.fromkeys((("", op) for op in ("Resize", "Upsample")), moves.resize),
    **dict.fromkeys((("", op) for op in ("Shape", "Size")), _ignored),
    **dict.fromkeys(
        (("", op) for op in ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")),
        operators.layer_normalization(1),
    ),
    **dict.fromkeys(
        ((_MICROSOFT, op) for op in ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")),
        operators.layer_normalization(2),
    ),
    ("", "BatchNormalization"): operators.batch_normalization,
    ("", "InstanceNormalization"): operators.instance_normalization,
    ("", "PRelu"): operators.prelu,
    ("", "Dropout"): operators.dropout,
    ("", "Clip"): operators.clip,
    ("", "Pad"): moves.pad,
    ("", "Expand"): moves.expand,
    ("", "Transpose"): moves.transpose,
    ("", "Concat"): moves.concat,
    ("", "Split"): moves.split,
    ("", "Slice"): moves.slice,
    ("", "Gather"): moves.gather,
}
