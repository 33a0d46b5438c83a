"""Quantization with gradients: what trains in a QDQ graph, and how it is rounded in the end.

A stored weight (integers or narrow floats that only DequantizeLinear reads, perhaps through Cast) is trained as a float
master, and the node that dequantizes it computes what it would if the master were rounded and stored: values within
range pass their gradient on as if rounding were the identity (the straight-through estimator of Bengio et al.,
arXiv:1308.3432), those outside pass none. A QuantizeLinear whose output reaches nothing but DequantizeLinear, perhaps
through operators that only move numbers, is simulated by whole numbers held in floats; so is DynamicQuantizeLinear in
front of an integer product, through which earlier weights train. Scales may be learned with the
gradient, and its scaling, of LSQ (Esser et al., arXiv:1902.08153).

The scale of an int32 bias is by ONNX Runtime's rules the product of those of input and weight; where these are learned,
the bias trains as a float and gets its scale in the end.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from graphopt.runtimes._torch.operators import casting, quantization
from graphopt.runtimes._torch.values import TYPES, constant, plain

_BIASED = ("Conv", "ConvTranspose", "Gemm")
_MOVES = frozenset(
    [
        "Concat",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "Identity",
        "MaxPool",
        "Pad",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    ]
)
"""Operators that compute the same on whole numbers held in floats."""
_INTEGER_PRODUCTS = ("ConvInteger", "MatMulInteger")
"""Operators whose functions also take whole numbers held in floats."""


class FakeQuantize(torch.autograd.Function):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Round to a grid and back, with straight-through gradients; scale and zero broadcast against x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, dtype: torch.dtype, factor: float) -> Tensor:
        low, high = quantization.bounds(dtype)
        ratio = x / scale
        code = quantization.rounded(ratio, dtype, -math.inf, math.inf) if not dtype.is_floating_point else ratio
        code = code + zero
        inside = (code >= low) & (code <= high)
        code = quantization.rounded(code, dtype, low, high) if dtype.is_floating_point else code.clamp_(low, high)
        step = code.sub_(zero) if not dtype.is_floating_point else code - zero
        ctx.factor = factor
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(inside, scale, torch.where(inside, step - ratio, step))
        else:
            ctx.save_for_backward(inside)
        return step * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inside, *rest = ctx.saved_tensors
        for_x = gradient * inside if ctx.needs_input_grad[0] else None
        for_scale = None
        if rest:
            scale, slope = rest
            for_scale = (gradient * slope).sum_to_size(scale.shape) * ctx.factor
        return for_x, for_scale, None, None, None


class _Round(torch.autograd.Function):  # type: ignore[misc]
    """Round, with the identity's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        del ctx
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        del ctx
        return gradient


@dataclasses.dataclass(frozen=True)
class Grid:
    """How a tensor is quantized.

    Attributes:
        dtype: what it is stored as.
        axis: along which scales differ.
        block: numbers that share a scale on that axis, or 0.
        learned: whether the scale gets a gradient.
        samples: whether the first axis counts samples, as of activations.
    """

    dtype: torch.dtype
    axis: int
    block: int
    learned: bool
    samples: bool = False

    def parameters(self, shape: torch.Size, scale: Tensor, zero: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return scale and zero point as floats that broadcast against a tensor of that shape."""
        axis = self.axis % max(len(shape), 1)
        wide = quantization.spread(casting.to_float(scale), shape, axis, self.block)
        if zero is None or zero.dtype.is_floating_point:
            return wide, wide.new_zeros(())
        return wide, quantization.spread(plain(zero), shape, axis, self.block).to(wide.dtype)

    def factor(self, x: Tensor, scales: int) -> float:
        """Return what LSQ multiplies the gradient of a scale by: one over the root of numbers times levels."""
        if not self.learned:
            return 1.0
        count = x.numel() / max(len(x), 1) if self.samples else x.numel() / scales
        return 1 / math.sqrt(max(count, 1) * quantization.bounds(self.dtype)[1])


@dataclasses.dataclass(frozen=True)
class Stored:
    """A weight that the graph stores in a narrow type and reads through DequantizeLinear.

    Attributes:
        name: of its initializer.
        grid: how it is quantized.
        scale, zero: names of initializers; `zero` may be absent.
        held: what scale and zero point hold.
        factors: names of the two scales whose product the scale has to be, of an int32 bias whose scale is learned.
    """

    name: str
    grid: Grid
    scale: str
    zero: str | None
    held: tuple[Tensor, Tensor | None]
    factors: tuple[str, str] | None = None

    def master(self, stored: Tensor) -> Tensor:
        """Return the floats that the stored numbers stand for."""
        wide, offset = self.grid.parameters(stored.shape, *self.held)
        numbers = casting.to_float(stored) if stored.dtype.is_floating_point else plain(stored)
        return ((numbers.to(torch.float64) - offset.to(torch.float64)) * wide.to(torch.float64)).to(wide.dtype)

    def rounded(self, master: Tensor, scale: Tensor) -> Tensor:
        """Return the numbers to store, as QuantizeLinear rounds them."""
        wide, offset = self.grid.parameters(master.shape, scale, self.held[1])
        if self.grid.dtype == torch.int32:  # beyond the whole numbers of float32
            wide, offset, master = wide.to(torch.float64), offset.to(torch.float64), master.to(torch.float64)
        return quantization.cast_quantized(master / wide, offset, self.grid.dtype)


@dataclasses.dataclass(frozen=True)
class Quantization:
    """What is quantized in a model, for training.

    Attributes:
        stored: weights by the name of their initializer.
        scales: names of scales that are learned.
        overrides: what computes nodes in place of the operator table.
        refused: `(initializer, reason)` of those that cannot train.
    """

    stored: dict[str, Stored]
    scales: frozenset[str]
    overrides: dict[ir.Node, Callable[..., Any]]
    refused: list[tuple[str, str]]

    def finished(self, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what to store: quantized weights rounded, and the scales of biases that follow learned ones.

        Args:
            held: masters, scales and everything else, by initializer.
        """
        made: dict[str, Tensor] = {}
        for name in self.scales:
            made[name] = held[name].abs().clamp_min(_LEAST)
        for weight in self.stored.values():
            if weight.factors and self.scales.intersection(weight.factors):
                one, other = ({**held, **made}[factor] for factor in weight.factors)
                scale = held[weight.scale]
                made[weight.scale] = (one * other).reshape(scale.shape).to(scale.dtype)
        for name, weight in self.stored.items():
            if held[name].dtype != weight.grid.dtype:  # else it was not trained
                made[name] = weight.rounded(held[name], made.get(weight.scale, held[weight.scale]))
        return made


def quantization_of(model: ir.Model, trainable: Collection[str], *, learn_scales: bool) -> Quantization:
    """Find what is quantized, and what stands in for it in training.

    Args:
        model: to be trained; never changed.
        trainable: names of initializers to train.
        learn_scales: whether scales are trained as well.
    """
    stored: dict[str, Stored] = {}
    overrides: dict[ir.Node, Callable[..., Any]] = {}
    refused: list[tuple[str, str]] = []
    if not trainable:
        return Quantization(stored, frozenset(), overrides, refused)
    readers: dict[str, list[ir.Node]] = {}
    for name in trainable:
        value = model.graph.initializers.get(name)
        if value is None or value.dtype is None or (value.dtype.is_floating_point() and value.dtype.bitwidth > 8):
            continue
        casts, dequantizers = _readers(value)
        weight = _stored(value, dequantizers, learned=learn_scales)
        if isinstance(weight, str):
            refused.append((name, weight))
            continue
        stored[name], readers[name] = weight, dequantizers
        overrides |= dict.fromkeys(casts, _same)
    simulated = [node for node in model.graph if node.op_type == "QuantizeLinear" and _is_simulated(node)]
    scales = _learnable(model, simulated, stored, readers) if learn_scales else frozenset()
    for name, weight in stored.items():
        if weight.factors is None or not scales.intersection(weight.factors):
            stored[name] = dataclasses.replace(weight, factors=None)
        for node in readers[name]:
            learned = weight.scale in scales
            grid = dataclasses.replace(weight.grid, learned=learned)
            overrides[node] = _same if stored[name].factors else functools.partial(_fake, grid)
    for node in simulated:
        _simulate(node, scales, overrides)
    overrides |= dict.fromkeys(filter(_is_dynamic, model.graph), _dynamic)
    return Quantization(stored, scales, overrides, refused)


_LEAST = 1e-12
"""Smallest scale; a learned one must stay above zero."""


def _same(x: Tensor, *_: Any) -> Tensor:
    return x


def _fake(grid: Grid, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Compute what QuantizeLinear and DequantizeLinear in a row do."""
    scale = scale.abs().clamp_min(_LEAST) if grid.learned else scale
    wide, offset = grid.parameters(x.shape, scale, zero)
    return FakeQuantize.apply(x, wide, offset, grid.dtype, grid.factor(x, scale.numel()))


def _quantized(grid: Grid, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Compute what QuantizeLinear does, as whole numbers held in floats."""
    wide, offset = grid.parameters(x.shape, scale, zero)
    if grid.dtype.is_floating_point:
        return FakeQuantize.apply(x / wide, wide.new_ones(()), offset, grid.dtype, 1.0)
    low, high = quantization.bounds(grid.dtype)
    return (_Round.apply(x / wide) + offset).clamp(low, high)


def _dequantized(axis: int, block: int, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Compute what DequantizeLinear does, of whole numbers held in floats."""
    wide, offset = Grid(torch.int8, axis, block, learned=False).parameters(x.shape, scale, zero)
    return (x - offset) * wide


def _dynamic(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute what DynamicQuantizeLinear does, as whole numbers held in floats; the range gets no gradient."""
    _, scale, zero = quantization.dynamic_quantize_linear(x.detach())
    return (_Round.apply(x / scale) + zero.to(x.dtype)).clamp(0, 255), scale, zero


def _is_dynamic(node: ir.Node) -> bool:
    """Tell whether nothing but products that become floats at once read what DynamicQuantizeLinear quantizes."""
    if node.op_type != "DynamicQuantizeLinear" or node.outputs[0].is_graph_output():
        return False
    for product, index in node.outputs[0].uses():
        if product.graph is not node.graph or product.op_type not in _INTEGER_PRODUCTS or index:
            return False
        made = product.outputs[0]
        if made.is_graph_output() or any(user.op_type != "Cast" for user, _ in made.uses()):
            return False
    return True


def _readers(value: ir.Value) -> tuple[list[ir.Node], list[ir.Node]]:
    """Return the casts between integers behind a value, and what reads it, directly or through them."""
    casts, others = [], []
    for node, _ in value.uses():
        to = node.attributes.get("to")
        if node.op_type == "Cast" and to is not None and ir.DataType(to.as_int()).is_integer():
            casts.append(node)
            further, behind = _readers(node.outputs[0])
            casts += further
            others += behind
        else:
            others.append(node)
    return casts, others


def _stored(value: ir.Value, readers: Sequence[ir.Node], *, learned: bool) -> Stored | str:
    """Describe a weight in a narrow type, or say why it cannot train."""
    if not readers or any(n.op_type != "DequantizeLinear" for n in readers) or value.is_graph_output():
        return "is a whole number that not only DequantizeLinear reads"
    first = readers[0]
    if any(n.graph is not first.graph for n in readers):
        return "is dequantized in a body of control flow"
    if any(list(n.inputs[1:]) != list(first.inputs[1:]) or _layout(n) != _layout(first) for n in readers):
        return "is dequantized with different scales"
    scale = first.inputs[1]
    zero = first.inputs[2] if len(first.inputs) > 2 else None
    if scale is None or not _is_fixed(scale) or (zero is not None and not _is_fixed(zero)):
        return "is dequantized with a scale that is computed"
    assert value.dtype is not None
    held = constant(scale), None if zero is None else constant(zero)
    grid = Grid(TYPES[value.dtype], *_layout(first), learned=learned)
    return Stored(
        value.name or "",
        grid,
        scale.name or "",
        None if zero is None else zero.name,
        held,
        _factors(first) if value.dtype == ir.DataType.INT32 else None,
    )


def _layout(node: ir.Node) -> tuple[int, int]:
    axis, block = node.attributes.get("axis"), node.attributes.get("block_size")
    return axis.as_int() if axis else 1, block.as_int() if block else 0


def _factors(node: ir.Node) -> tuple[str, str] | None:
    """Return the scales of input and weight of the operator that reads a dequantized bias."""
    uses = tuple(node.outputs[0].uses())
    if len(uses) != 1 or uses[0].idx != 2 or uses[0].node.op_type not in _BIASED:
        return None
    producers = [None if value is None else value.producer() for value in uses[0].node.inputs[:2]]
    scales = [p.inputs[1] for p in producers if p is not None and p.op_type == "DequantizeLinear"]
    names = [scale.name for scale in scales if scale is not None and scale.name]
    return (names[0], names[1]) if len(names) == 2 else None


def _is_fixed(value: ir.Value) -> bool:
    return value.const_value is not None and not value.is_graph_input()


def _is_simulated(node: ir.Node) -> bool:
    """Tell whether the output of QuantizeLinear reaches nothing but DequantizeLinear, in its own graph."""
    graph, waiting = node.graph, [node.outputs[0]]
    while waiting:
        value = waiting.pop()
        if value.is_graph_output():
            return False
        for user, _ in value.uses():
            if user.graph is not graph or user.op_type not in (*_MOVES, "DequantizeLinear"):
                return False
            if user.op_type != "DequantizeLinear":
                waiting += user.outputs
    return True


def _simulate(node: ir.Node, scales: Collection[str], overrides: dict[ir.Node, Callable[..., Any]]) -> None:
    """Let floats stand in for the integers between QuantizeLinear and DequantizeLinear."""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    output = node.attributes.get("output_dtype")
    type_ = ir.DataType(output.as_int()) if output and output.as_int() else zero.dtype if zero else ir.DataType.UINT8
    assert type_ is not None
    scale = node.inputs[1]
    grid = Grid(
        TYPES[type_],
        *_layout(node),
        learned=scale is not None and scale.name in scales,
        samples=not _is_fixed_root(node),
    )
    users = [user for user, _ in node.outputs[0].uses()]
    if users and all(
        user.op_type == "DequantizeLinear"
        and list(user.inputs[1:]) == list(node.inputs[1:])
        and _layout(user) == _layout(node)
        for user in users
    ):
        overrides[node] = functools.partial(_fake, grid)
        overrides |= dict.fromkeys(users, _same)
        return
    overrides[node] = functools.partial(_quantized, grid)
    waiting = users
    while waiting:
        user = waiting.pop()
        if user.op_type == "DequantizeLinear":
            overrides[user] = functools.partial(_dequantized, *_layout(user))
        else:
            waiting += [n for value in user.outputs for n, _ in value.uses()]


def _is_fixed_root(node: ir.Node) -> bool:
    return node.inputs[0] is not None and node.inputs[0].is_initializer()


def _learnable(
    model: ir.Model, simulated: Sequence[ir.Node], stored: Mapping[str, Stored], readers: Mapping[str, list[ir.Node]]
) -> frozenset[str]:
    """Return the scales that may be learned: those that nothing but quantization with gradients reads.

    The scale of a bias follows from others, so it is not among them; and where a bias has a scale of which it is not
    known what it follows from, or that others share, the scales around it stay as they are.
    """
    mine = {node for nodes in readers.values() for node in nodes}
    for node in simulated:
        users = [user for user, _ in node.outputs[0].uses()]
        if all(user.op_type == "DequantizeLinear" and list(user.inputs[1:]) == list(node.inputs[1:]) for user in users):
            mine |= {node, *users}
    biases = {name: weight for name, weight in stored.items() if weight.grid.dtype == torch.int32}
    products: dict[str, set[tuple[str, str] | None]] = {}
    for weight in biases.values():
        products.setdefault(weight.scale, set()).add(weight.factors)
    found = set()
    for name, value in model.graph.initializers.items():
        uses = value.uses()
        if (
            uses
            and name not in products
            and all(u.node in mine and u.idx == 1 for u in uses)
            and not value.is_graph_input()
        ):
            found.add(name)
    for factors in products.values():
        if len(factors) > 1 or None in factors:
            found -= {name for pair in factors if pair for name in pair}
    return frozenset(found)
