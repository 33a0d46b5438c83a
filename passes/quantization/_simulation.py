"""A model that computes, on any processor, what another model yields on processors without VNNI.

Every layer is written out in operators of standard ONNX: the exact sums of products of unsigned bytes in 32 bits
(ConvInteger, MatMulInteger), and for every pair of products that can saturate what saturation changes, `clip(s) - s` with
the sum s of the pair. All of these numbers are whole and below 2^24, so float32 holds them exactly. The way from these sums
to the next integers is in float32, where ONNX Runtime's kernels round in another order: a few in a million of them
become a neighbour.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import graphs, saturation
from graphopt.passes.quantization._graphs import attribute, input_of, label
from graphopt.passes.quantization._saturation import Site, sites
from graphopt.pipeline import duplicate

_SEGMENT = 256
"""Pairs of one channel that are summed in float32, whose 24 bits hold 256 sums of 16 bits."""
_SLOTS = 256
"""Pairs that are computed at a time, which bounds memory."""


@dataclasses.dataclass(frozen=True)
class Simulated:
    """A simulation.

    Attributes:
        model: the model that computes what a processor without VNNI would.
        changes: by layer, the value that holds what saturation adds to its 32-bit sums, [..., channels].
        skipped: `(node, reason)` for layers that can saturate and are computed exactly nevertheless.
    """

    model: ir.Model
    changes: dict[str, ir.Value]
    skipped: list[tuple[str, str]]


def simulate(model: ir.Model, *, exact: bool = False) -> Simulated:
    """Return a simulation of a model, which stays as it is.

    Args:
        model: a quantized model.
        exact: compute what a processor with VNNI would, on whatever runs the simulation.
    """
    made = duplicate(model)
    taken = graphs.names(made)
    changes, skipped = {}, []
    for graph in (made.graph, *made.graph.subgraphs()):
        for site in list(sites(graph)):
            reason = _obstacle(site)
            saturates = bool(site.guilty.any()) and not exact
            if reason is None:
                change = _Layer(site, graph, taken).write(saturates=saturates)
                if saturates:
                    changes[label(site.node)] = change
            elif saturates:
                skipped.append((label(site.node), reason))
    return Simulated(made, changes, skipped)


def _obstacle(site: Site) -> str | None:
    weight = site.layer.weight
    if site.depthwise:
        return "its kernel is exact"
    if site.node.op_type == "MatMul" and weight.integers.ndim != 2:
        return "its weights are a batch of matrices, which is not simulated"
    if len(np.unique(weight.zero_point)) > 1:
        return "its weights have several zero points, which is not simulated"
    return None


@dataclasses.dataclass(frozen=True)
class _Segment:
    """Pairs of one channel that are summed together.

    Attributes:
        channel: the output channel.
        turn: 0 for the first pairs of the channel, 1 for the next ...
        pairs: where they stand in a row.
    """

    channel: int
    turn: int
    pairs: np.ndarray


class _Layer(ir.tape.Tape):
    """Writes one layer out."""

    def __init__(self, site: Site, graph: ir.Graph, taken: Counter[str]) -> None:
        super().__init__()
        self._site, self._graph, self._taken = site, graph, taken
        self._stem = site.node.outputs[0].name or "y"
        self._weight = site.layer.weight.integers
        self._rows = site.rows(self._weight)
        self._zero = int(site.activation.zero_point.reshape(-1)[0]) + site.offset
        self._is_conv = site.node.op_type == "Conv"

    def write(self, *, saturates: bool) -> ir.Value:
        """Let the node be the last of those that replace it; return what saturation adds to the sums, if it does."""
        node = self._site.node
        stored = self._stored()
        total = change = self._exact(stored)
        if saturates:
            change = self._change(self._add("Cast", [stored], to=ir.DataType.FLOAT))
            total = self._add("Add", [total, change])
        scaled = [self._add("Cast", [total], to=ir.DataType.FLOAT), self._scale()]
        bias = input_of(node, 2) if node.op_type != "MatMul" else None
        last: tuple[str, list[ir.Value]] = ("Mul", scaled)
        if bias is not None:
            last = "Add", [self._add("Mul", scaled), self._bias(bias)]
        for value in self.initializers:
            self._graph.register_initializer(value)
        self._graph.insert_before(node, self.nodes)
        graphs.become(node, *last)
        return change

    def _stored(self) -> ir.Value:
        """Return the activations as the kernel reads them: unsigned bytes, rows last."""
        source = self._site.activation.source
        if self._site.offset:
            wide = self._add("Cast", [source], to=ir.DataType.INT32)
            raised = self._add("Add", [wide, self._constant(np.array(self._site.offset, np.int32))])
            source = self._add("Cast", [raised], to=ir.DataType.UINT8)
        if self._site.node.op_type == "Gemm" and attribute(self._site.node, "transA", 0):
            source = self._add("Transpose", [source], perm=[1, 0])
        return source

    def _exact(self, stored: ir.Value) -> ir.Value:
        """Return the sums of products, less zero points, without saturation: those of unsigned weights."""
        weight = self._weight if self._is_conv else self._rows.T
        raised = 128 if self._site.layer.weight.dtype.is_signed() else 0
        zero = int(self._site.layer.weight.zero_point.reshape(-1)[0])
        inputs = [
            stored,
            self._constant((weight + raised).astype(np.uint8)),
            self._constant(np.array(self._zero, np.uint8)),
            self._constant(np.array(zero + raised, np.uint8)),
        ]
        if self._is_conv:
            return self._add("ConvInteger", inputs, **self._geometry(), group=self._groups)
        return self._add("MatMulInteger", inputs)

    def _change(self, stored: ir.Value) -> ir.Value:
        """Return what saturation adds to the sums, int32.

        Segments of pairs are computed in blocks, which are put side by side behind a column of zeros. A channel then
        picks its first segment, if it has one, and its second, ...
        """
        if self._is_conv:
            stored = self._columns(stored)
        segments = self._segments()
        columns = [self._block(stored, block) for block in _blocks(segments)]
        axis = 1 if self._is_conv else -1
        row = self._add("Concat", columns, axis=axis) if len(columns) > 1 else columns[0]
        row = self._add("Cast", [row], to=ir.DataType.INT32)
        total: ir.Value | None = None
        for turn in range(1 + max(segment.turn for segment in segments)):
            places = np.full(len(self._rows), len(segments) - 1)  # the last one is empty
            for place, segment in enumerate(segments[:-1]):
                if segment.turn == turn:
                    places[segment.channel] = place
            picked = self._add("Gather", [row, self._constant(places.astype(np.int64))], axis=axis)
            total = picked if total is None else self._add("Add", [total, picked])
        assert total is not None
        return total

    def _segments(self) -> list[_Segment]:
        """Return all segments, the long ones first, and an empty one at the end."""
        found = []
        for channel in np.flatnonzero(self._site.guilty.any(axis=1)):
            pairs = np.flatnonzero(self._site.guilty[channel])
            for turn, start in enumerate(range(0, len(pairs), _SEGMENT)):
                found.append(_Segment(int(channel), turn, pairs[start : start + _SEGMENT]))
        found.sort(key=lambda segment: -len(segment.pairs))
        return [*found, _Segment(0, 0, np.array([], np.int64))]

    def _block(self, stored: ir.Value, block: Sequence[_Segment]) -> ir.Value:
        """Return what saturation adds in some segments, float32, one column for each."""
        width = max(1, *(len(segment.pairs) for segment in block))
        places = np.zeros((len(block), width), np.int64)
        weights = np.zeros((len(block), width, 2), np.float32)
        for index, segment in enumerate(block):
            places[index, : len(segment.pairs)] = segment.pairs
            weights[index, : len(segment.pairs)] = saturation.pairs(self._rows[[segment.channel]])[0, segment.pairs]
        sums = self._sums(stored, np.array([segment.channel for segment in block]), places, weights)
        ends = [self._constant(np.array(end, np.float32)) for end in (saturation.LOW, saturation.HIGH)]
        change = self._add("Sub", [self._add("Clip", [sums, *ends]), sums])
        axes = self._constant(np.array([2 if self._is_conv else -1]))
        return self._add("ReduceSum", [change, axes], keepdims=0)

    def _sums(self, stored: ir.Value, channels: np.ndarray, places: np.ndarray, weights: np.ndarray) -> ir.Value:
        """Return the sums of pairs of products, [..., segments, pairs], of convolutions [N, segments, pairs, ...]."""
        last = self._rows.shape[1] - 1
        terms = []
        for side in (0, 1):
            index = np.minimum(2 * places + side, last)  # an odd row ends with a pair of which one weight is 0
            factors = weights[..., side]
            if self._is_conv:
                index = self._column(index, channels)
                factors = factors.reshape(*factors.shape, *[1] * (self._weight.ndim - 2))
            taken = self._add("Gather", [stored, self._constant(index)], axis=1 if self._is_conv else -1)
            terms.append(self._add("Mul", [taken, self._constant(factors)]))
        return self._add("Add", terms)

    def _columns(self, stored: ir.Value) -> ir.Value:
        """Return what each position of the kernel meets, [N, positions * channels, ...]: depthwise convolutions with 1.

        These pad with zeros, where bytes are padded with the zero point.
        """
        zero = self._constant(np.array(self._zero, np.float32))
        centred = self._add("Sub", [stored, zero])
        kernel = self._weight.shape[2:]
        parts = []
        for place in range(math.prod(kernel)):
            weight = np.zeros((self._channels, 1, math.prod(kernel)), np.float32)
            weight[:, :, place] = 1
            inputs = [centred, self._constant(weight.reshape(self._channels, 1, *kernel))]
            parts.append(self._add("Conv", inputs, **self._geometry(), group=self._channels))
        side_by_side = self._add("Concat", parts, axis=1) if len(parts) > 1 else parts[0]
        return self._add("Add", [side_by_side, zero])

    def _column(self, index: np.ndarray, channels: np.ndarray) -> np.ndarray:
        """Return where elements of rows of output channels stand among the columns, which are those of all groups."""
        width = self._weight.shape[1]
        group = channels // (len(self._weight) // self._groups)
        return np.asarray(index // width * self._channels + group[:, None] * width + index % width)

    @property
    def _groups(self) -> int:
        return int(attribute(self._site.node, "group", 1))

    @property
    def _channels(self) -> int:
        """The number of input channels of a convolution."""
        return int(self._weight.shape[1]) * self._groups

    def _geometry(self) -> dict[str, Any]:
        """Return the attributes of the convolution, without its groups."""
        return {name: found.value for name, found in self._site.node.attributes.items() if name != "group"}

    def _scale(self) -> ir.Value:
        """Return what one unit of the 32-bit sums stands for, per channel or for all."""
        node = self._site.node
        alpha = np.float32(attribute(node, "alpha", 1.0))
        scale = self._site.layer.weight.scale * self._site.activation.scale.reshape(()) * alpha
        return self._constant(self._per_channel(np.asarray(scale, np.float32)))

    def _per_channel(self, array: np.ndarray) -> np.ndarray:
        return array.reshape(-1, *[1] * (self._weight.ndim - 2)) if self._is_conv else array.reshape(-1)

    def _bias(self, bias: ir.Value) -> ir.Value:
        """Return the bias in a shape that broadcasts against the result."""
        if self._is_conv:
            shape = np.array([-1, *[1] * (self._weight.ndim - 2)])
            return self._add("Reshape", [bias, self._constant(shape)])
        beta = np.float32(attribute(self._site.node, "beta", 1.0))
        return bias if beta == 1 else self._add("Mul", [bias, self._constant(beta)])

    def _add(self, op_type: str, inputs: Sequence[ir.Value], **attributes: Any) -> ir.Value:
        value = self.op(op_type, inputs, attributes)
        value.name = graphs.fresh(f"{self._stem}_{op_type}", self._taken)
        node = value.producer()
        assert node is not None
        node.name = value.name
        return value

    def _constant(self, array: Any) -> ir.Value:
        name = graphs.fresh(f"{self._stem}_constant", self._taken)
        return self.initializer(ir.tensor(np.asarray(array), name=name))


def _blocks(segments: Sequence[_Segment]) -> Iterator[list[_Segment]]:
    """Cut segments into blocks of as many pairs as are computed at a time."""
    block: list[_Segment] = []
    for segment in segments:
        if block and (len(block) + 1) * len(block[0].pairs) > _SLOTS:
            yield block
            block = []
        block.append(segment)
    yield block
