"""Compute once, now, what depends on constants alone

A node whose inputs are all constant is evaluated with ONNX's reference evaluator and becomes an initializer, as do
Constant nodes. So does the shape of a value as far as it follows from the graph inputs: axes of fixed size are
known even where the batch is dynamic, and stay known through Gather, Slice, Concat and the like. An If with a
constant condition becomes its branch.

What is left alone, with the reason: QuantizeLinear and its relatives, which tell a runtime to compute in
integers; 4-bit weights that are unpacked, which would double in size; random operators; what the evaluator cannot
do, or does with another type or shape than ONNX infers; and what would make the model larger by more
than `max_growth`. Initializers that callers may override are not constants.

onnxscript's FoldConstantsPass is not used: it folds overridable initializers, Bernoulli and attributes that refer
to function parameters, ignores the operator sets of functions, limits elements rather than bytes, and stops at the
first operator that raises.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt import graphs, io, scopes
from graphopt.passbase import FACT_PREFIX, Result, param
from graphopt.passes.structural._evaluator import OPERATORS, Call, Refused
from graphopt.passes.structural._informed import Facts, Informed, dtype

_QUANTIZATION = frozenset({"DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"})
_IR_VERSION = 4
"""First IR version in which an initializer need not be a graph input."""


@dataclass(frozen=True)
class FoldConstants(Informed):
    """Evaluate what does not depend on the inputs."""

    max_growth: int = param(1 << 16, "bytes by which folding one node may enlarge the model's tensors")

    def call(self, model: ir.Model) -> Result:
        """Fold in place until nothing more is known; the report is that of `apply`, added up."""
        count: Counter[str] = Counter()
        again = True
        while again:
            result = self.apply(model, Facts(model))
            count.update(result.report)
            again = result.modified
        return Result(model, bool(+count), dict(count), result.skipped)

    def apply(self, model: ir.Model, facts: Facts) -> Result:
        """Fold in place; the report counts nodes folded, Constant nodes lifted, branches taken, and bytes added."""
        folder = _Folder(model, self.max_growth, facts)
        folder.lift()
        while folder.fold() or folder.take_branch():
            pass
        if folder.registered:
            model.ir_version = max(model.ir_version, _IR_VERSION)
        return Result(model, any(folder.count.values()), {**folder.count, "bytes": folder.growth}, folder.rows())


class _Folder:
    def __init__(self, model: ir.Model, max_growth: int, facts: Facts) -> None:
        self.count = {"folded": 0, "lifted": 0, "branches": 0}
        self.growth = 0
        self.registered = False
        self._model, self._max_growth = model, max_growth
        self._bodies = {function.graph for function in model.functions.values()}
        self._names = facts.names
        self._refused: dict[ir.Node, str] = {}
        self._facts = facts

    def rows(self) -> list[tuple[str, str]]:
        """Return why nodes with constant inputs stay."""
        present = set(io.nodes(self._model))
        return [(graphs.label(node), reason) for node, reason in self._refused.items() if node in present]

    def lift(self) -> None:
        """Turn Constant nodes into initializers, except those that compute a graph output."""
        for graph in graphs.every(self._model):
            for node in () if graph in self._bodies else list(graph):
                tensor = graphs.constant(node.outputs[0]) if graphs.is_op(node, "Constant") else None
                if tensor is not None and not node.outputs[0].is_graph_output():
                    self._bind(node.outputs[0], tensor)
                    graph.remove(node, safe=True)
                    self.count["lifted"] += 1

    def fold(self) -> bool:
        """Fold every node that can be; return whether there was one."""
        before = self.count["folded"]
        opset = self._model.opset_imports.get("")
        for owner in scopes.roots(self._model):
            if owner.opset_imports.get("", opset) != opset:
                continue  # invalid: what the operators mean depends on who runs the model
            for node in list(owner.all_nodes()):
                if node.graph is not None:
                    self._visit(node, owner.opset_imports)
        return self.count["folded"] > before

    def take_branch(self) -> bool:
        """Replace one If whose condition is constant by its branch; return whether there was one."""
        for node in self._model.graph.all_nodes():
            condition = graphs.array(node.inputs[0]) if graphs.is_op(node, "If") and node.inputs else None
            if condition is None or condition.size != 1:
                continue
            branch = graphs.attribute(node, "then_branch" if condition.item() else "else_branch")
            if branch is not None:
                self._inline(node, branch.as_graph())
                self.count["branches"] += 1
                self._facts.graphs = [self._model.graph, *self._model.graph.subgraphs()]
                return True
        return False

    def _visit(self, node: ir.Node, opsets: dict[str, int]) -> None:
        if not node.inputs or graphs.is_op(node, "Constant") or any(graphs.subgraphs(node)):
            return
        try:
            results = self._sizes(node) or self._results(node, opsets)
            if results is not None:
                self._replace(node, results)
                self.count["folded"] += 1
        except Refused as reason:
            self._refused[node] = str(reason)

    def _sizes(self, node: ir.Node) -> list[np.ndarray | None] | None:
        """Return what a node computes if that is a number of sizes that inference proves."""
        known = self._facts.get(node.outputs[0]) if len(node.outputs) == 1 else None
        elements = known.elements if known else None
        type_ = dtype(self._facts, node.outputs[0])
        if known is None or elements is None or type_ is None or not all(isinstance(e, int) for e in elements):
            return None
        shape = known.dims()
        if (
            shape not in ((), (len(elements),))
            or node.op_type in graphs.RANDOM | _QUANTIZATION
            or graphs.has_parameters(node)
        ):
            return None
        return [np.asarray(elements, type_.numpy()).reshape(shape)]

    def _results(self, node: ir.Node, opsets: dict[str, int]) -> list[np.ndarray | None] | None:
        """Evaluate a node whose inputs are constant; None if they are not."""
        tensors = {value: graphs.constant(value) for value in node.inputs if value is not None}
        if any(tensor is None for tensor in tensors.values()):
            return None
        _check_foldable(node, list(tensors.values()), self._model.functions)
        call = Call(node, tensors, opsets)
        self._check_growth(node, call.nbytes)
        return call.run()

    def _check_growth(self, node: ir.Node, nbytes: int | None) -> int:
        freed = {value for value in node.inputs if value is not None and value.consumers() == (node,)}
        tensors = [graphs.constant(value) for value in freed if not value.is_graph_output()]
        growth = (nbytes or 0) - sum(tensor.nbytes for tensor in tensors if tensor is not None)
        if growth > self._max_growth:
            raise Refused(f"folding it would enlarge the model by {growth} bytes, over max_growth={self._max_growth}")
        return growth

    def _replace(self, node: ir.Node, results: Sequence[np.ndarray | None]) -> None:
        self.growth += self._check_growth(node, sum(result.nbytes for result in results if result is not None))
        for value, result in zip(node.outputs, results, strict=True):
            if result is not None:
                self._bind(value, ir.tensor(result))
        inputs = {value for value in node.inputs if value is not None}
        assert node.graph is not None
        node.graph.remove(node, safe=True)
        for value in inputs:
            graphs.discard(value)

    def _bind(self, value: ir.Value, tensor: ir.TensorProtocol) -> None:
        """Let a constant take the place of a node output: an initializer wherever one may stand."""
        node = value.producer()
        assert node is not None
        assert node.graph is not None
        if node.graph in self._bodies or value.is_graph_output():
            made = ir.node("Constant", [], {"value": tensor})
            replacement = made.outputs[0]
            replacement.name, replacement.type, replacement.shape = value.name, value.type, value.shape
            node.graph.insert_before(node, made)
        else:
            replacement = ir.Value(
                name=value.name,
                type=ir.TensorType(tensor.dtype),
                shape=ir.Shape(tensor.shape.numpy()),
                const_value=tensor,
            )
            node.graph.register_initializer(replacement)
            self.registered = True
        facts = {key: fact for key, fact in value.metadata_props.items() if key.startswith(FACT_PREFIX)}
        replacement.metadata_props.update(facts)
        value.replace_all_uses_with(replacement, replace_graph_outputs=True)

    def _inline(self, node: ir.Node, taken: ir.Graph) -> None:
        graph = node.graph
        assert graph is not None
        for other in set(graphs.subgraphs(node)) - {taken}:
            for inner in other:
                graphs.detach(inner)
        for value in list(graphs.definitions(taken)):
            if self._names[value.name or ""] > 1:
                value.name = graphs.fresh(value.name or "", self._names)
        outputs, nodes = list(taken.outputs), list(taken)
        taken.outputs.clear()
        taken.remove(nodes)
        for value in list(taken.initializers.values()):
            del taken.initializers[value.name or ""]
            graph.register_initializer(value)
        node_names = Counter(other.name or "" for other in graph)
        for inner in nodes:
            inner.name = graphs.fresh(inner.name or "", node_names) if inner.name else inner.name
        graph.insert_before(node, nodes)
        for value, source in zip(node.outputs, outputs, strict=True):
            if graphs.redirect(value, source, self._names):
                graphs.compute_by_identity(value, source)
        condition = node.inputs[0]
        graph.remove(node, safe=True)
        if condition is not None:
            graphs.discard(condition)


def _check_foldable(
    node: ir.Node, tensors: Sequence[ir.TensorProtocol | None], functions: dict[ir.OperatorIdentifier, ir.Function]
) -> None:
    if node.op_type in _QUANTIZATION:
        raise Refused("it tells the runtime to compute in integers")
    if node.op_type in graphs.RANDOM:
        raise Refused("it draws random numbers")
    if graphs.has_parameters(node):
        raise Refused("the caller of its function sets some of its attributes")
    if not graphs.is_op(node, *OPERATORS) or node.op_identifier() in functions:
        raise Refused(f"no evaluator is known to compute {node.op_type} like ONNX Runtime")
    if any(tensor is not None and tensor.dtype == ir.DataType.STRING for tensor in tensors):
        raise Refused("text is not folded")
    if any(tensor is not None and tensor.dtype.bitwidth < 8 for tensor in tensors):
        raise Refused("it reads weights packed below 8 bits, which would grow")
