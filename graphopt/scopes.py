"""Who may see whom: values, and the graphs and subgraphs that define them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir


def subgraphs(attribute: ir.Attr) -> Sequence[ir.Graph]:
    """Return the graphs that an attribute holds."""
    if attribute.is_ref():
        return ()
    if attribute.type == ir.AttributeType.GRAPH:
        return (attribute.as_graph(),)
    return attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else ()


def roots(model: ir.Model) -> list[ir.Graph]:
    """Return the main graph and the functions' graphs, which see nothing outside themselves."""
    return [model.graph, *(function.graph for function in model.functions.values())]


def main_and_bodies(model: ir.Model) -> list[ir.Graph]:
    """Return the main graph and the bodies of control flow in it, without functions."""
    return [model.graph, *model.graph.subgraphs()]


def function_nodes(model: ir.Model) -> Iterator[tuple[str, ir.Node]]:
    """Yield the nodes of functions and of the bodies in them, each with the name of its function."""
    for function in model.functions.values():
        for graph in (function.graph, *function.subgraphs()):
            yield from ((function.name, node) for node in graph)


def undefined(graph: ir.Graph, outer: frozenset[ir.Value] = frozenset()) -> str | None:
    """Return in words which value is used before, or without, a definition; None if all is well.

    Args:
        graph: a graph whose nodes are in order; its subgraphs are looked into.
        outer: values that it may use besides its own.
    """
    defined = set(outer) | set(graph.inputs) | set(graph.initializers.values())
    for node in graph:
        for value in node.inputs:
            if value is not None and value not in defined:
                return f"node '{node.name or node.op_type}' uses '{value.name}' before it is defined"
        for attribute in node.attributes.values():
            for subgraph in subgraphs(attribute):
                reason = undefined(subgraph, frozenset(defined))
                if reason:
                    return reason
        defined.update(node.outputs)
    missing = next((v for v in graph.outputs if v not in defined), None)
    return None if missing is None else f"output '{missing.name}' is not computed"
