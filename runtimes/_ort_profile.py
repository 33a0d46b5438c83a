"""ONNX Runtime's profiler: sessions that record, and what the file it writes says."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt import io
from graphopt.errors import UserError
from graphopt.profiling.trace import Call, Recorder, Run, Tensor, Trace
from graphopt.runtime import Session
from graphopt.target import Target

_MOST_EVENTS = 1_000_000
_NODE = "_kernel_time"
"""How the names of events end that are the execution of a node."""

_GRAPH = "Executor::Execute"
"""How the names of events end that are the execution of a graph: the main one, or a body."""


def recorder(
    model: ir.Model, target: Target, options: Any, opened: Callable[[bytes | str], tuple[Any, Session]]
) -> AbstractContextManager[Recorder]:
    """Return a recording session, to be entered.

    Args:
        model: never changed.
        target: where it runs.
        options: SessionOptions, to which the profiler is added.
        opened: makes the onnxruntime.InferenceSession with them out of a file's content or path, and wraps it.

    Raises:
        UserError: the target captures runs as a CUDA graph, which then runs as a whole, without nodes.
    """
    if dict(target.options).get("enable_cuda_graph") in ("1", "true"):
        raise UserError(
            f"target '{target.name}': a captured CUDA graph runs as a whole, without nodes; "
            "profile it without enable_cuda_graph"
        )
    return _recorder(model, options, opened)


@contextmanager
def _recorder(
    model: ir.Model, options: Any, opened: Callable[[bytes | str], tuple[Any, Session]]
) -> Iterator[Recorder]:
    with tempfile.TemporaryDirectory() as folder, io.serialized(model) as source:
        options.enable_profiling = True
        options.profile_file_prefix = os.path.join(folder, "trace")
        session, wrapped = opened(source)
        yield Recorder(wrapped, lambda: _trace(Path(session.end_profiling())), _MOST_EVENTS)


def _trace(file: Path) -> Trace:
    with file.open("rb") as lines:
        events = sum(1 for line in lines if line.startswith(b"{"))
    return Trace(file, events, functools.partial(read, file))


def read(file: Path) -> list[Run]:
    """Read the runs out of the file that the profiler writes, a JSON array with an event on each line.

    An event comes when what it tells of is over: after the nodes of a body comes the execution of that body, then
    the node that it belongs to. What an event holds is therefore what came before it, on the same thread, and did not
    start earlier. A run holds all that came since the run before, on any thread.
    """
    runs: list[Run] = []
    loose: defaultdict[int, list[tuple[int, Call]]] = defaultdict(list)
    """Nodes that no graph holds yet: when they started, by thread."""
    bodies: defaultdict[int, list[tuple[int, Call]]] = defaultdict(list)
    """Nodes of graphs that no node holds yet: when the graph started, by thread."""
    with file.open("rb") as lines:
        for line in lines:
            if not line.startswith(b"{"):
                continue
            event = json.loads(line.rstrip(b",\n"))
            name, thread = event["name"], event["tid"]
            if event["cat"] == "Node" and name.endswith(_NODE):
                inner = tuple(_since(bodies[thread], event["ts"]))
                loose[thread].append((event["ts"], _call(name.removesuffix(_NODE), event, inner)))
            elif name.endswith(_GRAPH):
                bodies[thread] += [(event["ts"], call) for call in _since(loose[thread], event["ts"])]
            elif name == "model_run":
                held = [pair for part in (loose, bodies) for pairs in part.values() for pair in pairs]
                held.sort(key=lambda pair: pair[0])
                runs.append(Run(event["dur"], tuple(call for _, call in held)))
                loose.clear()
                bodies.clear()
    return runs


def _since(pairs: list[tuple[int, Call]], start: int) -> list[Call]:
    """Take from the end of a list what did not start earlier."""
    first = len(pairs)
    while first and pairs[first - 1][0] >= start:
        first -= 1
    taken = [call for _, call in pairs[first:]]
    del pairs[first:]
    return taken


def _call(name: str, event: dict[str, Any], inner: tuple[Call, ...]) -> Call:
    args = event["args"]
    return Call(
        name=name,
        op=args["op_name"],
        index=int(args["node_index"]),
        provider=args["provider"],
        us=event["dur"],
        inputs=_tensors(args.get("input_type_shape")),
        outputs=_tensors(args.get("output_type_shape")),
        inner=inner,
    )


def _tensors(pairs: list[dict[str, list[int]]] | None) -> tuple[Tensor, ...]:
    return tuple(Tensor(dtype, tuple(shape)) for pair in pairs or () for dtype, shape in pair.items())
