"""Change the layout of inputs and outputs: channels last (NHWC) or channels second (NCHW)

`change-layout MODEL --inputs image --outputs mask --to nhwc` lets callers give and get [N, H, W, C] where the model
has [N, C, H, W]. Tensors of rank 3 and 5 go likewise, as [N, L, C] and [N, D, H, W, C]. Names, order and types stay.

A Transpose behind the input, or before the output, does it. Where the model has a Transpose there itself, both become
one, or none where they undo each other: Transpose(Transpose(x, p), q) = Transpose(x, p[q]). Everything else in the
model keeps its layout.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from graphopt import graphs, inference
from graphopt.passbase import Before, Case, Cases, Pass, PreconditionError, Result, param
from graphopt.passes.surgery import _names, _ports
from graphopt.runtime import Arrays

_RANKS = (3, 4, 5)
_COLOURS = (1, 3, 4)
"""Sizes of an axis that look like the channels of an image."""


@dataclass(frozen=True)
class ChangeLayout(Pass):
    """Transpose inputs and outputs."""

    inputs: tuple[str, ...] = param((), "Inputs to change.")
    outputs: tuple[str, ...] = param((), "Outputs to change.")
    to: Literal["nhwc", "nchw"] = param("nhwc", "Layout that they get: channels last, or channels second.")

    def call(self, model: ir.Model) -> Result:
        """Change in place; the report tells the new shapes, and the number of Transposes before and after."""
        if not (self.inputs or self.outputs):
            raise PreconditionError("nothing to change; name inputs or outputs")
        before = _transposes(model)
        report: dict[str, Any] = {"inputs": {}, "outputs": {}}
        skipped: list[tuple[str, str]] = []
        taken = graphs.names(model)
        for kind, names, values in (
            ("input", self.inputs, model.graph.inputs),
            ("output", self.outputs, model.graph.outputs),
        ):
            _names.once(self.pass_name(), names)
            known = {value.name or "": value for value in values}
            for name in names:
                value = _names.find(self.pass_name(), kind, name, known)
                dims = _ports.dims(model, value)
                if len(dims) not in _RANKS:
                    raise PreconditionError(f"'{name}' has rank {len(dims)}; layouts are of rank 3, 4 or 5")
                if _looks_done(dims, self.to):
                    skipped.append((name, f"is {self.to} already, by its shape {_ports.text(dims)}"))
                    continue
                perm = _permutation(self.to, len(dims))
                turned = tuple(dims[axis] for axis in perm)
                turn = _turn_input if kind == "input" else _turn_output
                turn(model, value, ir.Shape(turned), perm, taken)
                report[f"{kind}s"][name] = _ports.text(turned)
        report["transposes"] = [before, _transposes(model)]
        changed = bool(report["inputs"] or report["outputs"])
        cases = _cases(self.to, list(report["inputs"]), list(report["outputs"])) if changed else None
        return Result(model, changed, report, skipped, cases=cases)


def _permutation(to: str, rank: int) -> list[int]:
    """Return which axis of the other layout each axis of this one is."""
    return [0, *range(2, rank), 1] if to == "nhwc" else [0, rank - 1, *range(1, rank - 1)]


def _looks_done(dims: Sequence[inference.Dim], to: str) -> bool:
    """Tell whether sizes are those of an image in this layout, and not in the other one."""
    there, elsewhere = (dims[-1], dims[1]) if to == "nhwc" else (dims[1], dims[-1])
    return there in _COLOURS and elsewhere not in _COLOURS


def _turn_input(model: ir.Model, old: ir.Value, shape: ir.Shape, perm: list[int], taken: Counter[str]) -> None:
    """Put a Transpose that undoes `perm` behind an input, unless Transposes that are there take it up."""
    _ports.check_input(old)
    new = ir.Value(name=old.name, type=old.type, shape=shape)
    recorder = _ports.Recorder(old.name or "", taken)
    inner = recorder.add("Transpose", [new], "turned", {"perm": [perm.index(axis) for axis in range(len(perm))]})
    _ports.replace_input(model.graph, old, new, inner)
    recorder.prepend_to(model.graph)
    for user in list(inner.consumers()):
        _join(user, taken)
    graphs.discard(inner)


def _turn_output(model: ir.Model, old: ir.Value, shape: ir.Shape, perm: list[int], taken: Counter[str]) -> None:
    """Put Transpose(perm) before an output, or into the Transpose that is there."""
    if old.is_graph_input():
        raise PreconditionError(f"output '{old.name}' is also an input, which would change with it")
    recorder = _ports.Recorder(old.name or "", taken)
    new = recorder.add("Transpose", [old], "turned", {"perm": perm})
    recorder.append_to(model.graph)
    outputs = model.graph.outputs
    outputs[:] = [new if value is old else value for value in outputs]
    graphs.rename(model, {old: new.name or "", new: old.name or ""})
    new.type, new.shape = old.type, shape
    node = new.producer()
    assert node is not None
    _join(node, taken)
    graphs.discard(old)


def _join(node: ir.Node, taken: Counter[str]) -> None:
    """Let a Transpose of a Transpose become one, or vanish where they undo each other."""
    value = node.inputs[0] if graphs.is_op(node, "Transpose") else None
    first = value.producer() if value is not None else None
    if first is None or not graphs.is_op(first, "Transpose"):
        return
    source, result = first.inputs[0], node.outputs[0]
    assert source is not None
    if node.graph is not first.graph and taken[source.name or ""] > 1:
        return  # a control-flow body, in which this name may mean another value
    inner, outer = (list(n.attributes["perm"].as_ints()) if "perm" in n.attributes else [] for n in (first, node))
    backwards = list(range(len(inner or outer)))[::-1]  # what a missing perm means; the other one is ours
    perm = [(inner or backwards)[axis] for axis in outer or backwards]
    if perm != sorted(perm):
        node.replace_input_with(0, source)
        node.attributes.add(ir.AttrInt64s("perm", perm))
    elif graphs.redirect(result, source, taken):
        graphs.compute_by_identity(result, source)
    graphs.discard(result)


def _transposes(model: ir.Model) -> int:
    return sum(graphs.is_op(node, "Transpose") for node in model.graph.all_nodes())


def _cases(to: str, inputs: Collection[str], outputs: Collection[str]) -> Cases:
    def turned(arrays: Arrays, names: Collection[str]) -> dict[str, np.ndarray]:
        return {
            name: np.ascontiguousarray(array.transpose(_permutation(to, array.ndim))) if name in names else array
            for name, array in arrays.items()
        }

    def cases(before: Before) -> list[Case]:
        return [Case(turned(feeds, inputs), turned(before.run(feeds), outputs)) for feeds in before.feeds]

    return cases
