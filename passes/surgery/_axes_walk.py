"""Follow an axis whose size was fixed through a graph, node by node

The axis gets a symbol in place of its size. onnx-shape-inference says, for one node at a time, what size everything then
has; a rule of the operator (`_axes_rules`) first mends the constants that hold on to the old size. What a value's shape
was before is known from inference on the untouched model, so that every step can be checked: with the old size put in
for the symbol, the new shape must be the old one.

Samples are an axis along which the model treats every index on its own. Each value then has the symbol on one axis at
most, of size lead * samples * inner: where a Reshape merged axes, sample i lies at positions
[(l * samples + i) * inner, (l * samples + i + 1) * inner) for l < lead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import onnx_ir as ir
import onnx_shape_inference

from graphopt import graphs
from graphopt.passbase import PreconditionError

Dim = int | ir.SymbolicDim
Dims = Sequence[Dim]
Old = Sequence[int | str | None]

ELEMENTWISE = [
    "Add",
    "And",
    "BiasGelu",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "Clip",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Or",
    "Pow",
    "PRelu",
    "Sub",
    "Sum",
    "Where",
    "Xor",
]
"""Operators whose inputs broadcast against each other."""

ANY = 0
"""The lead of a value that is the same for all samples: they lie in every order."""
_UNINFERABLE = (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError)
"""What onnx-shape-inference raises on nodes that it cannot make sense of."""
_STAND_INS = {("com.microsoft", "FusedConv"): ("", "Conv")}
"""Operators without shape inference of their own, and the one that has the same output."""


@dataclass(frozen=True)
class Size:
    """A size that is read at run time: that of one axis of a value, times a number."""

    value: ir.Value
    axis: int
    times: int = 1


@dataclass(frozen=True)
class Pick:
    """An element of a vector that the model computes."""

    vector: ir.Value
    index: int


Part = int | Size | Pick


class Walk:
    """The state of following one axis.

    Attributes:
        model: is changed on the way.
        symbol: stands for the new size.
        size: what the size was.
        samples: whether every index along the axis is treated on its own.
        before: the shape of every value while the size was fixed.
        edits: how many changes were made, by what they are.
        merged: by a size that is a product, the sizes, old sizes and places that a Reshape merged into it.
    """

    def __init__(
        self,
        model: ir.Model,
        symbol: str,
        size: int,
        source: tuple[ir.Value, int],
        before: Mapping[ir.Value, Old],
        *,
        samples: bool,
    ) -> None:
        """Begin; the shapes of graph inputs hold the symbol already, and those of computed values are unknown."""
        self.model, self.symbol, self.size, self.samples = model, ir.SymbolicDim(symbol), size, samples
        self.before = before
        self.edits: Counter[str] = Counter()
        self.merged: dict[str, list[tuple[Dim, int, Size]]] = {}
        self._source = source
        self._leads: dict[ir.Value, int] = {}
        self._taken = graphs.names(model)
        self._read: dict[Size, ir.Value] = {}
        self._carried: dict[tuple[ir.Value, int], ir.Value] = {}
        onnx_shape_inference.registry.collect()
        self._context = onnx_shape_inference.ShapeInferenceContext(model.opset_imports, policy="override")
        for graph in graphs.every(model):
            for value in graph.initializers.values():
                if value.const_value is not None and not value.is_graph_input():
                    value.shape = ir.Shape(value.const_value.shape.numpy())

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return self.model.opset_imports.get("", 0)

    def dims(self, value: ir.Value | None) -> Dims | None:
        """Return the shape of a value now; None where its rank is unknown."""
        return None if value is None or value.shape is None else value.shape.dims

    def old(self, value: ir.Value | None) -> Old | None:
        """Return the shape of a value before."""
        return None if value is None else self.before.get(value)

    def grows(self, dim: Dim | None) -> bool:
        """Tell whether a size varies with the axis."""
        return isinstance(dim, ir.SymbolicDim) and dim.value is not None and self.symbol.value in dim.free_symbols()

    def axes(self, value: ir.Value | None) -> list[int]:
        """Return the axes of a value whose sizes vary with the one that is followed."""
        return [axis for axis, dim in enumerate(self.dims(value) or ()) if self.grows(dim)]

    def place(self, value: ir.Value | None) -> int | None:
        """Return the axis of a value on which the samples lie."""
        return next(iter(self.axes(value)), None)

    def factor(self, dim: Dim) -> Dim | None:
        """Return how many times the symbol a size is; None if it is no multiple."""
        if isinstance(dim, int):
            return None
        quotient = plain(dim // self.symbol)
        return quotient if plain(quotient * self.symbol) == dim else None

    def lead(self, value: ir.Value) -> int:
        """Return how many runs of samples lie one after the other on their axis."""
        return self._leads.get(value, 1) or 1

    def set_lead(self, value: ir.Value, lead: int) -> None:
        """Note how the samples lie in a value."""
        self._leads[value] = lead

    def was(self, dim: Dim) -> Dim:
        """Return what a size was before."""
        return plain(dim.evaluate({str(self.symbol.value): self.size})) if self.grows(dim) else dim  # type: ignore[union-attr]

    def elements(self, value: ir.Value | None) -> list[Dim] | None:
        """Return the elements of a vector or scalar of integers, as far as they are known."""
        found = None if value is None else self._context.get_symbolic_value(value)
        return None if found is None else [plain(element) for element in found]

    def ints(self, node: ir.Node, index: int, name: str) -> list[int] | None:
        """Return constant integers that are an input of the node, or an attribute of it in older opsets."""
        found = graphs.attribute(node, name)
        if found is not None:
            return [int(i) for i in (found.as_ints() if found.type == ir.AttributeType.INTS else [found.as_int()])]
        elements = self.elements(node.inputs[index]) if index < len(node.inputs) else None
        return [e for e in elements if isinstance(e, int)] if elements is not None and _all_int(elements) else None

    def refuse(self, node: ir.Node, reason: str) -> NoReturn:
        """Give up at a node.

        Raises:
            PreconditionError: always.
        """
        raise PreconditionError(f"{graphs.label(node)} ({node.op_type}): {reason}")

    def run(
        self, rules: Mapping[str, Callable[[Walk, ir.Node], None]], verify: Callable[[Walk, ir.Node], None] | None
    ) -> None:
        """Follow the axis through the whole model.

        Args:
            rules: what to mend before the shapes of a node are inferred, by operator.
            verify: looks at a node whose shapes were inferred, if something has to.

        Raises:
            PreconditionError: the axis cannot be followed through a node, which the message names.
        """
        self._rules, self._verify = rules, verify
        self.follow(self.model.graph)

    def follow(self, graph: ir.Graph) -> None:
        """Follow the axis through the nodes of one graph."""
        for node in list(graph):
            rule = self._rules.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            if rule is not None:
                rule(self, node)
            if node.graph is None:  # a rule put others in its place
                continue
            self.infer(node)
            for value in node.outputs:
                self._settle(node, value)
            self._check(node)
            if self._verify is not None:
                self._verify(self, node)

    def infer(self, node: ir.Node) -> None:
        """Work out the shapes of a node's outputs; they stay unknown for operators that nobody knows."""
        domain, op_type = _STAND_INS.get((node.domain, node.op_type), (node.domain, node.op_type))
        function = onnx_shape_inference.registry.get(domain, op_type, self._context.get_opset_version(domain))
        if function is None:
            return
        try:
            function(self._context, node)
        except _UNINFERABLE as error:
            self.refuse(node, f"does not fit the new size: {error}")
        for value in node.outputs:
            if value.shape is not None:
                value.shape = ir.Shape([plain(dim) for dim in value.shape])

    def _settle(self, node: ir.Node, value: ir.Value) -> None:
        """Fill in sizes that inference did not find: what is not known to grow stays, as far as the rank is the same.

        An operator that nobody knows leaves an axis where it was if the result had the same size on it before; what it
        computes is verified in the end.
        """
        old, new = self.old(value), self.dims(value)
        if old is None or (new is not None and (len(new) != len(old) or not any(map(self._is_unknown, new)))):
            return
        found: list[Dim | None] = list(new) if new is not None else [None] * len(old)
        for source, _ in self.carriers(node):
            was, now = self.old(source), self.dims(source)
            for axis in self.axes(source):
                if was is None or now is None or axis >= len(old) or was[axis] != old[axis]:
                    continue
                if self._is_unknown(found[axis]) and not (self.samples and any(map(self.grows, found))):
                    found[axis] = now[axis]
        if any(map(self.grows, found)) or not any(True for _ in self.carriers(node)):
            pairs = zip(found, old, strict=True)
            kept = [
                was if isinstance(was, int) and self._is_unknown(dim) and self.samples else dim for dim, was in pairs
            ]
            value.shape = ir.Shape([self._context.new_symbolic_dim() if dim is None else dim for dim in kept])

    def _is_unknown(self, dim: Dim | None) -> bool:
        if dim is None or isinstance(dim, int):
            return dim is None
        return any(map(self._context.is_generated_symbol, dim.free_symbols()))

    def _check(self, node: ir.Node) -> None:
        """Hold the new shapes against the old ones."""
        for value in node.outputs:
            new, old = self.dims(value), self.old(value)
            if new is None or old is None:
                continue
            was = [self.was(dim) for dim in new]
            if len(was) != len(old) or any(
                isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(was, old, strict=True)
            ):
                self.refuse(node, f"'{value.name}' would be {text(was)} at the old size, and was {text(old)}")

    def add(
        self, node: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], stem: str, **attributes: object
    ) -> ir.Value:
        """Put a new node before `node`; return its output, which is named after `stem`."""
        new = ir.node(op_type, inputs, dict(attributes))
        value = new.outputs[0]
        value.name = new.name = graphs.fresh(stem, self._taken)
        graph = node.graph
        assert graph is not None
        graph.insert_before(node, new)
        self.infer(new)
        return value

    def constant(self, array: np.ndarray, stem: str) -> ir.Value:
        """Return a new initializer of the main graph."""
        return graphs.initializer(self.model.graph, array, stem, self._taken)

    def vector(self, node: ir.Node, parts: Sequence[Part], stem: str) -> ir.Value:
        """Return a vector of int64 that is made of these parts, computed before `node` where it is no constant."""
        pieces: list[ir.Value] = []
        fixed: list[int] = []
        for part in [*parts, None]:
            if isinstance(part, int):
                fixed.append(part)
                continue
            if fixed:
                pieces.append(
                    self.constant(np.array(fixed, np.int64), f"{stem}_part" if len(parts) > len(fixed) else stem)
                )
                fixed = []
            if isinstance(part, Size):
                pieces.append(self._size(node, part, stem))
            elif isinstance(part, Pick):
                index = self.constant(np.array([part.index], np.int64), f"{stem}_index")
                pieces.append(self.add(node, "Gather", [part.vector, index], f"{stem}_element", axis=0))
        return pieces[0] if len(pieces) == 1 else self.add(node, "Concat", pieces, stem, axis=0)

    def replace(self, node: ir.Node, index: int, new: ir.Value) -> None:
        """Give a node another vector; the old one goes if nothing else needs it.

        Raises:
            PreconditionError: callers may override the old one.
        """
        old = node.inputs[index]
        if old is not None and old.is_graph_input():
            self.refuse(node, f"holds on to sizes in '{old.name}', which is an input of the model")
        node.replace_input_with(index, new)
        if old is not None:
            graphs.discard(old)

    def own_size(self, times: int = 1) -> Size:
        """Return the size of the axis itself, as the graph input tells it."""
        return Size(*self._source, times)

    def _size(self, node: ir.Node, size: Size, stem: str) -> ir.Value:
        """Return a vector with one size; that of the graph input is read once, at the start."""
        if size in self._read:
            return self._read[size]
        own = size.value is self._source[0]
        first = next(iter(self.model.graph)) if own else node
        name = f"{size.value.name}_shape" if own else f"{stem}_shape"
        shape = self.add(first, "Shape", [size.value], name)
        index = self.constant(np.array([size.axis], np.int64), f"{name}_index")
        value = self.add(first, "Gather", [shape, index], f"{name}_{size.axis}", axis=0)
        if size.times != 1:
            times = self.constant(np.array([size.times], np.int64), f"{name}_times")
            value = self.add(first, "Mul", [value, times], f"{name}_{size.axis}_times")
        if own:
            self._read[size] = value
        return value

    def carry(self, node: ir.Node, index: int, axis: int) -> None:
        """Let an input of a node that is the same for all samples hold a copy for each of them, along an axis."""
        value = node.inputs[index]
        dims = self.dims(value)
        if value is None or dims is None or axis >= len(dims) or self.grows(dims[axis]):
            return
        if self.move(node, index, axis):
            return
        if dims[axis] != self.size or (self.samples and self.place(value) is not None):
            self.refuse(node, f"'{value.name}' has size {_show(dims[axis])} on axis {axis}, and not {self.size}")
        key = (value, axis)
        if key not in self._carried or node.graph is not self.model.graph:
            single = self.single(node, value, axis)
            target = self.vector(node, [self.own_size(), *[1] * (len(dims) - axis - 1)], f"{value.name}_expanded_shape")
            self._carried[key] = self.add(node, "Expand", [single, target], f"{value.name}_expanded")
            self.edits["Expand added"] += 1
        node.replace_input_with(index, self._carried[key])

    def move(self, node: ir.Node, index: int, axis: int) -> bool:
        """Put the samples of an input on another axis, and tell whether that was possible.

        All axes that had size 1 with a single sample can hold them as well.
        """
        value = node.inputs[index] if index < len(node.inputs) else None
        place, dims = self.place(value), self.dims(value)
        if value is None or place is None or dims is None or axis >= len(dims) or not self.samples:
            return False
        if self.size != 1 or dims[place] != self.symbol or dims[axis] != 1:
            return False
        perm = list(range(len(dims)))
        perm[place], perm[axis] = axis, place
        node.replace_input_with(index, self.add(node, "Transpose", [value], f"{value.name}_turned", perm=perm))
        self.edits["Transpose added"] += 1
        return True

    def single(self, node: ir.Node, value: ir.Value, axis: int) -> ir.Value:
        """Return a value of size 1 on an axis along which all its slices are equal.

        Raises:
            PreconditionError: they are not, or nobody knows.
        """
        dims = self.dims(value)
        assert dims is not None
        if dims[axis] == 1:
            return value
        array = graphs.array(value)
        if array is not None:
            first = array.take([0], axis)
            if not self._repeats(value, axis):
                self.refuse(
                    node, f"the constant '{value.name}' differs along axis {axis}, which has the fixed size {self.size}"
                )
            self.edits["constant cut to one"] += 1
            return self.constant(first, f"{value.name}_one")
        if not self._repeats(value, axis):
            self.refuse(node, f"'{value.name}' has the fixed size {dims[axis]} on axis {axis}, and may differ along it")
        bounds = [
            self.constant(np.array([i], np.int64), f"{value.name}_{name}")
            for i, name in ((0, "start"), (1, "end"), (axis, "axis"))
        ]
        self.edits["Slice added"] += 1
        return self.add(node, "Slice", [value, *bounds], f"{value.name}_one")

    def _repeats(self, value: ir.Value, axis: int) -> bool:
        """Tell whether an operator made a value the same all along an axis."""
        dims, producer = self.dims(value), value.producer()
        if dims is None:
            return False
        if axis < 0 or dims[axis] == 1:
            return True
        array = graphs.array(value)
        if array is not None:
            return bool((array == array.take([0], axis)).all())
        if producer is None or producer.domain:
            return False
        if producer.op_type == "Gather":
            return self._repeats_gathered(producer, axis)
        if producer.op_type in (*ELEMENTWISE, "Cast", "Expand", "Identity"):
            sources = producer.inputs[:1] if producer.op_type == "Expand" else producer.inputs
            return all(self._repeats(v, axis - len(dims) + len(self.dims(v) or ())) for v in sources if v is not None)
        return producer.op_type == "ConstantOfShape"

    def _repeats_gathered(self, node: ir.Node, axis: int) -> bool:
        data, indices, found = node.inputs[0], node.inputs[1], graphs.attribute(node, "axis")
        ours, theirs = self.dims(data), self.dims(indices)
        if data is None or indices is None or ours is None or theirs is None:
            return False
        start = (0 if found is None else found.as_int()) % len(ours)
        if start <= axis < start + len(theirs):
            return self._repeats(indices, axis - start)
        return self._repeats(data, axis if axis < start else axis - len(theirs) + 1)

    def inherit(self, node: ir.Node) -> None:
        """Note how the samples lie in the outputs of a node that does not reorder them.

        Raises:
            PreconditionError: it cannot be told.
        """
        sources = [(self.factor(self.dims(v)[p]), self._leads.get(v, 1)) for v, p in self.carriers(node)]  # type: ignore[index]
        for value in node.outputs:
            axis = self.place(value)
            if axis is None or value in self._leads:
                continue
            factor = self.factor(self.dims(value)[axis])  # type: ignore[index]
            if factor == 1:
                continue
            leads = {lead for other, lead in sources if other == factor}
            if len(leads) > 1:
                leads.discard(ANY)
            if len(leads) > 1 or (sources and not leads):
                self.refuse(node, "nothing tells in which order it leaves the samples")
            self._leads[value] = leads.pop() if leads else ANY

    def carriers(self, node: ir.Node) -> Iterator[tuple[ir.Value, int]]:
        """Yield the inputs of a node that hold samples, and the axis on which they do."""
        for value in dict.fromkeys(node.inputs):
            axis = self.place(value)
            if value is not None and axis is not None:
                yield value, axis


def plain(dim: Dim) -> Dim:
    """Return a size as a number where its expression is one."""
    if isinstance(dim, int) or dim.value is None:
        return dim
    found = dim.evaluate({})
    return found if isinstance(found, (int, ir.SymbolicDim)) else dim


def product(dims: Sequence[Dim]) -> Dim:
    """Return the product of sizes."""
    result: Dim = 1
    for dim in dims:
        result = plain(result * dim)
    return result


def text(dims: Sequence[object]) -> str:
    """Write a shape for people."""
    return f"[{', '.join(map(_show, dims))}]"


def _show(dim: object) -> str:
    return "?" if dim is None else str(dim.value) if isinstance(dim, ir.SymbolicDim) else str(dim)


def _all_int(elements: Sequence[Dim]) -> bool:
    return all(isinstance(element, int) for element in elements)
