"""What must hold of a model after any pass: a table of checks on the graph alone."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from graphopt import io, runtime, scopes

STANDARD_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Domains that a pass may introduce: standard ONNX, and ONNX Runtime's documented contrib operators."""


def violation(before: ir.Model, after: ir.Model, *, interface: bool = True) -> str | None:
    """Return the first invariant that `after` breaks, in words, or None.

    Args:
        before, after: the models.
        interface: whether inputs and outputs must be the same.
    """
    for check in (*(INTERFACE if interface else ()), *CHECKS):
        reason = check(before, after)
        if reason:
            return reason
    return None


def _same_inputs(before: ir.Model, after: ir.Model) -> str | None:
    old, new = runtime.model_inputs(before), runtime.model_inputs(after)
    return None if _names(old) == _names(new) else f"inputs changed from {_names(old)} to {_names(new)}"


def _same_outputs(before: ir.Model, after: ir.Model) -> str | None:
    old, new = runtime.ports(before.graph.outputs), runtime.ports(after.graph.outputs)
    return None if _names(old) == _names(new) else f"outputs changed from {_names(old)} to {_names(new)}"


def _defined_before_use(_: ir.Model, after: ir.Model) -> str | None:
    return next((reason for graph in scopes.roots(after) if (reason := scopes.undefined(graph))), None)


def _defined_once(_: ir.Model, after: ir.Model) -> str | None:
    return next((reason for graph in scopes.roots(after) if (reason := _repeated(graph, frozenset()))), None)


def _domains_imported(_: ir.Model, after: ir.Model) -> str | None:
    functions = {function.domain for function in after.functions.values()}
    for node in after.graph.all_nodes():
        if node.domain not in after.opset_imports and node.domain not in functions:
            return f"node '{node.name}' is of domain '{node.domain}', which no opset import covers"
    return None


def _no_private_operators(before: ir.Model, after: ir.Model) -> str | None:
    known = STANDARD_DOMAINS | {node.domain for node in io.nodes(before)}
    foreign = (node for node in io.nodes(after) if node.op_identifier() not in after.functions)
    private = {node.domain for node in foreign} - known
    return f"operators of private domain '{min(private)}' appeared" if private else None


INTERFACE: tuple[Callable[[ir.Model, ir.Model], str | None], ...] = (_same_inputs, _same_outputs)
CHECKS: tuple[Callable[[ir.Model, ir.Model], str | None], ...] = (
    _defined_before_use,
    _defined_once,
    _domains_imported,
    _no_private_operators,
)


def _names(ports: tuple[runtime.Port, ...]) -> list[str]:
    return [f"{port.name}:{port.dtype.name if port.dtype else 'any'}" for port in ports]


def _repeated(graph: ir.Graph, outer: frozenset[str | None]) -> str | None:
    """Return which name two values share, of those that can be seen from one place."""
    names = set(outer) | {v.name for v in (*graph.inputs, *graph.initializers.values())}
    for node in graph:
        for attribute in node.attributes.values():
            for subgraph in scopes.subgraphs(attribute):
                reason = _repeated(subgraph, frozenset(names))
                if reason:
                    return reason
        for value in node.outputs:
            if value.name and value.name in names:
                return f"value '{value.name}' is defined twice"
            names.add(value.name)
    return None
