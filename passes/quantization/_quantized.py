"""Read a graph that is quantized already, whoever wrote it: the layers with integer weights in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from graphopt.passes.quantization._graphs import attribute, constant, input_of

INTEGER = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "MatMulNBits", "ConvInteger")
"""Operators by which a quantized model shows."""

_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclasses.dataclass(frozen=True)
class Affine:
    """What a DequantizeLinear node turns to float: `(integers - zero_point) * scale`.

    Attributes:
        node: the DequantizeLinear node.
        source: what it reads; for narrow weights the initializer behind a Cast.
        scale: float32, a scalar or [channels].
        zero_point: of the integers' type and the shape of `scale`.
        dtype: of the integers as they are stored, such as uint8 or int4.
        axis: the channel axis; None for one scale for all.
    """

    node: ir.Node
    source: ir.Value
    scale: np.ndarray
    zero_point: np.ndarray
    dtype: ir.DataType
    axis: int | None

    @property
    def integers(self) -> np.ndarray:
        """The stored integers, in a type in which numpy computes: int32."""
        array = constant(self.source)
        assert array is not None, "it is computed, not stored"
        return array.astype(np.int32)

    def along(self, parameter: np.ndarray, rank: int) -> np.ndarray:
        """Return a scale or zero point in a shape that broadcasts against the integers."""
        if self.axis is None or parameter.ndim == 0:
            return parameter.reshape(())
        shape = [1] * rank
        shape[self.axis] = -1
        return parameter.reshape(shape)

    def floats(self) -> np.ndarray:
        """Return what stored integers stand for, float32."""
        integers = self.integers
        scale, zero = (self.along(p, integers.ndim) for p in (self.scale, self.zero_point.astype(np.int32)))
        result: np.ndarray = ((integers - zero) * scale.astype(np.float32)).astype(np.float32)
        return result

    def store(self, integers: np.ndarray) -> None:
        """Replace the stored integers; whoever shares the initializer gets them, too.

        Args:
            integers: of the same shape, within the range of the type.
        """
        tensor = self.source.const_value
        assert tensor is not None
        array = integers.astype(self.dtype.numpy())
        self.source.const_value = ir.tensor(array, self.dtype, name=tensor.name)


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution or matrix product with a stored integer weight.

    Attributes:
        node: the operator.
        weight: its weight.
        input: its activation, if that is quantized; None when it is computed in float.
        bias: its bias, if that is stored in integers; None when there is none, or a float one.
    """

    node: ir.Node
    weight: Affine
    input: Affine | None
    bias: Affine | None

    @property
    def channel_axis(self) -> int:
        """The axis of the weight that counts output channels."""
        if self.node.op_type == "Conv":
            return 0
        if self.node.op_type == "Gemm":
            return 1 - int(attribute(self.node, "transB", 0))
        return 1 if self.node.op_type == "ConvTranspose" else len(constant(self.weight.source).shape) - 1  # type: ignore[union-attr]


def layers(graph: ir.Graph) -> Iterator[Layer]:
    """Yield the layers of one graph (not of bodies in it) whose weights are stored in integers, in order."""
    for node in graph:
        if node.domain != "" or node.op_type not in _LINEAR:
            continue
        weight = affine(input_of(node, 1))
        if weight is None or constant(weight.source) is None:
            continue
        bias = affine(input_of(node, 2)) if node.op_type != "MatMul" else _added(node)
        yield Layer(node, weight, affine(node.inputs[0]), bias if bias and constant(bias.source) is not None else None)


def affine(value: ir.Value | None) -> Affine | None:
    """Return what dequantizes a value; None if nothing does, or with parameters that are computed or in blocks."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear":
        return None
    scale, source = constant(input_of(node, 1)), node.inputs[0]
    zero = constant(input_of(node, 2))
    if scale is None or source is None or scale.ndim > 1 or (zero is None and input_of(node, 2) is not None):
        return None
    cast = source.producer()
    if cast is not None and cast.op_type == "Cast" and constant(cast.inputs[0]) is not None:
        source = cast.inputs[0]
        assert source is not None
    dtype = source.const_value.dtype if source.const_value is not None else source.dtype
    if dtype is None:
        dtype = _made_type(source)
    axis = int(attribute(node, "axis", 1)) if scale.size > 1 else None
    rank = len(constant(source).shape) if constant(source) is not None else None  # type: ignore[union-attr]
    if axis is not None and rank is not None:
        axis %= rank
    if zero is None:
        zero = np.zeros(scale.shape, np.int32)
    return Affine(node, source, scale.astype(np.float32), zero.astype(np.int32), dtype, axis)


def _made_type(value: ir.Value) -> ir.DataType:
    """Return the type of integers that carry none: that of the zero point of what quantized them."""
    node = value.producer()
    while node is not None and node.op_type != "QuantizeLinear" and node.inputs and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    zero = input_of(node, 2) if node is not None else None
    if zero is not None and zero.dtype is not None:
        return zero.dtype
    return ir.DataType.UINT8


def _added(node: ir.Node) -> Affine | None:
    """Return the stored bias that an Add behind a MatMul holds."""
    users = [user for user, _ in node.outputs[0].uses()]
    if len(users) != 1 or users[0].op_type != "Add":
        return None
    other = next((value for value in users[0].inputs if value is not node.outputs[0]), None)
    found = affine(other)
    return found if found is not None and constant(found.source) is not None else None
