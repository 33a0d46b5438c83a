"""Find the first node at which two versions of a model diverge.

Values that correspond in both (see `graphopt.matching`) are read in groups, in the order in which the candidate
computes them, and compared. The first that differs names its node. Where that node has a body (Loop, Scan, If), the
search goes on inside: there the value that differs in the earliest iteration comes first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from graphopt import compare, io, matching, pipeline, runtime, scopes, tapping
from graphopt.data import Source, open_data
from graphopt.difference.places import label
from graphopt.errors import UserError
from graphopt.runtime import Arrays, ExecutionError
from graphopt.target import Target
from graphopt.target import find as find_target

MEMORY = 256 * 2**20
"""Bytes of inner values that are read in one run."""

_FIRST_GROUP = 16
_GROWTH = 8

Differ = Callable[[np.ndarray, np.ndarray], str | None]
"""(reference, candidate) -> in words how they differ, or None."""


@dataclasses.dataclass(frozen=True)
class Divergence:
    """The first node at which two models diverge.

    Attributes:
        node, op: its name in the candidate (its output's, if it has none) and its operator.
        output: the value that differs.
        error: in words, how.
        inside: names of the nodes in whose bodies it lies, the outermost first.
        iteration: of those that iterate, when it first differs, from 0.
        inputs: what flows into the node: `(name, state)`, where the state is "agrees", "differs", "constant
            agrees", "constant differs", or "unknown" for a value without a counterpart, followed by what the reference
            has in its place if that is something else.
        reference: the node that computes the value in the reference.
        before: nodes of the candidate without counterpart between values that agree and this one; one of them may
            be the culprit.
    """

    node: str
    op: str
    output: str
    error: str
    inside: Sequence[str]
    iteration: Sequence[int]
    inputs: Sequence[tuple[str, str]]
    reference: str
    before: Sequence[str]

    def __str__(self) -> str:
        """Return the node in words, as a report of a failed verification names it."""
        place = "".join(f" inside {name}" for name in reversed(self.inside))
        return f"{self.node} ({self.op}){place}"


@dataclasses.dataclass(frozen=True)
class Bisection:
    """What `bisect` found.

    Attributes:
        reference, candidate: paths.
        first: where they diverge first, or None.
        outputs: graph outputs that differ, in words.
        compared: values that were compared.
        unmatched: values of the candidate's main graph without a counterpart in the reference.
    """

    reference: str
    candidate: str
    first: Divergence | None
    outputs: Sequence[str]
    compared: int
    unmatched: int

    def to_json(self) -> dict[str, Any]:
        """Return the object of `bisect --json`."""
        return {**dataclasses.asdict(self), "diverge": self.first is not None or bool(self.outputs)}


def bisect(
    reference: str | Path,
    candidate: str | Path,
    *,
    data: Source | None = None,
    rtol: float = 1e-4,
    min_sqnr: float | None = None,
    target: str | Target = "cpu",
    reference_target: str | Target | None = None,
    memory: int = MEMORY,
    seed: int = 0,
) -> Bisection:
    """Find the first node at which two versions of a model diverge.

    Args:
        reference: path of the version to trust.
        candidate: path of the other; it may be the same file, on another target.
        data: what to run on; by default seeded random inputs.
        rtol: largest error that counts as equal (see `graphopt.compare.same`).
        min_sqnr: let floating-point values differ as long as they keep this signal-to-noise ratio, in dB, instead:
            for a quantized candidate.
        target: where to run the candidate.
        reference_target: where to run the reference; by default on the same target.
        memory: bytes of inner values to hold at a time, of each model.
        seed: of random inputs.

    Raises:
        UserError: a model does not load or run, or they do not take the same inputs.
    """
    place = find_target(target) if isinstance(target, str) else target
    there = find_target(reference_target) if isinstance(reference_target, str) else reference_target or place
    truth = pipeline.begin(io.load(reference), there, (), str(reference))
    start = pipeline.begin(io.load(candidate), place, (), str(candidate))
    source = open_data(data) if data is not None else None
    differ = _noisier(min_sqnr) if min_sqnr is not None else _unequal(rtol)
    feeds = pipeline.feeds_for(truth, source, seed, str(reference))
    chosen: Arrays = feeds[0]
    outputs: list[str] = []
    for arrays in feeds:  # inputs on which it shows
        try:
            outputs = _outputs(truth.session.run(arrays), start.session.run(arrays), differ)
        except ExecutionError as error:
            raise UserError(f"the models do not take the same inputs: {error}") from None
        if outputs:
            chosen = arrays
            break
    search = Search(truth.model, there, start.model, place, chosen, differ, memory)
    return Bisection(str(reference), str(candidate), search.first(), outputs, search.compared, search.unmatched)


def first_divergence(
    reference: ir.Model, candidate: ir.Model, feeds: Arrays, target: Target, rtol: float
) -> Divergence | None:
    """Return where `candidate` first computes other numbers than `reference`, or None if it cannot be told."""
    return Search(reference, target, candidate, target, feeds, _unequal(rtol), MEMORY).first()


class Search:
    """A comparison of two models, value by value.

    Attributes:
        unmatched: how many values of the candidate's main graph have no counterpart.
    """

    def __init__(
        self,
        reference: ir.Model,
        reference_target: Target,
        candidate: ir.Model,
        target: Target,
        feeds: Arrays,
        differ: Differ,
        memory: int,
    ) -> None:
        """Match the models.

        Args:
            reference, reference_target: the version to trust, and where to run it.
            candidate, target: the other.
            feeds: inputs of both.
            differ: how two values of a pair differ.
            memory: bytes of inner values of each model to hold at a time.
        """
        self._reference, self._candidate = _inlined(reference), _inlined(candidate)
        self._targets = reference_target, target
        self._feeds, self._differ, self._memory = feeds, differ, memory
        self._pairs = matching.match(self._reference, self._candidate).values
        self._owner_of = tapping.owners(self._candidate.graph)
        self._states: dict[ir.Value, str | None] = dict.fromkeys(self._candidate.graph.inputs)
        self.unmatched = sum(value not in self._pairs for node in self._candidate.graph for value in node.outputs)

    @property
    def compared(self) -> int:
        """How many values of nodes were compared so far."""
        return len(self._states) - len(self._candidate.graph.inputs)

    def first(self) -> Divergence | None:
        """Return the first divergence, or None if all values that can be read agree."""
        found = next(self._differences([self._candidate.graph]), None)
        while found is not None:
            bodies = [] if self._is_changed_itself(found) else _bodies(found.node)
            deeper = min(self._differences(bodies), key=lambda d: d.iteration, default=None)
            if deeper is None:
                return self._describe(found)
            found = deeper
        return None

    def _is_changed_itself(self, found: _Difference) -> bool:
        """Tell whether a node differs from its counterpart in a constant that it uses or in an attribute."""
        counterpart = self._pairs[found.value].producer()
        attributes = {} if counterpart is None else _plain_attributes(counterpart)
        constants = (self._state(value) for value in found.node.inputs if value is not None)
        return "constant differs" in constants or attributes != _plain_attributes(found.node)

    def _differences(self, graphs: Sequence[ir.Graph]) -> Iterator[_Difference]:
        """Yield the values that differ, of those that nodes of these graphs compute and that have a counterpart."""
        values = [
            value for graph in graphs for node in graph for value in node.outputs if value.name and value in self._pairs
        ]
        start, size = 0, _FIRST_GROUP
        while start < len(values):
            group = values[start : start + size]
            held = 0
            for value, expected, actual in self._read(group):
                held += expected.nbytes + actual.nbytes
                found = self._difference(value, expected, actual)
                self._states[value] = found.error if found else None
                if found:
                    yield found
            start += size
            each = held / 2 / len(group)
            size = min(_GROWTH * size, max(1, int(self._memory / each))) if each else _GROWTH * size

    def _read(self, group: Sequence[ir.Value]) -> list[tuple[ir.Value, np.ndarray, np.ndarray]]:
        """Return what both models compute for the values of a group, without those that cannot be led out."""
        counterparts = [self._pairs[value] for value in group]
        try:
            expected = self._run(self._reference, counterparts, self._targets[0])
            actual = self._run(self._candidate, group, self._targets[1])
        except ExecutionError:  # one of them has another shape in every iteration, for example
            middle = len(group) // 2
            return self._read(group[:middle]) + self._read(group[middle:]) if middle else []
        rows = zip(group, expected, actual, strict=True)
        return [(value, one, two) for value, one, two in rows if one is not None and two is not None]

    def _run(self, model: ir.Model, values: Sequence[ir.Value], target: Target) -> list[np.ndarray | None]:
        tapped = tapping.tap(model, values)
        wanted = list(dict.fromkeys(name for name in tapped.names if name))
        read = runtime.open_session(tapped.model, target).run(self._feeds, wanted)
        return [read.get(name) if name else None for name in tapped.names]

    def _difference(self, value: ir.Value, expected: np.ndarray, actual: np.ndarray) -> _Difference | None:
        node = value.producer()
        assert node is not None
        axes = tapping.iterations(value, self._owner_of)
        if expected.shape[:axes] != actual.shape[:axes]:
            error = f"{actual.shape[:axes]} iterations instead of {expected.shape[:axes]}"
            return _Difference(value, node, error, (0,) * axes)
        for index in np.ndindex(expected.shape[:axes]):
            reason = self._differ(expected[index], actual[index])
            if reason:
                return _Difference(value, node, reason, index)
        return None

    def _describe(self, found: _Difference) -> Divergence:
        inside, graph = [], found.node.graph
        while graph in self._owner_of:
            owner = self._owner_of[graph]
            inside.append(label(owner))
            graph = owner.graph
        counterpart = self._pairs[found.value].producer()
        return Divergence(
            node=label(found.node),
            op=found.node.op_type,
            output=found.value.name or "",
            error=found.error,
            inside=inside[::-1],
            iteration=found.iteration,
            inputs=[
                (value.name or "", self._state(value) + self._moved(value, place, counterpart))
                for place, value in enumerate(found.node.inputs)
                if value is not None
            ],
            reference="" if counterpart is None else f"{label(counterpart)} ({counterpart.op_type})",
            before=[label(node) for node in self._unmatched_before(found.node)],
        )

    def _state(self, value: ir.Value) -> str:
        constant = ir.convenience.get_const_tensor(value)
        if constant is not None:
            other = self._pairs.get(value)
            expected = None if other is None else ir.convenience.get_const_tensor(other)
            if expected is None:
                return "unknown"
            same = compare.mismatch(expected.numpy(), constant.numpy(), 0.0) is None
            return "constant agrees" if same else "constant differs"
        if value not in self._states:
            return "unknown"
        return "agrees" if self._states[value] is None else "differs"

    def _moved(self, value: ir.Value, place: int, counterpart: ir.Node | None) -> str:
        """Say if the reference uses something else in this place than what corresponds to the value."""
        there = counterpart.inputs[place] if counterpart is not None and place < len(counterpart.inputs) else None
        if there is None or self._pairs.get(value, there) is there:
            return ""
        return f", where the reference has '{there.name}'"

    def _unmatched_before(self, node: ir.Node) -> list[ir.Node]:
        """Return the nodes without counterpart from which a node gets its inputs, in graph order."""
        found, waiting = set(), [node]
        while waiting:
            for value in waiting.pop().inputs:
                producer = None if value is None or value in self._pairs else value.producer()
                if producer is not None and producer not in found and producer.op_type != "Constant":
                    found.add(producer)
                    waiting.append(producer)
        return [n for n in self._candidate.graph.all_nodes() if n in found]


@dataclasses.dataclass(frozen=True)
class _Difference:
    value: ir.Value
    node: ir.Node
    error: str
    iteration: tuple[int, ...]


def _bodies(node: ir.Node) -> list[ir.Graph]:
    return [body for attribute in node.attributes.values() for body in scopes.subgraphs(attribute)]


def _plain_attributes(node: ir.Node) -> dict[str, Any]:
    """Return the attributes of a node with bodies, but for the bodies."""
    return {a.name: a.value for a in node.attributes.values() if not scopes.subgraphs(a)}


def _inlined(model: ir.Model) -> ir.Model:
    """Return a model without functions, whose inside could not be observed."""
    if not model.functions:
        return model
    copy = model.clone()
    InlinePass()(copy)
    return copy


def _unequal(rtol: float) -> Differ:
    return lambda expected, actual: compare.mismatch(expected, actual, rtol)


def _noisier(min_sqnr: float) -> Differ:
    def differ(expected: np.ndarray, actual: np.ndarray) -> str | None:
        if not (compare.is_float(expected.dtype) and compare.is_float(actual.dtype)):
            return None  # a quantized value cannot be held against a float one
        if expected.shape != actual.shape:
            return f"shape {list(actual.shape)} instead of {list(expected.shape)}"
        noise = compare.sqnr(expected, actual)
        return None if noise >= min_sqnr or not expected.any() else f"{noise:.1f} dB, under {min_sqnr:g} dB"

    return differ


def _outputs(expected: Arrays, actual: Arrays, differ: Differ) -> list[str]:
    pairs = ((name, array, actual.get(name)) for name, array in expected.items())
    errors = ((name, "is missing" if other is None else differ(array, other)) for name, array, other in pairs)
    return [f"output '{name}': {error}" for name, error in errors if error]
