"""Activations that are told from a value's sign or its exponential

    1 / (1 + exp(-x)), exp(x) / (1 + exp(x))                      Sigmoid
    log(1 + exp(x))                                               Softplus
    x / (1 + |x|)                                                 Softsign
    max(x, 0)                                                     Relu
    x where x > 0, else a x; relu(x) - a relu(-x); max(x, a x)    LeakyRelu, or PRelu where a is not one number
    x where x > 0, else a (exp(x) - 1)                            Elu
    c times that, or of both branches                             Selu
    x where x > 0, else a (exp(x / a) - 1)                        Celu
    relu(x) + min(one of these tails, 0)                          Elu, Celu

Where the exponential overflows and the pattern computes infinity or NaN, the operator computes what is meant.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from graphopt import graphs
from graphopt.passes.structural._recompose.site import Nodes, Site


def softplus(site: Site, value: ir.Value | None) -> tuple[ir.Value, Nodes] | None:
    """Return x where a value is Softplus(x) or log(1 + exp(x)), and the nodes that compute it."""
    node = site.maker(value, "Softplus", "Log")
    if node is None or node.inputs[0] is None:
        return None
    if node.op_type == "Softplus":
        return node.inputs[0], frozenset({node})
    found = _one_plus_exp(site, node.inputs[0])
    source = None if found is None else found[0].inputs[0]
    return None if found is None or source is None else (source, frozenset({node, *found}))


def log(site: Site, node: ir.Node) -> bool:
    """Write Softplus."""
    found = softplus(site, node.outputs[0])
    return found is not None and site.replace(node, found[1] - {node}, "Softplus", [found[0]])


def quotient(site: Site, node: ir.Node) -> bool:
    """Write Softsign or Sigmoid for a Div or Reciprocal."""
    numerator = node.inputs[0] if node.op_type == "Div" else None
    plus = site.maker(node.inputs[-1], "Add")
    pair = site.number_and_other(plus) if plus is not None else None
    if plus is None or pair is None or pair[0] != 1:
        return False
    absolute = site.maker(pair[1], "Abs")
    if absolute is not None and numerator is not None and absolute.inputs[0] is numerator:
        return site.replace(node, {plus, absolute}, "Softsign", [numerator])
    exponential = site.maker(pair[1], "Exp")
    argument = exponential.inputs[0] if exponential is not None else None
    if exponential is None or argument is None:
        return False
    if numerator is exponential.outputs[0]:
        return site.replace(node, {exponential, plus}, "Sigmoid", [argument])
    for x, scale, nodes in _multiples(site, argument):
        inner = {exponential, plus, *nodes}
        if scale == -1 and (numerator is None or site.scalar(numerator) == 1):
            return site.replace(node, inner, "Sigmoid", [x])
        if scale == -1 and numerator is not None:
            return site.multiply(node, inner, numerator, "Sigmoid", x)
    return False


def where(site: Site, node: ir.Node) -> bool:
    """Write LeakyRelu, PRelu, Elu or Celu for two branches between which the sign of a value decides."""
    sign = _sign(site, node.inputs[0])
    if sign is None or len(node.inputs) != 3:
        return False
    x, test, positive = sign
    same, tail = (node.inputs[1], node.inputs[2]) if positive else (node.inputs[2], node.inputs[1])
    if same is None or tail is None:
        return False
    if same is not x:
        return _selu(site, node, x, same, tail, {test})
    return _leaky(site, node, x, tail, {test}) or _exponential(site, node, x, tail, {test}, bounded=False)


def maximum(site: Site, node: ir.Node) -> bool:
    """Write Relu or LeakyRelu."""
    for x, other in site.operands(node):
        if site.scalar(other) == 0:
            return site.replace(node, (), "Relu", [x])
        found = site.polynomial(other, x)
        if found is not None and len(found[0]) == 2 and found[0][0] == 0 <= found[0][1] <= 1:
            return site.replace(node, found[1], "LeakyRelu", [x], alpha=found[0][1])
    return False


def total(site: Site, node: ir.Node) -> bool:
    """Write LeakyRelu, PRelu, Elu or Celu for the sum of a positive and a negative part, or their difference."""
    for part, tail in site.operands(node):
        positive = site.maker(part, "Relu", "Max")
        x = _source(site, positive) if positive is not None else None
        if positive is None or x is None:
            continue
        if node.op_type == "Sub":
            return part is node.inputs[0] and _mirrored(site, node, x, tail, {positive}, 1)
        least = site.maker(tail, "Min")
        pair = site.number_and_other(least) if least is not None else None
        if least is not None and pair is not None and pair[0] == 0:
            made = _exponential(site, node, x, pair[1], {positive, least}, bounded=False)
        else:
            made = _exponential(site, node, x, tail, {positive}, bounded=True)
        if made or _mirrored(site, node, x, tail, {positive}, -1):
            return True
    return False


def product(site: Site, node: ir.Node) -> bool:
    """Write Selu for a multiple of Elu."""
    pair = site.number_and_other(node)
    elu = site.maker(pair[1], "Elu") if pair is not None else None
    if pair is None or elu is None or pair[0] <= 0:
        return False
    alpha = elu.attributes.get_float("alpha", 1.0)
    return site.replace(node, {elu}, "Selu", [elu.inputs[0]], alpha=alpha, gamma=pair[0])


def _one_plus_exp(site: Site, value: ir.Value | None) -> tuple[ir.Node, ir.Node] | None:
    """Return the Exp and the Add in 1 + exp(x)."""
    plus = site.maker(value, "Add")
    pair = site.number_and_other(plus) if plus is not None else None
    exponential = site.maker(pair[1], "Exp") if pair is not None and pair[0] == 1 else None
    return None if plus is None or exponential is None else (exponential, plus)


def _multiples(site: Site, value: ir.Value) -> Iterator[tuple[ir.Value, float, Nodes]]:
    """Yield every x of which a value is a multiple, with the factor and the nodes that compute it."""
    for x in site.bases(value):
        found = site.polynomial(value, x)
        if found is not None and len(found[0]) == 2 and found[0][0] == 0:
            yield x, found[0][1], found[1]


def _sign(site: Site, value: ir.Value | None) -> tuple[ir.Value, ir.Node, bool] | None:
    """Return x, the node, and whether a value tells that x is positive, rather than negative; about 0 it says either."""
    test = site.maker(value, "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    if test is None:
        return None
    for x, zero in site.operands(test):
        if site.scalar(zero) == 0:
            return x, test, test.op_type.startswith("Greater") == (x is test.inputs[0])
    return None


def _source(site: Site, relu: ir.Node) -> ir.Value | None:
    """Return x in relu(x) or max(x, 0)."""
    if relu.op_type == "Relu":
        return relu.inputs[0]
    pair = site.number_and_other(relu)
    return pair[1] if pair is not None and pair[0] == 0 else None


def _leaky(site: Site, top: ir.Node, x: ir.Value, tail: ir.Value, inner: set[ir.Node]) -> bool:
    """Write LeakyRelu or PRelu where the tail is a multiple of x."""
    found = site.polynomial(tail, x)
    if found is not None:
        line = found[0]
        return (
            len(line) == 2 and line[0] == 0 and site.replace(top, {*inner, *found[1]}, "LeakyRelu", [x], alpha=line[1])
        )
    node = site.maker(tail, "Mul")
    slope = next((other for value, other in site.operands(node) if value is x), None) if node is not None else None
    return node is not None and slope is not None and _prelu(site, top, x, slope, {*inner, node})


def _prelu(site: Site, top: ir.Node, x: ir.Value, slope: ir.Value, inner: set[ir.Node], sign: int = 1) -> bool:
    """Write PRelu with a slope that broadcasts to x without enlarging it, or with its negative where it is constant."""
    one, two = site.dims(slope), site.dims(x)
    if one is None or two is None or len(one) > len(two):
        return False
    if any(a != 1 and (a is None or a != b) for a, b in zip(one[::-1], two[::-1], strict=False)):
        return False
    array = graphs.array(slope)
    if not site.allows(top, inner, "PRelu", x) or (sign == -1 and array is None):
        return False
    if sign == -1 and array is not None:
        slope = site.constant(top, -array, "slope")
    return site.replace(top, inner, "PRelu", [x, slope])


def _mirrored(site: Site, top: ir.Node, x: ir.Value, tail: ir.Value, inner: set[ir.Node], sign: int) -> bool:
    """Write LeakyRelu or PRelu for relu(x) - sign * tail, where the tail is a multiple of relu(-x)."""
    for value in site.bases(tail):
        found, negative = site.polynomial(tail, value), _negative_part(site, value, x)
        if negative is not None and found is not None and len(found[0]) == 2 and found[0][0] == 0:
            nodes = {*inner, *negative, *found[1]}
            return site.replace(top, nodes, "LeakyRelu", [x], alpha=sign * found[0][1])
    node = site.maker(tail, "Mul")
    for value, slope in site.operands(node) if node is not None else ():
        negative = _negative_part(site, value, x)
        if node is not None and negative is not None:
            return _prelu(site, top, x, slope, {*inner, *negative, node}, sign)
    return False


def _negative_part(site: Site, value: ir.Value, x: ir.Value) -> Nodes | None:
    """Return the nodes that compute relu(-x), if a value is that."""
    relu = site.maker(value, "Relu")
    found = site.polynomial(relu.inputs[0], x) if relu is not None and relu.inputs[0] is not None else None
    return found[1] | {relu} if relu is not None and found is not None and found[0] == (0, -1) else None


def _exponential(
    site: Site, top: ir.Node, x: ir.Value, tail: ir.Value, inner: set[ir.Node], *, bounded: bool
) -> bool:  # fmt: skip
    """Write Elu or Celu where the tail is a * (exp(r * x) - 1).

    Args:
        site, top, x, tail, inner: the pattern.
        bounded: for positive x the tail must be 0, because x is replaced by min(x, 0) in it.
    """
    for value in site.bases(tail):
        node = site.maker(value, "Exp")
        outer = site.polynomial(tail, value) if node is not None else None
        if node is None or node.inputs[0] is None or outer is None or len(outer[0]) != 2:
            continue
        alpha = outer[0][1]
        argument = _rate(site, node.inputs[0], x, bounded=bounded)
        if argument is None or not site.near(x, outer[0], (-alpha, alpha)):
            return False
        rate, nodes = argument
        nodes = {*inner, *nodes, *outer[1], node}
        if site.near(x, (rate,), (1,)):
            return site.replace(top, nodes, "Elu", [x], alpha=alpha)
        if alpha > 0 and site.near(x, (rate * alpha,), (1,)):
            return site.replace(top, nodes, "Celu", [x], alpha=alpha)
    return False


def _selu(site: Site, top: ir.Node, x: ir.Value, same: ir.Value, tail: ir.Value, inner: set[ir.Node]) -> bool:
    """Write Selu where one branch is c * x and the other c * a * (exp(x) - 1)."""
    positive = site.polynomial(same, x)
    if positive is None or len(positive[0]) != 2 or positive[0][0] or positive[0][1] <= 0:
        return False
    gamma = positive[0][1]
    for value in site.bases(tail):
        node = site.maker(value, "Exp")
        outer = site.polynomial(tail, value) if node is not None else None
        if node is None or outer is None or node.inputs[0] is not x or len(outer[0]) != 2:
            continue
        alpha = outer[0][1] / gamma
        nodes = {*inner, *positive[1], *outer[1], node}
        even = site.near(x, outer[0], (-gamma * alpha, gamma * alpha))
        return even and site.replace(top, nodes, "Selu", [x], alpha=alpha, gamma=gamma)
    return False


def _rate(site: Site, value: ir.Value, x: ir.Value, *, bounded: bool) -> tuple[float, set[ir.Node]] | None:
    """Return r where a value is r * x, or r * min(x, 0), which it must be if it is to be bounded."""
    for base in site.bases(value):
        found = site.polynomial(value, base)
        if found is None or len(found[0]) != 2 or found[0][0]:
            continue
        limit = _minimum(site, base, x)
        if limit is not None:
            return found[0][1], {*found[1], *limit}
        if base is x and not bounded:
            return found[0][1], {*found[1]}
    return None


def _minimum(site: Site, value: ir.Value, x: ir.Value) -> Nodes | None:
    """Return the nodes that compute min(x, 0), if a value is that: also 0 where x > 0, else x."""
    node = site.maker(value, "Min", "Where")
    if node is None:
        return None
    if node.op_type == "Min":
        pair = site.number_and_other(node)
        return frozenset({node}) if pair is not None and pair[0] == 0 and pair[1] is x else None
    sign = _sign(site, node.inputs[0])
    if sign is None or sign[0] is not x:
        return None
    zero, same = (node.inputs[1], node.inputs[2]) if sign[2] else (node.inputs[2], node.inputs[1])
    return frozenset({node, sign[1]}) if site.scalar(zero) == 0 and same is x else None
