"""Write down the types and shapes of inner values that follow from the operators

Other tools, and runtimes that plan memory, read them. What inference proves from the graph inputs replaces what
the file declares; where it proves nothing, the declaration stays. Declared graph inputs and outputs are the
model's interface: an output only receives what it lacks.

onnx_ir's ShapeInferencePass is not used: it lets worse information overwrite better, rewrites outputs, turns
sequences into tensors, reorders initializers, and by default gives up on the first operator it does not know.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graphopt import inference
from graphopt.passbase import Pass, Result


@dataclass(frozen=True)
class InferShapes(Pass):
    """Infer types and shapes of inner values."""

    def call(self, model: ir.Model) -> Result:
        """Annotate in place; the report counts the values that gained or changed information."""
        count = corrected = 0
        for value, known in inference.infer(model).items():
            if value.producer() is None:
                continue
            declared = inference.dims(value.shape)
            if value.is_graph_output():
                shape = value.shape if value.shape is not None else known.shape
                type_ = value.type or known.type
            else:
                shape, type_ = known.refines(value.shape), known.type or value.type
                corrected += known.contradicts(value.shape)
            if inference.dims(shape) != declared or type_ != value.type:
                value.shape, value.type = shape, type_
                count += 1
        return Result(model, bool(count), {"values": count, "corrected": corrected})
