"""Give an axis of graph inputs a name in place of its size, and follow it to the outputs"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir
import onnx_shape_inference
from onnx_ir.passes.common import InlinePass

from graphopt import graphs, inference
from graphopt.passbase import PreconditionError
from graphopt.passes.surgery import _axes_rules
from graphopt.passes.surgery._axes_walk import Dim, Old, Walk

_WELL_KNOWN = 13
"""Opset from which on inference knows practically all operators."""
_IR_VERSION = 4
"""First IR version in which an initializer need not be a graph input."""
_WORD = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class Request:
    """What is to become of an axis.

    Attributes:
        name: what it is called from now on.
        size: what its size is.
        places: inputs that have it, and where.
        samples: whether it holds samples.
    """

    name: str
    size: int
    places: Sequence[tuple[str, int]]
    samples: bool


@dataclass(frozen=True)
class Grown:
    """What came of it.

    Attributes:
        layout: axis and lead (see `_axes_walk`) of the samples in every value of the main graph that holds some, by name.
        edits: how many changes were made, by what they are.
    """

    layout: Mapping[str, tuple[int, int]]
    edits: Mapping[str, int] = field(default_factory=dict)


def grow(model: ir.Model, requests: Sequence[Request]) -> list[Grown]:
    """Make axes dynamic, one after the other; a model that refuses stays as it was.

    Raises:
        PreconditionError: the message names the node at which an axis cannot be followed, and what may help.
    """
    work = model.clone()
    try:
        grown = [_grow(work, request) for request in requests]
    except PreconditionError as reason:
        raise PreconditionError(f"{reason}{_advice(model)}") from None
    model.graph = work.graph
    for key in [key for key in model.functions if key not in work.functions]:
        del model.functions[key]
    return grown


def _advice(model: ir.Model) -> str:
    """Return which passes may make a model easier to follow."""
    helpful = []
    if any(value.is_initializer() for value in model.graph.inputs):
        helpful.append("freeze-defaults")
    if model.opset_imports.get("", _WELL_KNOWN) < _WELL_KNOWN:
        helpful.append(f"'convert-opset{{to={_WELL_KNOWN}}}'")
    return f"; {' and '.join(helpful)} before it may help" if helpful else ""


def _grow(model: ir.Model, request: Request) -> Grown:
    """Make one axis dynamic in place; a model that refuses is of no use afterwards."""
    if model.functions:
        InlinePass()(model)
    ports = {value.name: value for value in model.graph.inputs}
    declared = {
        value: (value.shape, value.type) for graph in graphs.every(model) for value in graphs.definitions(graph)
    }
    names = _Names(model, request)
    for value in model.graph.inputs:
        if value.is_initializer() and any(value.name == name for name, _ in request.places):
            raise PreconditionError(f"input '{value.name}' has a default value, which is of the fixed size")
        value.shape = names.inside(value.shape)
    fixed = {value: value.shape for value in model.graph.inputs}
    symbol = names.alias(request.name)
    for value in model.graph.inputs:
        value.shape = _with(value.shape, {symbol: request.size})
    before = _before(model, declared, names)
    for value, shape in fixed.items():
        value.shape = shape
    for port, axis in request.places:
        shape = ports[port].shape
        assert shape is not None
        ports[port].shape = ir.Shape([ir.SymbolicDim(symbol) if i == axis else dim for i, dim in enumerate(shape)])
    _forget(model)
    source = (ports[request.places[0][0]], request.places[0][1])
    walk = Walk(model, symbol, request.size, source, before, samples=request.samples)
    walk.run(_axes_rules.RULES, _axes_rules.check_samples if request.samples else None)
    layout = {}
    for value in graphs.definitions(model.graph):
        place = walk.place(value)
        if request.samples and place is not None and value.name:
            layout[value.name] = (place, walk.lead(value))
    _declare(model, declared, names, walk)
    if any(value not in declared for value in model.graph.initializers.values()):
        model.ir_version = max(model.ir_version, _IR_VERSION)
    return Grown(layout, dict(walk.edits))


class _Names:
    """Names of dynamic axes, which may be any text, and what they are called in expressions."""

    def __init__(self, model: ir.Model, request: Request) -> None:
        self._alias = {request.name: "n0"}
        self._name = {"n0": request.name}
        self._nameless = 0
        for value in model.graph.inputs:
            for dim in inference.dims(value.shape) or ():
                if isinstance(dim, str):
                    self.alias(dim)

    def alias(self, name: str) -> str:
        alias = self._alias.setdefault(name, f"n{len(self._alias)}")
        self._name.setdefault(alias, name)
        return alias

    def inside(self, shape: ir.Shape | None) -> ir.Shape | None:
        """Return a shape with aliases; nameless axes get names that mean nothing outside."""
        if shape is None:
            return None
        dims = inference.dims(shape) or ()
        return ir.Shape([self._inside(dim) for dim in dims])

    def _inside(self, dim: inference.Dim) -> int | str:
        if isinstance(dim, int) and dim >= 0:
            return dim
        if isinstance(dim, str):
            return self.alias(dim)
        self._nameless += 1
        return f"nameless{self._nameless}"

    def outside(self, dim: Dim) -> int | str | None:
        """Return a size as a file may declare it; None if it depends on what no input tells."""
        if isinstance(dim, int):
            return dim
        expression = dim.value or ""
        if expression in self._name:
            return self._name[expression]
        words = set(_WORD.findall(expression)) - {"floor", "ceiling", "Max", "Min", "Mod", "max", "min", "mod"}
        if not words or not all(w in self._name and _WORD.fullmatch(self._name[w]) for w in words):
            return None
        return _WORD.sub(lambda word: self._name.get(word[0], word[0]), expression)

    def known(self, dim: inference.Dim) -> inference.Dim:
        """Return a size that inference found, or None if it is one of the names that it makes up."""
        if not isinstance(dim, str):
            return dim
        words = set(_WORD.findall(dim))
        return dim if all(not word.startswith("_d") for word in words) else None


def _with(shape: ir.Shape | None, sizes: Mapping[str, int]) -> ir.Shape | None:
    return None if shape is None else ir.Shape([sizes.get(str(d), d) if not isinstance(d, int) else d for d in shape])


def _before(
    model: ir.Model, declared: Mapping[ir.Value, tuple[ir.Shape | None, ir.TypeProtocol | None]], names: _Names
) -> dict[ir.Value, Old]:
    """Return the shapes that everything has while the size is fixed."""
    found: dict[ir.Value, Old] = {}
    for value, known in inference.infer(model).items():
        dims = known.dims()
        shape = declared[value][0] if value in declared else None
        told = inference.dims(shape)
        if dims is None and told is not None:
            dims = tuple(dim if isinstance(dim, int) else None for dim in told)
        elif dims is not None and told is not None and len(told) == len(dims):
            dims = tuple(
                t if names.known(d) is None and isinstance(t, int) else d for d, t in zip(dims, told, strict=True)
            )
        if dims is not None:
            found[value] = tuple(names.known(dim) for dim in dims)
    return found


def _forget(model: ir.Model) -> None:
    """Take away what is known of computed values, and of what bodies get."""
    for graph in graphs.every(model):
        for node in graph:
            for value in node.outputs:
                value.shape = value.type = None
                value.const_value = None
        if graph is not model.graph:
            for value in graph.inputs:
                value.shape = None


def _declare(
    model: ir.Model,
    declared: Mapping[ir.Value, tuple[ir.Shape | None, ir.TypeProtocol | None]],
    names: _Names,
    walk: Walk,
) -> None:
    """Write down the new shapes where there were declarations, and at the outputs."""
    for graph in graphs.every(model):
        for value in graphs.definitions(graph):
            if value.is_initializer() and not value.is_graph_input():
                continue
            new = walk.dims(value)
            shape, type_ = declared.get(value, (None, value.type))
            value.shape = None
            if new is not None and (shape is not None or value.is_graph_output() or value.is_graph_input()):
                told = inference.dims(shape)
                dims = [names.outside(dim) for dim in new]
                if told is not None and len(told) == len(dims):
                    pairs = zip(dims, told, strict=True)
                    steady = walk.samples and any(map(walk.grows, new))  # then the other axes are as they were
                    dims = [t if dim is None and (steady or not isinstance(t, int)) else dim for dim, t in pairs]
                value.shape = ir.Shape(dims)
            value.type = type_
            if value.producer() is not None:
                value.const_value = None
            value.metadata_props.pop(onnx_shape_inference.SYM_DATA_KEY, None)
