"""Say what differs between two models, without running them"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt import io
from graphopt.difference.facts import (
    Counts,
    Facts,
    Sizes,
    compare_facts,
    compare_sizes,
    count_operators,
    used_domains,
)
from graphopt.difference.initializers import Initializers, compare_initializers
from graphopt.difference.nodes import CONSTANT, Nodes, compare_nodes
from graphopt.difference.ports import Ports, compare_ports
from graphopt.matching import match


@dataclasses.dataclass(frozen=True)
class Difference:
    """What differs between two models.

    Attributes:
        before, after: paths.
        same: whether nothing differs that affects what is computed. Names inside, metadata, how a tensor is stored, and
            what no output depends on do not affect it; names of inputs and outputs do.
        inputs, outputs: the interface; inputs that have a default value count as initializers.
        nodes: subgraphs and functions included.
        operators: how often each operator occurs before and after, whether or not that differs.
        initializers: stored tensors, including those in Constant nodes.
        facts: what the models say of themselves.
        sizes: in bytes.
    """

    before: str
    after: str
    same: bool
    inputs: Ports
    outputs: Ports
    nodes: Nodes
    operators: Counts
    initializers: Initializers
    facts: Facts
    sizes: Sizes

    @property
    def summary(self) -> str:
        """The difference in one line."""
        phrases = [*_nodes_in_words(self.nodes), *_initializers_in_words(self.initializers)]
        changed = [word for word, ports in (("inputs", self.inputs), ("outputs", self.outputs)) if ports != _SAME_PORTS]
        facts = list(_facts_in_words(self.facts))
        if not (phrases or changed or facts):
            return "the models are the same"
        phrases.append(f"other {' and '.join(changed)}" if changed else "same inputs and outputs")
        return ("the same computation: " if self.same else "") + ", ".join(phrases + facts)

    def to_json(self) -> dict[str, Any]:
        """Return the object of `diff --json`."""
        return {"same": self.same, "summary": self.summary, **dataclasses.asdict(self)}


def diff(before: str | Path, after: str | Path) -> Difference:
    """Read two models and say what differs between them.

    Tensors are compared piece by piece, one at a time, so external data may be larger than memory.

    Args:
        before: path of the .onnx file to start from.
        after: path of the .onnx file that came of it.

    Raises:
        UserError: one of them cannot be read.
    """
    old, new = io.load(before), io.load(after)
    matching = match(old, new)
    inputs = compare_ports(_inputs(old), _inputs(new), matching.values)
    outputs = compare_ports(old.graph.outputs, new.graph.outputs, matching.values)
    nodes = compare_nodes(old, new, matching)
    initializers = compare_initializers(old, new, matching)
    facts = compare_facts(old, new, matching)
    domains = used_domains(old) & used_domains(new)
    return Difference(
        before=str(before),
        after=str(after),
        same=not (
            any(part.matters for part in (inputs, outputs))
            or nodes.matters
            or initializers.matters
            or any(function.matters for function in facts.functions)
            or any(domain in domains for domain in facts.opsets)
        ),
        inputs=inputs,
        outputs=outputs,
        nodes=nodes,
        operators=count_operators(old, new),
        initializers=initializers,
        facts=facts,
        sizes=compare_sizes(old, new),
    )


def _inputs(model: ir.Model) -> list[ir.Value]:
    """Return the inputs that a caller must feed."""
    return [value for value in model.graph.inputs if not value.is_initializer()]


def _nodes_in_words(nodes: Nodes) -> Iterator[str]:
    """Say what became of the nodes; only the first phrase says of how many."""
    of_all = f" of {nodes.counts[0]}"
    removed = added = replaced = replacing = 0
    for rewrite in nodes.rewritten:
        before, after = (sum(name != CONSTANT for name in names) for names in (rewrite.before, rewrite.after))
        if before and after:
            replaced, replacing = replaced + before, replacing + after
        else:
            removed, added = removed + before, added + after
    for count, became in (
        (len(nodes.changed), "changed"),
        (replaced, f"replaced by {replacing}"),
        (removed, "removed"),
    ):
        if count:
            yield f"{count}{of_all} nodes {became}" if of_all else f"{_count(count, 'node')} {became}"
            of_all = ""
    if added:
        yield f"{_count(added, 'node')} added"
    if nodes.renamed:
        yield f"{_count(nodes.renamed, 'node')} renamed"


def _initializers_in_words(initializers: Initializers) -> Iterator[str]:
    for word in ("changed", "removed", "added", "renamed"):
        if count := len(getattr(initializers, word)):
            yield f"{_count(count, 'initializer')} {word}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _facts_in_words(facts: Facts) -> Iterator[str]:
    if facts.functions:
        yield "other functions"
    if facts.opsets:
        yield "other opsets"
    if dataclasses.replace(facts, functions=(), opsets={}) != _NO_FACTS:
        yield "other metadata"


_SAME_PORTS = Ports((), False)
_NO_FACTS = Facts((), {}, None, None, {}, None, {}, None)
