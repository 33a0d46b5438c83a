"""Axes that moved from attribute to input, and those counted from the back.

Squeeze, Unsqueeze and ReduceSum take axes as an input since opset 13, the other reductions since 18. Since opset 11
axes may be negative.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.passes.precision._opset.site import Refusal, Site
from graphopt.passes.precision._opset.table import down, up

_PLAIN = ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd")
_MAPPED = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare")
"""Reductions that do something to an element even where they reduce no axis."""

_ONE_AXIS = {
    "ArgMax": 0, "ArgMin": 0, "Compress": None, "Concat": None, "Flatten": 1, "Gather": 0, "Hardmax": 1,
    "LogSoftmax": 1, "OneHot": -1, "ScatterElements": 0, "Softmax": 1, "Split": 0, "TopK": -1,
}  # fmt: skip
"""Operators with an attribute `axis`, and its default in opset 11."""
_MANY_AXES = ("ReduceSum", *_PLAIN, *_MAPPED, "Squeeze", "Unsqueeze")


@up(13, "Squeeze", "Unsqueeze", "ReduceSum")
@up(18, *_PLAIN, *_MAPPED)
def _axes_to_input(site: Site) -> None:
    found = site.node.attributes.get("axes")
    if found is not None and found.is_ref():
        value = ir.RefAttr("value_ints", found.ref_attr_name or "", ir.AttributeType.INTS)
        del site.node.attributes["axes"]
        site.put(1, site.emit("Constant", value_ints=value))
    elif found is not None:
        site.put(1, np.asarray(site.pop("axes"), np.int64), "axes")


@down(13, "Squeeze", "Unsqueeze", "ReduceSum")
@down(18, *_PLAIN, *_MAPPED)
def _axes_to_attribute(site: Site) -> ir.Value | None:
    axes = None if site.input(1) is None else site.constant(1, "axes input")
    reduces = site.node.op_type.startswith("Reduce")
    if reduces and site.get("noop_with_empty_axes", 0) and (axes is None or not axes.size):
        if site.node.op_type in _MAPPED:
            raise Refusal("it reduces no axis at all (noop_with_empty_axes=1)")
        return site.emit("Identity", site.x)
    site.node.attributes.pop("noop_with_empty_axes", None)
    if axes is not None:
        site.put(1, None)
    if axes is not None and (axes.size or not reduces):
        site.set("axes", axes.ravel().tolist())
    return None


@down(11, *_ONE_AXIS)
def _axis_from_front(site: Site) -> None:
    axis = site.get("axis", _ONE_AXIS[site.node.op_type])
    if axis is not None and axis < 0 and (site.node.op_type, axis) != ("OneHot", -1):
        rank = site.rank(site.x) + (site.node.op_type == "OneHot")
        site.set("axis", axis + rank)


@down(11, *_MANY_AXES)
def _axes_from_front(site: Site) -> None:
    axes = site.get("axes")
    if axes is not None and min(axes, default=0) < 0:
        rank = site.rank(site.x) + (len(axes) if site.node.op_type == "Unsqueeze" else 0)
        site.set("axes", [axis % rank for axis in axes])


@down(11, "Scan")
def _scan_axes_from_front(site: Site) -> None:
    for name in ("scan_input_axes", "scan_output_axes"):
        if min(site.get(name, ()), default=0) < 0:
            raise Refusal(f"opset 10 counts {name} from the front")


@down(20, "ReduceMax", "ReduceMin")
def _reduce_booleans(site: Site) -> ir.Value | None:
    """The largest of booleans is that of 0 and 1; of none it is the smallest that there is, which is 0 unsigned."""
    if site.facts.dtype(site.x) != ir.DataType.BOOL:
        return None
    numbers = site.cast(site.x, ir.DataType.UINT8)
    reduced = site.emit(site.node.op_type, numbers, *site.node.inputs[1:], **site.attributes())
    return site.emit("Cast", reduced, to=int(ir.DataType.BOOL))


@up(13, "Split")
def _split_to_input(site: Site) -> None:
    sizes = site.pop("split")
    if sizes is not None:
        site.put(1, np.asarray(sizes, np.int64), "split")


@down(13, "Split")
def _split_to_attribute(site: Site) -> None:
    if site.input(1) is not None:
        sizes = site.constant(1, "split input")
        site.put(1, None)
        site.set("split", sizes.tolist())


@up(18, "Split")
def _count_parts(site: Site) -> None:
    if site.input(1) is None:
        site.set("num_outputs", len(site.node.outputs))


@down(18, "Split")
def _size_parts(site: Site) -> None:
    """Before opset 18 parts without sizes had to be equal; since then the last may be smaller."""
    count, axis = site.get("num_outputs"), site.get("axis", 0)
    if count is None:
        return
    size = site.dim(site.x, axis)
    site.pop("num_outputs")
    if size is None:
        site.put(1, _computed_sizes(site, axis, count))
    elif size % count:
        chunk = -(-size // count)
        site.put(1, np.asarray([max(0, min(chunk, size - i * chunk)) for i in range(count)], np.int64), "split")


def _computed_sizes(site: Site, axis: int, count: int) -> ir.Value:
    """Emit min(chunk, size - i * chunk) of every part i, at least 0, where chunk = ceil(size / count)."""
    end = np.iinfo(np.int64).max if axis == -1 else axis + 1
    size = site.emit("Slice", site.emit("Shape", site.x), site.ints(axis), site.ints(int(end)), site.ints(0))
    chunk = site.emit("Div", site.emit("Add", size, site.ints(count - 1)), site.ints(count))
    left = site.emit("Sub", size, site.emit("Mul", chunk, site.ints(*range(count))))
    return site.emit("Max", site.emit("Min", chunk, left), site.ints(0))
