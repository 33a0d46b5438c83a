"""Write weights beside the model, into OUT.data

For tools that map weights into memory or share them between models, and for files that stay small in version
control. Tensors of at least `min-size` bytes lie one after the other in OUT.data, which must stay beside OUT under
its name. They are the same bytes; text cannot lie outside. Above 2 GiB every model is written so.

The wish counts for the file that is written at the end of the run: passes that come later keep it, and a later run
on that file writes a single one again, unless it is asked.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graphopt import graphs, io
from graphopt.errors import UserError
from graphopt.passbase import Pass, Result, param


@dataclass(frozen=True)
class Externalize(Pass):
    """Store weights in a file of their own."""

    min_size: int = param(1024, "Bytes from which on a tensor is written beside the model.")

    def call(self, model: ir.Model) -> Result:
        """Mark the model; the report tells how many tensors and bytes will lie outside."""
        if self.min_size < 1:
            raise UserError(f"{self.pass_name()}: min-size {self.min_size} is not at least 1; give a number of bytes")
        stored = (value.const_value for value in io.detachable(model))
        outside = [tensor for tensor in stored if tensor is not None and tensor.nbytes >= self.min_size]
        inside = io.total_bytes(model) - sum(tensor.nbytes for tensor in outside)
        if inside > io.PROTOBUF_LIMIT:
            raise UserError(
                f"{self.pass_name()}: min-size {self.min_size:,} leaves {inside:,} bytes in the file, which ends at 2 GiB; "
                "choose a smaller one"
            )
        skipped = [
            (
                graphs.label(node),
                "its tensor is an attribute, which stays in the file; fold-constants makes weights of them",
            )
            for node in io.nodes(model)
            for attribute in node.attributes.values()
            if not attribute.is_ref()
            and attribute.type == ir.AttributeType.TENSOR
            and attribute.as_tensor().nbytes >= self.min_size
        ]
        report = {"tensors": len(outside), "bytes": sum(tensor.nbytes for tensor in outside)}
        if not outside or model.meta.get(io.EXTERNAL) == self.min_size:
            return Result(model, False, report, skipped)
        model.meta[io.EXTERNAL] = self.min_size
        return Result(model, True, report, skipped)
