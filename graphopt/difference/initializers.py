"""What differs between the stored tensors of two matched models: initializers, and what Constant nodes hold"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import onnx_ir as ir

from graphopt import scopes
from graphopt.difference.places import first_user, places
from graphopt.matching import Matching, tensors
from graphopt.matching.constants import kind
from graphopt.matching.pairs import constants
from graphopt.matching.tensors import Distance


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor that only one of the models has.

    Attributes:
        name: what it is called.
        where: the subgraph or function it is in; "" for the main graph.
        dtype, shape, bytes: its element type, the sizes of its axes, and what it takes.
        user: the operator that uses it first, as in `graphopt.difference.facts.Sizes`; "" if nothing does.
        equal: name of a tensor of the other model that holds the same, or None.
    """

    name: str
    where: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    user: str
    equal: str | None


@dataclasses.dataclass(frozen=True)
class Changed:
    """A tensor that both models have, with other contents.

    Attributes:
        name: what it is called before.
        renamed: what it is called after, if that is another name.
        where: the subgraph or function it is in; "" for the main graph.
        dtype, shape: before and after.
        values: the elements of short tensors before and after, or None.
        distance: how far apart they are, if they have the same shape.
    """

    name: str
    renamed: str | None
    where: str
    dtype: tuple[str, str]
    shape: tuple[tuple[int, ...], tuple[int, ...]]
    values: tuple[list[Any], list[Any]] | None
    distance: Distance | None


@dataclasses.dataclass(frozen=True)
class Initializers:
    """What differs between the stored tensors of two models.

    Attributes:
        counts: how many there are, before and after.
        renamed: `(old, new)` names of those that differ in nothing else.
        changed: those whose type, shape or contents differ.
        added, removed: those that only one model has.
    """

    counts: tuple[int, int]
    renamed: tuple[tuple[str, str], ...]
    changed: tuple[Changed, ...]
    added: tuple[Stored, ...]
    removed: tuple[Stored, ...]

    @property
    def matters(self) -> bool:
        """Whether a tensor changed, appeared or went that is used and has no equal in the other model."""
        return bool(self.changed) or any(t.user and t.equal is None for t in (*self.added, *self.removed))


def compare_initializers(reference: ir.Model, candidate: ir.Model, matching: Matching) -> Initializers:
    """Compare the tensors that two models store, one at a time."""
    before, after = _stored(reference), _stored(candidate)
    where = places(reference) | places(candidate)
    sources = {other: mine for mine, other in matching.values.items() if mine in after}
    renamed, changed = [], []
    for value, tensor in before.items():
        mate = sources.get(value)
        if mate is None:
            continue
        change = _change(value, tensor, mate, after[mate], _place(value, where))
        if change is not None:
            changed.append(change)
        elif value.name != mate.name:
            renamed.append((value.name or "", mate.name or ""))
    gone = [value for value in before if value not in sources]
    new = [value for value in after if matching.values.get(value) not in before]
    return Initializers(
        counts=(len(before), len(after)),
        renamed=tuple(renamed),
        changed=tuple(changed),
        added=tuple(_only(new, after, before, where)),
        removed=tuple(_only(gone, before, after, where)),
    )


def _stored(model: ir.Model) -> dict[ir.Value, ir.TensorProtocol]:
    """Return the tensors of all graphs by the value that they are."""
    graphs = (graph for root in scopes.roots(model) for graph in (root, *root.subgraphs()))
    found = ((value, tensors.constant(value)) for graph in graphs for value in constants(graph))
    return {value: tensor for value, tensor in found if tensor is not None}


def _change(
    value: ir.Value, before: ir.TensorProtocol, mate: ir.Value, after: ir.TensorProtocol, where: str
) -> Changed | None:
    shapes = tensors.shape(before), tensors.shape(after)
    distance = tensors.distance(before, after) if shapes[0] == shapes[1] else None
    if shapes[0] == shapes[1] and before.dtype == after.dtype and distance is None:
        return None
    old, new = tensors.values(before), tensors.values(after)
    return Changed(
        name=value.name or "",
        renamed=mate.name if mate.name != value.name else None,
        where=where,
        dtype=(before.dtype.name, after.dtype.name),
        shape=shapes,
        values=None if old is None or new is None else (old, new),
        distance=distance,
    )


def _only(
    values: list[ir.Value],
    mine: dict[ir.Value, ir.TensorProtocol],
    others: dict[ir.Value, ir.TensorProtocol],
    where: dict[ir.Graph, str],
) -> Iterable[Stored]:
    """Describe tensors that only one model has; only tensors of their types and shapes are read in the other."""
    kinds = {kind(value) for value in values}
    names: dict[tuple[Any, bytes], str] = {}
    for other, tensor in others.items():
        if kind(other) in kinds:
            names.setdefault((kind(other), tensors.digest(tensor)), other.name or "")
    there = set(map(kind, others))
    for value in values:
        tensor = mine[value]
        equal = names.get((kind(value), tensors.digest(tensor))) if kind(value) in there else None
        yield Stored(
            name=value.name or "",
            where=_place(value, where),
            dtype=tensor.dtype.name,
            shape=tensors.shape(tensor),
            bytes=tensor.nbytes,
            user=first_user(value),
            equal=equal,
        )


def _place(value: ir.Value, where: dict[ir.Graph, str]) -> str:
    return where[value.graph] if value.graph is not None else ""
