"""Small questions about nodes and values that every quantization pass asks."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common


def label(node: ir.Node) -> str:
    """Return what to call a node in a report: its name, or the value that it computes."""
    return node.name or next((f"{node.op_type} of '{v.name}'" for v in node.outputs if v.name), node.op_type)


def constant(value: ir.Value | None) -> np.ndarray | None:
    """Return the array of an initializer or of a Constant node, or None for anything computed.

    Exporters of old list every weight among the graph's inputs, where callers could override it. Nobody
    does, and integers cannot be prepared for weights that vary, so these defaults count as constants.
    """
    tensor = _tensor(value)
    return None if tensor is None else tensor.numpy()


def is_constant(value: ir.Value | None) -> bool:
    """Tell whether `constant` has an array for this value, without reading it."""
    return _tensor(value) is not None


def computed_constants(graph: ir.Graph) -> set[ir.Value]:
    """Return the values that nodes compute from constants alone."""
    found: set[ir.Value] = set()
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        if inputs and all(value in found or is_constant(value) for value in inputs):
            found.update(node.outputs)
    return found


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """Return an input, or None when it is absent."""
    return node.inputs[index] if index < len(node.inputs) else None


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """Return the value of an attribute, with text as `str`, or `default`."""
    found = node.attributes.get(name)
    if found is None or found.is_ref():
        return default
    return found.as_string() if found.type == ir.AttributeType.STRING else found.value


def is_float(value: ir.Value | None) -> bool:
    """Tell whether a value is known to be a float32 tensor."""
    return value is not None and value.dtype == ir.DataType.FLOAT


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """Return the one node that reads a value, once; None when there are more, or it is a graph output."""
    nodes = [node for node, _ in value.uses()]
    return nodes[0] if len(nodes) == 1 and not value.is_graph_output() else None


def infer_types(model: ir.Model) -> None:
    """Fill in element types and shapes where the main graph leaves some out, as far as ONNX can tell."""
    if any(v.dtype is None for node in model.graph for v in node.outputs if v.name):
        common.ShapeInferencePass(check_type=False, strict_mode=False)(model)


def _tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    if value is None:
        return None
    tensor = value.const_value
    node = value.producer()
    if tensor is None and node is not None and node.op_type == "Constant" and node.domain == "":
        tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None or tensor.dtype == ir.DataType.STRING else tensor
