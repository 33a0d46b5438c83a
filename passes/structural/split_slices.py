"""Cut a tensor into pieces with one Split in place of a Slice for every piece

Slices with constant bounds that cut the same tensor along one axis, end to end and completely, are the outputs of one
Split.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt import graphs
from graphopt.passbase import Result
from graphopt.passes.structural._informed import Facts, Informed, sites, sizes

_BOUNDS_ARE_INPUTS = 10
_SIZES_ARE_INPUT = 13
_Piece = tuple[int, int, ir.Node]
"""Start, end, and the Slice that cuts it."""


@dataclass(frozen=True)
class SplitSlices(Informed):
    """Join Slices that cut a tensor completely into one Split."""

    def apply(self, model: ir.Model, facts: Facts) -> Result:
        """Join in place; the report counts the Slices that went and the Splits that came."""
        count = {"slices": 0, "splits": 0}
        opset, taken = model.opset_imports.get("", 1), facts.names
        if opset < _BOUNDS_ARE_INPUTS:
            return Result(model, False, count)
        groups: dict[tuple[ir.Graph, ir.Value, int], list[_Piece]] = defaultdict(list)
        for graph, node in sites(facts, "Slice"):
            cut = _cut(node, facts)
            if cut is not None:
                axis, start, end = cut
                assert node.inputs[0] is not None
                groups[graph, node.inputs[0], axis].append((start, end, node))
        for (graph, value, axis), pieces in groups.items():
            source = pieces[0][2].inputs[0]  # an outer piece of it may have become an output of a Split
            assert source is not None
            chosen = _cover(pieces, sizes(facts, value) or (), axis)
            if len(chosen) > 1:
                _split(graph, source, axis, chosen, taken, opset)
                count["slices"] += len(chosen)
                count["splits"] += 1
        return Result(model, bool(count["splits"]), count)


def _cut(node: ir.Node, facts: Facts) -> tuple[int, int, int] | None:
    """Return axis, start and end of a Slice along one axis of known size."""
    shape = sizes(facts, node.inputs[0])
    given = [graphs.array(value) if value is not None else None for value in node.inputs[1:]]
    present = [value is not None for value in node.inputs[1:]]
    if shape is None or any(
        there and (array is None or array.size != 1) for there, array in zip(present, given, strict=True)
    ):
        return None
    numbers = [None if array is None else int(array.ravel()[0]) for array in given] + [None, None]
    start, end, axis, step = numbers[0], numbers[1], numbers[2] or 0, numbers[3]
    axis %= len(shape)
    size = shape[axis]
    if start is None or end is None or step not in (None, 1) or not isinstance(size, int):
        return None
    start, end = (min(max(bound + size if bound < 0 else bound, 0), size) for bound in (start, end))
    return (axis, start, end) if end > start else None


def _cover(pieces: list[_Piece], shape: tuple[object, ...], axis: int) -> list[_Piece]:
    """Return pieces that lie end to end over the whole axis; nothing if there are none."""
    by_start = {start: (start, end, node) for start, end, node in reversed(pieces)}
    chain, position = [], 0
    while position in by_start:
        chain.append(by_start[position])
        position = chain[-1][1]
    return chain if position == shape[axis] else []


def _split(graph: ir.Graph, source: ir.Value, axis: int, pieces: list[_Piece], taken: Counter[str], opset: int) -> None:
    lengths = [end - start for start, end, _ in pieces]
    nodes = [node for _, _, node in pieces]
    inputs, attributes = [source], [ir.AttrInt64("axis", axis)]
    if opset >= _SIZES_ARE_INPUT:
        inputs.append(graphs.initializer(graph, np.asarray(lengths, np.int64), f"{source.name}_split", taken))
    else:
        attributes.append(ir.AttrInt64s("split", lengths))
    made = ir.Node("", "Split", inputs, attributes, num_outputs=len(nodes), name=nodes[0].name)
    order = {node: index for index, node in enumerate(graph)}
    graph.insert_before(min(nodes, key=order.__getitem__), made)
    for node, piece in zip(nodes, made.outputs, strict=True):
        old = node.outputs[0]
        piece.name, piece.type, piece.shape = old.name, old.type, old.shape
        piece.metadata_props.update(old.metadata_props)
        old.replace_all_uses_with(piece, replace_graph_outputs=True)
        bounds = [value for value in node.inputs[1:] if value is not None]
        graph.remove(node, safe=True)
        for value in bounds:
            graphs.discard(value)
