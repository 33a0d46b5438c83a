"""Bring weights that lie beside the model into one file

The opposite of externalize. A protobuf file ends at 2 GiB, so larger models cannot be embedded.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graphopt import io
from graphopt.passbase import Pass, PreconditionError, Result


@dataclass(frozen=True)
class Embed(Pass):
    """Store weights in the model's own file."""

    def call(self, model: ir.Model) -> Result:
        """Read external tensors into the model; the report tells how many and how many bytes."""
        outside = [tensor for tensor in io.tensors(model) if isinstance(tensor, ir.ExternalTensor)]
        report = {"tensors": len(outside), "bytes": sum(tensor.nbytes for tensor in outside)}
        wished = io.EXTERNAL in model.meta
        if not outside and not wished:
            return Result(model, False, report)
        if io.total_bytes(model) > io.PROTOBUF_LIMIT:
            raise PreconditionError(
                f"the weights take {io.total_bytes(model):,} bytes, and a file of protobuf ends at 2 GiB; "
                "make the model smaller first"
            )
        if wished:
            del model.meta[io.EXTERNAL]
        io.embed(model)
        return Result(model, True, report)
