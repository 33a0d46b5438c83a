"""What differs between two models, in words: one line per row"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from graphopt.console import size
from graphopt.difference.facts import Counts, Facts, Sizes
from graphopt.difference.initializers import Changed, Initializers, Stored
from graphopt.difference.nodes import NodeChange, Nodes, Rewrite
from graphopt.difference.ports import Port, Ports

_NAMES = 3
"""Names shown of those that differ in the same way."""

_WIDTH = 60
"""Characters shown of a value."""


def port_rows(ports: Ports) -> Iterator[str]:
    """Say which inputs or outputs differ."""
    for change in ports.changed:
        old, new = change.before, change.after
        if old is None or new is None:
            yield f"added    {_port(new)}" if new is not None else f"removed  {_port(old)}"
        elif (old.dtype, old.shape) == (new.dtype, new.shape):
            yield f"renamed  {old.name} -> {new.name}"
        else:
            yield f"changed  {_port(old)} -> {_port(new)}"
    if ports.reordered:
        yield "in another order"


def node_rows(nodes: Nodes) -> Iterator[str]:
    """Say which nodes differ; those that differ in the same way share a row, the most frequent first."""
    alike: dict[str, list[str]] = defaultdict(list)
    for rewrite in nodes.rewritten:
        alike[_rewrite(rewrite)].append(_some(rewrite.at))
    for change in nodes.changed:
        alike[_change(change)].append(change.node)
    for text, names in sorted(alike.items(), key=lambda item: -len(item[1])):
        yield f"{f'{len(names)} x ' if len(names) > 1 else ''}{text}, at {_some(names)}"


def operator_rows(operators: Counts) -> Iterator[str]:
    """Say which operators occur more or less often."""
    yield from (f"{name}: {old} -> {new}" for name, (old, new) in operators.items() if old != new)


def changed_row(one: Changed) -> tuple[str, ...]:
    """Return the cells name, type, shape, share of elements changed, largest, relative, SQNR and zeros."""
    name = f"{_arrow(one.name, one.renamed or one.name)}{_in(one.where)}"
    kind = _arrow(*(dtype.lower() for dtype in one.dtype))
    shapes = _arrow(*map(_shape, one.shape))
    if one.values is not None:
        shapes += ": " + " -> ".join(map(_short, one.values))
    far = one.distance
    if far is None:
        return name, kind, shapes
    zeros = "" if far.zeros is None else _arrow(*(f"{share:.1%}" for share in far.zeros))
    numbers = ("" if number is None else f"{number:.3g}" for number in (far.largest, far.relative))
    return name, kind, shapes, f"{far.changed:.1%}", *numbers, "" if far.sqnr is None else f"{far.sqnr:.1f}", zeros


def stored_rows(initializers: Initializers) -> Iterator[str]:
    """Say which initializers only one model has, by the operator that uses them, and which were renamed."""
    for word, other, found in (("removed", "after", initializers.removed), ("added", "before", initializers.added)):
        alike: dict[str, list[Stored]] = defaultdict(list)
        for one in found:
            alike[_used_by(one.user)].append(one)
        for user, group in sorted(alike.items(), key=lambda item: -sum(one.bytes for one in item[1])):
            names = [f"{one.name} {one.dtype.lower()} {_shape(one.shape)}{_in(one.where)}" for one in group]
            equal = sum(one.equal is not None for one in group)
            note = f", {equal} equal to one {other}" if equal else ""
            yield f"{word:8} {len(group)} {user}, {size(sum(one.bytes for one in group))}{note}: {_some(names)}"
    if initializers.renamed:
        pairs = [f"{old} -> {new}" for old, new in initializers.renamed]
        yield f"renamed  {len(pairs)}: {_some(pairs)}"


def fact_rows(facts: Facts) -> Iterator[str]:
    """Say what differs in declarations and metadata."""
    for function in facts.functions:
        yield f"function {function.name}: {_both((function.before, function.after))}"
    for domain, both in facts.opsets.items():
        yield f"opset {domain or 'ai.onnx'}: {_both(both)}"
    named = {"IR version": facts.ir_version, "producer": facts.producer, "inputs with a default": facts.defaults}
    yield from (f"{name}: {_both(both)}" for name, both in named.items() if both is not None)
    for key, both in facts.metadata.items():
        yield f"metadata {key}: {_both(both)}"
    if facts.provenance is not None:
        yield f"made by graphopt: {_both(tuple(map(_pipeline, facts.provenance)))}"
    for key, found in facts.annotations.items():
        changed = f", {found.changed} changed" if found.changed else ""
        yield f"{key} inside: {found.before} -> {found.after}{changed}"


def size_rows(sizes: Sizes) -> Iterator[str]:
    """Say which sizes differ."""
    users = {_used_by(name): both for name, both in sizes.users.items()}
    for name, (before, after) in {"files": sizes.files, **sizes.types, **users}.items():
        if size(before) != size(after):
            yield f"{name}: {size(before)} -> {size(after)}"
        elif before != after:
            yield f"{name}: {before:,} -> {after:,} bytes"


def _rewrite(rewrite: Rewrite) -> str:
    before, after, kept = map(_operators, (rewrite.before, rewrite.after, rewrite.kept))
    text = f"{before} -> {after}" if before and after else f"{before} removed" if before else f"{after} added"
    return f"{text}{f' before {kept}' if kept else ''}{_details(rewrite)}"


def _change(change: NodeChange) -> str:
    inputs = "".join(f", input {i.index} {_both((i.before, i.after))}" for i in change.inputs)
    return f"{_arrow(*change.operator)}{inputs}{_details(change)}"


def _details(change: NodeChange | Rewrite) -> str:
    attributes = "".join(f", {a.name} {_both((a.before, a.after))}" for a in change.attributes)
    return f"{attributes}{_in(change.where)}{'' if change.used else ', which no output depends on'}"


def _operators(names: Sequence[str]) -> str:
    """Return operators in words, such as "Conv + 2 Relu"."""
    counts = {name: names.count(name) for name in dict.fromkeys(names)}
    return " + ".join(f"{count} {name}" if count > 1 else name for name, count in counts.items())


def _port(port: Port | None) -> str:
    return "" if port is None else f"{port.name} {(port.dtype or 'of any type').lower()} {_shape(port.shape)}"


def _shape(shape: Sequence[int | str | None] | None) -> str:
    if shape is None:
        return "any rank"
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def _used_by(operator: str) -> str:
    return f"used by {operator}" if operator else "unused"


def _pipeline(provenance: Any) -> Any:
    if isinstance(provenance, dict) and isinstance(provenance.get("pipeline"), list):
        return " ".join(map(str, provenance["pipeline"])) or "no pass"
    return provenance


def _both(both: tuple[Any, ...]) -> str:
    return " -> ".join(map(_short, both))


def _arrow(before: str, after: str) -> str:
    return before if before == after else f"{before} -> {after}"


def _in(where: str) -> str:
    return f" (in {where})" if where else ""


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMES])
    return f"{shown} and {len(names) - _NAMES} more" if len(names) > _NAMES else shown


def _short(value: Any) -> str:
    text = "none" if value is None or value == "" else str(value)
    return text if len(text) <= _WIDTH else f"{text[:_WIDTH]}..."
