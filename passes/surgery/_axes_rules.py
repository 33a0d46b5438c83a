"""What has to be mended in an operator before a growing axis passes it, and which operators samples cannot pass"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from graphopt import graphs, scopes
from graphopt.passes.surgery._axes_reshape import flatten, reshape, squeeze, unsqueeze
from graphopt.passes.surgery._axes_walk import ELEMENTWISE, Dims, Part, Pick, Size, Walk

_TO_THE_END = 2**31 - 1
"""Slices that end here or later run to the end of the axis; fits both types of bounds."""

_FIRST_AXIS = frozenset(
    [
        "AveragePool",
        "BatchNormalization",
        "Conv",
        "ConvInteger",
        "ConvTranspose",
        "DepthToSpace",
        "FusedConv",
        "GlobalAveragePool",
        "GlobalLpPool",
        "GlobalMaxPool",
        "GridSample",
        "GroupNormalization",
        "InstanceNormalization",
        "LRN",
        "LpPool",
        "MaxPool",
        "QLinearConv",
        "SpaceToDepth",
    ]
)
"""Operators to which the first axis is that of samples, and others are not."""

_MIXING = frozenset(
    [
        "Col2Im",
        "Compress",
        "EyeLike",
        "MaxRoiPool",
        "MaxUnpool",
        "MeanVarianceNormalization",
        "Multinomial",
        "NonMaxSuppression",
        "NonZero",
        "RoiAlign",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceInsert",
        "SequenceMap",
        "SplitToSequence",
        "Unique",
    ]
)
"""Operators whose results are not those of the samples, one after the other."""

_SHAPE_READING = frozenset(("Shape", "Size"))


def _broadcast(walk: Walk, node: ir.Node) -> None:
    """Cut constants that hold a copy for every sample to one."""
    _align(walk, node, list(range(len(node.inputs))), keep=0)


def _matmul(walk: Walk, node: ir.Node) -> None:
    """Likewise, of the axes before the last two."""
    _align(walk, node, [0, 1], keep=2)


def _align(walk: Walk, node: ir.Node, indices: Sequence[int], keep: int) -> None:
    """Let sizes that broadcast agree on the axis that grows, counted from the last one.

    Args:
        walk: the walk.
        node: the node.
        indices: inputs that broadcast.
        keep: how many last axes do not.
    """
    if walk.samples and keep == 0:
        _meet(walk, node, indices)
    values = [node.inputs[index] for index in indices]
    for value in values:
        for axis in walk.axes(value):
            dims = walk.dims(value)
            assert dims is not None
            back = len(dims) - axis
            if back <= keep:
                continue
            for index in indices:
                _agree(walk, node, index, back, dims[axis])


def _meet(walk: Walk, node: ir.Node, indices: Sequence[int]) -> None:
    """Bring the samples of all inputs that broadcast to the same axis, that of the first which has some."""
    backs = {}
    for index in indices:
        place, dims = walk.place(node.inputs[index]), walk.dims(node.inputs[index])
        if place is not None and dims is not None:
            backs[index] = len(dims) - place
    for index, back in backs.items():
        first = next(iter(backs.values()))
        dims = walk.dims(node.inputs[index]) or ()
        if back != first and first <= len(dims):
            walk.move(node, index, len(dims) - first)


def _agree(walk: Walk, node: ir.Node, index: int, back: int, dim: int | ir.SymbolicDim) -> None:
    value = node.inputs[index]
    dims = walk.dims(value)
    if value is None or dims is None or len(dims) < back:
        return
    axis = len(dims) - back
    if dims[axis] in (1, dim):
        return
    if isinstance(dims[axis], int) and dims[axis] == walk.was(dim):
        node.replace_input_with(index, walk.single(node, value, axis))
    elif isinstance(dims[axis], int) or walk.grows(dims[axis]):
        walk.refuse(node, f"'{value.name}' has size {dims[axis]} where another input has {dim}")


def _gemm(walk: Walk, node: ir.Node) -> None:
    """Cut what is added to a product to one row, where that holds a copy for every sample."""
    transposed = graphs.attribute(node, "transA")
    first = walk.dims(node.inputs[0])
    row = 1 if transposed is not None and transposed.as_int() else 0
    if first is not None and len(node.inputs) > 2 and walk.grows(first[row]):
        _agree(walk, node, 2, 2, first[row])


def _concat(walk: Walk, node: ir.Node) -> None:
    """Copy what is the same for all samples, such as a class token."""
    found = graphs.attribute(node, "axis")
    for value in list(node.inputs):
        dims = walk.dims(value)
        joined = (1 if found is None else found.as_int()) % max(1, len(dims or ()))
        for axis in walk.axes(value):
            if axis != joined:
                for index in range(len(node.inputs)):
                    _carry(walk, node, index, axis)


def _carry(walk: Walk, node: ir.Node, index: int, axis: int) -> None:
    """Copy an input for every sample; what grows along another kind of axis can only be checked."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is not None and (walk.samples or (walk.dims(value) or ())[axis : axis + 1] == (walk.size,)):
        walk.carry(node, index, axis)


def _together(*axes: tuple[int, int]) -> Callable[[Walk, ir.Node], None]:
    """Return the rule of an operator that has samples on certain axes of certain inputs: all of them or none.

    Args:
        axes: index of an input, and its axis.
    """

    def rule(walk: Walk, node: ir.Node) -> None:
        there = [(i, a) for i, a in axes if i < len(node.inputs) and node.inputs[i] is not None]
        if walk.samples and any(walk.place(node.inputs[i]) == a for i, a in there):
            for index, axis in there:
                walk.carry(node, index, axis)

    return rule


def _recurrent(walk: Walk, node: ir.Node) -> None:
    """Copy the initial states for every sample."""
    layout = graphs.attribute(node, "layout")
    first = layout is not None and layout.as_int() == 1
    if walk.samples:
        walk.move(node, 0, 0 if first else 1)
    axis = walk.place(node.inputs[0])
    if axis is not None and walk.samples and axis != (0 if first else 1):
        walk.refuse(
            node, f"samples come along axis {axis}, which is that of {'features' if axis == 2 else 'time'} to it"
        )
    _together((0, 0 if first else 1), (4, 0), (5, 0 if first else 1), (6, 0 if first else 1))(walk, node)


def _elements_together(walk: Walk, node: ir.Node) -> None:
    """Copy for every sample what lies side by side with them: data, indices and updates of equal rank."""
    if walk.samples:
        for _, axis in list(walk.carriers(node)):
            for index in range(len(node.inputs)):
                walk.carry(node, index, axis)


def _scatter_nd(walk: Walk, node: ir.Node) -> None:
    """Copy data and updates for every sample; indices that number the samples no longer do."""
    data, indices, updates = node.inputs[:3]
    size, dims = walk.dims(indices), walk.dims(data)
    if not walk.samples or size is None or dims is None or not isinstance(size[-1], int):
        return
    if walk.place(indices) is not None:  # they are computed, for as many samples as there are
        return
    count, grid = size[-1], len(size) - 1
    axis, place = walk.place(data), walk.place(updates)
    if axis is None and place is None:
        return
    if axis is None and place is not None and place >= grid:
        axis = place - grid + count
    if axis is None or axis < count:
        _unnumber_updates(walk, node, axis, place)
        return
    walk.carry(node, 0, axis)
    walk.carry(node, 2, axis + grid - count)


def _unnumber_updates(walk: Walk, node: ir.Node, axis: int | None, place: int | None) -> None:
    """Leave the samples out of the indices of a ScatterND, and move them behind the axes that stay indexed.

    ScatterND(data, indices, updates) is then Transpose(ScatterND(Transpose(data), fewer indices, Transpose(updates))).
    """
    changed = walk.dims(node.inputs[2])
    axis, place, fewer = _unnumbered(walk, node, axis, place)
    walk.carry(node, 0, axis)
    walk.carry(node, 2, place)
    rank, count, grid = len(walk.dims(node.inputs[0]) or ()), fewer.shape[-1] + 1, fewer.ndim
    ours = _behind(axis, count, rank)
    moved = _turned(walk, node, 0, ours)
    updates = _turned(walk, node, 2, _behind(place, grid, len(changed or ())))
    reduction = graphs.attribute(node, "reduction")
    extra = {} if reduction is None else {"reduction": reduction.as_string()}
    indices = walk.constant(fewer, f"{node.outputs[0].name}_indices")
    turned = walk.add(node, "ScatterND", [moved, indices, updates], f"{node.outputs[0].name}_turned", **extra)
    graphs.become(node, "Transpose", [turned], perm=[ours.index(i) for i in range(rank)])
    walk.edits["indices of ScatterND"] += 1


def _gather_nd(walk: Walk, node: ir.Node) -> None:
    """Let indices that number the samples no longer do; the samples lie behind the axes that stay indexed, and return."""
    axis, size, batch = walk.place(node.inputs[0]), walk.dims(node.inputs[1]), graphs.attribute(node, "batch_dims")
    if not walk.samples or size is None or (axis is None and walk.place(node.inputs[1]) is None):
        return
    if batch is not None and batch.as_int():
        for index in (0, 1) if (axis if axis is not None else 0) < batch.as_int() else ():
            walk.carry(node, index, axis if axis is not None else walk.place(node.inputs[1]) or 0)
        return
    if axis is None or walk.place(node.inputs[1]) is not None or not isinstance(size[-1], int) or axis >= size[-1]:
        return
    axis, place, fewer = _unnumbered(walk, node, axis, None)
    count, grid = fewer.shape[-1] + 1, fewer.ndim
    rank = len(walk.dims(node.inputs[0]) or ())
    moved = _turned(walk, node, 0, _behind(axis, count, rank))
    indices = walk.constant(fewer, f"{node.outputs[0].name}_indices")
    turned = walk.add(node, "GatherND", [moved, indices], f"{node.outputs[0].name}_turned")
    back = _behind(place, grid, grid + rank - count)
    graphs.become(node, "Transpose", [turned], perm=[back.index(i) for i in range(len(back))])
    walk.edits["indices of GatherND"] += 1


def _behind(axis: int, count: int, rank: int) -> list[int]:
    """Return the permutation that moves an axis behind the first `count`, of which it is one."""
    return [*(i for i in range(count) if i != axis), axis, *range(count, rank)]


def _turned(walk: Walk, node: ir.Node, index: int, perm: list[int]) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return walk.add(node, "Transpose", [value], f"{value.name}_turned", perm=perm)


def _unnumbered(walk: Walk, node: ir.Node, axis: int | None, place: int | None) -> tuple[int, int, np.ndarray]:
    """Take out of constant indices the one that numbers the samples.

    Args:
        walk: the walk.
        node: a GatherND or ScatterND, whose second input they are, [..., indexed axes].
        axis: of the data, on which samples lie; None to find it.
        place: axis of the indices along which the samples are numbered; None to find it.

    Returns:
        The two axes, and the remaining indices of one sample.
    """
    indices = graphs.array(node.inputs[1])
    dims = walk.dims(node.inputs[0])
    assert dims is not None
    if indices is None:
        walk.refuse(node, "indices that are no constants number the samples")
    grid, count = indices.shape[:-1], indices.shape[-1]
    places = [p for p, size in enumerate(grid) if size == walk.size and place in (None, p)]
    axes = [a for a in range(count) if (dims[a] == walk.size if axis is None else a == axis)]
    for p, a in itertools.product(places, axes if count > 1 else []):
        numbers, fewer = np.moveaxis(indices[..., a], p, -1), np.delete(indices, a, -1)
        first = fewer.take(0, p)
        if (numbers == np.arange(walk.size)).all() and (fewer == np.expand_dims(first, p)).all():
            break
    else:
        walk.refuse(node, "its indices number the samples in a way that does not hold for more of them")
    return a, p, first


def _expand(walk: Walk, node: ir.Node) -> None:
    """Write 1, which keeps what is there, in place of the old size."""
    source, target = node.inputs[0], node.inputs[1]
    dims, elements = walk.dims(source), walk.elements(target)
    if dims is None or elements is None or not walk.axes(source):
        return
    shift = len(elements) - len(dims)
    wrong = {axis + shift for axis in walk.axes(source) if axis + shift >= 0}
    wrong = {i for i in wrong if isinstance(elements[i], int) and elements[i] != 1}
    if wrong:
        _write(walk, node, 1, [1 if i in wrong else None for i in range(len(elements))])
        walk.edits["target of Expand"] += 1


def _write(walk: Walk, node: ir.Node, index: int, parts: Sequence[Part | None]) -> None:
    """Give a node a new vector; what is None stays."""
    vector = node.inputs[index]
    assert vector is not None
    elements = walk.elements(vector) or []
    made: list[Part] = []
    for i, part in enumerate(parts):
        element = elements[i]
        made.append(part if part is not None else element if isinstance(element, int) else Pick(vector, i))
    walk.replace(node, index, walk.vector(node, made, f"{vector.name}_mended"))


def _resize(walk: Walk, node: ir.Node) -> None:
    """Compute the sizes that were constants."""
    source, sizes = node.inputs[0], node.inputs[3] if len(node.inputs) > 3 else None
    dims, elements = walk.dims(source), walk.elements(sizes)
    if source is None or dims is None or elements is None:
        return
    axes = walk.ints(node, -1, "axes") if "axes" in node.attributes else list(range(len(dims)))
    parts: list[Part | None] = [None] * len(elements)
    for position, axis in enumerate(axes or ()):
        axis %= len(dims)
        element = elements[position]
        if not walk.grows(dims[axis]) or not isinstance(element, int):
            continue
        was = walk.was(dims[axis])
        if not isinstance(was, int) or element % was:
            walk.refuse(node, f"its output size {element} is no multiple of the input's, {was}, on axis {axis}")
        parts[position] = Size(source, axis, element // was)
    if any(parts):
        _write(walk, node, 3, parts)
        walk.edits["sizes of Resize"] += 1


def _reduce(walk: Walk, node: ir.Node) -> None:
    """Leave the axis of a single sample, which a reduction of the whole batch names too, as it is."""
    dims, place, kept = walk.dims(node.inputs[0]), walk.place(node.inputs[0]), graphs.attribute(node, "keepdims")
    if not walk.samples or dims is None or place is None or dims[place] != walk.symbol or walk.size != 1:
        return
    axes = walk.ints(node, 1, "axes")
    empty = graphs.attribute(node, "noop_with_empty_axes")
    if axes is None and (
        (len(node.inputs) > 1 and node.inputs[1] is not None) or (empty is not None and empty.as_int())
    ):
        return
    named = list(range(len(dims))) if not axes else [axis % len(dims) for axis in axes]
    others = [axis for axis in named if axis != place]
    if place not in named or not others or (kept is not None and not kept.as_int()):
        return
    if "axes" in node.attributes or walk.opset < _AXES_ARE_INPUTS[node.op_type]:
        node.attributes.add(ir.AttrInt64s("axes", others))
    else:
        node.resize_inputs(2)
        walk.replace(node, 1, walk.constant(np.array(others, np.int64), f"{node.outputs[0].name}_axes"))
    walk.edits[f"{node.op_type} of one sample"] += 1


_AXES_ARE_INPUTS = {
    "ReduceL1": 18,
    "ReduceL2": 18,
    "ReduceLogSum": 18,
    "ReduceLogSumExp": 18,
    "ReduceMax": 18,
    "ReduceMean": 18,
    "ReduceMin": 18,
    "ReduceProd": 18,
    "ReduceSum": 13,
    "ReduceSumSquare": 18,
}
"""Reductions, and the opset since which their axes are an input."""


def _slice(walk: Walk, node: ir.Node) -> None:
    """Let a Slice that ended at the old size go to the end."""
    source = node.inputs[0]
    dims = walk.dims(source)
    starts, ends = walk.ints(node, 1, "starts"), walk.ints(node, 2, "ends")
    if dims is None or not walk.axes(source):
        return
    attributes = "starts" in node.attributes
    axes = walk.ints(node, 3, "axes")
    if axes is None:
        if not attributes and len(node.inputs) > 3 and node.inputs[3] is not None:
            walk.refuse(node, "the axes that it cuts are no constants")
        count = starts or ends or walk.elements(node.inputs[1])
        axes = list(range(len(count or dims)))
    steps = (
        [1] * len(axes) if attributes or len(node.inputs) < 5 or node.inputs[4] is None else walk.ints(node, 4, "steps")
    )
    for position, axis in enumerate(axes):
        dim = dims[axis % len(dims)]
        if not walk.grows(dim):
            continue
        whole = starts and ends and steps and starts[position] == 0 and steps[position] == 1
        if ends and ends[position] == walk.was(dim) and (whole or not walk.samples):
            _end(walk, node, position, ends)
        elif walk.samples and not (whole and ends and ends[position] >= _TO_THE_END):
            output = walk.old(node.outputs[0])
            if ends or output is None or output[axis % len(dims)] != walk.was(dim):
                walk.refuse(node, f"takes some of the samples, on axis {axis % len(dims)}")


def _end(walk: Walk, node: ir.Node, position: int, ends: list[int]) -> None:
    ends[position] = _TO_THE_END
    walk.edits["end of Slice"] += 1
    if "ends" in node.attributes:
        node.attributes.add(ir.AttrInt64s("ends", ends))
        return
    old = node.inputs[2]
    assert old is not None
    bounds = np.array(ends, (old.dtype or ir.DataType.INT64).numpy())
    walk.replace(node, 2, walk.constant(bounds, f"{old.name}_mended"))


def _gather(walk: Walk, node: ir.Node) -> None:
    """Let a Gather of the only sample leave it where it is."""
    data, indices = node.inputs[0], node.inputs[1]
    found, dims = graphs.attribute(node, "axis"), walk.dims(data)
    if not walk.samples or dims is None:
        return
    axis = (0 if found is None else found.as_int()) % max(1, len(dims))
    if walk.place(data) != axis:
        return
    chosen = graphs.array(indices)
    if walk.size != 1 or dims[axis] != walk.symbol or chosen is None or chosen.size != 1:
        walk.refuse(node, f"takes some of the samples, on axis {axis}")
    if chosen.ndim == 0:
        squeeze(walk, node)
    elif chosen.ndim == 1:
        node.op_type = "Identity"
        node.attributes.clear()
        node.resize_inputs(1)
        walk.edits["Gather made an Identity"] += 1
    else:
        walk.refuse(node, f"takes one of the samples, on axis {axis}")
    if indices is not None:
        graphs.discard(indices)


def _first(walk: Walk, node: ir.Node) -> None:
    """Bring samples to the first axis, where the operator has them."""
    if walk.samples:
        walk.move(node, 0, 0)


def _tile(walk: Walk, node: ir.Node) -> None:
    """Note how repeated samples lie."""
    axis, repeats = walk.place(node.inputs[0]), walk.elements(node.inputs[1] if len(node.inputs) > 1 else None)
    if axis is not None and repeats is not None and walk.samples and node.inputs[0] is not None:
        times = repeats[axis]
        if isinstance(times, int) and times != 1:
            walk.set_lead(node.outputs[0], walk.lead(node.inputs[0]) * times)


def _if(walk: Walk, node: ir.Node) -> None:
    """Follow the axis through both branches."""
    if walk.samples and walk.place(node.inputs[0]) is not None:
        walk.refuse(node, "its condition differs from sample to sample")
    for found in list(node.attributes.values()):
        for branch in scopes.subgraphs(found):
            walk.follow(branch)


def _loop(walk: Walk, node: ir.Node) -> None:
    """Follow the axis through the body, to which what is carried must come as it left."""
    body = node.attributes["body"].as_graph()
    if walk.samples and any(walk.place(value) is not None for value in node.inputs[:2]):
        walk.refuse(node, "how long it runs differs from sample to sample")
    for inner in body.inputs[:2]:
        inner.shape = ir.Shape([])
    _iterate(walk, node, body, list(zip(body.inputs[2:], range(2, len(node.inputs)), body.outputs[1:], strict=False)))
    if walk.samples and walk.place(body.outputs[0]) is not None:
        walk.refuse(node, "how long it runs differs from sample to sample")


def _scan(walk: Walk, node: ir.Node) -> None:
    """Likewise; slices lose the axis that is scanned."""
    count = node.attributes["num_scan_inputs"].as_int()
    body = node.attributes["body"].as_graph()
    states = len(node.inputs) - count
    found = graphs.attribute(node, "scan_input_axes")
    axes = list(found.as_ints()) if found is not None else [0] * count
    for inner, value, axis in zip(body.inputs[states:], node.inputs[states:], axes, strict=True):
        dims = walk.dims(value)
        if dims is not None:
            axis %= len(dims)
            if walk.samples and walk.grows(dims[axis]):
                walk.refuse(node, f"goes through the samples one after the other, on axis {axis} of '{inner.name}'")
            dims = [*dims[:axis], *dims[axis + 1 :]]
        _enter(inner, value, dims, walk)
    _iterate(walk, node, body, list(zip(body.inputs[:states], range(states), body.outputs, strict=False)))


def _iterate(walk: Walk, node: ir.Node, body: ir.Graph, carried: list[tuple[ir.Value, int, ir.Value]]) -> None:
    """Follow the axis through a body until what it carries comes back as it went in.

    Args:
        walk: the walk.
        node: the Loop or Scan.
        body: its body.
        carried: input of the body, index of the input of the node that it starts from, output of the body.
    """
    for _ in range(len(carried) + 1):
        for inner, index, _result in carried:
            _enter(inner, node.inputs[index], walk.dims(node.inputs[index]), walk)
        walk.follow(body)
        for inner, index, result in carried:
            place = walk.place(result)
            if walk.samples and place is not None and walk.place(inner) is None and walk.dims(inner) is not None:
                walk.carry(node, index, place)  # an initial state is the same for all samples
                break
        else:
            break
    for inner, _, result in carried:
        _comes_back(walk, node, inner, result)


def _enter(inner: ir.Value, value: ir.Value | None, dims: Dims | None, walk: Walk) -> None:
    inner.shape = None if dims is None else ir.Shape(dims)
    if inner.type is None and value is not None:
        inner.type = value.type
    if value is not None:
        walk.set_lead(inner, walk.lead(value))


def _comes_back(walk: Walk, node: ir.Node, inner: ir.Value, result: ir.Value) -> None:
    came, left = walk.dims(inner), walk.dims(result)
    if came is None or left is None or not (walk.axes(inner) or walk.axes(result)):
        return
    if list(came) != list(left) or walk.lead(inner) != walk.lead(result):
        walk.refuse(node, f"what it carries as '{inner.name}' changes its shape on the way")


def check_samples(walk: Walk, node: ir.Node) -> None:
    """Refuse a node that does not treat every sample on its own, and note how the samples lie in its outputs.

    Raises:
        PreconditionError: the message says how it mixes them.
    """
    carriers = list(walk.carriers(node))
    if node.op_type in _SHAPE_READING:
        return
    if carriers and node.op_type in _MIXING:
        walk.refuse(node, "its result is not made of one result for each sample")
    for value, place in carriers:
        dims = walk.dims(value)
        assert dims is not None
        if node.op_type in _FIRST_AXIS and place != 0 and value is node.inputs[0]:
            walk.refuse(node, f"samples have come to axis {place}, and it has them on the first one")
        mixed = _mixed(walk, node, len(dims)) if value is node.inputs[0] else []
        if place in mixed:
            walk.refuse(node, f"works along axis {place}, and so mixes the samples")
    for value in node.outputs:
        _check_output(walk, node, value, carriers)
    walk.inherit(node)


def _check_output(walk: Walk, node: ir.Node, value: ir.Value, carriers: Sequence[tuple[ir.Value, int]]) -> None:
    dims, places = walk.dims(value), walk.axes(value)
    if not graphs.is_needed(value):
        return
    if dims is None and carriers:
        walk.refuse(node, "no rule tells what shape it makes of the samples")
    if len(places) > 1:
        walk.refuse(node, f"makes {len(places)} axes of samples out of one")
    if carriers and not places and node.op_type != "CastLike":
        walk.refuse(node, "its result has no axis of samples: it mixes them, or takes one")
    for place in places:
        assert dims is not None
        if walk.factor(dims[place]) is None:
            walk.refuse(node, f"makes {dims[place]} of the samples, no multiple")
    if node.op_type == "MaxPool" and value is node.outputs[-1] and len(node.outputs) > 1:
        walk.refuse(node, "its indices number the elements of all samples")


def _mixed(walk: Walk, node: ir.Node, rank: int) -> list[int]:
    """Return the axes of its first input that an operator works along."""
    op = node.op_type
    if op in ("Softmax", "LogSoftmax", "Hardmax"):
        axis = _axis(node, -1 if walk.opset >= 13 else 1, rank)
        return [axis] if walk.opset >= 13 else list(range(axis, rank))
    if op in ("LayerNormalization", "RMSNormalization"):
        return list(range(_axis(node, -1, rank), rank))
    if op.startswith("Reduce"):
        axes = walk.ints(node, 1, "axes")
        return list(range(rank)) if axes is None else [axis % rank for axis in axes]
    if op == "CumSum":
        axes = walk.ints(node, 1, "axis")
        return list(range(rank)) if axes is None else [axis % rank for axis in axes]
    if op == "Pad":
        return _padded(walk, node, rank)
    if op == "ReverseSequence":
        return [_axis(node, 0, rank, "time_axis")]
    if op in _ALONG:
        return [_axis(node, _ALONG[op], rank)]
    return []


_ALONG = {
    "ArgMax": 0,
    "ArgMin": 0,
    "Concat": 1,
    "GatherElements": 0,
    "LpNormalization": -1,
    "ScatterElements": 0,
    "Split": 0,
    "TopK": -1,
}
"""Operators that work along one axis, and which one by default."""


def _axis(node: ir.Node, default: int, rank: int, name: str = "axis") -> int:
    found = graphs.attribute(node, name)
    return (default if found is None else found.as_int()) % rank


def _padded(walk: Walk, node: ir.Node, rank: int) -> list[int]:
    pads = walk.ints(node, 1, "pads")
    axes = walk.ints(node, 3, "axes") if len(node.inputs) > 3 and node.inputs[3] is not None else list(range(rank))
    if pads is None or axes is None:
        return []
    return [axis % rank for i, axis in enumerate(axes) if pads[i] or pads[i + len(axes)]]


RULES: dict[str, Callable[[Walk, ir.Node], None]] = {
    **dict.fromkeys(_FIRST_AXIS, _first),
    **dict.fromkeys(ELEMENTWISE, _broadcast),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), _recurrent),
    **dict.fromkeys(_AXES_ARE_INPUTS, _reduce),
    "Concat": _concat,
    "Expand": _expand,
    "Flatten": flatten,
    "Gather": _gather,
    "GatherElements": _elements_together,
    "GatherND": _gather_nd,
    "Gemm": _gemm,
    "GridSample": _together((0, 0), (1, 0)),
    "If": _if,
    "Loop": _loop,
    "MatMul": _matmul,
    "Reshape": reshape,
    "Resize": _resize,
    "Scan": _scan,
    "ScatterElements": _elements_together,
    "ScatterND": _scatter_nd,
    "Slice": _slice,
    "Squeeze": squeeze,
    "Tile": _tile,
    "Unsqueeze": unsqueeze,
}
"""What to mend before the shapes of a node are inferred, by operator."""
