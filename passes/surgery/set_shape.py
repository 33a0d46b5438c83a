"""Fix the sizes of dynamic axes

`set-shape MODEL --axes image:0=8` fixes the first axis of an input, `--axes batch=8` every axis called "batch"; axes of
the same name have the same size, so both fix all of them. Sizes of inner values and outputs are worked out again, and
what the file declares about them otherwise goes. Nodes stay as they are: `simplify` then folds what depended on the sizes.

An axis that is fixed already cannot be given another size without following it through the graph: `make-dynamic` does
that first. It is verified on inputs of the new sizes, which the model as it was must run on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt import inference, inputs
from graphopt.errors import UserError
from graphopt.passbase import Before, Case, Pass, PreconditionError, Result, param
from graphopt.passes.surgery import _axes, _names
from graphopt.runtime import Arrays


@dataclass(frozen=True)
class SetShape(Pass):
    """Give dynamic axes a size."""

    axes: tuple[str, ...] = param((), "Axes and their sizes, as name=size or input:axis=size.")

    def call(self, model: ir.Model) -> Result:
        """Fix in place; the report tells the shapes of inputs and outputs."""
        if not self.axes:
            raise PreconditionError("it needs axes, such as batch=8 or image:0=8")
        names, places, skipped = self._sizes(model)
        if not names and not places:
            return Result(model, False, skipped=skipped)
        for value in model.graph.inputs:
            for axis, dim in enumerate(inference.dims(value.shape) or ()):
                size = places.get((value.name or "", axis), names.get(dim) if isinstance(dim, str) else None)
                if size is not None:
                    assert value.shape is not None
                    value.shape = ir.Shape([*value.shape[:axis], size, *value.shape[axis + 1 :]])
        _declare_again(model, names)
        ports = {"inputs": model.graph.inputs, "outputs": model.graph.outputs}
        report = {kind: {value.name: str(value.shape) for value in values} for kind, values in ports.items()}
        return Result(model, True, report, skipped, cases=lambda before: _cases(before, model))

    def _sizes(self, model: ir.Model) -> tuple[dict[str, int], dict[tuple[str, int], int], list[tuple[str, str]]]:
        """Return sizes of named axes, sizes of nameless ones, and what has the size that is asked for."""
        ports = {value.name or "": value for value in model.graph.inputs}
        known = {
            dim: None for value in ports.values() for dim in inference.dims(value.shape) or () if isinstance(dim, str)
        }
        names: dict[str, int] = {}
        places: dict[tuple[str, int], int] = {}
        skipped = []
        for entry, text in _names.pairs(self.pass_name(), self.axes):
            if not text.isdecimal():
                raise UserError(
                    f"{self.pass_name()}: '{text}' is no size; rename gives an axis another name, make-dynamic makes it "
                    "dynamic"
                )
            name, place = entry, None
            if entry not in known:
                port, colon, number = entry.rpartition(":")
                if not colon or not number.lstrip("-").isdecimal():
                    _names.find(self.pass_name(), "dynamic axis", entry, known)
                place = self._place(port, int(number), ports)
                dim = (inference.dims(ports[place[0]].shape) or ())[place[1]]
                if isinstance(dim, int) and dim >= 0:
                    if dim != int(text):
                        raise UserError(
                            f"{self.pass_name()}: axis {place[1]} of '{place[0]}' is fixed at {dim}; run "
                            f"'make-dynamic{{axes={entry}=name}}' first"
                        )
                    skipped.append((entry, f"is {dim} already"))
                    continue
                name = dim if isinstance(dim, str) else ""
            if name and names.setdefault(name, int(text)) != int(text):
                raise UserError(f"{self.pass_name()}: axis '{name}' is given two sizes, {names[name]} and {text}")
            if not name and place is not None:
                places[place] = int(text)
        return names, places, skipped

    def _place(self, port: str, axis: int, ports: Mapping[str, ir.Value]) -> tuple[str, int]:
        value = _names.find(self.pass_name(), "input", port, ports)
        if value.shape is None:
            raise UserError(f"{self.pass_name()}: the rank of '{port}' is unknown; export the model with a shape")
        rank = len(value.shape)
        if not -rank <= axis < rank:
            raise UserError(f"{self.pass_name()}: '{port}' has no axis {axis}, it is of rank {rank}")
        return port, axis % rank


def _declare_again(model: ir.Model, names: Mapping[str, int]) -> None:
    """Drop declared sizes in which a fixed axis occurs, and write down what follows from the inputs now."""
    for value in _axes.values(model):
        dims = inference.dims(value.shape)
        if dims and not value.is_graph_input() and any(_mentions(dim, names) for dim in dims):
            value.shape = ir.Shape([None if _mentions(dim, names) else dim for dim in dims])
    for value, known in inference.infer(model).items():
        if not value.is_graph_input() and value.shape is not None:
            value.shape = known.refines(value.shape)


def _mentions(dim: inference.Dim, names: Mapping[str, int]) -> bool:
    return isinstance(dim, str) and (dim in names or any(word in names for word in _axes.words(dim)))


def _cases(before: Before, model: ir.Model) -> list[Case]:
    """Return what the model computed on inputs of the new sizes."""
    shapes = {value.name: inference.dims(value.shape) for value in model.graph.inputs}
    fitting: Sequence[Arrays] = [
        feeds for feeds in before.feeds if all(_fits(array.shape, shapes[name]) for name, array in feeds.items())
    ]
    if not fitting:
        try:
            fitting = inputs.generate(model, before, before.seed)
        except inputs.CannotGenerate as reason:
            raise PreconditionError(f"the model does not run at these sizes: {reason}") from None
    return [Case(feeds, before.run(feeds)) for feeds in fitting]


def _fits(shape: tuple[int, ...], declared: tuple[inference.Dim, ...] | None) -> bool:
    if declared is None:
        return True
    pairs = zip(shape, declared, strict=True) if len(shape) == len(declared) else [(0, -1)]
    return all(size == dim for size, dim in pairs if isinstance(dim, int))
