"""Products of integers, and what scales them back to floats, as one operator

Quantization at run time writes MatMulInteger, Cast, Mul by the scales of both sides, and maybe Add of a bias:

    DynamicQuantizeMatMul   quantizes its input, too, where that is quantized for this product alone
    MatMulIntegerToFloat    takes integers, on scales of run time or on constant ones; what is scaled again by row after
                            that is left to a Mul

This comes before attention, which is made of such products too (`_quantized_attention`), and before normalization and
Gelu, which would take the bias.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt import graphs
from graphopt.passes.fusion._site import MICROSOFT, Site


def fuse(site: Site) -> None:
    """Fuse every product that is scaled back to floats."""
    for graph in site.graphs():
        for node in list(graph):
            if node.graph is graph and graphs.is_op(node, "Mul"):
                _product(site, node)


def _product(site: Site, node: ir.Node) -> None:
    found = site.either(node, "Cast")
    product = site.maker(found[0].inputs[0], "MatMulInteger") if found is not None else None
    if found is None or product is None or site.dtype(node.outputs[0]) != ir.DataType.FLOAT:
        return
    integers, matrix, *rest = product.inputs
    offset, zero = [*rest, None, None][:2]
    shape = site.dims(matrix)
    if matrix is None or graphs.constant(matrix) is None or shape is None or len(shape) != 2:
        return
    scales = _scales(site, node, found[1], integers, offset)
    if scales is None:
        return
    step, scale = scales
    if site.dims(scale) not in ((), (1,), shape[1:]) or (zero is not None and site.dims(zero) != site.dims(scale)):
        return
    if offset is not None and site.dims(offset) not in ((), (1,)):
        return  # a zero point for each row, which the fused kernel does not have
    output, bias = node.outputs[0], None
    total = site.only_user(output)
    if total is not None and graphs.is_op(total, "Add"):
        other = total.inputs[1] if total.inputs[0] is output else total.inputs[0]
        if graphs.constant(other) is not None and site.dims(other) == shape[1:]:
            output, bias = total.outputs[0], other
    source = _floats_for(product, node, integers, found[1])
    operator = "DynamicQuantizeMatMul" if source is not None else "MatMulIntegerToFloat"
    if not site.has(operator):
        return
    anchor = output.producer()
    assert anchor is not None
    if source is None:
        step = step if step is not None else site.constant(anchor, np.ones((), np.float32), "one")
        inputs = [integers, matrix, step, scale, offset, zero, bias]
    else:
        inputs = [source, matrix, scale, zero, bias]
    made = site.add(anchor, operator, inputs, output, domain=MICROSOFT)
    reason = site.replace(output, made)
    if reason:
        site.skip(node, reason)
    else:
        site.fused[operator] += 1


def _scales(
    site: Site, node: ir.Node, factor: ir.Value, integers: ir.Value | None, offset: ir.Value | None
) -> tuple[ir.Value | None, ir.Value] | None:
    """Return the scale of the integers, None where a constant has it, and that of the matrix."""
    if graphs.constant(factor) is not None:
        return None, factor
    both = site.maker(factor, "Mul")
    quantized = integers.producer() if integers is not None else None
    if both is None or quantized is None or not graphs.is_op(quantized, "DynamicQuantizeLinear"):
        return None
    step = quantized.outputs[1]
    scale = next((value for value in both.inputs if value is not step), None)
    if step not in both.inputs or scale is None or offset is not quantized.outputs[2]:
        return None
    return step, scale


def _floats_for(product: ir.Node, node: ir.Node, integers: ir.Value | None, factor: ir.Value) -> ir.Value | None:
    """Return the activation that is quantized on its own range for this product alone, if it is."""
    quantized = integers.producer() if integers is not None else None
    if quantized is None or not graphs.is_op(quantized, "DynamicQuantizeLinear") or factor.producer() is None:
        return None
    users = {use.node for value in quantized.outputs for use in value.uses()}
    if users != {product, factor.producer()} or any(value.is_graph_output() for value in quantized.outputs):
        return None
    return quantized.inputs[0]
