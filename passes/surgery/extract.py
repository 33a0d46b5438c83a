"""Keep only what lies between some tensors and others

`extract MODEL --inputs a,b --outputs c` is the part of the model that computes c from a and b. Either may be any
tensor of the main graph: a graph input, the output of a node, or an initializer, which then is a constant no more.
By default the outputs are the model's own, and the inputs those of its inputs that the outputs need. Weights and
functions that nothing needs any more are dropped. A new input or output gets its type and shape from inference, with
the names of dynamic axes.

What the part computes is held against what the whole computes at the same tensors, on the inputs of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt import cutting
from graphopt.errors import UserError
from graphopt.passbase import Before, Case, Cases, Pass, PreconditionError, Result, param
from graphopt.passes.surgery import _names


@dataclass(frozen=True)
class Extract(Pass):
    """Cut a model between tensors."""

    inputs: tuple[str, ...] = param((), "Tensors that become the inputs; by default the graph inputs that are needed.")
    outputs: tuple[str, ...] = param((), "Tensors that become the outputs; by default the graph outputs.")

    def call(self, model: ir.Model) -> Result:
        """Extract in place; the report names the inputs and outputs."""
        if not self.inputs and not self.outputs:
            raise PreconditionError("nothing to cut at; name tensors with inputs or outputs")
        graph = model.graph
        before = _outline(graph)
        tensors = cutting.tensors(graph)
        _names.once(self.pass_name(), self.inputs)
        _names.once(self.pass_name(), self.outputs)
        outputs = [_names.find(self.pass_name(), "tensor", name, tensors) for name in self.outputs]
        outputs = outputs or list(graph.outputs)
        inputs = [_names.find(self.pass_name(), "tensor", name, tensors) for name in self.inputs]
        inputs = inputs or _needed(graph, cutting.ancestors(outputs)[1])
        self._check(graph, inputs, outputs)
        cutting.extract(model, inputs, outputs)
        ports = [[value.name or "" for value in port] for port in (model.graph.inputs, model.graph.outputs)]
        modified = _outline(model.graph) != before
        report = {"inputs": ports[0], "outputs": ports[1]}
        skipped = cutting.shapeless((*model.graph.inputs, *model.graph.outputs))
        return Result(model, modified, report, skipped, cases=_cases(*ports) if modified else None)

    def _check(self, graph: ir.Graph, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> None:
        _, ends = cutting.ancestors(outputs, set(inputs))
        missing = [value.name or "" for value in _needed(graph, ends) if value not in inputs]
        if missing:
            raise UserError(
                f"{self.pass_name()}: the outputs also depend on {', '.join(missing)}; "
                "add them to the inputs, or tensors on the way from them"
            )
        for value in inputs:
            if value not in ends and not (value.is_graph_input() and value.is_initializer()):
                raise UserError(
                    f"{self.pass_name()}: no output depends on '{value.name}', or only through other inputs; leave it out"
                )


def _needed(graph: ir.Graph, ends: set[ir.Value]) -> list[ir.Value]:
    """Return the graph inputs among these values that have no default."""
    return [value for value in graph.inputs if value in ends and not value.is_initializer()]


def _outline(graph: ir.Graph) -> tuple[list[str | None], list[str | None], int, int]:
    return [v.name for v in graph.inputs], [v.name for v in graph.outputs], len(graph), len(graph.initializers)


def _cases(inputs: Sequence[str], outputs: Sequence[str]) -> Cases:
    def cases(before: Before) -> list[Case]:
        tensors, ports = cutting.tensors(before.model.graph), {*inputs, *outputs}
        constants = [v for v in before.model.graph.initializers.values() if not v.is_graph_input()]
        fixed = {v.name: v.const_value.numpy() for v in constants if v.const_value is not None and v.name in ports}
        inner = [name for name in sorted(ports) if tensors[name].producer() is not None]
        found = []
        for feeds in before.feeds:
            values = {**feeds, **fixed, **before.run(feeds, inner)}
            found.append(Case({n: values[n] for n in inputs if n in values}, _names.of(values, outputs)))
        return found

    return cases
