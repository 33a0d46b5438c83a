"""Minimum cut of a small directed graph, by shortest augmenting paths (Edmonds and Karp 1972)."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Iterable
from typing import TypeVar

T = TypeVar("T", bound=Hashable)

UNBREAKABLE = float("inf")


def sink_side(edges: Iterable[tuple[T, T, float]], source: T, sink: T) -> set[T]:
    """Return the smallest set of nodes around `sink` whose separation from the rest is cheapest.

    A cut costs the capacities of the edges that lead from outside the set into it.

    Args:
        edges: `(from, to, capacity)`; no path of unbreakable edges may join source and sink.
        source: a node outside the set.
        sink: a node inside it.
    """
    residual: dict[T, dict[T, float]] = defaultdict(dict)
    for tail, head, capacity in edges:
        residual[tail][head] = residual[tail].get(head, 0) + capacity
        residual[head].setdefault(tail, 0)
    while path := _shortest_path(residual, source, sink):
        flow = min(residual[tail][head] for tail, head in path)
        for tail, head in path:
            residual[tail][head] -= flow
            residual[head][tail] += flow
    inside, queue = {sink}, deque([sink])
    while queue:
        head = queue.popleft()
        for tail in residual[head]:
            if tail not in inside and residual[tail][head] > 0:
                inside.add(tail)
                queue.append(tail)
    return inside


def _shortest_path(residual: dict[T, dict[T, float]], source: T, sink: T) -> list[tuple[T, T]]:
    reached: dict[T, T] = {source: source}
    queue = deque([source])
    while queue and sink not in reached:
        tail = queue.popleft()
        for head, capacity in residual[tail].items():
            if capacity > 0 and head not in reached:
                reached[head] = tail
                queue.append(head)
    path = []
    while sink in reached and sink != source:
        path.append((reached[sink], sink))
        sink = reached[sink]
    return path
