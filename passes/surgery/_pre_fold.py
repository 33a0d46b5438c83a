"""Fold normalization and the order of channels into the first layers of a model.

A layer that is linear in its input gets W (f (x - m)) + b = (W f) x + (b - W f m), with factor f and mean m per
channel. So the factor multiplies the weights, always. The mean goes into the bias, unless the layer pads its input with
zeros: these stand for the mean then, which is another number per channel, and no Pad can write that. Channels that come
in reverse order meet weights in reverse order.

Layers are Conv, Gemm and MatMul by a constant. On the way to them Transpose, Identity, Flatten and Reshape only move
elements, and the factors with them. Weights are computed in double precision and rounded once.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt import graphs, inference
from graphopt.passes.surgery import _ports
from graphopt.passes.surgery._pre_steps import Steps

_WEIGHTS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_ONLY_LOOKS = ("Shape", "Size")
_CALLED = {"factor": "scale", "mean": "mean", "order": "channel order"}


class _Refused(Exception):
    """Nothing can be folded; the node and the reason."""

    def __init__(self, node: ir.Node, reason: str) -> None:
        super().__init__(reason)
        self.node, self.reason = graphs.label(node), reason


@dataclasses.dataclass(frozen=True)
class _State:
    """What has to happen to a value before it is what the model was trained on.

    Attributes:
        factor, mean: broadcast against the value.
        dims: its sizes.
        flipped: the axis that is to be reversed, or None.
        order: for a value of two axes, which element of a row stands where; None where that is as it was.
    """

    factor: np.ndarray
    mean: np.ndarray
    dims: tuple[inference.Dim, ...] | None
    flipped: int | None
    order: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class _Layer:
    """A linear layer that reads the input of the model, and what it can take over.

    Attributes:
        node: the layer.
        factor, mean: one number per input feature (Conv: channel), or a scalar.
        order: likewise, where each is found; None if in place.
        no_factor, no_mean, no_order: why it cannot take this over, or None.
    """

    node: ir.Node
    factor: np.ndarray
    mean: np.ndarray
    order: np.ndarray | None
    no_factor: str | None
    no_mean: str | None
    no_order: str | None


def fold(
    model: ir.Model, value: ir.Value, steps: Steps, taken: Counter[str]
) -> tuple[Steps, list[str], list[tuple[str, str]]]:
    """Let the first layers take over what they can.

    Returns:
        The steps that are left, what was folded, and why the rest was not.
    """
    wanted = [
        part
        for part, there in (
            ("factor", bool(np.any(steps.factor != 1))),
            ("mean", bool(np.any(steps.mean))),
            ("order", steps.reverse),
        )
        if there
    ]
    if not wanted or not steps.taken.is_floating_point():
        return steps, [], []
    if steps.given == ir.DataType.UINT16 and steps.taken in _NARROW:
        return steps, [], [(value.name or "", f"its pixels do not fit into {steps.taken.name.lower()}")]
    try:
        found = _layers(
            value, steps.factor, steps.mean, steps.channel_axis if steps.reverse else None, inference.infer(model)
        )
    except _Refused as refusal:
        return steps, [], [(refusal.node, refusal.reason)]
    rows = {part: _reasons(found, part) for part in wanted}
    parts = [part for part in wanted if not rows[part]]
    if "factor" in wanted and "factor" not in parts and "mean" in parts:
        parts.remove("mean")
    if not found or not parts:
        return steps, [], [row for part in wanted for row in rows[part]]
    for layer in found:
        _take_over(layer, parts, taken)
    mean, factor = steps.mean, steps.factor
    if "order" in parts:  # what stays explicit meets the channels as they come
        axis = steps.channel_axis
        mean, factor = (np.flip(array, axis) if array.ndim else array for array in (mean, factor))
    left = dataclasses.replace(
        steps,
        reverse=steps.reverse and "order" not in parts,
        mean=np.array(0.0) if "mean" in parts else mean,
        factor=np.array(1.0) if "factor" in parts else factor,
    )
    return left, [_CALLED[part] for part in parts], [row for part in wanted for row in rows[part]]


def _layers(
    value: ir.Value,
    factor: np.ndarray,
    mean: np.ndarray,
    flipped: int | None,
    known: Mapping[ir.Value, inference.Known],
) -> list[_Layer]:
    """Find the layers that read an input.

    Args:
        value: the input of the model.
        factor, mean: of the normalization, scalars or broadcast against the input.
        flipped: the axis of channels that come in reverse order, or None.
        known: shapes in the model.

    Raises:
        _Refused: something else reads it, too.
    """
    rank = len(inference.dims(value.shape) or ())
    start = _State(_spread(factor, rank), _spread(mean, rank), inference.dims(value.shape), flipped)
    waiting, found = [(value, start)], []
    while waiting:
        source, state = waiting.pop(0)
        for node in sorted(source.consumers(), key=graphs.label):
            if graphs.is_op(node, *_ONLY_LOOKS):
                continue
            if node.graph is not value.graph:
                raise _Refused(node, "reads the input in the body of a control-flow operator")
            if list(node.inputs).index(source) or list(node.inputs).count(source) > 1:
                raise _Refused(node, f"uses the input as something else than the data of a {node.op_type}")
            if graphs.is_op(node, "Conv", "Gemm", "MatMul"):
                found.append(_layer(node, state))
                continue
            after = _moved(node, state, known)
            if node.outputs[0].is_graph_output():
                raise _Refused(node, "gives the input to an output")
            waiting.append((node.outputs[0], after))
    return found


def _take_over(layer: _Layer, parts: Collection[str], taken: Counter[str]) -> None:
    """Let a layer take over the parts "factor", "mean" (after the factor, if there is one) and "order"."""
    node = layer.node
    tensor = graphs.constant(node.inputs[1])
    assert tensor is not None
    weights = tensor.numpy().astype(np.float64)
    if "factor" in parts:
        weights = _scaled(node, weights, layer.factor)
    if "mean" in parts:
        _shift(node, -_response(node, weights, layer.mean), tensor.dtype, taken)
    if "order" in parts and layer.order is not None:
        weights = np.take(weights, np.argsort(layer.order), _feature_axis(node))
    _replace(node, 1, weights, tensor.dtype, taken)


def _spread(numbers: np.ndarray, rank: int) -> np.ndarray:
    return np.asarray(numbers, np.float64).reshape(numbers.shape if numbers.ndim else (1,) * rank)


def _moved(node: ir.Node, state: _State, known: Mapping[ir.Value, inference.Known]) -> _State:
    """Return the state behind an operator that only moves elements."""
    uniform = state.factor.size == state.mean.size == 1 and state.flipped is None and state.order is None
    dims = known[node.outputs[0]].dims() if node.outputs[0] in known else None
    if graphs.is_op(node, "Identity"):
        return state
    if graphs.is_op(node, "Transpose") and state.order is None and state.dims is not None:
        perm = list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else None
        perm = perm or list(range(len(state.dims)))[::-1]
        return _State(
            state.factor.transpose(perm),
            state.mean.transpose(perm),
            tuple(state.dims[axis] for axis in perm),
            None if state.flipped is None else perm.index(state.flipped),
        )
    if not graphs.is_op(node, "Flatten", "Reshape"):
        raise _Refused(node, f"is {node.op_type}, no Conv, Gemm or MatMul")
    if uniform and dims is not None:
        ones = (1,) * len(dims)
        return _State(state.factor.reshape(ones), state.mean.reshape(ones), dims, None)
    features = state.dims[1:] if state.dims else ()
    if not features or not all(isinstance(dim, int) for dim in features) or state.factor.shape[0] != 1:
        raise _Refused(node, "moves channels to where they cannot be followed")
    sizes = (1, *(dim for dim in features if isinstance(dim, int)))
    count = int(np.prod(sizes))
    if dims is None or len(dims) != 2 or dims[1] != count or state.order is not None:
        raise _Refused(node, "moves channels to where they cannot be followed")
    factor, mean = (np.broadcast_to(part, sizes).reshape(1, -1) for part in (state.factor, state.mean))
    order = None
    if state.flipped is not None:
        order = np.flip(np.arange(count).reshape(sizes), state.flipped).ravel()
    return _State(factor, mean, dims, None, order)


def _layer(node: ir.Node, state: _State) -> _Layer:
    """Look at what a layer can take over."""
    weights = node.inputs[1]
    tensor = graphs.constant(weights)
    if tensor is None and weights is not None and weights.is_initializer():
        raise _Refused(node, "its weights are inputs with defaults, which callers may override")
    if tensor is None or tensor.dtype not in _WEIGHTS:
        raise _Refused(node, "its weights are no constants of floating point")
    if graphs.is_op(node, "Gemm") and node.attributes.get_int("transA", False):
        raise _Refused(node, "reads the input transposed")
    axis = 1 if graphs.is_op(node, "Conv") else state.factor.ndim - 1
    if graphs.is_op(node, "MatMul") and (len(tensor.shape) != 2 or axis == 0):
        raise _Refused(node, "multiplies with something else than a matrix")
    if any(part.size != part.shape[axis] for part in (state.factor, state.mean)) or state.flipped not in (None, axis):
        raise _Refused(node, "adds up over another axis than the channels")
    order = state.order
    if state.flipped is not None:
        order = np.arange(_features(node, tensor))[::-1]
    factor, mean = state.factor.ravel(), state.mean.ravel()
    no_factor = _imprecision(_scaled(node, tensor.numpy().astype(np.float64), factor), tensor.dtype)
    no_mean = _obstacle_to_mean(node, tensor.dtype) if np.any(mean) else None
    grouped = graphs.is_op(node, "Conv") and node.attributes.get_int("group", 1) > 1
    return _Layer(node, factor, mean, order, no_factor, no_mean, "works on groups of channels" if grouped else None)


def _features(node: ir.Node, weights: ir.TensorProtocol) -> int:
    """Return the number of input features of a layer; of a Conv, channels."""
    groups = node.attributes.get_int("group", 1) if graphs.is_op(node, "Conv") else 1
    return int(weights.shape.numpy()[_feature_axis(node)]) * (groups or 1)


def _feature_axis(node: ir.Node) -> int:
    """Return the axis of the weights along which input features lie."""
    return 1 if graphs.is_op(node, "Conv") or node.attributes.get_int("transB", False) else 0


def _scaled(node: ir.Node, weights: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Return weights multiplied with one factor per input feature."""
    return np.asarray(weights * _along(node, weights, factor))


def _along(node: ir.Node, weights: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return one number per input feature, or a scalar, in a shape that broadcasts against the weights."""
    if numbers.size == 1:
        return numbers.reshape((1,) * weights.ndim)
    if not graphs.is_op(node, "Conv"):
        return numbers[:, None] if _feature_axis(node) == 0 else numbers[None, :]
    outputs, width = weights.shape[:2]
    group = np.arange(outputs) // (outputs // (node.attributes.get_int("group", 1) or 1))
    places = group[:, None] * width + np.arange(width)
    return np.asarray(numbers[places].reshape(outputs, width, *[1] * (weights.ndim - 2)))


def _response(node: ir.Node, weights: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """Return what a layer without bias computes from the same input everywhere, one number per output feature."""
    axes = tuple(range(1, weights.ndim)) if graphs.is_op(node, "Conv") else (_feature_axis(node),)
    return np.asarray(np.sum(weights * _along(node, weights, inputs), axes) * _alpha(node))


def _alpha(node: ir.Node) -> float:
    return (node.attributes.get_float("alpha", 1.0) or 0.0) if graphs.is_op(node, "Gemm") else 1.0


def _imprecision(weights: np.ndarray, dtype: ir.DataType) -> str | None:
    """Say if weights would lose digits in their type, as very small numbers in float16 do."""
    lost = weights - weights.astype(dtype.numpy()).astype(np.float64)
    if np.sqrt(np.mean(lost**2)) > dtype.eps * np.sqrt(np.mean(weights**2)):
        return f"its weights would lose precision in {dtype.name.lower()}"
    return None


def _obstacle_to_mean(node: ir.Node, dtype: ir.DataType) -> str | None:
    if dtype in _NARROW:
        return f"its bias would lose precision in {dtype.name.lower()}"
    if graphs.is_op(node, "Conv"):
        padding = node.attributes.get_string("auto_pad", "NOTSET")
        if padding not in ("NOTSET", "VALID") or any(node.attributes.get_ints("pads", ()) or ()):
            return "it pads with zeros, which stand for the mean"
    if graphs.is_op(node, "MatMul"):
        return None if _bias(node) else "it has no bias"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return "its bias is no constant" if bias is not None and graphs.constant(bias) is None else None


def _bias(product: ir.Node) -> tuple[ir.Node, int] | None:
    """Return the Add of a constant behind a MatMul, and which input of it that is."""
    result = product.outputs[0]
    users = result.consumers()
    if len(users) != 1 or result.is_graph_output() or not graphs.is_op(users[0], "Add"):
        return None
    add = users[0]
    if add.graph is not product.graph or add.inputs[0] is add.inputs[1]:
        return None
    index = 1 if add.inputs[0] is result else 0
    tensor = graphs.constant(add.inputs[index])
    return (add, index) if tensor is not None and len(tensor.shape) <= 2 else None


def _shift(node: ir.Node, shift: np.ndarray, dtype: ir.DataType, taken: Counter[str]) -> None:
    """Add one number per output feature to what a layer computes."""
    index = 2
    if graphs.is_op(node, "MatMul"):
        bias = _bias(node)
        assert bias is not None
        node, index = bias
    present = graphs.array(node.inputs[index], 1 << 62) if len(node.inputs) > index else None
    old = np.zeros(1) if present is None else present.astype(np.float64)
    if graphs.is_op(node, "Gemm"):
        old = old * node.attributes.get_float("beta", 1.0)
        node.attributes.pop("beta", None)  # it is part of the new bias
    _replace(node, index, old + shift, dtype, taken)


def _replace(node: ir.Node, index: int, numbers: np.ndarray, dtype: ir.DataType, taken: Counter[str]) -> None:
    """Give a node a new constant, under the old name unless something else uses the old one, too."""
    old = node.inputs[index] if len(node.inputs) > index else None
    if old is not None and old.is_initializer() and len(old.uses()) == 1 and not old.is_graph_output():
        old.const_value = ir.tensor(numbers.astype(dtype.numpy()), dtype, name=old.name)
        old.shape = ir.Shape(numbers.shape)
        return
    recorder = _ports.Recorder((old.name if old else node.outputs[0].name) or "", taken)
    new = recorder.constant(numbers, "folded" if old else "bias", dtype)
    assert isinstance(node.graph, ir.Graph)
    node.graph.register_initializer(new)
    node.resize_inputs(max(len(node.inputs), index + 1))
    node.replace_input_with(index, new)
    if old is not None:
        graphs.discard(old)


def _reasons(found: Sequence[_Layer], part: str) -> list[tuple[str, str]]:
    """Return why layers cannot take over the "factor", "mean" or "order"."""
    rows = ((graphs.label(layer.node), getattr(layer, f"no_{part}")) for layer in found)
    return [(node, reason) for node, reason in rows if reason]
