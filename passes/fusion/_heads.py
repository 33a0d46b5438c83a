"""Where the heads of attention come from: back from [batch, heads, length, size] to the matrix product that made them.

split:    [batch, length, heads * size] -Reshape-> [batch, length, heads, size] -Transpose-> heads
packed:   [batch, length, 3 * heads * size] -Reshape-> [batch, length, 3, heads, size]
          -Transpose-> [3, batch, heads, length, size] -Slice, Split or Gather-> heads
or the columns of queries, keys and values are cut out of the packed product first, and then split.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from graphopt import graphs
from graphopt.passes.fusion._site import Dims, Site, same


@dataclasses.dataclass(frozen=True)
class Heads:
    """Queries, keys or values in heads.

    Attributes:
        value: [batch, heads, length, size], where it exists.
        wide: the same elements in the same order with five axes, where that exists: [1, batch, heads, length, size], or
            [batch, shared heads, repeats, length, size].
        batch, length: sizes.
        count, size: number of heads, and of columns of each.
        rows: the same as [batch, length, heads, size], where it exists.
        flat: the same as [batch, length, heads * size], where it exists.
        packed: [batch, length, columns], or [batch * length, columns], of which they are some columns.
        start: the first of these columns.
        path: nodes between `packed` and `value`.
    """

    value: ir.Value | None
    batch: int | str
    length: int | str
    count: int
    size: int
    rows: ir.Value | None = None
    flat: ir.Value | None = None
    packed: ir.Value | None = None
    start: int = 0
    path: tuple[ir.Node, ...] = ()
    wide: ir.Value | None = None

    @property
    def is_deep(self) -> bool:
        """They exist in the order of heads alone, as those of a cache do."""
        return self.rows is None and self.packed is None

    @property
    def width(self) -> int:
        """Columns of all heads."""
        return self.count * self.size


def trace(site: Site, value: ir.Value) -> Heads | None:
    """Return what is known of heads [batch, heads, length, size]; None if their number or size is not proven.

    The value may also have five axes (see `Heads.wide`).
    """
    dims = site.dims(value)
    if dims is None or len(dims) not in (4, 5) or None in dims:
        return None
    if len(dims) == 5:
        return _from_wide(site, value, dims)
    heads = _known(dims[0], dims[2], dims[1], dims[3])
    if heads is None:
        return None
    heads = dataclasses.replace(heads, value=value)
    transpose = site.maker(value, "Transpose", alone=False)
    if transpose is not None and perm(transpose) == (0, 2, 1, 3):
        return _trace_rows(site, dataclasses.replace(heads, rows=transpose.inputs[0], path=(transpose,)))
    node = site.maker(value, "Gather", "Squeeze", alone=False)
    return heads if node is None else _from_packed(site, heads, _picked(site, node))


def _known(
    batch: int | str | None, length: int | str | None, count: int | str | None, size: int | str | None
) -> Heads | None:
    if batch is None or length is None or not isinstance(count, int) or not isinstance(size, int):
        return None
    return Heads(None, batch, length, count, size)


def _from_wide(site: Site, value: ir.Value, dims: Dims) -> Heads | None:
    heads = _known(dims[1], dims[3], dims[2], dims[4]) if dims[0] == 1 else None
    if heads is not None:
        heads = _from_packed(site, dataclasses.replace(heads, wide=value), _part(site, value))
        if not heads.is_deep:
            return heads
    if not isinstance(dims[1], int) or not isinstance(dims[2], int):
        return None
    heads = _known(dims[0], dims[3], dims[1] * dims[2], dims[4])
    return dataclasses.replace(heads, wide=value) if heads is not None else None


def trace_transposed(site: Site, node: ir.Node) -> Heads | None:
    """Return what is known of heads [batch, heads, size, length] that a Transpose makes of [batch, length, heads, size]."""
    rows = node.inputs[0]
    dims = site.dims(rows)
    heads = _known(*(dims[axis] for axis in (0, 1, 2, 3))) if dims is not None and len(dims) == 4 else None
    return _trace_rows(site, dataclasses.replace(heads, rows=rows, path=(node,))) if heads is not None else None


def _trace_rows(site: Site, heads: Heads) -> Heads:
    """Follow `rows` to the value that was reshaped into heads, and to that of which it is some columns."""
    reshape = site.maker(heads.rows, "Reshape", alone=False)
    flat = reshape.inputs[0] if reshape is not None else None
    dims = site.dims(flat)
    if reshape is None or flat is None or dims is None:
        return heads
    if len(dims) == 2 and dims[1] == heads.width:
        return dataclasses.replace(heads, packed=flat, path=(*heads.path, reshape))
    if dims != (heads.batch, heads.length, heads.width):
        return heads
    heads = dataclasses.replace(heads, flat=flat, packed=flat, path=(*heads.path, reshape))
    maker = flat.producer()
    if graphs.is_op(maker, "Split"):
        return _from_split(site, heads, maker)
    if maker is not None and graphs.is_op(maker, "Slice"):
        bounds = cut(site, maker)
        if bounds is not None and bounds[0] == 2:
            return dataclasses.replace(heads, packed=maker.inputs[0], start=bounds[1], path=(*heads.path, maker))
    return heads


def to_flat(site: Site, anchor: ir.Node, heads: Heads) -> ir.Value:
    """Return heads as [batch, length, heads * size], made before the anchor where that does not exist."""
    if heads.flat is not None:
        return heads.flat
    dims = (heads.batch, heads.length, heads.width)
    if heads.packed is not None and len(site.dims(heads.packed) or ()) == 3:
        bounds = [[heads.start], [heads.start + heads.width], [2]]
        inputs = [heads.packed, *(site.integers(anchor, b, "columns") for b in bounds)]
        return site.add(anchor, "Slice", inputs, heads.packed, dims)
    rows = heads.rows
    if rows is None:
        deep = to_deep(site, anchor, heads)
        assert deep is not None  # what has no order but this one has this one
        dims4 = (heads.batch, heads.length, heads.count, heads.size)
        rows = site.add(anchor, "Transpose", [deep], deep, dims4, perm=[0, 2, 1, 3])
    return site.add(anchor, "Reshape", [rows, site.integers(anchor, [0, 0, heads.width], "joined")], rows, dims)


def to_deep(site: Site, anchor: ir.Node, heads: Heads) -> ir.Value | None:
    """Return heads as [batch, heads, length, size]; of repeated heads with five axes they are made before the anchor."""
    if heads.value is not None or heads.wide is None or (site.dims(heads.wide) or ())[0] != heads.batch:
        return heads.value
    shape = site.integers(anchor, [0, heads.count, -1, heads.size], "heads")
    dims = (heads.batch, heads.count, heads.length, heads.size)
    return site.add(anchor, "Reshape", [heads.wide, shape], heads.wide, dims)


def perm(node: ir.Node) -> tuple[int, ...] | None:
    """Return the permutation of a Transpose, if it is written down."""
    found = node.attributes.get("perm")
    return tuple(found.as_ints()) if found is not None else None


def _from_split(site: Site, heads: Heads, node: ir.Node | None) -> Heads:
    assert node is not None
    assert heads.flat is not None
    source = node.inputs[0]
    axis = node.attributes.get("axis")
    if source is None or axis is None or axis.as_int() not in (2, -1):
        return heads
    widths = [(site.dims(part) or (None,))[-1] for part in node.outputs]
    before = widths[: heads.flat.index() or 0]
    if not all(isinstance(width, int) for width in before):
        return heads
    start = sum(width for width in before if isinstance(width, int))
    return dataclasses.replace(heads, packed=source, start=start, path=(*heads.path, node))


_Part = tuple[ir.Value, int, tuple[ir.Node, ...]]
"""Of what a value is one entry of the first axis, which entry, and the nodes that pick it."""


def _from_packed(site: Site, heads: Heads, part: _Part | None) -> Heads:
    """Follow heads that were picked out of [3, batch, heads, length, size]."""
    if part is None:
        return heads
    source, index, path = part
    transpose = site.maker(source, "Transpose", alone=False)
    reshape = site.maker(transpose.inputs[0], "Reshape", alone=False) if transpose is not None else None
    if transpose is None or perm(transpose) != (2, 0, 3, 1, 4) or reshape is None or reshape.inputs[0] is None:
        return heads
    parts = site.dims(transpose.inputs[0])
    if parts is None or parts != (heads.batch, heads.length, parts[2], heads.count, heads.size):
        return heads
    packed = reshape.inputs[0]
    if not isinstance(parts[2], int) or not same(
        site.dims(packed), (heads.batch, heads.length, parts[2] * heads.width)
    ):
        return heads
    start = index * heads.width
    return dataclasses.replace(heads, packed=packed, start=start, path=(*path, transpose, reshape))


def _picked(site: Site, node: ir.Node) -> _Part | None:
    """Return what a Gather or Squeeze takes out of five axes."""
    source, dims = node.inputs[0], site.dims(node.inputs[0])
    if source is None or dims is None or len(dims) != 5:
        return None
    if node.op_type == "Squeeze":
        part = _part(site, source) if dims[0] == 1 and same(site.dims(node.outputs[0]), dims[1:]) else None
        return (*part[:2], (node, *part[2])) if part is not None else None
    axis, index = node.attributes.get("axis"), site.elements(node.inputs[1]) if node.inputs[1] else None
    if axis is not None and axis.as_int() != 0:
        return None
    if not isinstance(dims[0], int) or index is None or len(index) != 1 or not isinstance(index[0], int):
        return None
    return source, index[0] % dims[0], (node,)


def _part(site: Site, value: ir.Value) -> _Part | None:
    """Return of what a value is one entry of the first axis, which is kept."""
    node = value.producer()
    if node is None or node.inputs[0] is None:
        return None
    if graphs.is_op(node, "Split"):
        axis = node.attributes.get("axis")
        sizes = {(site.dims(part) or (None,))[0] for part in node.outputs}
        first = axis is None or axis.as_int() == 0
        return (node.inputs[0], value.index() or 0, (node,)) if first and sizes == {1} else None
    bounds = cut(site, node) if graphs.is_op(node, "Slice") else None
    return (node.inputs[0], bounds[1], (node,)) if bounds is not None and bounds[0] == 0 else None


def cut(site: Site, node: ir.Node) -> tuple[int, int] | None:
    """Return the one axis that a Slice cuts, counted from the front, and where it starts; steps must be 1."""
    given = [site.elements(value) if value is not None else None for value in node.inputs[1:]]
    dims = site.dims(node.inputs[0])
    if len(given) < 3 or dims is None or any(e is None or len(e) != 1 for e in (given[0], given[2])):
        return None
    if len(given) > 3 and given[3] != (1,):
        return None
    start, axis = (given[0] or ())[0], (given[2] or ())[0]
    if not isinstance(start, int) or not isinstance(axis, int):
        return None
    axis += len(dims) if axis < 0 else 0
    size = dims[axis]
    if start < 0:
        if not isinstance(size, int):
            return None
        start += size
    return axis, start
