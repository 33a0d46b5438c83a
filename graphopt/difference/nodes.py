"""What differs between the nodes of two matched models, told in units that people think in

Nodes that were replaced together are one change. Values that exist in both models are the borders: within a model,
nodes are joined by the values between them that the other model lacks; across the models, by the values that they
compute and that both have. What is joined is one change, such as "Conv + BatchNormalization -> Conv".
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from graphopt import io, scopes
from graphopt.difference.attributes import Attribute, Attributes
from graphopt.difference.places import label, operator_name, places
from graphopt.matching import Matching, tensors
from graphopt.matching.pairs import COMMUTATIVE, operator

CONSTANT = "constant"
"""Stands for the operators where a stored tensor replaces nodes, or nodes replace it."""


@dataclasses.dataclass(frozen=True)
class Input:
    """An input that takes another value: its position, and the names of the values before and after."""

    index: int
    before: str | None
    after: str | None


@dataclasses.dataclass(frozen=True)
class NodeChange:
    """A node that is in both models, but differs.

    Attributes:
        node: its name before, or the name of what it computes.
        where: the subgraph or function it is in; "" for the main graph.
        operator: before and after.
        attributes, inputs: what differs.
        used: whether an output of the model depends on it.
    """

    node: str
    where: str
    operator: tuple[str, str]
    attributes: tuple[Attribute, ...]
    inputs: tuple[Input, ...]
    used: bool


@dataclasses.dataclass(frozen=True)
class Rewrite:
    """Nodes that were replaced by others, removed, or added.

    Attributes:
        before, after: operators, in the order of the nodes; "constant" for a stored tensor; empty for nothing.
        kept: operators of nodes behind them that are in both models and only take other inputs.
        at: what the nodes compute that both models have; else the first results of those removed or added.
        where: the subgraph or function they are in; "" for the main graph.
        attributes: what differs in nodes that are in both models.
        used: whether an output of the models depends on them.
    """

    before: tuple[str, ...]
    after: tuple[str, ...]
    kept: tuple[str, ...]
    at: tuple[str, ...]
    where: str
    attributes: tuple[Attribute, ...]
    used: bool


@dataclasses.dataclass(frozen=True)
class Nodes:
    """What differs between the nodes of two models.

    Attributes:
        counts: how many there are before and after, Constant nodes, subgraphs and functions included.
        renamed: how many nodes differ in nothing but names, of themselves or of what they compute.
        changed: nodes that are in both models.
        rewritten: nodes that are in one of them, with those that took their places.
    """

    counts: tuple[int, int]
    renamed: int
    changed: tuple[NodeChange, ...]
    rewritten: tuple[Rewrite, ...]

    @property
    def matters(self) -> bool:
        """Whether anything differs on which an output of a model depends."""
        return any(change.used for change in self.changed) or any(rewrite.used for rewrite in self.rewritten)


def compare_nodes(reference: ir.Model, candidate: ir.Model, matching: Matching) -> Nodes:
    """Compare the nodes of two models; Constant nodes count as tensors, not as nodes."""
    comparer = _Comparer(reference, candidate, matching)
    renamed, changed, rewritten = 0, [], []
    for before, after in comparer.groups():
        if len(before) != 1 or len(after) != 1:
            rewritten.append(comparer.rewrite(before, after))
        elif change := comparer.change(before[0], after[0]):
            changed.append(change)
        else:
            renamed += _names(before[0]) != _names(after[0])
    counts = sum(1 for _ in io.nodes(reference)), sum(1 for _ in io.nodes(candidate))
    return Nodes(counts, renamed, tuple(changed), tuple(rewritten))


class _Comparer:
    """Two models with what is known of their nodes."""

    def __init__(self, reference: ir.Model, candidate: ir.Model, matching: Matching) -> None:
        self.matching = matching
        self.before = [node for node in io.nodes(reference) if not _is_tensor(node)]
        self.after = [node for node in io.nodes(candidate) if not _is_tensor(node)]
        self.places = places(reference) | places(candidate)
        self.used = _contributing(reference) | _contributing(candidate)
        self.sources = {other: mine for mine, other in matching.values.items()}
        self.attributes = Attributes(reference, matching)

    def groups(self) -> Iterator[tuple[list[ir.Node], list[ir.Node]]]:
        """Yield which nodes of the reference correspond to which of the candidate, in the order of the former."""
        links = self._links()
        order = {node: number for number, node in enumerate((*self.before, *self.after))}
        seen: set[ir.Node] = set()
        for start in order:
            if start in seen:
                continue
            group, waiting = [], [start]
            seen.add(start)
            while waiting:
                node = waiting.pop()
                group.append(node)
                for other in links[node]:
                    if other not in seen and other in order:
                        seen.add(other)
                        waiting.append(other)
            group.sort(key=order.__getitem__)
            yield (
                [node for node in group if order[node] < len(self.before)],
                [node for node in group if order[node] >= len(self.before)],
            )

    def change(self, before: ir.Node, after: ir.Node) -> NodeChange | None:
        """Say what differs between two nodes that take the same place."""
        attributes = tuple(self.attributes.compare(before, after))
        inputs = tuple(self._inputs(before, after))
        names = operator_name(before), operator_name(after)
        if not attributes and not inputs and operator(before) == operator(after):
            return None
        where = self.places[before.graph] if before.graph is not None else ""
        return NodeChange(label(before), where, names, attributes, inputs, before in self.used or after in self.used)

    def rewrite(self, before: list[ir.Node], after: list[ir.Node]) -> Rewrite:
        """Describe nodes that were replaced by others."""
        made = [value for node in before for value in node.outputs if value in self.sources]
        made_after = [value for node in after for value in node.outputs if value in self.matching.values]
        at = [v.name for v in made] or [self.matching.values[v].name for v in made_after]
        at = at or [next((v.name for v in node.outputs if v.name), node.op_type) for node in (*before, *after)]
        mates = [(mate, node) for node in after if (mate := self.matching.nodes.get(node)) is not None]
        kept = [both for both in mates if self._compute_the_same(*both)]
        stay = {node for both in kept for node in both}
        where = {self.places[node.graph]: None for node in (*before, *after) if node.graph is not None}
        return Rewrite(
            before=tuple(operator_name(n) for n in before if n not in stay) or _constant_if(made_after and not before),
            after=tuple(operator_name(n) for n in after if n not in stay) or _constant_if(made and not after),
            kept=tuple(operator_name(new) for _, new in kept),
            at=tuple(name or "" for name in at),
            where=next(iter(where), ""),
            attributes=tuple(attribute for both in mates for attribute in self.attributes.compare(*both)),
            used=any(node in self.used for node in (*before, *after)),
        )

    def _compute_the_same(self, before: ir.Node, after: ir.Node) -> bool:
        """Tell whether what two nodes compute is matched."""
        both = zip(before.outputs, after.outputs, strict=False)
        return all(self.matching.values.get(new) is old for old, new in both if old.name and new.name)

    def _links(self) -> Mapping[ir.Node, list[ir.Node]]:
        """Join nodes, within each model and across."""
        links: defaultdict[ir.Node, list[ir.Node]] = defaultdict(list)

        def link(one: ir.Node | None, other: ir.Node | None) -> None:
            if one is not None and other is not None:
                links[one].append(other)
                links[other].append(one)

        matched = self.matching
        for nodes, known, graphs in (
            (self.before, self.sources.keys(), set(matched.graphs.values())),
            (self.after, matched.values.keys(), matched.graphs.keys()),
        ):
            for node in nodes:
                for value in node.outputs:
                    if value not in known:
                        for user in value.consumers():
                            link(node, user)
                for attribute in node.attributes.values():
                    for graph in scopes.subgraphs(attribute):
                        if graph not in graphs:
                            for inner in graph:
                                link(node, inner)
        for mine, other in matched.values.items():
            link(mine.producer(), other.producer())
        for here, there in matched.nodes.items():  # which may have no outputs
            link(here, there)
        return links

    def _inputs(self, before: ir.Node, after: ir.Node) -> Iterator[Input]:
        if operator(before) in COMMUTATIVE and self.matching.are_same(before.inputs, after.inputs[::-1]):
            return
        for index in range(max(len(before.inputs), len(after.inputs))):
            old, new = _at(before.inputs, index), _at(after.inputs, index)
            if not self.matching.is_same(old, new):
                yield Input(index, old.name if old is not None else None, new.name if new is not None else None)


def _contributing(model: ir.Model) -> set[ir.Node]:
    """Return the nodes on which an output of the model depends; all of what functions return counts."""
    found: set[ir.Node] = set()
    waiting = [value for graph in scopes.roots(model) for value in graph.outputs]
    while waiting:
        node = waiting.pop().producer()
        if node is None or node in found:
            continue
        found.add(node)
        waiting.extend(value for value in node.inputs if value is not None)
        for attribute in node.attributes.values():
            waiting.extend(value for graph in scopes.subgraphs(attribute) for value in graph.outputs)
    return found


def _is_tensor(node: ir.Node) -> bool:
    """Tell whether a node only holds a tensor."""
    return tensors.is_constant_node(node) and all(tensors.constant(value) is not None for value in node.outputs)


def _constant_if(stored: object) -> tuple[str, ...]:
    return (CONSTANT,) if stored else ()


def _names(node: ir.Node) -> tuple[str | None, ...]:
    return node.name, *(value.name for value in node.outputs)


def _at(inputs: Sequence[ir.Value | None], index: int) -> ir.Value | None:
    return inputs[index] if index < len(inputs) else None
