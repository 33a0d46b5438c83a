"""Which constants of two graphs are the same: by name, unless their contents say otherwise"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import onnx_ir as ir

from graphopt.matching import tensors
from graphopt.matching.pairs import Operator, Pairs, constants, operator

_SHORT = 8
"""Constants of so many elements may be shapes, axes or factors, which equal others by chance."""

_MOST_USES = 32
"""Uses of a constant that are looked at."""

_Kind = tuple[ir.DataType, tuple[int, ...]]


def match_constants(pairs: Pairs, reference: ir.Graph, candidate: ir.Graph) -> None:
    """Match the constants of two graphs.

    The same name and the same contents are one constant. Then contents come before names, for weights that are
    unique in both graphs: exporters number constants ("onnx::Conv_193"), and numbers move. Last come names alone,
    for weights that were changed, unless the two are plainly different things.
    """
    mine, others = constants(candidate), constants(reference)
    theirs = {value.name: value for value in others}
    twins = [(value, theirs[value.name]) for value in mine if value.name in theirs]
    for one, other in twins:
        if kind(one) == kind(other) and tensors.sample(_tensor(one)) == tensors.sample(_tensor(other)):
            pairs.match(one, other)
    left = [v for v in mine if v not in pairs.values and is_telling(v)]
    left_there = [v for v in others if v not in pairs.values_back and is_telling(v)]
    by_contents = _by_contents(left, {kind(v) for v in left_there})
    by_contents_there = _by_contents(left_there, {kind(v) for v in left})
    for contents, found in by_contents.items():
        there = by_contents_there.get(contents, [])
        if len(found) == len(there) == 1:
            pairs.match(found[0], there[0])
    for one, other in twins:
        if pairs.open(one, other) and _may_be_the_same(one, other):
            pairs.match(one, other)
    _find_alike(pairs, mine, others)
    for one in mine:
        if one in pairs.values:
            pairs.match_producers(one, pairs.values[one])


def match_anchors(pairs: Pairs, reference: ir.Graph, candidate: ir.Graph) -> None:
    """Match the nodes that use a matched weight, where the weight has no other use."""
    claims: dict[ir.Node, set[ir.Node]] = defaultdict(set)
    for node in candidate:
        for index, value in enumerate(node.inputs):
            other = pairs.values.get(value) if value is not None else None
            if (
                value is None
                or other is None
                or not _is_weight(value)
                or not (len(value.uses()) == len(other.uses()) == 1)
            ):
                continue
            (use,) = other.uses()
            if use.node.graph is reference and use.idx == index and operator(use.node) == operator(node):
                claims[node].add(use.node)
    for node, claimed in claims.items():
        if len(claimed) == 1:
            pairs.match_nodes(node, claimed.pop())


def kind(value: ir.Value) -> _Kind:
    """Return the element type and shape of a constant."""
    tensor = _tensor(value)
    return tensor.dtype, tensors.shape(tensor)


def is_telling(value: ir.Value) -> bool:
    """Tell whether the contents of a constant are unlikely to be met twice by chance."""
    return _is_weight(value) and not tensors.is_uniform(_tensor(value))


def _is_weight(value: ir.Value) -> bool:
    tensor = tensors.constant(value)
    return tensor is not None and tensor.size > _SHORT


def _may_be_the_same(one: ir.Value, other: ir.Value) -> bool:
    """Tell whether anything but the name says so: type and shape, the same place in an operator, the same user."""
    if kind(one) == kind(other):
        return True
    return bool(_places(one) & _places(other)) or bool(_results(one) & _results(other))


def _places(value: ir.Value) -> set[tuple[Operator, int]]:
    return {(operator(use.node), use.idx) for use in list(value.uses())[:_MOST_USES]}


def _results(value: ir.Value) -> set[str | None]:
    return {result.name for use in list(value.uses())[:_MOST_USES] for result in use.node.outputs if result.name}


def _find_alike(pairs: Pairs, mine: list[ir.Value], others: list[ir.Value]) -> None:
    """Find out which constants are equal, of the types and shapes of those without a partner."""
    kinds = {kind(v) for v in mine if v not in pairs.values} | {kind(v) for v in others if v not in pairs.values_back}
    there = _by_contents(others, kinds)
    for equal in there.values():
        pairs.alike.update((value, equal[0]) for value in equal)
    for contents, equal in _by_contents(mine, kinds).items():
        if contents in there:
            pairs.alike.update((value, there[contents][0]) for value in equal if value not in pairs.values)


def _by_contents(values: Iterable[ir.Value], kinds: set[_Kind]) -> dict[tuple[_Kind, bytes], list[ir.Value]]:
    """Group constants of some kinds by what they hold."""
    found: dict[tuple[_Kind, bytes], list[ir.Value]] = defaultdict(list)
    for value in values:
        if kind(value) in kinds:
            found[kind(value), tensors.digest(_tensor(value))].append(value)
    return found


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    tensor = tensors.constant(value)
    assert tensor is not None
    return tensor
