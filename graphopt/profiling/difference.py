"""Where two recorded models spend different times."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence

import onnx_ir as ir

from graphopt import statistics
from graphopt.matching import Matching
from graphopt.profiling.nodes import NodeTime, Timing
from graphopt.profiling.recording import Recording
from graphopt.profiling.words import operator, scale

_TOLD = 4
"""Operators that the summary names at most."""

_WORTH = 0.05
"""Share of the largest difference below which an operator is not worth telling."""


@dataclasses.dataclass(frozen=True)
class OperatorDifference:
    """What an operator takes in two models: executed nodes, and microseconds per run."""

    operator: str
    nodes: tuple[int, int]
    before_us: float
    after_us: float
    difference_us: float


@dataclasses.dataclass(frozen=True)
class NodeDifference:
    """What corresponding nodes take in two models.

    Attributes:
        node: the name of the longest of them in the first model, else in the second; empty where `before` and
            `after` are all nodes of one operator that correspond to none in the other model.
        operator: of that node in its file; what is executed, where that cannot be told or was added.
        before, after: operators that are executed, by model.
        before_us, after_us, difference_us: microseconds per run, of all of them.
    """

    node: str
    operator: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    before_us: float
    after_us: float
    difference_us: float


@dataclasses.dataclass(frozen=True)
class Difference:
    """How the second model differs from the first.

    Attributes:
        summary: in words.
        difference_us: microseconds that a run takes more, negative if less.
        ci95: the 95 % interval of that, from runs without the profiler.
        outside_us: of the difference, what is not in nodes.
        operators, nodes: where it comes from, the largest first.
    """

    summary: str
    difference_us: float
    ci95: statistics.Interval
    outside_us: float
    operators: list[OperatorDifference]
    nodes: list[NodeDifference]


def differ(
    names: tuple[str, str],
    recordings: tuple[Recording, Recording],
    timings: tuple[Timing, Timing],
    matching: Matching,
) -> Difference:
    """Find out where the difference between two models comes from.

    Args:
        names: what to call them.
        recordings: made in turn, round by round.
        timings: of them.
        matching: candidate -> reference is second -> first.
    """
    before, after = timings
    pairs = 1e6 * (recordings[1].plain_seconds - recordings[0].plain_seconds)
    _, interval = statistics.center(pairs)
    operators = _operators(before.nodes, after.nodes)
    found = Difference(
        summary="",
        difference_us=after.run_us - before.run_us,
        ci95=interval,
        outside_us=after.outside_us - before.outside_us,
        operators=operators,
        nodes=_nodes(before, after, matching),
    )
    return dataclasses.replace(found, summary=_summary(names, timings, found))


def _operators(before: Sequence[NodeTime], after: Sequence[NodeTime]) -> list[OperatorDifference]:
    counts = [Counter(node.operator for node in nodes) for nodes in (before, after)]
    us: list[defaultdict[str, float]] = [defaultdict(float), defaultdict(float)]
    for total, nodes in zip(us, (before, after), strict=True):
        for node in nodes:
            total[node.operator] += node.us
    rows = [
        OperatorDifference(
            name, (counts[0][name], counts[1][name]), us[0][name], us[1][name], us[1][name] - us[0][name]
        )
        for name in counts[0] | counts[1]
    ]
    return sorted(rows, key=lambda row: -abs(row.difference_us))


def _nodes(before: Timing, after: Timing, matching: Matching) -> list[NodeDifference]:
    """Join executed nodes into which matched nodes of the files went, and those that are left by operator."""
    joined = _join(_owners(before), _owners(after), matching)
    placed = {(side, number) for both in joined for side, numbers in enumerate(both) for number in numbers}
    rows = [_row(before, after, sorted(one), sorted(two), matched=True) for one, two in joined]
    left: defaultdict[str, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for side, timing in enumerate((before, after)):
        for number, node in enumerate(timing.nodes):
            if (side, number) not in placed:
                left[node.operator][side].append(number)
    rows += [_row(before, after, one, two, matched=False) for one, two in left.values()]
    return sorted(rows, key=lambda row: -abs(row.difference_us))


def _join(
    owners: dict[ir.Node, int], owners_after: dict[ir.Node, int], matching: Matching
) -> list[tuple[set[int], set[int]]]:
    """Return the numbers of executed nodes that correspond: of the first model, and of the second.

    They do if matched nodes of the files went into them; and those of which that is not so, if they make the same value.
    """
    groups: dict[tuple[int, int], tuple[set[int], set[int]]] = {}

    def join(before: ir.Node, after: ir.Node) -> None:
        members = (0, owners[before]), (1, owners_after[after])
        merged: tuple[set[int], set[int]] = {members[0][1]}, {members[1][1]}
        for member in members:
            for mine, others in zip(merged, groups.get(member, ()), strict=False):
                mine |= others
        groups.update({(side, number): merged for side, numbers in enumerate(merged) for number in numbers})

    for here, there in matching.nodes.items():
        if there in owners and here in owners_after:
            join(there, here)
    matched = set(groups)
    for value, other in matching.values.items():
        here_too, there_too = value.producer(), other.producer()
        if there_too in owners and here_too in owners_after:
            members = {(0, owners[there_too]), (1, owners_after[here_too])}
            if not members <= matched:
                join(there_too, here_too)
    return list({id(both): both for both in groups.values()}.values())


def _owners(timing: Timing) -> dict[ir.Node, int]:
    """Return the executed node, by its number, of each node of a file that went into one only."""
    found: defaultdict[ir.Node, list[int]] = defaultdict(list)
    for number, sources in enumerate(timing.sources):
        for source in sources:
            found[source].append(number)
    return {source: numbers[0] for source, numbers in found.items() if len(numbers) == 1}


def _row(
    before: Timing, after: Timing, numbers: Sequence[int], numbers_after: Sequence[int], *, matched: bool
) -> NodeDifference:
    old, new = [before.nodes[number] for number in numbers], [after.nodes[number] for number in numbers_after]
    main = (old or new)[0]
    origin = next((origin.operator for origin in main.fused if origin.node == main.node), main.operator)
    us, us_after = sum(node.us for node in old), sum(node.us for node in new)
    return NodeDifference(
        node=main.node if matched or len(old) + len(new) == 1 else "",
        operator=origin,
        before=tuple(node.operator for node in old),
        after=tuple(node.operator for node in new),
        before_us=us,
        after_us=us_after,
        difference_us=us_after - us,
    )


def _summary(names: tuple[str, str], timings: tuple[Timing, Timing], found: Difference) -> str:
    before, after = timings
    time = scale(max(before.run_us, after.run_us))
    low, high = found.ci95
    told = f"{time(after.run_us)} instead of {time(before.run_us)}"
    if min(low, found.difference_us) <= 0 <= max(high, found.difference_us):
        return (
            f"{names[1]} takes as long as {names[0]}, as far as can be told ({told} {time.unit} per run; "
            f"the difference is between {time.signed(low)} and {time.signed(high)})"
        )
    sums = defaultdict(float, {"outside nodes": found.outside_us})
    for row in found.nodes:
        sums[operator(row.operator)] += row.difference_us
    rows = sorted(sums.items(), key=lambda item: -abs(item[1]))
    rows = [item for item in rows if abs(item[1]) >= _WORTH * abs(rows[0][1])]
    causes = ", ".join(f"{name} {time.signed(us)}" for name, us in rows[:_TOLD])
    more = f" and {len(rows) - _TOLD} more" if len(rows) > _TOLD else ""
    word = "less" if found.difference_us < 0 else "more"
    amount = f"{time(abs(found.difference_us))} {time.unit} {word} per run"
    return f"{names[1]} takes {amount} than {names[0]} ({told}): {causes}{more}"
