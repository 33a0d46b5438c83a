"""Rules of operators that compute: layers, arithmetic, normalizations, activations (see `_equalize_rules`)."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from graphopt import graphs
from graphopt.passes.quantization._equalize_channels import Channels, Layer, Made, Read, Scaled
from graphopt.passes.quantization._equalize_rule import (
    UNKNOWN,
    Rule,
    array_of,
    because,
    does_not_commute,
    raised,
    rank_of,
)
from graphopt.passes.quantization._graphs import input_of


def layer(channels: Channels, node: ir.Node) -> str | None:
    """Let weights take the factors of both sides: y s_out = (W s_out / s_in) (x s_in)."""
    source, weight = node.inputs[0], node.inputs[1]
    array = array_of(weight)
    if node.op_type == "MatMul" and array is None:
        return _product(channels, node)
    if source is None or weight is None or array is None:
        return because(node, "its weights are not float32 constants")
    if weight.is_graph_output() or any(not _is_twin(node, *use) for use in weight.uses()):
        return because(node, f"its weights '{weight.name}' are used in other ways, too")
    for twin, _ in weight.uses():
        reason = _obstacle(channels, twin, array)
        if reason:
            return because(twin, reason)
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
    bias = input_of(node, 2)
    if bias is not None and array_of(bias) is None:
        reason = because(node, "its bias is not a float32 constant")
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
    rank = rank_of(channels, node.inputs[0])
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
    constant = array_of(node.inputs[index])
    assert constant is not None
    if not constant.any():
        return
    channels.scaled.append(Scaled(node, index, (ids, *(-part for part in minus))))
    rank = max(ids.ndim, constant.ndim)
    ids, large = raised(ids, rank), np.abs(constant.reshape((1,) * (rank - constant.ndim) + constant.shape))
    same = tuple(axis for axis, size in enumerate(ids.shape) if size == 1)
    channels.made.append(Made(np.broadcast_to(large.max(axis=same, keepdims=True), ids.shape), ids))


def _product(channels: Channels, node: ir.Node) -> str | None:
    """Multiply two activations: along what is added up, one side takes the inverse of the other.

    Attention has two such products. The factors of Q and K per head and dimension cancel each other; those of V pass
    through to what comes out.
    """
    one, two = node.inputs
    if one is None or two is None or (rank_of(channels, one) or 0) < 2 or (rank_of(channels, two) or 0) < 2:
        return because(node, "its operands are not matrices of known rank")
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
        variables.fix(left, because(node, "its other operand takes the factors"))
    kept = left if variables.reason(right) is not None else right
    channels.set(node.outputs[0], kept)
    return None


def multiply(channels: Channels, node: ir.Node) -> str | None:
    """Multiply or divide element by element."""
    one, two = node.inputs
    rank = rank_of(channels, node.outputs[0])
    if one is None or two is None or rank is None:
        return because(node, UNKNOWN)
    for index, other in ((1, one), (0, two)):
        constant = array_of(node.inputs[index])
        if constant is not None and graphs.constant(other) is None and (node.op_type == "Mul" or index == 1):
            return _by_constant(channels, node, index, other, constant, rank)
    if one is two or node.op_type == "Div":
        return does_not_commute(node)
    left, right = (raised(channels.of(value), rank) for value in (one, two))
    return _times(channels, node, left, right)


def _by_constant(
    channels: Channels, node: ir.Node, index: int, source: ir.Value, constant: np.ndarray, rank: int
) -> str | None:
    """A constant of one axis takes the factors of both sides; one of no axis or of several lets them pass."""
    ids = raised(channels.of(source), rank)
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


def batch_normalization(channels: Channels, node: ir.Node) -> str | None:
    """(s_in x - s_in mean) / sqrt(variance + epsilon) * (scale s_out / s_in) + bias s_out."""
    source, rank = node.inputs[0], rank_of(channels, node.inputs[0])
    arrays = [array_of(value) for value in node.inputs[1:5]]
    if source is None or rank is None or any(array is None for array in arrays):
        return because(node, "its statistics are not float32 constants")
    trains = node.attributes.get_int("training_mode", 0) or any(value.name for value in node.outputs[1:])
    if trains or not node.attributes.get_int("spatial", 1):
        return because(node, "its statistics are of another kind")
    count = len(arrays[0]) if arrays[0] is not None else 0
    ids = np.broadcast_to(channels.along(channels.of(source), [1]).ravel(), (count,))
    made = channels.variables.fresh(count)
    _scale(channels, node, 1, made, ids)
    _scale(channels, node, 2, made)
    channels.scaled.append(Scaled(node, 3, (ids,)))
    channels.set(node.outputs[0], _shaped(made, 1, rank))
    return None


def layer_normalization(first: int) -> Rule:
    """Return the rule for a normalization over the last axis whose scale and bias come from input `first` on."""

    def rule(channels: Channels, node: ir.Node) -> str | None:
        rank = rank_of(channels, node.inputs[0])
        scale, bias = array_of(input_of(node, first)), input_of(node, first + 1)
        has_bias = bias is not None and "Simplified" not in node.op_type and "RMS" not in node.op_type
        shift = array_of(bias) if has_bias else None
        axis = node.attributes.get_int("axis", -1)
        constant = scale is not None and (not has_bias or (shift is not None and shift.shape == scale.shape))
        if rank is not None and scale is not None and constant and scale.ndim == 1 and axis in (-1, rank - 1):
            made = channels.variables.fresh(scale.size)
            _scale(channels, node, first, made)
            if has_bias:
                _scale(channels, node, first + 1, made)
            channels.set(node.outputs[0], _shaped(made, rank - 1, rank))
        return because(node, "it normalizes over channels")

    return rule


def instance_normalization(channels: Channels, node: ir.Node) -> str | None:
    """Let scale and bias take the factors of the output; what it reads has none, because of the epsilon."""
    rank, scale = rank_of(channels, node.inputs[0]), array_of(input_of(node, 1))
    if rank is not None and scale is not None and array_of(input_of(node, 2)) is not None:
        made = channels.variables.fresh(scale.size)
        _scale(channels, node, 1, made)
        _scale(channels, node, 2, made)
        channels.set(node.outputs[0], _shaped(made, 1, rank))
    return because(node, "its epsilon does not scale")


def alike(channels: Channels, node: ir.Node) -> str | None:
    """What is added or compared has equal factors: s x + s y = s (x + y)."""
    values = node.inputs[1:] if node.op_type == "Where" else node.inputs
    rank = rank_of(channels, node.outputs[0])
    if rank is None:
        return because(node, UNKNOWN)
    computed = [raised(channels.of(v), rank) for v in values if v is not None and array_of(v) is None]
    constants = [index for index, value in enumerate(node.inputs) if array_of(value) is not None]
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


def same(channels: Channels, node: ir.Node) -> str | None:
    """Operators that are positively homogeneous, such as Relu: f(s x) = s f(x) for s > 0."""
    source = node.inputs[0]
    if source is not None:
        channels.set(node.outputs[0], channels.of(source))
    return None


def prelu(channels: Channels, node: ir.Node) -> str | None:
    """Pass factors on: slopes do not depend on them."""
    source, slope = node.inputs
    if source is None or slope is None or channels.of(slope).any():
        return because(node, "its slope is computed")
    channels.set(node.outputs[0], channels.of(source))
    return None


def dropout(channels: Channels, node: ir.Node) -> str | None:
    """Pass factors on where nothing is dropped; the mask has none."""
    training = input_of(node, 2)
    if training is not None:
        flag = graphs.array(training)
        if flag is None or flag.any():
            return because(node, "it trains")
    return same(channels, node)


def clip(channels: Channels, node: ir.Node) -> str | None:
    """Only bounds of zero and infinity are the same for all channels after scaling."""
    for index, name, unbounded in ((1, "min", -math.inf), (2, "max", math.inf)):
        attribute, value = graphs.attribute(node, name), input_of(node, index)
        if attribute is None and value is None:
            continue
        bound = np.asarray(attribute.as_float()) if attribute is not None else graphs.array(value)
        if bound is None or ((bound != 0).any() and (bound != unbounded).any()):
            shown = "" if bound is None else f" of {float(bound.ravel()[0]):g}"
            return because(node, f"its {name}{shown} would have to be another for each channel")
    return same(channels, node)
