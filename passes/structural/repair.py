"""Make invalid graphs valid: order, names, opset imports, subgraph outputs, stale types

Exporters and graph editors leave faults that ONNX forbids, and that ONNX Runtime refuses, tolerates or
computes garbage for. This pass mends them without changing what the model computes or how it is called:

* values defined twice are renamed, and nodes are put in topological order; `graphopt.io.load` had to do so in
  files, and it is reported here;
* a subgraph that returns an outer value, or one value twice, returns an Identity of it (ONNX Runtime refuses
  the first and returns uninitialized memory for the second);
* a value inside a subgraph that is named like an outer one, and a node named like another one of its graph,
  get names of their own;
* operators' domains are imported;
* below IR version 4 initializers listed among the inputs are constants to ONNX Runtime; they leave the inputs
  and the IR version becomes 4, so that other passes may use them. From IR version 4 on they are defaults that
  callers may override, so they stay;
* declared types and shapes of inner values that contradict the operators are corrected.

Specification: ONNX, "Open Neural Network Exchange Intermediate Representation", sections "Graphs" and "Names".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from graphopt import graphs, inference, io, scopes
from graphopt.passbase import Pass, Result

_FIRST_WITH_OPSETS = 3
"""First IR version in which a model names its operator sets."""
_OPTIONAL_INPUTS = 4
"""First IR version in which an initializer need not be a graph input."""


@dataclass(frozen=True)
class Repair(Pass):
    """Mend what makes a model invalid."""

    def call(self, model: ir.Model) -> Result:
        """Repair the model in place; the report counts the repairs of each kind."""
        skipped: list[tuple[str, str]] = []
        repairs = {
            "redeclared_values": len(model.meta.pop(io.RENAMED, ())),
            "subgraph_outputs": _give_subgraphs_their_outputs(model),
            "unsorted_graphs": model.meta.pop(io.SORTED, 0) + _sort(model, skipped),
            "shadowing_values": _rename_shadows(model),
            "duplicate_node_names": _rename_nodes(model),
            "opset_imports": _import_opsets(model),
            "inputs_made_constant": _settle_initializers(model, skipped),
            "ir_version": _raise_ir_version(model),
            "stale_types": _correct_types(model),
        }
        report = {kind: count for kind, count in repairs.items() if count}
        return Result(model, bool(report), report, skipped)


def _give_subgraphs_their_outputs(model: ir.Model) -> int:
    taken = graphs.names(model)
    return sum(
        _give_outputs(subgraph, _by_name(graph), taken)
        for graph in scopes.roots(model)
        for node in graph
        for subgraph in _bodies(node)
    )


def _bodies(node: ir.Node) -> Iterator[ir.Graph]:
    """Yield the subgraphs of ONNX's control flow, whose inputs and outputs are matched by position.

    Those of other operators, such as ONNX Runtime's BeamSearch, may be matched by name.
    """
    return graphs.subgraphs(node) if node.domain == "" else iter(())


def _give_outputs(graph: ir.Graph, outer: dict[str | None, ir.Value], taken: Counter[str]) -> int:
    own, count, seen = _by_name(graph), 0, set()
    for index, output in enumerate(graph.outputs):
        source = own.get(output.name) or outer.get(output.name)
        if source is None or (source is own.get(output.name) and source not in seen):
            seen.add(output)
            continue
        copy = ir.node("Identity", [source])
        value = copy.outputs[0]
        value.name, value.type, value.shape = graphs.fresh(f"{output.name}_out", taken), output.type, output.shape
        graph.append(copy)
        graph.outputs[index] = value
        count += 1
    for node in graph:
        for subgraph in _bodies(node):
            count += _give_outputs(subgraph, outer | own, taken)
    return count


def _by_name(graph: ir.Graph) -> dict[str | None, ir.Value]:
    return {value.name: value for value in graphs.definitions(graph)}


def _sort(model: ir.Model, skipped: list[tuple[str, str]]) -> int:
    found = list(graphs.every(model))
    before = [list(graph) for graph in found]
    for owner in scopes.roots(model):
        try:
            owner.sort()
        except ValueError as error:
            skipped.append((owner.name or "graph", f"cannot be sorted: {error}"))
    return sum(list(graph) != nodes for graph, nodes in zip(found, before, strict=True))


def _rename_shadows(model: ir.Model) -> int:
    taken = graphs.names(model)
    return sum(_rename_inside(graph, set(), taken) for graph in scopes.roots(model))


def _rename_inside(graph: ir.Graph, outer: set[str | None], taken: Counter[str]) -> int:
    count = 0
    for value in list(graphs.definitions(graph)):
        if value.name in outer:
            value.name = graphs.fresh(f"{value.name}_inner", taken)
            count += 1
    visible = outer | {value.name for value in graphs.definitions(graph)}
    for node in graph:
        for subgraph in _bodies(node):
            count += _rename_inside(subgraph, visible, taken)
    return count


def _rename_nodes(model: ir.Model) -> int:
    count = 0
    for graph in graphs.every(model):
        taken = Counter({node.name: 1 for node in graph if node.name})
        seen: set[str] = set()
        for node in graph:
            if node.name and node.name in seen:
                node.name = graphs.fresh(node.name, taken)
                count += 1
            seen.add(node.name or "")
    return count


def _import_opsets(model: ir.Model) -> int:
    count = 0
    for owner in scopes.roots(model):
        if "ai.onnx" in owner.opset_imports:  # the long name of the default domain
            owner.opset_imports[""] = owner.opset_imports.pop("ai.onnx")
            count += 1
        used = {node.domain for node in owner.all_nodes()}
        for domain in sorted(used - set(owner.opset_imports)):
            owner.opset_imports[domain] = model.opset_imports.get(domain) or _version(domain, model)
            count += 1
    return count


def _version(domain: str, model: ir.Model) -> int:
    """Return the opset version of a domain that was current when the model's other versions were."""
    releases = [row[1:4] for row in onnx.helper.VERSION_TABLE]  # (IR version, ai.onnx, ai.onnx.ml), ascending
    if domain == "":
        fitting = [opset for ir_version, opset, _ in releases if ir_version <= (model.ir_version or 0)]
        return int(fitting[-1] if fitting else releases[0][1])
    if domain == "ai.onnx.ml":
        opset = model.opset_imports.get("", _version("", model))
        fitting = [ml for _, release, ml in releases if release <= opset]
        return int(fitting[-1] if fitting else releases[0][2])
    return 1


def _settle_initializers(model: ir.Model, skipped: list[tuple[str, str]]) -> int:
    defaults = [value for value in model.graph.inputs if value.is_initializer()]
    if (model.ir_version or 0) >= _OPTIONAL_INPUTS:
        reason = "is a default that callers may override, so it is never folded; take it off the graph inputs to make it constant"
        skipped.extend((value.name or "", reason) for value in defaults)
        return 0
    for value in defaults:
        model.graph.inputs.remove(value)
    return len(defaults)


def _raise_ir_version(model: ir.Model) -> int:
    version = model.ir_version or 0
    if version >= _OPTIONAL_INPUTS or (version >= _FIRST_WITH_OPSETS and not model.graph.initializers):
        return 0
    model.ir_version = _OPTIONAL_INPUTS
    return 1


def _correct_types(model: ir.Model) -> int:
    count = 0
    for graph in graphs.every(model):
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or value.is_graph_input():
                continue
            if value.dtype != tensor.dtype or inference.dims(value.shape) != tuple(tensor.shape.numpy()):
                value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
                count += 1
    for value, known in inference.infer(model).items():
        wrong_type = None not in (value.type, known.type) and value.type != known.type
        wrong_shape = known.contradicts(value.shape) and value not in model.graph.outputs
        if wrong_type:
            value.type = known.type
        if wrong_shape:
            value.shape = known.refines(value.shape)
        count += wrong_type or wrong_shape
    return count
