"""Read and replace what a quantized layer stores: its weight, as rows of integers, and its bias."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import onnx_ir as ir

from graphopt import graphs
from graphopt.passes.quantization._gptq import Levels
from graphopt.passes.quantization._graphs import attribute, constant, input_of
from graphopt.passes.quantization._moments import from_rows, to_rows
from graphopt.passes.quantization._quantized import Affine, Layer, affine

LARGEST_BIAS = 2.0**30
"""Half of int32, which leaves the other half to the accumulated products."""

_INT32 = 2**31 - 1
_SEVEN_BITS = 64


class Names:
    """Names in use in a model."""

    def __init__(self, model: ir.Model) -> None:
        self.values = graphs.names(model)
        self._nodes = {node.name for node in model.graph.all_nodes()}

    def node(self, name: str) -> str:
        """Return a name for a node and its output."""
        while name in self._nodes or self.values[name]:
            name += "_"
        self._nodes.add(name)
        self.values[name] += 1
        return name


@dataclasses.dataclass(frozen=True)
class Rows:
    """A weight as integers times scales.

    Attributes:
        integers: float64 [groups, channels, inputs], zero being zero.
        scale: float64 [groups, channels].
    """

    integers: np.ndarray
    scale: np.ndarray

    @property
    def floats(self) -> np.ndarray:
        """What they stand for."""
        result: np.ndarray = self.integers * self.scale[..., None]
        return result


@dataclasses.dataclass(frozen=True)
class Bias:
    """Where the bias of a layer is, or would be.

    Attributes:
        node: the operator that adds it.
        index: at which input.
        affine: the stored integers; None for a float bias, or for none.
    """

    node: ir.Node
    index: int
    affine: Affine | None

    @property
    def present(self) -> bool:
        """Whether there is one."""
        return input_of(self.node, self.index) is not None

    def values(self, channels: int) -> np.ndarray:
        """Return what is added now, float64 [channels]."""
        if self.affine:
            integers = self.affine.integers.astype(np.float64)
            held = integers * self.affine.along(self.affine.scale.astype(np.float64), integers.ndim)
        else:
            found = constant(input_of(self.node, self.index))
            held = np.zeros(1) if found is None else found.astype(np.float64)
        return np.broadcast_to(held.reshape(-1), (channels,))


def rows_of(layer: Layer) -> Rows:
    """Return the weight of a layer."""
    weight = layer.weight
    integers = weight.integers
    integers = to_rows(layer.node, (integers - weight.along(weight.zero_point, integers.ndim)).astype(np.float64))
    count = integers[..., 0].size
    scale = np.broadcast_to(weight.scale.astype(np.float64).reshape(-1), (count,))
    return Rows(integers, scale.reshape(integers.shape[:2]))


def levels_of(layer: Layer) -> Levels:
    """Return the integers that a weight may take.

    The most negative one of 8 bits and less than 4 stays unused where zero is in the middle, so that every value has its
    negative; and a weight that keeps to 7 bits, as it must where pairs of products saturate, is kept to them.
    """
    weight = layer.weight
    low, high = ml_dtypes.iinfo(weight.dtype.numpy()).min, ml_dtypes.iinfo(weight.dtype.numpy()).max
    if not np.any(weight.zero_point) and weight.dtype.bitwidth != 4:
        low = max(low, -high)
    if weight.dtype.bitwidth == 8 and np.abs(rows_of(layer).integers).max(initial=0) <= _SEVEN_BITS:
        return Levels(-_SEVEN_BITS, _SEVEN_BITS)
    zero = weight.zero_point.reshape(-1)
    shape = (*rows_of(layer).scale.shape, 1) if zero.size > 1 else ()
    return Levels(low - zero.reshape(shape), high - zero.reshape(shape))


def write_weight(graph: ir.Graph, layer: Layer, rows: Rows, names: Names) -> Layer:
    """Store a weight, and its scale if that is another; return the layer as it is then.

    A bias on the grid of the integer products follows them to the new grid: its integers are then those of the old one,
    until they are written as well.
    """
    weight, node = layer.weight, layer.node
    shape = weight.integers.shape
    zero = weight.along(weight.zero_point, len(shape))
    integers = (from_rows(node, rows.integers, shape) + zero).astype(weight.dtype.numpy())
    cast = weight.node.inputs[0].producer() if weight.node.inputs[0] is not weight.source else None  # type: ignore[union-attr]
    graphs.set_constant(graph, cast or weight.node, 0, integers, names.values)
    if weight.scale.size == rows.scale.size:
        scale = rows.scale.astype(np.float32).reshape(weight.scale.shape)
        if not np.array_equal(scale, weight.scale):
            graphs.set_constant(graph, weight.node, 1, scale, names.values)
            if layer.bias and layer.input and _follows(layer):
                product = (layer.input.scale.reshape(()) * scale).reshape(layer.bias.scale.shape)
                graphs.set_constant(graph, layer.bias.node, 1, product, names.values)
    return reread(layer)


def reread(layer: Layer) -> Layer:
    """Return a layer as it is after a change."""
    weight = affine(layer.node.inputs[1])
    assert weight is not None
    node, index = _bias_input(layer)
    bias = affine(input_of(node, index))
    stored = bias is not None and constant(bias.source) is not None
    return dataclasses.replace(layer, weight=weight, bias=bias if stored else None)


def bias_of(layer: Layer) -> Bias | str:
    """Return where a layer's bias is, or why it cannot be changed."""
    node, index = _bias_input(layer)
    if node.op_type == "MatMul":
        return "it adds no constant bias"
    held = input_of(node, index)
    if held is not None and layer.bias is None and constant(held) is None:
        return "its bias is computed"
    if node.op_type == "Gemm" and (attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)) != (1.0, 1.0):
        return "alpha or beta is not 1"
    if layer.bias and len(layer.bias.node.outputs[0].uses()) > 1:
        return "its bias is shared"
    if layer.bias and np.any(layer.bias.zero_point):
        return "its bias has a zero point"
    return Bias(node, index, layer.bias)


def write_bias(graph: ir.Graph, layer: Layer, values: np.ndarray, names: Names) -> tuple[bool, int]:
    """Store a bias; return whether it changed, and how many of its numbers do not fit into int32 and are cut.

    Args:
        graph: that holds the layer.
        layer: of which `bias_of` knows the bias; where it has none yet, it gets one on the grid of its integer products.
        values: float64 [channels].
        names: of the model.
    """
    bias = bias_of(layer)
    assert isinstance(bias, Bias)
    before, lost = bias.values(values.size), 0
    held, product = input_of(bias.node, bias.index), integer_scale(layer)
    if bias.affine:
        integers, lost = _integers(values, bias.affine.scale)
        old = bias.affine.integers
        shape = old.shape if old.size == integers.size else integers.shape
        graphs.set_constant(graph, bias.affine.node, 0, integers.reshape(shape), names.values)
    elif held is None and product is not None:
        integers, lost = _integers(values, product)
        _add_bias(graph, layer, bias, integers, product, names)
    else:
        array = constant(held)
        shape = array.shape if array is not None and array.size == values.size else values.shape
        graphs.set_constant(graph, bias.node, bias.index, values.astype(np.float32).reshape(shape), names.values)
    after = bias_of(reread(layer))
    assert isinstance(after, Bias)
    return not np.array_equal(before, after.values(values.size)), lost


def integer_scale(layer: Layer) -> np.ndarray | None:
    """Return the scale of a layer's integer products, float32 scalar or [channels]; None if it computes in float."""
    if layer.input is None or layer.input.scale.size != 1:
        return None
    product: np.ndarray = layer.input.scale.reshape(()) * layer.weight.scale
    return product


def biased(layer: Layer) -> ir.Node:
    """Return the operator behind which a layer's bias is added: itself, or the Add behind a MatMul."""
    if layer.node.op_type != "MatMul":
        return layer.node
    user = graphs.sole_use(layer.node.outputs[0])
    if user is None or user.op_type != "Add" or user.domain != "":
        return layer.node
    if layer.bias is not None:
        return user
    other = constant(next((value for value in user.inputs if value is not layer.node.outputs[0]), None))
    return user if other is not None and other.ndim and other.size == other.shape[-1] else layer.node


def _bias_input(layer: Layer) -> tuple[ir.Node, int]:
    node = biased(layer)
    if node is layer.node:
        return node, 2
    return node, next(i for i, value in enumerate(node.inputs) if value is not layer.node.outputs[0])


def _follows(layer: Layer) -> bool:
    """Tell whether the scale of the bias is that of the integer products."""
    product = integer_scale(layer)
    if layer.bias is None or product is None or layer.bias.scale.size != product.size:
        return False
    return bool(np.allclose(layer.bias.scale.reshape(-1), product.reshape(-1), rtol=1e-3, atol=0))


def _integers(values: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the nearest int32 numbers, and how many are cut."""
    integers = np.rint(values / scale.astype(np.float64).reshape(-1))
    lost = int(np.sum(np.abs(integers) > _INT32))
    return np.clip(integers, -_INT32, _INT32).astype(np.int32), lost


def _add_bias(graph: ir.Graph, layer: Layer, bias: Bias, integers: np.ndarray, scale: np.ndarray, names: Names) -> None:
    base = layer.weight.source.name or "weight"
    stored = graphs.initializer(graph, integers, f"{base}_bias", names.values)
    scales = graphs.initializer(graph, scale, f"{base}_bias_scale", names.values)
    name = names.node(f"{base}_bias_dq")
    axis = [ir.Attr("axis", ir.AttributeType.INT, 0)] if scale.ndim else []
    made = ir.Node("", "DequantizeLinear", [stored, scales], axis, name=name, outputs=[ir.Value(name=name)])
    graph.insert_before(bias.node, made)
    bias.node.resize_inputs(max(len(bias.node.inputs), bias.index + 1))
    bias.node.replace_input_with(bias.index, made.outputs[0])
