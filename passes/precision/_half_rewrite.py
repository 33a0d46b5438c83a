"""Carry out a plan on a model: for good, or as a simulation in float32 that rounds what would be narrow.

ONNX Runtime's CPU provider has few float16 kernels. Elsewhere it computes in float32 and does not even round in
between, so that overflow and loss of digits do not show there, while they do on a GPU. The simulation rounds every
tensor that would be stored in the narrow type, by a pair of casts; within an operator it computes in float32, as the
accumulators of GPUs do.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir

from graphopt import graphs
from graphopt.passes.precision import _half_operators as operators
from graphopt.passes.precision._half_plan import Plan, Site

_SINGLE = ir.DataType.FLOAT


def rounded(array: np.ndarray, dtype: ir.DataType) -> np.ndarray:
    """Return an array in the narrow type: to the nearest, and beyond its range infinite."""
    with np.errstate(over="ignore"):
        return array.astype(dtype.numpy())


class Rewriter:
    """One plan, carried out on one model.

    Attributes:
        casts: how many Cast nodes were added and removed.
    """

    def __init__(self, model: ir.Model, plan: Plan, dtype: ir.DataType, *, simulate: bool) -> None:
        """Prepare to change `model`, which `plan` was made for."""
        self.casts = [0, 0]
        self._narrow: dict[ir.Value, ir.Value] = {}
        self._model, self._plan, self._dtype, self._simulate = model, plan, dtype, simulate
        self._taken: Counter[str] = graphs.names(model)
        self._wide: dict[ir.Value, ir.Value] = {}
        self._alone = self._only_narrow()

    def run(self) -> None:
        """Change the model."""
        uses = list(self._plan.uses.items())
        changed = [] if self._simulate else self._retype()
        for (owner, index), (value, site) in uses:
            half = self._plan.is_half(value) if site is None else site.half
            new = self._wanted(value, half=half, either=site is None)
            if new is value:
                continue
            if isinstance(owner, ir.Node):
                owner.replace_input_with(index, new)
            else:
                new.shape = value.shape
                if owner is self._model.graph:
                    self._swap_names(value, new)
                owner.outputs[index] = new
        for value in {value for value, _ in self._plan.uses.values() if graphs.constant(value) is not None}:
            graphs.discard(value)
        self._drop_empty_casts(changed)

    def _only_narrow(self) -> set[ir.Value]:
        """Return the constants that are wanted in the narrow type only."""
        wants: dict[ir.Value, set[bool]] = {}
        for value, site in self._plan.uses.values():
            if graphs.constant(value) is not None:
                wants.setdefault(value, set()).add(site is not None and site.half)
        return {value for value, kinds in wants.items() if kinds == {True}}

    def _wanted(self, value: ir.Value, *, half: bool, either: bool) -> ir.Value:
        """Return what stands for a value in one of the types."""
        if graphs.constant(value) is not None:
            return self._constant(value) if half and not either else value
        stored = self._plan.is_half(value)
        if self._simulate:
            return self._rounded(value) if half or stored else value
        if half == stored:
            return value
        cache = self._narrow if half else self._wide
        if value not in cache:
            cache[value] = self._cast(value, self._dtype if half else _SINGLE)
        return cache[value]

    def _constant(self, value: ir.Value) -> ir.Value:
        """Return a constant in the narrow type: itself, if nothing wants it in float32."""
        if value in self._narrow:
            return self._narrow[value]
        tensor = graphs.constant(value)
        assert tensor is not None
        array = rounded(tensor.numpy(), self._dtype)
        made = ir.tensor(array.astype(np.float32)) if self._simulate else ir.tensor(array, self._dtype)
        new = value
        if value not in self._alone:
            new = ir.Value(
                name=graphs.fresh(f"{value.name}_{operators.name(self._dtype)}", self._taken), shape=value.shape
            )
        node = value.producer()
        if node is None:
            made.name = new.name
            new.const_value, new.type = made, ir.TensorType(made.dtype)
            if new is not value:
                assert value.graph is not None
                value.graph.register_initializer(new)
        else:
            assert node.graph is not None
            constant = node
            if new is not value:
                constant = ir.Node("", "Constant", [], outputs=[new], name=f"{node.name}_narrow" if node.name else None)
                node.graph.insert_after(node, constant)
            constant.attributes.clear()
            constant.attributes.add(ir.AttrTensor("value", made))
            new.type = ir.TensorType(made.dtype)
        self._narrow[value] = new
        return new

    def _cast(self, value: ir.Value, to: ir.DataType, after: ir.Value | None = None) -> ir.Value:
        """Add a Cast where a value is made."""
        node = ir.node("Cast", [after or value], {"to": int(to)})
        out = node.outputs[0]
        out.name = graphs.fresh(f"{value.name}_{operators.name(to)}", self._taken)
        node.name = f"Cast:{out.name}"
        out.type = ir.TensorType(to)
        source = (after or value).producer()
        graph = value.graph
        assert isinstance(graph, ir.Graph)
        if source is not None:
            graph.insert_after(source, node)
        elif len(graph):
            graph.insert_before(graph[0], node)
        else:
            graph.append(node)
        self.casts[0] += 1
        return out

    def _rounded(self, value: ir.Value) -> ir.Value:
        """Return a value rounded to the narrow type and back, unless it is so already."""
        if value not in self._narrow:
            node = value.producer()
            site = self._plan.giver.get(value)
            if site is not None and site.half and self._is_round(node, site):
                self._narrow[value] = value
            else:
                self._narrow[value] = self._cast(value, _SINGLE, after=self._cast(value, self._dtype))
        return self._narrow[value]

    @staticmethod
    def _is_round(node: ir.Node | None, site: Site) -> bool:
        """Tell whether a narrow value only passes on what was rounded before: by control flow, or by moving elements."""
        if node is None:
            return site.node is None and site.follows
        return graphs.is_op(node, *operators.CONTROL, *operators.MOVERS)

    def _retype(self) -> list[ir.Node]:
        """Give narrow values their type, and say so in attributes that decide; return the casts among their makers."""
        casts = []
        for value, site in self._plan.giver.items():
            node = value.producer()
            if not site.half:
                continue
            value.type = ir.TensorType(self._dtype)
            if graphs.is_op(node, "Cast") and node is not None:
                node.attributes.add(ir.AttrInt64("to", int(self._dtype)))
                casts.append(node)
            elif graphs.is_op(node, "EyeLike") and node is not None:
                node.attributes.add(ir.AttrInt64("dtype", int(self._dtype)))
            elif graphs.is_op(node, "ConstantOfShape") and node is not None:
                fill = node.attributes.get("value")
                array = np.zeros(1, np.float32) if fill is None else fill.as_tensor().numpy()
                node.attributes.add(ir.AttrTensor("value", ir.tensor(rounded(array, self._dtype), self._dtype)))
        reading = [
            owner for (owner, _), (value, site) in self._plan.uses.items() if site is None and self._plan.is_half(value)
        ]
        return list(dict.fromkeys([*casts, *(owner for owner in reading if isinstance(owner, ir.Node))]))

    def _swap_names(self, old: ir.Value, new: ir.Value) -> None:
        """Let the new output of the model have the name that the old one had."""
        assert old.name is not None
        shown = old.name
        inner = f"{shown}_{operators.name(self._dtype if new.dtype == _SINGLE else _SINGLE)}"
        old.name = graphs.fresh(inner, self._taken)
        new.name = shown

    def _drop_empty_casts(self, nodes: list[ir.Node]) -> None:
        """Remove casts that cast to what they get, now."""
        for node in nodes:
            source, to = node.inputs[0], graphs.attribute(node, "to")
            if source is None or to is None or source.dtype != ir.DataType(to.as_int()) or node.graph is None:
                continue
            if graphs.redirect(node.outputs[0], source, self._taken) is None:
                node.graph.remove(node, safe=True)
                self.casts[1] += 1
