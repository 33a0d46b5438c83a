"""Products of integers, and what scales them back to floats, as one operator

Dynamic quantization writes DynamicQuantizeLinear, MatMulInteger, Cast, and Mul by both scales, and maybe Add of a bias.
MatMulIntegerToFloat does all but the first; DynamicQuantizeMatMul does all of it, for an input that is quantized for this
product alone.
"""

from __future__ import annotations

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
    scales = site.maker(found[1], "Mul")
    matrix = product.inputs[1]
    shape = site.dims(matrix)
    if scales is None or matrix is None or graphs.constant(matrix) is None or shape is None or len(shape) != 2:
        return
    quantized = product.inputs[0].producer() if product.inputs[0] is not None else None
    if quantized is None or not graphs.is_op(quantized, "DynamicQuantizeLinear"):
        return
    scale = next((s for s in scales.inputs if s is not quantized.outputs[1]), None)
    zeros = [*product.inputs[2:], None, None][:2]
    if quantized.outputs[1] not in scales.inputs or scale is None or zeros[0] is not quantized.outputs[2]:
        return
    if site.dims(scale) not in ((), (1,), shape[1:]) or (
        zeros[1] is not None and site.dims(zeros[1]) != site.dims(scale)
    ):
        return
    output, bias = node.outputs[0], None
    total = site.only_user(output)
    if total is not None and graphs.is_op(total, "Add"):
        other = total.inputs[1] if total.inputs[0] is output else total.inputs[0]
        if graphs.constant(other) is not None and site.dims(other) == shape[1:]:
            output, bias = total.outputs[0], other
    users = {use.node for value in quantized.outputs for use in value.uses()}
    alone = users == {product, scales} and not any(value.is_graph_output() for value in quantized.outputs)
    operator = "DynamicQuantizeMatMul" if alone else "MatMulIntegerToFloat"
    if not site.has(operator):
        return
    inputs = (
        [quantized.inputs[0], matrix, scale, zeros[1], bias]
        if alone
        else [quantized.outputs[0], matrix, quantized.outputs[1], scale, quantized.outputs[2], zeros[1], bias]
    )
    anchor = output.producer()
    assert anchor is not None
    made = site.add(anchor, operator, inputs, output, domain=MICROSOFT)
    reason = site.replace(output, made)
    if reason:
        site.skip(node, reason)
    else:
        site.fused[operator] += 1
