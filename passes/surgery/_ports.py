"""What passes share that put operators behind an input or before an output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import graphs, inference
from graphopt.passbase import FACT_PREFIX, PreconditionError


class Recorder(ir.tape.Tape):
    """A tape that names everything after one tensor."""

    def __init__(self, stem: str, taken: Counter[str]) -> None:
        """Begin.

        Args:
            stem: what the names begin with.
            taken: names of values in use, kept up to date.
        """
        super().__init__()
        self._stem, self._taken = stem, taken

    def add(
        self, op_type: str, inputs: Sequence[ir.Value | None], suffix: str, attributes: Mapping[str, Any] | None = None
    ) -> ir.Value:
        """Record a node with one output, which is called `<stem>_<suffix>`."""
        value = self.op(op_type, inputs, attributes)
        value.name = self.fresh(suffix)
        node = value.producer()
        assert node is not None
        node.name = value.name
        return value

    def constant(self, elements: Any, suffix: str, dtype: ir.DataType = ir.DataType.INT64) -> ir.Value:
        """Record an initializer called `<stem>_<suffix>`."""
        name = self.fresh(suffix)
        return self.initializer(ir.tensor(np.asarray(elements).astype(dtype.numpy()), dtype, name=name))

    def fresh(self, suffix: str) -> str:
        """Return a new name that ends in `suffix`."""
        return graphs.fresh(f"{self._stem}_{suffix}", self._taken)

    def prepend_to(self, graph: ir.Graph) -> None:
        """Put everything recorded before the nodes of a graph."""
        first = next(iter(graph), None)
        if first is None:
            graph.extend(self.nodes)
        else:
            graph.insert_before(first, self.nodes)
        self._register(graph)

    def append_to(self, graph: ir.Graph) -> None:
        """Put everything recorded behind the nodes of a graph."""
        graph.extend(self.nodes)
        self._register(graph)

    def _register(self, graph: ir.Graph) -> None:
        for value in self.initializers:
            graph.register_initializer(value)


def opset(model: ir.Model) -> int:
    """Return the version of the standard operators that the main graph uses, or 0."""
    return model.opset_imports.get("", 0)


def require_opset(model: ir.Model, least: int, what: str) -> None:
    """Refuse a model whose operators are too old.

    Raises:
        PreconditionError: they are.
    """
    if opset(model) < least:
        raise PreconditionError(
            f"{what} needs opset {least}, the model has {opset(model)}; run graphopt convert-opset first"
        )


def dims(model: ir.Model, value: ir.Value) -> tuple[inference.Dim, ...]:
    """Return the sizes of an input or output: declared ones, or what inference proves.

    Raises:
        PreconditionError: it is no tensor, or of unknown rank.
    """
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        raise PreconditionError(f"'{value.name}' is no tensor")
    found = inference.dims(value.shape)
    if found is None:
        known = inference.infer(model).get(value)
        found = inference.dims(known.shape) if known else None
    if found is None:
        raise PreconditionError(
            f"the rank of '{value.name}' is unknown; run graphopt infer-shapes or declare its shape"
        )
    return tuple(None if isinstance(dim, int) and dim < 0 else dim for dim in found)


def text(dims: Sequence[inference.Dim]) -> str:
    """Write a shape for people, "?" for what is not known."""
    return f"[{', '.join('?' if dim is None else str(dim) for dim in dims)}]"


def check_input(value: ir.Value) -> None:
    """Refuse inputs behind which nothing can be put.

    Raises:
        PreconditionError: it has a default, or is passed through as an output.
    """
    if value.is_initializer():
        raise PreconditionError(f"input '{value.name}' has a default value, whose meaning would change")
    if value.is_graph_output():
        raise PreconditionError(f"input '{value.name}' is also an output, which would change with it")


def replace_input(graph: ir.Graph, old: ir.Value, new: ir.Value, inner: ir.Value) -> None:
    """Put a new input in the place of an old one.

    Args:
        graph: the main graph.
        old: one of its inputs.
        new: takes over its name and position.
        inner: what the users of the old input read from now on; facts about the old input move to it.
    """
    graph.inputs[list(graph.inputs).index(old)] = new
    inner.type, inner.shape = old.type, old.shape
    for key, fact in old.metadata_props.items():
        if key.startswith(FACT_PREFIX):
            inner.metadata_props[key] = fact
    old.replace_all_uses_with(inner)
