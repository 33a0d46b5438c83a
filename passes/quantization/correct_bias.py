"""Take the mean error of quantization out of the biases of layers, without labels

Rounding weights and activations shifts the mean of what a layer computes, and the layers behind it add these shifts up.
The mean, over samples and positions, of each output channel of the float model minus that of the quantized one goes into
the bias (Nagel et al. 2019, arXiv:1906.04721, section 4.2), layer by layer in the order of the graph, so that each is
measured with those before it corrected. Biases stay integers on the grid that they have.

With method=analytic only the error of the weights is made up for: its product with the mean of what the layer reads in
the float model. That takes a single run over the data, and none of the quantized model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from graphopt import target
from graphopt.data import open_data
from graphopt.passbase import Result, param
from graphopt.passes.quantization import _parts
from graphopt.passes.quantization._graphs import label
from graphopt.passes.quantization._moments import to_rows, unreadable
from graphopt.passes.quantization._recovery import Recovery
from graphopt.passes.quantization._twins import Twin, open_reference, read, stages, twins


@dataclasses.dataclass(frozen=True)
class CorrectBias(Recovery):
    """Correct biases by the mean error of what their layers compute.

    Convolutions and Gemm without a bias get one. Works on a graph of QuantizeLinear and DequantizeLinear, whoever wrote
    it.

    Raises:
        PreconditionError: no data or reference was given, or no weight is quantized.
        UserError: the reference is another model, or the data does not fit.
        ValueError: a field is out of range.
    """

    method: Literal["empirical", "analytic"] = param(
        "empirical", "measure layers in both models, or compute the effect of rounded weights from input means"
    )

    def call(self, model: ir.Model) -> Result:
        reference = open_reference(self.reference, "correct-bias")
        found, skipped = twins(model, reference, "correct-bias")
        sites: list[Twin] = []
        for twin in found:
            bias = _parts.bias_of(twin.layer)
            reason = bias if isinstance(bias, str) else self._refusal(twin)
            if reason:
                skipped.append((label(twin.layer.node), reason))
            else:
                sites.append(twin)
        writer = _Writer(model)
        if sites and self.method == "analytic":
            sources = [twin.source for twin in sites if twin.source is not None]
            for twin, mean in zip(sites, self._means(reference, sources, [_axis(twin) for twin in sites]), strict=True):
                writer.add(twin, _effect(twin, mean))
        elif sites:
            means = self._means(reference, [t.target for t in sites], [t.channel_axis for t in sites])
            wanted = dict(zip(sites, means, strict=True))
            for stage in stages(model.graph, sites):
                means = self._means(model, [t.output for t in stage], [t.channel_axis for t in stage])
                for twin, mean in zip(stage, means, strict=True):
                    with np.errstate(invalid="ignore"):  # which the writer tells
                        writer.add(twin, wanted[twin] - mean)
        report: dict[str, Any] = {"corrected": writer.corrected}
        return Result(model, writer.modified, report, [*skipped, *writer.lost.items()])

    def _refusal(self, twin: Twin) -> str | None:
        if self.method == "empirical":
            return None
        if twin.weight is None:
            return "the reference multiplies by no constant weight there; run fold-batchnorm on it first"
        return unreadable(twin.layer.node, twin.weight)

    def _means(self, model: ir.Model, values: Sequence[ir.Value], axes: Sequence[int]) -> list[np.ndarray]:
        """Return the mean of every channel of values of a model, over all samples and positions."""
        place = target.find("cpu", self.threads)
        sums: list[Any] = [0.0] * len(values)
        counts = [0] * len(values)
        for _, (found,) in read([(model, values)], open_data(self.data), place, self.samples, self.batch):
            for index, (value, axis) in enumerate(zip(values, axes, strict=True)):
                array = np.moveaxis(found[value], axis, -1)
                rows = array.reshape(-1, array.shape[-1])
                with np.errstate(invalid="ignore"):
                    sums[index] += rows.sum(0, dtype=np.float64)
                counts[index] += len(rows)
        return [total / count for total, count in zip(sums, counts, strict=True)]


class _Writer:
    """Adds to biases of a model.

    Attributes:
        modified: whether a stored number changed.
        corrected: how many biases were added to.
        lost: `{node: reason}` of biases that stay, or do not fit into their integers.
    """

    def __init__(self, model: ir.Model) -> None:
        self._graph, self._names = model.graph, _parts.Names(model)
        self.modified, self.corrected = False, 0
        self.lost: dict[str, str] = {}

    def add(self, twin: Twin, change: np.ndarray) -> None:
        """Add to the bias of a layer, [channels]."""
        layer = _parts.reread(twin.layer)
        if not np.isfinite(change).all():
            self.lost[label(layer.node)] = "it computes NaN or infinity on this data"
            return
        bias = _parts.bias_of(layer)
        assert isinstance(bias, _parts.Bias)
        changed, lost = _parts.write_bias(self._graph, layer, bias.values(change.size) + change, self._names)
        self.modified |= changed
        self.corrected += 1
        if lost:
            self.lost[label(layer.node)] = f"{lost} numbers of its bias do not fit into int32"


def _axis(twin: Twin) -> int:
    return 1 if twin.layer.node.op_type == "Conv" else -1


def _effect(twin: Twin, mean: np.ndarray) -> np.ndarray:
    """Return what rounding the weights takes away from the mean of the output, [channels].

    Args:
        twin: the layer.
        mean: of what it reads, by channel; padding counts as if it were like the rest.
    """
    assert twin.weight is not None
    node = twin.layer.node
    error = to_rows(node, twin.weight.astype(np.float64) - twin.layer.weight.floats())
    groups, _, inputs = error.shape
    by_group = mean.reshape(groups, -1)
    read_by_each = np.repeat(by_group, inputs // by_group.shape[1], axis=1)
    effect: np.ndarray = (error @ read_by_each[..., None]).reshape(-1)
    return effect
