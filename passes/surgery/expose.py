"""Make inner tensors outputs

For debugging, for a second head, or to distil from. A tensor of the main graph keeps its name. One in the body of an
If, Loop or Scan is led out (see `graphopt.tapping`): stacked over the iterations, or empty if its branch is not
taken, under a name that the report tells. Types and shapes of the new outputs come from inference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt import cutting, graphs, runtime, tapping
from graphopt.passbase import Before, Case, Cases, Pass, PreconditionError, Result, param
from graphopt.passes.surgery import _names


@dataclass(frozen=True)
class Expose(Pass):
    """Add inner tensors to the outputs."""

    tensors: tuple[str, ...] = param((), "Names of the tensors that become outputs.")

    def call(self, model: ir.Model) -> Result:
        """Expose in place; the report maps each tensor to its output."""
        if not self.tensors:
            raise PreconditionError("no tensor is named; name some with tensors")
        _names.once(self.pass_name(), self.tensors)
        known = _visible(model.graph)
        found = [_names.find(self.pass_name(), "tensor", name, known) for name in self.tensors]
        several = next((name for name, value in zip(self.tensors, found, strict=True) if value is None), None)
        if several is not None:
            raise PreconditionError(f"several bodies define '{several}'; rename one of them")
        outputs = self._lead_out(model, [value for value in found if value is not None])
        skipped, exposed = [], {}
        for name, value in zip(self.tensors, outputs, strict=True):
            if value.is_graph_output():
                skipped.append((name, "is an output already"))
                continue
            cutting.declare(model, [value])
            model.graph.outputs.append(value)
            skipped += cutting.shapeless([value])
            exposed[name] = value.name or ""
        report = {"outputs": exposed}
        return Result(model, bool(exposed), report, skipped, cases=_cases(exposed) if exposed else None)

    def _lead_out(self, model: ir.Model, values: Sequence[ir.Value]) -> list[ir.Value]:
        """Return the values of the main graph at which these can be read."""
        inner = [value for value in values if value.graph is not model.graph]
        if not inner:
            return list(values)
        count = len(model.graph.outputs)
        tapped = tapping.tap(model, inner)
        lost = next((value.name for value, name in zip(inner, tapped.names, strict=True) if name is None), None)
        if lost is not None:
            raise PreconditionError(f"'{lost}' lies in a body of no If, Loop or Scan, and cannot be led out")
        model.graph = tapped.model.graph
        while len(model.graph.outputs) > count:  # they come back with a type, in the order asked for
            model.graph.outputs.pop()
        outer = cutting.tensors(model.graph)
        led = dict(zip(inner, tapped.names, strict=True))
        return [outer[led.get(value) or value.name or ""] for value in values]


def _visible(graph: ir.Graph) -> dict[str, ir.Value | None]:
    """Return the values of a graph and of the bodies in it by name; None for a name that several bodies use."""
    known: dict[str, ir.Value | None] = {}
    for body in graph.subgraphs():
        for value in graphs.definitions(body):
            known[value.name or ""] = None if value.name in known else value
    return known | cutting.tensors(graph)


def _cases(exposed: Mapping[str, str]) -> Cases:
    """Compare with the model before, in which the same tensors are made visible, as that changes what a runtime fuses."""

    def cases(before: Before) -> list[Case]:
        known = _visible(before.model.graph)
        values = {name: value for name in exposed if (value := known[name]) is not None}
        fixed = {name: value.const_value for name, value in values.items() if value.is_initializer()}
        read = {name: value for name, value in values.items() if name not in fixed}
        tapped = tapping.tap(before.model, list(read.values()))
        session = runtime.open_session(tapped.model, before.target)
        names = {seen or "": exposed[name] for name, seen in zip(read, tapped.names, strict=True)}
        found = []
        for feeds in before.feeds:
            results = {_names.renamed(key, names): array for key, array in session.run(feeds).items()}
            results |= {name: tensor.numpy() for name, tensor in fixed.items() if tensor is not None}
            found.append(Case(feeds, results))
        return found

    return cases
