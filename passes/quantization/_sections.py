"""Cut a quantized graph where all that comes after depends on a single tensor, of which the float model has a twin."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import onnx_ir as ir

from graphopt import graphs
from graphopt.passes.quantization._kernels import CLAMPS
from graphopt.passes.quantization._quantized import layers


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a quantized graph.

    Attributes:
        starts: what it reads: the inputs of the model, or one tensor.
        end: what it computes, a float tensor; where it is quantized next, as it is then.
        target: the same tensor of the float model.
        nodes: its layers with integer weights.
    """

    starts: tuple[ir.Value, ...]
    end: ir.Value
    target: ir.Value
    nodes: tuple[ir.Node, ...]


def sections(model: ir.Model, reference: ir.Model, least: int) -> list[Section]:
    """Return sections one after the other, each of so many layers at least where that is possible."""
    named = {value.name: value for node in reference.graph for value in node.outputs if value.name}
    holders = {layer.node for layer in layers(model.graph)}
    starts: tuple[ir.Value, ...] = tuple(value for value in model.graph.inputs if value.const_value is None)
    found: list[Section] = []
    inside: list[ir.Node] = []
    for node, waist in _waists(model.graph):
        if node in holders:
            inside.append(node)
        if waist is None or not inside or (len(inside) < least and not waist.is_graph_output()):
            continue
        end, target = _seen(waist, named)
        if target is not None:
            found.append(Section(starts, end, target, tuple(inside)))
            starts, inside = (waist,), []
    return found


def _waists(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Value | None]]:
    """Yield nodes in order, each with the one tensor on which everything after it depends, if there is only one."""
    nodes = list(graph)
    last: dict[ir.Value, int] = {}
    for place, node in enumerate(nodes):
        last.update(dict.fromkeys([value for value in (*node.inputs, *graphs.captured(node)) if value], place))
    last.update(dict.fromkeys(graph.outputs, len(nodes)))
    live = {value for value in graph.inputs if value.const_value is None and value in last}
    varying = set(live)
    for place, node in enumerate(nodes):
        if varying.isdisjoint([*node.inputs, *graphs.captured(node)]):
            yield node, None
            continue
        varying.update(node.outputs)
        live |= {value for value in node.outputs if value in last}
        live = {value for value in live if last[value] > place}
        yield node, next(iter(live)) if len(live) == 1 else None


def _seen(waist: ir.Value, named: dict[str, ir.Value]) -> tuple[ir.Value, ir.Value | None]:
    """Return a tensor as what comes after it sees it, and its twin in the float model."""
    users: Sequence[ir.Node] = waist.consumers()
    if not users or waist.is_graph_output():
        return waist, named.get(waist.name or "")
    if len(users) > 1 or users[0].op_type != "QuantizeLinear":
        return waist, None
    seen = [user.outputs[0] for user in users[0].outputs[0].consumers() if user.op_type == "DequantizeLinear"]
    if not seen:
        return waist, None
    names = [waist.name, *(value.name for value in seen)]
    found = next((named[name] for name in names if name in named), None)
    return seen[0], None if found is None else _after_clamp(found)


def _after_clamp(value: ir.Value) -> ir.Value:
    """Return what a clamp makes of a tensor of the float model: behind a quantizer integers saturate instead."""
    users = value.consumers()
    while len(users) == 1 and users[0].op_type in CLAMPS and not value.is_graph_output():
        value = users[0].outputs[0]
        users = value.consumers()
    return value
