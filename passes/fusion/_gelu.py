"""Gaussian error linear units and their kin as one operator, with the bias before them

Hendrycks and Gimpel (2016), "Gaussian Error Linear Units (GELUs)", arXiv:1606.08415. Exporters write them as products in
many orders, so the factors are gathered first: constants are multiplied, what is left must be x and one function of x.

    Gelu       1/2 * x * (1 + erf(x / sqrt(2)))
    FastGelu   1/2 * x * (1 + tanh(sqrt(2/pi) * (x + 0.044715 * x^3)))
    QuickGelu  x * sigmoid(alpha * x)

Each is replaced by itself: erf never becomes tanh. A constant bias that is added before goes into BiasGelu or FastGelu;
but on the CPU BiasGelu is slower than Gelu of a sum (see `_normalization`).
"""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir

from graphopt import graphs
from graphopt.passes.fusion._normalization import add_up
from graphopt.passes.fusion._site import MICROSOFT, Site

_CLOSE = 1e-5
"""Relative difference at which constants count as what they are rounded from."""


def fuse(site: Site) -> None:
    """Fuse every unit, from the last of its operators on."""
    for graph in site.graphs():
        for node in reversed(list(graph)):
            if node.graph is graph:
                _unit(site, node)
        for node in list(graph):
            if node.graph is graph:
                _biased(site, node)


def _unit(site: Site, node: ir.Node) -> None:
    if not graphs.is_op(node, "Mul", "Div") or not site.is_float(node.outputs[0]):
        return
    number, factors = _factors(site, node.outputs[0], whole=True)
    if len(factors) != 2:
        return
    for inner, x in (factors, factors[::-1]):
        made = _gate(site, inner, x, number)
        if made is None:
            continue
        operator = made[0]
        attributes: dict[str, Any] = made[1]
        if site.has(operator):
            new = site.add(node, operator, [x], node.outputs[0], domain=MICROSOFT, **attributes)
            reason = site.replace(node.outputs[0], new)
            if reason:
                site.skip(node, reason)
            else:
                site.fused[operator] += 1
        return


def _factors(site: Site, value: ir.Value, *, whole: bool = False) -> tuple[float, list[ir.Value]]:
    """Return a value as the product of a number and of other values.

    Args:
        site: the graph.
        value: the value.
        whole: it may be used several times.
    """
    number = site.number(value)
    if number is not None:
        return number, []
    node = site.maker(value, "Mul", "Div", alone=not whole)
    if node is None or node.inputs[0] is None or node.inputs[1] is None:
        return 1.0, [value]
    one, left = _factors(site, node.inputs[0])
    if node.op_type == "Mul":
        two, right = _factors(site, node.inputs[1])
        return one * two, left + right
    two = site.number(node.inputs[1]) or 0.0
    return (one / two, left) if two else (1.0, [value])


def _gate(site: Site, value: ir.Value, x: ir.Value, number: float) -> tuple[str, dict[str, float]] | None:
    """Return the unit that `number * x * value` is, and its attributes."""
    sigmoid = site.maker(value, "Sigmoid")
    if sigmoid is not None and sigmoid.inputs[0] is not None:
        alpha, factors = _factors(site, sigmoid.inputs[0], whole=sigmoid.inputs[0] is x)
        if sigmoid.inputs[0] is x:
            alpha, factors = 1.0, [x]
        return ("QuickGelu", {"alpha": alpha}) if factors == [x] and number == 1 else None
    total = site.maker(value, "Add")
    if total is None or not _is(number, 0.5):
        return None
    found = site.either(total, "Erf", "Tanh")
    if found is None or site.number(found[1]) != 1 or found[0].inputs[0] is None:
        return None
    scale, factors = _factors(site, found[0].inputs[0])
    if found[0].op_type == "Erf":
        return ("Gelu", {}) if factors == [x] and _is(scale, math.sqrt(0.5)) else None
    if len(factors) != 1 or not _is(scale, math.sqrt(2 / math.pi)):
        return None
    cubic = site.maker(factors[0], "Add")
    if cubic is None or x not in cubic.inputs:
        return None
    power = cubic.inputs[1] if cubic.inputs[0] is x else cubic.inputs[0]
    if power is None:
        return None
    weight, terms = _factors(site, power)
    if len(terms) == 1:
        pow_ = site.maker(terms[0], "Pow")
        terms = [x] * 3 if pow_ is not None and pow_.inputs[0] is x and site.number(pow_.inputs[1]) == 3 else []
    return ("FastGelu", {}) if terms == [x] * 3 and _is(weight, 0.044715) else None


def _is(number: float, wanted: float) -> bool:
    return math.isclose(number, wanted, rel_tol=_CLOSE)


def _biased(site: Site, node: ir.Node) -> None:
    """Take a constant bias into a Gelu of either kind, standard or contrib."""
    exact = (node.domain, node.op_type) in (("", "Gelu"), (MICROSOFT, "Gelu"))
    approximate = node.attributes.get("approximate")
    tanh = (node.domain, node.op_type) == (MICROSOFT, "FastGelu") and len(node.inputs) == 1
    if approximate is not None and approximate.as_string() == "tanh":
        exact, tanh = False, True
    value = node.inputs[0] if exact or tanh else None
    if value is None or not site.is_float(value) or graphs.has_parameters(node):
        return
    source, bias = _without_bias(site, value)
    operator = "BiasGelu" if exact else "FastGelu"
    if bias is None and (exact or node.domain == MICROSOFT):
        return
    if exact and site.on_cpu:
        add_up(site, value)
        return
    if not site.has(operator):
        return
    new = site.add(node, operator, [source, bias], node.outputs[0], domain=MICROSOFT)
    reason = site.replace(node.outputs[0], new)
    if reason:
        site.skip(node, reason)
    else:
        site.fused[operator] += 1


def _without_bias(site: Site, value: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    """Return a value without the vector that is added to its rows, and the vector."""
    total, dims = site.maker(value, "Add"), site.dims(value)
    if total is not None and dims is not None:
        for vector, rest in (total.inputs, total.inputs[::-1]):
            if site.dims(vector) == dims[-1:] and site.dims(rest) == dims and rest is not None:
                return rest, vector
    return value, None
