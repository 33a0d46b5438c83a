"""Let a quantized model take and return 8-bit integers

An input that is quantized at once becomes the integers that QuantizeLinear made of it, an output that DequantizeLinear
makes becomes what that reads. The numbers that the integers stand for, `(q - zero point) * scale`, are told in the report,
and in the input's or output's documentation and metadata (`graphopt.integers`). Nothing is rounded that was not before: the
new model computes from the quantized input exactly what the old one does from the input.

For images, `add-preprocessing --mean ... --std ...` first puts the normalization into the model, folded into the first
layer where that is exact, and then `quantize` quantizes it. What is left before that layer, a Cast to float and
QuantizeLinear, goes where it maps every one of the 256 integers to itself: calibrated on images that have black and white.
A mean per channel stays a subtraction before a convolution that pads with zeros, since these stand for the means.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

from graphopt import graphs
from graphopt.errors import UserError, did_you_mean
from graphopt.passbase import FACT_PREFIX, Before, Case, Cases, Pass, PreconditionError, Result, param
from graphopt.passes.quantization._quantized import affine
from graphopt.passes.quantization._quantizers import Integers, NotPossible, paths

_KEY = FACT_PREFIX + "integers"
_BYTES = (ir.DataType.UINT8, ir.DataType.INT8)
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)


@dataclasses.dataclass(frozen=True)
class IntegerIo(Pass):
    """Make inputs and outputs integers where that changes no number.

    Raises:
        UserError: `inputs` or `outputs` names something that the model does not have.
        PreconditionError: what they name must stay as it is.
    """

    inputs: tuple[str, ...] = param((), "inputs to change; by default all that are quantized at once")
    outputs: tuple[str, ...] = param((), "outputs to change; by default all that DequantizeLinear makes")

    def call(self, model: ir.Model) -> Result:
        graph = model.graph
        everything = not self.inputs and not self.outputs
        inputs = graph.inputs if everything else self._named("inputs", graph.inputs)
        outputs = graph.outputs if everything else self._named("outputs", graph.outputs)
        skipped: list[tuple[str, str]] = []
        names = graphs.names(model)
        taken, bypassed = {}, []
        given: dict[str, tuple[Integers, str]] = {}
        for value in dict.fromkeys(outputs):
            name = value.name or ""
            try:
                given[name] = _convert_output(graph, value, names)
            except NotPossible as reason:
                self._refuse(value, reason, skipped, quietly=everything)
        for value in list(inputs):
            try:
                integers = _convert_input(value)
            except NotPossible as reason:
                self._refuse(value, reason, skipped, quietly=everything)
                continue
            bypassed.append(value.name or "")
            if integers is not None:
                taken[value.name or ""] = integers
        report = {
            "inputs": {name: str(integers) for name, integers in taken.items()},
            "outputs": {name: str(integers) for name, (integers, _) in given.items()},
            "bypassed": [name for name in bypassed if name not in taken],
        }
        changed = bool(taken or given)
        return Result(model, bool(bypassed or given), report, skipped, cases=_cases(taken, given) if changed else None)

    def _named(self, field: str, values: Iterable[ir.Value]) -> list[ir.Value]:
        known = {value.name: value for value in values}
        for name in getattr(self, field):
            if name not in known:
                hint = did_you_mean(name, [known_name for known_name in known if known_name])
                raise UserError(f"{self.pass_name()}: {field}: the model has no '{name}'{hint}")
        return [known[name] for name in getattr(self, field)]

    def _refuse(self, value: ir.Value, reason: NotPossible, rows: list[tuple[str, str]], *, quietly: bool) -> None:
        if not quietly:
            raise PreconditionError(f"'{value.name}' must stay as it is: {reason}") from None
        if value.dtype in (*_FLOATS, *_BYTES):
            rows.append((value.name or "", str(reason)))


def _convert_input(value: ir.Value) -> Integers | None:
    """Lead integers from an input around what quantizes it; return what they stand for if they are new.

    Raises:
        NotPossible: it must stay as it is.
    """
    if value.dtype in _BYTES:
        found = paths(value)
        if not all(path.is_identity(value.dtype) for path in found):
            raise NotPossible("QuantizeLinear maps its integers to others")
        for path in found:
            path.bypass(value)
        return None
    if value.dtype != ir.DataType.FLOAT:
        raise NotPossible("it is not of float32")
    found = paths(value)
    if not all(path.moves_only for path in found):
        raise NotPossible("something is computed with it before it is quantized")
    if len({path.integers for path in found}) > 1:
        raise NotPossible("it is quantized in several ways")
    for path in found:
        path.bypass(value)
    _document(value, found[0].integers)
    return found[0].integers


def _convert_output(graph: ir.Graph, value: ir.Value, names: Counter[str]) -> tuple[Integers, str]:
    """Let an output be what DequantizeLinear reads; return what that stands for, and its name until now.

    Raises:
        NotPossible: it must stay as it is.
    """
    part = affine(value)
    if part is None or part.node.graph is not graph:
        raise NotPossible("DequantizeLinear does not make it")
    if part.scale.size != 1 or part.dtype not in _BYTES:
        raise NotPossible("its integers have more than one scale, or not 8 bits")
    integers = Integers(float(part.scale.reshape(())), int(part.zero_point.reshape(())), part.dtype)
    source = part.node.inputs[0]
    assert source is not None
    before = source.name or ""
    name, shape, doc = value.name, value.shape, value.doc_string
    if source.producer() is None or source.is_graph_output():
        copy = ir.node("Identity", [source])
        graph.insert_before(part.node, copy)
        source = copy.outputs[0]
    value.name, source.name = graphs.fresh(f"{name}_float", names), name
    source.type, source.shape, source.doc_string = ir.TensorType(part.dtype), shape, doc
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = source
    graphs.discard(value)
    _document(source, integers)
    return integers, before


def _document(value: ir.Value, integers: Integers) -> None:
    value.type = ir.TensorType(integers.dtype)
    value.metadata_props.clear()  # facts about the floats
    value.metadata_props[_KEY] = json.dumps({"scale": integers.scale, "zero_point": integers.zero_point})
    value.doc_string = f"{value.doc_string}; {integers}" if value.doc_string else str(integers)


def _cases(taken: Mapping[str, Integers], given: Mapping[str, tuple[Integers, str]]) -> Cases:
    """Return what tells the cases: the model as it was, on floats, and the integers inside it."""

    def cases(before: Before) -> Sequence[Case]:
        outputs = [value.name or "" for value in before.model.graph.outputs]
        inner = {name: source for name, (_, source) in given.items()}
        found = []
        for feeds in before.feeds:
            results = before.run(feeds, [source for source in inner.values() if source not in (*feeds, *outputs)])
            known = {**feeds, **results}
            fed = {name: taken[name].quantize(array) if name in taken else array for name, array in feeds.items()}
            found.append(Case(fed, {name: known[inner.get(name, name)] for name in outputs}))
        return found

    return cases
