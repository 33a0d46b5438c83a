"""Inputs for a model about which nothing else is known: seeded, shaped from its declaration."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Protocol

import numpy as np
import onnx_ir as ir

from graphopt import runtime
from graphopt.data import Data, batch_size, fitted_batches
from graphopt.errors import UsageError, UserError, did_you_mean
from graphopt.runtime import Arrays, ExecutionError, Port, Session

_SIZES = ((2, 16), (3, 32), (1, 24), (1, 64), (1, 1), (2, 2), (1, 128), (1, 256), (4, 4), (2, 1500), (1, 1000))
"""Sizes to try for dynamic axes: (first axis, other axes). Different, so that swapped axes show."""

_RANKS = ((2, 3), (4,), (), (1, 3, 16, 16), (1, 2, 3))
"""Shapes to try for inputs of unknown rank."""

_KINDS = ("normal", "uniform", "ones")
_ENOUGH = 3
_MAX_ELEMENTS = 1 << 26


class Runs(Protocol):
    """What runs a model: a session, or the model before a pass."""

    def run(self, feeds: Arrays) -> dict[str, np.ndarray]:
        """Return the outputs by name.

        Raises:
            ExecutionError: it does not run on these feeds.
        """


class CannotGenerate(Exception):
    """No generated inputs make this model run; the message says why."""


def generate(model: ir.Model, session: Runs, seed: int) -> list[dict[str, np.ndarray]]:
    """Return a few input sets on which `session` runs, dynamic axes at several sizes.

    Floats are standard normal, else uniform in [0, 1), else ones; integers are 0 or 1, else 1, because
    they are most often indices or masks.

    Raises:
        CannotGenerate: nothing tried makes it run.
    """
    ports = runtime.model_inputs(model)
    for port in ports:
        if port.dtype is None:
            raise CannotGenerate(f"input '{port.name}' is not a tensor")
    why = "its inputs are too large to generate"
    for kind in _KINDS:
        found: list[dict[str, np.ndarray]] = []
        seen = set()
        for attempt, shapes in enumerate(_shapes(ports)):
            if shapes in seen or any(np.prod(shape, dtype=float) > _MAX_ELEMENTS for shape in shapes):
                continue
            seen.add(shapes)
            rng = np.random.default_rng([seed, attempt])
            feeds = {port.name: _fill(rng, port, shape, kind) for port, shape in zip(ports, shapes, strict=True)}
            try:
                session.run(feeds)
            except ExecutionError as error:
                why = str(error)
                continue
            found.append(feeds)
            if len(found) == _ENOUGH:
                break
        if found:
            return found
    raise CannotGenerate(why)


def of_batch(
    model: ir.Model, session: Session, batch: int, seed: int, axes: Mapping[str, int] = MappingProxyType({})
) -> dict[str, np.ndarray]:
    """Return inputs of a given batch size; a fixed first axis stays what the model says.

    Args:
        model: what the inputs are for.
        session: a session of it.
        batch: size of every dynamic first axis.
        seed: of the values.
        axes: sizes of other dynamic axes, by their names or as `input:axis`.

    Raises:
        UserError: there is no such axis, or no generated inputs of this batch size make the model run.
    """
    ports = runtime.model_inputs(model)
    if any(port.dtype is None for port in ports):
        raise UserError("the model has inputs that are not tensors, which cannot be generated")
    check_axes(ports, axes)
    why: Exception | None = None
    ranks = _RANKS if any(port.shape is None for port in ports) else _RANKS[:1]
    for kind, rank, (_, other) in itertools.product(_KINDS, ranks, _SIZES):
        rng = np.random.default_rng(seed)
        shapes = _sized(ports, batch, other, rank, axes)
        feeds = {port.name: _fill(rng, port, shape, kind) for port, shape in zip(ports, shapes, strict=True)}
        try:
            session.run(feeds)
        except ExecutionError as error:
            why = error
        else:
            return feeds
    sizes = ", ".join([f"batch {batch}", *(f"{name} {size}" for name, size in axes.items())])
    raise UserError(f"the model does not run on random inputs of {sizes}: {why}; give it data")


def check_axes(ports: tuple[Port, ...], axes: Iterable[str]) -> None:
    """Refuse names that no dynamic axis has.

    Raises:
        UsageError: the message tells which there are.
    """
    known = {_axis_name(p, axis) for p in ports for axis, size in enumerate(p.shape or ()) if not isinstance(size, int)}
    for name in axes:
        if name not in known:
            raise UsageError(f"the model has no dynamic axis '{name}'{did_you_mean(name, known)}")


def from_data(data: Data, ports: tuple[Port, ...], batches: int = 2) -> list[dict[str, np.ndarray]]:
    """Return a few input sets out of a data set, one of them a single sample where the model allows it."""
    found = [feeds for feeds, _, _ in itertools.islice(fitted_batches(data, ports, 8), batches)]
    if batch_size(ports, 0) == 0:
        found += [feeds for feeds, _ in data.batches(1, 1)]
    return found


def batch_of(feeds: Arrays, ports: tuple[Port, ...]) -> int:
    """Return the size of the first axis of the first input, or 1 when there is none."""
    return next((feeds[p.name].shape[0] for p in ports if feeds[p.name].ndim), 1)


def _shapes(ports: tuple[Port, ...]) -> Iterator[tuple[tuple[int, ...], ...]]:
    for first, other in _SIZES:
        yield _sized(ports, first, other, _RANKS[0])
    if any(port.shape is None for port in ports):
        for unknown in _RANKS[1:]:
            yield _sized(ports, 1, 16, unknown)


def _sized(
    ports: tuple[Port, ...],
    first: int,
    other: int,
    unknown: tuple[int, ...] = _RANKS[0],
    axes: Mapping[str, int] = MappingProxyType({}),
) -> tuple[tuple[int, ...], ...]:
    """Choose a size for every dynamic axis, that of `axes` if it is there; axes of the same name get the same size."""
    bound = dict(axes)
    shapes = []
    for port in ports:
        shape = []
        for axis, dim in enumerate(unknown if port.shape is None else port.shape):
            free = first if axis == 0 else other
            shape.append(dim if isinstance(dim, int) else bound.setdefault(_axis_name(port, axis), free))
        shapes.append(tuple(shape))
    return tuple(shapes)


def _axis_name(port: Port, axis: int) -> str:
    """Return what a dynamic axis is called: its own name, or `input:axis`."""
    return str((port.shape and port.shape[axis]) or f"{port.name}:{axis}")


def _fill(rng: np.random.Generator, port: Port, shape: tuple[int, ...], kind: str) -> np.ndarray:
    assert port.dtype is not None
    if port.dtype == ir.DataType.STRING:
        return rng.choice(np.array(["a", "b"], dtype=object), shape)
    dtype = port.dtype.numpy()
    if port.dtype == ir.DataType.BOOL:
        return np.asarray(rng.random(shape) < 0.5) if kind == "normal" else np.ones(shape, bool)
    if kind == "ones":
        return np.ones(shape, dtype)
    if port.dtype.is_integer():
        return np.asarray(rng.integers(0, 2, shape) if kind == "normal" else np.ones(shape)).astype(dtype)
    return np.asarray(rng.standard_normal(shape) if kind == "normal" else rng.random(shape)).astype(dtype)
