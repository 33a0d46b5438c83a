"""Read inner values of a model while it runs over data, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from graphopt import runtime, tapping
from graphopt.data import Data, batch_size, fitted_batches
from graphopt.errors import UserError
from graphopt.target import Target

_LIMIT = 256 << 20
"""Bytes of inner values that may lie in memory at once."""


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
    """Run a model over data and yield, batch by batch, what inner values hold, and how many samples that were.

    Memory is bounded by one batch: batches become smaller until the values fit into `limit`, and where even one
    sample does not fit, the values are read in groups, with a run over the data for each. A dictionary then has the
    values of its group only; every value sees every sample once, in order.

    Args:
        model: never changed.
        values: of its main graph and the bodies in it.
        data: the samples.
        place: where it runs.
        samples: how many samples to use at most.
        batch: samples per run at most, where the model leaves the choice.
        limit: bytes of values that may lie in memory at once.

    Raises:
        UserError: the model does not run on this data.
    """
    ports = runtime.model_inputs(model)
    size = batch_size(ports, 1)
    first, _, count = next(fitted_batches(data, ports, size, size))
    arrays = _run(_Tapped(model, values, place), first, data.name)
    bytes_of = {value: array.nbytes // max(count, 1) for value, array in arrays.items()}
    for group in _groups(bytes_of, limit):
        each = max(1, sum(bytes_of[value] for value in group))
        session = _Tapped(model, group, place)
        for feeds, _, real in fitted_batches(data, ports, max(1, min(batch, limit // each)), samples):
            found = _run(session, feeds, data.name)
            yield {value: _real(array, real, feeds) for value, array in found.items()}, real


class _Tapped:
    """A session of a model that also yields inner values."""

    def __init__(self, model: ir.Model, values: Sequence[ir.Value], place: Target) -> None:
        tapped = tapping.tap(model, values)
        self._names = {value: name for value, name in zip(values, tapped.names, strict=True) if name is not None}
        self._session = runtime.open_session(tapped.model, place)

    def run(self, feeds: dict[str, np.ndarray]) -> dict[ir.Value, np.ndarray]:
        results = self._session.run(feeds, list(dict.fromkeys(self._names.values())))
        return {value: results[name] for value, name in self._names.items()}


def _run(session: _Tapped, feeds: dict[str, np.ndarray], name: str) -> dict[ir.Value, np.ndarray]:
    try:
        return session.run(feeds)
    except runtime.ExecutionError as error:
        raise UserError(f"{name}: the model does not run on this data: {error}; check shapes and values") from None


def _groups(bytes_of: dict[ir.Value, int], limit: int) -> Iterator[list[ir.Value]]:
    """Cut values, in order, into groups of which one sample fits into the limit."""
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


def _real(array: np.ndarray, count: int, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """Leave out what comes of samples that only fill a batch up."""
    fed = max((len(feed) for feed in feeds.values() if feed.ndim), default=count)
    return array[:count] if count < fed and array.ndim and len(array) == fed else array
