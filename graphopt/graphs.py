"""What structural passes share: scopes, constants, names, and putting one value in another's place."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import scopes
from graphopt.passbase import FACT_PREFIX

_ANNOTATION = "quant_parameter_tensor_names"
"""Key of `Value.meta` under which onnx_ir keeps a quantization annotation: names of tensors by role."""

RANDOM = frozenset(
    {
        "Bernoulli",
        "Dropout",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)
"""Operators that draw random numbers."""


def every(model: ir.Model) -> Iterator[ir.Graph]:
    """Yield every graph: the main one, control-flow subgraphs, function bodies; outer before inner."""
    for root in scopes.roots(model):
        yield root
        yield from root.subgraphs()


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """Yield the graphs that a node carries as attributes."""
    for found in node.attributes.values():
        yield from scopes.subgraphs(found)


def captured(node: ir.Node) -> Iterator[ir.Value]:
    """Yield the values of graphs around it that the subgraphs of a node read."""
    for graph in subgraphs(node):
        inside = [graph, *graph.subgraphs()]
        for part in inside:
            used = [*(value for inner in part for value in inner.inputs), *part.outputs]
            yield from (value for value in used if value is not None and value.graph not in inside)


def definitions(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yield every value that one graph defines: inputs, initializers, outputs of its own nodes."""
    yield from graph.inputs
    yield from (value for value in graph.initializers.values() if not value.is_graph_input())
    for node in graph:
        yield from (value for value in node.outputs if value.name)


def names(model: ir.Model) -> Counter[str]:
    """Count how many values bear each name, over all scopes."""
    return Counter(value.name or "" for graph in every(model) for value in definitions(graph))


def rename(model: ir.Model, new: Mapping[ir.Value, str]) -> None:
    """Rename values, also where quantization annotations call them by name; swaps and cycles are fine."""
    names = {value: value.name or "" for graph in every(model) for value in graph.initializers.values()}  # keeps order
    names |= new
    for graph in every(model):
        own = {value.name: new[value] for value in definitions(graph) if value in new}
        for value in definitions(graph):
            annotation = value.meta.get(_ANNOTATION)
            if annotation:
                value.meta[_ANNOTATION] = {role: own.get(name, name) for role, name in annotation.items()}
    ir.convenience.rename_values(list(names), list(names.values()))


def fresh(name: str, taken: Counter[str]) -> str:
    """Return `name`, or `name` with a number that makes it new, and mark it as taken."""
    candidate, number = name, 0
    while taken[candidate]:
        number += 1
        candidate = f"{name}_{number}"
    taken[candidate] += 1
    return candidate


def label(node: ir.Node) -> str:
    """Return what to call a node in a report: its name, or the value that it computes."""
    return node.name or next((f"{node.op_type} of '{v.name}'" for v in node.outputs if v.name), node.op_type)


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """Tell whether a node is one of these standard ONNX operators."""
    return node is not None and node.domain == "" and node.op_type in op_types


def attribute(node: ir.Node, name: str) -> ir.Attr | None:
    """Return an attribute whose value is known here, which that of a function's parameter is not."""
    found = node.attributes.get(name)
    return None if found is None or found.is_ref() else found


def has_parameters(node: ir.Node) -> bool:
    """Tell whether any attribute of the node is a parameter of the function around it."""
    return any(found.is_ref() for found in node.attributes.values())


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the tensor of an initializer or a Constant node; None for anything that can vary.

    An initializer that is also a graph input is a default that callers may override (ONNX specification,
    "Graphs"), so it is not constant.
    """
    if value is None or value.is_graph_input():
        return None
    if value.is_initializer():
        return value.const_value
    node = value.producer()
    if not is_op(node, "Constant") or node is None or len(node.attributes) != 1:
        return None
    return _constant_tensor(next(iter(node.attributes.values())))


def array(value: ir.Value | None, limit: int = 1 << 20) -> np.ndarray | None:
    """Return a constant of at most `limit` elements as an array."""
    tensor = constant(value)
    return tensor.numpy() if tensor is not None and tensor.size <= limit else None


def discard(value: ir.Value) -> None:
    """Remove what computes a value that nothing uses any more, and what only that used."""
    unused = [value]
    while unused:
        candidate = unused.pop()
        if candidate.is_graph_input() or is_needed(candidate):
            continue
        node = candidate.producer()
        if candidate.is_initializer():
            assert candidate.graph is not None
            assert candidate.name is not None
            del candidate.graph.initializers[candidate.name]
        elif node is not None and node.graph is not None and not any(map(is_needed, node.outputs)):
            inputs = {source for source in (*node.inputs, *captured(node)) if source is not None}
            detach(node)
            node.graph.remove(node)
            unused.extend(inputs)


def is_needed(value: ir.Value) -> bool:
    """Tell whether a node or the interface of a graph uses a value."""
    return bool(value.uses()) or value.is_graph_output()


def detach(node: ir.Node) -> None:
    """Make a node, with everything in its subgraphs, use nothing.

    onnx_ir keeps the uses that nodes inside the subgraphs of a removed node have of outer values, so these
    would look needed for ever.
    """
    for index in range(len(node.inputs)):
        node.replace_input_with(index, None)
    for graph in subgraphs(node):
        for inner in graph:
            detach(inner)


def redirect(old: ir.Value, new: ir.Value, taken: Counter[str]) -> str | None:
    """Make every use of `old` a use of `new`, which always holds the same tensor; say why if that cannot be.

    Graph outputs keep their names and declared types: `new` takes over those of `old`. Facts left on `old`
    move to `new`. Names decide what a subgraph captures, so a name that several scopes use is never made to
    cross from one scope to another.

    Args:
        old: a node output.
        new: a value visible wherever `old` is.
        taken: names in use, kept up to date.
    """
    node = old.producer()
    assert node is not None
    if old.is_graph_output():
        source = new.producer()
        if source is None or source.graph is not node.graph:
            return f"it gives graph output '{old.name}' its name; no node of this graph computes '{new.name}'"
        if new.is_graph_output():
            return f"'{old.name}' and '{new.name}' are both graph outputs"
        if taken[old.name or ""] > 1:
            return f"several scopes use the name '{old.name}'"
        taken[new.name or ""] -= 1
        new.name, new.type, new.shape = old.name, old.type, old.shape
        taken[new.name or ""] += 1
    elif ambiguous(old, new, taken):
        return f"several scopes use the name '{new.name}'"
    if new.type is None:
        new.type = old.type
    if new.shape is None:
        new.shape = old.shape
    for key, fact in old.metadata_props.items():
        if key.startswith(FACT_PREFIX):
            new.metadata_props.setdefault(key, fact)
    taken[old.name or ""] -= 1
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    return None


def compute_by_identity(value: ir.Value, source: ir.Value) -> None:
    """Let an Identity of `source` compute `value` in place of its producer.

    Args:
        value: a node output, typically one whose name is part of the graph's interface.
        source: a value visible there that holds the same tensor.
    """
    node = value.producer()
    assert node is not None
    assert node.graph is not None
    identity = ir.node("Identity", [source])
    copy = identity.outputs[0]
    copy.name, copy.type, copy.shape = value.name, value.type, value.shape
    copy.metadata_props.update(value.metadata_props)
    node.graph.insert_before(node, identity)
    value.replace_all_uses_with(copy, replace_graph_outputs=True)


def ambiguous(old: ir.Value, new: ir.Value, taken: Counter[str]) -> bool:
    """Tell whether users of `old` in other graphs than that of `new` might take another value for `new`."""
    return taken[new.name or ""] > 1 and any(user.graph is not new.graph for user in old.consumers())


def initializer(graph: ir.Graph, array: np.ndarray, name: str, taken: Counter[str]) -> ir.Value:
    """Return a new initializer of a graph, under `name` or a name like it.

    Args:
        graph: the main graph or a subgraph; functions have no initializers.
        array: its elements.
        name: what to call it.
        taken: names in use, kept up to date.
    """
    tensor = ir.tensor(array, name=fresh(name, taken))
    value = ir.Value(
        name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def become(node: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], **attributes: Any) -> None:
    """Turn a node into another standard operator that computes the same outputs; what only it used goes.

    Args:
        node: keeps its name and outputs.
        op_type: the new operator.
        inputs: its inputs.
        attributes: its attributes, as Python values.
    """
    before = {value for value in node.inputs if value is not None}
    node.op_type, node.domain, node.overload = op_type, "", ""
    node.attributes.clear()
    for name, value in attributes.items():
        node.attributes.add(ir.convenience.convert_attribute(name, value))
    node.resize_inputs(len(inputs))
    for index, value in enumerate(inputs):
        node.replace_input_with(index, value)
    for value in before - set(inputs):
        discard(value)


def set_constant(graph: ir.Graph, node: ir.Node, index: int, array: np.ndarray, taken: Counter[str]) -> None:
    """Make an input of a node this constant: in place, unless something else uses the one that is there."""
    node.resize_inputs(max(index + 1, len(node.inputs)))
    old = node.inputs[index]
    if old is not None and old.is_initializer() and len(old.uses()) == 1 and not old.is_graph_output():
        old.const_value = ir.tensor(array, name=old.name)
        old.type, old.shape = ir.TensorType(old.const_value.dtype), ir.Shape(array.shape)
        return
    base = old or node.inputs[1]
    assert base is not None
    name = f"{base.name}_{'bias' if old is None else 'folded'}"
    node.replace_input_with(index, initializer(graph, array, name, taken))
    if old is not None:
        discard(old)


def sole_use(value: ir.Value | None) -> ir.Node | None:
    """Return the only node that uses a value, once, if nothing else needs it; else None."""
    if value is None or value.is_graph_output() or len(value.uses()) != 1:
        return None
    return next(iter(value.uses())).node


def digest(tensor: ir.TensorProtocol) -> bytes:
    """Return the SHA-256 of a tensor's elements, without making a copy of them."""
    result = hashlib.sha256()
    if tensor.dtype == ir.DataType.STRING:
        for text in np.asarray(tensor.numpy(), object).ravel():
            data = text.encode() if isinstance(text, str) else bytes(text)
            result.update(len(data).to_bytes(8, "little") + data)
    else:
        result.update(np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data)
    return result.digest()


def _constant_tensor(found: ir.Attr) -> ir.TensorProtocol | None:
    if found.is_ref():
        return None
    if found.name == "value" and found.type == ir.AttributeType.TENSOR:
        return found.as_tensor()
    if found.name in ("value_float", "value_floats"):
        return ir.tensor(np.asarray(found.value, np.float32))
    if found.name in ("value_int", "value_ints"):
        return ir.tensor(np.asarray(found.value, np.int64))
    if found.name == "value_string":
        return ir.StringTensor([found.as_string().encode()], shape=ir.Shape([]))
    if found.name == "value_strings":
        strings = found.as_strings()
        return ir.StringTensor([text.encode() for text in strings], shape=ir.Shape([len(strings)]))
    return None
