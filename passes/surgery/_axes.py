"""Names of dynamic axes, in declared shapes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from graphopt import graphs, inference

_WORD = re.compile(r"[A-Za-z_]\w*(?!\w*\()")
"""A name in an expression such as "2*batch" or "floor(width/2)", but not that of a function."""


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
