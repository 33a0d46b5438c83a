"""Decide which units compute with integers.

Convolutions and matrix products are what integers speed up; other operators join where they sit between
these, because every change between float and integer in mid-network costs a sweep over a tensor. What
comes after the last of them stays in float: box decoding, scores and their like are cheap, and 8 bits are
too few for them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence

import onnx_ir as ir

from graphopt.passes.quantization._cut import UNBREAKABLE, sink_side
from graphopt.passes.quantization._graphs import label
from graphopt.passes.quantization._kernels import Role, clamp_bounds
from graphopt.passes.quantization._ranges import Range
from graphopt.passes.quantization._units import Unit, group

_INTEGER, _FLOAT = "integer", "float"

_LEVELS = 32
"""A Concat must leave each input this many of the 256 levels."""

_SUMS = ("Add", "Sub", "Sum", "Where")
"""In whose result something narrower than one of 256 levels is not there any more."""
_EXPONENTIALS = ("Softmax", "LogSoftmax")
_NO_RANGE = "no range was recorded for '{}'; run calibrate on data without NaN"
_TAIL = "what reads it computes in float, where float costs nothing and keeps more"
_HEAD = "nothing before it is quantized, and float costs nothing there"
_ISLAND = "it sits among float nodes; integers would only add conversions"


Times = tuple[float, float]
"""Microseconds that a node takes in floats and in integers."""

CALL_US = 4.0
ELEMENT_US = 5e-4
"""What a change between float and integers takes: calls, and a time for each element, with the change of layout that
ONNX Runtime makes along with it, as measured on two cores with AVX-512. What rests on them is measured before it is taken."""


@dataclasses.dataclass
class Plan:
    """What to quantize.

    Attributes:
        units: those that compute with integers, in the order of the graph.
        ranges: the recorded range of every activation, those of moved elements included.
        skipped: `(node, reason)` for every node that computes in float and stays so.
    """

    units: list[Unit]
    ranges: dict[ir.Value, Range]
    skipped: list[tuple[str, str]]


def make(
    graph: ir.Graph,
    recorded: Mapping[str, Range],
    exclude: Collection[str],
    ops: Collection[str],
    times: Mapping[str, Times] | None = None,
) -> Plan:
    """Plan the quantization of a graph.

    Args:
        graph: the main graph or one inside it; element types must be known.
        recorded: ranges by value name.
        exclude: nodes that stay in float, by name.
        ops: operator types of the convolutions and matrix products to quantize.
        times: of nodes, by name; with them only what saves time computes with integers, without them everything does
            that can at no more conversions.
    """
    units, refused = group(graph)
    ranges = _spread(units, recorded)
    reasons: dict[Unit, str] = {}
    for unit in units:
        reason = _obstacle(unit, ranges, exclude, ops)
        if reason:
            reasons[unit] = reason
    _between(graph, units, reasons)
    _settle(units, reasons, times)
    rows = {**refused, **{node: reason for unit, reason in reasons.items() for node in unit.nodes}}
    skipped = [(label(node), rows[node]) for node in graph if node in rows]
    return Plan([unit for unit in units if unit not in reasons], ranges, skipped)


def _spread(units: Iterable[Unit], recorded: Mapping[str, Range]) -> dict[ir.Value, Range]:
    """Return ranges by value; what is moved or rescaled takes its range from where it comes from."""
    values = [value for unit in units for value in (*unit.inputs, *unit.outputs)]
    ranges = {value: recorded[value.name] for value in values if value.name and value.name in recorded}
    for unit in units:
        for clamp in unit.clamps:  # a range may be edited, and integers must end where the clamp does
            value, bounds = unit.outputs[0], clamp_bounds(clamp)
            if value in ranges and bounds is not None:
                ranges[value] = (max(ranges[value][0], bounds[0]), min(ranges[value][1], bounds[1]))
    for unit in units:
        source = unit.inputs[0]
        if unit.role in (Role.CARRIER, Role.RESCALE) and source in ranges:
            for value in unit.outputs:
                ranges.setdefault(value, unit.map_range(ranges[source]))
    return ranges


def _obstacle(
    unit: Unit, ranges: Mapping[ir.Value, Range], exclude: Collection[str], ops: Collection[str]
) -> str | None:
    """Return why this unit cannot be quantized, wherever it sits; None if it can."""
    if any(node.name in exclude for node in unit.nodes):
        return "excluded"
    if unit.role is Role.ANCHOR and unit.node.op_type not in ops:
        return f"{unit.node.op_type} is not among the operators to quantize"
    needed = [*unit.inputs, *(() if unit.float_result else unit.outputs)]
    unknown = next((value.name for value in needed if value not in ranges), None)
    if unknown is not None:
        return _NO_RANGE.format(unknown)
    if unit.node.op_type == "Concat":
        total = _width(ranges[unit.outputs[0]])
        narrow = next((v for v in unit.inputs if _width(ranges[v]) * 256 < total * _LEVELS), None)
        if narrow is not None:
            return f"'{narrow.name}' would keep fewer than {_LEVELS} of the 256 levels beside its wider neighbours"
    if unit.node.op_type in _SUMS:
        total = _width(ranges[unit.outputs[0]]) if unit.outputs[0] in ranges else 0.0
        lost = next((v for v in unit.inputs if _width(ranges[v]) * 256 < total), None)
        if lost is not None:
            return f"'{lost.name}' would vanish in a range of {total:.3g}, that of a mask perhaps"
    if unit.node.op_type in _EXPONENTIALS and _width(ranges[unit.inputs[0]]) > 256:
        return f"one of 256 steps of '{unit.inputs[0].name}' would be a factor of e or more, because of a mask perhaps"
    return None


def _width(range_: Range) -> float:
    return max(range_[1], 0.0) - min(range_[0], 0.0)


def _between(graph: ir.Graph, units: Sequence[Unit], reasons: dict[Unit, str]) -> None:
    """Refuse arithmetic before or after all quantized convolutions and matrix products.

    What comes after one may be anywhere behind it; what comes before one must lead to it through integers.
    """
    after = {unit.node for unit in units if unit.role is Role.ANCHOR and unit not in reasons}
    leading: set[ir.Value] = set()
    for node in graph:
        if any(value is not None and value.producer() in after for value in node.inputs):
            after.add(node)
    for unit in reversed(units):
        if unit in reasons:
            continue
        if unit.role is Role.ANCHOR or any(value in leading for value in unit.outputs):
            leading.update(unit.inputs)
        elif unit.role is Role.ARITHMETIC:
            reasons[unit] = _TAIL
    for unit in units:
        if unit.role is Role.ARITHMETIC and unit.node.op_type != "Concat" and unit.node not in after:
            reasons.setdefault(unit, _HEAD)


def _settle(units: Sequence[Unit], reasons: dict[Unit, str], times: Mapping[str, Times] | None) -> None:
    """Refuse what saves conversions between float and integer by staying in float.

    A conversion costs as much as its tensor is long. The cheapest labelling of the units is a minimum cut
    between the integer side, with the convolutions and matrix products, and the float side, with what was
    refused. Among equals it is the one with the most integers. With times, the cut costs microseconds: a unit on the
    float side what it takes in float, one on the integer side what it takes in integers, and conversions.
    """
    edges: list[tuple[Hashable, Hashable, float]] = []
    for unit in units:
        if unit in reasons:
            edges.append((unit, _FLOAT, UNBREAKABLE))
        elif times is not None:
            known = [times[node.name] for node in unit.nodes if node.name and node.name in times]
            edges.append((_INTEGER, unit, sum(before for before, _ in known)))
            edges.append((unit, _FLOAT, sum(after for _, after in known)))
        elif unit.role is Role.ANCHOR:
            edges.append((_INTEGER, unit, UNBREAKABLE))
    maker = {value: unit for unit in units for value in unit.outputs}
    readers: dict[ir.Value, list[Unit]] = {value: [] for value in maker}
    for unit in units:
        for value in unit.inputs:
            readers.setdefault(value, []).append(unit)
    sizes = {value: _elements(value) for value in readers}
    largest = max((size for size in sizes.values() if size), default=1)
    for value, users in readers.items():
        size: float = sizes[value] or largest
        if times is not None:
            size = CALL_US + ELEMENT_US * size
        source = maker.get(value)
        made: Hashable = source or _FLOAT
        quantize, dequantize = (value, "Q"), (value, "DQ")
        # Some reader wants integers and the maker yields float: QuantizeLinear.
        edges += [*((user, quantize, UNBREAKABLE) for user in users), (quantize, made, size)]
        # Some reader wants float and the maker yields integers: DequantizeLinear. Where the maker can yield
        # either, only when the readers disagree.
        either = source is not None and source.float_result and source not in reasons
        edges += [(quantize if either else made, dequantize, size)]
        edges += [(dequantize, user, UNBREAKABLE) for user in users]
        if value.is_graph_output() or len(set(value.consumers())) > len(users):
            edges.append((dequantize, _FLOAT, UNBREAKABLE))
    float_side = sink_side(edges, _INTEGER, _FLOAT)
    for unit in units:
        if unit in float_side:
            reasons.setdefault(unit, _ISLAND)


def _elements(value: ir.Value) -> int | None:
    """Return how many elements a value has for each unit of its dynamic axes; None when its rank is unknown."""
    if value.shape is None:
        return None
    return math.prod(dim for dim in value.shape if isinstance(dim, int)) or 1
