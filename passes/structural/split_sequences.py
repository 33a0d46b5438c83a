"""Cut a tensor with Split in place of a sequence of its parts

SequenceAt(SplitToSequence(x, sizes, axis), i) with a constant i is output i of Split(x, sizes, axis). PyTorch's exporter
writes chunk and split that way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt import graphs
from graphopt.passbase import Result
from graphopt.passes.structural._informed import Facts, Informed, sites, sizes

_SIZES_ARE_INPUT = 13


@dataclass(frozen=True)
class SplitSequences(Informed):
    """Write SplitToSequence and SequenceAt as Split."""

    def apply(self, model: ir.Model, facts: Facts) -> Result:
        """Rewrite in place; the report counts the sequences that went."""
        count = 0
        if model.opset_imports.get("", 1) >= _SIZES_ARE_INPUT:
            taken = facts.names
            for graph, node in sites(facts, "SplitToSequence"):
                lengths = _lengths(node, facts)
                picks = _picks(node, graph, len(lengths)) if lengths else None
                if lengths and picks is not None:
                    axis = node.attributes.get_int("axis", 0)
                    inputs = [node.inputs[0]]
                    inputs.append(
                        graphs.initializer(graph, np.asarray(lengths, np.int64), f"{node.outputs[0].name}_split", taken)
                    )
                    made = ir.Node(
                        "", "Split", inputs, [ir.AttrInt64("axis", axis)], num_outputs=len(lengths), name=node.name
                    )
                    graph.insert_before(node, made)
                    for index, part in enumerate(made.outputs):
                        part.name = graphs.fresh(f"{node.outputs[0].name}_{index}", taken)
                    for pick, index in picks:
                        _replace(pick, made.outputs[index])
                    graphs.discard(node.outputs[0])
                    count += 1
        return Result(model, bool(count), {"sequences": count})


def _lengths(node: ir.Node, facts: Facts) -> list[int] | None:
    """Return the sizes of the parts, if there is a known number of them and they keep the axis."""
    shape = sizes(facts, node.inputs[0])
    if shape is None or graphs.has_parameters(node):
        return None
    size = shape[node.attributes.get_int("axis", 0)]
    if not isinstance(size, int):
        return None
    if len(node.inputs) < 2 or node.inputs[1] is None:
        return [1] * size if node.attributes.get_int("keepdims", 1) else None
    given = graphs.array(node.inputs[1])
    if given is None:
        return None
    if given.ndim:
        return [int(length) for length in given]
    step = int(given)
    return [min(step, size - start) for start in range(0, size, step)] if step > 0 else None


def _picks(node: ir.Node, graph: ir.Graph, count: int) -> list[tuple[ir.Node, int]] | None:
    """Return the nodes that take a part out of the sequence, and which; None if something else looks at it."""
    if node.outputs[0].is_graph_output():
        return None
    found = []
    for user in node.outputs[0].consumers():
        index = graphs.array(user.inputs[1]) if graphs.is_op(user, "SequenceAt") and user.graph is graph else None
        if index is None or not -count <= int(index) < count:
            return None
        found.append((user, int(index) % count))
    return found


def _replace(pick: ir.Node, part: ir.Value) -> None:
    """Let a part of the Split take the place of what was taken out of the sequence."""
    old, index = pick.outputs[0], pick.inputs[1]
    part.type, part.shape = old.type, old.shape
    if old.is_graph_output():
        part.name = old.name
    old.replace_all_uses_with(part, replace_graph_outputs=True)
    assert pick.graph is not None
    pick.graph.remove(pick, safe=True)
    if index is not None:
        graphs.discard(index)
