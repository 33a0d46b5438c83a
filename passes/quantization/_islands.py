"""Find what ONNX Runtime left in float between integer kernels."""

from __future__ import annotations

import re

import onnx_ir as ir

_SUFFIX = re.compile(r"(?:_token_\d+|_nchwc|/duplicated)+$")
"""What ONNX Runtime appends to the names of nodes that it rewrites."""

_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")

_PRODUCTS = ("Conv", "Gemm", "MatMul", "FusedConv", "FusedGemm", "FusedMatMul")


def find(graph: ir.Graph) -> list[tuple[str, str]]:
    """Return `(node, reason)` for nodes that compute in float though integers come before and after them.

    Also for convolutions and matrix products whose weight is kept in integers, but multiplied in float.

    Args:
        graph: a graph as the runtime optimized it.
    """
    after: set[ir.Node] = set()
    before: set[ir.Node] = set()
    for node in graph:
        comes_after = any(_is_dequantized(value) or _is_float_of(value, after) for value in node.inputs)
        if comes_after and node.op_type not in _CONVERSIONS:
            after.add(node)
    for node in reversed(graph):
        users = [user for value in node.outputs if _may_be_float(value) for user in value.consumers()]
        comes_before = any(user.op_type == "QuantizeLinear" or user in before for user in users)
        if comes_before and node.op_type not in _CONVERSIONS:
            before.add(node)
    rows = []
    for node in graph:
        if node.op_type in _PRODUCTS and _is_dequantized(node.inputs[1]):
            rows.append((_label(node), "has an integer weight, but ONNX Runtime multiplies in float"))
        elif node in after and node in before:
            rows.append(
                (_label(node), f"{node.op_type} runs in float between integer nodes, with a conversion on both sides")
            )
    return rows


def _is_dequantized(value: ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    return node is not None and node.op_type == "DequantizeLinear"


def _is_float_of(value: ir.Value | None, nodes: set[ir.Node]) -> bool:
    return value is not None and value.producer() in nodes and _may_be_float(value)


def _may_be_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()


def _label(node: ir.Node) -> str:
    return _SUFFIX.sub("", node.name or "") or next((v.name for v in node.outputs if v.name), node.op_type)
