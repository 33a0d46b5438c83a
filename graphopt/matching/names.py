"""Which names mean the same value in two graphs

A name is believed unless what is around it says otherwise, because passes and exporters keep names on purpose but
also hand out numbers ("relu_5", "val_12"), which move when something is inserted before them. Evidence is what is
already matched (graph inputs, weights and the nodes that use them) and what follows from it, first from the inputs
to the outputs, then back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from graphopt.matching import tensors
from graphopt.matching.pairs import Pairs, agree, behind, named, operator


def match_names(pairs: Pairs, reference: ir.Graph, candidate: ir.Graph) -> None:
    """Match the values that bear the same name in two graphs and are not plainly different things.

    Inputs, constants and the nodes anchored by weights must be matched before. Nodes are matched when they are
    the same operator and compute a matched value.
    """
    names = _Names(pairs, reference, candidate)
    for mine, other in names.agreed():
        pairs.match(mine, other)
    for node in candidate:
        for mine in node.outputs:
            if mine in pairs.values:
                pairs.match_producers(mine, pairs.values[mine])
        if node in pairs.nodes:
            pairs.settle(node, pairs.nodes[node])


class _Names:
    """The names that two graphs share, and what speaks for and against them.

    Attributes:
        twins, sources: values of the same name, candidate -> reference and back, matched ones left out.
        rejected: values of either graph whose names mean something else in the other.
    """

    def __init__(self, pairs: Pairs, reference: ir.Graph, candidate: ir.Graph) -> None:
        self.pairs = pairs
        self.there, self.here = named(reference), named(candidate)
        self.twins: dict[ir.Value, ir.Value] = {}
        for name, value in self.here.items():
            other = self.there.get(name)
            if other is None or not pairs.open(value, other) or tensors.are_constants(value, other):
                continue  # of constants, all that can be said is said
            self.twins[value] = other
        self.sources = {other: mine for mine, other in self.twins.items()}
        self.rejected: set[ir.Value] = set()

    def agreed(self) -> list[tuple[ir.Value, ir.Value]]:
        """Return the pairs of values whose common name is believed, in topological order."""
        for mine, other in self.twins.items():
            if self._is_tied_elsewhere(mine, other):
                self.rejected.update((mine, other))
        for mine, other in self.twins.items():
            if not self._fits_inputs(mine, other):
                self.rejected.update((mine, other))
        for mine, other in reversed(self.twins.items()):
            if (
                mine in self.rejected
                and (_are_outputs(mine, other) or _are_of_one_operator(mine, other))
                and self._fits_users(mine, other)
            ):
                self.rejected.difference_update((mine, other))
        agreed = {mine: other for mine, other in self.twins.items() if mine not in self.rejected}
        moved = {mine: later for mine, other in agreed.items() if (later := self._absorbed(mine, other))}
        return list({**agreed, **moved}.items())

    def _is_tied_elsewhere(self, mine: ir.Value, other: ir.Value) -> bool:
        """Tell whether a weight ties one of the producers to another node than the other producer.

        That says nothing where another operator computes the value now: when a node takes in those behind it, it
        takes over the name of the last one's result, too.
        """
        here, there = mine.producer(), other.producer()
        if here is None or there is None or operator(here) != operator(there):
            return False
        return (self.pairs.nodes.get(here, there), self.pairs.nodes_back.get(there, here)) != (there, here)

    def _fits_inputs(self, mine: ir.Value, other: ir.Value) -> bool:
        """Tell whether the producers share an input, or at least nothing known speaks against the name."""
        here, there = mine.producer(), other.producer()
        if mine in self.rejected:
            return False
        if here is None or there is None:
            return agree(mine, other)
        inputs = {value for value in here.inputs if value is not None}
        inputs_there = {value for value in there.inputs if value is not None}
        if any(self._target(value) in inputs_there and not _is_shared_constant(value) for value in inputs):
            return True
        if operator(here) != operator(there) and not agree(mine, other):
            return self._fits_users(mine, other)
        moved = self._are_elsewhere(inputs, self._target, inputs_there)
        if (moved and self._are_elsewhere(inputs_there, self._source, inputs)) or self._are_exchanged(here, there):
            return False
        return self._fits_users(mine, other) or not self._is_claimed(mine, other)

    def _are_elsewhere(
        self, values: set[ir.Value], counterpart: Callable[[ir.Value], ir.Value | None], near: set[ir.Value]
    ) -> bool:
        """Tell whether one of the values, which constants are not, is known to be something else than those near."""
        known = {value: counterpart(value) for value in values if tensors.constant(value) is None}
        return any(found not in near if found else value in self.rejected for value, found in known.items())

    def _are_exchanged(self, here: ir.Node, there: ir.Node) -> bool:
        """Tell whether two nodes take values in the same place of which one is known to be another value.

        Only values of the same operator count, for a node that was inserted or taken out before them exchanges values,
        too.
        """
        return operator(here) == operator(there) and any(
            _are_of_one_operator(one, other)
            and (self._target(one) not in (None, other) or self._source(other) not in (None, one))
            for one, other in self.pairs.inputs(here, there)
        )

    def _fits_users(self, mine: ir.Value, other: ir.Value) -> bool:
        """Tell whether both are outputs of their graphs or unused, or a node that uses one matches one that uses the other."""
        users = mine.consumers()
        if _are_outputs(mine, other) or not (users or other.consumers() or mine.is_graph_output()):
            return True
        return any(there is not None and other in there.inputs for there in map(self._user, users))

    def _is_claimed(self, mine: ir.Value, other: ir.Value) -> bool:
        """Tell whether a matched node uses one of the two, and its mate another value of the same operator."""
        users = [node for node in mine.consumers() if node in self.pairs.nodes]
        users += [self.pairs.nodes_back[node] for node in other.consumers() if node in self.pairs.nodes_back]
        return any(
            (one is mine) != (there is other) and _are_of_one_operator(one, there)
            for node in users
            for one, there in self.pairs.inputs(node, self.pairs.nodes[node])
        )

    def _user(self, node: ir.Node) -> ir.Node | None:
        """Return the reference's node that is, or computes the same value as, a node of the candidate."""
        if node in self.pairs.nodes:
            return self.pairs.nodes[node]
        targets = (self._target(value) for value in node.outputs)
        return next((target.producer() for target in targets if target is not None), None)

    def _target(self, mine: ir.Value) -> ir.Value | None:
        if mine in self.pairs.values:
            return self.pairs.values[mine]
        if mine in self.twins and mine not in self.rejected:
            return self.twins[mine]
        place = _in_the_place_of(mine, self.pairs.nodes)
        return None if place in self.sources and place not in self.rejected else place

    def _source(self, other: ir.Value) -> ir.Value | None:
        if other in self.pairs.values_back:
            return self.pairs.values_back[other]
        if other in self.sources and other not in self.rejected:
            return self.sources[other]
        place = _in_the_place_of(other, self.pairs.nodes_back)
        return None if place in self.twins and place not in self.rejected else place

    def _absorbed(self, mine: ir.Value, other: ir.Value) -> ir.Value | None:
        """Return the later value of the reference that `mine` really is, or None.

        When a BatchNormalization is folded into the convolution before it, some tools leave the convolution's
        output its name, though it is the normalized value now. That shows in its users, which in the reference
        use a later value that has no namesake, and in the producer, whose constants changed.
        """
        users = mine.consumers()
        if not users or mine.is_graph_output() or other.is_graph_output():
            return None
        used: set[ir.Value] = set()
        for node in users:
            there = self._user(node)
            if there is None or operator(node) != operator(there) or other in there.inputs:
                return None
            used.update(theirs for ours, theirs in self.pairs.inputs(node, there) if ours is mine)
        later = used.pop() if len(used) == 1 else None
        if later is None or later is other or later.name in self.here or other not in behind(later):
            return None
        here, there = mine.producer(), other.producer()
        if here is None or there is None or operator(here) != operator(there) or self._same_constants(here, there):
            return None
        return later

    def _same_constants(self, here: ir.Node, there: ir.Node) -> bool:
        if len(here.inputs) != len(there.inputs):
            return False
        for mine, other in self.pairs.inputs(here, there):
            tensor, tensor_there = tensors.constant(mine), tensors.constant(other)
            if tensor is not None and tensor_there is not None and not tensors.equal(tensor_there, tensor):
                return False
        return True


def _in_the_place_of(value: ir.Value, matched: Mapping[ir.Node, ir.Node]) -> ir.Value | None:
    """Return what the node that is matched with a value's producer computes in its place."""
    node, index = value.producer(), value.index()
    mate = matched.get(node) if node is not None else None
    return mate.outputs[index] if mate is not None and index is not None and index < len(mate.outputs) else None


def _are_outputs(mine: ir.Value, other: ir.Value) -> bool:
    return mine.is_graph_output() and other.is_graph_output()


def _are_of_one_operator(mine: ir.Value, other: ir.Value) -> bool:
    """Tell whether the same operator computes two values from others."""
    here, there = mine.producer(), other.producer()
    if here is None or there is None or tensors.are_constants(mine, other):
        return False
    return operator(here) == operator(there)


def _is_shared_constant(value: ir.Value) -> bool:
    return tensors.constant(value) is not None and len(value.uses()) > 1
