"""What all passes share that bring a quantized graph closer to the float model it was made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphopt import runtime
from graphopt.data import Data, open_data
from graphopt.passbase import LOSSY, Pass, PreconditionError, param
from graphopt.passes.quantization import _parts
from graphopt.passes.quantization._moments import unreadable
from graphopt.passes.quantization._quantized import layers
from graphopt.passes.quantization._twins import Reference, Twin


@dataclasses.dataclass(frozen=True)
class Recovery(Pass):
    """A pass that looks at a quantized graph and its float model on unlabelled data."""

    contract = LOSSY

    reference: Reference = param("", "the float model that this one was made from", source="model")
    data: str | Path | Mapping[str, np.ndarray] | Data = param(
        "", "representative inputs: a .npz file or package.module:factory", source="data"
    )
    samples: int = param(512, "how many samples to use at most")
    batch: int = param(64, "samples per run, where the model leaves the choice")
    threads: int = param(0, "threads of the runtime; 0 lets it decide")

    def __post_init__(self) -> None:
        self._at_least(1, "samples", "batch")

    def _at_least(self, low: int, *names: str) -> None:
        """Refuse fields below a number.

        Raises:
            ValueError: one of them is.
        """
        for name in names:
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {low}")

    def requires(self, model: ir.Model) -> None:
        """Refuse to run without data or reference, or on a graph without integer weights."""
        if isinstance(self.reference, str) and not self.reference:
            raise PreconditionError("no reference; name the float model with reference=FILE.onnx")
        if isinstance(self.data, str) and not self.data:
            raise PreconditionError("no data; name some with data=FILE.npz, a few hundred typical inputs")
        if next(layers(model.graph), None) is None:
            raise PreconditionError("no layer has integer weights; run calibrate and quantize-static first")
        open_data(self.data).check(runtime.model_inputs(model))


def refusal(twin: Twin) -> str | None:
    """Return why the weight of a layer must stay as it is, or None."""
    layer, node, weight = twin.layer, twin.layer.node, twin.layer.weight
    integers = weight.integers
    reason = unreadable(node, integers)
    if reason:
        return reason
    if weight.dtype.is_floating_point():
        return "its weight is of narrow floats"
    if weight.axis is not None and weight.axis != layer.channel_axis:
        return "its scales are not those of output channels"
    value: ir.Value | None = weight.source
    while value is not None and value is not node.inputs[1]:
        if len(value.uses()) != 1 or value.is_graph_output():
            return "its weight is shared"
        value = value.consumers()[0].outputs[0]
    if len(weight.node.outputs[0].uses()) != 1:
        return "its weight is shared"
    if weight.dtype.bitwidth == 2 and np.all(integers != 0):
        return "its weight is binary"
    bias = _parts.bias_of(layer)
    bare = node.op_type == "MatMul" and _parts.biased(layer) is node
    return bias if isinstance(bias, str) and not bare else None
