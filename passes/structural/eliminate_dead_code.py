"""Remove nodes, initializers, functions and opset imports that nothing needs

A value is needed if a graph output depends on it; a graph's inputs and outputs are its interface and stay.
Subgraphs and function bodies are treated alike.

Built on onnx_ir's RemoveUnusedNodesPass and RemoveUnusedFunctionsPass. Added: initializers of subgraphs; values
that only a removed node's subgraph used (onnx_ir keeps those uses); imports that a function body needs; and a
`modified` that also tells of removed optional outputs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass, RemoveUnusedNodesPass

from graphopt import graphs, io
from graphopt.passbase import Pass, Result

_DEFAULT_DOMAIN = {"", "ai.onnx"}
_REPORTED = ("nodes", "initializers", "functions", "opset_imports")


@dataclass(frozen=True)
class EliminateDeadCode(Pass):
    """Remove everything that no output depends on."""

    def call(self, model: ir.Model) -> Result:
        """Remove dead code in place; the report counts what is gone, by kind."""
        before = _census(model)
        left = None
        while left != (left := _census(model)):
            _forget_removed_users(model)
            RemoveUnusedNodesPass()(model)
            _remove_initializers(model)
        RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
        _remove_imports(model)
        gone = before - _census(model)
        return Result(model, bool(gone), {kind: gone[kind] for kind in _REPORTED if gone[kind]})


def _census(model: ir.Model) -> Counter[str]:
    count = Counter(functions=len(model.functions), opset_imports=len(model.opset_imports))
    for function in model.functions.values():
        count["opset_imports"] += len(function.opset_imports)
    for graph in graphs.every(model):
        count["initializers"] += len(graph.initializers)
    for node in io.nodes(model):
        count["nodes"] += 1
        count["optional_outputs"] += sum(1 for value in node.outputs if value.name)
        count["node_inputs"] += len(node.inputs)
        count["attributes"] += len(node.attributes)
    return count


def _forget_removed_users(model: ir.Model) -> None:
    """Detach the nodes that use a value of this model without being part of it."""
    present = set(io.nodes(model))
    for graph in graphs.every(model):
        for value in list(graphs.definitions(graph)):
            for user in value.consumers():
                if user not in present:
                    graphs.detach(user)


def _remove_initializers(model: ir.Model) -> None:
    for graph in graphs.every(model):
        for value in list(graph.initializers.values()):
            graphs.discard(value)


def _remove_imports(model: ir.Model) -> None:
    for function in model.functions.values():
        _keep(function.opset_imports, {node.domain for node in function.all_nodes()})
    _keep(model.opset_imports, {node.domain for node in io.nodes(model)})


def _keep(imports: dict[str, int], needed: set[str]) -> None:
    for domain in set(imports) - needed - _DEFAULT_DOMAIN:
        del imports[domain]
