"""Fold scaling and shifting by constants into the linear operator before or after it

For y = L(x; W) + b with L linear (Conv, ConvTranspose, Gemm, MatMul) and constants s, t of one number per channel:

* after it: s * y + t = L(x; s * W) + (s * b + t). Mul, Div, Add and Sub by constants are such.
* before it: L(s * x + t; W) + b = L(x; W * s) + (b + L(t; W)), for Conv only where nothing is padded if t is not 0.

BatchNormalization before a Conv is scaling and shifting too; after a linear operator it is fold-batchnorm's. Everything
is computed in double precision and rounded once. Weights that something else uses too are left alone.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt import graphs
from graphopt.passbase import FACT_PREFIX, Result
from graphopt.passes.structural._informed import Facts, Informed, sites, sizes

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16})
_SCALES = ("Mul", "Div")
_SHIFTS = ("Add", "Sub")
_FIRST_OPSET = 7
_LIMIT = 1 << 28
"""Weights of more elements are left alone."""


@dataclass(frozen=True)
class FoldScales(Informed):
    """Fold Mul, Div, Add, Sub and BatchNormalization by constants into Conv, ConvTranspose, Gemm and MatMul."""

    def apply(self, model: ir.Model, facts: Facts) -> Result:
        """Fold in place; the report counts what went after and before a linear operator."""
        count = {"after": 0, "before": 0}
        if model.opset_imports.get("", 1) >= _FIRST_OPSET:
            folder = _Folder(facts, facts.names)
            for graph, node in sites(facts, *_SCALES, *_SHIFTS):
                count["after"] += folder.after(graph, node)
            for graph, node in sites(facts, "Conv", "Gemm", "MatMul"):
                while folder.before(graph, node):
                    count["before"] += 1
        return Result(model, any(count.values()), count)


@dataclass(frozen=True)
class _Affine:
    """y = scale * x + shift, for a value x; float64 arrays that broadcast with it."""

    source: ir.Value
    scale: np.ndarray
    shift: np.ndarray


class _Folder:
    def __init__(self, facts: Facts, taken: Counter[str]) -> None:
        self._facts, self._taken = facts, taken

    def after(self, graph: ir.Graph, node: ir.Node) -> bool:
        """Fold an element-wise operator into the linear one before it."""
        affine = _elementwise(node)
        linear = affine.source.producer() if affine else None
        if affine is None or linear is None or linear.graph is not graph or graphs.sole_use(affine.source) is not node:
            return False
        layer = _Layer.of(linear, sizes(self._facts, affine.source))
        if layer is None:
            return False
        scale, shift = layer.per_output(affine.scale), layer.per_output(affine.shift)
        if scale is None or shift is None or (layer.bias is None and layer.op == "MatMul" and shift.any()):
            return False
        weight = layer.weight if np.all(scale == 1) else layer.scaled(scale)
        bias = shift if layer.bias is None else scale * layer.bias + shift
        if not self._write(graph, layer, weight, bias if layer.bias is not None or bias.any() else None):
            return False
        _hand_over(node, linear)
        return True

    def before(self, graph: ir.Graph, node: ir.Node) -> bool:
        """Fold what scales or shifts the input of a linear operator into it."""
        value = node.inputs[0]
        source = value.producer() if value is not None else None
        if source is None or source.graph is not graph or graphs.sole_use(value) is not node:
            return False
        affine = _elementwise(source) or _normalization(source, len(sizes(self._facts, value) or ()))
        rank = len(sizes(self._facts, value) or ())
        layer = _Layer.of(node, sizes(self._facts, node.outputs[0]))
        if (
            affine is None
            or layer is None
            or rank == 0
            or sizes(self._facts, affine.source) != sizes(self._facts, value)
        ):
            return False
        scale, shift = layer.per_input(affine.scale, rank), layer.per_input(affine.shift, rank)
        if scale is None or shift is None:
            return False
        if shift.any() and (layer.pads or (layer.op == "MatMul" and layer.bias is None)):
            return False
        moved = layer.applied(shift) if shift.any() else np.zeros(1)
        bias = moved if layer.bias is None else layer.bias + moved
        keeps = layer.bias is None and not shift.any()
        if not self._write(graph, layer, layer.weight * layer.along_input(scale), None if keeps else bias):
            return False
        node.replace_input_with(0, affine.source)
        graphs.discard(source.outputs[0])
        return True

    def _write(self, graph: ir.Graph, layer: _Layer, weight: np.ndarray, bias: np.ndarray | None) -> bool:
        """Give a linear operator other constants, unless they are not numbers any more."""
        node = layer.node
        dtype = layer.dtype
        with np.errstate(over="ignore"):
            arrays = [(1, weight.astype(dtype))]
            if bias is not None:
                arrays.append((2, np.broadcast_to(bias, (layer.outputs,)).astype(dtype)))
        if not all(np.isfinite(array).all() for _, array in arrays):
            return False
        for index, array in arrays:
            graphs.set_constant(graph, node, index, array, self._taken)
        if layer.op == "Gemm":
            for name in ("alpha", "beta"):
                node.attributes.pop(name, None)
        return True


@dataclass(frozen=True)
class _Layer:
    """A linear operator with constant weights.

    Attributes:
        node, op: the operator.
        weight: float64, with a Gemm's alpha in it.
        bias: float64 [outputs] with a Gemm's beta in it, or None.
        dtype: of the weights.
        rank: of the output.
        output_axis, input_axis: of the weights.
        outputs: channels.
        groups: of a convolution.
        pads: whether zeros are added around the input.
    """

    node: ir.Node
    op: str
    weight: np.ndarray
    bias: np.ndarray | None
    dtype: np.dtype
    rank: int
    output_axis: int
    input_axis: int
    outputs: int
    groups: int
    pads: bool

    @classmethod
    def of(cls, node: ir.Node, result: tuple[object, ...] | None) -> _Layer | None:
        """Return what is needed to know of a node; None if its constants must stay as they are."""
        if not graphs.is_op(node, "Conv", "ConvTranspose", "Gemm", "MatMul") or graphs.has_parameters(node):
            return None
        if len(node.inputs) < 2 or result is None or not _is_own(node, 1):
            return None
        weight = graphs.array(node.inputs[1], _LIMIT)
        if weight is None or ir.DataType.from_numpy(weight.dtype) not in _FLOATS or weight.ndim < 2:
            return None
        transposed = node.op_type == "ConvTranspose"
        groups = node.attributes.get_int("group", 1) if "Conv" in node.op_type else 1
        if node.op_type == "Gemm":
            output, input_ = (0, 1) if node.attributes.get_int("transB", 0) else (1, 0)
        elif node.op_type == "MatMul":
            output, input_ = weight.ndim - 1, weight.ndim - 2
        else:
            output, input_ = (1, 0) if transposed else (0, 1)
        if node.op_type == "MatMul" and weight.ndim != 2:
            return None
        outputs = weight.shape[output] * (groups if transposed else 1)
        bias = None
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            found = graphs.array(node.inputs[2], _LIMIT)
            if found is None or found.size not in (1, outputs) or found.shape[-1:] not in ((), (1,), (outputs,)):
                return None
            bias = np.broadcast_to(found.astype(np.float64).ravel(), (outputs,))
        factor = node.attributes.get_float("alpha", 1.0) if node.op_type == "Gemm" else 1.0
        if bias is not None and node.op_type == "Gemm":
            bias = bias * node.attributes.get_float("beta", 1.0)
        return cls(
            node=node, op=node.op_type, weight=weight.astype(np.float64) * factor, bias=bias, dtype=weight.dtype,
            rank=len(result), output_axis=output, input_axis=input_, outputs=outputs, groups=groups, pads=_pads(node),
        )  # fmt: skip

    @property
    def _channel_axis(self) -> int:
        """Return the axis of the output that counts channels, from the end."""
        return -1 if self.op in ("Gemm", "MatMul") else 1 - self.rank

    def per_output(self, array: np.ndarray) -> np.ndarray | None:
        """Return an array that broadcasts with the output as one number per channel, or None."""
        return _per_channel(array, self.outputs, self._channel_axis, self.rank)

    def per_input(self, array: np.ndarray, rank: int) -> np.ndarray | None:
        """Return an array that broadcasts with the input as one number per channel, or None."""
        channels = self.weight.shape[self.input_axis] * (1 if self.op == "ConvTranspose" else self.groups)
        if self.op == "Gemm" and self.node.attributes.get_int("transA", 0) != 0:
            return None
        axis = -1 if self.op in ("Gemm", "MatMul") else 1 - rank
        return _per_channel(array, channels, axis, rank)

    def scaled(self, scale: np.ndarray) -> np.ndarray:
        """Return the weights with the scale of every output channel in them."""
        shape = [1] * self.weight.ndim
        if self.op == "ConvTranspose":
            per_group = np.repeat(scale.reshape(self.groups, -1), self.weight.shape[0] // self.groups, axis=0)
            return np.asarray(self.weight * per_group.reshape(*self.weight.shape[:2], *shape[2:]))
        shape[self.output_axis] = -1
        return np.asarray(self.weight * scale.reshape(shape))

    def along_input(self, scale: np.ndarray) -> np.ndarray:
        """Return one number per input channel in a shape that multiplies the weights."""
        shape = [1] * self.weight.ndim
        if self.groups > 1:
            per_group = scale.reshape(self.groups, -1)  # [groups, inputs of a group]
            per_filter = np.repeat(per_group, self.weight.shape[0] // self.groups, axis=0)
            return per_filter.reshape(*self.weight.shape[:2], *shape[2:])
        shape[self.input_axis] = -1
        return scale.reshape(shape)

    def applied(self, shift: np.ndarray) -> np.ndarray:
        """Return what a constant input of `shift` per channel adds to every output channel."""
        product = self.weight * self.along_input(shift)
        return np.asarray(product.sum(axis=tuple(axis for axis in range(product.ndim) if axis != self.output_axis)))


def _is_own(node: ir.Node, index: int) -> bool:
    """Tell whether a constant input of a node is nobody else's."""
    value = node.inputs[index]
    return value is not None and graphs.constant(value) is not None and graphs.sole_use(value) is node


def _pads(node: ir.Node) -> bool:
    if node.op_type != "Conv":
        return False
    if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return True
    pads = node.attributes.get("pads")
    return pads is not None and any(pads.as_ints())


def _per_channel(array: np.ndarray, channels: int, axis: int, rank: int) -> np.ndarray | None:
    """Return an array as [channels] if it varies along one axis, counted from the end, and no other."""
    if array.ndim > rank:
        return None
    if array.size == 1:
        return np.broadcast_to(array.ravel(), (channels,))
    if array.size != channels or -axis > array.ndim or array.shape[axis] != channels:
        return None
    return array.ravel()


def _elementwise(node: ir.Node) -> _Affine | None:
    """Return what a Mul, Div, Add or Sub by a constant computes."""
    if not graphs.is_op(node, *_SCALES, *_SHIFTS) or len(node.inputs) != 2:
        return None
    for side in (1, 0):
        constant, source = graphs.array(node.inputs[side]), node.inputs[1 - side]
        if constant is None or source is None or graphs.constant(source) is not None:
            continue
        if ir.DataType.from_numpy(constant.dtype) not in _FLOATS:
            return None
        number, one, zero = constant.astype(np.float64), np.ones(()), np.zeros(())
        if node.op_type == "Mul":
            return _Affine(source, number, zero)
        if node.op_type == "Add":
            return _Affine(source, one, number)
        if node.op_type == "Sub":
            return _Affine(source, one, -number) if side == 1 else _Affine(source, -one, number)
        with np.errstate(divide="ignore"):
            return _Affine(source, 1 / number, zero) if side == 1 else None
    return None


def _normalization(node: ir.Node, rank: int) -> _Affine | None:
    """Return what a BatchNormalization in inference computes."""
    if not graphs.is_op(node, "BatchNormalization") or len(node.inputs) != 5 or graphs.has_parameters(node):
        return None
    if node.attributes.get_int("training_mode", 0) or any(value.name for value in node.outputs[1:]):
        return None
    found = [graphs.array(value) for value in node.inputs[1:]]
    if any(array is None for array in found) or not node.attributes.get_int("spatial", 1) or node.inputs[0] is None:
        return None
    gamma, beta, mean, variance = (array.astype(np.float64) for array in found if array is not None)
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    shape = (-1,) + (1,) * (rank - 2)
    return _Affine(node.inputs[0], scale.reshape(shape), (beta - scale * mean).reshape(shape))


def _hand_over(node: ir.Node, linear: ir.Node) -> None:
    """Let a linear operator compute what `node` did, in its place."""
    inputs = [value for value in node.inputs if value is not None]
    old, new = node.outputs[0], linear.outputs[0]
    new.name, new.type, new.shape = old.name, old.type, old.shape
    for key in [key for key in new.metadata_props if key.startswith(FACT_PREFIX)]:
        del new.metadata_props[key]
    new.metadata_props.update({k: fact for k, fact in old.metadata_props.items() if k.startswith(FACT_PREFIX)})
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    assert node.graph is not None
    node.graph.remove(node, safe=True)
    for value in inputs:
        if value is not new:
            graphs.discard(value)
