"""The additive mask of attention, in the shape that the fused operators want

Between the product of queries and keys and the Softmax, exporters add masks and relative positions, or put a very small
number where a token must not be seen. All of it becomes one tensor to add, [1 or batch, 1 or heads, queries, keys]:

    Where(seen, scores, fill) = scores + Where(seen, 0, fill)    where fill absorbs any score: -inf, or below -1e30

which holds in float32 because the spacing of numbers at 1e30 is far above any score. The last two axes must not be
broadcast (ONNX Runtime checks `attention_bias`), so that a mask of the keys alone is expanded; it is small compared with
the scores, which have it once for every head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.passes.fusion import _places, _sizes
from graphopt.passes.fusion._site import Dims, Site

ABSORBING = -1e30
"""Added to a score, numbers below this stay what they are in float32."""


@dataclasses.dataclass(frozen=True)
class Term:
    """One thing done to the scores.

    Attributes:
        value: what is added to them; or, with a fill, the condition.
        fill: what is put in their place, or added to them; None where the value is added.
        seen: value of the condition that lets a score stay.
        dims: sizes, by which the value is broadcast against scores of rank 4.
    """

    value: ir.Value
    dims: Dims
    fill: float | None = None
    seen: bool = True


def chosen(site: Site, value: ir.Value) -> Term | None:
    """Return the term that an added choice between 0 and a number is, if part of its condition is always true.

    That part only makes the condition larger, which adding it to the scores does anyway.
    """
    node = site.maker(value, "Where", alone=False)
    condition = node.inputs[0] if node is not None else None
    numbers = [site.number(x) for x in node.inputs[1:]] if node is not None else []
    if condition is None or numbers.count(0.0) != 1 or None in numbers:
        return None
    simple: ir.Value | None = condition
    while (both := site.maker(simple, "And", alone=False)) is not None:
        rest = [x for x in both.inputs if not _places.always(site, x)]
        if len(rest) != 1:
            break
        simple = rest[0]
    dims = site.dims(simple)
    if simple is condition or simple is None or dims is None:
        return None
    seen = numbers[0] == 0
    return Term(simple, dims, numbers[1] if seen else numbers[0], seen)


def fits(terms: Sequence[Term], scores: Dims) -> bool:
    """Tell whether every term is proven to be broadcast to the scores, and not the scores to a term."""
    return all(
        len(term.dims) <= 4
        and all(d in (1, s) and d is not None for d, s in zip(term.dims[::-1], scores[::-1], strict=False))
        for term in terms
    )


def may_hide_all(site: Site, terms: Sequence[Term]) -> bool:
    """Tell whether all scores of a token may become -inf, so that Softmax gives NaN."""
    return any(term.fill == -np.inf if term.fill is not None else not _is_finite(site, term.value) for term in terms)


def build(
    site: Site, anchor: ir.Node, terms: Sequence[Term], scores: Dims, queries: ir.Value, keys: ir.Value, keys_axis: int
) -> ir.Value | None:
    """Return the sum of the terms before the anchor, or None without terms.

    Args:
        site: the graph.
        anchor: the node that uses it.
        terms: what is done to the scores, which `fits`.
        scores: [batch, heads, queries, keys].
        queries: any value whose axis 1 is as long as the scores have queries.
        keys: any value of which one axis is as long as the scores have keys.
        keys_axis: that axis.
    """
    total: ir.Value | None = None
    for term in terms:
        value = term.value if term.fill is None else _where(site, anchor, term, queries)
        if total is None:
            total, dims = value, term.dims
        else:
            dims = _broadcast(dims, term.dims)
            key = ("sum", total, value)
            total = site.once(anchor, key) or site.remember(
                anchor, key, site.add(anchor, "Add", [total, value], queries, dims)
            )
    if total is None:
        return None
    if dims[-2:] == scores[-2:] and len(dims) == 4:
        return total
    wanted = [1, 1, *(1 if has == want else want for has, want in zip(((1, 1, *dims)[-2:]), scores[-2:], strict=True))]
    whole: tuple[object, ...] = ("expand", total, tuple(wanted))
    made = site.once(anchor, whole)
    if made is not None:
        return made
    full = (*((1,) * (4 - len(dims)) + dims)[:2], *scores[-2:])
    shape = _shape(site, anchor, wanted, queries, keys, keys_axis)
    return site.remember(anchor, whole, site.add(anchor, "Expand", [total, shape], total, full))


def _shape(
    site: Site, anchor: ir.Node, wanted: Sequence[int | str | None], queries: ir.Value, keys: ir.Value, keys_axis: int
) -> ir.Value:
    """Return a vector of four sizes."""
    if all(isinstance(size, int) for size in wanted):
        return site.integers(anchor, [size for size in wanted if isinstance(size, int)], "mask_shape")
    parts = []
    for size, source, axis in zip(wanted, (None, None, queries, keys), (0, 0, 1, keys_axis), strict=True):
        if isinstance(size, int) or source is None:
            parts.append(site.integers(anchor, [size if isinstance(size, int) else 1], "size"))
        else:
            parts.append(size_of(site, anchor, source, axis))
    return site.add(anchor, "Concat", parts, dims=(4,), dtype=ir.DataType.INT64, axis=0)


def size_of(site: Site, anchor: ir.Node, value: ir.Value, axis: int) -> ir.Value:
    """Return one size of a value as a vector of one element, read off an input of the graph where it is known to be one."""
    dims = site.dims(value)
    known = _sizes.read(site, anchor, dims[axis]) if dims is not None else None
    if known is not None:
        return known
    shape = site.add(anchor, "Shape", [value], dims=(len(dims or ()),), dtype=ir.DataType.INT64)
    index = site.integers(anchor, [axis], "axis")
    return site.add(anchor, "Gather", [shape, index], dims=(1,), dtype=ir.DataType.INT64, axis=0)


def _where(site: Site, anchor: ir.Node, term: Term, like: ir.Value) -> ir.Value:
    key = ("where", term.value, term.fill, term.seen)
    made = site.once(anchor, key)
    if made is not None:
        return made
    dtype = site.dtype(like)
    assert dtype is not None
    zero = site.constant(anchor, np.zeros((), dtype.numpy()), "zero")
    fill = site.constant(anchor, np.asarray(term.fill, dtype.numpy()), "hidden")
    choices = [zero, fill] if term.seen else [fill, zero]
    return site.remember(anchor, key, site.add(anchor, "Where", [term.value, *choices], like, term.dims))


def _is_finite(site: Site, value: ir.Value) -> bool:
    """Tell whether a value is a choice between finite numbers, or a finite number times something of 0 and 1."""
    node = site.maker(value, "Where", alone=False)
    if node is not None:
        numbers = [site.number(x) for x in node.inputs[1:]]
        return all(x is not None and np.isfinite(x) for x in numbers)
    return False


def _broadcast(one: Dims, two: Dims) -> Dims:
    rank = max(len(one), len(two))
    one, two = ((1,) * (rank - len(d)) + d for d in (one, two))
    return tuple(b if a == 1 else a for a, b in zip(one, two, strict=True))
