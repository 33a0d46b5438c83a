"""Find out which nodes of a file went into the nodes that a runtime made of it.

Names tell most of it: what a runtime makes bears the name of the value that it computes, or else a name that begins
with that of a node or value it replaces. All that lies between such landmarks went into the node that ends there. What
only moves data from one form to another, under a name that the file does not know, the runtime has added.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator

import onnx_ir as ir

from graphopt import scopes

MOVING = frozenset({"Cast", "MemcpyFromHost", "MemcpyToHost", "ReorderInput", "ReorderOutput", "Reshape", "Transpose"})
"""Operators that runtimes insert to move tensors to another device, layout, shape or element type."""

_IDLE = frozenset({"Dropout", "Identity"})
"""Operators that do nothing when a network is used; runtimes take them out."""

_PREFIXES = ("fused ", "InsertedPrecisionFreeCast_")
"""What ONNX Runtime puts before the names of some nodes that it fuses, and of values that it casts."""


@dataclasses.dataclass(frozen=True)
class Lineage:
    """Where the nodes that a runtime executes come from.

    Attributes:
        sources: executed node -> the nodes of the file that went into it, in the file's order; empty where it cannot
            be told, as for nodes of a body that the file has in another form.
        added: executed nodes that the runtime has added.
        gone: nodes of the file that went into no executed node: computed while loading, or without effect. Those in
            the bodies of such a node do not count.
    """

    sources: dict[ir.Node, tuple[ir.Node, ...]]
    added: frozenset[ir.Node]
    gone: tuple[ir.Node, ...]


def trace_back(model: ir.Model, executed: ir.Model) -> Lineage:
    """Trace the nodes of `executed`, the graph that a runtime made of `model`, back to it.

    Functions of `model` must have been inlined, and its nodes must have names of their own.
    """
    sources: dict[ir.Node, tuple[ir.Node, ...]] = {}
    added: set[ir.Node] = set()
    gone: list[ir.Node] = []
    waiting = [(model.graph, executed.graph)]
    while waiting:
        graph, made = waiting.pop(0)
        tracer = _Tracer(graph, made)
        found = {node: tracer.sources(node) for node in made}
        sources |= found
        added |= tracer.added
        used = {node for nodes in found.values() for node in nodes}
        gone += [node for node in graph if node not in used and node.op_type != "Constant"]
        waiting += [bodies for node in made for bodies in _bodies(node, found[node])]
    return Lineage(sources, frozenset(added), tuple(gone))


class _Tracer:
    """One graph of the file beside the one that the runtime made of it.

    Attributes:
        added: nodes that the runtime has added.
    """

    def __init__(self, graph: ir.Graph, made: ir.Graph) -> None:
        self._graph = graph
        self._order = {node: number for number, node in enumerate(graph)}
        self._nodes = {node.name: node for node in graph if node.name}
        self._values = {value.name: value for node in graph for value in node.outputs if value.name}
        self._fixed = _fixed(graph)
        self._made = set(made)
        self._kept: dict[ir.Node, ir.Node] = {}
        """Executed node -> the node of the file that it begins, where another one makes its result."""
        self._stands = {
            value: self._values[value.name] for node in made for value in node.outputs if value.name in self._values
        }
        """Value of the executed graph -> the value of the file that it stands for."""
        self.added = self._find_added(made)
        self._known = set(self._stands.values())
        """Values of the file that the executed graph has, too: where the nodes that went into one end."""
        for node in made:
            if node not in self.added and node.outputs and not any(value in self._stands for value in node.outputs):
                self._guess(node)
        self._known |= {self._values[name] for name in made.initializers if name in self._values}

    def sources(self, node: ir.Node) -> tuple[ir.Node, ...]:
        """Return the nodes of the file that went into an executed node."""
        if node in self.added:
            return ()
        found: set[ir.Node] = set()
        read = {value.name for value in node.inputs if value is not None}
        waiting = [self._stands[value].producer() for value in node.outputs if value in self._stands]
        waiting.append(self._kept.get(node))
        while waiting:
            source = waiting.pop()
            if source is None or source in found or source.op_type == "Constant" or source.graph is not self._graph:
                continue
            if source in self._fixed and not any(value is not None and value.name in read for value in source.inputs):
                continue  # computed while loading, out of what is no longer read
            found.add(source)
            waiting += [value.producer() for value in source.inputs if value is not None and value not in self._known]
        kept = {source for source in found if source.op_type not in _IDLE} or found
        return tuple(sorted(kept, key=self._order.__getitem__))

    def _find_added(self, made: ir.Graph) -> frozenset[ir.Node]:
        """Return the nodes that only move data; what they make stands for the same as what they take."""
        found = set()
        for node in reversed(made):
            if self._only_moves(node):
                found.add(node)
                if node.outputs[0] in self._stands and node.inputs[0] is not None:
                    self._stands.setdefault(node.inputs[0], self._stands.pop(node.outputs[0]))
        return frozenset(found)

    def _only_moves(self, node: ir.Node) -> bool:
        if node.op_type not in MOVING or node.inputs[0] is None:
            return False
        kept = self._nodes.get(node.name or "")
        if kept is not None and kept.op_type == node.op_type:
            return False
        there = self._stands.get(node.outputs[0])
        producer = there.producer() if there is not None else None
        if producer is None:
            return True
        # Between two values of the file it stands for something of the file, such as a Reshape that only transposes.
        unknown = node.inputs[0].producer() in self._made and node.inputs[0] not in self._stands
        return producer.op_type != node.op_type and unknown

    def _guess(self, node: ir.Node) -> None:
        """Find by its name what a node stands for whose results have names that the file does not know."""
        source = self._nodes.get(node.name or "")
        if source is None or source.op_type != node.op_type:
            source = self._namesake(node)
        if source is None:
            return
        if any(value in self._known for value in source.outputs):
            self._kept[node] = source
            return
        pairs = dict(zip(node.outputs, source.outputs, strict=False))
        pairs[node.outputs[0]] = self._advanced(node, source.outputs[0])
        self._stands |= pairs
        self._known |= set(pairs.values())

    def _namesake(self, node: ir.Node) -> ir.Node | None:
        """Return the node whose name, or whose result's name, is the longest beginning of a node's name."""
        name = node.name or ""
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        for end in range(len(name), 0, -1):
            if end < len(name) and name[end].isalnum():
                continue
            value = self._values.get(name[:end])
            found = [source for source in (self._nodes.get(name[:end]), value and value.producer()) if source]
            if found:
                return next((source for source in found if source.op_type in node.op_type), found[0])
        return None

    def _advanced(self, node: ir.Node, value: ir.Value) -> ir.Value:
        """Return what a node really computes, given the result of the node after which it is named.

        An activation that it has taken in, an addition of another of its inputs, or a quantization may come after.
        """
        activation = node.attributes.get("activation")
        pending = activation.as_string() if activation is not None else None
        source = value.producer()
        taken = Counter(self._stands.get(v, v).name for v in node.inputs if v is not None)
        taken -= Counter(v.name for v in source.inputs if v is not None) if source is not None else Counter()

        def is_taken(other: ir.Value) -> bool:
            return other.name in taken and not other.is_initializer()

        while True:
            users = value.consumers()
            user = users[0] if len(users) == 1 else None
            if user is None or user.graph is not self._graph or user.outputs[0] in self._known:
                return value
            others = [v for v in user.inputs if v is not None and v is not value]
            if user.op_type == pending:
                pending = None
            elif user.op_type != "QuantizeLinear" and not (others and all(map(is_taken, others))):
                return value
            value = user.outputs[0]


def _fixed(graph: ir.Graph) -> set[ir.Node]:
    """Return the nodes that compute the same in every run, because all that they take is stored in the model."""
    found: set[ir.Node] = set()
    for node in graph:
        stored = [
            value is None
            or value.is_initializer()
            or ((producer := value.producer()) is not None and (producer.op_type == "Constant" or producer in found))
            for value in node.inputs
        ]
        if stored and all(stored) and not any(scopes.subgraphs(attribute) for attribute in node.attributes.values()):
            found.add(node)
    return found


def _bodies(node: ir.Node, sources: tuple[ir.Node, ...]) -> Iterator[tuple[ir.Graph, ir.Graph]]:
    """Yield the bodies of the node of the file that an executed node is, beside those of the latter."""
    source = next((source for source in sources if source.op_type == node.op_type), None)
    for attribute in node.attributes.values():
        other = source.attributes.get(attribute.name) if source is not None else None
        if other is not None:
            yield from zip(scopes.subgraphs(other), scopes.subgraphs(attribute), strict=False)
