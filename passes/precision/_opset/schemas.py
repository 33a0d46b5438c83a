"""What a version of the standard operator set says about an operator, and whether a node obeys it."""

from __future__ import annotations

import functools
from collections import defaultdict
from typing import Any

import onnx
import onnx_ir as ir

from graphopt import graphs
from graphopt.passes.precision._opset.facts import Facts

LATEST: int = onnx.defs.onnx_opset_version()


@functools.cache
def history() -> dict[str, dict[int, Any]]:
    """Return the schemas of every standard operator by the version that introduced them."""
    table: dict[str, dict[int, Any]] = defaultdict(dict)
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            table[schema.name][schema.since_version] = schema
    return table


def since(op_type: str, version: int) -> int | None:
    """Return which version of the operator set gave an operator the meaning it has in `version`; None without one."""
    return max((v for v in history().get(op_type, ()) if v <= version), default=None)


def find(op_type: str, version: int) -> Any:
    """Return the schema of an operator in a version of the operator set; None without one."""
    introduced = since(op_type, version)
    return None if introduced is None else history()[op_type][introduced]


def following(op_type: str, version: int) -> int | None:
    """Return which version after `version` changes an operator first, if any does."""
    return min((v for v in history().get(op_type, ()) if v > version), default=None)


def default(schema: Any, name: str) -> Any:
    """Return the default of a schema's attribute as a plain value; None without one."""
    proto = schema.attributes[name].default_value
    value = onnx.helper.get_attribute_value(proto) if proto.name else None
    return value.decode() if isinstance(value, bytes) else value


def obstacle(node: ir.Node, schema: Any, facts: Facts) -> str | None:
    """Return in words what a schema has against a node; None if the node obeys it.

    Types that nobody knows are taken to be right.
    """
    if schema.deprecated:
        return f"it was removed in opset {schema.since_version}"
    return _attributes(node, schema) or _inputs(node, schema, facts) or _outputs(node, schema, facts)


def _attributes(node: ir.Node, schema: Any) -> str | None:
    for name, found in node.attributes.items():
        if name not in schema.attributes:
            shown = found.ref_attr_name if found.is_ref() else found.value
            what = "" if found.type in (ir.AttributeType.GRAPH, ir.AttributeType.TENSOR) else f" ({shown})"
            return f"attribute '{name}'{what} is unknown there"
    return next(
        (f"attribute '{name}' is missing" for name, a in schema.attributes.items() if a.required and name not in node.attributes),
        None,
    )  # fmt: skip


def _inputs(node: ir.Node, schema: Any, facts: Facts) -> str | None:
    given = list(node.inputs)
    while given and given[-1] is None:
        given.pop()
    if len(given) > schema.max_input:
        return f"its input {len(given)} is unknown there"
    for index, formal in enumerate(schema.inputs):
        if formal.option == onnx.defs.OpSchema.FormalParameterOption.Single and (
            index >= len(given) or given[index] is None
        ):
            return f"input '{formal.name}' is required there"
    return _mistyped(given, schema.inputs, facts)


def _outputs(node: ir.Node, schema: Any, facts: Facts) -> str | None:
    if any(graphs.is_needed(value) for value in node.outputs[schema.max_output :]):
        return f"its output {schema.max_output + 1} is unknown there"
    return _mistyped(node.outputs[: schema.max_output], schema.outputs, facts)


def _mistyped(values: Any, formals: Any, facts: Facts) -> str | None:
    bound: dict[str, str] = {}
    for index, value in enumerate(values):
        formal = formals[min(index, len(formals) - 1)]
        name = None if value is None else type_name(facts.type(value))
        if name is None:
            continue
        if name not in formal.types:
            return f"'{formal.name}' cannot be {name} there"
        if formal.is_homogeneous and bound.setdefault(formal.type_str, name) != name:
            return f"'{formal.name}' must be {bound[formal.type_str]} there, as what it goes with"
    return None


def type_name(type_: ir.TypeProtocol | None) -> str | None:
    """Return a type as schemas write it, such as `seq(tensor(float))`; None if it is not known."""
    if isinstance(type_, ir.TensorType):
        return None if type_.dtype == ir.DataType.UNDEFINED else f"tensor({type_.dtype.name.lower()})"
    if isinstance(type_, ir.SequenceType | ir.OptionalType):
        inner = type_name(type_.elem_type)
        return inner and f"{'seq' if isinstance(type_, ir.SequenceType) else 'optional'}({inner})"
    return None
