"""Minimum cut: label nodes 0 or 1 at the least cost, where some labels are given"""

from __future__ import annotations

from collections import deque

ZERO, ONE = 0, 1
"""The nodes whose labels are given."""
UNBOUNDED = 1 << 30


class Cut:
    """A network of costs. An arc (a, b) costs its capacity where a is labelled 1 and b is labelled 0.

    The maximum flow is found by Dinic's algorithm, "Algorithm for solution of a problem of maximum flow in a network
    with power estimation", 1970, which takes few phases where capacities are 1.
    """

    def __init__(self) -> None:
        self._arcs: list[list[int]] = [[], []]
        self._heads: list[int] = []
        self._room: list[int] = []

    def node(self) -> int:
        """Add a node whose label is to be found."""
        self._arcs.append([])
        return len(self._arcs) - 1

    def arc(self, tail: int, head: int, capacity: int = UNBOUNDED) -> None:
        """Add a cost for `tail` being 1 and `head` 0."""
        for start, end, room in ((tail, head, capacity), (head, tail, 0)):
            self._arcs[start].append(len(self._heads))
            self._heads.append(end)
            self._room.append(room)

    def solve(self) -> tuple[int, list[bool]]:
        """Return the least cost, and which nodes are labelled 1: as few as can be."""
        flow = 0
        while True:
            levels = self._levels()
            if levels[ZERO] < 0:
                return flow, [level >= 0 for level in levels]
            flow += self._blocking_flow(levels)

    def _levels(self) -> list[int]:
        levels = [-1] * len(self._arcs)
        levels[ONE] = 0
        queue = deque([ONE])
        while queue:
            node = queue.popleft()
            for arc in self._arcs[node]:
                head = self._heads[arc]
                if self._room[arc] and levels[head] < 0:
                    levels[head] = levels[node] + 1
                    queue.append(head)
        return levels

    def _blocking_flow(self, levels: list[int]) -> int:
        """Push flow along shortest paths until none is left; paths are walked without recursion."""
        flow, next_arc, path, node = 0, [0] * len(self._arcs), list[int](), ONE
        while True:
            if node == ZERO:
                room = min(self._room[arc] for arc in path)
                for arc in path:
                    self._room[arc] -= room
                    self._room[arc ^ 1] += room
                flow, path, node = flow + room, [], ONE
            elif next_arc[node] < len(self._arcs[node]):
                arc = self._arcs[node][next_arc[node]]
                if self._room[arc] and levels[self._heads[arc]] == levels[node] + 1:
                    path.append(arc)
                    node = self._heads[arc]
                else:
                    next_arc[node] += 1
            elif path:
                node = self._heads[path.pop() ^ 1]
                next_arc[node] += 1
            else:
                return flow
