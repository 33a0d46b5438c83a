"""What differs between two models besides nodes and tensors: declarations, metadata, sizes"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import onnx_ir as ir

from graphopt import io
from graphopt.difference.places import first_user, operator_name
from graphopt.matching import Matching, tensors

Pair = tuple[Any, Any]
"""Something before and after; None where it is not there."""

Counts = dict[str, tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class FunctionChange:
    """A function whose declaration differs; what is in it counts among nodes and initializers.

    Attributes:
        name: domain and name.
        before, after: what it takes and returns, its attributes and opsets; None where it is not there.
        matters: whether more than names differs.
    """

    name: str
    before: str | None
    after: str | None
    matters: bool


@dataclasses.dataclass(frozen=True)
class Annotation:
    """A kind of metadata on what both models have: how often before and after, and how often it changed."""

    before: int
    after: int
    changed: int


@dataclasses.dataclass(frozen=True)
class Facts:
    """What two models say of themselves. Dictionaries hold only what differs.

    Attributes:
        functions: model-local functions.
        opsets: imported versions by domain.
        ir_version, producer: None if they do not differ.
        metadata: of the model, without provenance.
        provenance: how graphopt made the models; None if it does not differ.
        annotations: metadata of nodes, values and graphs by key, and "documentation" and "declared types".
        defaults: how many inputs have a default value; None if that does not differ.
    """

    functions: tuple[FunctionChange, ...]
    opsets: dict[str, Pair]
    ir_version: Pair | None
    producer: Pair | None
    metadata: dict[str, Pair]
    provenance: Pair | None
    annotations: dict[str, Annotation]
    defaults: Pair | None


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large two models are, in bytes, whether or not that differs.

    Attributes:
        files: the files, external data included.
        types: all tensors, by element type.
        users: all tensors, by the operator that uses them first, or the one behind it if that is DequantizeLinear;
            "output" stands for outputs of a graph, and "" for those that nothing uses.
    """

    files: tuple[int, int]
    types: Counts
    users: Counts


def compare_facts(before: ir.Model, after: ir.Model, matching: Matching) -> Facts:
    """Compare what two models say of themselves."""
    models = before, after
    return Facts(
        functions=tuple(_functions(before, after, matching)),
        opsets=_unequal(before.opset_imports, after.opset_imports),
        ir_version=_pair(before.ir_version, after.ir_version),
        producer=_pair(*(f"{m.producer_name or ''} {m.producer_version or ''}".strip() for m in models)),
        metadata=_unequal(*({k: v for k, v in m.metadata_props.items() if k != io.PROVENANCE} for m in models)),
        provenance=_pair(*(_provenance(m.metadata_props.get(io.PROVENANCE)) for m in models)),
        annotations=_annotations(matching),
        defaults=_pair(*(sum(v.is_initializer() for v in m.graph.inputs) for m in models)),
    )


def compare_sizes(before: ir.Model, after: ir.Model) -> Sizes:
    """Measure two models that were loaded from files."""
    types, users = [Counter[str]() for _ in range(2)], [Counter[str]() for _ in range(2)]
    for model, by_type, by_user in zip((before, after), types, users, strict=True):
        for user, tensor in _owned(model):
            by_type[tensor.dtype.name] += tensor.nbytes
            by_user[user] += tensor.nbytes
    return Sizes((io.file_bytes(before), io.file_bytes(after)), merge(*types), merge(*users))


def count_operators(before: ir.Model, after: ir.Model) -> Counts:
    """Count how often each operator occurs in two models, subgraphs and functions included."""
    return merge(*(Counter(map(operator_name, io.nodes(model))) for model in (before, after)))


def merge(before: Counter[str], after: Counter[str]) -> Counts:
    """Return the counts of both, largest first."""
    keys = sorted(before | after, key=lambda key: (-max(before[key], after[key]), key))
    return {key: (before[key], after[key]) for key in keys}


def used_domains(model: ir.Model) -> set[str]:
    """Return the domains of a model's operators."""
    return {node.domain for node in io.nodes(model)}


def _functions(before: ir.Model, after: ir.Model, matching: Matching) -> Iterator[FunctionChange]:
    for key in dict.fromkeys((*before.functions, *after.functions)):
        old, new = before.functions.get(key), after.functions.get(key)
        name = "::".join(part for part in (key[0], key[1], key[2]) if part)
        declared, declared_after = (None if one is None else _signature(one) for one in (old, new))
        matters = old is None or new is None or _differs(old, new, matching)
        if declared != declared_after or matters:
            yield FunctionChange(name, declared, declared_after, matters)


def _differs(before: ir.Function, after: ir.Function, matching: Matching) -> bool:
    return (
        not matching.are_same(before.inputs, after.inputs)
        or not matching.are_same(before.outputs, after.outputs)
        or {k: repr(v) for k, v in before.attributes.items()} != {k: repr(v) for k, v in after.attributes.items()}
        or before.opset_imports != after.opset_imports
    )


def _signature(function: ir.Function) -> str:
    takes, returns = (", ".join(v.name or "" for v in values) for values in (function.inputs, function.outputs))
    attributes = ", ".join(
        name if attribute.value is None else f"{name}={attribute.value}"
        for name, attribute in function.attributes.items()
    )
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in function.opset_imports.items())
    return f"({takes}) -> ({returns})" + (f" {{{attributes}}}" if attributes else "") + f", {opsets}"


def _annotations(matching: Matching) -> dict[str, Annotation]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    parts: list[tuple[ir.Graph | ir.Node | ir.Value, ir.Graph | ir.Node | ir.Value]] = []
    parts += [*matching.nodes.items(), *matching.values.items(), *matching.graphs.items()]
    for mine, other in parts:
        old, new = _notes(other), _notes(mine)
        for key in dict.fromkeys((*old, *new)):
            counts[key].update(before=key in old, after=key in new)
            counts[key]["changed"] += key in old and key in new and old[key] != new[key]
    found = {key: Annotation(**count) for key, count in sorted(counts.items())}
    return {key: one for key, one in found.items() if one.before != one.after or one.changed}


def _notes(part: ir.Graph | ir.Node | ir.Value) -> dict[str, str]:
    """Return what a graph, node or value says of itself."""
    found = dict(part.metadata_props)
    if part.doc_string:
        found["documentation"] = part.doc_string
    if isinstance(part, ir.Value) and part.type is not None and part.producer() and not part.is_graph_output():
        found["declared types"] = f"{part.type} {part.shape}"
    return found


def _owned(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """Yield every tensor of the model with the operator that uses it first."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield first_user(value), value.const_value
    for node in io.nodes(model):
        if tensors.is_constant_node(node) and (tensor := tensors.constant(node.outputs[0])) is not None:
            yield first_user(node.outputs[0]), tensor
            continue
        for attribute in node.attributes.values():
            if attribute.is_ref() or attribute.value is None:
                continue
            if attribute.type == ir.AttributeType.TENSOR:
                yield operator_name(node), attribute.as_tensor()
            elif attribute.type == ir.AttributeType.TENSORS:
                yield from ((operator_name(node), tensor) for tensor in attribute.as_tensors())


def _provenance(text: str | None) -> Any:
    """Return what graphopt recorded, as text if somebody else wrote it."""
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return text


def _pair(before: Any, after: Any) -> Pair | None:
    return None if before == after else (before, after)


def _unequal(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Pair]:
    both = {key: (before.get(key), after.get(key)) for key in dict.fromkeys((*before, *after))}
    return {key: pair for key, pair in both.items() if pair[0] != pair[1]}
