"""Which nodes of a model compute in a narrower float, and where its tensors change type: decided so that they seldom do.

A site is what decides about types together: a node, a graph input or output, or all that one value carried through
control flow is called on its way (the input of a Loop, the input and the output of its body, the output of the Loop).
A site gives its tensors a type and wants its inputs in that type; where a tensor has another type than a site wants,
one Cast serves all who want it. Constants cost nothing: they are stored in whatever types are wanted.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import onnx_ir as ir

from graphopt import graphs
from graphopt.passes.precision import _half_operators as operators
from graphopt.passes.precision._half_operators import CONTROL

_ROUNDS = 64
"""Sweeps over all sites in search of fewer casts; each makes progress, and few are needed."""


@dataclasses.dataclass(eq=False)
class Site:
    """What decides about types together.

    Attributes:
        label: what to call it in reports.
        node: the node, if it is one.
        half: whether its floats are narrow.
        fixed: whether that is settled.
        reason: why it stays float32, if it has to.
        follows: whether it computes nothing, so that its type does not matter.
        gives: values that have its type.
        wants: values that it takes in its type.
    """

    label: str
    node: ir.Node | None = None
    half: bool = True
    fixed: bool = False
    reason: str = ""
    follows: bool = False
    gives: list[ir.Value] = dataclasses.field(default_factory=list)
    wants: list[ir.Value] = dataclasses.field(default_factory=list)

    def stay(self, reason: str) -> None:
        """Settle that it stays float32, for the first reason given."""
        self.half, self.fixed, self.reason = False, True, self.reason or reason


SINGLE = Site("", half=False, fixed=True)
"""Wants float32, whatever is decided."""

_SCAN = 9
"""Opset since which Scan takes no batches."""

Place = tuple[ir.Node | ir.Graph, int]
"""Where a value is used: an input of a node, or an output of a graph."""


class Plan:
    """The sites of a model and what they decide.

    Attributes:
        sites: all but inputs and outputs of the model, in graph order.
        ports: those of inputs and outputs of the model.
        uses: by place the value and who decides about its type there; None takes what there is.
        giver: the site that gives a value its type.
    """

    def __init__(self, model: ir.Model, floats: frozenset[ir.Value], dtype: ir.DataType, *, keep_io: bool) -> None:
        """Make sites of a model without functions, where everything is narrow that may be.

        Args:
            model: never changed.
            floats: its float32 values.
            dtype: the narrower type.
            keep_io: whether inputs and outputs of the model stay float32.
        """
        self.sites: list[Site] = []
        self.ports: list[Site] = []
        self.uses: dict[Place, tuple[ir.Value, Site | None]] = {}
        self.giver: dict[ir.Value, Site] = {}
        self._users: dict[ir.Value, list[Site]] = defaultdict(list)
        self._floats, self._dtype = floats, dtype
        self._opset = operators.opset(model)
        for value in model.graph.inputs:
            self._gives(self._port(f"input '{value.name}'", narrow=not keep_io), value)
        self._enter(model.graph, opaque=False)
        for index, value in enumerate(model.graph.outputs):
            self._use((model.graph, index), value, self._port(f"output '{value.name}'", narrow=not keep_io))

    def _port(self, label: str, *, narrow: bool) -> Site:
        self.ports.append(Site(label, half=narrow, fixed=True))
        return self.ports[-1]

    def _enter(self, graph: ir.Graph, *, opaque: bool) -> None:
        for node in graph:
            bodies = list(graphs.subgraphs(node))
            if graphs.is_op(node, "Constant"):
                continue
            if is_control(node, self._opset) and not opaque:
                for body in bodies:
                    self._enter(body, opaque=False)
                self._carry(node)
                continue
            self._node(node, opaque=opaque)
            for body in bodies:
                self._enter(body, opaque=True)
                for index, value in enumerate(body.outputs):
                    self._use((body, index), value, SINGLE)

    def _node(self, node: ir.Node, *, opaque: bool) -> None:
        """Make a site of an ordinary node."""
        allowed = operators.allowed(node, self._opset, self._dtype)
        site = Site(graphs.label(node), node)
        computed = [value for value in node.outputs if value in self._floats]
        site.follows = not computed or node.op_type in operators.MOVERS | operators.MAKERS
        for index, value in enumerate(node.inputs):
            if value is not None and value in self._floats:
                either = graphs.is_op(node, "Cast")
                self._use((node, index), value, None if either else site if allowed.inputs[index] else SINGLE)
        for value, able in zip(node.outputs, allowed.outputs, strict=True):
            if value in self._floats and able:
                self._gives(site, value)
        if opaque:
            site.stay("it is in a body that is not looked into")
        elif allowed.reason:
            site.stay(allowed.reason)
        elif not site.gives and not site.wants:
            return
        if site.gives or site.wants or any(value in self._floats for value in (*node.inputs, *computed) if value):
            self.sites.append(site)

    def _carry(self, node: ir.Node) -> None:
        """Make a site of everything that If, Loop or Scan passes on as one."""
        for names in _carried(node):
            members = [name for name in names if isinstance(name, ir.Value)]
            places: list[Place] = [name for name in names if not isinstance(name, ir.Value)]
            here = [(place, value) for place in places if (value := _at(place)) is not None and value in self._floats]
            if not any(value in self._floats for value in members) and not here:
                continue
            called = next((v.name for v in reversed(members) if v.name), "")
            site = Site(f"{graphs.label(node)}: '{called}'", follows=True)
            for value in members:
                self._gives(site, value)
            for place, value in here:
                self._use(place, value, site)
            self.sites.append(site)

    def _gives(self, site: Site, value: ir.Value) -> None:
        if value in self._floats:
            site.gives.append(value)
            self.giver[value] = site

    def _use(self, place: Place, value: ir.Value, site: Site | None) -> None:
        if value not in self._floats:
            return
        self.uses[place] = (value, site)
        if site is not None and graphs.constant(value) is None:
            if site is not SINGLE:
                site.wants.append(value)
            self._users[value].append(site)

    def is_half(self, value: ir.Value) -> bool:
        """Tell whether a computed value is narrow where it is made."""
        site = self.giver.get(value)
        return site is not None and site.half

    def _casts(self, values: Iterable[ir.Value]) -> int:
        """Count the casts that values need."""
        return sum(any(user.half != self.is_half(value) for user in self._users.get(value, ())) for value in values)

    def constants(self, site: Site) -> Iterator[tuple[ir.Value, int]]:
        """Yield the constants that a node takes in its own type, and at which inputs."""
        for index in range(0 if site.node is None else len(site.node.inputs)):
            assert site.node is not None
            value, user = self.uses.get((site.node, index), (None, None))
            if value is not None and user is site and graphs.constant(value) is not None:
                yield value, index

    def on(self, copy: Mapping[Any, Any]) -> Plan:
        """Return the plan for a copy of its model, whose nodes, graphs and values are given by those of the model."""
        plan = object.__new__(Plan)
        plan.sites, plan.ports = self.sites, self.ports
        plan.uses = {(copy[owner], index): (copy[value], site) for (owner, index), (value, site) in self.uses.items()}
        plan.giver = {copy[value]: site for value, site in self.giver.items()}
        return plan

    def solve(self) -> None:
        """Settle the types of all that is not fixed: narrow where that costs no cast too many."""
        for site in self.sites:
            if not site.fixed:
                known = [self.is_half(value) for value in site.wants]
                site.half = all(known) if site.follows and site.node is not None else True
        for _ in range(_ROUNDS):
            changed = [self._improve(site) for site in self._free]
            if not any(changed):
                break

    @property
    def _free(self) -> list[Site]:
        heavy = operators.HEAVY
        return [
            s for s in self.sites if not s.fixed and not (s.half and s.node is not None and s.node.op_type in heavy)
        ]

    def _improve(self, site: Site) -> bool:
        """Change the type of a site if that saves a cast, or costs none and makes it narrow."""
        around = dict.fromkeys((*site.gives, *site.wants))
        before = self._casts(around)
        site.half = not site.half
        gain = before - self._casts(around)
        if gain > 0 or (gain == 0 and site.half and (site.gives or not site.wants)):
            return True
        site.half = not site.half
        return False


def _carried(node: ir.Node) -> Iterator[list[ir.Value | Place]]:
    """Yield what is one and the same tensor to If, Loop or Scan: outputs and inputs of bodies, and places of use."""
    bodies = list(graphs.subgraphs(node))
    if node.op_type == "If":
        for index, out in enumerate(node.outputs):
            yield [*((body, index) for body in bodies), out]
        return
    (body,) = bodies
    if node.op_type == "Loop":
        states, before, after = len(node.inputs) - 2, 2, 1
        scanned = 0
    else:
        scanned = _scan_inputs(node)
        states, before, after = len(node.inputs) - scanned, 0, 0
    for index in range(states):
        end = node.outputs[index : index + 1]
        yield [(node, before + index), body.inputs[before + index], (body, after + index), *end]
    for index in range(states, states + scanned):
        yield [(node, index), body.inputs[index]]
    for index in range(states, len(node.outputs)):
        yield [(body, after + index), node.outputs[index]]


def is_control(node: ir.Node, opset: int) -> bool:
    """Tell whether a node is an If, Loop or Scan; the first Scan, with batches, is left alone."""
    return graphs.is_op(node, *CONTROL) and (node.op_type != "Scan" or opset >= _SCAN)


def carried(node: ir.Node, opset: int) -> Iterator[list[ir.Value]]:
    """Yield the values that are one and the same tensor to an If, Loop or Scan; nothing for other nodes."""
    for names in _carried(node) if is_control(node, opset) else ():
        yield [v for name in names if (v := name if isinstance(name, ir.Value) else _at(name)) is not None]


def _scan_inputs(node: ir.Node) -> int:
    attribute = graphs.attribute(node, "num_scan_inputs")
    return len(node.inputs) if attribute is None else attribute.as_int()


def _at(place: Place) -> ir.Value | None:
    owner, index = place
    return owner.inputs[index] if isinstance(owner, ir.Node) else owner.outputs[index]
