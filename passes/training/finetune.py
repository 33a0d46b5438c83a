"""Train the weights of a graph, quantized or not, on labels or a teacher

The model is executed by the torch runtime, and what training changed is written back by name: nodes, names, types and
structure stay. In a QDQ graph, quantized weights are trained as floats behind a straight-through rounding and stored
as QuantizeLinear rounds them, so fine-tuning such a graph is quantization-aware training. With a teacher, its outputs
(and inner tensors, if asked for) are learned along with the labels, or without any.

With evaluation data the weights of the best epoch are taken; if none is better than the weights before, these stay.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

import onnx_ir as ir

from graphopt.passbase import TRAINED, Pass, PreconditionError, Result
from graphopt.training.settings import Settings


@dataclasses.dataclass(frozen=True)
class Finetune(Settings, Pass):
    """Make the loss smaller, and keep what makes the metric better."""

    contract = TRAINED

    def call(self, model: ir.Model) -> Result:
        if not self.data:
            raise PreconditionError("needs training data; add data=FILE")
        if importlib.util.find_spec("torch") is None:
            raise PreconditionError("needs PyTorch; install 'graphopt[torch]'")
        from graphopt.training.loop import fit

        done = fit(model, self)
        report: dict[str, Any] = {
            "trained": len(done.trained),
            "best": done.best,
            "history": [dataclasses.asdict(epoch) for epoch in done.history],
            "resumed": done.resumed,
        }
        if done.metric:
            report |= {"metric": done.metric, "before": done.before, "after": done.after}
        return Result(model, bool(done.best), report, done.refused)
