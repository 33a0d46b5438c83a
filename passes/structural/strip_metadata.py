"""Clear documentation strings and exporter metadata of nodes, values, graphs and functions

PyTorch's exporter writes source paths, code lines and stack traces into every node, which can outweigh the
graph itself and tells readers of the file about the machine it was made on. Nothing that runs a model looks at
them. What stays: the model's own metadata and documentation (labels, licences, normalization constants that
applications read), and facts that passes leave for one another (keys that start with "graphopt.").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir

from graphopt import graphs
from graphopt.passbase import FACT_PREFIX, Pass, Result


class _Documented(Protocol):
    doc_string: str | None

    @property
    def metadata_props(self) -> dict[str, str]: ...


@dataclass(frozen=True)
class StripMetadata(Pass):
    """Remove what only readers of the exporter's log would miss."""

    def call(self, model: ir.Model) -> Result:
        """Strip the model in place; the report counts documentation strings and metadata entries."""
        docs = entries = 0
        for graph in graphs.every(model):
            things: list[_Documented] = [graph, *graphs.definitions(graph), *graph]
            for thing in things:
                docs += bool(thing.doc_string)
                thing.doc_string = None
                entries += _forget(thing.metadata_props)
        report = {"doc_strings": docs, "metadata_entries": entries}
        return Result(model, bool(docs or entries), report)


def _forget(metadata: dict[str, str]) -> int:
    dropped = [key for key in metadata if not key.startswith(FACT_PREFIX)]
    for key in dropped:
        del metadata[key]
    return len(dropped)
