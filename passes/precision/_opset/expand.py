"""Write an operator out as the function that its schema defines it by.

Newer operators are functions of older ones (ONNX, "Function bodies of operators"): Mish(x) = x * Tanh(Softplus(x)).
Some bodies depend on types, attributes, and which optional inputs are there.
"""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from graphopt import graphs
from graphopt.passes.precision._opset import schemas
from graphopt.passes.precision._opset.facts import type_proto
from graphopt.passes.precision._opset.site import Site

_IR_VERSION = 10
"""Any will do: the model around the call is never written."""


def expand(site: Site, schema: Any) -> list[ir.Value] | None:
    """Emit the body of an operator before its node.

    Args:
        site: the node; new nodes get the version that the body is written in.
        schema: the node's schema.

    Returns:
        What stands for the node's outputs; None if the operator has no body for this node.
    """
    if any(found.is_ref() for found in site.node.attributes.values()) or any(graphs.subgraphs(site.node)):
        return None
    call = _call(site.node, schema)
    proto = _body(call, schema, site)
    if proto is None:
        return None
    version = next(i.version for i in proto.opset_import if i.domain == "")
    proto.domain, proto.name = "", call.op_type
    _leave_out_missing(proto, len(call.outputs))
    function = ir.from_proto(proto)
    inputs = [value for value in call.inputs if value is not None]
    graph = ir.Graph(inputs, call.outputs, nodes=[call], opset_imports={"": version}, name="call")
    common.InlinePass()(ir.Model(graph, ir_version=_IR_VERSION, functions=[function]))
    outputs, nodes = list(graph.outputs), list(graph)
    graph.outputs.clear()
    graph.remove(nodes)
    for value, real in zip(inputs, filter(None, site.node.inputs), strict=True):
        value.replace_all_uses_with(real)
    site.adopt(_needed(nodes, {value for index, value in enumerate(outputs) if site.used(index)}), version)
    return outputs


def _call(node: ir.Node, schema: Any) -> ir.Node:
    """Return a copy of the node between values of its own, with every default spelled out, as bodies expect it."""
    defaults = {name: schemas.default(schema, name) for name in schema.attributes if name not in node.attributes}
    spelled = [ir.convenience.convert_attribute(name, value) for name, value in defaults.items() if value is not None]
    inputs = [None if value is None else ir.Value(name=f"in{i}") for i, value in enumerate(node.inputs)]
    outputs = [ir.Value(name=f"out{i}" if value.name else "") for i, value in enumerate(node.outputs)]
    return ir.Node("", node.op_type, inputs, [*node.attributes.values(), *spelled], outputs=outputs)


def _body(call: ir.Node, schema: Any, site: Site) -> onnx.FunctionProto | None:
    """Return the body in the newest form that the target knows, or else in the oldest one."""
    versions = [*schema.function_opset_versions, *schema.context_dependent_function_opset_versions]
    chosen = max((v for v in versions if v <= site.version), default=min(versions, default=None))
    if chosen is None:
        return None
    if chosen in schema.function_opset_versions:
        return onnx.FunctionProto.FromString(schema.get_function_with_opset_version(chosen))
    if any(value is not None and site.facts.type(value) is None for value in site.node.inputs):
        return None  # bodies take the type for granted
    types = [
        (onnx.TypeProto() if value is None else type_proto(site.facts.type(value), site.facts.dims(value)))
        for value in site.node.inputs
    ]
    proto = ir.to_proto(call).SerializeToString()
    body = schema.get_context_dependent_function_with_opset_version(
        chosen, proto, [t.SerializeToString() for t in types]
    )
    return onnx.FunctionProto.FromString(body) if body else None


def _leave_out_missing(proto: onnx.FunctionProto, count: int) -> None:
    """Let a body have as many outputs as the node, and compute them all: it skips those that the node leaves out."""
    computed = {name for node in proto.node for name in node.output}
    proto.output[:] = [name if name in computed else proto.output[0] for name in proto.output[:count]]


def _needed(nodes: list[ir.Node], wanted: set[ir.Value]) -> list[ir.Node]:
    """Return the nodes that `wanted` values depend on; the others let go of what they use."""
    kept = []
    for node in reversed(nodes):
        if any(value in wanted or value.uses() for value in node.outputs):
            kept.append(node)
        else:
            graphs.detach(node)
    return kept[::-1]
