"""Turn initializers that are listed as graph inputs into constants

Such an initializer is a default that callers may override (ONNX specification, "Graphs"), so nothing that depends on it
can be computed in advance. Exporters of IR version 3 had to list every weight among the inputs, and some went on.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graphopt.passbase import Before, Case, Pass, Result, param

_IR_VERSION = 4
"""First IR version in which an initializer need not be a graph input."""


@dataclass(frozen=True)
class FreezeDefaults(Pass):
    """Take initializers out of the list of inputs."""

    habit: bool = param(
        False, "only where every initializer is listed, which is the habit of an exporter and no offer to callers"
    )

    def call(self, model: ir.Model) -> Result:
        """Freeze in place; the report counts the inputs taken away."""
        graph = model.graph
        listed = [value for value in graph.initializers.values() if value.is_graph_input()]
        if self.habit and len(listed) < len(graph.initializers):
            reason = "callers may override it; other initializers are constants, so this looks meant"
            return Result(model, False, {"frozen": 0}, [(value.name or "", reason) for value in listed])
        for value in listed:
            graph.inputs.remove(value)
        if listed:
            model.ir_version = max(model.ir_version, _IR_VERSION)
        result = Result(model, bool(listed), {"frozen": len(listed)})
        if listed and not self.habit:
            result.cases = _same
        return result


def _same(before: Before) -> list[Case]:
    """Return what must hold of the new model: what held without any override."""
    return [Case(feeds, before.run(feeds)) for feeds in before.feeds]
