"""Cut a part out of a graph: what lies between some tensors and others."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass

from graphopt import graphs, inference
from graphopt.passbase import PreconditionError


def tensors(graph: ir.Graph) -> dict[str, ir.Value]:
    """Return the values of one graph by name, without those of its control-flow bodies."""
    return {value.name: value for value in graphs.definitions(graph) if value.name}


def sources(node: ir.Node) -> Iterator[ir.Value]:
    """Yield the values of its own graph that a node reads, those that its bodies capture included."""
    used = [*node.inputs]
    for body in graphs.subgraphs(node):
        used += [value for inner in body.all_nodes() for value in inner.inputs]
        used += [value for graph in (body, *body.subgraphs()) for value in graph.outputs]
    yield from (value for value in used if value is not None and value.graph is node.graph)


def ancestors(values: Iterable[ir.Value], stop: Collection[ir.Value] = ()) -> tuple[set[ir.Node], set[ir.Value]]:
    """Return what values of one graph depend on.

    Args:
        values: where to begin.
        stop: values behind which not to look.

    Returns:
        The nodes, and the values at which the search ended: of `stop`, graph inputs and initializers.
    """
    nodes: set[ir.Node] = set()
    ends: set[ir.Value] = set()
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if node is None or value in stop:
            ends.add(value)
        elif node not in nodes:
            nodes.add(node)
            waiting.extend(sources(node))
    return nodes, ends


def extract(model: ir.Model, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> None:
    """Reduce a model, in place, to what computes `outputs` from `inputs`.

    Graph inputs with a default that are still needed stay inputs. `onnx_ir.convenience.extract` makes constants of them,
    puts initializers in no fixed order, and does not see that a control-flow body reads an input that is not given.

    Args:
        model: whose `graph` is replaced by a new one, which shares none of its values.
        inputs: values of the main graph; what computes them goes. Everything else that `outputs` depend on must be a
            constant or have a default.
        outputs: values of the main graph.

    Raises:
        PreconditionError: a new input or output has no type that inference could tell.
    """
    graph = model.graph
    nodes, ends = ancestors(outputs, set(inputs))
    declare(model, [*inputs, *outputs])
    defaults = [value for value in graph.inputs if value.is_initializer() and value in ends and value not in inputs]
    constants = [
        value
        for value in graph.initializers.values()
        if value in ends and (value.is_graph_input() or value not in inputs)
    ]
    view = ir.GraphView(
        [*inputs, *defaults],
        outputs,
        nodes=[node for node in graph if node in nodes],
        initializers=constants,
        doc_string=graph.doc_string,
        opset_imports=graph.opset_imports,
        name=graph.name,
        metadata_props=graph.metadata_props,
    )
    model.graph = view.clone()
    for value in model.graph.inputs:
        if not value.is_initializer():
            value.const_value = None  # it was a constant, and varies now
    RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]


def declare(model: ir.Model, values: Iterable[ir.Value]) -> None:
    """Give inner values what a graph's inputs and outputs must have: a type, and a shape that holds at any size.

    A declared size that is not proven may be stale, a traced batch for example, in a model whose inputs have dynamic
    axes; there it becomes a dynamic axis.

    Raises:
        PreconditionError: the type of one is unknown.
    """
    inner = [value for value in values if not (value.is_graph_input() or value.is_graph_output())]
    if not inner:
        return
    known = inference.infer(model)
    sized = all(isinstance(dim, int) for value in model.graph.inputs for dim in inference.dims(value.shape) or (None,))
    for value in inner:
        found = known.get(value, inference.Known(None, None))
        value.type = found.type or value.type
        if value.type is None:
            raise PreconditionError(
                f"the type of '{value.name}' is not declared, and no shape inference knows the operators before it; "
                "cut elsewhere"
            )
        shape = found.refines(value.shape)
        proven = found.dims() or ()
        value.shape = shape
        if shape is not None and not sized:
            proven = proven if len(proven) == len(shape) else (None,) * len(shape)
            value.shape = ir.Shape(
                [None if isinstance(d, int) and p is None else d for d, p in zip(shape, proven, strict=True)]
            )
