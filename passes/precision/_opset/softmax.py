"""Softmax, LogSoftmax and Hardmax: along one axis since opset 13, over all axes from one on before.

Before opset 13 the input was taken as a matrix whose columns are all the elements from `axis` on. Both agree where
what follows the axis has size 1.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.passes.precision._opset.site import Site
from graphopt.passes.precision._opset.table import down, up

_OPS = ("Softmax", "LogSoftmax", "Hardmax")


@up(13, *_OPS)
def _as_matrix(site: Site) -> ir.Value | None:
    axis = site.get("axis", 1)
    if _is_last(site, axis):
        site.set("axis", axis)
        return None
    matrix = site.emit("Flatten", site.x, axis=axis)
    rows = site.emit(site.node.op_type, matrix, axis=-1)
    return site.emit("Reshape", rows, site.emit("Shape", site.x))


@down(13, *_OPS)
def _along_last_axis(site: Site) -> ir.Value | None:
    axis = site.get("axis", -1)
    if _is_last(site, axis):
        site.set("axis", axis)
        return None
    rank = site.rank(site.x)
    order = list(range(rank))
    order[axis], order[-1] = order[-1], order[axis]
    turned = site.emit("Transpose", site.x, perm=order)
    return site.emit("Transpose", site.emit(site.node.op_type, turned, axis=rank - 1), perm=order)


def _is_last(site: Site, axis: int) -> bool:
    """Tell whether nothing but axes of size 1 follows."""
    dims = site.facts.dims(site.x)
    if axis == -1 or dims is None:
        return axis == -1
    return -len(dims) <= axis < len(dims) and all(size == 1 for size in dims[axis % len(dims) + 1 :])
