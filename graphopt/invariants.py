"""What must hold of a model after any pass: a table of checks on the graph alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from graphopt import io, runtime

STANDARD_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Domains that a pass may introduce: standard ONNX, and ONNX Runtime's documented contrib operators."""


def violation(before: ir.Model, after: ir.Model) -> str | None:
    """Return the first invariant that `after` breaks, in words, or None."""
    for check in CHECKS:
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
    for graph in (after.graph, *(function.graph for function in after.functions.values())):
        reason = _undefined(graph, set())
        if reason:
            return reason
    return None


def _domains_imported(_: ir.Model, after: ir.Model) -> str | None:
    functions = {function.domain for function in after.functions.values()}
    for node in after.graph.all_nodes():
        if node.domain not in after.opset_imports and node.domain not in functions:
            return f"node '{node.name}' is of domain '{node.domain}', which no opset import covers"
    return None


def _no_private_operators(before: ir.Model, after: ir.Model) -> str | None:
    known = STANDARD_DOMAINS | {node.domain for node in io.nodes(before)}
    private = {node.domain for node in io.nodes(after)} - known
    return f"operators of private domain '{min(private)}' appeared" if private else None


CHECKS: tuple[Callable[[ir.Model, ir.Model], str | None], ...] = (
    _same_inputs,
    _same_outputs,
    _defined_before_use,
    _domains_imported,
    _no_private_operators,
)


def _names(ports: tuple[runtime.Port, ...]) -> list[str]:
    return [f"{port.name}:{port.dtype.name if port.dtype else 'any'}" for port in ports]


def _undefined(graph: ir.Graph, outer: set[ir.Value]) -> str | None:
    """Return why some value is used before or without a definition, or named like another one."""
    defined = outer | set(graph.inputs) | set(graph.initializers.values())
    names = {v.name for v in defined}
    for node in graph:
        for value in node.inputs:
            if value is not None and value not in defined:
                return f"node '{node.name}' uses '{value.name}' before it is defined"
        for attribute in node.attributes.values():
            for subgraph in _subgraphs(attribute):
                reason = _undefined(subgraph, defined)
                if reason:
                    return reason
        for value in node.outputs:
            if value.name and value.name in names:
                return f"value '{value.name}' is defined twice"
            defined.add(value)
            names.add(value.name)
    missing = [v.name for v in graph.outputs if v not in defined]
    return f"output '{missing[0]}' is not computed" if missing else None


def _subgraphs(attribute: ir.Attr) -> Sequence[ir.Graph]:
    if attribute.is_ref():
        return ()
    if attribute.type == ir.AttributeType.GRAPH:
        return (attribute.as_graph(),)
    return attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else ()
