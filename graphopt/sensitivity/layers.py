"""What rounding one layer costs: the sum over its sources of noise."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

from graphopt.sensitivity import noise
from graphopt.sensitivity.sources import Source, constant


@dataclasses.dataclass(frozen=True)
class Layer:
    """A node, its constants and what it makes. Ratios are in dB, infinite where rounding costs nothing.

    Attributes:
        name: of the node; of the value, where that is an input of the model.
        operator: its type; "input" for an input of the model.
        sqnr: of the worst output, when only this is rounded.
        mean_sqnr: over the outputs that it reaches.
        weights_sqnr, activation_sqnr: of the worst output, when only its constants are, or only what it makes is rounded.
        share: of the noise that all layers make, the mean over outputs; from 0 to 1.
        without: predicted for the worst output, when everything but this is rounded. What a node makes is rounded as long
            as any of its readers computes with integers, so to get there these stay in float, too.
        outputs: `sqnr` of each output.
        weight_bytes: what its constants take in the float model.
        float_ms, quantized_ms: milliseconds per run, measured in the whole model; None where not known.
        drop: of the metric, when only this is rounded; None without a metric.
    """

    name: str
    operator: str
    sqnr: float
    mean_sqnr: float
    weights_sqnr: float
    activation_sqnr: float
    share: float
    without: float
    outputs: dict[str, float]
    weight_bytes: int
    float_ms: float | None = None
    quantized_ms: float | None = None
    drop: float | None = None


def group(model: ir.Model, sources: Iterable[Source]) -> dict[str, list[Source]]:
    """Return the sources of each layer, by its name, in the order of the graph."""
    makers = {value.name: node.name for node in model.graph.all_nodes() for value in node.outputs}
    found: dict[str, list[Source]] = {}
    for source in sources:
        name = source.name if source.kind == "weights" else makers.get(source.name, source.name)
        found.setdefault(name or "", []).append(source)
    return found


def describe(
    model: ir.Model, each: Mapping[Source, noise.Noise], outputs: Sequence[str], took: Mapping[str, tuple[float, float]]
) -> list[Layer]:
    """Return the layers of a model in the order of the graph.

    Args:
        model: the float model.
        each: what noise each source makes.
        outputs: names of the floating-point outputs.
        took: microseconds of nodes, in floats and in integers.
    """
    nodes = {node.name: node for node in model.graph.all_nodes()}
    whole = noise.total(each.values(), outputs)
    layers = []
    for name, sources in group(model, each).items():
        node = nodes.get(name)
        own = noise.total([each[source] for source in sources], outputs)
        ratios = noise.decibels(own)
        reached = [value for value in ratios.values() if value < float("inf")]
        held = noise.total([each[s] for s in sources if s.kind == "weights"], outputs)
        made = noise.total([each[s] for s in sources if s.kind == "activation"], outputs)
        shares = [own[output] / whole[output] for output in outputs if 0 < whole[output] < float("inf")]
        before_us, after_us = took.get(name, (None, None))
        layers.append(
            Layer(
                name,
                node.op_type if node is not None else "input",
                sqnr=noise.worst(own),
                mean_sqnr=statistics.fmean(reached) if reached else float("inf"),
                weights_sqnr=noise.worst(held),
                activation_sqnr=noise.worst(made),
                share=statistics.fmean(shares) if shares else 0.0,
                without=noise.worst({output: max(whole[output] - own[output], 0.0) for output in outputs}),
                outputs=ratios,
                weight_bytes=_constant_bytes(node, sources) if node is not None else 0,
                float_ms=None if before_us is None else before_us / 1e3,
                quantized_ms=None if after_us is None else after_us / 1e3,
            )
        )
    return layers


def _constant_bytes(node: ir.Node, sources: Iterable[Source]) -> int:
    if all(source.kind != "weights" for source in sources):
        return 0
    return sum(tensor.nbytes for value in node.inputs if (tensor := constant(value)) is not None)
