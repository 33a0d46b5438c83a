"""Normalization by mean and variance, or by the mean square, over some axes

    d = x - mean(x)    v = mean(d^2), or mean(x^2) - mean(x)^2    r = 1 / sqrt(v + epsilon)
    y = d r gamma + beta, or x (r gamma) + (beta - mean(x) (r gamma))
    y = x gamma / sqrt(mean(x^2) + epsilon)

Over the last axes this is LayerNormalization (Ba et al. 2016, arXiv:1607.06450) or, without the mean, RMSNormalization
(Zhang and Sennrich 2019, arXiv:1910.07467); over all axes but the first two, with gamma and beta per channel, it is
InstanceNormalization (Ulyanov et al. 2016, arXiv:1607.08022). An InstanceNormalization of groups of channels, reshaped
before and after, is GroupNormalization (Wu and He 2018, arXiv:1803.08494). With gamma or beta of another shape the normalization alone
is replaced, with a gamma of ones. A mean may be a sum divided by the size. A Cast to single precision before, and back
after, is what LayerNormalization and RMSNormalization do by themselves (stash_type).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from graphopt import graphs
from graphopt.inference import Dim
from graphopt.passes.structural._informed import dtype
from graphopt.passes.structural._recompose.site import Nodes, Site, product

_LARGEST = 1 << 12
"""Largest gamma of ones, in elements, that is worth its bytes."""


@dataclasses.dataclass(frozen=True)
class _Spread:
    """The variance of x, or its mean square, which has no mean.

    Attributes:
        x: a value.
        axes: over what, sorted.
        mean: of x.
        inner: the operators that compute all this.
    """

    x: ir.Value
    axes: tuple[int, ...]
    mean: ir.Value | None
    inner: Nodes


@dataclasses.dataclass(frozen=True)
class _Norm:
    """A normalization.

    Attributes:
        x: what is normalized.
        spread: by what.
        epsilon: added to the variance.
        top: the operator that computes the result.
        inner: the other operators.
        gamma, beta: what is in it already; None for 1 and 0.
    """

    x: ir.Value
    spread: _Spread
    epsilon: float
    top: ir.Node
    inner: Nodes
    gamma: ir.Value | None = None
    beta: ir.Value | None = None

    def then(self, node: ir.Node, gamma: ir.Value | None = None, beta: ir.Value | None = None) -> _Norm:
        """Return the normalization with the operator after it taken in, which adds gamma or beta."""
        inner = self.inner | {self.top}
        return dataclasses.replace(self, top=node, inner=inner, gamma=gamma or self.gamma, beta=beta or self.beta)


def recompose(site: Site, root: ir.Node) -> bool:
    """Replace the normalization around a square root."""
    exponent = 0.5 if root.op_type == "Sqrt" else site.scalar(root.inputs[1])
    plus = site.maker(root.inputs[0], "Add") if exponent in (0.5, -0.5) else None
    pair = site.number_and_other(plus) if plus is not None else None
    spread = _spread(site, pair[1]) if pair is not None and pair[0] >= 0 else None
    if plus is None or pair is None or spread is None:
        return False
    spread = dataclasses.replace(spread, inner=spread.inner | {plus, root})
    for norm in _normalized(site, root, spread, pair[0], inverse=exponent == -0.5):
        cast = _without_casts(site, norm)
        if (cast is not None and _write(site, cast)) or _write(site, norm):
            return True
    return False


def group(site: Site, node: ir.Node) -> bool:
    """Replace InstanceNormalization of [batch, groups, elements], without gamma and beta, between two Reshapes."""
    before, after = site.maker(node.inputs[0], "Reshape"), graphs.sole_use(node.outputs[0])
    x = before.inputs[0] if before is not None else None
    if before is None or x is None or not graphs.is_op(after, "Reshape") or after is None:
        return False
    dims, grouped = site.dims(x), site.dims(node.inputs[0])
    fills = [graphs.array(value) for value in node.inputs[1:3]]
    if any(array is None or np.any(array != fill) for array, fill in zip(fills, (1, 0), strict=True)):
        return False
    if dims is None or grouped is None or None in dims or site.dims(after.outputs[0]) != dims:
        return False
    if len(dims) < 3 or len(grouped) != 3 or grouped[0] != dims[0]:
        return False
    channels, groups = dims[1], grouped[1]
    if not isinstance(channels, int) or not isinstance(groups, int) or channels % groups:
        return False
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    norm = _Norm(x, _Spread(x, (), None, frozenset()), epsilon, after, frozenset({node, before}))
    whole = _absorbed(site, norm, (channels,), len(dims) - 2, shift=True)
    if whole is None or not site.allows(whole.top, whole.inner, "GroupNormalization", x):
        return False
    parameters = [
        _parameter(site, whole, value, (channels,), fill) for value, fill in ((whole.gamma, 1), (whole.beta, 0))
    ]
    return site.replace(
        whole.top, whole.inner, "GroupNormalization", [x, *parameters], epsilon=epsilon, num_groups=groups
    )


def _spread(site: Site, value: ir.Value) -> _Spread | None:
    """Return of what a value is the variance or the mean square."""
    floor = site.maker(value, "Max", "Relu")
    if floor is not None:
        pair = site.number_and_other(floor) if floor.op_type == "Max" else (0.0, floor.inputs[0])
        inner = _spread(site, pair[1]) if pair is not None and pair[0] == 0 and pair[1] is not None else None
        return None if inner is None else dataclasses.replace(inner, inner=inner.inner | {floor})
    difference = site.maker(value, "Sub")
    if difference is not None:
        square = site.square(difference.inputs[1])
        moment, mean = _mean(site, difference.inputs[0]), _mean(site, square[0]) if square is not None else None
        squared = site.square(moment[0]) if moment is not None else None
        if square is None or moment is None or mean is None or squared is None:
            return None
        if squared[0] is not mean[0] or moment[1] != mean[1]:
            return None
        nodes = moment[2] | mean[2] | {difference, square[1], squared[1]}
        return _Spread(mean[0], mean[1], square[0], nodes)
    moment = _mean(site, value)
    squared = site.square(moment[0]) if moment is not None else None
    if moment is None or squared is None:
        return None
    nodes = moment[2] | {squared[1]}
    difference = site.maker(squared[0], "Sub")
    mean = _mean(site, difference.inputs[1]) if difference is not None else None
    if difference is not None and mean is not None and mean[0] is difference.inputs[0] and mean[1] == moment[1]:
        return _Spread(mean[0], mean[1], difference.inputs[1], nodes | mean[2] | {difference})
    return _Spread(squared[0], moment[1], None, nodes)


def _mean(site: Site, value: ir.Value | None) -> tuple[ir.Value, tuple[int, ...], Nodes] | None:
    """Return of what a value is the mean, over which axes, and the operators that compute it."""
    node = site.maker(value, "ReduceMean", "GlobalAveragePool", "Mul", "Div")
    if node is None:
        return None
    nodes, reduction = frozenset({node}), node
    if node.op_type in ("Mul", "Div"):
        pair = site.number_and_other(node)
        summed = site.maker(pair[1], "ReduceSum") if pair is not None else None
        count = site.count(summed) if summed is not None else None
        if pair is None or summed is None or not count:
            return None
        if node.op_type == "Div" and (pair[0] != count or node.inputs[0] is not pair[1]):
            return None
        if node.op_type == "Mul" and not math.isclose(pair[0] * count, 1, rel_tol=1e-6):
            return None
        nodes, reduction = frozenset({node, summed}), summed
    axes, source = site.axes(reduction), reduction.inputs[0]
    if axes is None or source is None or reduction.attributes.get_int("keepdims", 1) != 1:
        return None
    return source, axes, nodes


def _normalized(site: Site, root: ir.Node, spread: _Spread, epsilon: float, *, inverse: bool) -> Iterator[_Norm]:
    """Yield what a square root, or the inverse of one, is used for if that is normalization."""
    value = root.outputs[0]
    base = _Norm(spread.x, spread, epsilon, root, spread.inner - {root})
    if not inverse:
        node = graphs.sole_use(value)
        if not graphs.is_op(node, "Div", "Reciprocal") or node is None or node.inputs[-1] is not value:
            return
        numerator = node.inputs[0] if node.op_type == "Div" else None
        centred = _centred(site, numerator, spread) if numerator is not None else None
        if centred is not None:
            yield dataclasses.replace(base.then(node), inner=base.inner | {root} | centred)
            return
        one = numerator is None or site.scalar(numerator) == 1
        base = base.then(node, gamma=None if one else numerator)
        value = node.outputs[0]
    users = [use.node for use in value.uses()]
    if len(users) == 1 and graphs.is_op(users[0], "Mul") and base.gamma is None and not value.is_graph_output():
        other = _other(users[0], value)
        if other is not None and _centred(site, other, spread) is None:
            base, value = base.then(users[0], gamma=other), users[0].outputs[0]
            users = [use.node for use in value.uses()]
    if not all(graphs.is_op(node, "Mul") for node in users) or value.is_graph_output():
        return
    if len(users) == 1:
        centred = _centred(site, _other(users[0], value), spread)
        if centred is not None:
            norm = base.then(users[0])
            yield dataclasses.replace(norm, inner=norm.inner | centred)
    elif len(users) == 2 and spread.mean is not None:
        yield from _distributed(site, base, value, users)


def _distributed(site: Site, base: _Norm, scale: ir.Value, users: list[ir.Node]) -> Iterator[_Norm]:
    """Yield the normalization in x * scale + (beta - mean * scale), or x * scale - mean * scale."""
    spread = base.spread
    for one, two in (users, users[::-1]):
        mean = _mean(site, _other(two, scale))
        if _other(one, scale) is not spread.x or mean is None or mean[:2] != (spread.x, spread.axes):
            continue
        inner = base.inner | {base.top, one, two} | mean[2]
        node = graphs.sole_use(two.outputs[0])
        if not graphs.is_op(node, "Sub") or node is None or node.inputs[1] is not two.outputs[0]:
            continue
        if node.inputs[0] is one.outputs[0]:
            yield dataclasses.replace(base, top=node, inner=inner)
            continue
        top = graphs.sole_use(node.outputs[0])
        if graphs.is_op(top, "Add") and top is not None and one.outputs[0] in top.inputs:
            yield dataclasses.replace(base, top=top, inner=inner | {node}, beta=node.inputs[0])


def _centred(site: Site, value: ir.Value | None, spread: _Spread) -> Nodes | None:
    """Return the operators that compute x - mean(x), or x where there is no mean, if a value is that."""
    if spread.mean is None:
        return frozenset() if value is spread.x else None
    node = site.maker(value, "Sub")
    mean = _mean(site, node.inputs[1]) if node is not None and node.inputs[0] is spread.x else None
    return mean[2] | {node} if node is not None and mean is not None and mean[:2] == (spread.x, spread.axes) else None


def _without_casts(site: Site, norm: _Norm) -> _Norm | None:
    """Return the normalization of what was cast to single precision, if the result is cast back."""
    before, after = site.maker(norm.x, "Cast"), graphs.sole_use(norm.top.outputs[0])
    if (
        before is None
        or not graphs.is_op(after, "Cast")
        or after is None
        or norm.gamma is not None
        or norm.beta is not None
    ):
        return None
    source = before.inputs[0]
    wide, narrow = dtype(site.facts, norm.x), dtype(site.facts, source)
    if source is None or wide != ir.DataType.FLOAT or narrow is None or after.attributes.get_int("to", 0) != narrow:
        return None
    cast = norm.then(after)
    return dataclasses.replace(cast, x=source, inner=cast.inner | {before})


def _write(site: Site, norm: _Norm) -> bool:
    """Write the operator, with as much of what follows as it can take in."""
    dims, axes = site.dims(norm.x), norm.spread.axes
    if dims is None:
        return False
    centred, cast = norm.spread.mean is not None, norm.x is not norm.spread.x
    last = planes = None
    if axes == tuple(range(axes[0], len(dims))):
        last = _absorbed(site, norm, dims[axes[0] :], 0, shift=centred)
    if centred and not cast and len(dims) > 2 and axes == tuple(range(2, len(dims))):
        planes = _absorbed(site, norm, dims[1:2], len(axes), shift=True)
    if last is not None and (len(axes) == 1 or last.gamma is not None) and _write_last(site, last, dims[axes[0] :]):
        return True
    if planes is not None and _write_instance(site, planes, dims[1]):
        return True
    return last is not None and _write_last(site, last, dims[axes[0] :])


def _absorbed(site: Site, norm: _Norm, shape: tuple[Dim, ...], after: int, *, shift: bool) -> _Norm | None:
    """Return a normalization with the product by gamma and the sum with beta after it; None if what it has does not fit.

    Args:
        site, norm: the normalization.
        shape: of gamma and beta.
        after: how many axes come after these.
        shift: the operator has a beta.
    """
    fits = all(value is None or _fits(site, value, shape, after) for value in (norm.gamma, norm.beta))
    if not fits or (norm.beta is not None and not shift):
        return None
    for op_type, role in (("Mul", "gamma"), ("Add", "beta")):
        value, node = norm.top.outputs[0], graphs.sole_use(norm.top.outputs[0])
        if norm.beta is not None or not graphs.is_op(node, op_type) or node is None or node.graph is not norm.top.graph:
            continue
        if (role == "gamma" and norm.gamma is not None) or (role == "beta" and not shift):
            continue
        other = _other(node, value)
        if other is not None and _fits(site, other, shape, after):
            norm = norm.then(node, gamma=other) if role == "gamma" else norm.then(node, beta=other)
    return norm


def _fits(site: Site, value: ir.Value, shape: tuple[Dim, ...], after: int) -> bool:
    """Tell whether a value has a shape followed by `after` ones, or is a constant with more ones before that."""
    dims = site.dims(value)
    if dims is None or None in shape:
        return False
    if dims == shape and not after:
        return True
    wanted = (*shape, *[1] * after)
    ones = len(dims) - len(wanted)
    return graphs.constant(value) is not None and dims == ((1,) * ones + wanted if ones >= 0 else None)


def _write_instance(site: Site, norm: _Norm, channels: Dim) -> bool:
    if not isinstance(channels, int) or not site.allows(norm.top, norm.inner, "InstanceNormalization", norm.x):
        return False
    gamma = _parameter(site, norm, norm.gamma, (channels,), 1)
    beta = _parameter(site, norm, norm.beta, (channels,), 0)
    return site.replace(norm.top, norm.inner, "InstanceNormalization", [norm.x, gamma, beta], epsilon=norm.epsilon)


def _write_last(site: Site, norm: _Norm, shape: tuple[Dim, ...]) -> bool:
    op_type = "RMSNormalization" if norm.spread.mean is None else "LayerNormalization"
    if not site.allows(norm.top, norm.inner, op_type, norm.x):
        return False
    count = product(shape)
    if norm.gamma is None and (count is None or count > _LARGEST):
        site.skipped[graphs.label(norm.top)] = f"{op_type} needs a gamma, whose size is not known or too large"
        return False
    inputs = [norm.x, _parameter(site, norm, norm.gamma, shape, 1)]
    if norm.beta is not None:
        inputs.append(_parameter(site, norm, norm.beta, shape, 0))
    return site.replace(norm.top, norm.inner, op_type, inputs, axis=-len(shape), epsilon=norm.epsilon)


def _parameter(site: Site, norm: _Norm, value: ir.Value | None, shape: tuple[Dim, ...], fill: int) -> ir.Value:
    """Return gamma or beta in the shape that the operator wants."""
    if value is not None and site.dims(value) == shape:
        return value
    sizes, type_ = [size for size in shape if isinstance(size, int)], dtype(site.facts, norm.x)
    constant = graphs.constant(value)
    assert len(sizes) == len(shape)
    assert type_ is not None
    array = np.full(sizes, fill, type_.numpy()) if constant is None else constant.numpy().reshape(sizes)
    return site.constant(norm.top, array, "gamma" if fill else "beta")


def _other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """Return the other operand of a binary operator."""
    return next((other for other in node.inputs if other is not value), None)
