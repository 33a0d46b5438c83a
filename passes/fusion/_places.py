"""Masks that are looked up at their own places

Recent transformers build the mask of attention out of functions of places: they gather mask[i, j] for i = 0, 1, ... of
the batch and j = 0, 1, ... of the keys, and ask whether places are at least 0. Let p be the indices of an element:

    GatherND(mask, indices)[p] = mask[p[a], p[b]]    where indices[p] = (p[a], p[b]), so it is mask with new axes
    And(always, mask) = mask, broadcast              where `always` compares places with numbers that none is below

A value is known to hold places by how it is made: Range from 0 in steps of 1, then axes added and broadcast.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt import graphs
from graphopt.passes.fusion._site import Dims, Site


def unlook(site: Site) -> None:
    """Replace every GatherND that looks up each element at its own place, or in a row of its own."""
    for graph in site.graphs():
        for node in list(graph):
            if node.graph is graph and graphs.is_op(node, "GatherND"):
                added = _added_axes(site, node)
                if added is not None:
                    _rewrite(site, node, added)


def always(site: Site, value: ir.Value | None) -> bool:
    """Tell whether a truth value is true everywhere in every run."""
    constant = graphs.array(value)
    if constant is not None:
        return constant.dtype == bool and bool(constant.all())
    node = site.maker(value, "And", "Expand", "Greater", "GreaterOrEqual", "Unsqueeze", alone=False)
    if node is None:
        return False
    if node.op_type in ("Greater", "GreaterOrEqual"):
        bound = site.number(node.inputs[1])
        lowest = 0 if node.op_type == "GreaterOrEqual" else -1
        return bound is not None and bound <= lowest and place(site, node.inputs[0]) is not None
    return all(always(site, x) for x in (node.inputs if node.op_type == "And" else node.inputs[:1]))


def place(site: Site, value: ir.Value | None) -> int | None:
    """Return the axis of which a value holds, in every element, the element's own index."""
    node = site.maker(value, "Expand", "Range", "Unsqueeze", alone=False)
    dims = site.dims(value)
    if node is None or dims is None:
        return None
    if node.op_type == "Range":
        return 0 if site.number(node.inputs[0]) == 0 and site.number(node.inputs[2]) == 1 else None
    axis, before = place(site, node.inputs[0]), site.dims(node.inputs[0])
    if axis is None or before is None:
        return None
    if node.op_type == "Expand":
        moved = axis + len(dims) - len(before)
        return moved if dims[moved] == before[axis] and dims[moved] is not None else None
    new = _new_axes(site, node, len(dims))
    if new is None:
        return None
    kept = [index for index in range(len(dims)) if index not in new]
    return kept[axis]


def _new_axes(site: Site, node: ir.Node, rank: int) -> set[int] | None:
    """Return the axes that an Unsqueeze adds, counted from the front."""
    attribute = node.attributes.get("axes")
    given = node.inputs[1] if len(node.inputs) > 1 else None
    axes = tuple(attribute.as_ints()) if attribute is not None else site.elements(given) if given is not None else None
    if axes is None:
        return None
    return {axis % rank for axis in axes if isinstance(axis, int)}


def _added_axes(site: Site, node: ir.Node) -> list[int] | None:
    """Return the axes of size 1 that a GatherND adds to its data, if it does nothing else."""
    data, indices = (site.dims(value) for value in node.inputs)
    dims = site.dims(node.outputs[0])
    joined = site.maker(node.inputs[1], "Concat", alone=False)
    batch = node.attributes.get("batch_dims")
    if data is None or indices is None or dims is None or joined is None or (batch is not None and batch.as_int()):
        return None
    if joined.attributes["axis"].as_int() not in (-1, len(indices) - 1) or len(joined.inputs) != len(data):
        return None
    axes = []
    for value in joined.inputs:  # each [..., 1]
        last = site.maker(value, "Unsqueeze", alone=False)
        if last is None or _new_axes(site, last, len(indices)) != {len(indices) - 1}:
            return None
        axis = place(site, last.inputs[0])
        if axis is None:
            return None
        axes.append(axis)
    if sorted(set(axes)) != axes or any(
        dims[axis] != size or size is None for axis, size in zip(axes, data, strict=True)
    ):
        return None
    added = [axis for axis in range(len(dims)) if axis not in axes]
    return added if all(dims[axis] == 1 for axis in added) else None


def _rewrite(site: Site, node: ir.Node, added: list[int]) -> None:
    dims: Dims | None = site.dims(node.outputs[0])
    data, output = node.inputs[0], node.outputs[0]
    if site.opset() >= 13:
        axes = site.constant(node, np.asarray(added, np.int64), "axes")
        made = site.add(node, "Unsqueeze", [data, axes], output, dims)
    else:
        made = site.add(node, "Unsqueeze", [data], output, dims, axes=added)
    reason = site.replace(output, made)
    if reason:
        site.skip(node, reason)
    else:
        site.fused["Unsqueeze"] += 1
