"""Remove outputs, and what only they needed

Nodes, weights and functions that no other output depends on go with them. Inputs are part of how the model is called,
so they stay, unless `--prune-inputs` is given: then those that no output depends on any more go, too.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass

from graphopt import graphs
from graphopt.errors import UserError
from graphopt.passbase import Before, Case, Cases, Pass, PreconditionError, Result, param
from graphopt.passes.surgery import _names


@dataclass(frozen=True)
class RemoveOutput(Pass):
    """Remove outputs of a model."""

    outputs: tuple[str, ...] = param((), "Names of the outputs to remove.")
    prune_inputs: bool = param(False, "Whether to remove inputs, too, that nothing uses any more.")

    def call(self, model: ir.Model) -> Result:
        """Remove in place; the report names the outputs and inputs that are gone."""
        if not self.outputs:
            raise PreconditionError("no output is named; name some with outputs")
        _names.once(self.pass_name(), self.outputs)
        graph = model.graph
        known = {value.name or "": value for value in graph.outputs}
        removed = [_names.find(self.pass_name(), "output", name, known) for name in self.outputs]
        if len(removed) == len(graph.outputs):
            raise UserError(f"{self.pass_name()}: these are all outputs of the model; leave at least one")
        used = {value for value in graph.inputs if graphs.is_needed(value)}
        for value in removed:
            graph.outputs.remove(value)
        for value in removed:
            graphs.discard(value)
        RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
        unused = [
            value for value in graph.inputs if self.prune_inputs and value in used and not graphs.is_needed(value)
        ]
        for value in unused:
            graph.inputs.remove(value)
            graphs.discard(value)
        gone = [value.name or "" for value in unused]
        left = [value.name or "" for value in graph.outputs]
        return Result(model, True, {"outputs": list(self.outputs), "inputs": gone}, cases=_cases(gone, left))


def _cases(gone: Collection[str], left: Collection[str]) -> Cases:
    def cases(before: Before) -> list[Case]:
        return [
            Case({n: array for n, array in feeds.items() if n not in gone}, _names.of(before.run(feeds), left))
            for feeds in before.feeds
        ]

    return cases
