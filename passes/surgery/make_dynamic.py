"""Make a fixed axis dynamic: the batch, or any other axis of the inputs

`make-dynamic MODEL --axes image:0=batch,mask:0=batch` lets callers choose the size of the first axis of both inputs,
which then is the same for both. By default the first axis of every input becomes "batch".

Models are exported with the sizes of an example in them: as targets of Reshape and Expand, sizes of Resize, ends of
Slice, initial states of recurrent layers, tokens and tables with a copy for each sample. The axis is followed from the
inputs through every operator to the outputs, and those constants are mended on the way: a Reshape copies the size (0)
or computes it (-1), where that is not possible sizes are read with Shape; what is the same for all samples is copied by
Expand. A squeezed axis of one sample is merged into the next one. Models in which an operator cannot be followed, or mixes
samples, are refused with the node.

An axis called "batch", or which is the first one of an input, holds samples (see `samples`). It is verified at several
sizes: n samples at once must give what they give one by one. Along other axes, such as height or length, the model is
verified at its old size, and the report tells at which other ones it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from graphopt import inference
from graphopt.errors import UserError
from graphopt.passbase import Before, Case, Cases, Pass, PreconditionError, Result, param
from graphopt.passes.surgery import _axes, _axes_cases, _axes_grow, _names
from graphopt.passes.surgery._axes_grow import Grown, Request

_COUNTS = (1, 2, 3, 5)
"""Numbers of samples at which a model is verified, besides its old one."""


@dataclass(frozen=True)
class MakeDynamic(Pass):
    """Let callers choose the size of an axis."""

    axes: tuple[str, ...] = param((), "Axes as input:axis=name; by default the first of every input, as batch.")
    samples: str = param(
        "", "Name of the axis that holds independent samples, or none; by default that of the first axis of an input."
    )

    def call(self, model: ir.Model) -> Result:
        """Change in place; the report tells the new shapes of outputs, and counts what was mended."""
        requests, skipped = self._requests(model)
        if not requests:
            return Result(model, False, skipped=skipped)
        grown = _axes_grow.grow(model, requests)
        report: dict[str, Any] = {
            "inputs": {f"{name}:{axis}": request.name for request in requests for name, axis in request.places},
            "outputs": {value.name: str(value.shape) for value in model.graph.outputs},
        }
        for some in grown:
            for what, count in some.edits.items():
                report[what] = report.get(what, 0) + count
        return Result(model, True, report, skipped, cases=_cases(model, requests, grown, report))

    def _requests(self, model: ir.Model) -> tuple[list[Request], list[tuple[str, str]]]:
        """Return what is to be done, and what was asked for and is so already."""
        ports = {value.name or "": value for value in model.graph.inputs}
        if not self.axes:
            return self._default(model)
        chosen: dict[str, list[tuple[str, int]]] = {}
        skipped = []
        sizes: dict[str, int] = {}
        for place, name in _names.pairs(self.pass_name(), self.axes):
            port, axis = _axes.place(self.pass_name(), place, ports)
            dim = (inference.dims(ports[port].shape) or ())[axis]
            if name.isdecimal():
                raise UserError(
                    f"{self.pass_name()}: an axis cannot be called '{name}', which is a size; use set-shape"
                )
            if not isinstance(dim, int) or dim < 0:
                if dim != name:
                    raise UserError(
                        f"{self.pass_name()}: axis {axis} of '{port}' is dynamic already; rename it with graphopt rename"
                    )
                skipped.append((f"{port}:{axis}", "is dynamic already"))
                continue
            if sizes.setdefault(name, dim) != dim:
                raise UserError(
                    f"{self.pass_name()}: axis {axis} of '{port}' is of size {dim}, others called '{name}' are of size "
                    f"{sizes[name]}; give it another name"
                )
            if (port, axis) in [place for places in chosen.values() for place in places]:
                raise UserError(f"{self.pass_name()}: axis {axis} of '{port}' is given twice; name it once")
            chosen.setdefault(name, []).append((port, axis))
        if self.samples not in ("", "none", *chosen) and chosen:
            raise UserError(
                f"{self.pass_name()}: no axis is called '{self.samples}', which is to hold samples; name it in axes"
            )
        return [
            Request(name, sizes[name], places, self._holds_samples(name, places)) for name, places in chosen.items()
        ], skipped

    def _holds_samples(self, name: str, places: Sequence[tuple[str, int]]) -> bool:
        if self.samples:
            return name == self.samples
        return name == "batch" or any(axis == 0 for _, axis in places)

    def _default(self, model: ir.Model) -> tuple[list[Request], list[tuple[str, str]]]:
        ports = [
            v for v in model.graph.inputs if not v.is_initializer() and (inference.dims(v.shape) or v.shape is None)
        ]
        first = {v.name or "": (inference.dims(v.shape) or (None,))[0] for v in ports}
        fixed = {name: dim for name, dim in first.items() if isinstance(dim, int) and dim >= 0}
        if not fixed:
            return [], [(name, "its first axis is dynamic already") for name in first]
        if len(fixed) < len(first) or len(set(fixed.values())) > 1:
            told = ", ".join(f"{name}: {'dynamic' if dim is None else dim}" for name, dim in first.items())
            raise PreconditionError(
                f"the first axes of the inputs differ ({told}); say with axes which ones hold the batch"
            )
        name = "batch" if self.samples in ("", "none") else self.samples
        return [Request(name, next(iter(fixed.values())), [(n, 0) for n in fixed], self.samples != "none")], []


def _cases(model: ir.Model, requests: Sequence[Request], grown: Sequence[Grown], report: dict[str, Any]) -> Cases:
    """Verify samples at several sizes; for other axes add to the report at which sizes the model runs."""
    plain = [request for request in requests if not request.samples]

    def cases(before: Before) -> list[Case]:
        found = []
        if plain:
            found += _axes_cases.at_old_size(before)
            report["sizes"] = _axes_cases.sizes_that_run(before, model, plain)
        for request, some in zip(requests, grown, strict=True):
            if request.samples:
                counts = sorted({*_COUNTS, request.size})
                found += _axes_cases.of_samples(before, model, request, some, counts)
                report["verified at"] = counts
        return found

    return cases
