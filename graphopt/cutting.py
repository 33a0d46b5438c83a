"""Cut a part out of a graph: what lies between some tensors and others."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass

from graphopt import graphs, inference, runtime
from graphopt.passbase import PreconditionError


def tensors(graph: ir.Graph) -> dict[str, ir.Value]:
    """Return the values of one graph by name, without those of its control-flow bodies."""
    return {value.name: value for value in graphs.definitions(graph) if value.name}


def ancestors(values: Iterable[ir.Value], stop: Collection[ir.Value] = ()) -> tuple[set[ir.Node], set[ir.Value]]:
    """Return what values of a main graph depend on.

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
            waiting.extend(v for v in (*node.inputs, *graphs.captured(node)) if v is not None)
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
        PreconditionError: a new input or output has no type that inference could tell, or an input is a sequence.
    """
    graph = model.graph
    nodes, ends = ancestors(outputs, set(inputs))
    declare(model, [*inputs, *outputs])
    for value in inputs:
        if not isinstance(value.type, ir.TensorType):
            raise PreconditionError(f"'{value.name}' is no tensor, and cannot be fed; cut elsewhere")
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

    An operator that no inference knows is taken to return what its first input is; a run will tell. A declared size that
    is not proven may be stale, a traced batch for example, in a model whose inputs have dynamic axes; there it becomes a
    dynamic axis.

    Raises:
        PreconditionError: the type of one is unknown.
    """
    inner = [value for value in values if not (value.is_graph_input() or value.is_graph_output())]
    if not inner:
        return
    known = inference.infer(model)
    ports = runtime.ports(model.graph.inputs)
    sized = all(port.shape is not None and all(isinstance(dim, int) for dim in port.shape) for port in ports)
    for value in inner:
        found = known.get(value, inference.Known(None, None))
        value.type = _type(value, known)
        if value.type is None:
            raise PreconditionError(f"the type of '{value.name}' is not declared and cannot be inferred; cut elsewhere")
        shape = found.refines(value.shape)
        proven = found.dims() or ()
        value.shape = shape
        if shape is not None and not sized:
            proven = proven if len(proven) == len(shape) else (None,) * len(shape)
            value.shape = ir.Shape(
                [None if isinstance(d, int) and p is None else d for d, p in zip(shape, proven, strict=True)]
            )


def shapeless(values: Iterable[ir.Value]) -> list[tuple[str, str]]:
    """Return a row to report for every value of a graph's interface that has no shape."""
    reason = "its rank is unknown, so no shape is declared, which ONNX Runtime accepts and onnx.checker does not"
    return [
        (value.name or "", reason) for value in values if value.shape is None and isinstance(value.type, ir.TensorType)
    ]


def _type(value: ir.Value, known: Mapping[ir.Value, inference.Known]) -> ir.TypeProtocol | None:
    found: ir.Value | None = value
    while found is not None:
        type_ = (known[found].type if found in known else None) or found.type
        node = found.producer()
        if type_ is not None or node is None:
            return type_
        found = next((source for source in node.inputs if source is not None), None)
    return None
