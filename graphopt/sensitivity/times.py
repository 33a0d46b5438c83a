"""How long nodes take in floats and in integers."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx_ir as ir

from graphopt import io, profiling
from graphopt.data import Data
from graphopt.target import Target


def node_times(
    model: ir.Model, quantized: ir.Model, data: Data, place: Target, *, seconds: float
) -> dict[str, tuple[float, float]]:
    """Return the microseconds per run that nodes of a float model take in it and in a quantized one, by name.

    What the runtime fused counts for the first of the nodes that went into it.

    Args:
        model: the float model, whose nodes have names of their own.
        quantized: the same nodes, under the same names.
        data: to run on, one sample at a time.
        place: where to run.
        seconds: how long to record each model.

    Raises:
        UserError: the target's runtime has no profiler.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / "float.onnx", Path(folder) / "integer.onnx"]
        for one, path in zip((model, quantized), paths, strict=True):
            io.save(one, path)
        found = profiling.profile(*paths, target=place, data=data, seconds=seconds)
    assert found.difference is not None
    named = {node.name for node in model.graph.all_nodes()}
    return {row.node: (row.before_us, row.after_us) for row in found.difference.nodes if row.node in named}
