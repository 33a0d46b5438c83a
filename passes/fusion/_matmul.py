"""Matrix products with the Transpose before and the scale after as one operator

FusedMatMul computes alpha * op(A) * op(B), where op swaps the last two axes or does nothing. onnxscript has rules for the
same, which take constants that callers may override, and types that the operator has no kernel for.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt import graphs
from graphopt.passes.fusion._heads import perm
from graphopt.passes.fusion._site import MICROSOFT, Site


def fuse(site: Site) -> None:
    """Fuse every product of float32 that has something to take in."""
    if not site.has("FusedMatMul"):
        return
    for graph in site.graphs():
        for node in list(graph):
            if node.graph is graph and graphs.is_op(node, "MatMul"):
                _product(site, node)


def _product(site: Site, node: ir.Node) -> None:
    if site.dtype(node.outputs[0]) != ir.DataType.FLOAT or None in node.inputs or site.is_quantized(node):
        return
    swapped = [_swapped(site, value) for value in node.inputs]
    output, alpha = _scaled(site, node)
    if not any(swapped) and output is node.outputs[0]:
        return
    inputs = [s or value for s, value in zip(swapped, node.inputs, strict=True)]
    anchor = output.producer()
    assert anchor is not None
    made = site.add(
        anchor,
        "FusedMatMul",
        inputs,
        output,
        domain=MICROSOFT,
        alpha=alpha,
        transA=int(swapped[0] is not None),
        transB=int(swapped[1] is not None),
    )
    reason = site.replace(output, made)
    if reason:
        site.skip(node, reason)
    else:
        site.fused["FusedMatMul"] += 1


def _swapped(site: Site, value: ir.Value | None) -> ir.Value | None:
    """Return the value of which the last two axes were swapped for this product alone."""
    node = site.maker(value, "Transpose")
    dims = site.dims(value)
    if node is None or dims is None or len(dims) < 2 or graphs.constant(node.inputs[0]) is not None:
        return None
    rank = len(dims)
    order = perm(node) or tuple(range(rank))[::-1]
    return node.inputs[0] if order == (*range(rank - 2), rank - 1, rank - 2) else None


def _scaled(site: Site, node: ir.Node) -> tuple[ir.Value, float]:
    """Return the product after a constant factor, and the factor."""
    output = node.outputs[0]
    user = site.only_user(output)
    if user is None or not graphs.is_op(user, "Mul", "Div") or site.dims(user.outputs[0]) != site.dims(output):
        return output, 1.0
    other = user.inputs[1] if user.inputs[0] is output else user.inputs[0]
    number = site.number(other)
    if number is None or (user.op_type == "Div" and (user.inputs[0] is not output or not number)):
        return output, 1.0
    return user.outputs[0], number if user.op_type == "Mul" else 1 / number
