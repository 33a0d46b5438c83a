"""Store equal initializers once

Two initializers are equal if their element type, shape and bytes are. One of a subgraph is also merged into an
equal one of a graph around it. Those that are graph inputs (defaults that callers may override) or graph outputs
(part of the interface) stay. Merged weights are tied: training would change them together, so train first.

Only initializers that share their type and shape with another one are read, one at a time, and only their hashes
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
    """Merge initializers that hold the same tensor."""

    def call(self, model: ir.Model) -> Result:
        """Merge in place; the report counts the initializers removed and their bytes."""
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
            kind for graph in graphs.every(model) for value in graph.initializers.values() if (kind := _kind(value))
        )

    def visit(self, graph: ir.Graph, outer: Mapping[_Key, ir.Value]) -> None:
        """Merge the initializers of a graph and its subgraphs into earlier ones and those of graphs around it."""
        seen = dict(outer)
        for value in list(graph.initializers.values()):
            kind = _kind(value)
            if kind is None or self._kinds[kind] < 2:
                continue
            assert value.const_value is not None
            key = (kind, graphs.digest(value.const_value))
            if key in seen:
                self._merge(value, seen[key])
            else:
                seen[key] = value
        for node in graph:
            for subgraph in graphs.subgraphs(node):
                self.visit(subgraph, seen)

    def _merge(self, value: ir.Value, kept: ir.Value) -> None:
        if graphs.ambiguous(value, kept, self._names):
            reason = f"equals '{kept.name}', but several scopes use that name; run repair first"
            self.skipped.append((value.name or "", reason))
            return
        value.replace_all_uses_with(kept)
        graphs.discard(value)
        self.merged += 1
        self.bytes += value.const_value.nbytes if value.const_value is not None else 0


def _kind(value: ir.Value) -> _Kind | None:
    tensor = value.const_value
    if tensor is None or value.is_graph_input() or value.is_graph_output():
        return None
    return tensor.dtype, tuple(tensor.shape.numpy())
