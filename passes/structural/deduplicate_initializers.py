"""Store equal initializers and Constant nodes once

Two constants are equal if their element type, shape and bytes are; an initializer and the output of a Constant node
may be equal, too. One of a subgraph is also merged into an equal one of a graph around it. Those that are graph
inputs (defaults that callers may override) or graph outputs (part of the interface) stay. Merged weights are tied:
training would change them together, so train first.

Only constants that share their type and shape with another one are read, one at a time, and only their hashes
are kept. onnx_ir's DeduplicateHashedInitializersPass looks at each graph alone, reads everything, and hashes
pointers in place of the characters of strings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from graphopt import graphs, scopes
from graphopt.passbase import Pass, Result

_Kind = tuple[ir.DataType, tuple[int, ...]]
_Key = tuple[_Kind, bytes]


@dataclass(frozen=True)
class DeduplicateInitializers(Pass):
    """Merge constants that hold the same tensor."""

    def call(self, model: ir.Model) -> Result:
        """Merge in place; the report counts the constants removed and their bytes."""
        merger = _Merger(model)
        for graph in scopes.roots(model):
            merger.visit(graph, {})
        return Result(model, bool(merger.merged), {"merged": merger.merged, "bytes": merger.bytes}, merger.skipped)


class _Merger:
    def __init__(self, model: ir.Model) -> None:
        self.merged = self.bytes = 0
        self.skipped: list[tuple[str, str]] = []
        self._names = graphs.names(model)
        self._kinds = Counter(
            kind
            for graph in graphs.every(model)
            for value in graphs.definitions(graph)
            if (kind := _kind(value)) is not None
        )

    def visit(self, graph: ir.Graph, outer: Mapping[_Key, ir.Value]) -> None:
        """Merge the constants of a graph and its subgraphs into earlier ones and those of graphs around it."""
        seen = dict(outer)
        for value in list(graph.initializers.values()):
            self._look_at(value, seen)
        for node in list(graph):
            for value in node.outputs:
                self._look_at(value, seen)
            for subgraph in graphs.subgraphs(node):
                self.visit(subgraph, seen)

    def _look_at(self, value: ir.Value, seen: dict[_Key, ir.Value]) -> None:
        kind = _kind(value)
        if kind is None or self._kinds[kind] < 2:
            return
        tensor = graphs.constant(value)
        assert tensor is not None
        kept = seen.setdefault((kind, graphs.digest(tensor)), value)
        if kept is not value:
            self._merge(value, kept, tensor.nbytes)

    def _merge(self, value: ir.Value, kept: ir.Value, size: int) -> None:
        if graphs.ambiguous(value, kept, self._names):
            reason = f"equals '{kept.name}', but several scopes use that name; run repair first"
            self.skipped.append((value.name or "", reason))
            return
        value.replace_all_uses_with(kept)
        graphs.discard(value)
        self.merged += 1
        self.bytes += size


def _kind(value: ir.Value) -> _Kind | None:
    tensor = None if value.is_graph_output() else graphs.constant(value)
    return None if tensor is None else (tensor.dtype, tuple(tensor.shape.numpy()))
