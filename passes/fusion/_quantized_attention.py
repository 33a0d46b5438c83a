"""Attention whose queries, keys and values are products of integers, as one operator

QAttention of ONNX Runtime is Attention of which the projections are computed as MatMulIntegerToFloat does: one input of
integers, one packed matrix of integers with a scale for each column. The rest is computed in floats. It takes no mask to
add but a mask of zeros and ones, [batch, keys] or [batch, queries, keys], and a number of which it adds what the model
adds, where the mask has a zero.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import graphs
from graphopt.passes.fusion import _sizes
from graphopt.passes.fusion._heads import Heads
from graphopt.passes.fusion._mask import Term
from graphopt.passes.fusion._site import MICROSOFT, Dims, Site

_OPSET = 13
"""Since when Squeeze takes its axes as an input."""


@dataclasses.dataclass(frozen=True)
class _Projection:
    """Columns of a product of integers.

    Attributes:
        source: what is projected: integers, or floats that are quantized for this product.
        step, offset: scale and zero point of the integers; None for floats.
        weight: [inputs, columns] integers.
        scale: float32 [columns].
        zero: zero points of the weight, [columns] of its type.
        bias: float32 [columns].
    """

    source: ir.Value
    step: ir.Value | None
    offset: ir.Value | None
    weight: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    bias: np.ndarray

    @property
    def input(self) -> tuple[ir.Value | None, ...]:
        return self.source, self.step, self.offset


def make(
    site: Site, anchor: ir.Node, parts: Sequence[Heads], scale: float, terms: Sequence[Term], flat: Dims
) -> ir.Value | None:
    """Make QAttention of three products of the same integers, or return None where they are none.

    Args:
        site: the graph.
        anchor: the node before which it goes.
        parts: queries, keys and values.
        scale: of the scores.
        terms: done to the scores after scaling.
        flat: sizes of the result, [batch, length, width].
    """
    if not (site.on_cpu and site.has("QAttention")) or site.opset() < _OPSET or len({part.width for part in parts}) > 1:
        return None
    if parts[0].length != parts[1].length or not _only_for(site, parts):
        return None
    projections = [_projection(site, part) for part in parts]
    found = [p for p in projections if p is not None]
    if len(found) < len(parts) or len({p.input for p in found}) > 1 or len({p.weight.dtype for p in found}) > 1:
        return None
    first = found[0]
    mask = _mask(site, terms, (parts[0].batch, parts[0].length, parts[1].length))
    if (terms and mask is None) or (site.dims(first.source) or ())[:2] != flat[:2]:
        return None
    source, step, offset = first.input
    if step is None:
        quantized = site.add(anchor, "DynamicQuantizeLinear", [source], dims=site.dims(source), outputs=3).producer()
        assert quantized is not None
        source, step, offset = quantized.outputs
    weight = site.constant(anchor, np.concatenate([p.weight for p in found], 1), "qkv_weight")
    columns = [np.concatenate([getattr(p, name) for p in found]) for name in ("bias", "scale", "zero")]
    bias, scales, zeros = (
        site.constant(anchor, array, f"qkv_{name}")
        for name, array in zip(("bias", "scale", "zero"), columns, strict=True)
    )
    hidden = _build(site, anchor, mask) if mask is not None else None
    fill: dict[str, Any] = {"mask_filter_value": mask.fill} if mask is not None else {}
    return site.add(
        anchor,
        "QAttention",
        [source, weight, bias, step, scales, hidden, offset, zeros if columns[2].any() else None],
        None,
        flat,
        domain=MICROSOFT,
        dtype=ir.DataType.FLOAT,
        num_heads=parts[0].count,
        scale=scale,
        **fill,
    )


def _only_for(site: Site, parts: Sequence[Heads]) -> bool:
    """Tell whether nothing but this attention uses the projections."""
    inside = {node for part in parts for node in part.path}
    packed = [part.packed for part in parts]
    users = {use.node for value in packed if value is not None for use in value.uses()}
    users = {node for node in users if not _sizes.is_replaceable(site, node)}
    return not any(value is None or value.is_graph_output() for value in packed) and users <= inside


def _projection(site: Site, part: Heads) -> _Projection | None:
    node = part.packed.producer() if part.packed is not None else None
    if node is None or node.domain != MICROSOFT:
        return None
    inputs = [*node.inputs, *[None] * 7]
    if node.op_type == "MatMulIntegerToFloat":
        source, matrix, step, scale, offset, zero, bias = inputs[:7]
    elif node.op_type == "DynamicQuantizeMatMul":
        source, matrix, scale, zero, bias = inputs[:5]
        step = offset = None
    else:
        return None
    if source is None or matrix is None or len(matrix.uses()) != 1 or matrix.is_graph_output():
        return None
    wanted = ir.DataType.FLOAT if node.op_type == "DynamicQuantizeMatMul" else ir.DataType.UINT8
    if site.dtype(source) != wanted or len(site.dims(source) or ()) != 3:
        return None
    arrays = [None if value is None else graphs.array(value, 1 << 30) for value in (matrix, scale, zero, bias)]
    if any(
        array is None and value is not None for array, value in zip(arrays, (matrix, scale, zero, bias), strict=True)
    ):
        return None
    weight, scales, zeros, added = arrays
    assert weight is not None
    columns = slice(part.start, part.start + part.width)

    def row(array: np.ndarray | None, dtype: np.dtype) -> np.ndarray:
        whole = np.zeros((), dtype) if array is None else array
        return np.asarray(np.broadcast_to(whole, weight.shape[1:])[columns])

    return _Projection(
        source,
        step,
        offset,
        weight[:, columns],
        row(scales, np.dtype(np.float32)),
        row(zeros, weight.dtype),
        row(added, np.dtype(np.float32)),
    )


@dataclasses.dataclass(frozen=True)
class _Mask:
    """A mask of truth values.

    Attributes:
        value: [batch, 1, 1 or queries, keys].
        seen: the truth value that lets a score stay.
        fill: what is added to the others.
        axes: axes of size 1 that the operator wants gone.
    """

    value: ir.Value
    seen: bool
    fill: float
    axes: tuple[int, ...]


def _mask(site: Site, terms: Sequence[Term], sizes: Dims) -> _Mask | None:
    """Return the only term as a mask of truth values that has every size, if it is one; sizes are batch, queries and keys."""
    if len(terms) != 1:
        return None
    value, seen, fill = terms[0].value, terms[0].seen, terms[0].fill
    if fill is None:
        choice = site.maker(value, "Where", alone=False)
        numbers = [site.number(x) for x in choice.inputs[1:]] if choice is not None else []
        if choice is None or numbers.count(0.0) != 1 or choice.inputs[0] is None:
            return None
        value, seen = choice.inputs[0], numbers[0] == 0
        fill = numbers[1] if seen else numbers[0]
    dims, (batch, queries, keys) = site.dims(value), sizes
    if fill is None or site.dtype(value) != ir.DataType.BOOL:
        return None
    if dims == (batch, 1, 1, keys):
        return _Mask(value, seen, fill, (1, 2))
    return _Mask(value, seen, fill, (1,)) if dims == (batch, 1, queries, keys) else None


def _build(site: Site, anchor: ir.Node, mask: _Mask) -> ir.Value:
    """Return the mask as ones where a score stays and zeros elsewhere, [batch, keys] or [batch, queries, keys]."""
    key = ("ones and zeros", mask.value, mask.seen)
    made = site.once(anchor, key)
    if made is not None:
        return made
    value = mask.value if mask.seen else site.add(anchor, "Not", [mask.value], mask.value)
    whole = site.dims(mask.value) or ()
    dims = tuple(size for axis, size in enumerate(whole) if axis not in mask.axes)
    value = site.add(anchor, "Squeeze", [value, site.integers(anchor, mask.axes, "axes")], value, dims)
    return site.remember(
        anchor, key, site.add(anchor, "Cast", [value], dims=dims, dtype=ir.DataType.INT32, to=int(ir.DataType.INT32))
    )
