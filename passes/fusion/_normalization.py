"""Layer normalization, and the sum that it normalizes, as one operator

Ba et al. (2016), "Layer Normalization", arXiv:1607.06450; Zhang and Sennrich (2019), "Root Mean Square Layer
Normalization", arXiv:1910.07467. Found as the standard operator, or spelled out:

    d = x - mean(x)    y = d / sqrt(mean(d^2) + epsilon) * gamma + beta
                       y = x / sqrt(mean(x^2) + epsilon) * gamma        (without the mean)

Of the sum before it, x = input + skip [+ bias of the last axis], SkipLayerNormalization makes normalized and sum at once;
SkipSimplifiedLayerNormalization does it without the mean. What has no sum before it becomes the standard operator, where
the opset has one (LayerNormalization from 17, RMSNormalization from 23).

On the CPU, SkipLayerNormalization takes three to eight times as long as LayerNormalization of a sum (ONNX Runtime 1.31), and
ONNX Runtime makes it of every Add that is normalized when a session loads. It knows no Sum there, so Sum of all summands is
what is normalized on the CPU: one operator for several Add, and no slow one.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from graphopt import graphs
from graphopt.passes.fusion._site import MICROSOFT, Site, same


@dataclasses.dataclass(frozen=True)
class _Norm:
    """A normalization over the last axis.

    Attributes:
        input: what is normalized.
        gamma, beta: per column, or None.
        epsilon: added to the variance.
        centred: the mean is taken off.
        output: the result.
        spelled: it is written out in several operators.
    """

    input: ir.Value
    gamma: ir.Value | None
    beta: ir.Value | None
    epsilon: float
    centred: bool
    output: ir.Value
    spelled: bool


def fuse(site: Site) -> None:
    """Fuse every normalization with the sum before it."""
    for graph in site.graphs():
        for node in list(graph):
            if node.graph is not graph:
                continue
            norm = _standard(site, node) or _spelled(site, node)
            if norm is None or not _is_plain(site, norm):
                continue
            if site.on_cpu and norm.centred:
                _whole(site, norm)
                add_up(site, norm.input)
            elif not _skip(site, norm):
                _whole(site, norm)
        for node in list(graph):
            norm = _bare(site, node) if node.graph is graph else None
            if norm is not None and _is_plain(site, norm) and not (site.on_cpu and norm.centred):
                _skip(site, norm)


def add_up(site: Site, value: ir.Value) -> None:
    """Let one Sum compute what several Add compute, or one; in the same order, from left to right."""
    node = site.maker(value, "Add", alone=False)
    dims = site.dims(value)
    if node is None or dims is None or len(dims) != 3:  # of another rank ONNX Runtime makes nothing
        return
    summands = [value]
    while (first := site.maker(summands[0], "Add", alone=summands[0] is not value)) is not None:
        if None in first.inputs:
            return
        summands[:1] = [x for x in first.inputs if x is not None]
    for index, summand in enumerate(summands[1:], 1):
        inner = site.maker(summand, "Add")
        if inner is not None and None not in inner.inputs:
            summands[index : index + 1] = [x for x in inner.inputs if x is not None]
            break
    if any(x.producer() is not None and graphs.is_op(x.producer(), "DequantizeLinear") for x in summands):
        return
    made = site.add(node, "Sum", summands, value)
    reason = site.replace(value, made)
    if reason:
        site.skip(node, reason)
    else:
        site.fused["Sum"] += 1


def _is_plain(site: Site, norm: _Norm) -> bool:
    """Tell whether gamma and beta are vectors as wide as the rows, which do not depend on what is normalized."""
    dims = site.dims(norm.input)
    vectors = [value for value in (norm.gamma, norm.beta) if value is not None]
    return (
        dims is not None
        and site.is_float(norm.input, norm.output, *vectors)
        and all(site.dims(x) == dims[-1:] and (x.producer() is None or graphs.constant(x)) for x in vectors)
    )


def _standard(site: Site, node: ir.Node) -> _Norm | None:
    """Return what a LayerNormalization or RMSNormalization does, if only its first output is wanted."""
    if not graphs.is_op(node, "LayerNormalization", "RMSNormalization") or graphs.has_parameters(node):
        return None
    source, gamma = node.inputs[:2]
    rank = len(site.dims(source) or ())
    axis, epsilon, stash = (node.attributes.get(name) for name in ("axis", "epsilon", "stash_type"))
    if source is None or gamma is None or (axis is not None and axis.as_int() not in (-1, rank - 1)):
        return None
    if (stash is not None and stash.as_int() != 1) or any(map(graphs.is_needed, node.outputs[1:])):
        return None
    beta = node.inputs[2] if len(node.inputs) > 2 else None
    centred = node.op_type == "LayerNormalization"
    return _Norm(source, gamma, beta, epsilon.as_float() if epsilon else 1e-5, centred, node.outputs[0], False)


def _spelled(site: Site, node: ir.Node) -> _Norm | None:
    """Return the normalization whose last operator, the product with gamma, is this node; beta is added to it."""
    found = site.either(node, "Mul", "Div") if graphs.is_op(node, "Mul") else None
    inner = _normalized(site, found[0]) if found is not None else None
    if found is None or inner is None:
        return None
    source, epsilon, centred = inner
    gamma, beta, output = found[1], None, node.outputs[0]
    user = site.only_user(output)
    if centred and user is not None and graphs.is_op(user, "Add"):
        other = user.inputs[1] if user.inputs[0] is output else user.inputs[0]
        if same(site.dims(other), site.dims(gamma)):
            beta, output = other, user.outputs[0]
    return _Norm(source, gamma, beta, epsilon, centred, output, True)


def _bare(site: Site, node: ir.Node) -> _Norm | None:
    """Return the normalization that ends in this node without a gamma, which went into the weights after it."""
    inner = _normalized(site, node) if graphs.is_op(node, "Mul", "Div") else None
    return _Norm(inner[0], None, None, *inner[1:], node.outputs[0], True) if inner is not None else None


def _normalized(site: Site, node: ir.Node) -> tuple[ir.Value, float, bool] | None:
    """Return what a quotient normalizes, the epsilon, and whether the mean is taken off."""
    value, root = _ratio(site, node)
    sums = site.maker(root.inputs[0], "Add") if root is not None else None
    if value is None or sums is None:
        return None
    epsilon = next((number for number in map(site.number, sums.inputs) if number is not None), None)
    mean = next((made for made in (site.maker(x, "ReduceMean") for x in sums.inputs) if made is not None), None)
    if epsilon is None or mean is None or not _over_last(site, mean) or _square(site, mean.inputs[0]) is not value:
        return None
    source = _centred(site, value)
    return source or value, epsilon, source is not None


def _ratio(site: Site, node: ir.Node) -> tuple[ir.Value | None, ir.Node | None]:
    """Return x and the Sqrt in x / Sqrt, x * Reciprocal(Sqrt) or x * (1 / Sqrt)."""
    if node.op_type == "Div":
        return node.inputs[0], site.maker(node.inputs[1], "Sqrt")
    found = site.either(node, "Reciprocal", "Div")
    if found is None:
        return None, None
    inverse, x = found
    if inverse.op_type == "Div" and site.number(inverse.inputs[0]) != 1:
        return None, None
    return x, site.maker(inverse.inputs[-1], "Sqrt")


def _square(site: Site, value: ir.Value | None) -> ir.Value | None:
    """Return x where a value is x^2."""
    node = site.maker(value, "Pow", "Mul")
    if node is None:
        return None
    if node.op_type == "Mul":
        return node.inputs[0] if node.inputs[0] is node.inputs[1] else None
    return node.inputs[0] if site.number(node.inputs[1]) == 2 else None


def _centred(site: Site, value: ir.Value) -> ir.Value | None:
    """Return x where a value is x - mean(x)."""
    node = site.maker(value, "Sub", alone=False)
    mean = site.maker(node.inputs[1], "ReduceMean", alone=False) if node is not None else None
    if node is None or mean is None or mean.inputs[0] is not node.inputs[0] or not _over_last(site, mean):
        return None
    return node.inputs[0]


def _over_last(site: Site, mean: ir.Node) -> bool:
    """Tell whether a ReduceMean is over the last axis, which it keeps."""
    rank = len(site.dims(mean.inputs[0]) or ())
    keep, attribute = mean.attributes.get("keepdims"), mean.attributes.get("axes")
    given = mean.inputs[1] if len(mean.inputs) > 1 else None
    axes = tuple(attribute.as_ints()) if attribute is not None else site.elements(given) if given is not None else None
    return bool(rank) and axes in ((-1,), (rank - 1,)) and (keep is None or keep.as_int() == 1)


def _skip(site: Site, norm: _Norm) -> bool:
    """Make one operator of a sum and its normalization; the sum goes on being used from there."""
    operator = "SkipLayerNormalization" if norm.centred else "SkipSimplifiedLayerNormalization"
    node = site.maker(norm.input, "Add", alone=False)
    if node is None or not site.has(operator) or (norm.beta is not None and not norm.centred):
        return False
    summands = _summands(site, node)
    if summands is None:
        return False
    anchor, dtype, dims = norm.output.producer(), site.dtype(norm.input), site.dims(norm.input)
    assert anchor is not None
    assert dtype is not None
    assert dims is not None
    gamma = norm.gamma
    if gamma is None:
        if not isinstance(dims[-1], int):
            return False
        gamma = site.constant(anchor, np.ones(dims[-1], dtype.numpy()), "ones")
    inputs = [*summands[:2], gamma, *((norm.beta,) if norm.centred else ()), summands[2]]
    made = site.add(anchor, operator, inputs, norm.output, domain=MICROSOFT, outputs=4, epsilon=norm.epsilon)
    reason = site.replace(norm.output, made)
    if reason:
        site.skip(anchor, reason)
        return False
    fused = made.producer()
    assert fused is not None
    if graphs.is_needed(norm.input):
        total = fused.outputs[3]
        site.describe(total, norm.input)
        reason = site.replace(norm.input, total)
        if reason:
            site.skip(node, reason)
        for output in fused.outputs[1:3]:
            output.name = ""
    if not graphs.is_needed(fused.outputs[3]):
        fused.resize_outputs(1)
    site.fused[operator] += 1
    return True


def _summands(site: Site, node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value | None] | None:
    """Return input, skip and bias of a sum that is normalized.

    The skip may lack the batch or have one sample for all; the bias is a constant added to either side before.
    """
    dims = site.dims(node.outputs[0])
    if dims is None or len(dims) not in (2, 3) or None in dims:
        return None
    one, two = node.inputs if site.dims(node.inputs[0]) == dims else node.inputs[::-1]
    bias = None
    for value in (one, two):
        inner = site.maker(value, "Add")
        if inner is None:
            continue
        for vector, rest in (inner.inputs, inner.inputs[::-1]):
            if site.dims(vector) == dims[-1:] and graphs.constant(vector) is not None and site.dims(rest) == dims:
                one, two, bias = (rest, two, vector) if value is one else (one, rest, vector)
                break
        if bias is not None:
            break
    allowed = [dims, (1, *dims[1:]), dims[1:]] if len(dims) == 3 else [dims]
    if one is None or two is None or site.dims(one) != dims or site.dims(two) not in allowed:
        return None
    return one, two, bias


def _whole(site: Site, norm: _Norm) -> bool:
    """Make the standard operator of a normalization that is spelled out, where the opset has it."""
    since, operator = (17, "LayerNormalization") if norm.centred else (23, "RMSNormalization")
    if not norm.spelled or site.opset() < since or (norm.beta is not None and not norm.centred):
        return False
    anchor = norm.output.producer()
    assert anchor is not None
    made = site.add(anchor, operator, [norm.input, norm.gamma, norm.beta], norm.output, axis=-1, epsilon=norm.epsilon)
    reason = site.replace(norm.output, made)
    if reason:
        site.skip(anchor, reason)
        return False
    site.fused[operator] += 1
    return True
