"""Passes that need to know types and shapes, and can share what is known"""

from __future__ import annotations

import abc
from collections.abc import Iterator

import onnx_ir as ir

from graphopt import graphs, inference
from graphopt.passbase import Pass, Result


class Facts(dict[ir.Value, inference.Known]):
    """What inference proved about the values of a model.

    It stays true while exact passes rewrite the model, since no value changes; what a pass adds is absent, unless it
    writes it in.

    Attributes:
        graphs: the main graph and its subgraphs.
        names: how many values bear each name; passes that name values keep it up to date.
    """

    def __init__(self, model: ir.Model) -> None:
        super().__init__(inference.infer(model))
        self.graphs = [model.graph, *model.graph.subgraphs()]
        self.names = graphs.names(model)

    def are_all(self) -> bool:
        """Tell whether everything is known about every value, so that gathering them again would bring nothing new."""
        values = (value for graph in self.graphs for node in graph for value in node.outputs)
        return all(value in self and self[value].is_complete() for value in values)


class Informed(Pass):
    """An exact pass that works from facts, which `simplify` gathers once for many passes."""

    def call(self, model: ir.Model) -> Result:
        """Gather the facts, and apply the pass."""
        return self.apply(model, Facts(model))

    @abc.abstractmethod
    def apply(self, model: ir.Model, facts: Facts) -> Result:
        """Transform `model` in place and say truthfully whether anything changed."""


def sites(facts: Facts, *op_types: str) -> Iterator[tuple[ir.Graph, ir.Node]]:
    """Yield the standard nodes of these operators, with their graph, in order; functions, about which nothing is known, are left out.

    A pass may remove nodes while it goes on; those are not yielded.
    """
    for graph in facts.graphs:
        for node in list(graph):
            if node.op_type in op_types and node.domain == "" and node.graph is graph:
                yield graph, node


def sizes(facts: Facts, value: ir.Value | None) -> tuple[inference.Dim, ...] | None:
    """Return the sizes of a value as far as they are known; None without rank."""
    known = facts.get(value) if value is not None else None
    if known is None:
        tensor = graphs.constant(value)  # a pass may have made it
        return None if tensor is None else tuple(tensor.shape.numpy())
    return known.dims()


def dtype(facts: Facts, value: ir.Value | None) -> ir.DataType | None:
    """Return the element type of a tensor."""
    if value is None:
        return None
    known = facts.get(value)
    type_ = (known.type if known else None) or value.type
    return type_.dtype if isinstance(type_, ir.TensorType) else None
