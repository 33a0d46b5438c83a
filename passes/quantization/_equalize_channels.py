"""Where a positive factor per channel can go: what scales it in, what lets it through, and what takes it out again.

Every value of a graph may be multiplied by a power of two per channel, an exponent of which there is one for each element
of an array that broadcasts against the value. Operators relate the exponents of what they read and compute (`_equalize_rules`):
Relu makes them equal, a Conv with constant weights leaves both sides free and takes the difference into the weights,
Softmax makes those of its input zero. What is free in the end can be chosen at will without changing what the model
computes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from graphopt import graphs, inference
from graphopt.passes.quantization._equalize_variables import Variables


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A constant input of a node that takes factors.

    Attributes:
        node, index: which input.
        parts: arrays of exponents that broadcast against the constant; it is multiplied by two to their sum.
    """

    node: ir.Node
    index: int
    parts: tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution or matrix product with constant weights.

    Attributes:
        node: the operator; one of several where these share the weights.
        weight: float32.
        inputs: exponents of the channels it reads, [I].
        outputs: exponents of the channels it computes, [O].
        groups: of channels that are apart from each other.
    """

    node: ir.Node
    weight: np.ndarray
    inputs: np.ndarray
    outputs: np.ndarray
    groups: int

    def matrix(self) -> np.ndarray:
        """Return the weights as [groups, outputs of a group, inputs of a group, taps]."""
        weight, groups = self.weight, self.groups
        if self.node.op_type == "Conv":
            return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        if self.node.op_type == "ConvTranspose":
            grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
            return np.swapaxes(grouped, 1, 2)
        transposed = self.node.op_type == "Gemm" and self.node.attributes.get_int("transB", 0) == 1
        return (weight if transposed else weight.T)[None, :, :, None]


@dataclasses.dataclass(frozen=True)
class Read:
    """An activation that a layer, or a product of activations, reads.

    Attributes:
        value: the activation.
        node: what reads it.
    """

    value: ir.Value
    node: ir.Node


@dataclasses.dataclass(frozen=True)
class Made:
    """Constants that are added to channels, or that normalized channels are multiplied by: a sign of how large these are.

    Attributes:
        constants: float32, of the shape of `ids`.
        ids: exponents of the channels.
    """

    constants: np.ndarray
    ids: np.ndarray


class Channels:
    """The exponents of a model's main graph.

    Attributes:
        variables: the exponents.
        scaled: constants that take factors.
        layers: in the order of the graph, one for every weight.
        reads: what layers and products of activations read.
        made: what is known about the size of channels from constants.
        tied: exponents on both sides of weights, which layers with the same weights share.
    """

    def __init__(self, model: ir.Model) -> None:
        """Prepare to follow a model's nodes."""
        self.variables = Variables()
        self.scaled: list[Scaled] = []
        self.layers: list[Layer] = []
        self.reads: list[Read] = []
        self.made: list[Made] = []
        self.tied: dict[ir.Value, tuple[np.ndarray, np.ndarray]] = {}
        self._known = inference.infer(model)
        self._ids: dict[ir.Value, np.ndarray] = {}

    def sizes(self, value: ir.Value) -> tuple[inference.Dim, ...] | None:
        """Return the sizes of a value as far as they are known; None without rank."""
        known = self._known.get(value)
        return None if known is None else known.dims()

    def of(self, value: ir.Value) -> np.ndarray:
        """Return the exponents of a value; without a known rank a scalar zero."""
        if value not in self._ids:
            return np.zeros((1,) * len(self.sizes(value) or ()), np.int64)
        return self._ids[value]

    def set(self, value: ir.Value, ids: np.ndarray) -> None:
        """Say what the exponents of a value are."""
        for axis, size in enumerate(ids.shape):
            first = ids.take([0], axis) if size > 1 else ids
            if size > 1 and bool(np.all(ids == first)):
                ids = first
        self._ids[value] = ids

    def fix(self, value: ir.Value, reason: str) -> None:
        """Leave a value as it is."""
        if value in self._ids:
            self.variables.fix(self._ids[value], reason)

    def reason(self, value: ir.Value) -> str | None:
        """Return why no channel of a value can be scaled; None if one can."""
        ids = self._ids.get(value)
        if ids is not None and ids.any():
            return self.variables.reason(ids)
        node = value.producer()
        if node is None:
            return "it is an input of the model"
        return f"it comes from {graphs.label(node)} ({node.op_type}), which no factor passes through"

    def along(self, ids: np.ndarray, axes: Iterable[int]) -> np.ndarray:
        """Return exponents that differ along these axes alone, by making equal what differs along others."""
        axes = {axis % ids.ndim for axis in axes}
        for axis in range(ids.ndim):
            if axis not in axes and ids.shape[axis] > 1:
                first = ids.take([0], axis)
                self.variables.unify(ids, first)
                ids = first
        return ids
