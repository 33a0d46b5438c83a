"""What to call the graphs, nodes and operators of a model"""

from __future__ import annotations

import onnx_ir as ir

from graphopt import scopes


def places(model: ir.Model) -> dict[ir.Graph, str]:
    """Return in words where each graph of a model is: "" for the main graph."""
    found = {model.graph: ""}
    found.update({f.graph: f"function {f.domain}::{f.name}" for f in model.functions.values()})
    waiting = list(found)
    while waiting:
        outer = waiting.pop()
        for node in outer:
            for attribute in node.attributes.values():
                for graph in scopes.subgraphs(attribute):
                    place = f"{attribute.name} of {label(node)}"
                    found[graph] = f"{place}, {found[outer]}" if found[outer] else place
                    waiting.append(graph)
    return found


def label(node: ir.Node) -> str:
    """Return the name of a node, else of what it computes, else its operator."""
    return node.name or next((value.name for value in node.outputs if value.name), node.op_type)


def operator_name(node: ir.Node) -> str:
    """Return a node's operator with its domain, unless that is ONNX's own."""
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def first_user(value: ir.Value) -> str:
    """Return the operator that uses a stored tensor first, looking through DequantizeLinear.

    "output" stands for a graph's output, and "" for nothing.
    """
    user = next(iter(value.consumers()), None)
    if user is None:
        return "output" if value.is_graph_output() else ""
    if user.op_type == "DequantizeLinear":
        return next((operator_name(node) for node in user.outputs[0].consumers()), operator_name(user))
    return operator_name(user)
