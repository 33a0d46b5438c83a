"""Reductions of a function of the elements, and what exponentials are divided by their sum

    sum(x^2)                             ReduceSumSquare; its square root is ReduceL2
    sum(|x|)                             ReduceL1
    sum(x) / size                        ReduceMean
    log(sum(exp(x)))                     ReduceLogSumExp; also m + log(sum(exp(x - m))) with m = max(x)
    log(sum(x))                          ReduceLogSum
    exp(x) / sum(exp(x))                 Softmax; also of x - max(x)
    log(softmax(x)), x - logsumexp(x)    LogSoftmax; also x - m - log(sum(exp(x - m)))

Where exponentials without max(x) overflow, or a softmax underflows to 0 whose logarithm is taken, the operator computes
what is meant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from graphopt.passes.structural._recompose.site import REDUCE_AXES_ARE_INPUT, Nodes, Site

_ANY_AXIS = 13
"""Opset since which Softmax is over one axis, rather than over all from that axis on."""


def root(site: Site, node: ir.Node) -> bool:
    """Write ReduceL2 for the square root of a sum of squares."""
    if node.op_type == "Pow" and site.scalar(node.inputs[1]) != 0.5:
        return False
    summed = site.maker(node.inputs[0], "ReduceSum", "ReduceSumSquare")
    if summed is None:
        return False
    if summed.op_type == "ReduceSumSquare":
        return _reduce(site, node, summed, "ReduceL2", summed.inputs[0], frozenset())
    square = site.square(summed.inputs[0])
    return square is not None and _reduce(site, node, summed, "ReduceL2", square[0], frozenset({square[1]}))


def total(site: Site, node: ir.Node) -> bool:
    """Write ReduceSumSquare or ReduceL1."""
    square, absolute = site.square(node.inputs[0]), site.maker(node.inputs[0], "Abs")
    if square is not None:
        return _reduce(site, node, node, "ReduceSumSquare", square[0], frozenset({square[1]}))
    if absolute is not None:
        return _reduce(site, node, node, "ReduceL1", absolute.inputs[0], frozenset({absolute}))
    return False


def scaled(site: Site, node: ir.Node) -> bool:
    """Write ReduceMean."""
    pair = site.number_and_other(node)
    summed = site.maker(pair[1], "ReduceSum") if pair is not None else None
    count = site.count(summed) if summed is not None else None
    if pair is None or summed is None or not count or (node.op_type == "Div" and node.inputs[0] is not pair[1]):
        return False
    weight = pair[0] * count if node.op_type == "Mul" else pair[0] / count
    if not math.isclose(weight, 1, rel_tol=1e-6):
        return False
    return _reduce(site, node, summed, "ReduceMean", summed.inputs[0], frozenset())


def log(site: Site, node: ir.Node) -> bool:
    """Write LogSoftmax, ReduceLogSumExp or ReduceLogSum for a logarithm."""
    softmax = site.maker(node.inputs[0], "Softmax")
    if softmax is not None:
        axis = softmax.attributes.get_int("axis", -1 if site.opset >= _ANY_AXIS else 1)
        return site.replace(node, {softmax}, "LogSoftmax", [softmax.inputs[0]], axis=axis)
    summed = site.maker(node.inputs[0], "ReduceSum")
    if summed is None:
        return False
    exponential = site.maker(summed.inputs[0], "Exp")
    if exponential is None:
        return _reduce(site, node, summed, "ReduceLogSum", summed.inputs[0], frozenset())
    return _reduce(site, node, summed, "ReduceLogSumExp", exponential.inputs[0], frozenset({exponential}))


def sum_of_maximum(site: Site, node: ir.Node) -> bool:
    """Write ReduceLogSumExp for m + log(sum(exp(x - m)))."""
    for most, logarithm in site.operands(node):
        maximum, found = site.maker(most, "ReduceMax"), _log_of_sum(site, logarithm)
        if maximum is None or found is None:
            continue
        summed, exponential, nodes = found
        source = _less_maximum(site, exponential.inputs[0], summed)
        if source is not None and source[1] is most:
            inner = nodes | {summed, exponential} | source[2]
            return _reduce(site, node, summed, "ReduceLogSumExp", source[0], inner - {summed})
    return False


def quotient(site: Site, node: ir.Node) -> bool:
    """Write Softmax for a quotient, or a product with a reciprocal."""
    for value, divisor in site.operands(node):
        exponential, inner = site.maker(value, "Exp"), frozenset({node})
        if exponential is None:
            continue
        if node.op_type == "Mul":
            inverse = site.maker(divisor, "Reciprocal")
            if inverse is None or inverse.inputs[0] is None:
                continue
            divisor, inner = inverse.inputs[0], inner | {inverse}
        elif value is not node.inputs[0]:
            continue
        summed = site.keeps_dims(divisor, "ReduceSum")
        if summed is not None and summed.inputs[0] is value:
            return _softmax(site, node, "Softmax", exponential.inputs[0], summed, inner | {exponential, summed})
    return False


def difference(site: Site, node: ir.Node) -> bool:
    """Write LogSoftmax for x minus the logarithm of the sum of the exponentials."""
    value, subtrahend = node.inputs
    whole = site.keeps_dims(subtrahend, "ReduceLogSumExp")
    if whole is not None and whole.inputs[0] is value:
        return _softmax(site, node, "LogSoftmax", value, whole, frozenset({whole}))
    found = _log_of_sum(site, subtrahend)
    if found is None or found[1].inputs[0] is not value:
        return False
    summed, exponential, nodes = found
    return _softmax(site, node, "LogSoftmax", value, summed, nodes | {summed, exponential})


def _log_of_sum(site: Site, value: ir.Value | None) -> tuple[ir.Node, ir.Node, Nodes] | None:
    """Return the sum and the exponential in log(sum(exp(x))), and the logarithm."""
    node = site.maker(value, "Log")
    summed = site.keeps_dims(node.inputs[0], "ReduceSum") if node is not None else None
    exponential = site.maker(summed.inputs[0], "Exp") if summed is not None else None
    if node is None or summed is None or exponential is None:
        return None
    return summed, exponential, frozenset({node})


def _less_maximum(site: Site, value: ir.Value | None, summed: ir.Node) -> tuple[ir.Value, ir.Value, Nodes] | None:
    """Return x and max(x) where a value is x - max(x), along the axes of a sum, and the nodes that compute it."""
    node = site.maker(value, "Sub")
    most = site.keeps_dims(node.inputs[1], "ReduceMax") if node is not None else None
    if node is None or most is None or node.inputs[0] is None or most.inputs[0] is not node.inputs[0]:
        return None
    if site.axes(most) is None or site.axes(most) != site.axes(summed):
        return None
    return node.inputs[0], most.outputs[0], frozenset({node, most})


def _softmax(site: Site, node: ir.Node, op_type: str, value: ir.Value | None, summed: ir.Node, inner: Nodes) -> bool:
    """Write Softmax or LogSoftmax over the one axis of a sum."""
    axes, rank = site.axes(summed), len(site.dims(value) or ())
    if axes is None or len(axes) != 1 or (site.opset < _ANY_AXIS and axes[0] != rank - 1):
        return False
    source, nodes = value, inner - {node}
    less = _less_maximum(site, value, summed)
    if less is not None:
        source, nodes = less[0], nodes | less[2]
    axis = -1 if axes[0] == rank - 1 and site.opset >= _ANY_AXIS else axes[0]
    return site.replace(node, nodes, op_type, [source], axis=axis)


def _reduce(site: Site, top: ir.Node, summed: ir.Node, op_type: str, x: ir.Value | None, inner: Nodes) -> bool:
    """Write a reduction of x over the axes of a sum, in place of an operator and of what it is made of."""
    attributes = {name: found.value for name, found in summed.attributes.items() if name != "axes"}
    inputs: Sequence[ir.Value | None] = [x]
    if site.opset >= REDUCE_AXES_ARE_INPUT:
        inputs = [x, *summed.inputs[1:]]
    else:
        axes = site.axes(summed)
        if axes is None:
            return False
        attributes.pop("noop_with_empty_axes", None)
        attributes["axes"] = axes
    return site.replace(top, inner | ({summed} - {top}), op_type, inputs, **attributes)
