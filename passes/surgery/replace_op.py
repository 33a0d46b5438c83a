"""Replace an operator by another one, wherever it stands or in named nodes

`replace-op MODEL --op HardSwish --by Relu`, or with settings: `--op Relu --by 'Clip{min=0 max=6}'`. For operators
that a target lacks or that quantize badly. The numbers change, so the pass is lossy: measure, and fine-tune.

* The new node reads the same inputs. Constants beyond what the new operator takes are dropped (the slope of a PRelu
  that becomes a Relu); a node with other surplus inputs, or with used outputs that the new operator lacks, is left.
* Settings are attributes of the new operator or, by name, scalar inputs of it ("min" of Clip since opset 11), lists
  with commas; they take the place of what the node has.
* Attributes that both operators have are kept if they are integers or text (axes, strides, padding). Numbers such as
  alpha mean something else in every function, and start at the new operator's default (unless it is the old one).

Operators are checked against the ONNX schema of the model's opset. Write `domain.Op` for one of another domain.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from graphopt import graphs, inference, io, scopes, spec
from graphopt.errors import UserError, did_you_mean
from graphopt.passbase import Contract, Pass, PreconditionError, Result, param
from graphopt.passes.surgery import _names

_STRUCTURAL = frozenset(
    {ir.AttributeType.INT, ir.AttributeType.INTS, ir.AttributeType.STRING, ir.AttributeType.STRINGS}
)


@dataclass(frozen=True)
class ReplaceOp(Pass):
    """Put one operator in the place of another."""

    op: str = param("", "Operator to replace, such as HardSwish.")
    by: str = param("", "Operator in its place, with settings as in 'Clip{min=0 max=6}'.")
    nodes: tuple[str, ...] = param((), "Names of the nodes to replace; by default all of the operator.")

    contract = Contract("lossy", min_sqnr=-math.inf)  # what was asked for may be far off until it is trained

    def call(self, model: ir.Model) -> Result:
        """Replace in place; the report counts the nodes."""
        if not self.op or not self.by:
            raise PreconditionError("no operators are named; give op and by")
        name, settings = spec.split(self.by, "operator")
        chosen = self._chosen(model)
        known = inference.infer(model)
        taken = graphs.names(model)
        replaced, skipped = 0, []
        for owner in scopes.roots(model):
            nodes = [node for node in owner.all_nodes() if node in chosen]
            new = self._new(name, settings, owner.opset_imports) if nodes else None
            for node in nodes if new else ():
                assert new is not None
                reason = new.obstacle(node, known)
                if reason:
                    skipped.append((graphs.label(node), reason))
                else:
                    replaced += new.take_over(node, known, taken)
        return Result(model, bool(replaced), {"replaced": replaced}, skipped)

    def _chosen(self, model: ir.Model) -> set[ir.Node]:
        domain, _, op = self.op.rpartition(".")
        found = {node for node in io.nodes(model) if (node.domain, node.op_type) == (domain, op)}
        if not found:
            known = {f"{node.domain}.{node.op_type}".lstrip(".") for node in io.nodes(model)}
            raise UserError(f"{self.pass_name()}: the model has no {self.op}{did_you_mean(self.op, known)}")
        if not self.nodes:
            return found
        by_name: dict[str, list[ir.Node]] = {}
        for node in io.nodes(model):
            by_name.setdefault(node.name or "", []).append(node)
        named = {node for name in self.nodes for node in _names.find(self.pass_name(), "node", name, by_name)}
        other = next((node for node in io.nodes(model) if node in named - found), None)
        if other is not None:
            raise UserError(f"{self.pass_name()}: {other.name} ({other.op_type}): is no {self.op}; leave it out")
        return named

    def _new(self, name: str, settings: Mapping[str, str], imports: Mapping[str, int]) -> _New:
        domain, _, op = name.rpartition(".")
        if domain not in imports:
            raise UserError(f"{self.pass_name()}: the model does not import the operators of domain '{domain}'")
        try:
            schema = onnx.defs.get_schema(op, imports[domain], domain)
        except onnx.defs.SchemaError:
            known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == domain}
            raise UserError(
                f"{self.pass_name()}: ONNX has no operator '{name}' at opset {imports[domain]}{_close(op, known)}"
            ) from None
        return _New(f"{self.pass_name()}: {name}", schema, settings)


class _New:
    """The operator that takes over, and its settings."""

    def __init__(self, where: str, schema: onnx.defs.OpSchema, settings: Mapping[str, str]) -> None:
        """Sort the settings into attributes and inputs.

        Raises:
            UserError: the operator knows no such setting, or the value does not fit.
        """
        self._schema = schema
        self._attributes: dict[str, ir.Attr] = {}
        self._inputs: dict[int, list[float]] = {}
        self._scalars: set[int] = set()
        self._made: dict[tuple[object, int, ir.DataType], ir.Value] = {}
        places = {formal.name: index for index, formal in enumerate(schema.inputs) if index}
        for key, text in settings.items():
            if key in schema.attributes:
                self._attributes[key] = _attribute(key, schema.attributes[key].type, text, f"{where}: {key}")
            elif key in places:
                self._inputs[places[key]] = list(spec.convert(text, tuple[float, ...], f"{where}: {key}"))
                if "," not in text:
                    self._scalars.add(places[key])
            else:
                raise UserError(f"{where}: has no setting '{key}'{did_you_mean(key, {*schema.attributes, *places})}")

    def obstacle(self, node: ir.Node, known: Mapping[ir.Value, inference.Known]) -> str | None:
        """Return why the operator cannot stand in the place of a node, or None."""
        schema = self._schema
        if graphs.has_parameters(node):
            return "it depends on parameters of the function around it"
        if any(map(graphs.is_needed, node.outputs[schema.max_output :])):
            return f"{schema.name} has only {schema.max_output} output(s)"
        if any(value is not None and graphs.constant(value) is None for value in node.inputs[schema.max_input :]):
            return f"{schema.name} takes only {schema.max_input} input(s)"
        count = max([len(node.inputs), *(index + 1 for index in self._inputs)])
        if count < schema.min_input or any(
            self._missing(node, index) for index in range(min(schema.min_input, len(schema.inputs)))
        ):
            return f"{schema.name} needs {schema.min_input} inputs"
        absent = [a.name for a in schema.attributes.values() if a.required and a.name not in self._all_attributes(node)]
        if absent:
            return f"{schema.name} needs attribute '{absent[0]}'"
        untyped = next((index for index in self._inputs if self._dtype(node, index, known) is None), None)
        return None if untyped is None else f"the type of '{schema.inputs[untyped].name}' cannot be told here"

    def take_over(self, node: ir.Node, known: Mapping[ir.Value, inference.Known], taken: Counter[str]) -> bool:
        """Turn a node into one of this operator; tell whether anything changed."""
        schema, attributes = self._schema, self._all_attributes(node)
        same = (node.domain, node.op_type) == (schema.domain, schema.name) and not self._inputs
        if same and all(node.attributes.get(name) == attribute for name, attribute in attributes.items()):
            return False
        surplus = [value for value in node.inputs[schema.max_input :] if value is not None]
        dtypes = {index: self._dtype(node, index, known) for index in self._inputs}
        node.resize_inputs(max([min(len(node.inputs), schema.max_input), *(index + 1 for index in self._inputs)]))
        graph = node.graph
        assert graph is not None
        for index, numbers in self._inputs.items():
            dtype = dtypes[index]
            assert dtype is not None
            key = (graph, index, dtype)
            if key not in self._made:
                array = np.array(numbers[0] if index in self._scalars else numbers).astype(dtype.numpy())
                constant = ir.node("Constant", [], {"value": ir.tensor(array, dtype)})
                constant.outputs[0].name = graphs.fresh(f"{schema.name}_{schema.inputs[index].name}", taken)
                graph.insert_before(node, constant)
                self._made[key] = constant.outputs[0]
            old_input = node.inputs[index]
            node.replace_input_with(index, self._made[key])
            surplus += [old_input] if old_input is not None else []
        node.domain, node.op_type, node.overload = schema.domain, schema.name, ""
        node.attributes.clear()
        for attribute in attributes.values():
            node.attributes.add(attribute)
        node.resize_outputs(min(len(node.outputs), schema.max_output))
        for value in surplus:
            graphs.discard(value)
        return True

    def _all_attributes(self, node: ir.Node) -> dict[str, ir.Attr]:
        """Return the given attributes, and those of the node that mean the same in this operator."""
        same = (node.domain, node.op_type) == (self._schema.domain, self._schema.name)
        kept = {
            attribute.name: attribute
            for attribute in node.attributes.values()
            if attribute.name in self._schema.attributes
            and (same or attribute.type in _STRUCTURAL)
            and attribute.type.value == self._schema.attributes[attribute.name].type.value
        }
        return kept | self._attributes

    def _missing(self, node: ir.Node, index: int) -> bool:
        return index not in self._inputs and (index >= len(node.inputs) or node.inputs[index] is None)

    def _dtype(self, node: ir.Node, index: int, known: Mapping[ir.Value, inference.Known]) -> ir.DataType | None:
        """Return the element type of an input that becomes a constant: its only one, or that of its relatives."""
        formal = self._schema.inputs[index]
        if len(formal.types) == 1:
            return ir.DataType[next(iter(formal.types)).removeprefix("tensor(").removesuffix(")").upper()]
        for place, value in enumerate(node.inputs[: len(self._schema.inputs)]):
            if value is None or self._schema.inputs[place].type_str != formal.type_str:
                continue
            type_ = (known[value].type if value in known else None) or value.type
            if isinstance(type_, ir.TensorType):
                return type_.dtype
        return None


def _attribute(name: str, type_: onnx.defs.OpSchema.AttrType, text: str, where: str) -> ir.Attr:
    kind = ir.AttributeType(type_.value)
    element = {"INT": int, "FLOAT": float, "STRING": str}.get(kind.name.removesuffix("S"))
    if element is None:
        raise UserError(f"{where}: is a {kind.name.lower()}, which cannot be written here")
    value = spec.convert(text, tuple[element, ...] if kind.name.endswith("S") else element, where)  # type: ignore[valid-type]
    return ir.Attr(name, kind, value)


def _close(word: str, known: set[str]) -> str:
    """Return a suggestion, without listing all of ONNX."""
    hint = did_you_mean(word, known)
    return hint if "did you mean" in hint else ""
