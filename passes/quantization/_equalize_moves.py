"""Rules of operators that move numbers, or bring some together: pooling, shapes, parts (see `_equalize_rules`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt import graphs
from graphopt.inference import Dim
from graphopt.passes.quantization._equalize_channels import Channels
from graphopt.passes.quantization._equalize_rule import UNKNOWN, because, integers_of, raised, rank_of
from graphopt.passes.quantization._graphs import input_of


def pool(channels: Channels, node: ir.Node) -> str | None:
    """Take the factors along: a pool sees one channel at a time, and its outputs scale as its inputs do."""
    source = node.inputs[0]
    if source is None or rank_of(channels, source) is None:
        return because(node, UNKNOWN)
    channels.set(node.outputs[0], channels.along(channels.of(source), [0, 1]))
    return None


def reduce(channels: Channels, node: ir.Node) -> str | None:
    """Add up or compare along axes on which factors are equal."""
    source, given = node.inputs[0], input_of(node, 1)
    rank = rank_of(channels, source)
    attribute = graphs.attribute(node, "axes")
    axes = np.array(attribute.as_ints()) if attribute is not None else integers_of(given)
    if source is None or rank is None or (axes is None and given is not None):
        return because(node, UNKNOWN)
    if axes is None or not axes.size:
        axes = np.arange(0 if node.attributes.get_int("noop_with_empty_axes", 0) else rank)
    gone = {int(axis) % rank for axis in axes}
    ids = channels.along(channels.of(source), set(range(rank)) - gone)
    if not node.attributes.get_int("keepdims", 1):
        ids = ids.reshape([size for axis, size in enumerate(ids.shape) if axis not in gone])
    channels.set(node.outputs[0], ids)
    return None


def pad(channels: Channels, node: ir.Node) -> str | None:
    """Padding with zeros, or with elements that are there, along axes on which factors are equal."""
    source, fill = node.inputs[0], input_of(node, 2)
    rank = rank_of(channels, source)
    number = graphs.array(fill) if fill is not None else np.asarray(node.attributes.get_float("value", 0.0))
    if source is None or rank is None:
        return because(node, UNKNOWN)
    if node.attributes.get_string("mode", "constant") == "constant" and (number is None or number.any()):
        return because(node, "it pads with a number that is not zero")
    pads, axes = integers_of(input_of(node, 1)), integers_of(input_of(node, 3))
    attribute = graphs.attribute(node, "pads")
    pads = np.array(attribute.as_ints()) if attribute is not None else pads
    if pads is None or (axes is None and input_of(node, 3) is not None):
        padded = set(range(rank))
    else:
        order = np.arange(rank) if axes is None else axes % rank
        padded = set(order[pads.reshape(2, -1).any(axis=0)].tolist())
    channels.set(node.outputs[0], channels.along(channels.of(source), set(range(rank)) - padded))
    return None


def resize(channels: Channels, node: ir.Node) -> str | None:
    """Interpolate along axes on which factors are equal."""
    source = node.inputs[0]
    rank = rank_of(channels, source)
    if source is None or rank is None:
        return because(node, UNKNOWN)
    if node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        return because(node, "it extrapolates with a constant")
    scales = graphs.array(input_of(node, 1 if len(node.inputs) == 2 else 2))
    sizes, before = integers_of(input_of(node, 3)), channels.sizes(source) or ()
    whole = graphs.attribute(node, "axes") is None
    stretched = node.attributes.get_string("keep_aspect_ratio_policy", "stretch") == "stretch"
    stay = set[int]()
    if whole and sizes is not None and stretched:
        stay = {axis for axis, size in enumerate(before) if sizes[axis] == size}
    elif whole and scales is not None and scales.size == rank:
        stay = set(np.flatnonzero(scales == 1).tolist())
    channels.set(node.outputs[0], channels.along(channels.of(source), stay))
    return None


def expand(channels: Channels, node: ir.Node) -> str | None:
    """Repeat along axes of size one."""
    source, rank = node.inputs[0], rank_of(channels, node.outputs[0])
    if source is None or rank is None or rank_of(channels, source) is None:
        return because(node, UNKNOWN)
    channels.set(node.outputs[0], raised(channels.of(source), rank))
    return None


def reshape(channels: Channels, node: ir.Node) -> str | None:
    """Sizes are compared from the last axis on, in runs of axes that hold equally many elements."""
    source, result = node.inputs[0], node.outputs[0]
    before = channels.sizes(source) if source is not None else None
    after = channels.sizes(result)
    if source is None or before is None or after is None:
        return because(node, UNKNOWN)
    ids = channels.of(source)
    pieces: list[tuple[int, int, int, int]] = []
    left, right = len(before), len(after)
    while left or right:
        start, end, known = _run(before, after, left, right)
        part = ids.shape[start:left]
        if not known:
            ids = channels.along(ids, [axis for axis in range(len(before)) if axis >= left])
        elif any(size > 1 for size in part):
            pieces.insert(0, (start, left, end, right))
        left, right = start, end
    channels.set(result, _reshaped(ids, before, after, pieces))
    return None


def _run(before: Sequence[Dim], after: Sequence[Dim], left: int, right: int) -> tuple[int, int, bool]:
    """Return where the shortest run of axes starts that ends before `left` and `right` and has as many elements in both.

    The last element is false where sizes do not tell; the run is then all that is left.
    """
    start, end = left - 1, right - 1
    if start >= 0 and end >= 0 and before[start] is not None and before[start] == after[end]:
        return start, end, True
    one = two = 1
    start, end = left, right
    while start >= 0 and end >= 0:
        if one == two and start < left and end < right:
            return start, end, True
        if (one <= two and start > 0) or end == 0:
            start -= 1
            size = before[start] if start >= 0 else None
            if not isinstance(size, int) or size < 1:
                break
            one *= size
        else:
            end -= 1
            size = after[end]
            if not isinstance(size, int) or size < 1:
                break
            two *= size
    return 0, 0, False


def _reshaped(
    ids: np.ndarray, before: Sequence[Dim], after: Sequence[Dim], pieces: Sequence[tuple[int, int, int, int]]
) -> np.ndarray:
    """Reshape exponents run by run."""
    shape = [1] * len(after)
    for start, left, end, right in pieces:
        sizes = [int(size) for size in before[start:left] if isinstance(size, int)]
        if len(sizes) < left - start:  # one axis of a dynamic size on both sides
            sizes = list(ids.shape[start:left])
        full = (*ids.shape[:start], *sizes, *ids.shape[left:])
        ids = np.broadcast_to(ids, full)
        shape[end:right] = [int(s) for s in after[end:right] if isinstance(s, int)] or sizes
    return ids.reshape(shape)


def transpose(channels: Channels, node: ir.Node) -> str | None:
    """Let axes change places."""
    source = node.inputs[0]
    if source is None or rank_of(channels, source) is None:
        return because(node, UNKNOWN)
    order = graphs.attribute(node, "perm")
    channels.set(node.outputs[0], np.transpose(channels.of(source), order.as_ints() if order is not None else None))
    return None


def concat(channels: Channels, node: ir.Node) -> str | None:
    """Join exponents along an axis; along others they must be equal."""
    values = [value for value in node.inputs if value is not None]
    all_sizes = [channels.sizes(value) for value in values]
    if not values or any(sizes is None for sizes in all_sizes):
        return because(node, UNKNOWN)
    all_ids = [channels.of(value) for value in values]
    axis = node.attributes.get_int("axis", 0) % all_ids[0].ndim
    others = any(size > 1 for ids in all_ids for a, size in enumerate(ids.shape) if a != axis)
    lengths = [sizes[axis] for sizes in all_sizes if sizes]
    known = [length for length in lengths if isinstance(length, int)]
    if all(ids.shape[axis] == 1 for ids in all_ids) and (others or len(known) < len(lengths)):
        for ids in all_ids[1:]:
            channels.variables.unify(all_ids[0], ids)
        channels.set(node.outputs[0], max(all_ids, key=np.size))
        return None
    if len(known) < len(lengths):
        return because(node, UNKNOWN)
    rest = np.broadcast_shapes(*((*ids.shape[:axis], 1, *ids.shape[axis + 1 :]) for ids in all_ids))
    parts = [
        np.broadcast_to(ids, (*rest[:axis], length, *rest[axis + 1 :]))
        for ids, length in zip(all_ids, known, strict=True)
    ]
    channels.set(node.outputs[0], np.concatenate(parts, axis))
    return None


def split(channels: Channels, node: ir.Node) -> str | None:
    """Give each part the exponents of its channels."""
    source = node.inputs[0]
    if source is None or rank_of(channels, source) is None:
        return because(node, UNKNOWN)
    ids = channels.of(source)
    axis = node.attributes.get_int("axis", 0) % ids.ndim
    start = 0
    for value in node.outputs:
        if ids.shape[axis] == 1:
            channels.set(value, ids)
            continue
        sizes = channels.sizes(value)
        length = None if sizes is None else sizes[axis]
        if not isinstance(length, int):
            return because(node, UNKNOWN)
        channels.set(value, ids.take(np.arange(start, start + length), axis))
        start += length
    return None


def slice(channels: Channels, node: ir.Node) -> str | None:
    """Keep the exponents of what is kept."""
    source = node.inputs[0]
    rank = rank_of(channels, source)
    if source is None or rank is None:
        return because(node, UNKNOWN)
    ids = channels.of(source)
    if len(node.inputs) < 3:
        return because(node, "its bounds are attributes")
    starts, ends = integers_of(node.inputs[1]), integers_of(node.inputs[2])
    axes, steps = (integers_of(input_of(node, index)) for index in (3, 4))
    axes = np.arange(rank) if input_of(node, 3) is None else axes
    cut = range(rank) if axes is None else [int(axis) % rank for axis in axes]
    if starts is None or ends is None or axes is None or (steps is None and input_of(node, 4) is not None):
        channels.set(node.outputs[0], channels.along(ids, set(range(rank)) - set(cut)))
        return None
    for index, axis in enumerate(cut[: len(starts)]):
        if ids.shape[axis] > 1:
            step = 1 if steps is None else int(steps[index])
            if step < 1:
                return because(node, "it runs backwards")
            chosen = np.arange(ids.shape[axis])[int(starts[index]) : int(ends[index]) : step]
            ids = ids.take(chosen, axis)
    channels.set(node.outputs[0], ids)
    return None


def gather(channels: Channels, node: ir.Node) -> str | None:
    """Take the exponents of what is taken, where the indices are constant."""
    source, index = node.inputs
    rank, index_rank = rank_of(channels, source), rank_of(channels, index)
    if index is not None and graphs.constant(index) is not None:
        index_rank = len(graphs.constant(index).shape)  # type: ignore[union-attr]
    if source is None or rank is None or index_rank is None:
        return because(node, UNKNOWN)
    axis = node.attributes.get_int("axis", 0) % rank
    ids, chosen = channels.of(source), graphs.array(index)
    if ids.shape[axis] > 1 and chosen is not None:
        channels.set(node.outputs[0], np.take(ids, chosen.astype(np.int64), axis))
        return None
    ids = channels.along(ids, set(range(rank)) - {axis})
    shape = (*ids.shape[:axis], *(1,) * index_rank, *ids.shape[axis + 1 :])
    channels.set(node.outputs[0], ids.reshape(shape))
    return None
