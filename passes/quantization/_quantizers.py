"""The way from a graph's inputs to the nodes that quantize them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx_ir as ir

from graphopt import graphs
from graphopt.passes.quantization._graphs import attribute, constant, input_of, label

_MOVING = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_ARITHMETIC = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}
_BYTES = (ir.DataType.UINT8, ir.DataType.INT8)


class NotPossible(Exception):
    """An input or output must stay as it is; the text says why."""


@dataclasses.dataclass(frozen=True)
class Integers:
    """What 8-bit integers stand for: `(q - zero_point) * scale`.

    Attributes:
        scale: float32.
        zero_point: the integer that stands for 0.
        dtype: of the integers.
    """

    scale: float
    zero_point: int
    dtype: ir.DataType

    def quantize(self, array: np.ndarray) -> np.ndarray:
        """Return what QuantizeLinear makes of float32 numbers."""
        info = np.iinfo(self.dtype.numpy())
        steps = np.rint(array.astype(np.float32) / np.float32(self.scale)) + self.zero_point
        return np.asarray(np.clip(steps, info.min, info.max).astype(self.dtype.numpy()))

    def __str__(self) -> str:
        """Return it in words."""
        scale = f"{self.scale:.9g}"
        shift = f" {'-' if self.zero_point > 0 else '+'} {abs(self.zero_point)}" if self.zero_point else ""
        return f"{self.dtype.name.lower()} q for (q{shift}) * {scale}"


def of_quantizer(node: ir.Node) -> Integers:
    """Return what a QuantizeLinear makes.

    Raises:
        NotPossible: no 8-bit integers, or by parameters that are computed or differ along an axis.
    """
    scale, zero = constant(input_of(node, 1)), constant(input_of(node, 2))
    if scale is None or (zero is None and input_of(node, 2) is not None):
        raise NotPossible(f"{label(node)} quantizes it by parameters that are computed")
    if scale.size != 1 or scale.dtype != np.float32:
        raise NotPossible(f"{label(node)} quantizes it by more than one scale, or not in float32")
    stored = input_of(node, 2)
    dtype = stored.dtype if stored is not None else ir.DataType(attribute(node, "output_dtype", 0) or ir.DataType.UINT8)
    if dtype not in _BYTES:
        raise NotPossible(f"{label(node)} does not quantize it to 8 bits")
    assert dtype is not None
    return Integers(float(scale.reshape(())), 0 if zero is None else int(zero.reshape(())), dtype)


@dataclasses.dataclass(frozen=True)
class Path:
    """Nodes between a graph input and the QuantizeLinear at their end.

    Attributes:
        steps: what moves elements, or computes with each of them alone.
        quantizer: the QuantizeLinear.
        integers: what it makes.
    """

    steps: tuple[ir.Node, ...]
    quantizer: ir.Node
    integers: Integers

    @property
    def moves_only(self) -> bool:
        """Whether it only moves elements."""
        return all(node.op_type in _MOVING for node in self.steps)

    def is_identity(self, dtype: ir.DataType) -> bool:
        """Tell whether every integer of a type comes out of the path as it went in."""
        if dtype != self.integers.dtype or dtype not in _BYTES:
            return False
        info = np.iinfo(dtype.numpy())
        every = np.arange(info.min, info.max + 1).astype(dtype.numpy())
        array = every
        for node in self.steps:
            if node.op_type == "Cast":
                array = every.astype(np.float32)
            elif node.op_type in _ARITHMETIC:
                first, second = (constant(value) for value in node.inputs)
                operands = [array if given is None else given.reshape(()) for given in (first, second)]
                array = _ARITHMETIC[node.op_type](*operands)
        return array.dtype == np.float32 and np.array_equal(self.integers.quantize(array), every)

    def bypass(self, source: ir.Value) -> None:
        """Lead integers around everything but what moves them."""
        value = source
        for node in self.steps:
            if node.op_type in _MOVING:
                old = node.inputs[0]
                assert old is not None
                node.replace_input_with(0, value)
                graphs.discard(old)
                value = node.outputs[0]
                value.type = ir.TensorType(self.integers.dtype)
                value.metadata_props.clear()  # facts about the floats
        result = self.quantizer.outputs[0]
        if result.is_graph_output():
            graphs.compute_by_identity(result, value)
        else:
            result.replace_all_uses_with(value)
        graphs.discard(result)


def paths(value: ir.Value) -> list[Path]:
    """Return the paths from a graph input to all that quantizes it.

    Raises:
        NotPossible: something else reads it, too.
    """
    if value.is_initializer():
        raise NotPossible("it has a default value")
    found = _follow(value, ())
    if not found:
        raise NotPossible("nothing reads it")
    return found


def _follow(value: ir.Value, steps: tuple[ir.Node, ...]) -> list[Path]:
    if value.is_graph_output():
        raise NotPossible(f"'{value.name}' is an output of the model")
    found: list[Path] = []
    for node, index in value.uses():
        if node.graph is not _graph_of(value):
            raise NotPossible(f"the body of a control-flow node reads '{value.name}'")
        if graphs.is_op(node, "QuantizeLinear") and index == 0:
            found.append(Path(steps, node, of_quantizer(node)))
        elif _may_pass(node, index):
            found += _follow(node.outputs[0], (*steps, node))
        else:
            raise NotPossible(f"{label(node)} ({node.op_type}) reads it, not QuantizeLinear alone")
    return found


def _graph_of(value: ir.Value) -> object:
    node = value.producer()
    return value.graph if node is None else node.graph


def _may_pass(node: ir.Node, index: int) -> bool:
    if graphs.is_op(node, *_MOVING):
        return index == 0
    if graphs.is_op(node, "Cast"):
        return bool(attribute(node, "to", 0) == ir.DataType.FLOAT)
    if not graphs.is_op(node, *_ARITHMETIC):
        return False
    other = constant(node.inputs[1 - index])
    return other is not None and math.prod(other.shape) == 1
