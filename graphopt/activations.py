"""Read inner values of a model, or their extremes, while it runs over data, a batch at a time."""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from graphopt import runtime, tapping
from graphopt.data import Data, FactoryData, batch_size, fitted_batches
from graphopt.errors import UserError
from graphopt.runtime import Arrays, Port
from graphopt.target import Target

_LIMIT = 160 << 20
"""Bytes of values that one run may leave in memory; those of two runs are there at once."""
_PATIENT = ("session.intra_op.allow_spinning", "0")
"""Threads of ONNX Runtime that wait by spinning take the processor from whoever looks at the values meanwhile: counting
those of MiniLM along with the runs took 1.35 times as long."""
_REDUCTIONS = ("ReduceMin", "ReduceMax", "ReduceSum")
"""The sum is there for NaN, which ONNX Runtime's minimum and maximum pass over in silence."""

_Item = TypeVar("_Item")

Pair = tuple[np.ndarray, np.ndarray]
"""The smallest and the largest element, float32: scalars, or [channels]."""


def observe(
    model: ir.Model,
    values: Sequence[ir.Value],
    data: Data,
    *,
    place: Target,
    samples: int,
    batch: int = 64,
    limit: int = _LIMIT,
) -> Iterator[tuple[dict[ir.Value, np.ndarray], int]]:
    """Run a model over data and yield, run by run, what inner values hold, and how many samples that were.

    A run takes part of a batch, no more samples than leaves the values within `limit`. Where even one sample does not
    fit, the values are read in groups, with a pass over the data for each; a dictionary then has the values of its group
    only. Every value sees every sample once, in order. While the caller looks at a run, the next one is under way.

    Args:
        model: never changed.
        values: of its main graph and the bodies in it; those that cannot be led out (see `tapping`) are left out.
        data: the samples.
        place: where it runs.
        samples: how many samples to use at most.
        batch: samples per run at most, where the model leaves the choice.
        limit: bytes of values that one run may leave in memory.

    Raises:
        UserError: the model does not run on this data.
    """
    ports = runtime.model_inputs(model)
    feeds, _, count = next(fitted_batches(data, ports, batch, samples))
    if _divisible(feeds, count, ports, data):
        feeds, count = _cut(feeds, 0, 1), 1
    bytes_of, session = _known_bytes(model, values, feeds), None
    if bytes_of is None:
        session = _Tapped(model, values, place)
        bytes_of = {value: array.nbytes for value, array in session.run(feeds, data.name).items()}
    for group in _groups(bytes_of, limit):
        if session is None or len(group) < len(bytes_of):
            session = _Tapped(model, group, place)
        size = count * max(1, limit // max(1, sum(bytes_of[value] for value in group)))
        yield from _ahead(_runs(session, data, ports, samples, batch, size))


def extremes(
    model: ir.Model,
    axes: Mapping[ir.Value, int | None],
    data: Data,
    *,
    place: Target,
    samples: int,
    batch: int = 64,
) -> Iterator[tuple[dict[ir.Value, Pair], int]]:
    """Run a model over data and yield, batch by batch, the extremes of inner values, and how many samples that were.

    They are found inside the runtime, by ReduceMin and ReduceMax nodes in a copy of the model, which leave nothing but
    scalars, or channels, to read out. They are NaN where an element is, infinity and its negative where there are none;
    a value with channels that was not computed (in a branch not taken) is left out.

    Args:
        model: never changed.
        axes: float32 values of its main graph and the bodies in it, each with the axis whose entries (channels) have
            extremes of their own, or None for those of the whole tensor.
        data: the samples.
        place: where it runs.
        samples: how many samples to use at most.
        batch: samples per run, where the model leaves the choice.

    Raises:
        UserError: the model does not run on this data.
        ValueError: a value has an axis to keep, but no known rank.
    """
    axes = {value: _from_end(value, axis) for value, axis in axes.items()}
    reduced, names = _reduced(model, axes)
    session, ports = runtime.open_session(reduced, place), runtime.model_inputs(model)
    for feeds, _, count in fitted_batches(data, ports, batch, samples):
        arrays = _executed(session, feeds, [name for three in names.values() for name in three], data.name)
        pairs = {v: _pair([arrays[name] for name in three], axes[v]) for v, three in names.items()}
        yield {value: pair for value, pair in pairs.items() if pair[0].size}, count


def channel_extremes(
    model: ir.Model,
    axes: Mapping[ir.Value, int | None],
    data: Data,
    *,
    place: Target,
    samples: int,
    batch: int = 64,
) -> dict[ir.Value, Pair]:
    """Return the extremes of inner values over all the data; arguments and errors are those of `extremes`."""
    found: dict[ir.Value, Pair] = {}
    for pairs, _ in extremes(model, axes, data, place=place, samples=samples, batch=batch):
        for value, (low, high) in pairs.items():
            before = found.get(value, (low, high))
            found[value] = np.minimum(before[0], low), np.maximum(before[1], high)
    return found


class _Tapped:
    """A session of a model that also yields inner values."""

    def __init__(self, model: ir.Model, values: Sequence[ir.Value], place: Target) -> None:
        tapped = tapping.tap(model, values)
        self._main = model.graph
        self._names = {value: name for value, name in zip(values, tapped.names, strict=True) if name is not None}
        patient = dataclasses.replace(place, config=(_PATIENT, *place.config))
        self._session = runtime.open_session(tapped.model, patient)

    def run(self, feeds: Arrays, name: str, filled: int = 0) -> dict[ir.Value, np.ndarray]:
        """Return what the values hold, without the last `filled` samples where they are on the first axis."""
        arrays = _executed(self._session, feeds, list(dict.fromkeys(self._names.values())), name)
        found = {value: arrays[out] for value, out in self._names.items()}
        fed = len(next(iter(feeds.values()))) if filled else None
        for value, array in found.items():
            if value.graph is self._main and array.ndim and len(array) == fed:
                found[value] = array[:-filled]
        return found


def _executed(session: runtime.Session, feeds: Arrays, outputs: Sequence[str], name: str) -> dict[str, np.ndarray]:
    try:
        return session.run(feeds, outputs)
    except runtime.ExecutionError as error:
        raise UserError(f"{name}: the model does not run on this data: {error}; check shapes and values") from None


def _runs(
    session: _Tapped, data: Data, ports: Sequence[Port], samples: int, batch: int, size: int
) -> Iterator[tuple[dict[ir.Value, np.ndarray], int]]:
    """Yield what each run holds, and its samples: no more than `size` where batches can be cut."""
    for feeds, _, count in fitted_batches(data, ports, batch, samples):
        if _divisible(feeds, count, ports, data):
            for start in range(0, count, size):
                yield session.run(_cut(feeds, start, size), data.name), min(size, count - start)
        else:
            yield session.run(feeds, data.name, filled=max(0, batch_size(ports, 0) - count)), count


def _divisible(feeds: Arrays, count: int, ports: Sequence[Port], data: Data) -> bool:
    """Tell whether a batch can be fed in parts: its first axis counts samples everywhere, and the model fixes it nowhere.

    Among what a user's own function makes there may be inputs without samples; only one name for all first axes tells.
    """
    first = {port.shape[0] if port.shape else None for port in ports}
    if any(isinstance(size, int) for size in first) or (isinstance(data, FactoryData) and len(first) > 1):
        return False
    return all(array.ndim and len(array) == count for array in feeds.values())


def _cut(feeds: Arrays, start: int, size: int) -> dict[str, np.ndarray]:
    return {name: array[start : start + size] for name, array in feeds.items()}


def _ahead(items: Iterator[_Item]) -> Iterator[_Item]:
    """Yield what an iterator yields, and let it work on the next while the caller is busy with this one."""
    with concurrent.futures.ThreadPoolExecutor(1) as worker:
        coming = worker.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = worker.submit(next, items, None)
            yield item
            del item


def _known_bytes(model: ir.Model, values: Sequence[ir.Value], feeds: Arrays) -> dict[ir.Value, int] | None:
    """Return the bytes of each value, if its shape follows from the names of its axes; None where one does not."""
    sizes: dict[str, int] = {}
    for port in runtime.model_inputs(model):
        if port.shape is not None and len(port.shape) == feeds[port.name].ndim:
            named = zip(port.shape, feeds[port.name].shape, strict=True)
            sizes |= {dim: size for dim, size in named if isinstance(dim, str)}
    found = {}
    for value in values:
        if value.shape is None or value.dtype is None or value.graph is not model.graph:
            return None
        dims = [dim if isinstance(dim, int) else sizes.get(dim.value or "") for dim in value.shape]
        if None in dims:
            return None
        found[value] = int(np.prod(dims, dtype=np.int64)) * value.dtype.bitwidth // 8  # type: ignore[arg-type]
    return found


def _groups(bytes_of: Mapping[ir.Value, int], limit: int) -> Iterator[list[ir.Value]]:
    """Cut values, in order, into groups that fit into the limit."""
    group: list[ir.Value] = []
    total = 0
    for value, size in bytes_of.items():
        if group and total + size > limit:
            yield group
            group, total = [], 0
        group.append(value)
        total += size
    if group:
        yield group


def _reduced(model: ir.Model, axes: Mapping[ir.Value, int | None]) -> tuple[ir.Model, dict[ir.Value, list[str]]]:
    """Return a copy of the model that yields nothing but reductions of values, and the names of each one's three.

    ONNX Runtime 1.31 starts from the last node without successors and works back to what it needs, so nodes
    that observe early activations come last: each then runs, and frees its activation, as soon as it can.
    """
    copy = model.clone()
    twins = tapping.twins(model, copy)
    copy.graph.outputs.clear()
    made: list[ir.Node] = []
    late: list[ir.Node] = []
    for value, axis in axes.items():
        nodes = [_reduction(op, twins[value], axis, copy) for op in _REDUCTIONS]
        graph = twins[value].graph
        if isinstance(graph, ir.Graph) and graph is not copy.graph:
            graph.extend(nodes)
        else:
            late.extend(nodes)
        made.extend(nodes)
    for number, node in enumerate(made):
        node.outputs[0].name = f"graphopt:extreme:{number}"
    copy.graph.extend(reversed(late))
    tapped = tapping.tap(copy, [node.outputs[0] for node in made])
    common.RemoveUnusedNodesPass()(tapped.model)
    names = iter(tapped.names)
    three_of = {value: [next(names) for _ in _REDUCTIONS] for value in axes}
    return tapped.model, {value: [n for n in three if n is not None] for value, three in three_of.items() if all(three)}


def _reduction(op: str, value: ir.Value, axis: int | None, model: ir.Model) -> ir.Node:
    """Make a node that reduces all axes of a value but one, to length 1."""
    rank = None if value.shape is None else len(value.shape)
    inputs, attributes = [value], []
    if axis is not None:
        others = [other for other in range(rank or 0) if other - (rank or 0) != axis]
        if not others:
            op = "Identity"
        elif model.opset_imports.get("", 1) < (13 if op == "ReduceSum" else 18):
            attributes.append(ir.AttrInt64s("axes", others))
        else:
            inputs.append(_integers(f"graphopt:axes:{','.join(map(str, others))}", others, model.graph))
    node = ir.Node("", op, inputs, attributes)
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    node.outputs[0].shape = None if rank is None else ir.Shape([None] * rank)
    return node


def _integers(name: str, numbers: Sequence[int], graph: ir.Graph) -> ir.Value:
    if name not in graph.initializers:
        tensor = ir.tensor(np.array(numbers, np.int64), name=name)
        type_, shape = ir.TensorType(ir.DataType.INT64), ir.Shape([len(numbers)])
        graph.register_initializer(ir.Value(name=name, type=type_, shape=shape, const_value=tensor))
    return graph.initializers[name]


def _from_end(value: ir.Value, axis: int | None) -> int | None:
    """Return an axis counted from the end, where iterations of a Loop add none."""
    if axis is None:
        return None
    if value.shape is None:
        raise ValueError(f"'{value.name}' has no known rank, so there is no axis {axis} to keep; infer shapes first")
    return axis % len(value.shape) - len(value.shape)


def _pair(reductions: Sequence[np.ndarray], axis: int | None) -> Pair:
    """Return the extremes over all axes but one, given minima, maxima and sums over all but that and those of loops."""
    low, high, total = reductions
    rest = tuple(other for other in range(low.ndim) if axis is None or other - low.ndim != axis)
    low = np.where(np.isnan(total), np.float32(np.nan), low)
    high = np.where(np.isnan(total), np.float32(np.nan), high)
    return low.min(axis=rest, initial=np.inf), high.max(axis=rest, initial=-np.inf)
