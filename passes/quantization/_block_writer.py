"""Put weights in blocks into a graph: as DequantizeLinear, as operators of ONNX Runtime, or as arithmetic to be folded."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import graphs
from graphopt.passes.quantization._block_layout import Layout
from graphopt.passes.quantization._block_store import Shelf, Store

MICROSOFT = "com.microsoft"

_BYTE = 8
_SAFE_BITS = 4
"""Of int2 in front of MatMul ONNX Runtime 1.31 computes something else."""


@dataclasses.dataclass(frozen=True)
class Site:
    """A node that uses a weight.

    Attributes:
        node: the node.
        index: which of its inputs is the weight.
        weight: an initializer, or the output of a Constant.
        layout: where blocks lie.
    """

    node: ir.Node
    index: int
    weight: ir.Value
    layout: Layout

    @property
    def graph(self) -> ir.Graph:
        """The graph of the node."""
        assert isinstance(self.node.graph, ir.Graph)
        return self.node.graph

    @property
    def home(self) -> ir.Graph:
        """The graph of the weight."""
        assert isinstance(self.weight.graph, ir.Graph)
        return self.weight.graph

    @property
    def tensor(self) -> ir.TensorProtocol:
        """The weight's tensor."""
        tensor = graphs.constant(self.weight)
        assert tensor is not None
        return tensor


class Writer(abc.ABC):
    """Writes weights into one model in one form."""

    def __init__(self, model: ir.Model) -> None:
        """Prepare to write into a model."""
        self._taken = graphs.names(model)
        self._stored: dict[Store, list[ir.Value]] = {}
        self._floats: dict[Store, ir.Value] = {}
        """Weights in floats again that are computed once for all, first of all in the graph that holds them."""

    @staticmethod
    @abc.abstractmethod
    def shelf(node: ir.Node) -> Shelf:
        """Return how the numbers of a node's weight are laid down."""

    @abc.abstractmethod
    def write(self, site: Site, store: Store) -> None:
        """Give a node its weight in blocks."""

    def initializers(self, graph: ir.Graph, site: Site, store: Store) -> list[ir.Value]:
        """Return initializers of a graph that hold a weight; sites that share a store share them."""
        if store not in self._stored:
            values = []
            for tensor in store.tensors(lambda suffix: graphs.fresh(f"{site.weight.name}_{suffix}", self._taken)):
                value = ir.Value(
                    name=tensor.name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor
                )
                graph.register_initializer(value)
                values.append(value)
            self._stored[store] = values
        return self._stored[store]

    def node(self, op: str, inputs: Sequence[ir.Value], name: str, **attributes: Any) -> ir.Node:
        """Make a node of one output, both called `name` or like it; it is not in the graph yet."""
        made = ir.node(op, inputs, attributes, name=graphs.fresh(name, self._taken))
        made.outputs[0].name = made.name
        return made


class Dequantize(Writer):
    """Standard DequantizeLinear in front of the node; behind Gather, so that only rows looked up are dequantized."""

    @staticmethod
    def shelf(node: ir.Node) -> Shelf:
        """See `Writer.shelf`."""
        del node
        return "whole"

    def __init__(self, model: ir.Model, stores: Mapping[Site, Store]) -> None:
        """Prepare to write into a model.

        Args:
            model: the model.
            stores: all that is going to be written.
        """
        super().__init__(model)
        self._homes: dict[Store, ir.Graph] = {}
        for site, store in stores.items():
            if self._homes.setdefault(store, site.graph) is not site.graph:
                self._homes[store] = site.home

    def write(self, site: Site, store: Store) -> None:
        """See `Writer.write`.

        Integers lie where their DequantizeLinear is, and that where the node is, lest ONNX Runtime 1.31 look for
        the integers in the wrong graph and refuse the model; only for nodes in several graphs, it is around them all.
        """
        home = self._homes[store]
        if store.layout.transposed:
            site.node.attributes.pop("transB")
        inputs = self.initializers(home, site, store)
        if site.node.op_type == "Gather":
            self._gather(site, store, inputs)
        elif home is site.graph:
            site.node.replace_input_with(site.index, self._dequantized(site, store, inputs, before=site.node))
        else:
            if store not in self._floats:
                self._floats[store] = self._dequantized(site, store, inputs, before=home[0])
            site.node.replace_input_with(site.index, self._floats[store])

    def _dequantized(self, site: Site, store: Store, inputs: list[ir.Value], before: ir.Node) -> ir.Value:
        if store.kind.bits < _SAFE_BITS:
            inputs = self._widened(inputs, store, before)
        made = self.node("DequantizeLinear", inputs, f"{site.weight.name}_dequantized", **store.layout.attributes)
        made.outputs[0].type, made.outputs[0].shape = ir.TensorType(site.tensor.dtype), ir.Shape(store.layout.shape)
        _insert(made, before)
        return made.outputs[0]

    def _widened(self, inputs: Sequence[ir.Value], store: Store, before: ir.Node) -> list[ir.Value]:
        """Return numbers and zero points as bytes, with scales as they are."""
        wide = ir.DataType.INT8 if store.kind.symmetric else ir.DataType.UINT8
        return [value if value is inputs[1] else self._cast(value, wide, before) for value in inputs]

    def _cast(self, value: ir.Value, to: ir.DataType, before: ir.Node) -> ir.Value:
        """Return a value in another type; of constants ONNX Runtime casts when the model loads."""
        cast = self.node("Cast", [value], f"{value.name}_cast", to=to)
        _insert(cast, before)
        return cast.outputs[0]

    def _gather(self, site: Site, store: Store, inputs: list[ir.Value]) -> None:
        indices, node = site.node.inputs[1], site.node
        assert indices is not None
        if store.kind.bits < _BYTE:  # Gather knows no narrower types
            inputs = self._widened(inputs, store, node)
        rows = []
        for value in inputs:
            rows.append(self.node("Gather", [value, indices], f"{value.name}_rows"))
            _insert(rows[-1], node)
        numbers, scales, *zeros = (row.outputs[0] for row in rows)
        if store.layout.blocks > 1:
            graphs.become(node, "DequantizeLinear", [numbers, scales, *zeros], axis=-1, block_size=store.layout.size)
            return
        value = self._cast(numbers, site.tensor.dtype, node)  # DequantizeLinear might take the scale for one of many
        if zeros:
            centred = self.node(
                "Sub", [value, self._cast(zeros[0], site.tensor.dtype, node)], f"{site.weight.name}_centred"
            )
            _insert(centred, node)
            value = centred.outputs[0]
        graphs.become(node, "Mul", [value, scales])


class Fold(Writer):
    """Cast and Mul, which ONNX Runtime carries out when it loads the model; from then on the weights are floats."""

    @staticmethod
    def shelf(node: ir.Node) -> Shelf:
        """See `Writer.shelf`."""
        del node
        return "cut"

    def write(self, site: Site, store: Store) -> None:
        """See `Writer.write`."""
        if store not in self._floats:
            self._floats[store] = self._chain(site, store)
        site.node.replace_input_with(site.index, self._floats[store])

    def _chain(self, site: Site, store: Store) -> ir.Value:
        """Return the weight in floats; what computes it stands first in the weight's graph."""
        graph, layout, name = site.home, store.layout, site.weight.name
        nodes: list[ir.Node] = []

        def then(op: str, inputs: Sequence[ir.Value], suffix: str, **attributes: Any) -> ir.Value:
            nodes.append(self.node(op, inputs, f"{name}_{suffix}", **attributes))
            return nodes[-1].outputs[0]

        numbers, scales, *zeros = self.initializers(graph, site, store)
        value = then("Cast", [numbers], "float", to=ir.DataType.FLOAT)
        if zeros:
            value = then("Sub", [value, then("Cast", zeros, "zero", to=ir.DataType.FLOAT)], "centred")
        half = site.tensor.dtype != ir.DataType.FLOAT  # ONNX Runtime's CPU provider folds no half-precision arithmetic
        if half:
            scales = then("Cast", [scales], "scale", to=ir.DataType.FLOAT)
        value = then("Mul", [value, scales], "scaled")
        if layout.blocks > 1:
            full = (*layout.shape[: layout.axis], -1, *layout.shape[layout.axis + 1 :])
            value = then("Reshape", [value, self._integers(graph, full, f"{name}_shape")], "joined")
            if layout.blocks * layout.size > layout.rows:
                bounds = [
                    self._integers(graph, (number,), f"{name}_{what}")
                    for what, number in (("start", 0), ("end", layout.rows), ("axis", layout.axis))
                ]
                value = then("Slice", [value, *bounds], "cut")
        if half:
            value = then("Cast", [value], "half", to=site.tensor.dtype)
        value.type, value.shape = ir.TensorType(site.tensor.dtype), ir.Shape(layout.shape)
        graph.insert_before(graph[0], nodes)
        return value

    def _integers(self, graph: ir.Graph, numbers: Sequence[int], name: str) -> ir.Value:
        return graphs.initializer(graph, np.array(numbers, np.int64), name, self._taken)


class NBits(Writer):
    """ONNX Runtime's MatMulNBits and GatherBlockQuantized, which read packed numbers as they are."""

    def __init__(self, model: ir.Model, accuracy_level: int) -> None:
        """Prepare to write into a model.

        Args:
            model: the model.
            accuracy_level: the attribute of MatMulNBits; 0 leaves it out.
        """
        super().__init__(model)
        self._level = {"accuracy_level": accuracy_level} if accuracy_level else {}
        model.opset_imports.setdefault(MICROSOFT, 1)

    @staticmethod
    def shelf(node: ir.Node) -> Shelf:
        """See `Writer.shelf`."""
        return "gathered" if node.op_type == "Gather" else "packed"

    def write(self, site: Site, store: Store) -> None:
        """See `Writer.write`."""
        node, layout, bits = site.node, store.layout, store.kind.bits
        numbers, *rest = self.initializers(site.home, site, store)
        if node.op_type == "Gather":
            facts = {"bits": bits, "block_size": layout.block, "gather_axis": 0, "quantize_axis": 1}
            _turn(node, "GatherBlockQuantized", [numbers, node.inputs[1], *rest], facts)
            return
        facts = {"K": layout.rows, "N": layout.columns, "bits": bits, "block_size": layout.block} | self._level
        bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
        if bias is None:
            _turn(node, "MatMulNBits", [node.inputs[0], numbers, *rest], facts)
            return
        product = self.node("MatMul", [], f"{node.outputs[0].name}_product")
        _turn(product, "MatMulNBits", [node.inputs[0], numbers, *rest], facts)
        product.outputs[0].type, product.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
        _insert(product, node)
        graphs.become(node, "Add", [product.outputs[0], bias])


def _insert(node: ir.Node, before: ir.Node) -> None:
    assert isinstance(before.graph, ir.Graph)
    before.graph.insert_before(before, node)


def _turn(node: ir.Node, op: str, inputs: Sequence[ir.Value | None], attributes: dict[str, int]) -> None:
    """Turn a node into an operator of ONNX Runtime that computes the same output."""
    graphs.become(node, op, inputs, **attributes)
    node.domain = MICROSOFT
