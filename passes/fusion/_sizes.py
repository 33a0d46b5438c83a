"""Read sizes off the inputs of the graph

Exporters read a size wherever it is at hand, for example the length of the text off the queries in heads, for each layer
anew. Once attention is fused, such a Shape would be all that keeps the queries in heads. Here sizes that are proven to be
constants or axes of graph inputs are read off there, once for all.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt import graphs
from graphopt.passes.fusion._site import Dims, Site

_ZERO = np.zeros((), np.int64)
_READERS = ("Gather", "Slice", "Squeeze")
"""Operators that pick sizes out of a shape."""


def is_replaceable(site: Site, node: ir.Node) -> bool:
    """Tell whether a node is a Shape of which everything that is read can be read elsewhere."""
    if not graphs.is_op(node, "Shape") or node.graph is not site.model.graph:
        return False
    axes = _axes(site)
    if _is_known(_all(site, node), axes):
        return True
    readers = [use.node for use in node.outputs[0].uses()]
    return all(
        graphs.is_op(reader, *_READERS) and _is_known(site.elements(reader.outputs[0]), axes) for reader in readers
    )


def read(site: Site, anchor: ir.Node, size: int | str | None) -> ir.Value | None:
    """Return a size as a vector of one element, if it is an axis of a graph input and the anchor is in the main graph."""
    graph, axes = site.model.graph, _axes(site)
    return _made(site, graph[0], (size,), axes, 1) if anchor.graph is graph and size in axes else None


def replace(site: Site) -> None:
    """Replace every Shape of a value that the main graph computes, as far as its elements are known."""
    graph = site.model.graph
    axes = _axes(site)
    for node in list(graph):
        if node.graph is not graph or not graphs.is_op(node, "Shape"):
            continue
        source = node.inputs[0]
        if source is None or source.producer() is None:
            continue
        for reader in [use.node for use in node.outputs[0].uses()]:
            if graphs.is_op(reader, *_READERS) and reader.graph is graph:
                elements, dims = site.elements(reader.outputs[0]), site.dims(reader.outputs[0])
                if elements is not None and _is_known(elements, axes) and dims in ((len(elements),), ()):
                    site.replace(reader.outputs[0], _made(site, graph[0], elements, axes, len(dims)))
        elements = _all(site, node)
        if node.graph is graph and elements is not None and _is_known(elements, axes):
            site.replace(node.outputs[0], _made(site, graph[0], elements, axes, 1))


def _all(site: Site, node: ir.Node) -> Dims | None:
    """Return what a Shape returns."""
    dims = site.dims(node.inputs[0])
    start, end = graphs.attribute(node, "start"), graphs.attribute(node, "end")
    return None if dims is None else dims[start.as_int() if start else None : end.as_int() if end else None]


def _axes(site: Site) -> dict[int | str | None, tuple[ir.Value, int]]:
    """Return where the named sizes of the graph inputs are found."""
    axes: dict[int | str | None, tuple[ir.Value, int]] = {}
    for value in site.model.graph.inputs:
        for axis, size in enumerate(site.dims(value) or ()):
            if isinstance(size, str):
                axes.setdefault(size, (value, axis))
    return axes


def _is_known(elements: Dims | None, axes: dict[int | str | None, tuple[ir.Value, int]]) -> bool:
    return elements is not None and all(isinstance(size, int) or size in axes for size in elements)


def _made(
    site: Site, anchor: ir.Node, elements: Dims, axes: dict[int | str | None, tuple[ir.Value, int]], rank: int
) -> ir.Value:
    """Return a vector of sizes, or a scalar."""
    key = ("sizes", elements, rank)
    made = site.once(anchor, key)
    if made is not None:
        return made
    int64 = ir.DataType.INT64
    if rank == 0:
        vector = _made(site, anchor, elements, axes, 1)
        zero = site.constant(anchor, _ZERO, "zero")
        return site.remember(anchor, key, site.add(anchor, "Gather", [vector, zero], dims=(), dtype=int64, axis=0))
    numbers = [size for size in elements if isinstance(size, int)]
    if len(numbers) == len(elements):
        return site.integers(anchor, numbers, "sizes")
    if len(elements) > 1:
        parts = [_made(site, anchor, (size,), axes, 1) for size in elements]
        made = site.add(anchor, "Concat", parts, dims=(len(parts),), dtype=int64, axis=0)
    else:
        source, axis = axes[elements[0]]
        shape = site.once(anchor, ("shape", source)) or site.remember(
            anchor,
            ("shape", source),
            site.add(anchor, "Shape", [source], dims=(len(site.dims(source) or ()),), dtype=int64),
        )
        index = site.integers(anchor, [axis], "axis")
        made = site.add(anchor, "Gather", [shape, index], dims=(1,), dtype=int64, axis=0)
    return site.remember(anchor, key, made)
