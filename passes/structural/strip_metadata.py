"""Clear documentation strings and exporter metadata of nodes, values, graphs and functions

PyTorch's exporter writes source paths, code lines and stack traces into every node, which can outweigh the
graph itself and tells readers of the file about the machine it was made on. Nothing that runs a model looks at
them. What stays: the model's own metadata and documentation (labels, licences, normalization constants that
applications read), and facts that passes leave for one another (keys that start with "graphopt.").

With `--names` inner tensors get the shortest names there are and nodes none, which ONNX allows. Inputs and outputs of
the model keep theirs, and so do those of bodies that operators outside ONNX may match by name. Reports on such a model
call nodes by the tensors that they compute, so do this last.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir

from graphopt import graphs, io
from graphopt.passbase import FACT_PREFIX, Pass, Result, param


class _Documented(Protocol):
    doc_string: str | None

    @property
    def metadata_props(self) -> dict[str, str]: ...


@dataclass(frozen=True)
class StripMetadata(Pass):
    """Remove what only readers of the exporter's log would miss."""

    names: bool = param(False, "Whether to shorten the names of inner tensors, and drop those of nodes.")

    def call(self, model: ir.Model) -> Result:
        """Strip the model in place; the report counts documentation strings, metadata entries and names."""
        docs = entries = 0
        for graph in graphs.every(model):
            things: list[_Documented] = [graph, *graphs.definitions(graph), *graph]
            for thing in things:
                docs += bool(thing.doc_string)
                thing.doc_string = None
                entries += _forget(thing.metadata_props)
        report = {"doc_strings": docs, "metadata_entries": entries}
        if self.names:
            report["names"] = _shorten(model)
        return Result(model, any(report.values()), report)


def _shorten(model: ir.Model) -> int:
    """Give inner values the names a, b, ..., different in all scopes, and nodes none; return how many changed."""
    fixed = _matched_by_name(model)
    taken = {value.name for value in fixed}
    short = (name for name in _short_names() if name not in taken)
    values = [value for graph in graphs.every(model) for value in graphs.definitions(graph) if value not in fixed]
    new = {value: name for value, name in zip(values, short, strict=False) if value.name != name}
    graphs.rename(model, new)
    named = [node for node in io.nodes(model) if node.name]
    for node in named:
        node.name = ""
    return len(new) + len(named)


def _matched_by_name(model: ir.Model) -> set[ir.Value]:
    """Return the inputs and outputs of the model, and of bodies of operators such as ONNX Runtime's BeamSearch."""
    bodies = [body for node in io.nodes(model) if node.domain != "" for body in graphs.subgraphs(node)]
    return {value for graph in (model.graph, *bodies) for value in (*graph.inputs, *graph.outputs)}


def _short_names() -> Iterator[str]:
    for length in itertools.count(1):
        yield from map("".join, itertools.product(string.ascii_letters, repeat=length))


def _forget(metadata: dict[str, str]) -> int:
    dropped = [key for key in metadata if not key.startswith(FACT_PREFIX)]
    for key in dropped:
        del metadata[key]
    return len(dropped)
