"""RNN, GRU and LSTM: since opset 14 the batch may come first (layout=1)."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.passes.precision._opset.site import Site
from graphopt.passes.precision._opset.table import down

_STATES = {"RNN": (5,), "GRU": (5,), "LSTM": (5, 6)}
"""Inputs that are states: [directions, batch, hidden], or [batch, directions, hidden]."""


@down(14, *_STATES)
def _time_first(site: Site) -> list[ir.Value] | None:
    if not site.pop("layout", 0):
        return None
    inputs = list(site.node.inputs)
    for index in (0, *_STATES[site.node.op_type]):
        value = site.input(index)
        if value is not None:
            inputs[index] = site.emit("Transpose", value, perm=[1, 0, 2])
    y, *states = site.emit_all(site.node.op_type, tuple(inputs), site.attributes(), len(site.node.outputs))
    turned = [site.emit("Transpose", y, perm=[2, 0, 1, 3])]
    return turned + [site.emit("Transpose", state, perm=[1, 0, 2]) for state in states]
