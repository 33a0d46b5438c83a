"""What opsets 6 and 7 did away with: hints to allocators, broadcasting that had to be asked for, test modes."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.passes.precision._opset.site import Refusal, Site
from graphopt.passes.precision._opset.table import up

_ARITHMETIC = ("Add", "Sub", "Mul", "Div")
_LOGIC = ("And", "Or", "Xor", "Equal", "Greater", "Less", "Pow")
_WITH_HINTS = (
    "Abs", "Ceil", "Clip", "Elu", "Exp", "Floor", "HardSigmoid", "InstanceNormalization", "LeakyRelu", "Log", "Max",
    "Mean", "Min", "Neg", "PRelu", "Reciprocal", "Relu", "Selu", "Sigmoid", "Sqrt", "Sum", "Tanh", "BatchNormalization",
    "Dropout", *_ARITHMETIC,
)  # fmt: skip


@up(6, *_WITH_HINTS)
def _without_hints(site: Site) -> None:
    site.node.attributes.pop("consumed_inputs", None)


@up(7, *_ARITHMETIC, *_LOGIC)
def _broadcast_like_numpy(site: Site) -> None:
    """Opset 6 aligned the second input with the last axes of the first, or from `axis` on if told."""
    axis = site.pop("axis")
    if site.pop("broadcast", 0) and axis is not None:
        missing = site.rank(site.x) - axis % site.rank(site.x) - site.rank(site.given(1))
        if missing > 0:
            rank = site.rank(site.given(1))
            site.put(1, site.emit("Unsqueeze", site.given(1), axes=list(range(rank, rank + missing))))


@up(7, "Gemm")
def _always_broadcast(site: Site) -> None:
    site.node.attributes.pop("broadcast", None)


@up(7, "BatchNormalization", "Dropout")
def _at_inference(site: Site) -> None:
    if not site.pop("is_test", 0):
        raise Refusal("it is in training mode (is_test=0), which opset 7 has not")


@up(6, "Cast")
def _type_by_number(site: Site) -> None:
    wanted = site.get("to")
    if isinstance(wanted, str):
        site.set("to", int(ir.DataType[wanted.upper()]))
