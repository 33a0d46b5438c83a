"""Scale channels against each other, without changing results, so that one scale suits them all

Where everything between two layers commutes with a positive factor per channel, output channel i of the first may be
multiplied and input channel i of the second divided by it (cross-layer equalization, Nagel et al. 2019, arXiv:1906.04721).
Factors are powers of two, so the model computes the same numbers to the last bit. Besides Relu and its like, pooling,
resizing, reshaping, concatenation and depthwise convolutions, this goes through residual connections, whose branches take
the factor together, through gates, and through attention: queries against keys, values against the output projection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphopt import graphs, runtime, target
from graphopt.data import Data, open_data
from graphopt.passbase import EXACT, Pass, PreconditionError, Result, param
from graphopt.passes.quantization import _ranges
from graphopt.passes.quantization._equalize_balance import Balance, Emphasis, apply
from graphopt.passes.quantization._equalize_channels import Channels
from graphopt.passes.quantization._equalize_observe import peaks
from graphopt.passes.quantization._equalize_rules import analyse

_QUANTIZED = ("QuantizeLinear", "DequantizeLinear")


@dataclasses.dataclass(frozen=True)
class Equalize(Pass):
    """Make the channels of weights and, with data, of activations alike.

    A weight of one scale per output channel gains nothing from equal rows; then the channels of activations are weighed
    against the columns of the weights that read them. Without data, rows and biases stand for the activations.

    Raises:
        PreconditionError: the model is quantized already.
        UserError: the data does not exist, does not fit the model's inputs, or the model does not run on it.
        ValueError: a field is not positive.
    """

    contract = EXACT

    data: str | Path | Mapping[str, np.ndarray] | Data = param(
        "", "representative inputs, to see activations: a .npz file or package.module:factory", source="data"
    )
    samples: int = param(128, "how many samples to use at most")
    batch: int = param(32, "samples per run, where the model leaves the choice")
    per_channel: bool = param(True, "weights will get a scale for every output channel")
    iterations: int = param(100, "steps towards the solution at most")
    threads: int = param(0, "threads of the runtime; 0 lets it decide")

    def __post_init__(self) -> None:
        for name in ("samples", "batch", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def requires(self, model: ir.Model) -> None:
        """Refuse what is quantized already."""
        done = next((node for node in model.graph.all_nodes() if node.op_type in _QUANTIZED), None)
        if done is not None:
            raise PreconditionError(f"the model is quantized already: it has {done.op_type}")
        if not _is_missing(self.data):
            open_data(self.data).check(runtime.model_inputs(model))

    def call(self, model: ir.Model) -> Result:
        channels = analyse(model)
        skipped = [
            (graphs.label(layer.node), reason)
            for layer in channels.layers
            if (reason := channels.variables.reason(layer.outputs))
        ]
        if not channels.variables.resolved().any():
            return Result(model, False, {"channels": 0}, skipped)
        activations = [] if _is_missing(self.data) else self._observe(model, channels)
        emphasis = Emphasis(outputs=0 if activations and self.per_channel else 1, inputs=1, activations=1)
        balance = Balance(channels, activations, channels.layers, self.iterations)
        exponents = balance.solve(emphasis)
        report = apply(channels, balance, exponents, model)
        if report["constants"]:
            _ranges.erase(model)
        return Result(model, bool(report["constants"]), report, skipped)

    def _observe(self, model: ir.Model, channels: Channels) -> list[tuple[np.ndarray, np.ndarray]]:
        free = dict.fromkeys(read.value for read in channels.reads if channels.reason(read.value) is None)
        place = target.find("cpu", self.threads)
        found = peaks(model, channels, list(free), open_data(self.data), place, self.samples, self.batch)
        return [(channels.of(value), peak) for value, peak in found.items()]


def _is_missing(data: object) -> bool:
    return isinstance(data, str) and not data
