"""How long each executed node takes, from recorded runs."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from statistics import median_grouped

import numpy as np
import onnx_ir as ir

from graphopt import scopes
from graphopt.difference.places import label, operator_name
from graphopt.profiling.lineage import MOVING, Lineage
from graphopt.profiling.overhead import Chain
from graphopt.profiling.recording import Recording
from graphopt.profiling.trace import Call, Run, Tensor

_LEAST_SCALE = 0.5
"""What the profiler makes nodes slower at most; a lower ratio of runs without it to runs with it is noise."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """A node of the file: its name (its first output's, if it has none) and its operator."""

    node: str
    operator: str


@dataclasses.dataclass(frozen=True)
class NodeTime:
    """What an executed node takes.

    Attributes:
        node: the node of the file that it is, or the most telling of those that went into it; else its `name`.
        name: what the runtime calls it, in the profiler's own file too.
        operator: what is executed, with its domain unless that is ONNX's own.
        us: microseconds per run, what runs in its bodies not included: the median over the runs.
        share: of the whole run, from 0 to 1.
        calls: executions per run.
        provider: the execution provider that it ran on.
        inputs, outputs: element types and shapes, in its first execution.
        fused: nodes of the file that went into it, in the file's order; empty when they cannot be told.
        added: whether the runtime has added it.
        inside: names of the nodes in whose bodies it lies, the outermost first.
    """

    node: str
    name: str
    operator: str
    us: float
    share: float
    calls: float
    provider: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    fused: tuple[Origin, ...]
    added: bool
    inside: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Timing:
    """Where the time of a run goes.

    Attributes:
        run_us: microseconds of a run within the runtime: the nodes, and what is outside of them.
        outside_us: of these, those not spent in nodes.
        profiler_us: what the profiler adds to a run, taken off both.
        plain_us: a run without the profiler, as the caller sees it.
        nodes: by time, the longest first.
        sources: of each of `nodes`, the nodes of the file that went into it.
    """

    run_us: float
    outside_us: float
    profiler_us: float
    plain_us: float
    nodes: list[NodeTime]
    sources: list[tuple[ir.Node, ...]]


def measure(recording: Recording, chain: Chain, executed: ir.Model | None, lineage: Lineage | None) -> Timing:
    """Add up what was recorded.

    The profiler counts whole microseconds, rounded down. A time between is found by interpolation in the median, and
    half a microsecond is added for every execution. What the profiler adds (see `graphopt.profiling.overhead`) is
    taken off every node; that which passes after a node, off the time outside nodes or of the node in whose body it is.
    Where more is left than a run without the profiler takes, all times are scaled to that: nodes run slower, too,
    after the profiler has used the caches.

    Args:
        recording: of the model.
        chain: what tells how much the profiler adds.
        executed: the graph that the runtime made of it, if it tells.
        lineage: where the nodes of that come from.
    """
    rows, runs = _collect(recording.runs), len(recording.runs)
    calls = sum(row.calls for row in rows) / runs
    outer = sum(row.calls for row in rows if not row.path) / runs
    gap = _median([run.us - sum(call.us for call in run.calls) for run in recording.runs], 1 - outer)
    told = [max(0.0, _median(row.us, (row.calls - row.inner) / runs)) for row in rows]
    extra = float(np.median(recording.recorded_seconds - recording.plain_seconds)) * 1e6
    shortest = min((us / row.calls * runs for row, us in zip(rows, told, strict=True) if not row.inner), default=0.0)
    overhead = chain.overhead_in(extra / max(1.0, calls), shortest, gap / max(1.0, outer))
    own = [
        max(0.0, us - row.calls / runs * overhead.within_us - row.inner / runs * overhead.after_us)
        for row, us in zip(rows, told, strict=True)
    ]
    outside = max(0.0, gap - outer * overhead.after_us)
    plain = float(np.median(recording.plain_seconds)) * 1e6
    way = float(np.median(recording.call_seconds * 1e6 - [run.us for run in recording.runs]))  # in and back
    scale = min(1.0, max(_LEAST_SCALE, (plain - way) / max(1e-9, sum(own) + outside)))
    own, outside = [us * scale for us in own], outside * scale
    places = _Places(executed, lineage)
    order = sorted(range(len(rows)), key=lambda number: -own[number])
    return Timing(
        run_us=sum(own) + outside,
        outside_us=outside,
        profiler_us=sum(told) - sum(own) + gap - outside,
        plain_us=plain,
        nodes=[places.describe(rows[number], runs, own[number], sum(own) + outside) for number in order],
        sources=[places.sources(rows[number]) for number in order],
    )


@dataclasses.dataclass
class _Row:
    """An executed node.

    Attributes:
        call: its first execution.
        path: the executions in whose bodies that was, the outermost first.
        us: of each run, microseconds as recorded, without those of what ran in its bodies, [runs].
        calls: executions, in all runs.
        inner: executions in its bodies, in all runs.
    """

    call: Call
    path: tuple[Call, ...]
    us: list[int]
    calls: int = 0
    inner: int = 0


def _collect(runs: Sequence[Run]) -> list[_Row]:
    """Add up the executions of each node in each run, in the order in which nodes are first executed."""
    rows: dict[object, _Row] = {}

    def add(calls: Sequence[Call], run: int, place: object, path: tuple[Call, ...]) -> None:
        for call in calls:
            key = (place, call.op, call.name, call.index)
            row = rows.get(key)
            if row is None:
                row = rows[key] = _Row(call, path, [0] * len(runs))
            row.us[run] += call.us - sum(inner.us for inner in call.inner)
            row.calls += 1
            row.inner += len(call.inner)
            add(call.inner, run, key, (*path, call))

    for number, run in enumerate(runs):
        add(run.calls, number, None, ())
    return list(rows.values())


def _median(us: Sequence[int], events: float) -> float:
    """Return the median of sums of microseconds that were rounded down, given how many were added up in each."""
    return float(median_grouped([value + 0.5 for value in us], 1)) + (events - 1) / 2


class _Places:
    """Finds executed nodes in the graph that the runtime made, and in the file."""

    def __init__(self, executed: ir.Model | None, lineage: Lineage | None) -> None:
        self._graphs = [] if executed is None else [executed.graph]
        self._lineage = lineage or Lineage({}, frozenset(), ())
        self._known: dict[tuple[ir.Graph, str, str], list[ir.Node]] = defaultdict(list)
        for graph in () if executed is None else (executed.graph, *executed.graph.subgraphs()):
            for node in graph:
                self._known[graph, node.name or "", node.op_type].append(node)

    def sources(self, row: _Row) -> tuple[ir.Node, ...]:
        """Return the nodes of the file that went into an executed node."""
        node = self._find((*row.path, row.call))
        return () if node is None else self._lineage.sources.get(node, ())

    def describe(self, row: _Row, runs: int, us: float, run_us: float) -> NodeTime:
        """Return what is told of an executed node, given what it takes and what a run takes."""
        call, node, sources = row.call, self._find((*row.path, row.call)), self.sources(row)
        added = call.op.startswith(("Memcpy", "Reorder")) if node is None else node in self._lineage.added
        main = next((source for source in sources if source.op_type in call.op), sources[-1] if sources else None)
        return NodeTime(
            node=call.name if main is None else label(main),
            name=call.name,
            operator=call.op if node is None else operator_name(node),
            us=us,
            share=us / run_us if run_us else 0.0,
            calls=row.calls / runs,
            provider=call.provider,
            inputs=call.inputs,
            outputs=call.outputs,
            fused=tuple(Origin(label(source), operator_name(source)) for source in sources),
            added=added,
            inside=tuple(outer.name for outer in row.path),
        )

    def _find(self, path: tuple[Call, ...]) -> ir.Node | None:
        """Return the node of the executed graph that a call is of, given the calls in whose bodies it was, too."""
        graphs = self._graphs
        node = None
        for call in path:
            named = [node for graph in graphs for node in self._known.get((graph, call.name, call.op), ())]
            if not named and call.name == f"{call.op}_{call.index}":  # the runtime calls nameless nodes so
                named = [node for graph in graphs for node in self._known.get((graph, "", call.op), ())]
            node = named[0] if len(named) == 1 else None
            if node is None:
                return None
            graphs = [body for attribute in node.attributes.values() for body in scopes.subgraphs(attribute)]
        return node


def moves(node: NodeTime) -> bool:
    """Tell whether a node only moves data, and was added by the runtime for that."""
    return node.added and node.operator.rpartition("::")[2] in MOVING - {"Reshape"}
