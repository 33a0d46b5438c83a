"""A region of nodes that can compute in another layout, and the layout that takes the fewest Transposes

From one value that a Transpose makes or takes, the region grows over all operators that have a rule, up to other
Transposes, constants, and operators whose layout is given. Every node of the region may compute as it does (label 0)
or in the other layout (label 1). A value whose maker and takers differ costs one Transpose, so the best labels are a
minimum cut. A Transpose that only moves axes of size 1 can become a Reshape, and costs little.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from graphopt import graphs
from graphopt.inference import Known
from graphopt.passbase import FACT_PREFIX
from graphopt.passes.structural._informed import Facts
from graphopt.passes.structural._transpose_cut import ONE, ZERO, Cut
from graphopt.passes.structural._transpose_layout import (
    Dims,
    Perm,
    canonical,
    inverse,
    is_identity,
    keeps_order,
    permuted,
)
from graphopt.passes.structural._transpose_rules import Flip, Site, flip, is_free, transposed

_COPY, _VIEW = 2, 1
"""Costs of a Transpose, and of one that only moves axes of size 1."""
_SUFFIX = "_transposed"


class World:
    """One graph, and what is known about it; kept up to date while it changes.

    Attributes:
        graph: the main graph, or the body of a function or of control flow.
        opset: of the standard operators in it.
        in_function: whether constants must be nodes.
        facts: about values, of all graphs.
        taken: names in use in the whole model.
    """

    def __init__(self, graph: ir.Graph, opset: int, in_function: bool, facts: Facts) -> None:
        self.graph, self.opset, self.facts, self.taken = graph, opset, facts, facts.names
        self._in_function = in_function
        self._places: dict[ir.Node, int] = {}

    def dims(self, value: ir.Value) -> Dims | None:
        """Return the shape of a value."""
        known = self.facts.get(value)
        if known is None and (tensor := graphs.constant(value)) is not None:
            return tuple(int(size) for size in tensor.shape.numpy())
        return None if known is None else known.dims()

    def in_order(self, nodes: Collection[ir.Node]) -> list[ir.Node]:
        """Return nodes of the graph in its order; the whole graph is looked through only for nodes that are new."""
        if any(node not in self._places for node in nodes):
            self._places = {node: index for index, node in enumerate(self.graph)}
        return sorted(nodes, key=self._places.__getitem__)

    def site(self, node: ir.Node) -> Site:
        """Return a node with its surroundings."""
        return Site(node, self.opset, self.dims)

    def constant(self, tensor: ir.TensorProtocol, name: str, before: ir.Node) -> ir.Value:
        """Add a constant."""
        name = graphs.fresh(name, self.taken)
        tensor.name = name
        if self._in_function:
            node = ir.node("Constant", [], {"value": tensor})
            node.outputs[0].name = name
            self.graph.insert_before(before, node)
            return node.outputs[0]
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
        )
        self.graph.register_initializer(value)
        return value

    def describe(self, value: ir.Value, like: ir.Value, name: str, perm: Perm | None = None) -> None:
        """Give a new value a name, and the type and facts that follow from like = Transpose(value, perm)."""
        value.name = graphs.fresh(name.split(_SUFFIX)[0] + _SUFFIX, self.taken)
        known = self.facts.get(like)
        value.type = like.type or (known.type if known is not None else None)
        back = None if perm is None else inverse(perm)
        if like.shape is not None:
            declared = like.shape
            value.shape = declared if back is None else ir.Shape([declared[axis] for axis in back])
        for key, fact in like.metadata_props.items():
            if key.startswith(FACT_PREFIX):
                value.metadata_props[key] = fact
        if known is not None and back is None:
            self.facts[value] = known
        elif known is not None and back is not None:
            shape = None if known.shape is None else ir.Shape([known.shape[axis] for axis in back])
            self.facts[value] = Known(known.type, shape, permuted(known.sizes, back))


class Region:
    """What can change its layout together with one value.

    Attributes:
        perms: the layouts of values: v = Transpose(v', perm).
    """

    def __init__(self, world: World, value: ir.Value, perm: Perm) -> None:
        self._world = world
        self.perms: dict[ir.Value, Perm] = {}
        self._flips: dict[ir.Node, Flip] = {}
        self._crossed: dict[ir.Node, tuple[int, int]] = {}
        self._opening: dict[ir.Node, None] = {}
        self._closing: dict[ir.Node, None] = {}
        self._refused: set[ir.Node] = set()
        self._queue: deque[ir.Value] = deque()
        self._assign(value, canonical(perm, world.dims(value)))
        while self._queue:
            self._look_around(self._queue.popleft())

    def _assign(self, value: ir.Value, perm: Perm) -> None:
        self.perms[value] = perm
        self._queue.append(value)

    def _look_around(self, value: ir.Value) -> None:
        producer = value.producer()
        if producer is not None and producer.graph is self._world.graph:
            self._enter(producer, ~value.index())  # type: ignore[operator]  # an output has an index
        for node, index in value.uses():
            if node.graph is self._world.graph:
                self._enter(node, index)

    def _enter(self, node: ir.Node, at: int) -> None:
        if node in self._flips or node in self._refused or node in self._opening or node in self._closing:
            return
        perm = self.perms[_value(node, at)]
        site = self._world.site(node)
        if not graphs.is_op(node, "Transpose"):
            found = flip(site, at, perm)
        else:
            found = self._cross(node, site, at, perm)
            if found is None and node not in self._refused:
                return
        if found is None or not self._join(node, found):
            self._refused.add(node)

    def _cross(self, node: ir.Node, site: Site, at: int, perm: Perm) -> Flip | None:
        """Let a Transpose, if it does not lead out of the region, do another permutation."""
        joint = transposed(site, at, perm)
        if joint is None:
            self._refused.add(node)
            return None
        other = (
            self._world.dims(node.outputs[0]) if at >= 0 else permuted(self._world.dims(node.outputs[0]), inverse(perm))
        )
        if is_identity(canonical(joint, other)):
            (self._closing if at >= 0 else self._opening)[node] = None
            return None
        own = transposed(site, at, tuple(range(len(perm))))
        self._crossed[node] = _cost(own or joint, self._world.dims(node.outputs[0])), _cost(joint, other)
        layout = {0: perm}
        attributes = {"perm": list(joint)}
        return Flip(layout, {}, attributes) if at >= 0 else Flip({}, layout, attributes)

    def _join(self, node: ir.Node, found: Flip) -> bool:
        """Take a node in, with the values that change with it, if the layouts agree with those at hand."""
        if any(output.is_graph_output() and self._world.taken[output.name or ""] > 1 for output in node.outputs):
            return False
        layouts: dict[ir.Value, Perm] = {}
        inputs, outputs = {}, {}
        for index, perm in found.inputs.items():
            value = node.inputs[index]
            assert value is not None
            if is_free(value):
                inputs[index] = perm
            elif not self._agree(layouts, value, perm):
                return False
            elif value in layouts:
                inputs[index] = layouts[value]
        for index, perm in found.outputs.items():
            value = node.outputs[index]
            if not self._agree(layouts, value, perm):
                return False
            if value in layouts:
                outputs[index] = layouts[value]
        self._flips[node] = _with_layouts(found, inputs, outputs)
        for value, perm in layouts.items():
            if value not in self.perms:
                self._assign(value, perm)
        return True

    def _agree(self, layouts: dict[ir.Value, Perm], value: ir.Value, perm: Perm) -> bool:
        perm = canonical(perm, self._world.dims(value))
        if is_identity(perm):
            return value not in layouts
        known = self.perms.get(value) or layouts.get(value)
        layouts[value] = perm
        return known is None or known == perm

    def improve(self) -> bool:
        """Choose the best layouts, and change the graph if that takes fewer Transposes; tell whether it did."""
        cut = Cut()
        labels = {node: cut.node() for node in self._flips}
        cost = always = count = 0
        for node, (same, other) in self._crossed.items():
            if node in labels:
                cost, always = cost + same, always + min(same, other)
                cut.arc(ONE, labels[node], max(0, same - other))
                cut.arc(labels[node], ZERO, max(0, other - same))
        edges = []
        for value, perm in self.perms.items():
            price = _cost(perm, self._world.dims(value))
            producer = value.producer()
            there = sum(node in self._closing for node, _ in value.uses())
            maker = ZERO
            if producer is not None and producer in self._opening:
                maker = ONE
                there += graphs.is_needed(value)
            elif producer is not None and self._makes(producer, value):
                maker = labels[producer]
            takers = {self._label(node, index, perm, labels) for node, index in value.uses()}
            if value.is_graph_output():
                takers.add(ZERO)
            cost, count = cost + price * there, count + there
            edges.append((maker, takers - {maker}))
            _charge(cut, *edges[-1], price)
        least, ones = cut.solve()
        needed = sum(any(ones[maker] != ones[taker] for taker in takers) for maker, takers in edges)
        if always + least >= cost or needed > count:
            return False
        _Change(self._world, self, {node for node, label in labels.items() if ones[label]}).make()
        return True

    def _makes(self, producer: ir.Node, value: ir.Value) -> bool:
        found = self._flips.get(producer)
        return found is not None and value.index() in found.outputs

    def _label(self, node: ir.Node, index: int, perm: Perm, labels: dict[ir.Node, int]) -> int:
        if node in self._closing:
            return ONE
        found = self._flips.get(node)
        return labels[node] if found is not None and found.inputs.get(index) == perm else ZERO


class _Change:
    """The rewriting of a region, once it is known which nodes change."""

    def __init__(self, world: World, region: Region, nodes: set[ir.Node]) -> None:
        self._world, self._perms = world, region.perms
        self._flips = {node: region._flips[node] for node in nodes}
        self._opening, self._closing = region._opening, region._closing
        self._one: dict[ir.Value, ir.Value] = {}
        self._zero: dict[ir.Value, ir.Value] = {}

    def make(self) -> None:
        """Rewrite in the order of the graph, so that whatever a node needs is there."""
        concerned = self._flips.keys() | self._closing.keys()
        inputs = {node: tuple(node.inputs) for node in concerned}
        removed = []
        for node in self._world.in_order(concerned):
            if node in self._closing:
                value = inputs[node][0]
                assert value is not None
                if value in self._zero or value in self._one or value.producer() in self._opening:
                    self._zero[node.outputs[0]] = self._other(value, node)
                    self._replace(node.outputs[0], self._zero[node.outputs[0]])
                    removed.append(node)
                else:
                    self._one[value] = node.outputs[0]
            else:
                self._flip(node, self._flips[node], inputs[node])
                removed.append(node)
        stale = {value for node in removed for value in inputs[node] if value is not None}
        for node in reversed(removed):
            graphs.detach(node)
        for node in removed:
            self._world.graph.remove(node)
        for node in self._opening:
            stale.add(node.outputs[0])
        for value in stale:
            if value.producer() is None or value.producer().graph is not None:  # type: ignore[union-attr]
                graphs.discard(value)

    def _flip(self, old: ir.Node, how: Flip, inputs: tuple[ir.Value | None, ...]) -> None:
        world = self._world
        name = old.outputs[0].name or old.op_type
        kept = inputs[:1] if how.op_type else inputs
        new_inputs: list[ir.Value | None] = []
        for index in range(max(len(kept), *(index + 1 for index in how.constants), 0)):
            value = kept[index] if index < len(kept) else None
            if index in how.constants:
                array = how.constants[index]
                new_inputs.append(world.constant(ir.tensor(array), f"{name}_{index}", old))
            elif value is None or index not in how.inputs:
                new_inputs.append(value if value is None else self._zero.get(value, value))
            elif value in self._perms:
                new_inputs.append(self._other(value, old))
            else:
                new_inputs.append(self._relaid(value, how.inputs[index], old))
        attributes = {} if how.op_type else dict(old.attributes)
        for key, setting in how.attributes.items():
            attributes.pop(key, None)
            if setting is not None:
                attributes[key] = (
                    ir.AttrInt64(key, setting) if isinstance(setting, int) else ir.AttrInt64s(key, setting)
                )
        new = ir.Node(
            old.domain,
            how.op_type or old.op_type,
            new_inputs,
            attributes,
            num_outputs=len(old.outputs),
            name=old.name,
            doc_string=old.doc_string,
            metadata_props=dict(old.metadata_props),
        )
        world.graph.insert_before(old, new)
        for index, (value, made) in enumerate(zip(old.outputs, new.outputs, strict=True)):
            perm = how.outputs.get(index)
            world.describe(made, value, value.name or "", perm)
            if perm is None:
                self._replace(value, made)
                self._zero[value] = made
                continue
            self._one[value] = made
            if self._is_needed_as_it_was(value, perm):
                self._zero[value] = self._transpose(made, perm, value, old)
                self._replace(value, self._zero[value])
        for gather, indices in how.gathers:
            picked = world.constant(ir.tensor(indices), f"{gather.outputs[0].name}_indices", gather)
            former = gather.inputs[1]
            gather.replace_input_with(1, picked)
            assert former is not None
            graphs.discard(former)

    def _other(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """Return the other form of a value, by a new Transpose if there is none yet."""
        producer = value.producer()
        if producer is not None and producer in self._opening:
            source = producer.inputs[0]
            assert source is not None
            return source
        if value not in self._one:
            self._one[value] = self._transpose(self._zero.get(value, value), inverse(self._perms[value]), None, before)
        return self._one[value]

    def _transpose(self, source: ir.Value, perm: Perm, like: ir.Value | None, before: ir.Node) -> ir.Value:
        node = ir.node("Transpose", [source], {"perm": list(perm)})
        self._world.graph.insert_before(before, node)
        made = node.outputs[0]
        if like is None:
            self._world.describe(made, source, source.name or "", inverse(perm))
        else:
            self._world.describe(made, like, like.name or "")
        return made

    def _relaid(self, value: ir.Value, perm: Perm, before: ir.Node) -> ir.Value:
        """Return a constant in its other form, with as many axes as that has."""
        tensor = graphs.constant(value)
        assert tensor is not None
        array = tensor.numpy()
        array = array.reshape((1,) * (len(perm) - array.ndim) + array.shape).transpose(inverse(perm))
        return self._world.constant(
            ir.Tensor(np.ascontiguousarray(array), dtype=tensor.dtype), f"{value.name}_transposed", before
        )

    def _is_needed_as_it_was(self, value: ir.Value, perm: Perm) -> bool:
        return value.is_graph_output() or any(
            node not in self._closing and (node not in self._flips or self._flips[node].inputs.get(index) != perm)
            for node, index in value.uses()
        )

    def _replace(self, old: ir.Value, new: ir.Value) -> None:
        if graphs.is_needed(old) and graphs.redirect(old, new, self._world.taken):
            graphs.compute_by_identity(old, new)
            for copy in (user.outputs[0] for user in new.consumers() if graphs.is_op(user, "Identity")):
                if old in self._world.facts:
                    self._world.facts.setdefault(copy, self._world.facts[old])


def _with_layouts(found: Flip, inputs: dict[int, Perm], outputs: dict[int, Perm]) -> Flip:
    return Flip(inputs, outputs, found.attributes, found.constants, found.op_type, found.gathers)


def _value(node: ir.Node, at: int) -> ir.Value:
    value = node.inputs[at] if at >= 0 else node.outputs[~at]
    assert value is not None
    return value


def _cost(perm: Perm, dims: Dims | None) -> int:
    return _VIEW if keeps_order(perm, dims) else _COPY


def _charge(cut: Cut, maker: int, takers: set[int], price: int) -> None:
    """Add the costs of one value: a Transpose for takers of v if v' is made, and the other way round."""
    to_zero, to_one = takers - {ONE}, takers - {ZERO}
    if maker != ZERO and to_zero:
        made_other = cut.node()
        cut.arc(maker, made_other, price)
        for taker in sorted(to_zero):
            cut.arc(made_other, taker)
    if maker != ONE and to_one:
        made_same = cut.node()
        cut.arc(made_same, maker, price)
        for taker in sorted(to_one):
            cut.arc(taker, made_same)
