"""Move outliers of activations into the weights that read them, without changing results

A few channels of a transformer's activations are far larger than the rest, and one scale for all is then coarse for most.
With X diag(1/s) and diag(s) W in place of X and W, channel j becomes smaller by s_j = max|X_j|^alpha / max|W_j|^(1 - alpha),
and the weights, which suffer less, take it over (SmoothQuant, Xiao et al. 2023, arXiv:2211.10438). 1/s goes into what comes
before: the scale and bias of a normalization, or the weights of a linear layer, also through attention. Factors are powers
of two, so the model computes the same numbers to the last bit.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphopt import graphs, runtime, target
from graphopt.data import Data, open_data
from graphopt.passbase import EXACT, Pass, PreconditionError, Result, param
from graphopt.passes.quantization import _ranges
from graphopt.passes.quantization._equalize_balance import Balance, Emphasis, apply
from graphopt.passes.quantization._equalize_channels import Channels, Layer
from graphopt.passes.quantization._equalize_rules import analyse
from graphopt.passes.quantization._smooth_search import sample, search

_QUANTIZED = ("QuantizeLinear", "DequantizeLinear")
_PRODUCTS = ("Gemm", "MatMul")
_STEPS = 50


@dataclasses.dataclass(frozen=True)
class Smooth(Pass):
    """Make the channels of what MatMul and Gemm read alike, at the expense of their weights.

    Where an activation is used otherwise, too, as on a residual connection, or comes from an operator that does not commute
    with a factor, such as Gelu, nothing can take 1/s over; `insert_mul` puts a Mul there.

    Raises:
        PreconditionError: there is no data, or the model is quantized already.
        UserError: the data does not exist, does not fit the model's inputs, or the model does not run on it.
        ValueError: a field is out of range.
    """

    contract = EXACT

    data: str | Path | Mapping[str, np.ndarray] | Data = param(
        "", "representative inputs: a .npz file or package.module:factory", source="data"
    )
    samples: int = param(128, "how many samples to use at most")
    batch: int = param(32, "samples per run, where the model leaves the choice")
    alpha: float = param(0.5, "how much of the difference goes into the weights, from 0 to 1")
    search: bool = param(True, "find the best alpha for each group of products by the error of their output")
    insert_mul: bool = param(False, "put a Mul where no constant can take the factors over")
    threads: int = param(0, "threads of the runtime; 0 lets it decide")

    def __post_init__(self) -> None:
        for name in ("samples", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha is {self.alpha}; it must lie between 0 and 1")

    def requires(self, model: ir.Model) -> None:
        """Refuse to run without data, and on what is quantized already."""
        if isinstance(self.data, str) and not self.data:
            raise PreconditionError("no data; name some with data=FILE.npz, a hundred typical inputs")
        done = next((node for node in model.graph.all_nodes() if node.op_type in _QUANTIZED), None)
        if done is not None:
            raise PreconditionError(f"the model is quantized already: it has {done.op_type}")
        open_data(self.data).check(runtime.model_inputs(model))

    def call(self, model: ir.Model) -> Result:
        channels = analyse(model)
        bound = _bound(channels)
        inserted = _insert(model, channels, bound) if self.insert_mul else []
        if inserted:
            channels, bound = analyse(model), {}
        skipped = [(value.name or "", f"{reason}; insert_mul would put a Mul there") for value, reason in bound.items()]
        readers = {value: layers for value, layers in _readers(channels).items() if value not in bound}
        place = target.find("cpu", self.threads)
        samples = sample(model, list(readers), open_data(self.data), place, self.samples, self.batch)
        if self.search:
            samples = {value: found.cautious() for value, found in samples.items()}
        activations = [(readers[value][0].inputs, found.peaks) for value, found in samples.items()]
        layers = [layer for layer in channels.layers if layer.node.op_type in _PRODUCTS]
        balance = Balance(channels, activations, layers, _STEPS)
        if not activations:
            exponents = balance.zero()
        elif self.search:
            exponents = search(balance, samples, readers)
        else:
            exponents = balance.solve(Emphasis(0, 1 - self.alpha, self.alpha))
        report = apply(channels, balance, exponents, model)
        report["inserted"] = _remove_idle(inserted)
        if report["constants"]:
            _ranges.erase(model)
        return Result(model, bool(report["constants"]), report, skipped)


def _readers(channels: Channels) -> dict[ir.Value, list[Layer]]:
    """Return the matrix products with constant weights that read each activation."""
    layers = {layer.node.inputs[1]: layer for layer in channels.layers}
    found: defaultdict[ir.Value, list[Layer]] = defaultdict(list)
    for read in channels.reads:
        layer = layers.get(read.node.inputs[1])
        if layer is not None and read.node.op_type in _PRODUCTS:
            found[read.value].append(layer)
    return dict(found)


def _bound(channels: Channels) -> dict[ir.Value, str]:
    """Return the activations of which no channel can be scaled, with the reason."""
    return {value: reason for value in _readers(channels) if (reason := channels.reason(value)) is not None}


def _insert(model: ir.Model, channels: Channels, values: Iterable[ir.Value]) -> list[ir.Node]:
    """Put a Mul by ones in front of the matrix products that read these activations; return the new nodes."""
    taken, inserted = graphs.names(model), []
    layers = {layer.node.inputs[1]: layer for layer in channels.layers}
    for value in values:
        uses = [
            (read.node, layers[read.node.inputs[1]])
            for read in channels.reads
            if read.value is value and read.node.inputs[1] in layers
        ]
        ones = graphs.initializer(
            model.graph, np.ones(uses[0][1].inputs.size, np.float32), f"{value.name}_factors", taken
        )
        node = ir.node("Mul", [value, ones], name=f"{value.name}_smooth")
        result = node.outputs[0]
        result.name, result.type, result.shape = graphs.fresh(f"{value.name}_smooth", taken), value.type, value.shape
        producer = value.producer()
        if producer is None:
            model.graph.insert_before(model.graph[0], node)
        else:
            model.graph.insert_after(producer, node)
        for user, _ in uses:
            user.replace_input_with(0, result)
        inserted.append(node)
    return inserted


def _remove_idle(inserted: Iterable[ir.Node]) -> int:
    """Remove those that multiply by one; return how many are left."""
    left = 0
    for node in inserted:
        source, factors = node.inputs
        constant = graphs.array(factors)
        if constant is None or source is None or (constant != 1).any():
            left += 1
            continue
        node.outputs[0].replace_all_uses_with(source)
        graphs.discard(node.outputs[0])
    return left
