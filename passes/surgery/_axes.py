"""Axes: how people name them, and the names of dynamic ones in declared shapes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from graphopt import graphs, inference
from graphopt.errors import UserError
from graphopt.passes.surgery import _names

_WORD = re.compile(r"[A-Za-z_]\w*(?!\w*\()")
"""A name in an expression such as "2*batch" or "floor(width/2)", but not that of a function."""


def place(pass_name: str, text: str, ports: Mapping[str, ir.Value]) -> tuple[str, int]:
    """Read `input:axis`; return the input's name and the axis, counted from the front.

    Raises:
        UserError: it is of another form, or there is no such input or axis.
    """
    port, colon, number = text.rpartition(":")
    if not colon or not number.removeprefix("-").isdecimal():
        raise UserError(f"{pass_name}: '{text}' is not of the form input:axis; write x:0")
    value = _names.find(pass_name, "input", port, ports)
    if value.shape is None:
        raise UserError(f"{pass_name}: the rank of '{port}' is unknown, and so are its axes; export it with a shape")
    rank, axis = len(value.shape), int(number)
    if not -rank <= axis < rank:
        raise UserError(f"{pass_name}: '{port}' has no axis {axis}, it is of rank {rank}")
    return port, axis % rank


def values(model: ir.Model) -> Iterator[ir.Value]:
    """Yield every value of the main graph and the bodies in it."""
    for graph in (model.graph, *model.graph.subgraphs()):
        yield from graphs.definitions(graph)


def names(model: ir.Model) -> dict[str, None]:
    """Return the names of dynamic axes, in order of appearance."""
    found: dict[str, None] = {}
    for value in values(model):
        found |= {dim: None for dim in inference.dims(value.shape) or () if isinstance(dim, str)}
    return found


def words(text: str) -> list[str]:
    """Return the names in an expression of axes."""
    return _WORD.findall(text)


def rename(model: ir.Model, new: Mapping[str, str]) -> None:
    """Rename axes everywhere, in expressions of axes, too: "2*batch", as exporters write it."""
    known = names(model)
    full = {name: new.get(name) or _expression(name, new, known) for name in known}
    for value in values(model):
        dims = inference.dims(value.shape)
        if dims and any(isinstance(dim, str) and full[dim] != dim for dim in dims):
            value.shape = ir.Shape([full[dim] if isinstance(dim, str) else dim for dim in dims])


def _expression(text: str, new: Mapping[str, str], known: Mapping[str, None]) -> str:
    """Return an expression with its axes renamed; text with words that are no axes is a name, and stays."""
    found = words(text)
    if found == [text] or not all(word in known for word in found):
        return text
    return _WORD.sub(lambda word: new.get(word[0], word[0]), text)
