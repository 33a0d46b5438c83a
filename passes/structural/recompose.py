"""Put standard operators back in place of the smaller ones that exporters decompose them into

Gelu in both variants, HardSwish, HardSigmoid, Mish, Swish, Sigmoid, Softplus, Softsign, Relu, LeakyRelu, PRelu, Elu, Selu,
Celu; LayerNormalization, RMSNormalization, InstanceNormalization, GroupNormalization; Attention; Softmax, LogSoftmax;
ReduceMean, ReduceL1, ReduceL2, ReduceSumSquare, ReduceLogSum, ReduceLogSumExp. The modules of `_recompose` tell how each is
recognized.

Only operators that the model's opset has. A pattern stays if anything else uses one of its inner values, quantization
included, or if its constants are not those of the operator. Some operators make a graph smaller, but ONNX Runtime
computes them more slowly on a CPU than what they replace: those are made on demand (`slower`). Measured with ONNX Runtime
1.31 on one thread, time relative to the decomposed operators: Gelu 1.0, with tanh 0.25; LayerNormalization 0.3 to 1.0;
RMSNormalization 0.45; InstanceNormalization 0.3; Attention 0.97 to 1.01; Softmax 0.4; LogSoftmax 0.3; but Softplus 8,
Swish 2, GroupNormalization 2.1, PRelu 2.8, ReduceLogSumExp 7, ReduceLogSum 3, ReduceL1, ReduceL2 and ReduceSumSquare 1.1
to 1.8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.passbase import Result, param
from graphopt.passes.structural._informed import Facts, Informed, sites
from graphopt.passes.structural._recompose import activations, attention, gates, normalization, reductions
from graphopt.passes.structural._recompose.site import Site

_BROADCASTS = 7
"""Opset since which binary operators broadcast by themselves."""
_IR_VERSION = 4
"""First IR version in which an initializer need not be a graph input."""

_Rule = Callable[[Site, ir.Node], bool]

_ROUNDS: Sequence[dict[str, Sequence[_Rule]]] = (
    {
        "Sqrt": (normalization.recompose,),
        "Pow": (normalization.recompose,),
        "InstanceNormalization": (normalization.group,),
    },
    {
        "Div": (activations.quotient, reductions.quotient, reductions.scaled),
        "Reciprocal": (activations.quotient,),
        "Mul": (reductions.quotient, reductions.scaled),
        "Sub": (reductions.difference, activations.total),
        "Add": (reductions.sum_of_maximum, activations.total),
        "Where": (activations.where,),
    },
    {
        **dict.fromkeys(gates.ANCHORS, (gates.recompose,)),
        "Mul": (activations.product,),
        "Sqrt": (reductions.root,),
        "Pow": (reductions.root,),
        "Log": (reductions.log, activations.log),
        "Softmax": (attention.recompose,),
    },
    {"Max": (activations.maximum,), "ReduceSum": (reductions.total,)},
)
"""Rules by the operator at which they start to look. A later round may use what an earlier one made, and hide from it."""


@dataclass(frozen=True)
class Recompose(Informed):
    """Recognize decomposed operators."""

    slower: bool = param(
        False,
        "also make operators that ONNX Runtime computes more slowly on a CPU: Softplus, Swish, PRelu, ReduceL2, ...",
    )

    def apply(self, model: ir.Model, facts: Facts) -> Result:
        """Recompose in place; the report counts the operators that were made."""
        site = Site(model, facts, slower=self.slower)
        for rules in _ROUNDS if site.opset >= _BROADCASTS else ():
            for _, node in sites(facts, *rules):
                rule = rules.get(node.op_type, ())
                next((None for look in rule if look(site, node)), None)
        if site.registered:
            model.ir_version = max(model.ir_version, _IR_VERSION)
        return Result(model, bool(site.made), dict(sorted(site.made.items())), sorted(site.skipped.items()))
