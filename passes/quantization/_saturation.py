"""Which layers of a quantized graph can saturate on processors without VNNI (see `graphopt.saturation`).

The rows of a convolution's weights lie in the order (kernel position, channel), that of its images in channels-last
layout: ONNX Runtime's im2col and its kernels without im2col both go through the positions of the kernel, and at each one
through the channels of the group. Odd numbers of channels make pairs that straddle two positions. Depthwise convolutions
have kernels of their own, which are exact, and convolutions whose result is not quantized compute in float.

Signed activations become unsigned ones before they reach a kernel on these processors: ONNX Runtime adds 128.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from graphopt import saturation
from graphopt.passes.quantization._graphs import attribute, constant, input_of, is_float, sole_consumer
from graphopt.passes.quantization._quantized import Affine, Layer, layers

_BYTES = (ir.DataType.UINT8, ir.DataType.INT8)
_MOVING = ("Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")


@dataclasses.dataclass(frozen=True)
class Site:
    """A layer that multiplies 8-bit integers.

    Attributes:
        layer: the layer; its input is quantized.
        activation: what dequantizes that.
        low, high: range of the activation's integers, as unsigned ones.
    """

    layer: Layer
    activation: Affine
    low: int
    high: int

    @property
    def node(self) -> ir.Node:
        """The operator."""
        return self.layer.node

    @property
    def offset(self) -> int:
        """What is added to the activation's integers to make unsigned ones of them."""
        return 128 if self.activation.dtype == ir.DataType.INT8 else 0

    @property
    def exempt(self) -> bool:
        """Whether its kernel is exact: for unsigned weights, and where no two products are summed in 16 bits."""
        return not self.layer.weight.dtype.is_signed() or self.depthwise

    @property
    def depthwise(self) -> bool:
        """Whether every output channel has one input channel of its own."""
        return is_depthwise(self.node, self.layer.weight.integers)

    def rows(self, weight: np.ndarray) -> np.ndarray:
        """Return an array like the weight as the kernel lays it out: one row per output channel, [C, K]."""
        return rows(self.node, weight)

    def unrows(self, rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Return rows in the shape of the weight again."""
        if self.node.op_type == "Conv":
            return np.moveaxis(rows.reshape(shape[0], *shape[2:], shape[1]), -1, 1)
        if self.node.op_type == "Gemm" and attribute(self.node, "transB", 0):
            return rows
        return np.swapaxes(rows.reshape(*shape[:-2], shape[-1], shape[-2]), -1, -2)

    @functools.cached_property
    def guilty(self) -> np.ndarray:
        """The pairs that can saturate, bool [C, pairs]."""
        rows = self.rows(self.layer.weight.integers)
        if self.exempt:
            return np.zeros((len(rows), (rows.shape[1] + 1) // 2), bool)
        return saturation.can_saturate(rows, self.low, self.high)

    @functools.cached_property
    def suspicious(self) -> np.ndarray:
        """The channels that can saturate if a kernel pairs its operands in another order, bool [C]."""
        rows = self.rows(self.layer.weight.integers)
        if self.exempt:
            return np.zeros(len(rows), bool)
        return saturation.can_saturate_in_any_order(rows, self.low, self.high)


def rows(node: ir.Node, weight: np.ndarray) -> np.ndarray:
    """Return a weight as the kernel of an operator lays it out: one row per output channel, [C, K]."""
    if node.op_type in ("Conv", "QLinearConv"):
        return np.moveaxis(weight, 1, -1).reshape(len(weight), -1)
    if node.op_type == "Gemm" and attribute(node, "transB", 0):
        return weight
    return np.swapaxes(weight, -1, -2).reshape(-1, weight.shape[-2])


def is_depthwise(node: ir.Node, weight: np.ndarray) -> bool:
    """Tell whether every output channel has one input channel of its own."""
    group = attribute(node, "group", 1)
    return node.op_type in ("Conv", "QLinearConv") and group > 1 and weight.shape[1] == 1 and len(weight) == group


def sites(graph: ir.Graph) -> Iterator[Site]:
    """Yield the layers of one graph (not of bodies in it) that multiply 8-bit integers, in order."""
    for layer in layers(graph):
        found = layer.input
        if found is None or found.dtype not in _BYTES or found.axis is not None or found.scale.size != 1:
            continue
        if not all(is_float(part.node.inputs[1]) for part in (found, layer.weight)):
            continue  # kernels compute from float32 scales only
        if layer.node.op_type == "ConvTranspose" or not _is_quantized(layer.node):
            continue
        low, high = _range(found)
        yield Site(layer, found, low, high)


def _is_quantized(node: ir.Node) -> bool:
    """Tell whether an integer kernel is made of a node; of a convolution only if its result is quantized, too."""
    if node.op_type != "Conv":
        return True
    user = sole_consumer(node.outputs[0])
    while user is not None and user.op_type in ("Relu", "Clip"):
        user = sole_consumer(user.outputs[0])
    return user is not None and user.op_type == "QuantizeLinear"


def _range(activation: Affine) -> tuple[int, int]:
    """Return the range of an activation's integers as unsigned ones: of their type, less where a Clip cuts them.

    Padding is the zero point, so that belongs to it, too.
    """
    offset = 128 if activation.dtype == ir.DataType.INT8 else 0
    low, high = -offset, 255 - offset
    node = activation.source.producer()
    while node is not None and node.op_type in (*_MOVING, "Clip"):
        if node.op_type == "Clip":
            ends = [constant(input_of(node, index)) for index in (1, 2)]
            low = max(low, int(ends[0])) if ends[0] is not None else low
            high = min(high, int(ends[1])) if ends[1] is not None else high
        source = node.inputs[0]
        node = source.producer() if source is not None else None
    zero = int(activation.zero_point.reshape(-1)[0])
    return min(low, zero) + offset, max(high, zero) + offset
