"""Attention: softmax(queries keys^T * scale + mask) values, head by head, as one operator

Vaswani et al. (2017), "Attention Is All You Need", arXiv:1706.03762. Found from the Softmax on: back through masks and
scales to the product of queries and keys, on through the product with the values to the Transpose and Reshape that join
the heads. What is put in its place, best first:

    Attention            projects, too: queries, keys and values are products of one input with constant matrices
    QAttention           the same, of integers (`_quantized_attention`)
    GroupQueryAttention  several heads of queries share a head of keys and values, which were repeated for them
    MultiHeadAttention   anything else; keys and values in heads (a cache, for example) are taken as they are

onnxscript's ort_fusions finds attention by patterns that must be exported just so, and takes unknown sizes for equal; here
every size is proven, else the node is left alone with the reason. Masks are added as they are (`_mask`): the padding masks
of the fused operators have a filter value of their own, which is not what the model computes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import graphs
from graphopt.passes.fusion import _heads, _mask, _places, _quantized_attention, _sizes
from graphopt.passes.fusion._heads import Heads
from graphopt.passes.fusion._mask import Term
from graphopt.passes.fusion._site import MICROSOFT, Dims, Site, same


class _Refusal(Exception):
    """Why this is not attention that can be fused."""


@dataclasses.dataclass(frozen=True)
class _Core:
    """What surrounds a Softmax.

    Attributes:
        queries: [batch, heads, queries, size].
        keys: [batch, heads, keys, size].
        values: [batch, heads, keys, value size].
        scale: of the scores.
        terms: done to the scores after scaling.
        scores: [batch, heads, queries, keys].
        guarded: NaN of the Softmax become zero.
        rows: the mixed values as [batch, queries, heads, value size].
    """

    queries: Heads
    keys: Heads
    values: Heads
    scale: float
    terms: tuple[Term, ...]
    scores: Dims
    guarded: bool
    rows: ir.Value


def fuse(site: Site) -> None:
    """Fuse every attention that is proven to be one."""
    found = False
    _places.unlook(site)
    for graph in site.graphs():
        for node in list(graph):
            if node.graph is graph and graphs.is_op(node, "Softmax"):
                try:
                    core = _core(site, node)
                    if core is not None:
                        _rewrite(site, core)
                        found = True
                except _Refusal as reason:
                    site.skip(node, str(reason))
    if found:
        _sizes.replace(site)


# Finding


def _core(site: Site, softmax: ir.Node) -> _Core | None:
    """Return the attention around a Softmax, or None if there is none in sight."""
    weights, guarded = _guard(site, softmax.outputs[0])
    mixing = site.only_user(weights)
    if not graphs.is_op(mixing, "MatMul") or mixing is None or mixing.inputs[0] is not weights:
        merged = _through_reshape(site, weights)
        mixing = site.only_user(merged) if merged is not None else None
        if not graphs.is_op(mixing, "MatMul") or mixing is None or mixing.inputs[0] is not merged:
            if any(graphs.is_op(use.node, "MatMul") for use in weights.uses()):
                raise _Refusal("its weights are used elsewhere too")
            return None
    source = softmax.inputs[0]
    assert source is not None
    rank = len(site.dims(source) or ())
    axis = softmax.attributes.get("axis")
    number = axis.as_int() if axis is not None else (-1 if site.opset() >= 13 else 1)
    if not rank or number not in (-1, rank - 1):
        return None
    product, scale, terms = _scores(site, source)
    if product is None:
        return None
    if site.is_quantized(product) or site.is_quantized(mixing):
        raise _Refusal("its products are quantized")
    if not site.is_float(source):
        raise _Refusal("its type is neither float32 nor float16")
    return _assembled(site, product, scale, terms, mixing, guarded)


def _assembled(site: Site, product: ir.Node, scale: float, terms: list[Term], mixing: ir.Node, guarded: bool) -> _Core:
    queries, factor = _scaled(site, product.inputs[0])
    transposed, other = _scaled(site, product.inputs[1])
    keys, third = _keys(site, transposed)
    parts = [_heads_of(site, _unmerged(site, queries)), keys, _heads_of(site, _unmerged(site, mixing.inputs[1]))]
    if any(part is None for part in parts):
        raise _Refusal("the number of heads or their size is not proven")
    q, k, v = (part for part in parts if part is not None)
    if not q.batch == k.batch == v.batch or not q.count == k.count == v.count:
        raise _Refusal("queries, keys and values differ in batch or heads")
    scores: Dims = (q.batch, q.count, q.length, k.length)
    rows = _rows(site, mixing.outputs[0])
    if not _keeps_size(site, rows, (q.batch, q.length, v.width)):
        if not _mask.fits(terms, scores):
            raise _Refusal("the shape of what is added to the scores is not proven to be that of a mask")
        if not same(site.dims(rows), (q.batch, q.length, v.count, v.size)):
            raise _Refusal("the shape of its result is not proven")
    return _Core(q, k, v, scale * factor * other * third, tuple(terms), scores, guarded, rows)


def _guard(site: Site, weights: ir.Value) -> tuple[ir.Value, bool]:
    """Return what replaces NaN in the weights by zero, if anything: Where(IsNaN(w), 0, w), as PyTorch does."""
    users = {use.node for use in weights.uses()}
    choice = next((node for node in users if graphs.is_op(node, "Where")), None)
    if choice is None or len(users) != 2 or weights.is_graph_output() or choice.inputs[2] is not weights:
        return weights, False
    test = site.maker(choice.inputs[0], "IsNaN")
    if test is None or test.inputs[0] is not weights or site.number(choice.inputs[1]) != 0:
        return weights, False
    return choice.outputs[0], True


def _scores(site: Site, source: ir.Value) -> tuple[ir.Node | None, float, list[Term]]:
    """Go back from the Softmax to the product; return it with the scale and, innermost first, the terms."""
    terms: list[Term] = []
    value: ir.Value | None = source
    while True:
        node = site.maker(value, "Add", "Where", "Reshape", "Mul", "Div", "MatMul")
        if node is None or value is None:
            return None, 1.0, []
        if node.op_type in ("Mul", "Div", "MatMul"):
            break
        if node.op_type == "Reshape":
            if not _merges(site, node):
                return None, 1.0, []
            value = node.inputs[0]
        elif node.op_type == "Where":
            value = _filled(site, node, terms)
        else:
            value = _added(site, node, terms)
    value, scale = _scaled(site, value)
    value = _unmerged(site, value)
    value, more = _scaled(site, value)
    return site.maker(value, "MatMul"), scale * more, terms[::-1]


def _added(site: Site, node: ir.Node, terms: list[Term]) -> ir.Value | None:
    """Note what an Add adds to the scores and return the scores."""
    sides = [value for value in node.inputs if value is not None]
    inner = [value for value in sides if _leads_to_product(site, value)]
    if len(inner) == 2:
        raise _Refusal("its scores are a sum of two products")
    if not inner or len(sides) != 2:
        return None
    term = sides[1] if sides[0] is inner[0] else sides[0]
    rank = len(site.dims(inner[0]) or ())
    terms.append(_mask.chosen(site, term) or Term(*_of_rank_four(site, term, rank)))
    return inner[0]


def _filled(site: Site, node: ir.Node, terms: list[Term]) -> ir.Value | None:
    """Note what a Where puts in place of scores and return the scores."""
    condition, *choices = node.inputs
    for index in (0, 1):
        value, fill = choices[index], site.number(choices[1 - index])
        if fill is None or value is None or condition is None or not _leads_to_product(site, value):
            continue
        if fill > _mask.ABSORBING:
            raise _Refusal(f"it puts {fill:g} in place of scores, which adding a mask does not")
        unmerged, dims = _of_rank_four(site, condition, len(site.dims(value) or ()))
        terms.append(Term(unmerged, dims, fill, index == 0))
        return value
    return None


def _of_rank_four(site: Site, value: ir.Value, rank: int) -> tuple[ir.Value, Dims]:
    """Return what is combined with scores of a rank as it fits scores of rank 4, and its sizes."""
    dims = site.dims(value)
    if rank == 3 and dims is not None and len(dims) == 3 and dims[0] != 1:
        value = _unmerged(site, value) or value  # [batch * heads, queries, keys]
        dims = site.dims(value)
        if dims is not None and len(dims) != 4:
            dims = None
    if dims is None:
        raise _Refusal("the shape of what is added to the scores is not proven to be that of a mask")
    return value, dims


def _leads_to_product(site: Site, value: ir.Value) -> bool:
    """Tell whether scores come from here: back through masks and scales, used by nothing else, to a product."""
    node = site.maker(value, "Add", "Where", "Reshape", "Mul", "Div", "MatMul")
    while node is not None and node.op_type in ("Reshape", "Mul", "Div"):
        scaled = [x for x in node.inputs if x is not None and site.number(x) is None]
        if not scaled:
            return False
        node = site.maker(scaled[0], "Add", "Where", "Reshape", "Mul", "Div", "MatMul")
    if node is None or node.op_type == "MatMul":
        return node is not None
    return any(_leads_to_product(site, x) for x in node.inputs if x is not None)


def _scaled(site: Site, value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """Return what a constant factor is applied to, and the factor."""
    scale = 1.0
    while True:
        node = site.maker(value, "Mul", "Div")
        if node is None:
            return value, scale
        left, right = (site.number(x) for x in node.inputs)
        if right is not None and (node.op_type == "Mul" or right):
            value, scale = node.inputs[0], scale * right if node.op_type == "Mul" else scale / right
        elif left is not None and node.op_type == "Mul":
            value, scale = node.inputs[1], scale * left
        else:
            return value, scale


def _keys(site: Site, value: ir.Value | None) -> tuple[Heads | None, float]:
    """Return the keys of which [batch, heads, size, keys] is given, and their scale.

    The last two axes change places in one Transpose, with that of the heads in it or not, or between two Reshapes that
    merge batch and heads.
    """
    node = site.maker(_unmerged(site, value, 3), "Transpose", alone=False)
    if node is None or node.inputs[0] is None:
        return None, 1.0
    order = _heads.perm(node)
    if order == (0, 2, 3, 1):
        return _heads.trace_transposed(site, node), 1.0
    if order not in ((0, 1, 3, 2), (0, 2, 1)):
        return None, 1.0
    keys, scale = _scaled(site, _unmerged(site, node.inputs[0]))
    return _heads_of(site, keys), scale


def _merges(site: Site, node: ir.Node, rank: int | None = None) -> bool:
    """Tell whether a Reshape merges batch and heads (of rank 4 or more) or splits them (3); the last two axes stay."""
    before, after = site.dims(node.inputs[0]), site.dims(node.outputs[0])
    if before is None or after is None or (len(before), len(after)) not in ((3, 4), (4, 3), (5, 3)):
        return False
    if rank is not None and (rank == 3) != (len(before) == 3):
        return False
    return same(before[-2:], after[-2:])


def _unmerged(site: Site, value: ir.Value | None, rank: int = 4) -> ir.Value | None:
    """Return the value of which batch and heads were merged (rank 4) or split (3), or the value itself."""
    node = site.maker(value, "Reshape", alone=False)
    return node.inputs[0] if node is not None and _merges(site, node, rank) else value


def _through_reshape(site: Site, value: ir.Value) -> ir.Value | None:
    node = site.only_user(value)
    return node.outputs[0] if graphs.is_op(node, "Reshape") and node is not None and _merges(site, node) else None


def _heads_of(site: Site, value: ir.Value | None) -> Heads | None:
    return _heads.trace(site, value) if value is not None else None


def _rows(site: Site, mixed: ir.Value) -> ir.Value:
    """Return the mixed values as [batch, queries, heads, size]."""
    value: ir.Value | None = mixed
    while value is not None and (merged := _through_reshape(site, value)) is not None:
        value = merged
    node = site.only_user(value) if value is not None else None
    if node is None or not graphs.is_op(node, "Transpose") or _heads.perm(node) != (0, 2, 1, 3):
        raise _Refusal("its heads are not joined by a Transpose")
    return node.outputs[0]


def _keeps_size(site: Site, rows: ir.Value, flat: Dims) -> bool:
    """Tell whether the result must have as many elements as the queries ask for, or the model would not run.

    It does if a Reshape to just these sizes follows. Then no mask can be longer than the scores on any axis: broadcasting
    only ever adds elements.
    """
    user = site.only_user(rows)
    shape = user.inputs[1] if user is not None and graphs.is_op(user, "Reshape") else None
    return shape is not None and same(site.elements(shape), flat)


# Replacing


def _rewrite(site: Site, core: _Core) -> None:
    rows = core.rows
    anchor, joined = rows.producer(), None
    assert anchor is not None
    flat: Dims = (core.queries.batch, core.queries.length, core.values.width)
    user = site.only_user(rows)
    if user is not None and graphs.is_op(user, "Reshape") and same(site.dims(user.outputs[0]), flat):
        anchor, joined = user, user.outputs[0]
    parts = (core.queries, core.keys, core.values)
    made = _attention(site, anchor, core, flat) or _quantized_attention.make(
        site, anchor, parts, core.scale, core.terms, flat
    )
    made = made or _grouped(site, anchor, core, flat)
    made = fused = made or _multi_head(site, anchor, core, flat)
    if core.guarded and _mask.may_hide_all(site, core.terms):
        test = site.add(anchor, "IsNaN", [made], dims=flat, dtype=ir.DataType.BOOL)
        dtype = site.dtype(made)
        assert dtype is not None
        zero = site.constant(anchor, np.zeros((), dtype.numpy()), "zero")
        made = site.add(anchor, "Where", [test, zero, made], made, flat)
    if joined is None:
        split = site.integers(anchor, [0, 0, core.values.count, core.values.size], "heads")
        dims = (core.queries.batch, core.queries.length, core.values.count, core.values.size)
        made, joined = site.add(anchor, "Reshape", [made, split], made, dims), rows
    operator = fused.producer()
    reason = site.replace(joined, made)
    if reason:
        raise _Refusal(reason)
    assert operator is not None
    site.fused[operator.op_type] += 1


@dataclasses.dataclass(frozen=True)
class _Projection:
    """Columns of input [batch, length, width] times weight, plus bias."""

    input: ir.Value
    weight: np.ndarray
    bias: np.ndarray


def _attention(site: Site, anchor: ir.Node, core: _Core, flat: Dims) -> ir.Value | None:
    """Make Attention, where queries, keys and values are projections of one input by matrices used for nothing else."""
    parts = (core.queries, core.keys, core.values)
    if not site.has("Attention") or core.queries.length != core.keys.length:
        return None
    inside = {node for part in parts for node in part.path}
    users = {use.node for part in parts if part.packed is not None for use in part.packed.uses()}
    users = {node for node in users if not _sizes.is_replaceable(site, node)}
    if any(part.packed is None or part.packed.is_graph_output() for part in parts) or not users <= inside:
        return None
    projections = [_projection(site, part) for part in parts]
    if any(p is None for p in projections) or len({p.input for p in projections if p}) != 1:
        return None
    found = [p for p in projections if p]
    source = found[0].input
    if (site.dims(source) or ())[:2] != flat[:2]:
        return None
    weight = site.constant(anchor, np.concatenate([p.weight for p in found], 1), "qkv_weight")
    bias = site.constant(anchor, np.concatenate([p.bias for p in found]), "qkv_bias")
    mask = _mask.build(site, anchor, core.terms, core.scores, source, source, 1)
    sizes: dict[str, Any] = (
        {"qkv_hidden_sizes": [part.width for part in parts]} if core.values.size != core.keys.size else {}
    )
    return site.add(
        anchor,
        "Attention",
        [source, weight, bias, None, None, mask],
        source,
        flat,
        domain=MICROSOFT,
        num_heads=core.queries.count,
        scale=core.scale,
        **sizes,
    )


def _projection(site: Site, part: Heads) -> _Projection | None:
    """Return heads as some columns of a product with a constant, plus a constant.

    The product may be of rows that were flattened before it and unflattened after it.
    """
    value, factor = _scaled(site, part.packed)
    outer = site.maker(value, "Reshape", alone=False)
    if outer is not None and len(site.dims(outer.inputs[0]) or ()) == 2:
        value = outer.inputs[0]
    found = _product_of(site, value)
    if found is None:
        return None
    source, matrix, weight, bias = found
    if len(site.dims(source) or ()) == 2:
        inner = site.maker(source, "Reshape", alone=False)
        if inner is None or inner.inputs[0] is None:
            return None
        source = inner.inputs[0]
    dims = site.dims(source)
    if dims is None or len(dims) != 3 or dims[0] != part.batch or dims[2] != weight.shape[0]:
        return None
    if len(matrix.uses()) != 1 or matrix.is_graph_output():
        return None
    columns = slice(part.start, part.start + part.width)
    scale = weight.dtype.type(factor)
    return _Projection(source, weight[:, columns] * scale, bias[columns] * scale)


def _product_of(site: Site, value: ir.Value | None) -> tuple[ir.Value, ir.Value, np.ndarray, np.ndarray] | None:
    """Return what a value is the product of, with its constant matrix and bias as they are and as arrays."""
    node = site.maker(value, "Add", alone=False)
    bias: ir.Value | None = None
    if node is not None:
        made = site.either(node, "MatMul")
        if made is None:
            return None
        value, bias = made[0].outputs[0], made[1]
    node = site.maker(value, "MatMul", "Gemm", alone=False)
    if node is None or node.inputs[0] is None or node.inputs[1] is None:
        return None
    transposed = False
    if node.op_type == "Gemm":
        numbers = {name: found.value for name, found in node.attributes.items()}
        if numbers.get("alpha", 1.0) != 1 or numbers.get("beta", 1.0) != 1 or numbers.get("transA", 0):
            return None
        transposed, bias = bool(numbers.get("transB", 0)), node.inputs[2] if len(node.inputs) > 2 else None
    tensor = graphs.constant(node.inputs[1])
    if tensor is None or len(tensor.shape) != 2:
        return None
    weight = tensor.numpy().T if transposed else tensor.numpy()
    added = np.zeros(weight.shape[1], weight.dtype) if bias is None else graphs.array(bias)
    if added is None or added.shape != weight.shape[1:]:
        return None
    return node.inputs[0], node.inputs[1], weight, added


def _grouped(site: Site, anchor: ir.Node, core: _Core, flat: Dims) -> ir.Value | None:
    """Make GroupQueryAttention, where keys and values are repeated and come without a cache.

    With a cache it takes several new tokens of one sample only, which a model with dynamic axes cannot promise.
    It is told how many tokens there are in words of its own: keys less one of each sample, and keys of the longest.
    """
    q, length = core.queries, core.keys.length
    if not site.has("GroupQueryAttention") or not (site.on_cpu or site.dtype(q.value) == ir.DataType.FLOAT16):
        return None  # on GPUs it takes half precision only
    if q.length != length or core.values.size != q.size or q.size % 8:
        return None
    keys, values = (_unrepeated(site, part) for part in (core.keys, core.values))
    if keys is None or values is None or keys.count != values.count or keys.is_deep or values.is_deep:
        return None
    queries, key_rows, value_rows = (_heads.to_flat(site, anchor, part) for part in (q, keys, values))
    mask = _mask.build(site, anchor, core.terms, core.scores, queries, key_rows, 1)
    key = ("lengths", q.batch, q.length)
    last = site.once(anchor, (*key, "last"))
    total = site.once(anchor, (*key, "total"))
    if last is None or total is None:
        size = _mask.size_of(site, anchor, queries, 1)
        total = site.add(anchor, "Cast", [size], dims=(1,), dtype=ir.DataType.INT32, to=int(ir.DataType.INT32))
        one = site.constant(anchor, np.ones(1, np.int32), "one")
        less = site.add(anchor, "Sub", [total, one], total)
        last = site.add(anchor, "Expand", [less, _mask.size_of(site, anchor, queries, 0)], total, (q.batch,))
        site.remember(anchor, (*key, "last"), last)
        site.remember(anchor, (*key, "total"), total)
    return site.add(
        anchor,
        "GroupQueryAttention",
        [queries, key_rows, value_rows, None, None, last, total, None, None, None, mask],
        queries,
        flat,
        domain=MICROSOFT,
        outputs=3,
        num_heads=q.count,
        kv_num_heads=keys.count,
        scale=core.scale,
        causal=0,
    )


def _unrepeated(site: Site, part: Heads) -> Heads | None:
    """Return the heads of which each was repeated: [Reshape](Expand(Unsqueeze(heads, 2)))."""
    node = site.maker(part.value, "Reshape", alone=False)
    expand = site.maker(node.inputs[0] if node is not None else part.wide, "Expand", alone=False)
    unsqueeze = site.maker(expand.inputs[0], "Unsqueeze", "Reshape", alone=False) if expand is not None else None
    if expand is None or unsqueeze is None or unsqueeze.inputs[0] is None:
        return None
    heads = _heads.trace(site, unsqueeze.inputs[0])
    if heads is None or not heads.count or part.count % heads.count or heads.size != part.size:
        return None
    repeats = part.count // heads.count
    before = (heads.batch, heads.count, 1, heads.length, heads.size)
    after = (heads.batch, heads.count, repeats, heads.length, heads.size)
    fits = same(site.dims(unsqueeze.outputs[0]), before) and same(site.dims(expand.outputs[0]), after)
    return heads if fits and heads.length == part.length else None


def _multi_head(site: Site, anchor: ir.Node, core: _Core, flat: Dims) -> ir.Value:
    if not site.has("MultiHeadAttention"):
        raise _Refusal("the target has no kernel for it")
    queries = _heads.to_flat(site, anchor, core.queries)
    keys, values = core.keys, core.values
    key = value = None
    if (keys.is_deep or values.is_deep) and keys.size == values.size:
        key, value, axis = _heads.to_deep(site, anchor, keys), _heads.to_deep(site, anchor, values), 2
    if key is None or value is None:
        key, value, axis = _heads.to_flat(site, anchor, keys), _heads.to_flat(site, anchor, values), 1
    mask = _mask.build(site, anchor, core.terms, core.scores, queries, key, axis)
    return site.add(
        anchor,
        "MultiHeadAttention",
        [queries, key, value, None, None, mask],
        queries,
        flat,
        domain=MICROSOFT,
        num_heads=core.queries.count,
        scale=core.scale,
    )
