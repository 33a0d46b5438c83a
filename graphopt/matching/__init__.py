"""Find out which values and nodes of two models are the same

Names come first: a value that bears the same name in both models is the same value, also when another operator
computes it now, unless its surroundings say that the name has moved (`graphopt.matching.names`). What is left is
matched by structure: from the inputs on, a node matches one of the same operator whose inputs match; then back from
the outputs, nodes of the same operator that compute matched values.

Each step is linear in the number of nodes; the structural ones are repeated while they find something.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence

import onnx_ir as ir

from graphopt import scopes
from graphopt.matching import tensors
from graphopt.matching.constants import match_anchors, match_constants
from graphopt.matching.names import match_names
from graphopt.matching.pairs import COMMUTATIVE, Pairs, agree, behind, named, operator

_PLAIN = frozenset(
    {
        ir.AttributeType.FLOAT, ir.AttributeType.FLOATS, ir.AttributeType.INT, ir.AttributeType.INTS,
        ir.AttributeType.STRING, ir.AttributeType.STRINGS,
    }
)  # fmt: skip
"""Types of attributes whose values can be hashed."""


@dataclasses.dataclass(frozen=True)
class Matching:
    """What corresponds in two models, one to one.

    Attributes:
        values: value of the candidate -> value of the reference. They play the same part; whether they hold the
            same numbers is another question.
        nodes: node of the candidate -> node of the reference, of the same operator.
        graphs: graph of the candidate -> graph of the reference: the main ones, bodies of matched nodes, and
            functions of the same domain, name and overload.
    """

    values: dict[ir.Value, ir.Value]
    nodes: dict[ir.Node, ir.Node]
    graphs: dict[ir.Graph, ir.Graph]

    def is_same(self, before: ir.Value | None, after: ir.Value | None) -> bool:
        """Tell whether what two nodes take is the same: matched, or constants that are equal.

        Args:
            before: a value of the reference, None for nothing.
            after: a value of the candidate.
        """
        if before is None or after is None:
            return before is after
        if self.values.get(after) is before:
            return True
        if before.is_graph_input() or after.is_graph_input():
            return False
        tensor, other = tensors.constant(before), tensors.constant(after)
        return tensor is not None and other is not None and tensors.equal(tensor, other)

    def are_same(self, before: Sequence[ir.Value | None], after: Sequence[ir.Value | None]) -> bool:
        """Tell whether two lists of values are the same, one by one."""
        return len(before) == len(after) and all(self.is_same(*both) for both in zip(before, after, strict=True))


def match(reference: ir.Model, candidate: ir.Model) -> Matching:
    """Match the values and nodes of `candidate` with those of `reference`.

    Models must come from `graphopt.load`, or have their nodes in topological order.

    Raises:
        UserError: a tensor's data does not fit its type and shape.
    """
    pairs = Pairs()
    waiting = [(reference.graph, candidate.graph)]
    for identifier, function in candidate.functions.items():
        if identifier in reference.functions:
            waiting.append((reference.functions[identifier].graph, function.graph))
    while waiting:
        there, here = waiting.pop()
        pairs.graphs[here] = there
        _match_graphs(pairs, there, here)
        waiting += [bodies for node in here if node in pairs.nodes for bodies in _bodies(pairs.nodes[node], node)]
    return Matching(pairs.values, pairs.nodes, pairs.graphs)


def _match_graphs(pairs: Pairs, reference: ir.Graph, candidate: ir.Graph) -> None:
    """Match what two graphs define; values that they see of graphs around them are matched already."""
    names, names_here = named(reference), named(candidate)
    match_constants(pairs, reference, candidate)
    _match_interface(pairs, reference.inputs, candidate.inputs, names, names_here)
    match_anchors(pairs, reference, candidate)
    match_names(pairs, reference, candidate)
    while True:
        found = _match_forward(pairs, reference, candidate, exact=True)
        found += _match_forward(pairs, reference, candidate, exact=False)
        _match_interface(pairs, reference.outputs, candidate.outputs, names, names_here)
        if not found + _match_backward(pairs, reference, candidate):
            break


def _match_interface(
    pairs: Pairs,
    reference: Sequence[ir.Value],
    candidate: Sequence[ir.Value],
    names: dict[str, ir.Value],
    names_here: dict[str, ir.Value],
) -> None:
    """Match inputs or outputs by name, else by position when their number and types agree.

    An input with a default value counts as a constant. A name that the other graph uses, for something inside,
    is not matched by position.
    """
    there = {value.name: value for value in reference}
    for value in candidate:
        if value.is_graph_input() and value.name in there and there[value.name].is_graph_input():
            pairs.match(value, there[value.name])
    reference = [value for value in reference if not (value.is_graph_input() and value.is_initializer())]
    candidate = [value for value in candidate if not (value.is_graph_input() and value.is_initializer())]
    if len(reference) != len(candidate):
        return
    for mine, other in zip(candidate, reference, strict=True):
        if mine.name not in names and other.name not in names_here and agree(mine, other):
            pairs.match(mine, other)


def _match_forward(pairs: Pairs, reference: ir.Graph, candidate: ir.Graph, *, exact: bool) -> int:
    """Match nodes of the same operator whose inputs match, and with `exact` whose attributes are equal too."""
    waiting: dict[Hashable, list[ir.Node]] = defaultdict(list)
    for node in reversed(reference):
        if node not in pairs.nodes_back and not tensors.is_constant_node(node):
            inputs = tuple(None if v is None else pairs.alike.get(v, v) for v in node.inputs)
            waiting[_key(node, inputs, exact)].append(node)
    found = 0
    for node in candidate:
        if node in pairs.nodes or tensors.is_constant_node(node):
            continue
        inputs = tuple(None if v is None else _counterpart(pairs, v) for v in node.inputs)
        if any(mine is not None and other is None for mine, other in zip(node.inputs, inputs, strict=True)):
            continue
        same = waiting.get(_key(node, inputs, exact))
        if same:
            other = same.pop()
            pairs.match_nodes(node, other)
            pairs.settle(node, other)
            found += 1
    return found


def _counterpart(pairs: Pairs, value: ir.Value) -> ir.Value | None:
    """Return the value of the reference that stands for a value of the candidate in comparisons, or None."""
    other = pairs.values.get(value)
    return pairs.alike.get(value) if other is None else pairs.alike.get(other, other)


def _key(node: ir.Node, inputs: tuple[ir.Value | None, ...], exact: bool) -> Hashable:
    """Return what two nodes must share to be matched, given the reference's values that they use."""
    while inputs and inputs[-1] is None:
        inputs = inputs[:-1]
    if operator(node) in COMMUTATIVE:
        inputs = tuple(sorted(inputs, key=id))
    attributes = frozenset(map(_attribute_key, node.attributes.values())) if exact else None
    return operator(node), sum(1 for value in node.outputs if value.name), inputs, attributes


def _attribute_key(attribute: ir.Attr) -> Hashable:
    """Return what tells an attribute from another, without looking into large tensors."""
    value: Hashable = attribute.value if not attribute.is_ref() else attribute.ref_attr_name
    if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
        tensor = attribute.as_tensor()
        value = (tensor.dtype, tensors.shape(tensor), tensors.sample(tensor))
    elif attribute.type not in _PLAIN and not attribute.is_ref():
        graphs = scopes.subgraphs(attribute)
        value = tuple(tuple(operator(node) for node in graph) for graph in graphs)
    return attribute.name, attribute.type, value


def _match_backward(pairs: Pairs, reference: ir.Graph, candidate: ir.Graph) -> int:
    """Match nodes of the same operator that compute matched values, and the values that matched nodes use."""
    found = 0
    for node in reversed(candidate):
        for value in node.outputs:
            other = pairs.values.get(value)
            if other is None or node in pairs.nodes or tensors.is_constant_node(node):
                continue
            if pairs.match_producers(value, other) or _match_absorber(pairs, node, other):
                pairs.settle(node, pairs.nodes[node])
                found += 1
        if node in pairs.nodes:
            found += sum(_match_used(pairs, candidate, *both) for both in pairs.inputs(node, pairs.nodes[node]))
    return found


def _match_used(pairs: Pairs, candidate: ir.Graph, mine: ir.Value, other: ir.Value) -> bool:
    """Match values that two matched nodes use in the same place if unmatched nodes of one operator compute them."""
    here, there = mine.producer(), other.producer()
    if here is None or there is None or here.graph is not candidate or there.graph is not pairs.graphs[candidate]:
        return False
    if here in pairs.nodes or there in pairs.nodes_back or operator(here) != operator(there):
        return False
    return mine.index() == other.index() and pairs.match(mine, other)


def _match_absorber(pairs: Pairs, node: ir.Node, value: ir.Value) -> bool:
    """Match a node with the one of the same operator that, with nodes behind it, computes `value` in the reference.

    So a convolution that took in its BatchNormalization is still that convolution.
    """
    for step in (value, *behind(value)):
        there = step.producer()
        if there is None or there in pairs.nodes_back or (step is not value and step in pairs.values_back):
            return False
        if operator(there) == operator(node):
            return pairs.match_nodes(node, there)
    return False


def _bodies(reference: ir.Node, candidate: ir.Node) -> Iterator[tuple[ir.Graph, ir.Graph]]:
    """Yield the graphs that two nodes hold under the same attribute."""
    for name, attribute in candidate.attributes.items():
        other = reference.attributes.get(name)
        if other is not None:
            yield from zip(scopes.subgraphs(other), scopes.subgraphs(attribute), strict=False)
