"""Leave out the initial state of a recurrent network where it is zero

Zero is what LSTM, GRU and RNN start from without one. Exporters compute it from the batch size, with up to half a dozen
operators. A value counts as zero if it is made of zeros by operators that only move or repeat elements.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graphopt import graphs
from graphopt.passbase import Result
from graphopt.passes.structural._informed import Facts, Informed, sites

_STATES = {"GRU": (5,), "LSTM": (5, 6), "RNN": (5,)}
"""Which inputs are initial states."""
_MOVERS = ("Cast", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze")
_DEPTH = 16
_LARGE = 1 << 20


@dataclass(frozen=True)
class DropInitialStates(Informed):
    """Leave out initial states that are zero."""

    def apply(self, model: ir.Model, facts: Facts) -> Result:
        """Leave them out in place; the report counts them."""
        dropped = 0
        for _, node in sites(facts, *_STATES):
            for index in _STATES[node.op_type]:
                state = node.inputs[index] if index < len(node.inputs) else None
                if state is not None and _is_zero(state, _DEPTH):
                    node.replace_input_with(index, None)
                    graphs.discard(state)
                    dropped += 1
        return Result(model, bool(dropped), {"dropped": dropped})


def _is_zero(value: ir.Value, depth: int) -> bool:
    """Tell whether all elements are certainly zero."""
    constant = graphs.constant(value)
    if constant is not None:
        array = graphs.array(value, _LARGE)
        return array is not None and array.dtype.kind == "f" and not array.any()
    node = value.producer()
    if node is None or depth == 0 or not node.inputs or node.inputs[0] is None:
        return False
    if graphs.is_op(node, "ConstantOfShape"):
        fill = graphs.attribute(node, "value")
        return fill is None or not fill.as_tensor().numpy().any()
    if graphs.is_op(node, *_MOVERS):
        return _is_zero(node.inputs[0], depth - 1)
    if graphs.is_op(node, "Concat"):
        return all(part is not None and _is_zero(part, depth - 1) for part in node.inputs)
    return False
