"""Change the order of a model's inputs and outputs

`reorder-io MODEL --inputs b,a --outputs z`: those named come first, in this order, and the others follow in theirs.
Names, types and numbers stay; callers that feed or read by position see the new order.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.passbase import Before, Case, Pass, PreconditionError, Result, param
from graphopt.passes.surgery import _names


@dataclass(frozen=True)
class ReorderIo(Pass):
    """Put inputs and outputs in another order."""

    inputs: tuple[str, ...] = param((), "Inputs in the wanted order; the others follow.")
    outputs: tuple[str, ...] = param((), "Outputs in the wanted order; the others follow.")

    def call(self, model: ir.Model) -> Result:
        """Reorder in place; the report tells the new order."""
        if not self.inputs and not self.outputs:
            raise PreconditionError("no order is given; name inputs or outputs")
        modified = self._reorder("input", self.inputs, model.graph.inputs)
        modified |= self._reorder("output", self.outputs, model.graph.outputs)
        report = {
            "inputs": [value.name for value in model.graph.inputs],
            "outputs": [value.name for value in model.graph.outputs],
        }
        return Result(model, modified, report, cases=_same if modified else None)

    def _reorder(self, kind: str, names: tuple[str, ...], values: MutableSequence[ir.Value]) -> bool:
        """Put the values of these names first; tell whether that changed anything."""
        _names.once(self.pass_name(), names)
        known = {value.name or "": value for value in values}
        first = [_names.find(self.pass_name(), kind, name, known) for name in names]
        order = [*first, *(value for value in values if value not in first)]
        if order == list(values):
            return False
        values[:] = order
        return True


def _same(before: Before) -> list[Case]:
    return [Case(feeds, before.run(feeds)) for feeds in before.feeds]
