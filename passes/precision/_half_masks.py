"""Make the fill values of attention masks fit a narrow range.

Masks add -1e9 or the lowest float32 to what must not be attended to. Beyond the range of float16 these become
-infinity, and a row that is masked as a whole NaN. The exponential that follows is 0 for anything far below the rest,
so a smaller number does the same. Only constants that reach nothing but a Softmax are touched, and only if the
network then computes what it computed before.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from graphopt import graphs

_CARRY = frozenset({
    "Add", "Cast", "Concat", "Expand", "Gather", "Identity", "Max", "Min", "Mul", "Reshape", "Slice", "Squeeze", "Sub",
    "Tile", "Transpose", "Trilu", "Unsqueeze", "Where",
})  # fmt: skip
_ENDS = {
    ("", "Softmax"): 0,
    ("", "Attention"): 3,
    ("com.microsoft", "Attention"): 5,
    ("com.microsoft", "MultiHeadAttention"): 5,
}
"""Where a mask may end: operators and the index of their input."""


def saturate(model: ir.Model, floats: frozenset[ir.Value], limit: float, fill: float) -> int:
    """Put numbers of magnitude `fill` in the place of larger ones than `limit` in masks; return in how many constants.

    Args:
        model: changed in place; without functions.
        floats: its float32 values.
        limit, fill: magnitudes.
    """
    count = 0
    for graph in graphs.every(model):
        for value in list(graphs.definitions(graph)):
            tensor = _fill(value) if value in floats else None
            if tensor is None:
                continue
            array = tensor.numpy()
            beyond = np.isfinite(array) & (np.abs(array) > limit)
            if np.any(beyond) and _only_masks(value):
                _replace(value, np.where(beyond, np.sign(array) * np.float32(fill), array).astype(np.float32))
                count += 1
    return count


def _fill(value: ir.Value) -> ir.TensorProtocol | None:
    """Return the tensor of a constant, or of what fills a ConstantOfShape."""
    node = value.producer()
    if node is not None and graphs.is_op(node, "ConstantOfShape"):
        attribute = graphs.attribute(node, "value")
        return None if attribute is None else attribute.as_tensor()
    return graphs.constant(value)


def _only_masks(value: ir.Value) -> bool:
    """Tell whether everything that a value reaches ends in a mask."""
    waiting, seen, ended = [value], {value}, False
    while waiting:
        current = waiting.pop()
        if current.is_graph_output():
            return False
        for node, index in current.uses():
            if _ENDS.get((node.domain, node.op_type)) == index:
                ended = True
            elif node.domain == "" and node.op_type in _CARRY:
                new = [out for out in node.outputs if out not in seen]
                seen.update(new)
                waiting += new
            else:
                return False
    return ended


def _replace(value: ir.Value, array: np.ndarray) -> None:
    node = value.producer()
    tensor = ir.tensor(array, name=value.name)
    if node is None:
        value.const_value = tensor
    else:
        node.attributes.clear()
        node.attributes.add(ir.AttrTensor("value", tensor))


def bounds(node: ir.Node | None) -> Iterator[int]:
    """Yield the inputs of a node that are bounds, where infinity does what a number beyond the range would."""
    if graphs.is_op(node, "Clip"):
        yield from (1, 2)
    elif graphs.is_op(node, "Max", "Min"):
        assert node is not None
        yield from range(len(node.inputs))
