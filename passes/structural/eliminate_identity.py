"""Remove operators that return their input unchanged

Identity; Dropout in inference mode; Cast and CastLike to the type the input has; Transpose, Reshape, Flatten,
Expand, Tile, Slice and Pad that provably leave shape and elements alone; a single-input Concat, Sum,
Mean, Max or Min; a Split into one part; and adding 0 or multiplying by 1. All of it is exact, except that x + 0
turns -0.0 into 0.0.

"Provably" means: by constants, and by symbolic shapes that follow from the graph inputs, not by declared shapes of inner
values, which may be stale. An operator that gives a graph output its name stays if its input already has a name
that must stay: that of a graph input, an initializer, an outer value or another graph output. onnx_ir's
IdentityEliminationPass knows only Identity, and renames outer values and other graph outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt import graphs, scopes
from graphopt.inference import Dim
from graphopt.passbase import Result
from graphopt.passes.structural._informed import Facts, Informed, dtype, sizes
from graphopt.passes.structural._reshaping import same

_UNBOUNDED = 2**31 - 1
"""Slices that end here or later run to the end of the axis, whatever its size."""


@dataclass(frozen=True)
class EliminateIdentity(Informed):
    """Remove operators that do nothing."""

    def apply(self, model: ir.Model, facts: Facts) -> Result:
        """Remove them in place; the report counts them by operator."""
        names = facts.names
        removed: dict[str, int] = {}
        skipped: list[tuple[str, str]] = []
        for owner in scopes.roots(model):
            for node in list(owner.all_nodes()):
                source = _unchanged(_Site(node, owner.opset_imports.get("", 0), facts))
                if source is None:
                    continue
                reason = graphs.redirect(node.outputs[0], source, names)
                if reason:
                    skipped.append((graphs.label(node), reason))
                    continue
                parameters = {value for value in node.inputs if value is not None and value is not source}
                assert node.graph is not None
                node.graph.remove(node, safe=True)
                for value in parameters:
                    graphs.discard(value)
                removed[node.op_type] = removed.get(node.op_type, 0) + 1
        return Result(model, bool(removed), removed, skipped)


class _Site:
    """A node and what is known about its surroundings."""

    def __init__(self, node: ir.Node, opset: int, facts: Facts) -> None:
        self.node, self.opset, self._facts = node, opset, facts

    def input(self, index: int) -> ir.Value | None:
        """Return an input, or None where it is left out."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def constant(self, index: int) -> np.ndarray | None:
        """Return the elements of a constant input."""
        return graphs.array(self.input(index))

    def ints(self, index: int, name: str, since: int) -> list[int] | None:
        """Return constant integers that are input `index` from opset `since` on, and attribute `name` before."""
        if self.opset >= since:
            found = self.constant(index)
            return None if found is None else [int(i) for i in found.ravel()]
        attribute = graphs.attribute(self.node, name)
        return None if attribute is None else [int(i) for i in attribute.as_ints()]

    def integer(self, name: str, default: int) -> int | None:
        """Return an integer attribute, or None when it is not an integer."""
        attribute = self.node.attributes.get(name)
        if attribute is None:
            return default
        return attribute.as_int() if attribute.type == ir.AttributeType.INT else None

    def dims(self, index: int = 0) -> tuple[Dim, ...] | None:
        """Return the proven shape of an input."""
        return sizes(self._facts, self.input(index))

    def keeps_sizes(self) -> bool:
        """Tell whether the first output certainly has the shape of the first input."""
        return same(self.dims(), sizes(self._facts, self.node.outputs[0]))

    def dtype(self, index: int) -> ir.DataType | None:
        """Return the element type of a tensor input."""
        return dtype(self._facts, self.input(index))


def _unchanged(site: _Site) -> ir.Value | None:
    """Return the input that the node passes on unchanged as its only needed output, or None."""
    node = site.node
    rule = _RULES.get(node.op_type)
    if rule is None or node.domain or graphs.has_parameters(node) or not node.outputs:
        return None
    if any(map(graphs.is_needed, node.outputs[1:])):
        return None
    index = rule(site)
    return None if index is None else site.input(index)


def _first(holds: Callable[[_Site], bool]) -> Callable[[_Site], int | None]:
    return lambda site: 0 if holds(site) else None


def _dropout(site: _Site) -> bool:
    if site.opset < 7:
        return site.integer("is_test", 0) != 0
    training = site.input(2)
    if site.opset < 12 or training is None:
        return True
    mode = site.constant(2)
    return mode is not None and not mode.any()


def _transpose(site: _Site) -> bool:
    dims = site.dims()
    if "perm" in site.node.attributes:
        perm = list(site.node.attributes["perm"].as_ints())
    elif dims is None:
        return False
    else:
        perm = list(range(len(dims)))[::-1]
    return all(axis == i or (dims is not None and dims[axis] == dims[i] == 1) for i, axis in enumerate(perm))


def _reshape(site: _Site) -> bool:
    if site.keeps_sizes() or _is_shape_of(site.input(1), site.input(0)):
        return True
    dims, target = site.dims(), site.constant(1)
    if dims is None or target is None or len(target) != len(dims):
        return False
    copies = not site.integer("allowzero", 0)
    kept = [t == d or (t == 0 and copies) for t, d in zip(target.tolist(), dims, strict=True)]
    return all(kept) or (kept.count(False) == 1 and target[kept.index(False)] == -1 and 0 not in dims)


def _is_shape_of(shape: ir.Value | None, value: ir.Value | None) -> bool:
    node = shape.producer() if shape is not None else None
    return node is not None and graphs.is_op(node, "Shape") and not node.attributes and node.inputs[0] is value


def _flatten(site: _Site) -> bool:
    dims = site.dims()
    return site.keeps_sizes() or (dims is not None and len(dims) == 2 and site.integer("axis", 1) in (1, -1))


def _expand(site: _Site) -> bool:
    target = site.constant(1)
    return (
        site.keeps_sizes()
        or _is_shape_of(site.input(1), site.input(0))
        or (target is not None and _covers(site.dims(), target.tolist()))
    )


def _covers(dims: tuple[Dim, ...] | None, shape: Sequence[int]) -> bool:
    """Tell whether broadcasting a tensor of `dims` against `shape` leaves its shape alone."""
    if dims is None or len(shape) > len(dims):
        return not shape
    return all(s in (1, d) for s, d in zip(shape, dims[len(dims) - len(shape) :], strict=True))


def _tile(site: _Site) -> bool:
    repeats = site.constant(1)
    return site.opset >= 6 and repeats is not None and bool(np.all(repeats == 1))


def _pad(site: _Site) -> bool:
    pads = site.ints(1, "pads", since=11)
    return pads is not None and not any(pads)


def _slice(site: _Site) -> bool:
    starts, ends = site.ints(1, "starts", since=10), site.ints(2, "ends", since=10)
    axes = site.ints(3, "axes", since=10)
    steps = site.constant(4) if site.opset >= 10 else None
    forwards = site.input(4) is None or (steps is not None and bool(np.all(steps > 0)))
    if forwards and site.keeps_sizes():
        return True
    if starts is None or ends is None or any(starts) or (site.input(4) is not None and steps is None):
        return False
    if axes is None:
        if site.input(3) is not None:
            return False
        axes = list(range(len(ends)))
    if steps is not None and not np.all(steps == 1):
        return False
    dims = site.dims()
    return all(end >= _UNBOUNDED or _reaches(end, axis, dims) for end, axis in zip(ends, axes, strict=True))


def _reaches(end: int, axis: int, dims: tuple[Dim, ...] | None) -> bool:
    size = None if dims is None else dims[axis]
    return isinstance(size, int) and end >= size


def _resize(site: _Site) -> bool:
    """Sampling at the very points that are given, whatever the interpolation."""
    mode = site.node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    if site.opset < 11 or mode == "tf_crop_and_resize" or not site.keeps_sizes():
        return False
    scales = site.constant(2)
    return site.input(2) is None or (scales is not None and bool(np.all(scales == 1)))


def _alone(site: _Site) -> bool:
    return len(site.node.inputs) == 1


def _cast(site: _Site) -> bool:
    return site.dtype(0) == site.integer("to", 0)


def _cast_like(site: _Site) -> bool:
    return site.dtype(0) is not None and site.dtype(0) == site.dtype(1)


def _neutral(element: int, *sides: int) -> Callable[[_Site], int | None]:
    """Return the rule of a binary operator that ignores constants full of `element` at one of `sides`."""

    def rule(site: _Site) -> int | None:
        for side in sides if site.opset >= 7 else ():
            other = site.constant(side)
            if other is not None and np.all(other == element) and _covers(site.dims(1 - side), other.shape):
                return 1 - side
        return None

    return rule


_RULES: dict[str, Callable[[_Site], int | None]] = {
    "Add": _neutral(0, 1, 0),
    "Cast": _first(_cast),
    "CastLike": _first(_cast_like),
    "Concat": _first(_alone),
    "Div": _neutral(1, 1),
    "Dropout": _first(_dropout),
    "Expand": _first(_expand),
    "Flatten": _first(_flatten),
    "Identity": _first(_alone),
    "Max": _first(_alone),
    "Mean": _first(_alone),
    "Min": _first(_alone),
    "Mul": _neutral(1, 1, 0),
    "Pad": _first(_pad),
    "Reshape": _first(_reshape),
    "Resize": _first(_resize),
    "Slice": _first(_slice),
    "Split": _first(lambda site: len(site.node.outputs) == 1),
    "Sub": _neutral(0, 1),
    "Sum": _first(_alone),
    "Tile": _first(_tile),
    "Transpose": _first(_transpose),
}
