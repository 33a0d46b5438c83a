"""Rotary positions: x * cos + rotate_half(x) * sin as one operator

Su et al. (2021), "RoFormer: Enhanced Transformer with Rotary Position Embedding", arXiv:2104.09864. The second half of
the angles repeats the first, so the operator takes tables of half the width, [rows, size / 2], and for each token the row
that is its own. Where all samples have the same angles that is the row of its place, else rows are counted over all
samples. Heads that come from [batch, length, heads * size] are turned there, before they are split, which leaves Reshape
and Transpose for attention to take away.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt import graphs
from graphopt.passes.fusion import _heads, _mask
from graphopt.passes.fusion._heads import Heads
from graphopt.passes.fusion._site import MICROSOFT, Dims, Site

_KEEP_HALVES = ("Cast", "Cos", "Mul", "Sin", "Unsqueeze")
"""Operators through which two equal halves of the last axis stay equal, if any other input is one number or axes."""


def fuse(site: Site) -> None:
    """Fuse every rotation by tables whose halves are proven to be equal."""
    if not site.has("RotaryEmbedding"):
        return
    for graph in site.graphs():
        for node in list(graph):
            if node.graph is graph and graphs.is_op(node, "Add"):
                parts = _parts(site, node)
                if parts is not None:
                    reason = _rewrite(site, node, *parts)
                    if reason:
                        site.skip(node, reason)


def _parts(site: Site, node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """Return what is turned, the cosines and the sines."""
    products = [site.maker(value, "Mul") for value in node.inputs]
    if len(products) != 2 or None in products:
        return None
    for plain, turned in (products, products[::-1]):
        assert plain is not None
        assert turned is not None
        found = site.either(turned, "Concat")
        if found is None:
            continue
        source = _rotated(site, found[0])
        if source is None or source not in plain.inputs:
            continue
        cosines = plain.inputs[1] if plain.inputs[0] is source else plain.inputs[0]
        if cosines is not None:
            return source, cosines, found[1]
    return None


def _rotated(site: Site, concat: ir.Node) -> ir.Value | None:
    """Return x where a Concat makes (-x2, x1) of its halves x1 and x2."""
    dims = site.dims(concat.outputs[0])
    if dims is None or len(dims) != 4 or concat.attributes["axis"].as_int() not in (-1, 3) or len(concat.inputs) != 2:
        return None
    negated = site.maker(concat.inputs[0], "Neg")
    if negated is None or negated.inputs[0] is None or concat.inputs[1] is None:
        return None
    second, first = negated.inputs[0], concat.inputs[1]
    columns = dims[3]
    if (
        not isinstance(columns, int)
        or columns % 2
        or any((site.dims(x) or ())[3:] != (columns // 2,) for x in (first, second))
    ):
        return None
    sources = [x.producer() for x in (first, second)]
    if sources[0] is sources[1] and graphs.is_op(sources[0], "Split") and sources[0] is not None:
        axis = sources[0].attributes.get("axis")
        last = axis is not None and axis.as_int() in (-1, 3)
        return sources[0].inputs[0] if last and (first.index(), second.index()) == (0, 1) else None
    starts = []
    for source in sources:
        cut = _heads.cut(site, source) if graphs.is_op(source, "Slice") and source is not None else None
        if (
            cut is None
            or cut[0] != 3
            or sources[0] is None
            or source is None
            or source.inputs[0] is not sources[0].inputs[0]
        ):
            return None
        starts.append(cut[1])
    return sources[0].inputs[0] if starts == [0, columns // 2] and sources[0] is not None else None


def _rewrite(site: Site, node: ir.Node, source: ir.Value, cosines: ir.Value, sines: ir.Value) -> str | None:
    dims = site.dims(node.outputs[0])
    heads = _heads.trace(site, source)
    if heads is None or dims != (heads.batch, heads.count, heads.length, heads.size):
        return "the shape of what is turned is not proven"
    if not site.is_float(source, cosines, sines):
        return "its type is neither float32 nor float16"
    shared = (1,) * 4, (heads.length, heads.size)
    for table in (cosines, sines):
        found = site.dims(table) or ()
        if found[-2:] != shared[1] or found[:-2] not in ((), (1,), (1, 1), (heads.batch, 1)):
            return "the angles are not proven to belong to the tokens"
        if not _halves_are_equal(site, table):
            return "the halves of the angles are not proven to be equal"
    if site.dims(cosines) != site.dims(sines):
        return "cosines and sines differ in shape"
    tables = [_half(site, node, table, heads.size // 2) for table in (cosines, sines)]
    places = _places(site, node, cosines, tables[0], heads)
    value = source if heads.is_deep else _heads.to_flat(site, node, heads)
    turned = site.add(node, "RotaryEmbedding", [value, places, *tables], value, domain=MICROSOFT)
    if not heads.is_deep:
        rows: Dims = (heads.batch, heads.length, heads.count, heads.size)
        split = site.integers(node, [0, 0, heads.count, heads.size], "heads")
        turned = site.add(node, "Reshape", [turned, split], turned, rows)
        turned = site.add(node, "Transpose", [turned], turned, dims, perm=[0, 2, 1, 3])
    reason = site.replace(node.outputs[0], turned)
    if not reason:
        site.fused["RotaryEmbedding"] += 1
    return reason


def _halves_are_equal(site: Site, value: ir.Value) -> bool:
    """Tell whether the last axis holds the same twice."""
    constant = graphs.array(value)
    if constant is not None:
        half = constant.shape[-1] // 2
        return bool(np.array_equal(constant[..., :half], constant[..., half:]))
    node = site.maker(value, "Concat", *_KEEP_HALVES, alone=False)
    if node is None:
        return False
    if node.op_type != "Concat":
        varying = [x for x in node.inputs if x is not None and site.number(x) is None]
        if node.op_type == "Unsqueeze":
            varying = varying[:1]
            if (site.dims(value) or (1,))[-1] == 1:
                return False
        return len(varying) == 1 and _halves_are_equal(site, varying[0])
    rank = len(site.dims(value) or ())
    return (
        len(node.inputs) == 2
        and node.inputs[0] is node.inputs[1]
        and node.attributes["axis"].as_int() in (-1, rank - 1)
    )


def _half(site: Site, anchor: ir.Node, table: ir.Value, columns: int) -> ir.Value:
    """Return the first half of the columns as a matrix."""
    key = ("half", table)
    made = site.once(anchor, key)
    if made is not None:
        return made
    dims = site.dims(table)
    assert dims is not None
    bounds = [site.integers(anchor, x, "columns") for x in ([0], [columns], [len(dims) - 1])]
    made = site.add(anchor, "Slice", [table, *bounds], table, (*dims[:-1], columns))
    if len(dims) != 2:
        shape = site.integers(anchor, [-1, columns], "table")
        rows = dims[-2] if set(dims[:-2]) <= {1} else None
        made = site.add(anchor, "Reshape", [made, shape], made, (rows, columns))
    return site.remember(anchor, key, made)


def _places(site: Site, anchor: ir.Node, cosines: ir.Value, table: ir.Value, heads: Heads) -> ir.Value:
    """Return the row of the table for each token: where the first one is, or all of them."""
    dims = site.dims(cosines)
    if dims is None or len(dims) < 4 or dims[0] == 1:
        return site.integers(anchor, [0], "first_place")
    key = ("places", heads.batch, heads.length)
    made = site.once(anchor, key)
    if made is not None:
        return made
    int64 = ir.DataType.INT64
    zero, one = (site.constant(anchor, np.asarray(x, np.int64), "number") for x in (0, 1))
    rows = site.add(
        anchor,
        "Gather",
        [site.add(anchor, "Shape", [table], dims=(2,), dtype=int64), zero],
        dims=(),
        dtype=int64,
        axis=0,
    )
    count = site.add(anchor, "Range", [zero, rows, one], dims=(None,), dtype=int64)
    shape = [_mask.size_of(site, anchor, cosines, axis) for axis in (0, 2)]
    both = site.add(anchor, "Concat", shape, dims=(2,), dtype=int64, axis=0)
    made = site.add(anchor, "Reshape", [count, both], dims=(heads.batch, heads.length), dtype=int64)
    return site.remember(anchor, key, made)
