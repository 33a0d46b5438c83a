"""Where integers pay: time the nodes of a quantized model beside those of the float model.

ONNX Runtime's integer kernels are not always the faster ones: odd numbers of channels, depthwise and small
convolutions can take longer than in float, and conversions cost a sweep each. What a node and the conversions around it
take is read from the runtime's profiler, in both models.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path

import onnx_ir as ir

from graphopt import io, profiling
from graphopt.data import Data
from graphopt.target import Target

_NOTICEABLE = 0.002
"""Share of a run from which a loss is worth a trial."""


def losses(reference: ir.Model, quantized: ir.Model, data: Data, place: Target, *, seconds: float) -> dict[str, float]:
    """Return the nodes of the float model that take longer in integers, with the microseconds lost, the most first.

    Args:
        reference: the float model.
        quantized: the same nodes, under the same names, in integers.
        data: to run on, one sample at a time.
        place: where to run.
        seconds: how long to record each model.

    Raises:
        UserError: the target's runtime has no profiler.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / "float.onnx", Path(folder) / "integer.onnx"]
        for model, path in zip((reference, quantized), paths, strict=True):
            io.save(model, path)
        found = profiling.profile(*paths, target=place, data=data, seconds=seconds)
    assert found.difference is not None
    least = _NOTICEABLE * found.models[0].run_us
    named = {node.name for node in reference.graph.all_nodes()}
    lost = {
        row.node: row.difference_us
        for row in found.difference.nodes
        if row.node in named and row.difference_us > least
    }
    return dict(sorted(lost.items(), key=lambda item: -item[1]))


def anchors(names: Collection[str], model: ir.Model, ops: Collection[str]) -> tuple[str, ...]:
    """Return those of the nodes that are convolutions or matrix products, which alone are chosen one by one."""
    return tuple(node.name for node in model.graph.all_nodes() if node.name in names and node.op_type in ops)  # type: ignore[misc]

