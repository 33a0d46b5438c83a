"""Compute shapes once, and with as few operators as possible

Works on symbolic sizes. Let x be of shape [batch, 3, size].

* A Reshape gets a constant target where all sizes but one are known, or are those of its input at the same axis (0):
  Reshape(x, Concat(Gather(Shape(x), 0), [-1])) = Reshape(x, [0, -1]).
* Vectors and scalars of sizes that are provably equal are computed once, however they are computed.
* A vector that equals the sizes of neighbouring axes of some tensor is the Shape of it (opset 15 for a part).

What is not used any more goes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt import graphs
from graphopt.inference import Dim
from graphopt.passbase import Result
from graphopt.passes.structural._informed import Facts, Informed, dtype, sites, sizes
from graphopt.passes.structural._reshaping import target

_SHAPE_IS_INPUT = 5
_SHAPE_HAS_ENDS = 15
_Window = tuple[ir.Value, int, int, int]
"""A tensor, the first and last axis of a part of its shape, and its rank."""


@dataclass(frozen=True)
class FoldShapes(Informed):
    """Simplify the arithmetic of shapes."""

    def apply(self, model: ir.Model, facts: Facts) -> Result:
        """Simplify in place; the report counts targets that became constants and vectors that are shared."""
        taken, opset = facts.names, model.opset_imports.get("", 1)
        constant = _fix_targets(model, facts, taken) if opset >= _SHAPE_IS_INPUT else 0
        sharer = _Sharer(facts, taken, opset)
        for graph in facts.graphs:
            sharer.visit(graph)
        count = {"targets": constant, "shared": sharer.shared, "shapes": sharer.shapes}
        return Result(model, any(count.values()), count)


def _fix_targets(model: ir.Model, facts: Facts, taken: Counter[str]) -> int:
    count = 0
    for graph, node in sites(facts, "Reshape"):
        if len(node.inputs) < 2 or graphs.constant(node.inputs[1]) is not None:
            continue
        sizes_ = target(sizes(facts, node.inputs[0]), sizes(facts, node.outputs[0]))
        if sizes_ is not None:
            shape = graphs.initializer(graph, np.asarray(sizes_, np.int64), f"{node.outputs[0].name}_shape", taken)
            graphs.become(node, "Reshape", [node.inputs[0], shape])
            count += 1
    return count


class _Sharer:
    """Lets equal vectors of sizes be one, graph by graph."""

    def __init__(self, facts: Facts, taken: Counter[str], opset: int) -> None:
        self.shared = self.shapes = 0
        self._facts, self._taken, self._opset = facts, taken, opset

    def visit(self, graph: ir.Graph) -> None:
        """Go through a graph from the inputs on."""
        first: dict[Hashable, ir.Value] = {}
        windows: dict[tuple[Dim, ...], _Window] = {}
        for value in graph.inputs:
            self._see(value, windows)
        for node in list(graph):
            for value in node.outputs:
                elements = self._elements(value)
                if elements is not None:
                    known = (elements, len(sizes(self._facts, value) or ()), dtype(self._facts, value))
                    earlier = first.setdefault(known, value)
                    if not _is_computed(earlier):
                        earlier = first[known] = value
                    if earlier is not value:
                        if graphs.redirect(value, earlier, self._taken) is None:
                            self.shared += 1
                            graphs.discard(value)
                    elif known[1:] == (1, ir.DataType.INT64) and node.op_type != "Shape":
                        self._rederive(node, elements, windows)
                elif node.graph is graph:
                    self._see(value, windows)

    def _elements(self, value: ir.Value) -> tuple[Dim, ...] | None:
        """Return the elements of a vector of sizes that vary and are known."""
        known = self._facts.get(value)
        elements = known.elements if known else None
        varies = elements is not None and None not in elements and any(isinstance(e, str) for e in elements)
        return elements if varies and value.uses() and not value.is_graph_output() else None

    def _see(self, value: ir.Value, windows: dict[tuple[Dim, ...], _Window]) -> None:
        """Remember of which vectors a tensor's shape consists."""
        shape = sizes(self._facts, value)
        if not isinstance(value.type, ir.TensorType | None) or shape is None:
            return
        for start in range(len(shape)):
            for end in range(start + 1, len(shape) + 1):
                if self._opset >= _SHAPE_HAS_ENDS or end - start == len(shape):
                    windows.setdefault(shape[start:end], (value, start, end, len(shape)))

    def _rederive(self, node: ir.Node, elements: tuple[Dim, ...], windows: dict[tuple[Dim, ...], _Window]) -> None:
        found = windows.get(elements)
        if found is None or not _is_computed(found[0]) or len(node.outputs) != 1:
            return
        tensor, start, end, rank = found
        ends = {} if end - start == rank else {"start": start, "end": end}
        graphs.become(node, "Shape", [tensor], **ends)
        self.shapes += 1


def _is_computed(value: ir.Value) -> bool:
    """Tell whether a value is still there; what lost its last use on the way is not."""
    node = value.producer()
    return node is None or node.graph is not None
