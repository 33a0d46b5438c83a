"""Split a model in two at some tensors, and prove that both in a row compute what the whole does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt import compare, cutting, graphs, io, pipeline, runtime, spec, tapping
from graphopt.data import Source, open_data
from graphopt.errors import GateError, UsageError, UserError, did_you_mean
from graphopt.passbase import EXACT, PreconditionError
from graphopt.runtime import Arrays
from graphopt.target import Target
from graphopt.target import find as find_target

_MOST = 30
"""Names that an error lists at most."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One of the two models.

    Attributes:
        path: where it was written.
        inputs, outputs: names, in order.
        nodes, bytes: its size.
    """

    path: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    nodes: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Split:
    """What `split` did.

    Attributes:
        input: path of the whole.
        cut: the tensors at which it was to be cut.
        handed_over: the tensors that the tail takes from the head: those of `cut` and all others that cross it.
        head, tail: the parts.
        runs: on how many inputs both were verified.
        notes: `(tensor, reason)` for what could not be declared.
    """

    input: str
    cut: Sequence[str]
    handed_over: Sequence[str]
    head: Part
    tail: Part
    runs: int
    notes: Sequence[tuple[str, str]]

    def to_json(self) -> dict[str, Any]:
        """Return the object of `split --json`."""
        return dataclasses.asdict(self)


def split(
    model: str | Path,
    tensors: Sequence[str],
    head: str | Path,
    tail: str | Path,
    *,
    data: Source | None = None,
    rtol: float = EXACT.rtol,
    target: str | Target = "cpu",
    seed: int = 0,
) -> Split:
    """Split a model: the head computes `tensors`, the tail everything else.

    The head holds every node that `tensors` depend on, and outputs what the tail reads of it, in the order of the
    graph; graph outputs that it computes are outputs of the head alone. Weights and constants that both use are in both.

    Args:
        model: path of the .onnx file.
        tensors: names of node outputs of the main graph.
        head, tail: paths to write.
        data: inputs to verify on; by default seeded random ones.
        rtol: largest error that counts as equal (see `graphopt.compare.same`).
        target: where to verify.
        seed: of the random inputs.

    Raises:
        UserError: anything the caller can fix; nothing is written.
        GateError: the parts do not compute what the whole does; nothing is written.
    """
    head, tail = Path(head), Path(tail)
    if head.resolve() == tail.resolve():
        raise UsageError(f"head and tail are both {head}; name two files")
    place = find_target(target) if isinstance(target, str) else target
    loaded = io.load(model)
    source = open_data(data) if data is not None else None
    for path in (head, tail):
        io.check_writable(path, [*loaded.meta[io.FILES], *(source.files if source else ())])
    start = pipeline.begin(loaded, place, (), str(model))
    feeds = pipeline.feeds_for(start, source, seed, str(model))
    cut = _cut(start.model.graph, tensors, str(model))
    parts = [_part(start.model, names, seed) for names in (cut.head, cut.tail)]
    _verify(start.model, cut, parts, feeds, place, rtol)
    sizes = io.save_all(dict(zip((head, tail), parts, strict=True)))
    made = [
        Part(str(path), ports[0], ports[1], pipeline.measure(part)[0], size)
        for path, ports, part, size in zip((head, tail), (cut.head, cut.tail), parts, sizes, strict=True)
    ]
    notes = cutting.shapeless(value for part in parts for value in part.graph.outputs)
    return Split(str(model), list(tensors), _named(cut.crossing), made[0], made[1], len(feeds), notes)


_Ports = tuple[list[str], list[str]]
"""Names of inputs and outputs."""


@dataclasses.dataclass(frozen=True)
class _Cut:
    """Where to cut.

    Attributes:
        crossing: values that the tail reads of the head.
        head, tail: names of the parts' inputs and outputs.
    """

    crossing: Sequence[ir.Value]
    head: _Ports
    tail: _Ports


def _cut(graph: ir.Graph, names: Sequence[str], model: str) -> _Cut:
    values = [_computed(graph, name, model) for name in names]
    before = {node for node in cutting.ancestors(values)[0] if not graphs.is_op(node, "Constant")}
    made = {value for node in before for value in node.outputs}
    after, ends = cutting.ancestors([value for value in graph.outputs if value not in made], made)
    if not after:
        raise UserError(f"{model}: nothing is left for the tail after {', '.join(names)}; cut earlier")
    crossing = [value for node in graph if node in before for value in node.outputs if value in ends]
    ready = [value for value in graph.outputs if value in made]
    for value in values:
        if value not in crossing and value not in ready:
            raise UserError(f"{model}: the tail would not read '{value.name}'; leave it out")
    outputs = [*crossing, *(value for value in ready if value not in crossing)]
    needed = cutting.ancestors(outputs)[1]
    inputs = [
        [value for value in graph.inputs if value in used and not value.is_initializer()] for used in (needed, ends)
    ]
    rest = [value for value in graph.outputs if value not in made]
    return _Cut(
        crossing,
        (_named(inputs[0]), _named(outputs)),
        (_named([*crossing, *inputs[1]]), _named(rest)),
    )


def _computed(graph: ir.Graph, name: str, model: str) -> ir.Value:
    known = {key: value for key, value in cutting.tensors(graph).items() if value.producer() is not None}
    if name in known and not graphs.is_op(known[name].producer(), "Constant"):
        return known[name]
    if name in known or name in cutting.tensors(graph):
        raise UserError(f"{model}: no head would be left before '{name}', which nothing computes; cut later")
    hint = did_you_mean(name, known) if len(known) <= _MOST else did_you_mean(name, known).partition("; known")[0]
    raise UserError(f"{model}: no node computes a tensor '{name}'{hint}")


def _named(values: Sequence[ir.Value]) -> list[str]:
    return [value.name or "" for value in values]


def _part(model: ir.Model, ports: _Ports, seed: int) -> ir.Model:
    part = model.clone()
    tensors = cutting.tensors(part.graph)
    try:
        cutting.extract(part, [tensors[name] for name in ports[0]], [tensors[name] for name in ports[1]])
    except PreconditionError as reason:
        raise UserError(f"split: {reason}") from None
    made = spec.join("extract", {"inputs": ports[0], "outputs": ports[1]})
    part.metadata_props[io.PROVENANCE] = io.provenance([made], {"model": io.sha256(model.meta[io.FILES])}, seed)
    return part


def _verify(
    model: ir.Model, cut: _Cut, parts: Sequence[ir.Model], feeds: Sequence[Arrays], place: Target, rtol: float
) -> None:
    """Compare with the whole, in which the same tensors are visible, as that decides what a runtime fuses.

    Raises:
        GateError: the parts compute something else, or do not run.
    """
    whole = runtime.open_session(tapping.tap(model, cut.crossing).model, place)
    inner = set(_named(cut.crossing)) - set(_named(model.graph.outputs))
    try:
        head, tail = (runtime.open_session(part, place) for part in parts)
        for arrays in feeds:
            middle = head.run({name: arrays[name] for name in cut.head[0]})
            given = {**arrays, **middle}
            found = {**middle, **tail.run({name: given[name] for name in cut.tail[0]})}
            expected, actual = ({k: v for k, v in r.items() if k not in inner} for r in (whole.run(arrays), found))
            reason = compare.first_mismatch(expected, actual, rtol)
            if reason:
                raise GateError(
                    f"{reason}, when the tail follows the head; nothing was written; raise rtol if that is close enough"
                )
    except runtime.ExecutionError as error:
        raise GateError(f"a part does not run: {error}; nothing was written") from None
