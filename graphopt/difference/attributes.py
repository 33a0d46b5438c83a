"""What differs between the attributes of two nodes"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import onnx
import onnx_ir as ir

from graphopt import scopes
from graphopt.matching import Matching, tensors
from graphopt.matching.pairs import operator


@dataclasses.dataclass(frozen=True)
class Attribute:
    """An attribute that changed.

    Attributes:
        name: what it is called.
        before, after: its values, ready for JSON: tensors and graphs in words; None where it is absent.
    """

    name: str
    before: Any
    after: Any


class Attributes:
    """Compares attributes, with the values that ONNX gives to those that are left out."""

    def __init__(self, reference: ir.Model, matching: Matching) -> None:
        self._matching = matching
        self._opsets = {g: f.opset_imports for f in reference.functions.values() for g in (f.graph, *f.subgraphs())}
        self._main_opsets = reference.opset_imports

    def compare(self, before: ir.Node, after: ir.Node) -> Iterator[Attribute]:
        """Yield the attributes that differ between a node of the reference and one of the candidate.

        What is inside graphs is not compared, only what they take and return.
        """
        for name in dict.fromkeys((*before.attributes, *after.attributes)):
            old, new = before.attributes.get(name), after.attributes.get(name)
            if operator(before) == operator(after) and (old is None or new is None):
                default = self._default(before, name)
                old, new = (default if one is None else one for one in (old, new))
            if old is None or new is None or not self._is_same(old, new):
                yield Attribute(name, _plain(old), _plain(new))

    def _is_same(self, before: ir.Attr, after: ir.Attr) -> bool:
        if before.is_ref() or after.is_ref():
            return before.ref_attr_name == after.ref_attr_name
        if before.type != after.type:
            return False
        if before.type == ir.AttributeType.TENSOR:
            return tensors.equal(before.as_tensor(), after.as_tensor())
        if before.type == ir.AttributeType.TENSORS:
            old, new = before.as_tensors(), after.as_tensors()
            return len(old) == len(new) and all(tensors.equal(*both) for both in zip(old, new, strict=True))
        if graphs := scopes.subgraphs(before):
            there = scopes.subgraphs(after)
            return len(graphs) == len(there) and all(
                self._matching.are_same(old.inputs, new.inputs) and self._matching.are_same(old.outputs, new.outputs)
                for old, new in zip(graphs, there, strict=True)
            )
        return repr(before.value) == repr(after.value)  # so that NaN equals NaN

    def _default(self, node: ir.Node, name: str) -> ir.Attr | None:
        """Return the value that ONNX gives an attribute that is left out, if it gives one."""
        opsets = self._main_opsets if node.graph is None else self._opsets.get(node.graph, self._main_opsets)
        try:
            schema = onnx.defs.get_schema(node.op_type, opsets[node.domain], node.domain)
        except (onnx.defs.SchemaError, KeyError):
            return None
        known = schema.attributes.get(name)
        return ir.from_proto(known.default_value) if known is not None and known.default_value.name else None


def _plain(attribute: ir.Attr | None) -> Any:
    """Return the value of an attribute for people and JSON."""
    if attribute is None:
        return None
    if attribute.is_ref():
        return f"@{attribute.ref_attr_name}"
    if attribute.type == ir.AttributeType.TENSOR:
        return tensors.describe(attribute.as_tensor())
    if attribute.type == ir.AttributeType.TENSORS:
        return [tensors.describe(tensor) for tensor in attribute.as_tensors()]
    if graphs := scopes.subgraphs(attribute):
        return "; ".join(f"({_names(graph.inputs)}) -> ({_names(graph.outputs)})" for graph in graphs)
    if isinstance(attribute.value, (int, float, str)):
        return attribute.value
    if attribute.type in (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS):
        return list(attribute.value)
    return repr(attribute.value)


def _names(values: Sequence[ir.Value]) -> str:
    return ", ".join(value.name or "" for value in values)
