"""Profile models: where the time of a run goes, node by node, and how two models differ in that."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from graphopt import inputs, io, matching, runtime
from graphopt.data import Data, Source, batch_size, open_data
from graphopt.difference.places import label
from graphopt.errors import UsageError, UserError
from graphopt.profiling.difference import Difference, differ
from graphopt.profiling.lineage import Lineage, trace_back
from graphopt.profiling.nodes import NodeTime, Timing, measure, moves
from graphopt.profiling.overhead import measure_chain
from graphopt.profiling.recording import Contender, record
from graphopt.profiling.words import operator, percent
from graphopt.runtime import Arrays, ExecutionError, Runtime
from graphopt.target import CPU, Target
from graphopt.target import find as find_target

_UNTOLD = 0.3
"""How far runs with and without the profiler may be from each other, as a share of the time, without a note."""

_UNSAFE = re.compile(r'["\\\x00-\x1f]')
"""What ONNX Runtime's profiler writes into its JSON as it is."""

_CALL_US = 30.0
"""Microseconds that the way into the runtime and back may take without a note."""


@dataclasses.dataclass(frozen=True)
class OperatorTime:
    """What all executed nodes of an operator take.

    Attributes:
        operator: with its domain unless that is ONNX's own.
        nodes: how many of them are executed.
        calls: executions per run.
        us: microseconds per run, the sum over the nodes.
        share: of the whole run, from 0 to 1.
    """

    operator: str
    nodes: int
    calls: float
    us: float
    share: float


@dataclasses.dataclass(frozen=True)
class Part:
    """Some of the executed nodes: how many, the microseconds per run that they take, and their share of the run."""

    nodes: int
    us: float
    share: float


@dataclasses.dataclass(frozen=True)
class Profile:
    """Where the time of a model goes. A run is the nodes and what is outside: `run_us` is the sum of all `us`.

    Attributes:
        model: its path.
        runs: how many were recorded and count.
        run_us: microseconds of a run within the runtime, without what the profiler adds.
        outside_us: of these, those not spent in nodes; 0 where nodes run side by side.
        profiler_us: what the profiler adds to a run, not in `run_us`.
        plain_us: a run without the profiler as the caller sees it, the way into the runtime and back included.
        operators: what the executed operators take, the longest first.
        nodes: what the executed nodes take, the longest first.
        copies: nodes that the runtime has added to move data between devices, layouts or element types.
        elsewhere: nodes that did not run on the target's execution provider, by the one that they ran on.
        folded: nodes of the file that are not executed: computed while loading, or without effect.
        notes: what to know of it, in words.
    """

    model: str
    runs: int
    run_us: float
    outside_us: float
    profiler_us: float
    plain_us: float
    operators: list[OperatorTime]
    nodes: list[NodeTime]
    copies: Part
    elsewhere: dict[str, Part]
    folded: int
    notes: list[str]


@dataclasses.dataclass(frozen=True)
class Profiling:
    """What `profile` found.

    Attributes:
        target: where the models ran.
        batch: samples per run.
        axes: sizes of other dynamic axes, as asked for.
        models: a profile each.
        difference: how the second differs from the first, or None when there is one only.
    """

    target: str
    batch: int
    axes: Mapping[str, int]
    models: list[Profile]
    difference: Difference | None

    def to_json(self) -> dict[str, Any]:
        """Return the object of `profile --json`."""
        return dataclasses.asdict(self)


def profile(
    model: str | Path,
    other: str | Path | None = None,
    *,
    target: str | Target = "cpu",
    batch: int = 1,
    axes: Mapping[str, int] = MappingProxyType({}),
    data: Source | None = None,
    runs: int | None = None,
    seconds: float = 2.0,
    trace: str | Path | None = None,
    seed: int = 0,
) -> Profiling:
    """Find out where the time of a model goes, or where two models differ in that.

    Runs that the runtime's profiler records alternate with runs that it does not, and those of one model with those
    of the other.

    Args:
        model: path of the .onnx file.
        other: path of a second one that takes the same inputs.
        target: where to run.
        batch: batch size, where it is dynamic.
        axes: sizes of other dynamic axes, by name or as `input:axis`.
        data: what to run on, its first samples; by default seeded random inputs.
        runs: how many runs of each model to record; by default as many as fit into `seconds`, but 5 at least, and no
            more than make 100,000 events.
        seconds: how long the recorded runs of a model may take.
        trace: where to write the profiler's own file, which also tells of loading, warming up and memory.
        seed: of random inputs, and of the order in which the models take turns.

    Raises:
        UserError: a model does not load or run, or the target's runtime has no profiler.
    """
    if trace is not None and other is not None:
        raise UsageError("a trace is of one model; profile the two one by one")
    place = find_target(target) if isinstance(target, str) else target
    found = runtime.find(place)
    paths = [model] if other is None else [model, other]
    models = [_load(path) for path in paths]
    if trace is not None:
        io.check_writable(trace, models[0].meta[io.FILES])
    for one in models:
        found.recorder(one, place)  # where there is no profiler, say so before anything else
    contenders = [_open(path, one, found, place) for path, one in zip(paths, models, strict=True)]
    feeds = _feeds(contenders[0], batch, axes, open_data(data) if data is not None else None, seed)
    _check(contenders, feeds)
    try:
        chain = measure_chain(found, place)
        recordings = record(
            contenders, feeds, found, place, runs=runs, seconds=seconds, seed=seed, keep=trace is not None
        )
    except ExecutionError as error:
        raise UserError(f"{' or '.join(map(str, paths))}: {error}") from None
    if trace is not None:
        io.write_bytes(trace, recordings[0].content)
    timings, profiles = [], []
    for contender, recording in zip(contenders, recordings, strict=True):
        executed = _executed(found, contender.model, place)
        lineage = trace_back(contender.model, executed) if executed is not None else None
        timings.append(measure(recording, chain, executed, lineage))
        profiles.append(_profile(contender.name, len(recording.runs), timings[-1], lineage, place))
    difference = None
    if other is not None:
        names = _told_apart(*contenders)
        both = matching.match(*models)
        difference = differ(names, (recordings[0], recordings[1]), (timings[0], timings[1]), both)
    ports = runtime.model_inputs(models[0])
    return Profiling(str(place), inputs.batch_of(feeds, ports), dict(axes), profiles, difference)


def _load(path: str | Path) -> ir.Model:
    """Read a model, and give every node a name of its own: only by its name is it known in what is recorded."""
    model = io.load(path)
    files = model.meta[io.FILES]
    if model.functions:
        InlinePass()(model)
        model.meta[io.FILES] = files
    names = {node.name for node in model.graph.all_nodes()}
    values = {value.name for node in model.graph.all_nodes() for value in node.outputs}
    seen: set[str | None] = {None, ""}
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if _UNSAFE.search(value.name or "") and not value.is_graph_output():
                value.name = _unused(value.name or "", values)
        if node.name in seen or _UNSAFE.search(node.name or ""):
            node.name = _unused(label(node), names)
        seen.add(node.name)
    return model


def _unused(name: str, taken: set[str | None]) -> str:
    """Return a name like another that is not taken, and does not break the profiler's file."""
    safe = wanted = _UNSAFE.sub("_", name)
    number = 1
    while wanted in taken:
        number, wanted = number + 1, f"{safe}_{number}"
    taken.add(wanted)
    return wanted


def _open(path: str | Path, model: ir.Model, found: Runtime, place: Target) -> Contender:
    try:
        return Contender(str(path), model, found.open_file(path, place))
    except ExecutionError as error:
        raise UserError(f"{path}: {error}; repair it with: graphopt apply MODEL repair -o OUT") from None


def _feeds(first: Contender, batch: int, axes: Mapping[str, int], data: Data | None, seed: int) -> Arrays:
    """Make the inputs, on which the first model runs."""
    ports = runtime.model_inputs(first.model)
    if data is None:
        return inputs.of_batch(first.model, first.plain, batch, seed, axes)
    inputs.check_axes(ports, axes)
    data.check(ports)
    size = batch_size(ports, batch)
    return next(data.batches(size, size))[0]


def _check(contenders: Sequence[Contender], feeds: Arrays) -> None:
    """Run every model once on the inputs, before anything is measured."""
    for contender in contenders:
        try:
            contender.plain.run(feeds)
        except ExecutionError as error:
            raise UserError(
                f"{contender.name}: does not run on "
                + (
                    f"these inputs: {error}; give it others"
                    if contender is contenders[0]
                    else f"inputs of {contenders[0].name}: {error}; compare models with the same inputs"
                )
            ) from None


def _executed(found: Runtime, model: ir.Model, place: Target) -> ir.Model | None:
    """Return the graph that the runtime makes of a model, or None where it cannot write it down."""
    try:
        return found.optimized(model, place)
    except ExecutionError:
        return None


def _told_apart(first: Contender, second: Contender) -> tuple[str, str]:
    """Return what to call two models: their files' names where these differ."""
    names = Path(first.name).name, Path(second.name).name
    return names if names[0] != names[1] else (first.name, second.name)


def _profile(name: str, runs: int, timing: Timing, lineage: Lineage | None, place: Target) -> Profile:
    elsewhere: defaultdict[str, list[NodeTime]] = defaultdict(list)
    for node in timing.nodes:
        if node.provider != place.provider:
            elsewhere[node.provider].append(node)
    copies = [node for node in timing.nodes if moves(node)]
    folded = len(lineage.gone) if lineage is not None else 0
    return Profile(
        model=name,
        runs=runs,
        run_us=timing.run_us,
        outside_us=timing.outside_us,
        profiler_us=timing.profiler_us,
        plain_us=timing.plain_us,
        operators=_operators(timing),
        nodes=timing.nodes,
        copies=_part(copies),
        elsewhere={provider: _part(nodes) for provider, nodes in elsewhere.items()},
        folded=folded,
        notes=_notes(timing, lineage, copies, elsewhere, place),
    )


def _operators(timing: Timing) -> list[OperatorTime]:
    groups: defaultdict[str, list[NodeTime]] = defaultdict(list)
    for node in timing.nodes:
        groups[node.operator].append(node)
    rows = [
        OperatorTime(name, len(nodes), sum(node.calls for node in nodes), part.us, part.share)
        for name, nodes in groups.items()
        if (part := _part(nodes))
    ]
    return sorted(rows, key=lambda row: -row.us)


def _part(nodes: Sequence[NodeTime]) -> Part:
    return Part(len(nodes), sum(node.us for node in nodes), sum(node.share for node in nodes))


def _notes(
    timing: Timing,
    lineage: Lineage | None,
    copies: Sequence[NodeTime],
    elsewhere: Mapping[str, Sequence[NodeTime]],
    place: Target,
) -> list[str]:
    notes = []
    if copies:
        notes.append(f"{_share(copies)}, only move data and were added by the runtime: {_operators_of(copies)}")
    for provider, nodes in elsewhere.items():
        notes.append(f"{_share(nodes)}, ran on {provider} instead of {place.provider}: {_operators_of(nodes)}")
    if place.provider != CPU and any(node.provider == place.provider for node in timing.nodes):
        notes.append(
            f"{place.provider} works on while the next nodes are launched: the times of its nodes are those of "
            "launching them, and waiting for the results counts elsewhere"
        )
    elif abs(timing.plain_us - timing.run_us) > max(_UNTOLD * timing.run_us, _CALL_US):
        notes.append(
            f"a call without the profiler takes {timing.plain_us:.0f} us, not the {timing.run_us:.0f} that are told of: "
            "other programs keep the processor busy"
        )
    if place.inter_threads > 1:
        notes.append("nodes may run side by side: their times can add up to more than a run")
    if lineage is None:
        notes.append("the runtime does not tell what it made of the file, so what was fused into what is unknown")
    elif lineage.gone:
        notes.append(f"{_count(len(lineage.gone), 'node')} of the file not executed: computed while loading, or idle")
    return notes


def _share(nodes: Sequence[NodeTime]) -> str:
    return f"{_count(len(nodes), 'node')}, {percent(_part(nodes).share)} of the time"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _operators_of(nodes: Sequence[NodeTime]) -> str:
    counts = Counter(operator(node.operator).rpartition("::")[2] for node in nodes)
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())
