"""Slice, TopK, Scatter and Trilu."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.passes.precision._opset.site import Refusal, Site
from graphopt.passes.precision._opset.table import down, up


@up(10, "Slice")
def _bounds_to_inputs(site: Site) -> None:
    axes = site.pop("axes")
    for index, name in ((1, "starts"), (2, "ends")):
        site.put(index, np.asarray(site.pop(name), np.int64), name)
    if axes is not None:
        site.put(3, np.asarray(axes, np.int64), "axes")


@down(10, "Slice")
def _bounds_to_attributes(site: Site) -> None:
    names = ("starts", "ends", "axes", "steps")
    given = {n: site.constant(i, n) for i, n in enumerate(names, 1) if site.input(i) is not None}
    if (given.pop("steps", np.ones(1)) != 1).any():
        raise Refusal("opset 9 takes every element, without steps")
    for index in reversed(range(1, len(site.node.inputs))):
        site.put(index, None)
    for name, array in given.items():
        site.set(name, array.tolist())


@down(11, "Slice")
def _axes_from_front(site: Site) -> None:
    if site.input(3) is None:
        return
    axes = site.constant(3, "axes input")
    if (axes < 0).any():
        site.put(3, axes % site.rank(site.x), "axes")


@up(10, "TopK")
def _k_to_input(site: Site) -> None:
    site.put(1, np.asarray([site.pop("k")], np.int64), "k")


@down(10, "TopK")
def _k_to_attribute(site: Site) -> None:
    k = site.constant(1, "k")
    site.put(1, None)
    site.set("k", int(k.ravel()[0]))


@down(11, "TopK")
def _largest_of_negative(site: Site) -> list[ir.Value] | None:
    """The smallest elements are the largest of the negative, in a stable order too; sorted serves as unsorted."""
    smallest = not site.pop("largest", 1)
    site.node.attributes.pop("sorted", None)
    if not smallest:
        return None
    values, indices = site.emit_all("TopK", (site.emit("Neg", site.x), site.given(1)), site.attributes(), 2)
    return [site.emit("Neg", values), indices]


@up(11, "Scatter")
def _scatter_elements(site: Site) -> None:
    site.node.op_type = "ScatterElements"


@down(11, "ScatterElements")
def _scatter(site: Site) -> None:
    site.node.op_type = "Scatter"


@down(14, "Trilu")
def _triangle(site: Site) -> ir.Value:
    """Keep what lies where column - row >= k (upper), or <= k (lower)."""
    dtype = site.dtype(site.x)
    shape = site.emit("Shape", site.x)
    end = int(np.iinfo(np.int64).max)
    zero, one = site.scalar(0, ir.DataType.INT64, "zero"), site.scalar(1, ir.DataType.INT64, "one")
    ends = []
    for axis, stop in ((-2, -1), (-1, end)):
        size = site.emit("Slice", shape, site.ints(axis), site.ints(stop))
        ends.append(site.emit("Squeeze", size, site.ints(0, name="axes")))
    rows, columns = (site.emit("Range", zero, size, one) for size in ends)
    difference = site.emit("Sub", columns, site.emit("Unsqueeze", rows, site.ints(1, name="axes")))
    k = site.input(1) or zero
    pair = (difference, k) if site.get("upper", 1) else (k, difference)
    keep = site.emit("GreaterOrEqual", *pair)
    return site.emit("Where", keep, site.x, site.scalar(0, dtype, "zero"))
