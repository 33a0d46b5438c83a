"""Fix the sizes of dynamic axes, or change fixed ones

`set-shape MODEL --axes image:0=8` fixes the first axis of an input, `--axes batch=8` every axis called "batch"; axes of
the same name have the same size, so both fix all of them. Sizes of inner values and outputs are worked out again, and
what the file declares about them otherwise goes. Nodes stay as they are: `simplify` then folds what depended on the sizes.
It is verified on inputs of the new sizes, which the model as it was must run on.

An axis that is fixed at another size is followed through the graph first, as `make-dynamic` does it; several that go from
the same size to the same size are one axis (`--axes image:0=8,mask:0=8`). First axes hold samples: 8 at once must give what
they give one by one. Along others the model is verified before it gets the new size, which it must run at.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from graphopt import compare, graphs, inference, inputs, runtime
from graphopt.errors import UserError
from graphopt.passbase import EXACT, Before, Case, Pass, PreconditionError, Result, param
from graphopt.passes.surgery import _axes, _axes_cases, _axes_grow, _names
from graphopt.passes.surgery._axes_grow import Grown, Request
from graphopt.runtime import Arrays

_PLACE = re.compile(r".*:-?\d+", re.DOTALL)


@dataclass(frozen=True)
class SetShape(Pass):
    """Give axes a size."""

    axes: tuple[str, ...] = param((), "Axes and their sizes, as name=size or input:axis=size.")

    def call(self, model: ir.Model) -> Result:
        """Fix in place; the report tells the shapes of inputs and outputs, and counts what had to be mended."""
        if not self.axes:
            raise PreconditionError("it needs axes, such as batch=8 or image:0=8")
        names, places, changes, skipped = self._sizes(model)
        if not (names or places or changes):
            return Result(model, False, skipped=skipped)
        grown = _axes_grow.grow(model, [request for request, _ in changes])
        loose = model.clone()
        names |= {request.name: size for request, size in changes}
        for value in model.graph.inputs:
            for axis, dim in enumerate(inference.dims(value.shape) or ()):
                size = places.get((value.name or "", axis), names.get(dim) if isinstance(dim, str) else None)
                if size is not None:
                    assert value.shape is not None
                    value.shape = ir.Shape([*value.shape[:axis], size, *value.shape[axis + 1 :]])
        _declare_again(model, names)
        ports = {"inputs": model.graph.inputs, "outputs": model.graph.outputs}
        report: dict[str, Any] = {kind: {v.name: str(v.shape) for v in values} for kind, values in ports.items()}
        report |= dict(sum((Counter(some.edits) for some in grown), Counter()))

        def cases(before: Before) -> list[Case]:
            for (request, size), some in zip(changes, grown, strict=True):
                _check_followed(before, loose, request, some, size)
            return _cases(before, loose if changes else None, model)

        return Result(model, True, report, skipped, cases=cases)

    def _sizes(
        self, model: ir.Model
    ) -> tuple[dict[str, int], dict[tuple[str, int], int], list[tuple[Request, int]], list[tuple[str, str]]]:
        """Return sizes of named axes, of nameless ones and of fixed ones that change, and what needs nothing."""
        ports = {value.name or "": value for value in model.graph.inputs}
        known = {
            dim: None for value in ports.values() for dim in inference.dims(value.shape) or () if isinstance(dim, str)
        }
        names: dict[str, int] = {}
        places: dict[tuple[str, int], int] = {}
        changes: dict[tuple[int, int, int], list[tuple[str, int]]] = {}
        skipped = []
        for entry, text in _names.pairs(self.pass_name(), self.axes):
            if not text.isdecimal():
                raise UserError(
                    f"{self.pass_name()}: '{text}' is no size; rename gives an axis another name, make-dynamic makes it "
                    "dynamic"
                )
            name, place, size = entry, None, int(text)
            if entry not in known:
                if not _PLACE.fullmatch(entry):
                    _names.find(self.pass_name(), "dynamic axis", entry, known)
                place = _axes.place(self.pass_name(), entry, ports)
                dim = (inference.dims(ports[place[0]].shape) or ())[place[1]]
                if isinstance(dim, int) and dim >= 0:
                    if dim == size:
                        skipped.append((entry, f"is {dim} already"))
                    else:
                        _add_change(changes, place, dim, size)
                    continue
                name = dim if isinstance(dim, str) else ""
            if name and names.setdefault(name, size) != size:
                raise UserError(f"{self.pass_name()}: axis '{name}' is given two sizes, {names[name]} and {text}")
            if place is not None and (not name) and places.setdefault(place, size) != size:
                raise UserError(f"{self.pass_name()}: axis '{entry}' is given two sizes, {places[place]} and {text}")
        return names, places, _requests(changes, known), skipped


def _add_change(
    changes: dict[tuple[int, int, int], list[tuple[str, int]]], place: tuple[str, int], old: int, new: int
) -> None:
    """Join axes of several inputs that change alike; two of one input are two axes."""
    for others in changes.values():
        if place in others:
            raise UserError(f"set-shape: axis {place[1]} of '{place[0]}' is given twice; name it once")
    number = sum(key[:2] == (old, new) and place[0] in dict(others) for key, others in changes.items())
    changes.setdefault((old, new, number), []).append(place)


def _requests(
    changes: Mapping[tuple[int, int, int], list[tuple[str, int]]], known: Collection[str]
) -> list[tuple[Request, int]]:
    """Name the axes that change, and return what to do with the size that each gets."""
    taken = Counter(known)
    found = []
    for (old, new, _), places in changes.items():
        samples = any(axis == 0 for _, axis in places)
        name = graphs.fresh("batch" if samples else "size", taken)
        found.append((Request(name, old, places, samples), new))
    return found


def _check_followed(before: Before, loose: ir.Model, request: Request, grown: Grown, size: int) -> None:
    """Hold the model in which a fixed axis has become dynamic against the one before.

    Raises:
        PreconditionError: it computes something else.
    """
    if request.samples:
        _axes_cases.of_samples(before, loose, request, grown, sorted({request.size, size}))
        return
    session = runtime.open_session(loose, before.target)
    for case in _axes_cases.at_old_size(before):
        wrong = compare.first_mismatch(case.expected, session.run(case.feeds), EXACT.rtol)
        if wrong:
            raise PreconditionError(f"with a dynamic axis in place of size {request.size}, {wrong}")


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


def _cases(before: Before, loose: ir.Model | None, model: ir.Model) -> list[Case]:
    """Return what the model computed on inputs of the new sizes, or the one in which fixed axes had become dynamic."""
    source = before if loose is None else runtime.open_session(loose, before.target)
    shapes = {value.name: inference.dims(value.shape) for value in model.graph.inputs}
    fitting: Sequence[Arrays] = [
        feeds for feeds in before.feeds if all(_fits(array.shape, shapes[name]) for name, array in feeds.items())
    ]
    if not fitting:
        try:
            fitting = inputs.generate(model, source, before.seed)
        except inputs.CannotGenerate as reason:
            raise PreconditionError(f"the model does not run at these sizes: {reason}") from None
    return [Case(feeds, source.run(feeds)) for feeds in fitting]


def _fits(shape: tuple[int, ...], declared: tuple[inference.Dim, ...] | None) -> bool:
    if declared is None:
        return True
    pairs = zip(shape, declared, strict=True) if len(shape) == len(declared) else [(0, -1)]
    return all(size == dim for size, dim in pairs if isinstance(dim, int))
