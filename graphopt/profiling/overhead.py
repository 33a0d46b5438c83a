"""What a profiler itself adds to every node that it records.

ONNX Runtime's takes note of shapes, memory and threads before it stops the clock: 2 or 3 microseconds are part of what
it says that a node takes, and as much again passes until the next one. For a network of small nodes that is far more
than the nodes themselves.

What it adds to a run is measured, against runs without it, and shared out evenly: it hardly depends on the node. How
much of it falls within nodes, a chain of nodes that do next to nothing tells, where it is all that there is.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from statistics import median, median_grouped

import numpy as np
import onnx_ir as ir

from graphopt.runtime import Runtime
from graphopt.target import Target

_NODES = 128
_RUNS = 50
_WARMUPS = 10
_MOST_MORE_US = 1.5
"""What recording a node costs more in a network at most, within it and after it: there, the profiler's code and data
leave the cache."""


@dataclasses.dataclass(frozen=True)
class Overhead:
    """Microseconds that a profiler adds to every execution of a node.

    Attributes:
        within_us: in what it tells of the node.
        after_us: until the next one.
    """

    within_us: float
    after_us: float


@dataclasses.dataclass(frozen=True)
class Chain:
    """What was measured on the chain: the overhead, and the microseconds that one of its nodes really takes."""

    overhead: Overhead
    node_us: float

    def overhead_in(self, extra_us: float, shortest_us: float, gap_us: float) -> Overhead:
        """Return what the profiler adds in a network.

        Args:
            extra_us: what it adds to a run, for each node executed; where the machine is busy, this can be anything.
            shortest_us: what it tells of the shortest node; without the overhead, that takes no less than the chain's.
            gap_us: what passes between nodes, for each node executed.
        """
        chain = self.overhead
        most = min(shortest_us - self.node_us, chain.within_us + _MOST_MORE_US)
        within = min(max(extra_us - chain.after_us, chain.within_us), max(0.0, most))
        most = min(gap_us, chain.after_us + _MOST_MORE_US)
        after = min(max(extra_us - within, chain.after_us), max(0.0, most))
        return Overhead(within, after)


def measure_chain(runtime: Runtime, target: Target) -> Chain:
    """Measure what the profiler of a runtime adds to nodes that do next to nothing.

    Raises:
        ExecutionError: the runtime does not execute a chain of Neg.
        UserError: it has no profiler.
    """
    model = _chain()
    feeds = {"x": np.ones(1, np.float32)}
    once = runtime.open(model, target).prepare(feeds)
    plain = median([_timed(once) for _ in range(_WARMUPS + _RUNS)][_WARMUPS:]) * 1e6
    with runtime.recorder(model, target) as recorder:
        once = recorder.session.prepare(feeds)
        for _ in range(_WARMUPS + _RUNS):
            once()
        runs = recorder.finish().read()[_WARMUPS:]
    within = median_grouped([sum(call.us for call in run.calls) for run in runs], 1) + _NODES / 2  # rounded down
    after = median_grouped([run.us - sum(call.us for call in run.calls) for run in runs], 1) - _NODES / 2
    return Chain(Overhead(max(0.0, (within - plain) / _NODES), max(0.0, after / _NODES)), plain / _NODES)


def _chain() -> ir.Model:
    """Return a model of many nodes that do next to nothing, and that a runtime neither removes nor fuses."""
    shape = ir.Shape([1])
    first = value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=shape)
    nodes = []
    for number in range(_NODES):
        node = ir.node("Neg", [value], name=f"neg_{number}")
        value = node.outputs[0]
        value.name, value.type, value.shape = f"y_{number}", ir.TensorType(ir.DataType.FLOAT), shape
        nodes.append(node)
    return ir.Model(ir.Graph([first], [value], nodes=nodes, opset_imports={"": 13}, name="chain"), ir_version=8)


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
