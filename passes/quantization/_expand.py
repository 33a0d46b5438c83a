"""Express operators that have no integer kernel by operators that have one, exactly."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.passes.quantization._graphs import attribute, constant, input_of


def pools_globally(node: ir.Node) -> bool:
    """Tell whether a ReduceMean averages over all spatial axes: it is GlobalAveragePool by another name."""
    data = node.inputs[0]
    axes = constant(input_of(node, 1))
    named = attribute(node, "axes", None) if axes is None else axes.tolist()
    if data is None or data.shape is None or named is None or len(data.shape) < 3:
        return False
    rank = len(data.shape)
    return sorted(axis % rank for axis in named) == list(range(2, rank))


def hard_sigmoid(node: ir.Node) -> tuple[float, float]:
    """Return slope and offset of a HardSigmoid, or of the one inside a HardSwish.

    Between its bounds 0 and 1, where quantization saturates, HardSigmoid is `slope * x + offset`, and
    HardSwish is x times that. The slope only changes the scale of x; the offset is an addition.
    """
    if node.op_type == "HardSwish":
        return 1 / 6, 0.5
    return float(attribute(node, "alpha", 0.2)), float(attribute(node, "beta", 0.5))
