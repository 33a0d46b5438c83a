"""Activations that multiply a value by a squashed version of itself: x * (s * core(p(x)) + o), factors in any order

    core                    p(x)                              s * core + o
    Erf                     x / sqrt(2)                       (1 + erf) / 2       Gelu
    Tanh                    sqrt(2 / pi) (x + 0.044715 x^3)   (1 + tanh) / 2      Gelu, approximate
    Sigmoid                 twice the same                    sigmoid             Gelu, approximate
    Sigmoid                 a x                               sigmoid             Swish
    Tanh                    softplus(x)                       tanh                Mish
    HardSigmoid or Clip     a x + b                           clip(x / 6 + 1/2)   HardSwish

Hendrycks and Gimpel (2016), arXiv:1606.08415; Ramachandran et al. (2017), arXiv:1710.05941; Misra (2019),
arXiv:1908.08681; Howard et al. (2019), arXiv:1905.02244. Clip(a x + b, 0, 1), and what can be scaled to that, is
HardSigmoid.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import onnx_ir as ir

from graphopt import graphs
from graphopt.passes.structural._recompose.activations import softplus
from graphopt.passes.structural._recompose.site import Site

ANCHORS = ("Clip", "Erf", "HardSigmoid", "Sigmoid", "Tanh")
_STEPS = 5
_BOUNDS_ARE_INPUTS = 11
_CUBIC = 0.044715
_SLOPE = math.sqrt(2 / math.pi)


@dataclasses.dataclass(frozen=True)
class _Stage:
    """What has become of a core operator's output a few operators later: [factor *] (scale * core + offset).

    Attributes:
        node: the last of these operators.
        inner: those before it, the core included.
        scale, offset: numbers.
        factor: another value that it was multiplied by.
    """

    node: ir.Node
    inner: tuple[ir.Node, ...]
    scale: float
    offset: float
    factor: ir.Value | None = None


def recompose(site: Site, core: ir.Node) -> bool:
    """Replace the activation around a core operator."""
    stages = list(_stages(site, core))
    gated = [stage for stage in stages if stage.factor is not None]
    if any(_gate(site, core, stage, x) for stage in gated if stage.factor for x in site.bases(stage.factor)):
        return True
    if core.op_type != "Clip":
        return False
    start = _Stage(core, (), 1.0, 0.0)
    return any(_hard_sigmoid(site, core, stage) for stage in (*reversed(stages), start))


def _stages(site: Site, core: ir.Node) -> Iterator[_Stage]:
    """Follow the output of a core operator down, as long as nothing else uses it."""
    stage = _Stage(core, (), 1.0, 0.0)
    for _ in range(_STEPS):
        value = stage.node.outputs[0]
        node = graphs.sole_use(value)
        if not graphs.is_op(node, "Add", "Sub", "Mul", "Div", "Neg") or node is None or node.graph is not core.graph:
            return
        other = next((x for x in node.inputs if x is not None and x is not value), None)
        number = -1.0 if node.op_type == "Neg" else site.scalar(other)
        left = node.inputs[0] is value
        scale, offset, factor = stage.scale, stage.offset, stage.factor
        if number is None and node.op_type == "Mul" and factor is None:
            factor = other
        elif number is None or (factor is not None and node.op_type in ("Add", "Sub")):
            return
        elif node.op_type in ("Mul", "Neg"):
            scale, offset = scale * number, offset * number
        elif node.op_type == "Div" and left and number:
            scale, offset = scale / number, offset / number
        elif node.op_type == "Add":
            offset += number
        elif node.op_type == "Sub":
            scale, offset = (scale, offset - number) if left else (-scale, number - offset)
        else:
            return
        stage = _Stage(node, (*stage.inner, stage.node), scale, offset, factor)
        yield stage


def _gate(site: Site, core: ir.Node, stage: _Stage, x: ir.Value) -> bool:
    """Write an operator in place of a gate, if the core is one of what multiplies it, x."""
    factor, source = stage.factor, core.inputs[0]
    assert source is not None
    scaled = site.polynomial(factor, x) if factor is not None else None
    if scaled is None or len(scaled[0]) != 2 or scaled[0][0]:
        return False
    scale, offset = stage.scale * scaled[0][1], stage.offset * scaled[0][1]
    inner = {*stage.inner, *scaled[1]}
    soft = softplus(site, source) if core.op_type == "Tanh" else None
    if soft is not None and soft[0] is x and site.near(x, (scale, offset), (1, 0)):
        spelled = len(soft[1]) > 1  # which is faster than the Softplus that runtimes make of Mish
        return (site.slower or not spelled) and site.replace(stage.node, {*inner, *soft[1]}, "Mish", [x])
    argument = site.polynomial(source, x)
    if argument is None:
        return False
    p, inner = argument[0], {*inner, *argument[1]}
    if core.op_type in ("Erf", "Tanh") and sum(p) < 0:  # both are odd functions
        p, scale = tuple(-c for c in p), -scale
    if core.op_type == "Erf":
        if site.near(x, (scale, offset, *p), (0.5, 0.5, 0, math.sqrt(0.5))):
            return site.replace(stage.node, inner, "Gelu", [x])
    elif core.op_type == "Tanh":
        if site.near(x, (scale, offset, *p), (0.5, 0.5, 0, _SLOPE, 0, _SLOPE * _CUBIC)):
            return site.replace(stage.node, inner, "Gelu", [x], approximate="tanh")
    elif core.op_type == "Sigmoid":
        if site.near(x, (scale, offset, *p), (1, 0, 0, 2 * _SLOPE, 0, 2 * _SLOPE * _CUBIC)):
            return site.replace(stage.node, inner, "Gelu", [x], approximate="tanh")
        if len(p) == 2 and not p[0] and site.near(x, (scale, offset), (1, 0)):
            return site.replace(stage.node, inner, "Swish", [x], alpha=p[1])
    elif len(p) == 2:
        line = _line(site, x, core, scale, offset, (p[0], p[1]))
        if line is not None and site.near(x, line, (1 / 6, 0.5)):
            return site.replace(stage.node, inner, "HardSwish", [x])
    return False


def _hard_sigmoid(site: Site, core: ir.Node, stage: _Stage) -> bool:
    """Write HardSigmoid, times the factor, in place of a Clip with what scales it before and after."""
    source = core.inputs[0]
    assert source is not None
    for x in reversed(site.bases(source)):
        argument = site.polynomial(source, x)
        if argument is None or len(argument[0]) != 2:
            continue
        line = _line(site, x, core, stage.scale, stage.offset, (argument[0][0], argument[0][1]))
        inner = {*stage.inner, *argument[1]}
        if line is None or not inner:
            continue
        alpha, beta = line
        if stage.factor is None:
            made = site.replace(stage.node, inner, "HardSigmoid", [x], alpha=alpha, beta=beta)
        else:
            made = len(inner) > 1 and site.multiply(
                stage.node, inner, stage.factor, "HardSigmoid", x, alpha=alpha, beta=beta
            )
        if made:
            return True
    return False


def _line(
    site: Site, x: ir.Value, core: ir.Node, scale: float, offset: float, p: tuple[float, float]
) -> tuple[float, float] | None:
    """Return a and b where scale * core(p0 + p1 x) + offset is min(max(a x + b, 0), 1)."""
    if core.op_type == "HardSigmoid":
        a, b = core.attributes.get_float("alpha", 0.2), core.attributes.get_float("beta", 0.5)
        return (a * p[1], a * p[0] + b) if site.near(x, (scale, offset), (1, 0)) else None
    limits = _limits(site, core)
    if limits is None or not site.near(x, [scale * limit + offset for limit in limits], (0, 1)):
        return None
    return scale * p[1], scale * p[0] + offset


def _limits(site: Site, clip: ir.Node) -> tuple[float, float] | None:
    """Return between what numbers Clip keeps a value."""
    if site.opset >= _BOUNDS_ARE_INPUTS:
        low, high = (site.scalar(clip.inputs[i]) if i < len(clip.inputs) else None for i in (1, 2))
    else:
        low, high = (clip.attributes.get_float(name, None) for name in ("min", "max"))
    return None if low is None or high is None or low >= high else (low, high)
