"""Compare two versions of a model piece by piece, where what a whole network makes of a rounding hides whether they agree.

A network that rounds on purpose (scales found at run time), or one that amplifies, turns the last bit of one number into
per cents of another. So both models are cut at the values that correspond in them (see `graphopt.matching`): whatever
reads one gets what the reference computed there. Each piece then has to compute the same from the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from graphopt import compare, graphs, matching, runtime, tapping
from graphopt.runtime import Arrays
from graphopt.target import Target

_DRAWS = 5
"""How often pieces run."""
_ROUNDINGS = 4.0
"""How many times as far as by one rounding a piece may move, since a pass rounds in several places."""
_CEILING = 1e-2
"""Relative error that nothing excuses."""
_QUANTIZERS = ("QuantizeLinear", "DynamicQuantizeLinear")


def first_mismatch(
    reference: ir.Model, candidate: ir.Model, feeds: Arrays, target: Target, rtol: float, seed: int
) -> str | None:
    """Return in words which piece computes something else, or None if every piece computes the same.

    Pieces run several times, on the values of the reference moved by up to `rtol` at random; for every element the
    median of the errors counts. A number that happens to lie where a quantizer rounds up or down is forgiven so, and an
    error that is there each time is not. An integer that a quantizer makes may be one off. Errors above `rtol` are
    forgiven, up to `_CEILING`, where the piece itself moves nearly as far when all that it reads is moved by one unit in
    the last place.

    Args:
        reference: the version to trust.
        candidate: the other, of the same inputs and outputs.
        feeds: inputs of both.
        target: where to run them.
        rtol: see `compare.same`.
        seed: of the moves.

    Raises:
        ExecutionError: one of them does not run when it is cut.
    """
    pairs = matching.match(reference, candidate).values
    if missing := [value.name for value in candidate.graph.outputs if value not in pairs]:
        return f"output '{missing[0]}' has no counterpart"
    values = list(_varying(candidate, pairs))
    read = tapping.tap(reference, [pairs[value] for value in values])
    known = runtime.open_session(read.model, target).run(feeds)
    held = {
        value: known[name]
        for value, name in zip(values, read.names, strict=True)
        if name is not None and isinstance(known[name], np.ndarray) and _is_cut(value, known[name])
    }
    before = _Pieces(reference, {pairs[value]: array for value, array in held.items()}, feeds, target)
    after = _Pieces(candidate, held, feeds, target)
    rng = np.random.default_rng(seed)
    draws = [list(held.values()), *([_moved(a, rtol, rng) for a in held.values()] for _ in range(_DRAWS - 1))]
    expected, actual = [before.run(draw) for draw in draws], [after.run(draw) for draw in draws]
    steps: list[list[np.ndarray]] | None = None
    for index, value in enumerate(held):
        one, two = ([draw[index] for draw in runs] for runs in (expected, actual))
        reason = _difference(one, two, rtol, slack=_slack(pairs[value]))
        if reason and compare.is_float(one[0].dtype) and not _difference(one, two, _CEILING):
            steps = steps or [before.run([_nudged(a, rng) for a in held.values()], nudge=rng) for _ in draws]
            step = _median([one[0]] * _DRAWS, [arrays[index] for arrays in steps])
            reason = None if _is_explained(_median(one, two), step, one[0], rtol) else reason
        if reason:
            return f"'{value.name}': {reason}"
    fixed = [value.name or "" for value in candidate.graph.outputs if value not in held]
    if not fixed:
        return None
    whole = [runtime.open_session(model, target).run(feeds) for model in (reference, candidate)]
    there, here = ({name: arrays[name] for name in fixed} for arrays in whole)
    return compare.first_mismatch(there, here, rtol)


class _Pieces:
    """A model cut at some of its values."""

    def __init__(self, model: ir.Model, held: dict[ir.Value, np.ndarray], feeds: Arrays, target: Target) -> None:
        copy = model.clone()
        twins, taken = tapping.twins(model, copy), graphs.names(copy)
        self._feeds, self._inputs, self._outputs = feeds, [], []
        present = set(copy.graph.outputs)
        for value, array in held.items():
            twin = twins[value]
            type_ = ir.TensorType(ir.DataType.from_numpy(array.dtype))
            given = ir.Value(name=graphs.fresh(f"{twin.name}_given", taken), type=type_, shape=ir.Shape(array.shape))
            for use in list(twin.uses()):
                use.node.replace_input_with(use.idx, given)
            copy.graph.inputs.append(given)
            self._inputs.append(given.name or "")
            self._outputs.append(twin.name or "")
            twin.type = type_
            if twin not in present:
                copy.graph.outputs.append(twin)
        self._session = runtime.open_session(copy, target)

    def run(self, arrays: Sequence[np.ndarray], nudge: np.random.Generator | None = None) -> list[np.ndarray]:
        """Return what the pieces compute when the values at which the model is cut are these.

        Args:
            arrays: one for every value.
            nudge: also move the inputs of the model by one unit in the last place.
        """
        feeds = {name: array if nudge is None else _nudged(array, nudge) for name, array in self._feeds.items()}
        made = self._session.run({**feeds, **dict(zip(self._inputs, arrays, strict=True))}, self._outputs)
        return [made[name] for name in self._outputs]


def _varying(model: ir.Model, pairs: dict[ir.Value, ir.Value]) -> Iterator[ir.Value]:
    """Yield the tensors of the main graph that depend on its inputs and have a counterpart."""
    moving = {value for value in model.graph.inputs if value.const_value is None}
    for node in model.graph:
        if not moving.isdisjoint([*node.inputs, *graphs.captured(node)]):
            moving.update(node.outputs)
            yield from (v for v in node.outputs if v in pairs and isinstance(v.type, ir.TensorType | None))


def _is_cut(value: ir.Value, array: np.ndarray) -> bool:
    """Tell whether to cut at a value: shapes and indices stay as they are, since they are right or wrong."""
    return compare.is_float(array.dtype) or value.is_graph_output() or bool(_slack(value))


def _slack(value: ir.Value) -> int:
    return int(graphs.is_op(value.producer(), *_QUANTIZERS))


def _difference(
    expected: Sequence[np.ndarray], actual: Sequence[np.ndarray], rtol: float, slack: int = 0
) -> str | None:
    """Return how arrays of several runs differ, beyond what most runs agree on."""
    for one, two in zip(expected, actual, strict=True):
        if one.shape != two.shape or one.dtype != two.dtype:
            return compare.mismatch(one, two, rtol)
        if compare.is_float(one.dtype) and not np.array_equal(np.isfinite(one), np.isfinite(two)):
            return "NaN or infinity in other places"
    error, first = _median(expected, actual), expected[0]
    if compare.is_float(first.dtype):
        return compare.mismatch(first, (first + error).astype(first.dtype), rtol)
    wrong = int(np.sum(error > slack))
    return f"{wrong} of {first.size} elements differ" if wrong else None


def _is_explained(error: np.ndarray, step: np.ndarray, reference: np.ndarray, rtol: float) -> bool:
    """Tell whether errors are as rare, and nearly as small, as what roundings make; [shape of `reference`] each.

    Sorted by size, no error exceeds `_ROUNDINGS` times the move of its rank: a few numbers that a rounding moves far
    do not excuse many that are wrong.
    """
    finite = reference[np.isfinite(reference)].astype(np.float64)
    least = rtol * float(np.sqrt(np.mean(np.square(finite)))) if finite.size else 0.0
    return bool(np.all(np.sort(error, axis=None) <= np.maximum(least, _ROUNDINGS * np.sort(step, axis=None))))


def _median(expected: Sequence[np.ndarray], actual: Sequence[np.ndarray]) -> np.ndarray:
    """Return the median of the absolute errors of several runs, by element, float64; 0 where something is not finite."""
    errors = [
        np.abs(one.astype(np.float64) - two.astype(np.float64)) for one, two in zip(expected, actual, strict=True)
    ]
    return np.asarray(np.median(np.nan_to_num(errors, nan=0.0, posinf=0.0), axis=0))


def _moved(array: np.ndarray, rtol: float, rng: np.random.Generator) -> np.ndarray:
    """Return floats moved up or down by `rtol` of themselves, at random."""
    if not compare.is_float(array.dtype):
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        moved = (array.astype(np.float64) * (1 + rtol * rng.choice((-1.0, 1.0), array.shape))).astype(array.dtype)
    return np.where(np.isfinite(moved), moved, array)


def _nudged(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return floats moved to a neighbouring one, at random."""
    if array.dtype.kind != "f":
        return array
    limits = np.where(rng.integers(0, 2, array.shape).astype(bool), np.inf, -np.inf).astype(array.dtype)
    return np.asarray(np.nextafter(array, limits))
