"""Rename values that a model defines more than once.

ONNX requires static single assignment (specification, "Names Within a Graph"), but PyTorch's exporter
can name a graph output like an inner value. Such a file does not load in ONNX Runtime ("Duplicate
definition of name"), nor in onnx_ir, so this works on the protobuf, before the model becomes a graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import onnx


def rename_redeclared(graph: onnx.GraphProto) -> list[tuple[str, str]]:
    """Give every definition of a value a name of its own; return `(old, new)` pairs.

    A use refers to the definition last seen before it, in the order of the nodes. The last definition
    keeps the name, so that a graph output of that name stays what it was; only where an input or an
    initializer already owns the name is the last one renamed too, along with the graph output.

    Args:
        graph: changed in place, with its subgraphs.
    """
    return _rename(graph, {}, set(_names(graph)))


def _rename(graph: onnx.GraphProto, outer: Mapping[str, str], taken: set[str]) -> list[tuple[str, str]]:
    """Rename within one graph, given the new names of outer values and all names of the model."""
    owned = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    left = Counter(name for node in graph.node for name in node.output if name)
    repeated = {name for name, count in left.items() if count > 1 or name in owned}
    current = {old: new for old, new in outer.items() if old not in owned and old not in left}
    renamed: list[tuple[str, str]] = []
    for name in repeated - owned:  # a use before any definition means the first one
        current[name] = _fresh(name, taken)
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = current.get(name, name)
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                renamed += _rename(subgraph, current, taken)
        for i, name in enumerate(node.output):
            if name not in repeated:
                continue
            left[name] -= 1
            if left[name] == 0 and name not in owned:
                current[name] = name
            else:
                node.output[i] = current[name] = _unused(name, renamed, current, taken)
                renamed.append((name, node.output[i]))
    for output in graph.output:
        output.name = current.get(output.name, output.name)
    if repeated:
        kept = [info for info in graph.value_info if info.name not in repeated]
        del graph.value_info[:]
        graph.value_info.extend(kept)
    return renamed


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (value.name for value in (*graph.input, *graph.initializer, *graph.output))
    for node in graph.node:
        yield from (*node.input, *node.output)
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _names(subgraph)


def _unused(name: str, renamed: list[tuple[str, str]], current: Mapping[str, str], taken: set[str]) -> str:
    """Return the name that earlier uses already expect, or a fresh one."""
    expected = current.get(name)
    if expected and expected != name and (name, expected) not in renamed:
        return expected
    return _fresh(name, taken)


def _fresh(name: str, taken: set[str]) -> str:
    number = 1
    while f"{name}_{number}" in taken:
        number += 1
    taken.add(f"{name}_{number}")
    return f"{name}_{number}"
