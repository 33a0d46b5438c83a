"""Carry every standard node of a model from one version of the operator set to another, change by change.

A node goes from change to change of its operator (`schemas.history`). At each, adapters of the table do what only a
person can know; then what the schemas tell is done: attributes that say what was meant before anyway are dropped or
defaults that changed spelled out. A node that the next version still does not accept is written out as the function
that defines it, if it has one. What adapters and functions emit is written in the version at hand and goes on from
there like any other node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from graphopt import graphs, io
from graphopt.passes.precision._opset import schemas
from graphopt.passes.precision._opset.adapters import DOWN, UP
from graphopt.passes.precision._opset.expand import expand
from graphopt.passes.precision._opset.facts import Facts
from graphopt.passes.precision._opset.site import Refusal, Shared, Site


class Converter:
    """One conversion of one model.

    Attributes:
        changed: how many nodes of the model were changed or replaced.
        refusals: `(node, reason)` for every node that has no equal; the model is then of no use.
        skipped: `(node, reason)` for what is left as it is, known to no version.
        shared: what is known of the model, and its `conditions`.
    """

    def __init__(self, model: ir.Model, to: int) -> None:
        """Prepare to convert `model` in place to version `to`."""
        self.changed = 0
        self.refusals: list[tuple[str, str]] = []
        self.skipped: list[tuple[str, str]] = []
        self._model, self._to = model, to
        self.shared = Shared(Facts(model, to), graphs.names(model), Counter(n.name or "" for n in io.nodes(model)))
        self._bodies = {function.graph for function in model.functions.values()}

    def run(self) -> None:
        """Convert the graph and its functions, and what they import."""
        owners: list[tuple[ir.Graph, dict[str, int]]] = [(self._model.graph, self._model.opset_imports)]
        owners += [(function.graph, function.opset_imports) for function in self._model.functions.values()]
        for graph, imports in owners:
            version = version_of(imports)
            if version is None:
                continue
            for node in [node for part in (graph, *graph.subgraphs()) for node in part]:
                if self._is_standard(node):
                    self._follow(node, version)
            imports.pop("ai.onnx", None)
            imports[""] = self._to

    def _is_standard(self, node: ir.Node) -> bool:
        return node.domain == "" and node.op_identifier() not in self._model.functions

    def _follow(self, node: ir.Node, version: int) -> None:
        """Convert one node, and all that comes of it, and write down what stands in the way."""
        node.version = version
        label, kind = graphs.label(node), node.op_type
        waiting, following, changed = [node], node, False
        try:
            while waiting:
                following = waiting.pop()
                made = self._convert(following)
                changed = changed or made is not None
                waiting.extend(new for new in made or () if new.graph is not None)
                following.version = None
        except Refusal as reason:
            part = "" if following is node else f"it is made of {following.op_type}; "
            self.refusals.append((f"{label} ({kind})", f"{part}{reason}"))
        self.changed += changed

    def _convert(self, node: ir.Node) -> list[ir.Node] | None:
        """Carry one node over every change of its operator; return what it brought about, None for no change."""
        made: list[ir.Node] | None = None
        if node.graph is None:
            return None
        if node.version is not None and schemas.since(node.op_type, node.version) is None:
            self._leave(node)
            return None
        while node.graph is not None and (step := self._step(node)) is not None:
            change, site = step
            before = (node.op_type, tuple(node.inputs), dict(node.attributes))
            new = self._cross(site, change)
            if new is not None:
                self._replace(node, new)
            if site.made or new is not None or before != (node.op_type, tuple(node.inputs), dict(node.attributes)):
                made = [*(made or ()), *site.made]
            node.version = site.version
        return made

    def _leave(self, node: ir.Node) -> None:
        """Leave alone an operator that ONNX does not know in the version at hand.

        ONNX Runtime has some of its own under the standard name, in any version: LayerNormalization before opset 17.
        """
        schema = schemas.find(node.op_type, self._to)
        if schema is None:
            self.skipped.append((graphs.label(node), f"opset {node.version} has no operator {node.op_type}"))
        elif reason := schemas.obstacle(node, schema, self.shared.facts):
            raise Refusal(f"opset {self._to}: {reason}")

    def _step(self, node: ir.Node) -> tuple[int, Site] | None:
        """Return the next change of a node's operator and a place to work at it; None if none is left."""
        assert node.version is not None
        if node.version < self._to:
            change = schemas.following(node.op_type, node.version)
            if change is None or change > self._to:
                return None
            version = change
        else:
            change = schemas.since(node.op_type, node.version)
            assert change is not None
            if change <= self._to:
                return None
            version = change - 1
        in_function = node.graph in self._bodies
        return change, Site(node, self.shared, version, in_function=in_function)

    def _cross(self, site: Site, change: int) -> Sequence[ir.Value] | None:
        """Carry a node over one change; return what replaces its outputs, None if the node stays.

        Raises:
            Refusal: there is no equal.
        """
        node = site.node
        assert node.version is not None
        rising = site.version > node.version
        present = schemas.find(node.op_type, node.version)
        for value in node.outputs:
            self.shared.facts.type(value)  # while the node is whole
        try:
            for adapter in (UP if rising else DOWN).get((node.op_type, change), ()):
                new = adapter(site)
                if new is not None:
                    return [new] if isinstance(new, ir.Value) else list(new)
            while node.inputs and node.inputs[-1] is None:
                node.resize_inputs(len(node.inputs) - 1)
            schema = schemas.find(node.op_type, site.version)
            if schema is None:
                raise Refusal(f"opset {site.version} has no such operator, nor others that make it up")
            if schema.name == present.name:
                _spell_out(node, present, schema)
            reason = schemas.obstacle(node, schema, self.shared.facts)
            if reason:
                raise Refusal(f"opset {site.version}: {reason}")
        except Refusal:
            new = None if rising or site.made else expand(site, present)
            if new is None:
                raise
            return new
        return None

    def _replace(self, node: ir.Node, new: Sequence[ir.Value]) -> None:
        """Put values in the place of a node's outputs, names and types included, and remove the node."""
        graph = node.graph
        assert graph is not None
        pairs = [(old, value) for old, value in zip(node.outputs, new, strict=False) if graphs.is_needed(old)]
        for old, value in pairs:
            self.shared.facts.replaced(old, value)
            value.metadata_props.update(old.metadata_props)
        producer = pairs[0][1].producer() if pairs else None
        if producer is not None:
            producer.name = node.name or producer.name
        ir.convenience.replace_nodes_and_values(graph, node, [], [], [o for o, _ in pairs], [v for _, v in pairs])
        inputs = {value for value in node.inputs if value is not None}
        graphs.detach(node)
        graph.remove(node)
        for value in inputs:
            graphs.discard(value)


def version_of(imports: dict[str, int]) -> int | None:
    """Return the version of the standard operator set that a graph or function imports, under either name."""
    return imports.get("", imports.get("ai.onnx"))


def _spell_out(node: ir.Node, present: Any, schema: Any) -> None:
    """Drop attributes unknown to the other schema that only say its meaning; set those whose default is another there."""
    for name, found in list(node.attributes.items()):
        if name not in schema.attributes and name in present.attributes and not found.is_ref():
            neutral = schemas.default(present, name)
            if found.value == neutral or (name == "dilations" and set(found.value) <= {1}):
                del node.attributes[name]
    for name in sorted(present.attributes.keys() & schema.attributes.keys() - node.attributes.keys()):
        meant = schemas.default(present, name)
        if meant is not None and meant != schemas.default(schema, name):
            node.attributes.add(ir.convenience.convert_attribute(name, meant))
