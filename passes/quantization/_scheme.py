"""Which types a quantized graph keeps its tensors in."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable

import onnx_ir as ir

from graphopt.passes.quantization._grid import NUMBERS, Number
from graphopt.passes.quantization._kernels import Role
from graphopt.passes.quantization._units import Unit

WIDE = {"uint8": "uint16", "int8": "int16", "uint16": "uint16", "int16": "int16", "float8": "float8"}
"""What activations of the units in `Scheme.int16` are kept in, by what the others are kept in."""

WEIGHTS = {"ternary": "int2", "binary": "int2"}
"""Schemes of weights that are no types of their own, and the type that keeps them."""


@dataclasses.dataclass(frozen=True)
class Scheme:
    """The types of a quantized graph.

    Attributes:
        activations, weights: names in `NUMBERS`, or in `WEIGHTS`.
        per_channel: give every output channel of a weight a scale of its own.
        symmetric: put the zero of activations in the middle of their integers.
        int4: names of nodes whose weights take 4 bits.
        int16: names of nodes whose activations take 16 bits.
    """

    activations: str = "uint8"
    weights: str = "int8"
    per_channel: bool = True
    symmetric: bool = False
    int4: Collection[str] = ()
    int16: Collection[str] = ()

    @property
    def opset(self) -> int:
        """The version of ONNX that the types need."""
        names = [self.activations, WEIGHTS.get(self.weights, self.weights)]
        names += ["int4"] if self.int4 else []
        names += [WIDE[self.activations]] if self.int16 else []
        return max(NUMBERS[name].opset for name in names)

    def weight(self, unit: Unit) -> str:
        """Return how the weights of a unit are kept."""
        return "int4" if any(node.name in self.int4 for node in unit.nodes) else self.weights

    def wide(self, units: Iterable[Unit]) -> set[ir.Value]:
        """Return the activations that take 16 bits: those of the units named, wherever they are moved."""
        units = list(units)
        found = {
            value
            for unit in units
            if any(node.name in self.int16 for node in unit.nodes)
            for value in (*unit.inputs, *unit.outputs)
        }
        moving = [u for u in units if u.role in (Role.CARRIER, Role.RESCALE) or u.node.op_type == "Concat"]
        before = -1
        while len(found) != before:
            before = len(found)
            for unit in moving:
                around = {*unit.inputs, *unit.outputs}
                if around & found:
                    found |= around
        return found

    def number(self, *, wide: bool) -> Number:
        """Return the type of activations."""
        return NUMBERS[WIDE[self.activations] if wide else self.activations]
