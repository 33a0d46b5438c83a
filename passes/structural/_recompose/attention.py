"""Scaled dot-product attention: softmax(q k^T * scale + mask) v

Vaswani et al. (2017), arXiv:1706.03762. The scale may be on q, on k, on both or on the scores. What Attention takes is
[batch, heads, length, size]; where heads are split from, and merged into, [batch, length, heads * size] right before and
after, it does that too. Heads that share keys and values, and masks of truth values, are left alone.

A query to which the mask leaves no key gets 0 from Attention (ONNX, errata of opset 23). ONNX Runtime takes the lowest
finite number for minus infinity there, though a softmax of nothing but that is uniform. So the mask must be a constant
that leaves every query a key, or consist of numbers far above the lowest, and of minus infinity only if the NaN of the
softmax is replaced by 0, as PyTorch spells it out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt import graphs, inference
from graphopt.inference import Dim
from graphopt.passes.structural._recompose.site import Nodes, Site

_HEADS_FIRST = (0, 2, 1, 3)
_MOVERS = ("Expand", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
_DEPTH = 12
_LARGE = 1 << 24


@dataclasses.dataclass(frozen=True)
class _Scores:
    """What a softmax is of: q k^T * scale + mask.

    Attributes:
        q: [batch, heads, queries, size].
        k: of which the transposition by `perm` is [batch, heads, size, keys].
        perm: a permutation of its axes.
        scale: a number.
        mask: added to the scaled product, or None.
        inner: the operators.
    """

    q: ir.Value
    k: ir.Value
    perm: tuple[int, ...]
    scale: float
    mask: ir.Value | None
    inner: Nodes


def recompose(site: Site, softmax: ir.Node) -> bool:
    """Write Attention around a softmax."""
    weights, guard = _guarded(site, softmax)
    last, shape = graphs.sole_use(weights), site.dims(softmax.outputs[0])
    if not graphs.is_op(last, "MatMul") or last is None or last.inputs[0] is not weights or shape is None:
        return False
    if len(shape) != 4 or softmax.attributes.get_int("axis", -1) not in (-1, 3):
        return False
    scores, v = _scores(site, softmax.inputs[0], shape), last.inputs[1]
    if scores is None or v is None or scores.scale <= 0:
        return False
    q, k = site.dims(scores.q), site.dims(scores.k)
    if q is None or k is None or not _agree(q, [k[axis] for axis in scores.perm], site.dims(v), shape):
        return False
    inner = scores.inner | guard | {softmax}
    if not site.allows(last, inner, "Attention", scores.q):
        return False
    if scores.mask is not None and not _leaves_keys(scores.mask, guarded=bool(guard)):
        reason = "Attention gives 0 to a query without keys, and the mask may leave one without"
        site.skipped[graphs.label(last)] = reason
        return False
    straight = tuple(scores.perm[axis] for axis in (0, 1, 3, 2))
    if not _with_heads(site, last, scores, straight, v, inner):
        key = scores.k
        if straight != (0, 1, 2, 3):
            known = inference.Known(key.type, None, tuple(k[axis] for axis in straight))
            key = site.insert(last, "Transpose", key, known, perm=straight)
        inputs = [scores.q, key, v, *([] if scores.mask is None else [scores.mask])]
        return site.replace(last, inner, "Attention", inputs, scale=scores.scale)
    return True


def _guarded(site: Site, softmax: ir.Node) -> tuple[ir.Value, Nodes]:
    """Return the weights, where a softmax is not NaN and else 0, and the operators that see to that."""
    weights = softmax.outputs[0]
    for node in weights.consumers():
        test = site.maker(node.inputs[0], "IsNaN") if graphs.is_op(node, "Where") and len(node.inputs) == 3 else None
        if (
            test is not None
            and test.inputs[0] is weights
            and node.inputs[2] is weights
            and site.scalar(node.inputs[1]) == 0
        ):
            return node.outputs[0], frozenset({test, node})
    return weights, frozenset()


def _leaves_keys(mask: ir.Value, *, guarded: bool) -> bool:
    """Tell whether a mask certainly means the same to Attention as to a softmax; see the module."""
    constant = graphs.array(mask, _LARGE)
    if constant is not None and constant.ndim and np.all(constant.max(axis=-1) > _low(constant)):
        return True
    return _is_plain(mask, guarded=guarded, depth=_DEPTH)


def _is_plain(mask: ir.Value | None, *, guarded: bool, depth: int) -> bool:
    """Tell whether a mask consists of numbers far above the lowest and, if guarded, of minus infinity."""
    constant, node = graphs.array(mask, _LARGE), mask.producer() if mask is not None else None
    if constant is not None:
        return bool(np.all((constant > _low(constant)) | (guarded & (constant == -np.inf))))
    if depth == 0 or node is None:
        return False
    if graphs.is_op(node, "Where") and len(node.inputs) == 3:
        return all(_is_plain(branch, guarded=guarded, depth=depth - 1) for branch in node.inputs[1:])
    return graphs.is_op(node, *_MOVERS) and _is_plain(node.inputs[0], guarded=guarded, depth=depth - 1)


def _low(mask: np.ndarray) -> float:
    """Return below what a sum of a score and a mask might be taken for minus infinity."""
    return float(np.finfo(mask.dtype).min) / 4


def _scores(site: Site, value: ir.Value | None, shape: Sequence[Dim]) -> _Scores | None:
    """Return of what a value is the product, scaled and masked."""
    found = _product(site, value)
    node = site.maker(value, "Add") if found is None else None
    if node is None:
        return found
    for scores, mask in site.operands(node):
        found = _product(site, scores)
        if found is not None and _broadcasts(site.dims(mask), shape):
            return dataclasses.replace(found, mask=mask, inner=found.inner | {node})
    return None


def _product(site: Site, value: ir.Value | None) -> _Scores | None:
    value, scale, inner = _unscaled(site, value)
    product = site.maker(value, "MatMul")
    if product is None:
        return None
    q, q_scale, q_nodes = _unscaled(site, product.inputs[0])
    transposed, outer_scale, outer = _unscaled(site, product.inputs[1])
    found = _transposed(site, transposed)
    if q is None or found is None:
        return None
    k, k_scale, k_nodes = _unscaled(site, found[0])
    if k is None:
        return None
    nodes = inner | q_nodes | outer | k_nodes | found[2] | {product}
    return _Scores(q, k, found[1], scale * q_scale * outer_scale * k_scale, None, nodes)


def _transposed(site: Site, value: ir.Value | None) -> tuple[ir.Value, tuple[int, ...], Nodes] | None:
    """Return k and the permutation where a value of four axes is k transposed, and the operators."""
    node = site.maker(value, "Transpose", "Reshape")
    if node is None or node.inputs[0] is None:
        return None
    if node.op_type == "Transpose":
        perm = tuple(node.attributes.get_ints("perm", ()))
        return (node.inputs[0], perm, frozenset({node})) if len(perm) == 4 else None
    # PyTorch makes one axis of batch and heads around the transposition.
    transpose = site.maker(node.inputs[0], "Transpose")
    flat = site.maker(transpose.inputs[0], "Reshape") if transpose is not None else None
    k = flat.inputs[0] if flat is not None else None
    if transpose is None or flat is None or k is None or tuple(transpose.attributes.get_ints("perm", ())) != (0, 2, 1):
        return None
    four, three, result = site.dims(k), site.dims(flat.outputs[0]), site.dims(value)
    if four is None or three is None or len(four) != 4 or None in four or three[1:] != four[2:]:
        return None
    swapped = (0, 1, 3, 2)
    if result != tuple(four[axis] for axis in swapped):
        return None
    return k, swapped, frozenset({node, transpose, flat})


def _unscaled(site: Site, value: ir.Value | None) -> tuple[ir.Value | None, float, Nodes]:
    """Return what a value is a multiple of, the factor, and the operator that multiplies."""
    node = site.maker(value, "Mul", "Div")
    pair = site.number_and_other(node) if node is not None else None
    if node is None or pair is None or not pair[0] or (node.op_type == "Div" and node.inputs[0] is not pair[1]):
        return value, 1.0, frozenset()
    return pair[1], pair[0] if node.op_type == "Mul" else 1 / pair[0], frozenset({node})


def _agree(q: Sequence[Dim], transposed: Sequence[Dim], v: Sequence[Dim] | None, shape: Sequence[Dim]) -> bool:
    """Tell whether batch, heads and lengths are certainly the same everywhere."""
    if v is None or not len(q) == len(transposed) == len(v) == 4 or None in shape:
        return False
    batch, heads, queries, keys = shape
    return (
        tuple(q[:3]) == (batch, heads, queries)
        and (tuple(transposed[:2]), transposed[3]) == ((batch, heads), keys)
        and tuple(v[:3]) == (batch, heads, keys)
        and q[3] is not None
        and q[3] == transposed[2]
    )


def _broadcasts(mask: Sequence[Dim] | None, shape: Sequence[Dim]) -> bool:
    """Tell whether a mask has the last two axes of the scores, and one or all of the others."""
    if mask is None or len(mask) not in (2, 4) or None in mask:
        return False
    return tuple(mask[-2:]) == tuple(shape[-2:]) and all(a in (1, b) for a, b in zip(mask[:-2], shape, strict=False))


def _with_heads(
    site: Site, last: ir.Node, scores: _Scores, straight: tuple[int, ...], v: ir.Value, inner: Nodes
) -> bool:
    """Write Attention of [batch, length, heads * size], if heads are split before and merged after it."""
    shape = site.dims(v)
    query, value = _split(site, scores.q, (0, 1, 2, 3)), _split(site, v, (0, 1, 2, 3))
    key, back = _split(site, scores.k, straight), graphs.sole_use(last.outputs[0])
    merge = graphs.sole_use(back.outputs[0]) if back is not None else None
    if query is None or key is None or value is None or shape is None or back is None or merge is None:
        return False
    if not graphs.is_op(back, "Transpose") or tuple(back.attributes.get_ints("perm", ())) != _HEADS_FIRST:
        return False
    batch, length, heads, size = site.dims(back.outputs[0]) or (None,) * 4
    if not graphs.is_op(merge, "Reshape") or not isinstance(heads, int) or not isinstance(size, int):
        return False
    if None in (batch, length) or site.dims(merge.outputs[0]) != (batch, length, heads * size):
        return False
    inputs = [query[0], key[0], value[0], *([] if scores.mask is None else [scores.mask])]
    nodes = inner | query[1] | key[1] | value[1] | {last, back}
    if not site.is_closed(merge, nodes):
        return False
    heads_of = {"q_num_heads": heads, "kv_num_heads": heads}
    return site.replace(merge, nodes, "Attention", inputs, scale=scores.scale, **heads_of)


def _split(site: Site, value: ir.Value, perm: tuple[int, ...]) -> tuple[ir.Value, Nodes] | None:
    """Return x [batch, length, heads * size] where a value, transposed by `perm`, is its heads."""
    if perm == (0, 1, 2, 3):
        transpose = site.maker(value, "Transpose")
        if transpose is None or tuple(transpose.attributes.get_ints("perm", ())) != _HEADS_FIRST:
            return None
        source, nodes = transpose.inputs[0], frozenset({transpose})
    elif perm == _HEADS_FIRST:
        source, nodes = value, frozenset()
    else:
        return None
    reshape = site.maker(source, "Reshape")
    x = reshape.inputs[0] if reshape is not None else None
    four, three = site.dims(source), site.dims(x)
    if reshape is None or x is None or four is None or three is None or None in four or len(three) != 3:
        return None
    heads, size = four[2:]
    if not isinstance(heads, int) or not isinstance(size, int) or three != (*four[:2], heads * size):
        return None
    return x, nodes | {reshape}
