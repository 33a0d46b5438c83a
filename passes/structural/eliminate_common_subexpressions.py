"""Compute once what several nodes compute alike

Two nodes are alike if operator, attributes and inputs are the same. The later one goes, and its users read the
earlier one's outputs. A node of a subgraph may also be replaced by an earlier node of a graph around it, which
takes it out of a loop. Graph outputs keep their names; one that duplicates another becomes an Identity of it.

Never merged: operators that draw random numbers, functions that contain them, nodes with subgraphs, and
operators of unknown domains, which may have effects. onnx_ir's CommonSubexpressionEliminationPass looks at the
main graph alone, merges Bernoulli, training Dropout and functions that are random, takes attributes that refer to
different parameters of a function for equal, and can name as input an optional output that is absent.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from graphopt import graphs, scopes
from graphopt.passbase import Pass, Result

_KNOWN_DOMAINS = frozenset({"", "ai.onnx.ml"})
_PLAIN = frozenset(
    {
        ir.AttributeType.FLOAT,
        ir.AttributeType.FLOATS,
        ir.AttributeType.INT,
        ir.AttributeType.INTS,
        ir.AttributeType.STRING,
        ir.AttributeType.STRINGS,
    }
)

_SMALL = 64
"""Constants of at most this many elements are compared by content; `deduplicate-initializers` is for the others."""

_Key = tuple[Hashable, ...]


@dataclass(frozen=True)
class EliminateCommonSubexpressions(Pass):
    """Merge nodes that compute the same."""

    def call(self, model: ir.Model) -> Result:
        """Merge in place; the report counts the nodes removed."""
        merger = _Merger(model)
        for graph in scopes.roots(model):
            merger.visit(graph, {})
        return Result(model, bool(merger.merged), {"merged": merger.merged}, merger.skipped)


class _Merger:
    def __init__(self, model: ir.Model) -> None:
        self.merged = 0
        self.skipped: list[tuple[str, str]] = []
        self._functions = model.functions
        self._names = graphs.names(model)

    def visit(self, graph: ir.Graph, outer: Mapping[_Key, ir.Node]) -> None:
        """Merge the nodes of a graph and its subgraphs into earlier ones and those of graphs around it."""
        seen = dict(outer)
        for node in list(graph):
            for subgraph in graphs.subgraphs(node):
                self.visit(subgraph, seen)
            key = self._key(node)
            if key is None:
                continue
            earlier = seen.setdefault(key, node)
            if earlier is not node:
                self._merge(node, earlier)

    def _merge(self, node: ir.Node, earlier: ir.Node) -> None:
        pairs = [(v, kept) for v, kept in zip(node.outputs, earlier.outputs, strict=True) if graphs.is_needed(v)]
        if any(not kept.name for _, kept in pairs):
            return  # the earlier node leaves out an optional output that the later one has
        clash = next((kept for v, kept in pairs if graphs.ambiguous(v, kept, self._names)), None)
        if clash is not None:
            reason = f"equals {graphs.label(earlier)}, but several scopes use the name '{clash.name}'; run repair first"
            self.skipped.append((graphs.label(node), reason))
            return
        for value, kept in pairs:
            if graphs.redirect(value, kept, self._names) is None:
                continue
            if graphs.is_op(node, "Identity"):
                return
            graphs.compute_by_identity(value, kept)
        assert node.graph is not None
        node.graph.remove(node, safe=True)
        self.merged += 1

    def _key(self, node: ir.Node) -> _Key | None:
        """Return what nodes that compute the same have in common, or None for one that must not be merged."""
        if not self._is_pure(node) or any(graphs.subgraphs(node)):
            return None
        attributes = [(name, _attribute_key(node.attributes[name])) for name in sorted(node.attributes)]
        if any(key is None for _, key in attributes):
            return None
        inputs = list(node.inputs)
        while inputs and inputs[-1] is None:
            inputs.pop()
        return node.op_identifier(), len(node.outputs), tuple(map(_input_key, inputs)), tuple(attributes)

    def _is_pure(self, node: ir.Node) -> bool:
        function = self._functions.get(node.op_identifier())
        if function is not None:
            return all(map(self._is_pure, function.all_nodes()))
        return node.domain in _KNOWN_DOMAINS and node.op_type not in graphs.RANDOM


def _input_key(value: ir.Value | None) -> Hashable:
    """Return the value itself, or for a small constant its contents, which several initializers may hold."""
    tensor = graphs.constant(value)
    if tensor is None or tensor.size > _SMALL or tensor.dtype == ir.DataType.STRING:
        return value
    return tensor.dtype, tuple(tensor.shape.numpy()), graphs.digest(tensor)


def _attribute_key(attribute: ir.Attr) -> Hashable:
    if attribute.is_ref():
        return "parameter", attribute.ref_attr_name
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return tensor.dtype, tuple(tensor.shape.numpy()), graphs.digest(tensor)
    if attribute.type in _PLAIN:
        return attribute.type, repr(attribute.value)  # tells 0.0 from -0.0
    return None
