"""What a runtime's profiler records: runs, and in each of them the nodes that were executed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphopt.runtime import Session


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """What went into a node or came out of it: the element type as ONNX text spells it, and the shape."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        """Return it as ONNX text spells it, such as float[1,3,32,32]."""
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """One execution of a node.

    Attributes:
        name: of the node, in the graph as the runtime rewrote it; one that the runtime made up for a nameless node.
        op: its operator, without the domain.
        index: its number in its graph.
        provider: the execution provider that it ran on.
        us: microseconds, what ran in its bodies included, rounded down.
        inputs, outputs: the tensors among them.
        inner: what ran in its bodies, in order.
    """

    name: str
    op: str
    index: int
    provider: str
    us: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    inner: tuple[Call, ...]


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a session: its microseconds, rounded down, and what ran outside of any body, in order."""

    us: int
    calls: tuple[Call, ...]


@dataclasses.dataclass(frozen=True)
class Trace:
    """What was recorded, as long as the recorder is entered.

    Attributes:
        file: the profiler's own file.
        events: how many it holds.
        read: reads the runs out of it, in order; all that were made, unless `events` is the most that is kept.
    """

    file: Path
    events: int
    read: Callable[[], list[Run]]


@dataclasses.dataclass(frozen=True)
class Recorder:
    """A session whose runs are recorded from its opening on.

    Attributes:
        session: the session.
        finish: ends the recording and returns it.
        most_events: how many events the profiler keeps; it drops what comes after.
    """

    session: Session
    finish: Callable[[], Trace]
    most_events: int
