"""What a model must compute once an axis is no longer fixed, told by what it computed before

With an axis of samples, n samples at once must give what they gave one after the other (or in batches of the old
size). The feeds are drawn from those on which the model runs, and from copies of them with the elements shuffled.
Along other axes a model can only be held against itself at the old size; whether it runs at others is reported.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt import compare, graphs, runtime, tapping
from graphopt.passbase import EXACT, Before, Case, PreconditionError
from graphopt.passes.surgery import _names
from graphopt.passes.surgery._axes_grow import Grown, Request
from graphopt.runtime import Arrays, ExecutionError

_MOST = 1 << 27
"""Elements of inner values that are read at once to find the node that mixes samples."""


def of_samples(
    before: Before, candidate: ir.Model, request: Request, grown: Grown, counts: Sequence[int]
) -> list[Case]:
    """Return a case for each number of samples.

    Args:
        before: the model with a fixed number of samples.
        candidate: the model without.
        request: the axis.
        grown: where the samples lie in its values.
        counts: numbers of samples.

    Raises:
        PreconditionError: the candidate computes something else; the message names the first node that does.
    """
    runs = _draw(before, request, -(-max(counts) // request.size))
    results = [before.run(feeds) for feeds in runs]
    places = {name: (axis, 1) for name, axis in request.places}
    made = []
    for count in counts:
        feeds = {name: _joined([f[name] for f in runs], places.get(name), request.size, count) for name in runs[0]}
        expected = {}
        for key in results[0]:
            place = grown.layout.get(_names.owner(key, grown.layout) or "")
            if place is None and any(
                key not in r or not np.array_equal(r[key], results[0][key], equal_nan=compare.is_float(r[key].dtype))
                for r in results
            ):
                raise PreconditionError(f"output '{key}' depends on the samples, and has no axis of them")
            expected[key] = _joined([r[key] for r in results], place, request.size, count)
        made.append(Case(feeds, expected))
    _hold(before, candidate, request, grown, made, runs)
    return made


def at_old_size(before: Before) -> list[Case]:
    """Return what the model computed at its old size."""
    return [Case(feeds, before.run(feeds)) for feeds in before.feeds]


def sizes_that_run(before: Before, candidate: ir.Model, requests: Sequence[Request]) -> dict[str, str]:
    """Run a model at other sizes of axes that do not hold samples, one axis after the other and all at once.

    Returns:
        "runs" or the runtime's message, by sizes.

    Raises:
        PreconditionError: it runs at none.
    """
    session = runtime.open_session(candidate, before.target)
    tried: dict[str, str] = {}
    groups = [[request] for request in requests] + ([list(requests)] if len(requests) > 1 else [])
    for group in groups:
        for numerator, denominator, more in ((2, 1, 0), (3, 1, 0), (1, 1, 1), (1, 2, 0)):
            sizes = {r.name: max(1, numerator * r.size // denominator + more) for r in group}
            label = " ".join(f"{name}={size}" for name, size in sizes.items())
            feeds = dict(before.feeds[0])
            for request in group:
                for name, axis in request.places:
                    feeds[name] = feeds[name].take(range(sizes[request.name]), axis, mode="wrap")
            try:
                session.run(feeds)
                tried[label] = "runs"
            except ExecutionError as error:
                tried[label] = str(error)[:200]
    if "runs" not in tried.values():
        label, why = next(iter(tried.items()))
        raise PreconditionError(f"the result runs at the old size only; with {label}: {why}")
    return tried


def _draw(before: Before, request: Request, count: int) -> list[dict[str, np.ndarray]]:
    """Return `count` feeds of equal shapes; what holds no samples is the same in all of them."""
    first = dict(before.feeds[0])
    varying = [name for name, _ in request.places]
    found = [first]
    for feeds in before.feeds[1:]:
        if all(feeds[name].shape == array.shape for name, array in first.items()):
            found.append({name: feeds[name] if name in varying else array for name, array in first.items()})
    rng = np.random.default_rng(before.seed)
    while len(found) < count:
        feeds = {n: rng.permuted(a.ravel()).reshape(a.shape) if n in varying else a for n, a in first.items()}
        try:
            before.run(feeds)
        except ExecutionError:
            feeds = first
        found.append(feeds)
    return found[:count]


def _joined(arrays: Sequence[np.ndarray], place: tuple[int, int] | None, size: int, count: int) -> np.ndarray:
    """Return the first `count` samples of several runs as one array.

    Args:
        arrays: results, with `size` samples each.
        place: axis and lead of the samples; None where there are none.
        size: samples in each array.
        count: samples to take.
    """
    if place is None:
        return arrays[0]
    axis, lead = place
    shape = arrays[0].shape
    inner = shape[axis] // (lead * size)
    apart = [array.reshape(*shape[:axis], lead, size, inner, *shape[axis + 1 :]) for array in arrays]
    taken = np.concatenate(apart, axis + 1).take(range(count), axis + 1)
    return np.ascontiguousarray(taken.reshape(*shape[:axis], lead * count * inner, *shape[axis + 1 :]))


def _hold(
    before: Before, candidate: ir.Model, request: Request, grown: Grown, made: Sequence[Case], runs: Sequence[Arrays]
) -> None:
    """Run the cases here, where more can be said than that they fail."""
    session = runtime.open_session(candidate, before.target)
    for case in made:
        count = case.feeds[request.places[0][0]].shape[request.places[0][1]]
        try:
            wrong = compare.first_mismatch(case.expected, session.run(case.feeds), EXACT.rtol)
        except ExecutionError as error:
            raise PreconditionError(f"the result does not run on {count} samples: {error}") from None
        if wrong:
            node = _first_mixing(before, candidate, request, grown, case.feeds, runs, count)
            raise PreconditionError(
                f"on {count} samples at once, {wrong}{f'; first at {node}' if node else ''}: the model does not treat every sample on its own"
            )


def _first_mixing(
    before: Before,
    candidate: ir.Model,
    request: Request,
    grown: Grown,
    feeds: Arrays,
    runs: Sequence[Arrays],
    count: int,
) -> str | None:
    """Return the first node of the main graph whose samples are not those of the model before."""
    old = {value.name for node in before.model.graph for value in node.outputs}
    values = [
        v
        for node in candidate.graph
        for v in node.outputs
        if v.name in grown.layout and v.name in old and isinstance(v.type, (ir.TensorType, type(None)))
    ]
    names = [str(value.name) for value in values]
    tapped = tapping.tap(candidate, values)
    try:
        now = runtime.open_session(tapped.model, before.target).run(feeds)
        if sum(array.size for array in now.values()) > _MOST:
            return None
        singles = [before.run(f, names) for f in runs[: -(-count // request.size)]]
    except ExecutionError:
        return None
    for value in values:
        name = str(value.name)
        if name in now and all(name in single for single in singles):
            expected = _joined([single[name] for single in singles], grown.layout[name], request.size, count)
            if compare.mismatch(expected, now[name], EXACT.rtol):
                node = value.producer()
                return f"{graphs.label(node)} ({node.op_type})" if node else name
    return None
