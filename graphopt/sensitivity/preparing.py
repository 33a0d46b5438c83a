"""A float model and what a quantizing pass makes of it, node by node comparable."""

from __future__ import annotations

from typing import Any, cast

import onnx_ir as ir

from graphopt import pipeline, spec
from graphopt.data import Data
from graphopt.passbase import FACT_PREFIX, Pass, PreconditionError, Result

_RANGE = FACT_PREFIX + "range"
_OPSET = 11
"""The first version in which Round exists, Max and Min broadcast (8), and ONNX Runtime runs everything else needed."""


def calibrated(model: ir.Model, data: Data, **fields: Any) -> ir.Model:
    """Return a copy of a float model whose nodes have names of their own, and whose activations carry ranges.

    Ranges that it carries already stay.

    Args:
        model: never changed.
        data: to calibrate on.
        fields: further fields of calibrate.

    Raises:
        PreconditionError: there is nothing to quantize.
        UserError: the model does not run on the data.
    """
    copy = pipeline.duplicate(model)
    if copy.opset_imports.get("", _OPSET) < _OPSET:
        run(spec.build("convert-opset", {"to": _OPSET + 2}), copy)
    taken: set[str] = set()
    for node in copy.graph.all_nodes():
        name = node.name or next((value.name for value in node.outputs if value.name), node.op_type)
        fresh, number = name, 0
        while fresh in taken:
            number += 1
            fresh = f"{name}_{number}"
        node.name = fresh
        taken.add(fresh)
    if not _has_ranges(copy):
        run(spec.build("calibrate", {"data": data, **fields}), copy)
    if not _has_ranges(copy):
        raise PreconditionError("there is nothing to quantize: nothing in the model multiplies floats by weights")
    return copy


def _has_ranges(model: ir.Model) -> bool:
    made = (value for node in model.graph.all_nodes() for value in node.outputs)
    return any(_RANGE in value.metadata_props for value in (*model.graph.inputs, *made))


def quantized(model: ir.Model, quantizer: Pass) -> tuple[ir.Model, Result]:
    """Return what a quantizing pass makes of a model, and what it says.

    Raises:
        PreconditionError: it refuses, or finds nothing to quantize.
        UserError: it is not configured well.
    """
    made = pipeline.duplicate(model)
    result = run(quantizer, made)
    if not result.modified:
        reasons = "; ".join(f"{node}: {reason}" for node, reason in result.skipped[:3])
        raise PreconditionError("there is nothing to quantize" + (f" ({reasons})" if reasons else ""))
    return made, result


def run(pass_: Pass, model: ir.Model) -> Result:
    """Run a pass on a model in place; onnx_ir wraps every exception of a pass, and here it is unwrapped."""
    try:
        return cast(Result, pass_(model))
    except PreconditionError as refusal:
        raise (refusal.__cause__ or refusal) from None
