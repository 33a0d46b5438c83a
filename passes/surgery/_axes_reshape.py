"""Where a growing axis goes in a Reshape, and how its target has to be written

Reshape keeps the elements in their order. So the samples of [.., lead, samples, inner, ..] come to the axis of the
result at which as many elements lie outside of them as before. Where axes of size 1 leave a choice, the samples go to the
axis that held the whole batch alone, best to one whose size the target computes.

Other axes (height, length) are followed by cutting both shapes into the shortest runs of axes of equal product: in
[1, 16, 8, 8] -> [1, 16, 64] the last two make the last one. Where one axis becomes several, it must be one that an
earlier Reshape made of as many.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from graphopt import graphs
from graphopt.passes.surgery._axes_walk import Dim, Old, Part, Pick, Size, Walk, plain, product, text

_STAND_IN = 1_000_003
"""The first of the sizes that stand for those that vary: too large for products with others to be equal by accident."""


def reshape(walk: Walk, node: ir.Node) -> None:
    """Mend the target of a Reshape."""
    data, target = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
    if data is None or not walk.axes(data):
        return
    if target is None:
        walk.refuse(node, "its target is an attribute, before opset 5; run graphopt convert-opset first")
    elements = walk.elements(target)
    walk.infer(node)
    now, old = walk.dims(node.outputs[0]), walk.old(node.outputs[0])
    if old is None:
        return
    wanted = _wanted(walk, node, old, elements)
    if wanted is None or (now is not None and list(now) == wanted):
        return
    _aim(walk, node, wanted, elements)


def squeeze(walk: Walk, node: ir.Node) -> None:
    """Let a Squeeze, or a Gather of the only index, that takes away the axis of a single sample merge it with another."""
    data = node.inputs[0]
    axis = walk.place(data)
    old, dims = walk.old(node.outputs[0]), walk.dims(data)
    if data is None or axis is None or dims is None:
        return
    axes = walk.ints(node, 1, "axes") if node.op_type == "Squeeze" else [axis]
    if axes is not None and axis not in [a % len(dims) for a in axes]:
        return
    if axes is None and dims[axis] != walk.symbol:
        return
    if not old:
        walk.refuse(node, "takes the axis of samples away, and leaves no other to put them on")
    walk.edits[f"{node.op_type} made a Reshape"] += 1
    _become_reshape(walk, node, data, old)


def unsqueeze(walk: Walk, node: ir.Node) -> None:
    """Let an Unsqueeze of samples that were merged into another axis bring their own axis back."""
    data = node.inputs[0]
    axis = walk.place(data)
    old, dims = walk.old(node.outputs[0]), walk.dims(data)
    if data is None or axis is None or dims is None or old is None or dims[axis] == walk.symbol:
        return
    wanted = _samples(walk, data, old, None, walk.ints(node, 1, "axes") or [])
    if wanted is None or walk.symbol not in wanted[0]:
        return
    walk.edits["Unsqueeze made a Reshape"] += 1
    _become_reshape(walk, node, data, old)


def flatten(walk: Walk, node: ir.Node) -> None:
    """Note how the samples lie after a Flatten, which needs no mending."""
    data, found = node.inputs[0], graphs.attribute(node, "axis")
    axis, dims = walk.place(data), walk.dims(data)
    if data is None or axis is None or dims is None:
        return
    cut = (1 if found is None else found.as_int()) % (len(dims) + 1)
    outer = product(dims[:axis] if axis < cut else dims[cut:axis])
    _note(walk, node, walk.lead(data), outer)


def _become_reshape(walk: Walk, node: ir.Node, data: ir.Value, old: Old) -> None:
    wanted = _wanted(walk, node, old, None)
    if wanted is None:
        walk.refuse(node, "takes the axis of samples away")
    node.op_type = "Reshape"
    node.attributes.clear()
    node.resize_inputs(2)
    node.replace_input_with(1, None)
    node.replace_input_with(0, data)
    _aim(walk, node, wanted, None)


def _wanted(walk: Walk, node: ir.Node, old: Old, elements: Sequence[Dim] | None) -> list[Dim] | None:
    """Return the shape that the result must have, and note how the samples lie in it; None if it cannot be told."""
    data = node.inputs[0]
    assert data is not None
    if not walk.samples:
        return _regrouped(walk, node, old)
    copied = graphs.attribute(node, "allowzero")
    found = _samples(walk, data, old, elements if copied is None or not copied.as_int() else None, [])
    if found is None:
        walk.refuse(node, f"no axis of its result {list(old)} holds whole samples")
    wanted, lead = found
    walk.set_lead(node.outputs[0], lead)
    return wanted


def _samples(
    walk: Walk, data: ir.Value, old: Old, elements: Sequence[Dim] | None, favoured: Sequence[int]
) -> tuple[list[Dim], int] | None:
    """Return the shape of the result with the samples on one of its axes, and their lead there."""
    place, dims = walk.place(data), walk.dims(data)
    assert place is not None
    assert dims is not None
    outer = plain(product(dims[:place]) * walk.lead(data))
    known: list[Dim] = [dim if isinstance(dim, int) else ir.SymbolicDim(dim) for dim in old]
    choices = []
    before: Dim = 1
    for axis, dim in enumerate(known):
        lead = _lead_within(outer, before)
        if lead is not None and _divides(dim, lead * walk.size):
            alone = dim == walk.size
            computed = elements is not None and axis < len(elements) and (
                walk.grows(elements[axis]) or elements[axis] == -1 or (elements[axis] == 0 and axis == place)
            )  # fmt: skip
            grown = elements is not None and axis < len(elements) and walk.grows(elements[axis])
            moved = alone and axis != place  # samples merged into another axis had better be in front of the features
            choices.append((not grown, not alone, axis not in favoured, not computed, moved, axis, lead))
        before = plain(before * dim)
    if not choices:
        return None
    *_, axis, lead = min(choices)
    wanted = list(known)
    wanted[axis] = plain(plain(known[axis] // walk.size) * walk.symbol)
    return wanted, lead


def _lead_within(outer: Dim, before: Dim) -> int | None:
    """Return how many runs of samples an axis holds if `before` elements lie outside of it, and `outer` of samples."""
    if outer == before:
        return 1
    if isinstance(outer, int) and isinstance(before, int) and before and outer % before == 0:
        return outer // before
    return None


def _divides(dim: Dim, by: int) -> bool:
    return dim % by == 0 and dim != 0 if isinstance(dim, int) else by == 1


def _note(walk: Walk, node: ir.Node, lead: int, outer: Dim) -> None:
    if not walk.samples:
        return
    if not isinstance(outer, int):
        walk.refuse(node, "puts samples behind an axis of varying size")
    walk.set_lead(node.outputs[0], lead * outer)


def _regrouped(walk: Walk, node: ir.Node, old: Old) -> list[Dim] | None:
    """Return the shape of the result, run by run; None where the shapes before were not known."""
    data = node.inputs[0]
    new, was = walk.dims(data), walk.old(data)
    if data is None or new is None or was is None or len(was) != len(new) or None in (*was, *old):
        return None
    ours, theirs = [_number(dim) for dim in was], [_number(dim) for dim in old]
    wanted: list[Dim] = []
    for begin, end, size in _runs(ours, theirs):
        axes = range(len(wanted), len(wanted) + size)
        run = [dim if isinstance(dim, int) else ir.SymbolicDim(dim) for dim in (old[axis] for axis in axes)]
        wanted.extend(_run(walk, node, data, dict(zip(range(begin, end), ours[begin:end], strict=True)),
                           run, [theirs[axis] for axis in axes]))  # fmt: skip
    return wanted


def _number(dim: int | str | None) -> int:
    """Return a size, or for one that varies a number that stands for it: axes are called n0, n1 and so on here."""
    if not isinstance(dim, str):
        return dim or 0
    symbol = ir.SymbolicDim(dim)
    found = symbol.evaluate({name: _STAND_IN + int("0" + re.sub(r"\D", "", name)) for name in symbol.free_symbols()})
    return found if isinstance(found, int) else 0


def _runs(ours: Sequence[int], theirs: Sequence[int]) -> list[tuple[int, int, int]]:
    """Cut two shapes of equal product into the shortest runs of equal product: (begin, end) of one, length of the other."""
    found, i, j = [], 0, 0
    while i < len(ours) or j < len(theirs):
        begin, first = i, j
        left = right = 1
        while True:  # one axis of each, then more on the side of the smaller product
            if i < len(ours) and (i == begin or left < right):
                left, i = left * ours[i], i + 1
            elif j < len(theirs) and (j == first or right < left):
                right, j = right * theirs[j], j + 1
            else:
                break
        found.append((begin, i, j - first))
    return found


def _run(
    walk: Walk, node: ir.Node, data: ir.Value, ours: Mapping[int, int], old: Sequence[Dim], theirs: Sequence[int]
) -> list[Dim]:
    """Return the sizes of a run of axes of the result.

    Args:
        walk: the walk.
        node: the Reshape.
        data: what it reshapes.
        ours: axes of the data that the run comes from, and their old sizes.
        old: old sizes of the axes of the result.
        theirs: the same as numbers.
    """
    new = walk.dims(data)
    assert new is not None
    growing = [axis for axis in ours if walk.grows(new[axis])]
    if not growing:
        return list(old)
    real = [axis for axis, size in ours.items() if size != 1 or axis in growing]
    many = [i for i, size in enumerate(theirs) if size != 1]
    total = product([new[axis] for axis in ours])
    wanted = list(old)
    if not theirs:
        walk.refuse(node, f"it takes axis {growing[0]} of '{data.name}' away, which was of size 1")
    if len(many) == 1 or not many:
        if len(real) > 1 and isinstance(total, ir.SymbolicDim):
            walk.merged.setdefault(str(total.value), [(new[a], ours[a], Size(data, a)) for a in real])
        wanted[many[0] if many else 0] = total
        return wanted
    parts = walk.merged.get(str(total.value), []) if isinstance(total, ir.SymbolicDim) else []
    if [size for _, size, _ in parts] != [theirs[i] for i in many]:
        walk.refuse(node, f"nothing tells which of the axes {text(old)} grows with {text([total])[1:-1]}")
    for i, (dim, _, _) in zip(many, parts, strict=True):
        wanted[i] = dim
    return wanted


def _aim(walk: Walk, node: ir.Node, wanted: Sequence[Dim], elements: Sequence[Dim] | None) -> None:
    """Let a Reshape make the wanted shape: sizes are constants, copied (0), left to be computed (-1), or read."""
    data, target = node.inputs[:2]
    assert data is not None
    dims = walk.dims(data)
    assert dims is not None
    copies = 0 not in wanted
    if copies:
        node.attributes.pop("allowzero", None)  # which matters to targets with a 0 for a size
    parts: list[Part | None] = []
    for axis, dim in enumerate(wanted):
        if isinstance(dim, int):
            parts.append(dim)
        elif copies and axis < len(dims) and dims[axis] == dim:
            parts.append(0)
        else:
            parts.append(None)
    missing = [axis for axis, part in enumerate(parts) if part is None]
    if copies and missing:
        kept = next((axis for axis in missing if elements and elements[axis] == -1), None)
        varying = [axis for axis in missing if not walk.grows(wanted[axis])]
        chosen = kept if kept is not None else (varying or missing)[0]
        parts[chosen] = -1
        missing.remove(chosen)
    for axis in missing:
        parts[axis] = _source(walk, data, wanted[axis]) or (
            Pick(target, axis) if target is not None and not walk.grows(wanted[axis]) else None
        )
        if parts[axis] is None:
            walk.refuse(node, f"nothing tells the size of axis {axis} of its result, {wanted[axis]}, at run time")
    if len(node.inputs) < 2:
        node.resize_inputs(2)
    stem = f"{node.outputs[0].name}_shape"
    walk.replace(node, 1, walk.vector(node, [part for part in parts if part is not None], stem))
    if target is not None:
        walk.edits["target of Reshape"] += 1


def _source(walk: Walk, data: ir.Value, dim: Dim) -> Size | None:
    """Return where a size can be read."""
    dims = walk.dims(data) or ()
    if dim in dims:
        return Size(data, list(dims).index(dim))
    for parts in walk.merged.values():
        for part, _, size in parts:
            if part == dim:
                return size
    factor = walk.factor(dim)
    return walk.own_size(factor) if isinstance(factor, int) and walk.samples else None
