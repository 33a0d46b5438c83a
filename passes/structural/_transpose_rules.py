"""What operators must be told to compute the same from transposed inputs

A rule answers, for a node one of whose values v is to be had as v' with v = Transpose(v', perm): which layouts its
other values take, and which attributes and constant inputs must change. All of it only renames axes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from graphopt import graphs
from graphopt.passes.structural._transpose_layout import (
    Dims,
    Perm,
    blocks,
    canonical,
    extend,
    inverse,
    is_identity,
    keeps_order,
    permuted,
    restrict,
    suffix,
    target,
    through,
)

_SHAREABLE = 1024
"""A constant that others use too is copied into another layout if it has at most this many elements."""


@dataclasses.dataclass(frozen=True)
class Flip:
    """How a node computes with other layouts.

    Attributes:
        inputs: the layouts of inputs that change; a constant of lower rank gets leading axes of size 1.
        outputs: the layouts of outputs that change.
        attributes: that take other values; None for one to be dropped.
        constants: inputs that become constants.
        op_type: the operator that does it, if another one; attributes and inputs but the first are then only those here.
        gathers: for a Shape whose elements are only picked: the Gather nodes and which elements they must pick.
    """

    inputs: Mapping[int, Perm] = dataclasses.field(default_factory=dict)
    outputs: Mapping[int, Perm] = dataclasses.field(default_factory=dict)
    attributes: Mapping[str, int | list[int] | None] = dataclasses.field(default_factory=dict)
    constants: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)
    op_type: str = ""
    gathers: tuple[tuple[ir.Node, np.ndarray], ...] = ()


@dataclasses.dataclass(frozen=True)
class Site:
    """A node, and what is known about its surroundings."""

    node: ir.Node
    opset: int
    shapes: Callable[[ir.Value], Dims | None]

    def input(self, index: int) -> ir.Value | None:
        """Return an input, or None where it is left out."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def dims(self, index: int = 0) -> Dims | None:
        """Return the shape of an input."""
        value = self.input(index)
        return None if value is None else self.shapes(value)

    def rank(self, index: int = 0) -> int | None:
        """Return the rank of an input."""
        dims = self.dims(index)
        return None if dims is None else len(dims)

    def integer(self, name: str, default: int) -> int:
        """Return an integer attribute."""
        found = self.node.attributes.get(name)
        return default if found is None else found.as_int()

    def given(self, index: int, name: str, since: int) -> np.ndarray | None:
        """Return constant integers that are input `index` from opset `since` on, and attribute `name` before."""
        if self.opset >= since:
            return graphs.array(self.input(index))
        found = self.node.attributes.get(name)
        return None if found is None else np.asarray(found.as_ints(), np.int64)

    def is_left_out(self, index: int, name: str, since: int) -> bool:
        """Tell whether such integers are left to the operator."""
        return self.input(index) is None if self.opset >= since else name not in self.node.attributes


Rule = Callable[[Site, int, Perm], Flip | None]
"""The arguments are the node, which of its values has the layout (~index for an output), and the layout."""


def is_free(value: ir.Value | None) -> bool:
    """Tell whether a value is a constant that can be had in any layout."""
    tensor = graphs.constant(value)
    if value is None or tensor is None or tensor.dtype == ir.DataType.STRING:
        return False
    return len(value.uses()) == 1 or tensor.size <= _SHAREABLE


def flip(site: Site, at: int, perm: Perm) -> Flip | None:
    """Return how a node computes with another layout of one of its values, or None if it cannot.

    Args:
        site: the node.
        at: the index of an input, or ~index of an output.
        perm: the layout of that value.
    """
    node = site.node
    rule = RULES.get(node.op_type)
    if rule is None or node.domain or graphs.has_parameters(node):
        return None
    return rule(site, at, perm)


def transposed(site: Site, at: int, perm: Perm) -> Perm | None:
    """Return the permutation from v' to the output, or from the input to v', of a Transpose next to v; None if unknown."""
    found = site.node.attributes.get("perm")
    if found is not None and found.is_ref():
        return None
    own = tuple(found.as_ints()) if found is not None else tuple(range(len(perm)))[::-1]
    if len(own) != len(perm):
        return None
    return tuple(perm[axis] for axis in own) if at >= 0 else tuple(own[axis] for axis in inverse(perm))


def _broadcast(site: Site, at: int, perm: Perm) -> Flip | None:
    ranks = [site.rank(index) for index in range(len(site.node.inputs))]
    known = [rank for rank in ranks if rank is not None]
    if site.opset < 7 or len(known) < len(ranks):
        return None
    rank = max(known)
    if len(perm) < rank:
        perm = extend(perm, range(rank - len(perm), rank), rank)
    inputs = {}
    for index, value in enumerate(site.node.inputs):
        dims = site.dims(index)
        if dims is None or all(size == 1 for size in dims):
            continue
        part = perm if is_free(value) else suffix(perm, len(dims))
        if part is None:
            return None
        inputs[index] = part
    return Flip(inputs, {0: perm})


def _unary(site: Site, at: int, perm: Perm) -> Flip | None:
    return Flip({0: perm}, {0: perm})


def _single(site: Site, at: int, perm: Perm) -> Flip | None:
    """Operators whose other outputs are of no use, and other inputs scalars."""
    if any(graphs.is_needed(output) for output in site.node.outputs[1:]):
        return None
    return Flip({0: perm}, {0: perm}) if at in (0, ~0) else None


def _axis(default: int) -> Rule:
    """Operators with one axis, whose inputs and outputs all have the same rank, parameters aside."""

    def rule(site: Site, at: int, perm: Perm) -> Flip | None:
        if at > 0:
            return None
        axis = perm[site.integer("axis", default)]
        return Flip({0: perm}, dict.fromkeys(range(len(site.node.outputs)), perm), {"axis": axis})

    return rule


def _softmax(site: Site, at: int, perm: Perm) -> Flip | None:
    if site.opset >= 13:
        return _axis(-1)(site, at, perm)
    last = len(perm) - 1  # below opset 13, all axes from `axis` on are one
    return _unary(site, at, perm) if site.integer("axis", 1) in (last, -1) and perm[last] == last else None


def _concat(site: Site, at: int, perm: Perm) -> Flip | None:
    axis = perm[site.integer("axis", 1)]
    return Flip(dict.fromkeys(range(len(site.node.inputs)), perm), {0: perm}, {"axis": axis})


def _quantize(site: Site, at: int, perm: Perm) -> Flip | None:
    scale = site.dims(1)
    if at > 0 or scale is None or len(scale) > 1 or site.integer("block_size", 0):
        return None
    if not scale or scale == (1,):
        return Flip({0: perm}, {0: perm}, {"axis": None})
    return Flip({0: perm}, {0: perm}, {"axis": perm[site.integer("axis", 1)]}) if site.opset >= 13 else None


def _reduce(since: int) -> Rule:
    """Reductions, whose axes are an input from opset `since` on."""

    def rule(site: Site, at: int, perm: Perm) -> Flip | None:
        if at > 0:
            return None
        keep = site.integer("keepdims", 1)
        if site.is_left_out(1, "axes", since):
            if site.integer("noop_with_empty_axes", 0) or at < 0:
                return None
            return Flip({0: perm}, {0: perm} if keep else {})
        axes = site.given(1, "axes", since)
        if axes is None or not axes.size:
            return None
        return _reduced(perm, at, axes.tolist(), bool(keep), lambda new: _ints(site, 1, "axes", since, new), site)

    return rule


def _arg(site: Site, at: int, perm: Perm) -> Flip | None:
    keep = bool(site.integer("keepdims", 1))
    return _reduced(perm, at, [site.integer("axis", 0)], keep, lambda new: Flip(attributes={"axis": new[0]}), site)


def _reduced(
    perm: Perm, at: int, axes: list[int], keep: bool, told: Callable[[list[int]], Flip], site: Site
) -> Flip | None:
    rank = len(perm) if at >= 0 or keep else len(perm) + len(axes)
    axes = [axis % rank for axis in axes]
    kept = [axis for axis in range(rank) if axis not in axes]
    if keep:
        one = other = perm
    elif at >= 0:
        one, other = perm, restrict(perm, kept)
    else:
        one, other = extend(perm, kept, rank), perm
    return dataclasses.replace(told(sorted(one[axis] for axis in axes)), inputs={0: one}, outputs={0: other})


def _ints(site: Site, index: int, name: str, since: int, new: list[int]) -> Flip:
    """Return the change that gives an operator integers as input `index`, or as attribute before opset `since`."""
    if site.opset >= since:
        return Flip(constants={index: np.array(new, np.int64)})
    return Flip(attributes={name: new})


def _global_pool(reduction: str, since: int) -> Rule:
    def rule(site: Site, at: int, perm: Perm) -> Flip | None:
        if perm[:2] == (0, 1):
            return _unary(site, at, perm)
        told = _ints(site, 1, "axes", since, sorted(perm[2:]))
        return dataclasses.replace(told, inputs={0: perm}, outputs={0: perm}, op_type=reduction)

    return rule


def _leading(first: int) -> Rule:
    """Operators that treat axes from `first` on alike, and those before each in its own way."""

    def rule(site: Site, at: int, perm: Perm) -> Flip | None:
        return _single(site, at, perm) if site.opset >= 9 and is_identity(perm[:first]) else None

    return rule


def _layer_normalization(site: Site, at: int, perm: Perm) -> Flip | None:
    start = site.integer("axis", -1) % len(perm)
    if not all(perm[axis] == axis for axis in range(start, len(perm))):
        return None
    return _single(site, at, perm)


def _slice(site: Site, at: int, perm: Perm) -> Flip | None:
    if at > 0:
        return None
    axes = site.given(3, "axes", 10)
    if site.is_left_out(3, "axes", 10):
        starts = site.given(1, "starts", 10)
        axes = None if starts is None else np.arange(len(starts), dtype=starts.dtype)
    if axes is None:
        return None
    new = np.array(perm, axes.dtype)[axes]
    if site.opset >= 10:  # all bounds must have the same type
        return Flip({0: perm}, {0: perm}, constants={3: new})
    return Flip({0: perm}, {0: perm}, {"axes": new.tolist()})


def _pad(site: Site, at: int, perm: Perm) -> Flip | None:
    if at > 0:
        return None
    if site.input(3) is not None:
        axes = graphs.array(site.input(3))
        told = None if axes is None else Flip(constants={3: np.array([perm[a] for a in axes], axes.dtype)})
    else:
        pads = site.given(1, "pads", 11)
        if pads is None or len(pads) != 2 * len(perm):
            return None
        order = inverse(perm)
        told = _ints(site, 1, "pads", 11, [int(half[axis]) for half in np.split(pads, 2) for axis in order])
    return None if told is None else dataclasses.replace(told, inputs={0: perm}, outputs={0: perm})


def _per_axis(site: Site, at: int, perm: Perm) -> Flip | None:
    """Expand and Tile to constant sizes of the same rank."""
    sizes, rank = graphs.array(site.input(1)), site.rank()
    if at > 0 or sizes is None or len(sizes) != len(perm) or rank != len(perm):
        return None
    return Flip({0: perm}, {0: perm}, constants={1: sizes[list(inverse(perm))]})


def _resize(site: Site, at: int, perm: Perm) -> Flip | None:
    """Nearest neighbours in any layout, others where only the last two axes of four grow, which runtimes know."""
    if at > 0 or site.opset < 11:
        return None
    order = list(inverse(perm))
    constants = {}
    changed = set()
    axes = site.node.attributes.get("axes")
    for index in (1, 2, 3):
        value = site.input(index)
        array = graphs.array(value)
        if value is None or (array is not None and not array.size):
            continue
        if array is None:
            return None
        if index > 1:
            changed = set(axes.as_ints() if axes else range(len(perm)))
            dims = site.dims()
            if axes is None:
                changed = {a for a in changed if array[a] != (1 if index == 2 else dims[a] if dims else None)}
        if axes is None:
            halves = np.split(array, 2) if index == 1 else [array]
            constants[index] = np.concatenate([half[order] for half in halves])
    moved = {perm[axis] for axis in changed}
    mode = site.node.attributes.get("mode")
    nearest = mode is None or mode.as_string() == "nearest"
    if not nearest and not (len(perm) == 4 and moved <= {2, 3}):
        return None
    attributes = {} if axes is None else {"axes": [perm[axis] for axis in axes.as_ints()]}
    return Flip({0: perm}, {0: perm}, attributes, constants)


def _cumsum(site: Site, at: int, perm: Perm) -> Flip | None:
    axis = graphs.array(site.input(1))
    if at > 0 or axis is None or axis.size != 1:
        return None
    return Flip({0: perm}, {0: perm}, constants={1: np.full_like(axis, perm[int(axis.item())])})


def _gather(site: Site, at: int, perm: Perm) -> Flip | None:
    """Gather puts the axes of the indices in the place of one axis of the data."""
    width = site.rank(1)
    if at > 0 or width is None:
        return None
    rank = len(perm) if at == 0 else len(perm) - width + 1
    axis = site.integer("axis", 0) % rank
    kept = [a for a in range(rank) if a != axis]
    there = [a if a < axis else a + width - 1 for a in kept]
    if at == 0:
        data = perm
        order = sorted(range(rank), key=perm.__getitem__)
        sequence = [
            a if a < axis else a + width - 1 if a > axis else axis + i
            for a in order
            for i in range(width if a == axis else 1)
        ]
        result = inverse(tuple(sequence))
    else:
        result = perm
        block = perm[axis : axis + width]
        if any(b != block[0] + i for i, b in enumerate(block)):
            return None
        places = sorted((perm[new], a) for new, a in zip(there, kept, strict=True))
        sequence = [a for _, a in places]
        before = sum(place < block[0] for place, _ in places) if width else axis
        sequence.insert(before, axis)
        data = inverse(tuple(sequence))
    return Flip({0: data}, {0: result}, {"axis": data[axis]})


def _squeeze(site: Site, at: int, perm: Perm) -> Flip | None:
    dims = site.dims()
    if site.is_left_out(1, "axes", 13):
        axes = None if dims is None or None in dims else [axis for axis, size in enumerate(dims) if size == 1]
        if axes is None or any(isinstance(size, str) for size in dims or ()):
            return None
    else:
        array = site.given(1, "axes", 13)
        axes = None if array is None else array.tolist()
    if at > 0 or axes is None:
        return None
    rank = len(perm) if at == 0 else len(perm) + len(axes)
    axes = [axis % rank for axis in axes]
    kept = [axis for axis in range(rank) if axis not in axes]
    if at == 0:
        one, other = perm, restrict(perm, kept)
        if not is_identity(canonical(other, site.shapes(site.node.outputs[0]))) and (
            reshaped := _in_order(site, at, perm)
        ):
            return reshaped
    else:
        one, other = extend(perm, kept, rank), perm
        if reshaped := _in_order(site, at, perm):
            return reshaped
    told = _ints(site, 1, "axes", 13, sorted(one[axis] for axis in axes))
    return dataclasses.replace(told, inputs={0: one}, outputs={0: other})


def _unsqueeze(site: Site, at: int, perm: Perm) -> Flip | None:
    array = site.given(1, "axes", 13)
    if at > 0 or array is None:
        return None
    rank = len(perm) + array.size if at == 0 else len(perm)
    axes = [axis % rank for axis in array.tolist()]
    kept = [axis for axis in range(rank) if axis not in axes]
    if at == 0:
        one, other = perm, extend(perm, kept, rank)
        if reshaped := _in_order(site, at, perm):
            return reshaped
    else:
        one, other = restrict(perm, kept), perm
        if not is_identity(canonical(one, site.dims())) and (reshaped := _in_order(site, at, perm)):
            return reshaped
    told = _ints(site, 1, "axes", 13, sorted(other[axis] for axis in axes))
    return dataclasses.replace(told, inputs={0: one}, outputs={0: other})


def _in_order(site: Site, at: int, perm: Perm) -> Flip | None:
    """Where only axes of size 1 move on one side, a Reshape takes care of that, and the other side stays as it is."""
    before, after = site.dims(), site.shapes(site.node.outputs[0])
    if site.opset < 5 or after is None or (at >= 0 and before is None):
        return None
    if not keeps_order(perm, before if at >= 0 else after):
        return None
    result, source = (after, permuted(before, inverse(perm))) if at >= 0 else (permuted(after, inverse(perm)), before)
    sizes = target(result or (), source)
    if sizes is None:
        return None
    told = {1: np.array(sizes, np.int64)}
    if at >= 0:
        return Flip({0: perm}, {}, constants=told, op_type="Reshape")
    return Flip({}, {0: perm}, constants=told, op_type="Reshape")


def _reshape(site: Site, at: int, perm: Perm) -> Flip | None:
    """A Reshape that splits and joins axes does so wherever those axes are, if they stay together."""
    if at > 0 or site.opset < 5:
        return None
    if simple := _in_order(site, at, perm):
        return simple
    before, after = site.dims(), site.shapes(site.node.outputs[0])
    if before is None or after is None:
        return None
    pairs = blocks(before, after)
    if pairs is None:
        return None
    found = through(perm, pairs if at >= 0 else [(there, here) for here, there in pairs])
    if found is None:
        return None
    one, other = (perm, found) if at >= 0 else (found, perm)
    sizes = target(permuted(after, inverse(other)) or (), permuted(before, inverse(one)))
    if sizes is None:
        return None
    return Flip({0: one}, {0: other}, constants={1: np.array(sizes, np.int64)}, op_type="Reshape")


def _shape(site: Site, at: int, perm: Perm) -> Flip | None:
    """A Shape whose elements are only picked, by constant indices."""
    output = site.node.outputs[0]
    if at != 0 or output.is_graph_output() or {"start", "end"} & set(site.node.attributes):
        return None
    gathers = []
    for user, index in output.uses():
        picked = graphs.array(user.inputs[1]) if graphs.is_op(user, "Gather") and index == 0 else None
        if picked is None or user.graph is not site.node.graph or graphs.has_parameters(user):
            return None
        gathers.append((user, np.array(perm, picked.dtype)[picked]))
    return Flip({0: perm}, gathers=tuple(gathers))


def _matmul(site: Site, at: int, perm: Perm) -> Flip | None:
    """Axes of the batch, with those of the rows where the second operand is a matrix, may be in any order."""
    one, two = site.rank(0), site.rank(1)
    if one is None or two is None or min(one, two) < 2:
        return None
    rank = max(one, two)
    if len(perm) != rank:
        return None
    if two == 2:
        return Flip({0: perm}, {0: perm}) if at != 1 and perm[-1] == rank - 1 else None
    if perm[-2:] != (rank - 2, rank - 1):
        return None
    inputs = {}
    for index, own in enumerate((one, two)):
        if own == rank:
            inputs[index] = perm
        elif own > 2:
            return None
    return Flip(inputs, {0: perm})


def _gemm(site: Site, at: int, perm: Perm) -> Flip | None:
    if at not in (0, 1) or perm != (1, 0):
        return None
    name = ("transA", "transB")[at]
    return Flip({at: perm}, attributes={name: 1 - site.integer(name, 0)})


# fmt: off
RULES: dict[str, Rule] = {
    **dict.fromkeys(
        [
            "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil", "Celu", "Cos",
            "Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN",
            "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid",
            "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
        ],
        _unary,
    ),
    **dict.fromkeys(["CastLike", "Clip"], _single),
    **dict.fromkeys(
        [
            "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater",
            "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub",
            "Sum", "Where", "Xor",
        ],
        _broadcast,
    ),
    **dict.fromkeys(
        [
            "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
            "ReduceProd", "ReduceSumSquare",
        ],
        _reduce(18),
    ),
    "ReduceSum": _reduce(13),
    "ArgMax": _arg,
    "ArgMin": _arg,
    "BatchNormalization": _leading(2),
    "Concat": _concat,
    "CumSum": _cumsum,
    "DequantizeLinear": _quantize,
    "Expand": _per_axis,
    "Flatten": _reshape,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool("ReduceMean", 18),
    "GlobalMaxPool": _global_pool("ReduceMax", 18),
    "Hardmax": _softmax,
    "InstanceNormalization": _leading(2),
    "LayerNormalization": _layer_normalization,
    "LogSoftmax": _softmax,
    "LpNormalization": _axis(-1),
    "MatMul": _matmul,
    "Pad": _pad,
    "QuantizeLinear": _quantize,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _axis(0),
    "Squeeze": _squeeze,
    "Tile": _per_axis,
    "TopK": _axis(-1),
    "Unsqueeze": _unsqueeze,
}
# fmt: on
