"""Where integers pay: time the nodes of a quantized model beside those of the float model.

ONNX Runtime's integer kernels are not always the faster ones: odd numbers of channels, depthwise and small
convolutions and activation functions can take longer than in float, and conversions cost a sweep each. What a node takes
in both models is read from the runtime's profiler; the cheapest placement is then a minimum cut (see `_plan`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path

import onnx_ir as ir

from graphopt import io, profiling
from graphopt.data import Data
from graphopt.passes.quantization import _plan, _ranges
from graphopt.passes.quantization._kernels import Role
from graphopt.target import Target


def node_times(
    reference: ir.Model, quantized: ir.Model, data: Data, place: Target, *, seconds: float
) -> dict[str, _plan.Times]:
    """Return the microseconds that nodes of the float model take in floats and in integers, by name.

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
    named = {node.name for node in reference.graph.all_nodes()}
    return {row.node: (row.before_us, row.after_us) for row in found.difference.nodes if row.node in named}


def left_in_float(
    calibrated: ir.Model, times: dict[str, _plan.Times], observer: str, ops: Collection[str]
) -> dict[str, str]:
    """Return the convolutions and matrix products that the cheapest placement leaves in float, by name, and why.

    Args:
        calibrated: the float model, with ranges.
        times: see `node_times`.
        observer: which ranges to use.
        ops: operator types to quantize.
    """
    recorded = _ranges.read(calibrated, observer)
    usual, cheapest = (
        {
            unit.node.name or ""
            for graph in (calibrated.graph, *calibrated.graph.subgraphs())
            for unit in _plan.make(graph, recorded, (), ops, known).units
            if unit.role is Role.ANCHOR
        }
        for known in (None, times)
    )
    rows = {}
    for name in sorted(usual - cheapest):
        before, after = times.get(name, (0.0, 0.0))
        rows[name] = f"integers do not pay here: {before:.0f} us in float, {after:.0f} us in integers, and conversions"
    return rows
