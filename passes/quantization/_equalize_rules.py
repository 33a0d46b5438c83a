"""How operators relate the factors per channel of what they read and compute.

A rule takes the exponents of a node's inputs, says what they must satisfy, and sets those of the outputs. Where it returns a
reason instead, everything the node reads stays as it is. Factors are positive, so that max(s x, s y) = s max(x, y) and the
like hold, and powers of two, so that nothing is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from graphopt import graphs
from graphopt.inference import Dim
from graphopt.passes.quantization._equalize_channels import Channels, Layer, Made, Read, Scaled

Rule = Callable[[Channels, ir.Node], str | None]

_LIMIT = 1 << 30
"""Constants of more elements are left alone."""

_UNKNOWN = "the sizes of what it reads or computes are not known"
_MICROSOFT = "com.microsoft"


def analyse(model: ir.Model) -> Channels:
    """Return the exponents of a model's main graph; nothing is changed."""
    channels = Channels(model)
    for node in model.graph:
        _follow(channels, node)
    for value in model.graph.outputs:
        channels.fix(value, f"it is the model's output '{value.name}'")
    return channels


def _follow(channels: Channels, node: ir.Node) -> None:
    """Apply the rule for a node."""
    for outer in graphs.captured(node):
        channels.fix(outer, f"it is read in a body of {graphs.label(node)}")
    opaque = graphs.has_parameters(node) or "broadcast" in node.attributes  # as before opset 7
    rule = None if opaque else _RULES.get((node.domain, node.op_type))
    reason = rule(channels, node) if rule else _does_not_commute(node)
    if reason:
        for value in node.inputs:
            if value is not None:
                channels.fix(value, reason)


def _does_not_commute(node: ir.Node) -> str:
    return f"it goes into {graphs.label(node)} ({node.op_type}), which does not commute with a factor per channel"


def _because(node: ir.Node, reason: str) -> str:
    return f"it goes into {graphs.label(node)} ({node.op_type}): {reason}"


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _constant(value: ir.Value | None) -> np.ndarray | None:
    """Return a float32 constant that may be replaced."""
    found = graphs.array(value, _LIMIT)
    return found if found is not None and found.dtype == np.float32 else None


def _whole(value: ir.Value | None) -> np.ndarray | None:
    """Return a constant of whole numbers, such as axes."""
    found = graphs.array(value)
    return found.ravel() if found is not None and found.dtype.kind == "i" else None


def _rank(channels: Channels, value: ir.Value | None) -> int | None:
    sizes = channels.sizes(value) if value is not None else None
    return None if sizes is None else len(sizes)


# Layers


def _layer(channels: Channels, node: ir.Node) -> str | None:
    """Let weights take the factors of both sides: y s_out = (W s_out / s_in) (x s_in)."""
    source, weight = node.inputs[0], node.inputs[1]
    array = _constant(weight)
    if node.op_type == "MatMul" and array is None:
        return _product(channels, node)
    if source is None or weight is None or array is None:
        return _because(node, "its weights are not float32 constants")
    if weight.is_graph_output() or any(not _is_twin(node, *use) for use in weight.uses()):
        return _because(node, f"its weights '{weight.name}' are used in other ways, too")
    for twin, _ in weight.uses():
        reason = _obstacle(channels, twin, array)
        if reason:
            return _because(twin, reason)
    rank = len(channels.of(source).shape)
    groups = node.attributes.get_int("group", 1) if "Conv" in node.op_type else 1
    axis = rank - 1 if node.op_type in ("Gemm", "MatMul") else 1
    inputs, outputs = _channel_counts(node, array, groups)
    ids = np.broadcast_to(channels.along(channels.of(source), [axis]).ravel(), (inputs,))
    if weight in channels.tied:
        first, made = channels.tied[weight]
        channels.variables.unify(ids, first)
    else:
        made = channels.variables.fresh(outputs)
        channels.tied[weight] = (ids, made)
        channels.layers.append(Layer(node, array, ids, made, groups))
        channels.scaled.append(Scaled(node, 1, _weight_parts(node, array, ids, made, groups)))
    channels.reads.append(Read(source, node))
    channels.set(node.outputs[0], _shaped(made, axis, rank))
    bias = _input(node, 2)
    if bias is not None and _constant(bias) is None:
        reason = _because(node, "its bias is not a float32 constant")
        channels.variables.fix(made, reason)
        channels.fix(bias, reason)
    elif bias is not None:
        _scale(channels, node, 2, made)
    return None


def _is_twin(node: ir.Node, other: ir.Node, index: int) -> bool:
    """Tell whether a use of a node's weights is as weights of the same kind."""
    return index == 1 and other.graph is node.graph and _signature(other) == _signature(node)


def _obstacle(channels: Channels, node: ir.Node, weight: np.ndarray) -> str | None:
    """Return why the factors of what a layer reads and computes cannot go into its weights."""
    rank = _rank(channels, node.inputs[0])
    if rank is None or rank < 2 or weight.ndim < 2 or (node.op_type == "MatMul" and weight.ndim > 2):
        return "its operands are not matrices of known rank"
    return "it reads its input transposed" if node.attributes.get_int("transA", 0) else None


def _signature(node: ir.Node) -> tuple[object, ...]:
    return (
        node.domain, node.op_type, node.attributes.get_int("group", 1), node.attributes.get_int("transB", 0),
        node.attributes.get_int("transA", 0),
    )  # fmt: skip


def _channel_counts(node: ir.Node, weight: np.ndarray, groups: int) -> tuple[int, int]:
    if node.op_type == "Conv":
        return weight.shape[1] * groups, weight.shape[0]
    if node.op_type == "ConvTranspose":
        return weight.shape[0], weight.shape[1] * groups
    if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1:
        return weight.shape[1], weight.shape[0]
    return weight.shape[0], weight.shape[1]


def _weight_parts(
    node: ir.Node, weight: np.ndarray, inputs: np.ndarray, outputs: np.ndarray, groups: int
) -> tuple[np.ndarray, ...]:
    """Return the exponents that weights take, in shapes that broadcast against them."""
    taps = (1,) * (weight.ndim - 2)
    if node.op_type == "Conv":
        rows = np.repeat(inputs.reshape(groups, -1), weight.shape[0] // groups, axis=0)
        return outputs.reshape(-1, 1, *taps), -rows.reshape(*rows.shape, *taps)
    if node.op_type == "ConvTranspose":
        rows = np.repeat(outputs.reshape(groups, -1), weight.shape[0] // groups, axis=0)
        return rows.reshape(*rows.shape, *taps), -inputs.reshape(-1, 1, *taps)
    if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1:
        return outputs.reshape(-1, 1), -inputs.reshape(1, -1)
    return outputs.reshape(1, -1), -inputs.reshape(-1, 1)


def _shaped(ids: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """Return exponents of one axis in the rank of the value."""
    shape = [1] * rank
    shape[axis] = -1
    return ids.reshape(shape)


def _scale(channels: Channels, node: ir.Node, index: int, ids: np.ndarray, *minus: np.ndarray) -> None:
    """Let a constant take the factors `ids`, and the inverse of others, and remember how large it is."""
    constant = _constant(node.inputs[index])
    assert constant is not None
    if not constant.any():
        return
    channels.scaled.append(Scaled(node, index, (ids, *(-part for part in minus))))
    rank = max(ids.ndim, constant.ndim)
    ids, large = _raised(ids, rank), np.abs(constant.reshape((1,) * (rank - constant.ndim) + constant.shape))
    same = tuple(axis for axis, size in enumerate(ids.shape) if size == 1)
    channels.made.append(Made(np.broadcast_to(large.max(axis=same, keepdims=True), ids.shape), ids))


# Products of activations


def _product(channels: Channels, node: ir.Node) -> str | None:
    """Multiply two activations: along what is added up, one side takes the inverse of the other.

    Attention has two such products. The factors of Q and K per head and dimension cancel each other; those of V pass
    through to what comes out.
    """
    one, two = node.inputs
    if one is None or two is None or (_rank(channels, one) or 0) < 2 or (_rank(channels, two) or 0) < 2:
        return _because(node, "its operands are not matrices of known rank")
    first, second = channels.of(one), channels.of(two)
    rank = max(first.ndim, second.ndim)
    channels.reads += [Read(one, node), Read(two, node)]
    if first.shape[-1] > 1 or second.shape[-2] > 1:
        first = channels.along(first, [a for a in range(first.ndim) if a != first.ndim - 2])
        second = channels.along(second, [a for a in range(second.ndim) if a != second.ndim - 1])
        channels.variables.unify(first[..., 0, :], -second[..., :, 0])
        return None
    left, right = (ids.reshape((1,) * (rank - ids.ndim) + ids.shape) for ids in (first, second))
    return _times(channels, node, left, right)


def _times(channels: Channels, node: ir.Node, left: np.ndarray, right: np.ndarray) -> str | None:
    """Let the factors of one operand pass through to the result; those of the other become one.

    Args:
        channels: where the result gets its exponents.
        node: multiplies element by element, or matrices whose common axis has no factors.
        left: exponents of one operand, in the rank of the result.
        right: those of the other.
    """
    variables = channels.variables
    if variables.reason(right) is None and (variables.reason(left) is None):
        variables.fix(left, _because(node, "its other operand takes the factors"))
    kept = left if variables.reason(right) is not None else right
    channels.set(node.outputs[0], kept)
    return None


def _multiply(channels: Channels, node: ir.Node) -> str | None:
    """Multiply or divide element by element."""
    one, two = node.inputs
    rank = _rank(channels, node.outputs[0])
    if one is None or two is None or rank is None:
        return _because(node, _UNKNOWN)
    for index, other in ((1, one), (0, two)):
        constant = _constant(node.inputs[index])
        if constant is not None and graphs.constant(other) is None and (node.op_type == "Mul" or index == 1):
            return _by_constant(channels, node, index, other, constant, rank)
    if one is two or node.op_type == "Div":
        return _does_not_commute(node)
    left, right = (_raised(channels.of(value), rank) for value in (one, two))
    return _times(channels, node, left, right)


def _by_constant(
    channels: Channels, node: ir.Node, index: int, source: ir.Value, constant: np.ndarray, rank: int
) -> str | None:
    """A constant of one axis takes the factors of both sides; one of no axis or of several lets them pass."""
    ids = _raised(channels.of(source), rank)
    axes = [axis - constant.ndim + rank for axis, size in enumerate(constant.shape) if size > 1]
    elsewhere = any(size > 1 and axis not in axes for axis, size in enumerate(ids.shape))
    if len(axes) != 1 or elsewhere or not np.all(constant):
        channels.set(node.outputs[0], ids)
        return None
    made = _shaped(channels.variables.fresh(constant.size), axes[0], rank)
    parts = (made, -ids) if node.op_type == "Mul" else (ids, -made)
    channels.scaled.append(Scaled(node, index, parts))
    if channels.variables.reason(ids):  # as behind a normalization; else the layer before tells more
        sizes = np.abs(constant if node.op_type == "Mul" else 1 / constant)
        channels.made.append(Made(sizes.reshape(made.shape), made))
    channels.set(node.outputs[0], made)
    return None


# Normalization


def _batch_normalization(channels: Channels, node: ir.Node) -> str | None:
    """(s_in x - s_in mean) / sqrt(variance + epsilon) * (scale s_out / s_in) + bias s_out."""
    source, rank = node.inputs[0], _rank(channels, node.inputs[0])
    arrays = [_constant(value) for value in node.inputs[1:5]]
    if source is None or rank is None or any(array is None for array in arrays):
        return _because(node, "its statistics are not float32 constants")
    trains = node.attributes.get_int("training_mode", 0) or any(value.name for value in node.outputs[1:])
    if trains or not node.attributes.get_int("spatial", 1):
        return _because(node, "its statistics are of another kind")
    count = len(arrays[0]) if arrays[0] is not None else 0
    ids = np.broadcast_to(channels.along(channels.of(source), [1]).ravel(), (count,))
    made = channels.variables.fresh(count)
    _scale(channels, node, 1, made, ids)
    _scale(channels, node, 2, made)
    channels.scaled.append(Scaled(node, 3, (ids,)))
    channels.set(node.outputs[0], _shaped(made, 1, rank))
    return None


def _layer_normalization(first: int) -> Rule:
    """Return the rule for a normalization over the last axis whose scale and bias come from input `first` on."""

    def rule(channels: Channels, node: ir.Node) -> str | None:
        rank = _rank(channels, node.inputs[0])
        scale, bias = _constant(_input(node, first)), _input(node, first + 1)
        has_bias = bias is not None and "Simplified" not in node.op_type and "RMS" not in node.op_type
        shift = _constant(bias) if has_bias else None
        axis = node.attributes.get_int("axis", -1)
        constant = scale is not None and (not has_bias or (shift is not None and shift.shape == scale.shape))
        if rank is not None and scale is not None and constant and scale.ndim == 1 and axis in (-1, rank - 1):
            made = channels.variables.fresh(scale.size)
            _scale(channels, node, first, made)
            if has_bias:
                _scale(channels, node, first + 1, made)
            channels.set(node.outputs[0], _shaped(made, rank - 1, rank))
        return _because(node, "it normalizes over channels")

    return rule


def _instance_normalization(channels: Channels, node: ir.Node) -> str | None:
    rank, scale = _rank(channels, node.inputs[0]), _constant(_input(node, 1))
    if rank is not None and scale is not None and _constant(_input(node, 2)) is not None:
        made = channels.variables.fresh(scale.size)
        _scale(channels, node, 1, made)
        _scale(channels, node, 2, made)
        channels.set(node.outputs[0], _shaped(made, 1, rank))
    return _because(node, "its epsilon does not scale")


# Element by element


def _raised(ids: np.ndarray, rank: int) -> np.ndarray:
    """Return exponents in a higher rank, as broadcasting aligns them."""
    return ids.reshape((1,) * (rank - ids.ndim) + ids.shape)


def _alike(channels: Channels, node: ir.Node) -> str | None:
    """What is added or compared has equal factors: s x + s y = s (x + y)."""
    values = node.inputs[1:] if node.op_type == "Where" else node.inputs
    rank = _rank(channels, node.outputs[0])
    if rank is None:
        return _because(node, _UNKNOWN)
    computed = [_raised(channels.of(v), rank) for v in values if v is not None and _constant(v) is None]
    constants = [index for index, value in enumerate(node.inputs) if _constant(value) is not None]
    if not computed:
        return None
    ids = computed[0]
    for other in computed[1:]:
        channels.variables.unify(ids, other)
        shape = np.broadcast_shapes(ids.shape, other.shape)
        ids = np.broadcast_to(ids if ids.size >= other.size else other, shape)
    for index in constants:
        if ids.any():
            _scale(channels, node, index, ids)
    channels.set(node.outputs[0], ids)
    return None


def _same(channels: Channels, node: ir.Node) -> str | None:
    """Operators that are positively homogeneous, such as Relu: f(s x) = s f(x) for s > 0."""
    source = node.inputs[0]
    if source is not None:
        channels.set(node.outputs[0], channels.of(source))
    return None


def _prelu(channels: Channels, node: ir.Node) -> str | None:
    source, slope = node.inputs
    if source is None or slope is None or channels.of(slope).any():
        return _because(node, "its slope is computed")
    channels.set(node.outputs[0], channels.of(source))
    return None


def _dropout(channels: Channels, node: ir.Node) -> str | None:
    training = _input(node, 2)
    if training is not None:
        flag = graphs.array(training)
        if flag is None or flag.any():
            return _because(node, "it trains")
    return _same(channels, node)


def _clip(channels: Channels, node: ir.Node) -> str | None:
    """Only bounds of zero and infinity are the same for all channels after scaling."""
    for index, name, unbounded in ((1, "min", -math.inf), (2, "max", math.inf)):
        attribute, value = graphs.attribute(node, name), _input(node, index)
        if attribute is None and value is None:
            continue
        bound = np.asarray(attribute.as_float()) if attribute is not None else graphs.array(value)
        if bound is None or ((bound != 0).any() and (bound != unbounded).any()):
            shown = "" if bound is None else f" of {float(bound.ravel()[0]):g}"
            return _because(node, f"its {name}{shown} would have to be another for each channel")
    return _same(channels, node)


# Windows, reductions, sizes


def _pool(channels: Channels, node: ir.Node) -> str | None:
    source = node.inputs[0]
    if source is None or _rank(channels, source) is None:
        return _because(node, _UNKNOWN)
    channels.set(node.outputs[0], channels.along(channels.of(source), [0, 1]))
    return None


def _reduce(channels: Channels, node: ir.Node) -> str | None:
    """Add up or compare along axes on which factors are equal."""
    source, given = node.inputs[0], _input(node, 1)
    rank = _rank(channels, source)
    attribute = graphs.attribute(node, "axes")
    axes = np.array(attribute.as_ints()) if attribute is not None else _whole(given)
    if source is None or rank is None or (axes is None and given is not None):
        return _because(node, _UNKNOWN)
    if axes is None or not axes.size:
        axes = np.arange(0 if node.attributes.get_int("noop_with_empty_axes", 0) else rank)
    gone = {int(axis) % rank for axis in axes}
    ids = channels.along(channels.of(source), set(range(rank)) - gone)
    if not node.attributes.get_int("keepdims", 1):
        ids = ids.reshape([size for axis, size in enumerate(ids.shape) if axis not in gone])
    channels.set(node.outputs[0], ids)
    return None


def _pad(channels: Channels, node: ir.Node) -> str | None:
    """Padding with zeros, or with elements that are there, along axes on which factors are equal."""
    source, fill = node.inputs[0], _input(node, 2)
    rank = _rank(channels, source)
    number = graphs.array(fill) if fill is not None else np.asarray(node.attributes.get_float("value", 0.0))
    if source is None or rank is None:
        return _because(node, _UNKNOWN)
    if node.attributes.get_string("mode", "constant") == "constant" and (number is None or number.any()):
        return _because(node, "it pads with a number that is not zero")
    pads, axes = _whole(_input(node, 1)), _whole(_input(node, 3))
    attribute = graphs.attribute(node, "pads")
    pads = np.array(attribute.as_ints()) if attribute is not None else pads
    if pads is None or (axes is None and _input(node, 3) is not None):
        padded = set(range(rank))
    else:
        order = np.arange(rank) if axes is None else axes % rank
        padded = set(order[pads.reshape(2, -1).any(axis=0)].tolist())
    channels.set(node.outputs[0], channels.along(channels.of(source), set(range(rank)) - padded))
    return None


def _resize(channels: Channels, node: ir.Node) -> str | None:
    """Interpolate along axes on which factors are equal."""
    source = node.inputs[0]
    rank = _rank(channels, source)
    if source is None or rank is None:
        return _because(node, _UNKNOWN)
    if node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        return _because(node, "it extrapolates with a constant")
    scales = graphs.array(_input(node, 1 if len(node.inputs) == 2 else 2))
    sizes, before = _whole(_input(node, 3)), channels.sizes(source) or ()
    whole = graphs.attribute(node, "axes") is None
    stretched = node.attributes.get_string("keep_aspect_ratio_policy", "stretch") == "stretch"
    stay = set[int]()
    if whole and sizes is not None and stretched:
        stay = {axis for axis, size in enumerate(before) if sizes[axis] == size}
    elif whole and scales is not None and scales.size == rank:
        stay = set(np.flatnonzero(scales == 1).tolist())
    channels.set(node.outputs[0], channels.along(channels.of(source), stay))
    return None


def _expand(channels: Channels, node: ir.Node) -> str | None:
    """Repeat along axes of size one."""
    source, rank = node.inputs[0], _rank(channels, node.outputs[0])
    if source is None or rank is None or _rank(channels, source) is None:
        return _because(node, _UNKNOWN)
    channels.set(node.outputs[0], _raised(channels.of(source), rank))
    return None


# Moving elements


def _reshape(channels: Channels, node: ir.Node) -> str | None:
    """Sizes are compared from the last axis on, in runs of axes that hold equally many elements."""
    source, result = node.inputs[0], node.outputs[0]
    before = channels.sizes(source) if source is not None else None
    after = channels.sizes(result)
    if source is None or before is None or after is None:
        return _because(node, _UNKNOWN)
    ids = channels.of(source)
    pieces: list[tuple[int, int, int, int]] = []
    left, right = len(before), len(after)
    while left or right:
        start, end, known = _run(before, after, left, right)
        part = ids.shape[start:left]
        if not known:
            ids = channels.along(ids, [axis for axis in range(len(before)) if axis >= left])
        elif any(size > 1 for size in part):
            pieces.insert(0, (start, left, end, right))
        left, right = start, end
    channels.set(result, _reshaped(ids, before, after, pieces))
    return None


def _run(before: Sequence[Dim], after: Sequence[Dim], left: int, right: int) -> tuple[int, int, bool]:
    """Return where the shortest run of axes starts that ends before `left` and `right` and has as many elements in both.

    The last element is false where sizes do not tell; the run is then all that is left.
    """
    start, end = left - 1, right - 1
    if start >= 0 and end >= 0 and before[start] is not None and before[start] == after[end]:
        return start, end, True
    one = two = 1
    start, end = left, right
    while start >= 0 and end >= 0:
        if one == two and start < left and end < right:
            return start, end, True
        if (one <= two and start > 0) or end == 0:
            start -= 1
            size = before[start] if start >= 0 else None
            if not isinstance(size, int) or size < 1:
                break
            one *= size
        else:
            end -= 1
            size = after[end]
            if not isinstance(size, int) or size < 1:
                break
            two *= size
    return 0, 0, False


def _reshaped(
    ids: np.ndarray, before: Sequence[Dim], after: Sequence[Dim], pieces: Sequence[tuple[int, int, int, int]]
) -> np.ndarray:
    """Reshape exponents run by run."""
    shape = [1] * len(after)
    for start, left, end, right in pieces:
        sizes = [int(size) for size in before[start:left] if isinstance(size, int)]
        if len(sizes) < left - start:  # one axis of a dynamic size on both sides
            sizes = list(ids.shape[start:left])
        full = (*ids.shape[:start], *sizes, *ids.shape[left:])
        ids = np.broadcast_to(ids, full)
        shape[end:right] = [int(s) for s in after[end:right] if isinstance(s, int)] or sizes
    return ids.reshape(shape)


def _transpose(channels: Channels, node: ir.Node) -> str | None:
    source = node.inputs[0]
    if source is None or _rank(channels, source) is None:
        return _because(node, _UNKNOWN)
    order = graphs.attribute(node, "perm")
    channels.set(node.outputs[0], np.transpose(channels.of(source), order.as_ints() if order is not None else None))
    return None


def _concat(channels: Channels, node: ir.Node) -> str | None:
    values = [value for value in node.inputs if value is not None]
    all_sizes = [channels.sizes(value) for value in values]
    if not values or any(sizes is None for sizes in all_sizes):
        return _because(node, _UNKNOWN)
    all_ids = [channels.of(value) for value in values]
    axis = node.attributes.get_int("axis", 0) % all_ids[0].ndim
    others = any(size > 1 for ids in all_ids for a, size in enumerate(ids.shape) if a != axis)
    lengths = [sizes[axis] for sizes in all_sizes if sizes]
    known = [length for length in lengths if isinstance(length, int)]
    if all(ids.shape[axis] == 1 for ids in all_ids) and (others or len(known) < len(lengths)):
        for ids in all_ids[1:]:
            channels.variables.unify(all_ids[0], ids)
        channels.set(node.outputs[0], max(all_ids, key=np.size))
        return None
    if len(known) < len(lengths):
        return _because(node, _UNKNOWN)
    rest = np.broadcast_shapes(*((*ids.shape[:axis], 1, *ids.shape[axis + 1 :]) for ids in all_ids))
    parts = [
        np.broadcast_to(ids, (*rest[:axis], length, *rest[axis + 1 :]))
        for ids, length in zip(all_ids, known, strict=True)
    ]
    channels.set(node.outputs[0], np.concatenate(parts, axis))
    return None


def _split(channels: Channels, node: ir.Node) -> str | None:
    source = node.inputs[0]
    if source is None or _rank(channels, source) is None:
        return _because(node, _UNKNOWN)
    ids = channels.of(source)
    axis = node.attributes.get_int("axis", 0) % ids.ndim
    start = 0
    for value in node.outputs:
        if ids.shape[axis] == 1:
            channels.set(value, ids)
            continue
        sizes = channels.sizes(value)
        length = None if sizes is None else sizes[axis]
        if not isinstance(length, int):
            return _because(node, _UNKNOWN)
        channels.set(value, ids.take(np.arange(start, start + length), axis))
        start += length
    return None


def _slice(channels: Channels, node: ir.Node) -> str | None:
    source = node.inputs[0]
    rank = _rank(channels, source)
    if source is None or rank is None:
        return _because(node, _UNKNOWN)
    ids = channels.of(source)
    if len(node.inputs) < 3:
        return _because(node, "its bounds are attributes")
    starts, ends = _whole(node.inputs[1]), _whole(node.inputs[2])
    axes, steps = (_whole(_input(node, index)) for index in (3, 4))
    axes = np.arange(rank) if _input(node, 3) is None else axes
    cut = range(rank) if axes is None else [int(axis) % rank for axis in axes]
    if starts is None or ends is None or axes is None or (steps is None and _input(node, 4) is not None):
        channels.set(node.outputs[0], channels.along(ids, set(range(rank)) - set(cut)))
        return None
    for index, axis in enumerate(cut[: len(starts)]):
        if ids.shape[axis] > 1:
            step = 1 if steps is None else int(steps[index])
            if step < 1:
                return _because(node, "it runs backwards")
            chosen = np.arange(ids.shape[axis])[int(starts[index]) : int(ends[index]) : step]
            ids = ids.take(chosen, axis)
    channels.set(node.outputs[0], ids)
    return None


def _gather(channels: Channels, node: ir.Node) -> str | None:
    source, index = node.inputs
    rank, index_rank = _rank(channels, source), _rank(channels, index)
    if index is not None and graphs.constant(index) is not None:
        index_rank = len(graphs.constant(index).shape)  # type: ignore[union-attr]
    if source is None or rank is None or index_rank is None:
        return _because(node, _UNKNOWN)
    axis = node.attributes.get_int("axis", 0) % rank
    ids, chosen = channels.of(source), graphs.array(index)
    if ids.shape[axis] > 1 and chosen is not None:
        channels.set(node.outputs[0], np.take(ids, chosen.astype(np.int64), axis))
        return None
    ids = channels.along(ids, set(range(rank)) - {axis})
    shape = (*ids.shape[:axis], *(1,) * index_rank, *ids.shape[axis + 1 :])
    channels.set(node.outputs[0], ids.reshape(shape))
    return None


def _ignored(channels: Channels, node: ir.Node) -> str | None:
    """Operators that look at sizes alone."""
    del channels, node
    return None


_REDUCTIONS = ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceL1", "ReduceL2")
_POOLS = ("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")

_RULES: dict[tuple[str, str], Rule] = {
    **dict.fromkeys((("", op) for op in ("Conv", "ConvTranspose", "Gemm", "MatMul")), _layer),
    **dict.fromkeys((("", op) for op in ("Mul", "Div")), _multiply),
    **dict.fromkeys((("", op) for op in ("Add", "Sub", "Sum", "Mean", "Max", "Min", "Where")), _alike),
    **dict.fromkeys((("", op) for op in ("Identity", "Relu", "LeakyRelu", "Abs", "Neg")), _same),
    **dict.fromkeys((("", op) for op in ("Reshape", "Flatten", "Squeeze", "Unsqueeze")), _reshape),
    **dict.fromkeys((("", op) for op in _REDUCTIONS), _reduce),
    **dict.fromkeys((("", op) for op in _POOLS), _pool),
    **dict.fromkeys((("", op) for op in ("Resize", "Upsample")), _resize),
    **dict.fromkeys((("", op) for op in ("Shape", "Size")), _ignored),
    **dict.fromkeys(
        (("", op) for op in ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")),
        _layer_normalization(1),
    ),
    **dict.fromkeys(
        ((_MICROSOFT, op) for op in ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")),
        _layer_normalization(2),
    ),
    ("", "BatchNormalization"): _batch_normalization,
    ("", "InstanceNormalization"): _instance_normalization,
    ("", "PRelu"): _prelu,
    ("", "Dropout"): _dropout,
    ("", "Clip"): _clip,
    ("", "Pad"): _pad,
    ("", "Expand"): _expand,
    ("", "Transpose"): _transpose,
    ("", "Concat"): _concat,
    ("", "Split"): _split,
    ("", "Slice"): _slice,
    ("", "Gather"): _gather,
}
