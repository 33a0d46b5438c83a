"""The one-to-one map between two models that `graphopt.matching` builds step by step"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from graphopt.matching import tensors

Operator = tuple[str, str, str]

_MOST_HOPS = 8
"""How many nodes are looked through that one node may stand for."""

COMMUTATIVE = frozenset({("", name, "") for name in ("Add", "And", "Equal", "Max", "Min", "Mul", "Or", "Sum", "Xor")})
"""Operators whose inputs may change places."""


class Pairs:
    """Values and nodes of a candidate that are matched with those of a reference so far.

    Attributes:
        values, nodes, graphs: candidate -> reference.
        values_back, nodes_back: reference -> candidate.
        alike: a constant of either model -> the first constant of the reference that equals it, where known.
    """

    def __init__(self) -> None:
        self.values: dict[ir.Value, ir.Value] = {}
        self.values_back: dict[ir.Value, ir.Value] = {}
        self.nodes: dict[ir.Node, ir.Node] = {}
        self.nodes_back: dict[ir.Node, ir.Node] = {}
        self.graphs: dict[ir.Graph, ir.Graph] = {}
        self.alike: dict[ir.Value, ir.Value] = {}

    def match(self, candidate: ir.Value, reference: ir.Value) -> bool:
        """Match two values unless one of them is matched already; tell whether this did anything."""
        if candidate in self.values or reference in self.values_back:
            return False
        self.values[candidate], self.values_back[reference] = reference, candidate
        return True

    def match_nodes(self, candidate: ir.Node, reference: ir.Node) -> bool:
        """Match two nodes unless one of them is matched already; tell whether this did anything."""
        if candidate in self.nodes or reference in self.nodes_back:
            return False
        self.nodes[candidate], self.nodes_back[reference] = reference, candidate
        return True

    def open(self, candidate: ir.Value, reference: ir.Value) -> bool:
        """Tell whether neither of two values is matched."""
        return candidate not in self.values and reference not in self.values_back

    def settle(self, candidate: ir.Node, reference: ir.Node) -> None:
        """Match what two matched nodes compute, and the constants they use in the same place."""
        for mine, other in zip(candidate.outputs, reference.outputs, strict=False):
            if mine.name and other.name:
                self.match(mine, other)
        for mine, other in self.inputs(candidate, reference):
            if tensors.are_constants(mine, other) and self.match(mine, other):
                self.match_producers(mine, other)

    def inputs(self, candidate: ir.Node, reference: ir.Node) -> list[tuple[ir.Value, ir.Value]]:
        """Return the inputs that correspond in two nodes of one operator, without those that one of them leaves out.

        They correspond by position, or crosswise for operators of two exchangeable inputs that look exchanged.
        """
        mine, others = list(candidate.inputs), list(reference.inputs)
        if operator(candidate) in COMMUTATIVE and len(mine) == len(others) == 2 and self._are_crossed(mine, others):
            others.reverse()
        both = zip(mine, others, strict=False)
        return [(one, other) for one, other in both if one is not None and other is not None]

    def _are_crossed(self, mine: list[ir.Value | None], others: list[ir.Value | None]) -> bool:
        targets = [self.values.get(value) if value is not None else None for value in mine]
        if any(target is not None and target is other for target, other in zip(targets, others, strict=True)):
            return False
        if any(target is not None and target in others for target in targets):
            return True
        stored, stored_there = ([tensors.are_constants(value) for value in values] for values in (mine, others))
        return stored != stored_there and stored[::-1] == stored_there

    def match_producers(self, candidate: ir.Value, reference: ir.Value) -> bool:
        """Match the nodes that compute two matched values if they are the same operator."""
        mine, other = candidate.producer(), reference.producer()
        if mine is None or other is None or operator(mine) != operator(other):
            return False
        return candidate.index() == reference.index() and self.match_nodes(mine, other)


def operator(node: ir.Node) -> Operator:
    """Return what a node's operator is called: domain, type, overload."""
    return node.domain, node.op_type, node.overload


def constants(graph: ir.Graph) -> list[ir.Value]:
    """Return the initializers of a graph itself and the outputs of its Constant nodes."""
    made = (value for node in graph if tensors.is_constant_node(node) for value in node.outputs)
    return [v for v in (*graph.initializers.values(), *made) if tensors.constant(v) is not None]


def named(graph: ir.Graph) -> dict[str, ir.Value]:
    """Return the values that a graph itself defines, by name, in topological order."""
    found: dict[str, ir.Value] = {}
    computed = (value for node in graph for value in node.outputs)
    for value in (*graph.inputs, *graph.initializers.values(), *computed):
        if value.name:
            found.setdefault(value.name, value)
    return found


def behind(value: ir.Value) -> Iterator[ir.Value]:
    """Yield what a value is computed from, along first inputs, the nearest first, for a few nodes of its graph."""
    for _ in range(_MOST_HOPS):
        node = value.producer()
        if node is None or not node.inputs or node.inputs[0] is None or node.inputs[0].graph is not node.graph:
            return
        value = node.inputs[0]
        yield value


def agree(candidate: ir.Value, reference: ir.Value) -> bool:
    """Tell whether what is known of two values' types and shapes allows them to be the same."""
    if candidate.type is not None and reference.type is not None and candidate.type != reference.type:
        return False
    if candidate.shape is None or reference.shape is None:
        return True
    return len(candidate.shape) == len(reference.shape) and all(
        a == b or not (isinstance(a, int) and isinstance(b, int))
        for a, b in zip(candidate.shape, reference.shape, strict=True)
    )
