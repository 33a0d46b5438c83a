"""Merge a Slice of a Slice into one

Slice cuts every axis on its own, so Slice(Slice(x, axes A), axes B) = Slice(x, axes A and B) where A and B have no
axis in common and all bounds are constants. PyTorch writes one Slice for every axis that is indexed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt import graphs
from graphopt.passbase import Pass, Result

_BOUNDS_ARE_INPUTS = 10
"""Opset since which starts, ends, axes and steps are inputs."""


@dataclass(frozen=True)
class MergeSlices(Pass):
    """Merge a Slice of a Slice into one."""

    def call(self, model: ir.Model) -> Result:
        """Merge in place, from the inputs on, so that longer chains become one."""
        merged, skipped = 0, []
        bodies = {function.graph for function in model.functions.values()}
        taken = graphs.names(model)
        for graph in graphs.every(model):
            for node in list(graph):
                first = node.inputs[0].producer() if graphs.is_op(node, "Slice") and node.inputs[0] else None
                if first is None or not graphs.is_op(first, "Slice") or first.graph is not graph:
                    continue
                reason = _obstacle(first, node) or _merge(first, node, taken, in_function=graph in bodies)
                if reason:
                    skipped.append((graphs.label(node), reason))
                else:
                    merged += 1
        return Result(model, bool(merged), {"merged": merged}, skipped)


def _obstacle(first: ir.Node, second: ir.Node) -> str | None:
    if any(node.version is not None and node.version < _BOUNDS_ARE_INPUTS for node in (first, second)) or (
        len(first.inputs) < 3 or len(second.inputs) < 3
    ):
        return f"its bounds are attributes, before opset {_BOUNDS_ARE_INPUTS}"
    value = first.outputs[0]
    if value.is_graph_output() or len(value.uses()) > 1:
        return "what it cuts is used elsewhere too"
    return None


def _merge(first: ir.Node, second: ir.Node, taken: Counter[str], *, in_function: bool) -> str | None:
    """Let the second node cut what the first one cuts, too; say why if that cannot be.

    The new bounds are initializers, but Constant nodes in a function's body, which has no initializers.
    """
    source = first.inputs[0]
    assert source is not None
    rank = None if source.shape is None else len(source.shape)
    one, two = _bounds(first, rank), _bounds(second, rank)
    if one is None or two is None:
        return "its bounds are not constants, or the axes cannot be told"
    if set(one[2].tolist()) & set(two[2].tolist()):
        return "both cut the same axis"
    graph = second.graph
    assert isinstance(graph, ir.Graph)
    second.replace_input_with(0, source)
    second.resize_inputs(5)
    for index, parts in enumerate(zip(one, two, strict=True), 1):
        name = graphs.fresh(f"{second.outputs[0].name}_{('starts', 'ends', 'axes', 'steps')[index - 1]}", taken)
        tensor = ir.tensor(np.concatenate(parts), name=name)
        if in_function:
            constant = ir.node("Constant", [], {"value": tensor})
            constant.outputs[0].name = name
            graph.insert_before(second, constant)
            bound = constant.outputs[0]
        else:
            bound = ir.Value(
                name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
            )
            graph.register_initializer(bound)
        second.replace_input_with(index, bound)
    graph.remove(first, safe=True)
    return None


def _bounds(node: ir.Node, rank: int | None) -> list[np.ndarray] | None:
    """Return starts, ends, axes and steps as int64 [axes] each, axes counted from the front; None if unknown."""
    given = [graphs.array(value) if value is not None else None for value in node.inputs[1:]]
    given += [None] * (4 - len(given))
    starts, ends, axes, steps = given
    if starts is None or ends is None:
        return None
    for index, array in ((3, axes), (4, steps)):
        if array is None and len(node.inputs) > index and node.inputs[index] is not None:
            return None  # it is there, and varies
    axes = np.arange(len(starts)) if axes is None else axes
    if np.any(axes < 0):
        if rank is None:
            return None
        axes = np.where(axes < 0, axes + rank, axes)
    steps = np.ones(len(starts)) if steps is None else steps
    return [np.asarray(array, np.int64) for array in (starts, ends, axes, steps)]
