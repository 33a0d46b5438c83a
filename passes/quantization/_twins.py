"""Find, for the layers of a quantized graph, what the float model that it was made from computes in their place."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from graphopt import graphs, io, runtime, tapping
from graphopt.data import Data, batch_size, fitted_batches
from graphopt.errors import UserError
from graphopt.passes.quantization._graphs import attribute, constant, input_of, label
from graphopt.passes.quantization._parts import biased
from graphopt.passes.quantization._quantized import Layer, layers
from graphopt.target import Target

Reference = str | Path | ir.Model

_LIMIT = 256 << 20
"""Bytes of inner values that may lie in memory at once."""

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")

_FOREIGN = 0.5
"""Share of a weight's square that rounding, even to one bit, does not take away."""


@dataclasses.dataclass(frozen=True, eq=False)
class Twin:
    """A layer, and the same layer of the float model.

    Attributes:
        layer: of the quantized graph.
        output: what the layer computes there in float, with its bias.
        target: what the float model computes in its place; a value of that model.
        weight: of the float model, float32, batch normalization folded; None where it is not constant, or laid out in
            another way.
        source: what the float model multiplies by that weight; None where there is none.
    """

    layer: Layer
    output: ir.Value
    target: ir.Value
    weight: np.ndarray | None
    source: ir.Value | None

    @property
    def channel_axis(self) -> int:
        """The axis of `output` that counts channels."""
        return 1 if self.layer.node.op_type in ("Conv", "ConvTranspose") else -1


def open_reference(source: Reference, name: str) -> ir.Model:
    """Return the float model; it is never changed.

    Raises:
        UserError: it does not load, or is quantized itself.
    """
    model = source if isinstance(source, ir.Model) else io.load(source)
    if next(layers(model.graph), None):
        raise UserError(f"{name}: the reference is quantized itself; name the float model that this one was made from")
    return model


def twins(model: ir.Model, reference: ir.Model, name: str) -> tuple[list[Twin], list[tuple[str, str]]]:
    """Match layers by the name of their output, or of their node; return them in graph order, and rows about the rest.

    Raises:
        UserError: there are layers, and not one of them matches.
    """
    by_value = {value.name: value for node in reference.graph for value in node.outputs if value.name}
    by_node = {node.name: node for node in reference.graph if node.name}
    found, skipped = [], []
    for layer in layers(model.graph):
        output = biased(layer).outputs[0]
        target = next((by_value[alias] for alias in _aliases(output) if alias in by_value), None)
        if target is None and output is layer.node.outputs[0]:
            named = by_node.get(layer.node.name or "")
            target = named.outputs[0] if named is not None and named.op_type == layer.node.op_type else None
        if target is None:
            skipped.append((label(layer.node), f"the reference computes no '{output.name}'"))
            continue
        target = _before_clamp(target)
        node = _operator(target, layer)
        if node is None:
            producer = target.producer()
            how = "from elsewhere" if producer is None else f"by {producer.op_type}"
            skipped.append((label(layer.node), f"the reference has '{target.name}' {how}"))
            continue
        weight = _float_weight(layer, node, target)
        if isinstance(weight, str):
            skipped.append((label(layer.node), weight))
            continue
        found.append(Twin(layer, output, target, weight, None if weight is None else node.inputs[0]))
    if skipped and not found:
        raise UserError(
            f"{name}: the reference has none of the model's layers ({skipped[0][0]}: {skipped[0][1]}); "
            "name the float model that this one was made from"
        )
    return found, skipped


def stages(graph: ir.Graph, found: Sequence[Twin]) -> list[list[Twin]]:
    """Group layers so that no layer depends on another one of its group, and groups depend on earlier ones only."""
    of = {twin.layer.node: twin for twin in found}
    depth: dict[ir.Value, int] = {}
    groups: dict[int, list[Twin]] = {}
    for node in graph:
        read = [*(value for value in node.inputs if value is not None), *graphs.captured(node)]
        level = max((depth.get(value, 0) for value in read), default=0)
        if node in of:
            groups.setdefault(level, []).append(of[node])
            level += 1
        depth.update(dict.fromkeys(node.outputs, level))
    return [groups[level] for level in sorted(groups)]


Values = Mapping[ir.Value, np.ndarray]


def read(
    wanted: Sequence[tuple[ir.Model, Sequence[ir.Value]]], data: Data, place: Target, samples: int, batch: int
) -> Iterator[tuple[int, list[Values]]]:
    """Run models over the same data, no further than to the values that are asked for.

    Yields, batch by batch, how many samples it has, and for each model its values.

    Args:
        wanted: models of the same inputs, each with values of its main graph.
        data: the samples.
        place: where they run.
        samples: how many samples to use at most.
        batch: samples per run at most; fewer where the values would take too much memory.

    Raises:
        UserError: a model does not run on this data.
    """
    probes = [_Probe(model, values, place) for model, values in wanted]
    ports = runtime.model_inputs(wanted[0][0])
    first, _, count = next(fitted_batches(data, ports, batch_size(ports, 1), batch_size(ports, 1)))
    held = sum(array.nbytes for probe in probes for array in probe.run(first, data.name).values())
    size = max(1, min(batch, _LIMIT * count // max(held, 1)))
    for feeds, _, real in fitted_batches(data, ports, size, samples):
        fed = max((len(feed) for feed in feeds.values() if feed.ndim), default=real)
        found = [probe.run(feeds, data.name) for probe in probes]
        if real < fed:  # samples that only fill the batch up
            found = [{v: a[:real] if a.ndim and len(a) == fed else a for v, a in part.items()} for part in found]
        yield real, [*found]


class _Probe:
    """A session of a part of a model that yields inner values."""

    def __init__(self, model: ir.Model, values: Sequence[ir.Value], place: Target) -> None:
        values = list(dict.fromkeys(values))
        tapped = tapping.tap(model, values)
        self._names = {value: name for value, name in zip(values, tapped.names, strict=True) if name is not None}
        wanted = set(self._names.values())
        outputs = {output.name: output for output in tapped.model.graph.outputs if output.name in wanted}
        tapped.model.graph.outputs.clear()
        tapped.model.graph.outputs.extend(outputs.values())
        common.RemoveUnusedNodesPass()(tapped.model)
        self._session = runtime.open_session(tapped.model, place)

    def run(self, feeds: Mapping[str, np.ndarray], data: str) -> dict[ir.Value, np.ndarray]:
        try:
            results = self._session.run(dict(feeds))
        except runtime.ExecutionError as error:
            raise UserError(f"{data}: the model or its reference does not run on this data: {error}") from None
        return {value: results[name] for value, name in self._names.items()}


def _aliases(output: ir.Value) -> Iterator[str]:
    """Yield what a layer's output is called: what is made of its integers may have taken its name as a graph output."""
    if output.name:
        yield output.name
    for quantizer in output.consumers():
        if quantizer.op_type == "QuantizeLinear":
            for node in quantizer.outputs[0].consumers():
                if node.op_type == "DequantizeLinear" and node.outputs[0].is_graph_output():
                    yield node.outputs[0].name or ""


def _before_clamp(target: ir.Value) -> ir.Value:
    """Return what a clamp reads: where integers saturate instead, its name may have gone to what is before it."""
    node = target.producer()
    while node is not None and node.op_type in ("Clip", "Relu") and node.inputs[0] is not None:
        target = node.inputs[0]
        node = target.producer()
    return target


def _operator(target: ir.Value, layer: Layer) -> ir.Node | None:
    """Return the operator of the float model that does what a layer does, before bias or normalization are added."""
    node = target.producer()
    if node is not None and node.op_type == "Add" and layer.node.op_type == "MatMul":
        producers = (value.producer() for value in node.inputs if value is not None)
        node = next((found for found in producers if found is not None and found.op_type == "MatMul"), None)
    elif node is not None and node.op_type == "BatchNormalization" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node if node is not None and node.op_type in LINEAR and node.domain == "" else None


def _float_weight(layer: Layer, node: ir.Node, target: ir.Value) -> np.ndarray | str | None:
    """Return the float model's weight in the layout of the quantized one, times alpha and normalization.

    Returns None where it is not constant or laid out in another way, and a reason where it is another weight.
    """
    weight, stored = constant(input_of(node, 1)), layer.weight.floats()
    if weight is None or weight.dtype.kind != "f" or node.op_type != layer.node.op_type:
        return None
    weight = weight.astype(np.float32) * np.float32(attribute(node, "alpha", 1.0))
    if attribute(node, "transB", 0) != attribute(layer.node, "transB", 0):
        weight = weight.T
    if weight.shape != stored.shape:
        return f"its weight is of shape {list(stored.shape)}, that of the reference of {list(weight.shape)}"
    normalization = target.producer()
    if normalization is not None and normalization.op_type == "BatchNormalization":
        parameters = [constant(value) for value in normalization.inputs[1:]]
        if node.op_type != "Conv" or any(array is None for array in parameters):
            return None
        gamma, _, _, variance = (array.astype(np.float64) for array in parameters if array is not None)
        factor = gamma / np.sqrt(variance + attribute(normalization, "epsilon", 1e-5))
        weight = (weight * factor.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.float32)
    difference = float(np.sum(np.square(stored - weight, dtype=np.float64)))
    if difference > _FOREIGN * float(np.sum(np.square(weight, dtype=np.float64))):
        return "its weight is another than that of the reference"
    return weight
