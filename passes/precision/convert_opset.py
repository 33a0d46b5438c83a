"""Convert a model to another version of the standard operator set, newer or older

Every change of an operator between the two versions is followed by itself: axes move between attributes and inputs,
Softmax changes what it sums over, operators that are too new become what defines them. Control-flow subgraphs and
model-local functions are converted too; other domains (com.microsoft, ai.onnx.ml) stay as they are. Names, inputs,
outputs and weights stay. Where a node has no equal in the other version the model is left alone, and the node named.

The file format's version (`ir_version`) becomes the one that ONNX released with the operator set (ONNX, "Versioning"),
or the lowest above it that the model needs: 4 for initializers that are no inputs, 8 for functions, 9 for float8, and
so on. Below 4 every initializer had to be listed as an input, and runtimes took it for a constant all the same; above,
it would be a default that callers may override. So constants of such a file are listed no more.

Two conversions hold only for what models do in practice, and the report's `equal_unless` counts them: a Reshape whose
computed shape holds a 0 as a size (allowzero, since opset 14), and a nearest Resize of opset 10 by computed scales
below 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graphopt.errors import UserError
from graphopt.passbase import Pass, PreconditionError, Result, param
from graphopt.passes.precision._opset import fileformat, schemas
from graphopt.passes.precision._opset.convert import Converter, version_of

_OLDEST = 7
"""Before it, operators did not broadcast; ONNX Runtime promises nothing below."""
_SHOWN = 3


@dataclass(frozen=True)
class ConvertOpset(Pass):
    """Convert a model to another version of the standard operator set."""

    to: int = param(0, f"version of the standard operator set, {_OLDEST} to {schemas.LATEST}")

    def call(self, model: ir.Model) -> Result:
        """Convert a copy, and let the model have it if every node has an equal."""
        if self.to == 0:
            raise PreconditionError(f"it needs a version to convert to; give it one, such as --to {_OLDEST * 3}")
        if not _OLDEST <= self.to <= schemas.LATEST:
            raise UserError(f"convert-opset: opset {self.to} does not exist here; take {_OLDEST} to {schemas.LATEST}")
        opsets = [version_of(model.opset_imports), *(version_of(f.opset_imports) for f in model.functions.values())]
        newest = max((version for version in opsets if version is not None), default=None)
        if newest is None:
            raise PreconditionError("the model uses no standard operators")
        if newest > schemas.LATEST:
            raise PreconditionError(f"opset {newest} is newer than this onnx knows ({schemas.LATEST}); upgrade onnx")
        before = [version_of(model.opset_imports), model.ir_version]
        stale = any(version not in (None, self.to) for version in opsets)
        if not stale and model.ir_version == fileformat.ir_version(model, self.to):
            return Result(model, False)
        made = model.clone()
        constants = fileformat.unlist_constants(made)
        converter = Converter(made, self.to)
        if stale:
            converter.run()
        if converter.refusals:
            raise PreconditionError(_refused(self.to, converter.refusals))
        model.graph, model.ir_version = made.graph, fileformat.ir_version(made, self.to)
        model.functions.clear()
        model.functions.update(made.functions)
        report = {
            "opset": [before[0], version_of(model.opset_imports)],
            "ir_version": [before[1], model.ir_version],
            "nodes": converter.changed,
            "constants": constants,
            "equal_unless": dict(converter.shared.conditions),
        }
        return Result(model, True, report, converter.skipped)


def _refused(to: int, refusals: list[tuple[str, str]]) -> str:
    shown = "; ".join(f"{node}: {reason}" for node, reason in refusals[:_SHOWN])
    more = f"; and {len(refusals) - _SHOWN} more nodes" if len(refusals) > _SHOWN else ""
    return f"no equal in opset {to}: {shown}{more}"
