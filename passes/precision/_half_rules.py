"""What has to stay float32, known before anything is run in another type."""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import onnx_ir as ir

from graphopt import compare, graphs
from graphopt.errors import UserError, did_you_mean
from graphopt.passes.precision import _half_masks
from graphopt.passes.precision import _half_operators as operators
from graphopt.passes.precision._half_measure import Magnitudes
from graphopt.passes.precision._half_plan import Plan, Site
from graphopt.passes.precision._half_rewrite import rounded

_EXACT = 50.0
"""Signal-to-noise ratio in dB that the weights of a node must keep when they are rounded to float16."""
_SMALL = 1024
"""Elements of a constant that may stand beside an angle or a position in a MatMul; weights are larger."""
_ADDED = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "FusedConv", "FusedGemm"), (2,)),
    **dict.fromkeys(("InstanceNormalization", "LayerNormalization", "GroupNormalization"), (2,)),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (3,)),
    "BatchNormalization": (2, 3),
    "BiasGelu": (1,),
    "SkipLayerNormalization": (3, 4),
}
"""Inputs that are biases."""
_SQUARING = ("InstanceNormalization", "LpNormalization", "LpPool", "MeanVarianceNormalization", "ReduceL2")


class Range:
    """The range of a narrow type, with headroom.

    Attributes:
        limit: the largest magnitude that data may reach.
        least: the smallest normal number.
    """

    def __init__(self, dtype: ir.DataType, headroom: float) -> None:
        info = ml_dtypes.finfo(dtype.numpy())
        self.dtype, self.largest = dtype, float(info.max)
        self.limit, self.least = self.largest / headroom, float(info.smallest_normal)
        self.digits = float(-20 * np.log10(float(info.eps)))

    def obstacle(self, size: float) -> str | None:
        """Return what is wrong with numbers of this magnitude."""
        if size > self.limit:
            return f"reaches {size:.3g}, over {self.limit:.5g}"
        if 0 < size < self.least:
            return f"is at most {size:.3g}, under {self.least:.3g}"
        return None


def by_name(plan: Plan, keep: Sequence[str], name: str) -> None:
    """Leave what the user wants to leave: names of nodes or operators.

    Raises:
        UserError: there is no such node or operator.
    """
    nodes = [(site, site.node) for site in plan.sites if site.node is not None]
    known = {text for _, node in nodes for text in (graphs.label(node), node.op_type)}
    for wish in keep:
        if wish not in known:
            raise UserError(
                f"{name}: keep: no float32 node is called '{wish}', nor is that its operator{did_you_mean(wish, known)}"
            )
    for site, node in nodes:
        if graphs.label(node) in keep or node.op_type in keep:
            site.stay("asked for by keep")


def by_neighbours(plan: Plan, floats: frozenset[ir.Value], dtype: ir.DataType) -> None:
    """Leave what quantized networks compute around their integers, what computes positions and sizes, and a bad pair."""
    counted = _counted(plan, floats)
    for site in plan.sites:
        if site.node is None or site.fixed:
            continue
        around = [v.producer() for v in site.node.inputs if v is not None]
        around += [user for out in site.node.outputs for user in out.consumers()]
        if any(graphs.is_op(node, "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear") for node in around):
            site.stay("it belongs to a quantized network")
        elif dtype == ir.DataType.FLOAT16 and _crashes(site.node):
            site.stay("before a MatMul with weights, ONNX Runtime on a CPU crashes on it (1.31)")
        elif any(out in counted for out in site.node.outputs):
            site.stay("it computes with integers, such as positions or sizes")


def _crashes(node: ir.Node) -> bool:
    """Tell whether a Transpose takes its first axis behind the others, but perhaps for the last one, before a MatMul.

    In float16 such a pair with constant weights ends the process when ONNX Runtime 1.31 fuses it, at the level "all".
    """
    perm = graphs.attribute(node, "perm") if graphs.is_op(node, "Transpose") else None
    order = [] if perm is None else list(perm.as_ints())
    if len(order) < 3 or order not in ([*range(1, len(order)), 0], [*range(1, len(order) - 1), 0, len(order) - 1]):
        return False
    users = [user for user in node.outputs[0].consumers() if graphs.is_op(user, "MatMul")]
    return any(graphs.constant(value) is not None for user in users for value in user.inputs)


def _counted(plan: Plan, floats: frozenset[ir.Value]) -> set[ir.Value]:
    """Return the values that arithmetic alone makes out of integers wider than a byte."""
    found: set[ir.Value] = set()
    for site in plan.sites:
        node = site.node
        if node is None or node.domain != "":
            continue
        given = [value for value in node.inputs if value is not None and value in floats]
        varying = [value for value in given if graphs.constant(value) is None]
        if node.op_type == "Cast":
            source = node.inputs[0]
            wide = source is not None and source.dtype in (ir.DataType.INT64, ir.DataType.INT32)
            if wide or (varying and varying[0] in found):
                found.update(value for value in node.outputs if value in floats)
        elif node.op_type == "Range" and any(value in floats for value in node.outputs):
            found.update(node.outputs)
        elif varying and all(value in found for value in varying):
            small = all(_size(value) <= _SMALL for value in given if value not in varying)
            if node.op_type in operators.ELEMENTWISE | operators.MOVERS or (
                small and node.op_type in ("MatMul", "Gemm", "Einsum")
            ):
                found.update(value for value in node.outputs if value in floats)
    return found


def _size(value: ir.Value) -> int:
    tensor = graphs.constant(value)
    return 0 if tensor is None else int(tensor.size)


def by_constants(plan: Plan, reach: Range) -> None:
    """Leave nodes whose constants do not survive: too large, or so small that their digits are lost.

    What is added element by element, such as a bias, may be small: its error is no larger than the smallest number. A
    single number that is added keeps a divisor from zero, and may not.
    """
    lost: dict[ir.Value, tuple[str, str]] = {}
    for site in plan.sites:
        for value, index in plan.constants(site) if not site.fixed else ():
            node, tensor = site.node, graphs.constant(value)
            assert node is not None
            assert tensor is not None
            if value not in lost:
                lost[value] = _lost(tensor.numpy(), reach)
            large, small = lost[value]
            added = index in _ADDED.get(node.op_type, ()) or (node.op_type in ("Add", "Sub", "Sum") and tensor.size > 1)
            reason = "" if index in _half_masks.bounds(node) else large
            reason = reason or ("" if added else small)
            if reason:
                site.stay(f"constant '{value.name}' {reason}")


def _lost(array: np.ndarray, reach: Range) -> tuple[str, str]:
    """Return what is too large in a constant, and what is too small; both may be empty."""
    finite = np.abs(array[np.isfinite(array)])
    size = float(np.max(finite, initial=0.0))
    large = f"reaches {size:.3g}, over {reach.largest:.5g}" if size > reach.largest else ""
    if 0 < size < reach.least:
        return large, f"is at most {size:.3g}, under {reach.least:.3g}"
    kept = compare.sqnr(array, rounded(array, reach.dtype).astype(np.float32))
    floor = min(_EXACT, reach.digits - 10)
    return large, f"keeps {kept:.0f} dB of its signal" if not large and kept < floor else ""


def by_range(plan: Plan, seen: Magnitudes, reach: Range) -> None:
    """Leave what is too large or too small on the data, inside a node too, and what the data never reached."""
    for site in (*plan.ports, *plan.sites):
        for value in dict.fromkeys((*site.gives, *site.wants)):
            if site.reason:
                break
            size = seen.values.get(value)
            reason = "was never computed on this data" if size is None else reach.obstacle(size)
            if reason is None and size is not None:
                reason = _inside(site, value, size, seen, reach)
            if reason and site.half:
                site.stay(f"'{value.name}' {reason}")


def _inside(site: Site, value: ir.Value, size: float, seen: Magnitudes, reach: Range) -> str | None:
    """Return what may go wrong on the way to a node's result."""
    node = site.node
    if node is None or value not in node.inputs:
        return None
    if node in seen.sums and seen.sums[node] > reach.limit:
        return f"adds up to {seen.sums[node]:.3g}, over {reach.limit:.5g}"
    if node.op_type in _SQUARING and size * size > reach.limit:
        return f"squared reaches {size * size:.3g}, over {reach.limit:.5g}"
    if node.op_type == "ReduceLogSumExp" and size > np.log(reach.limit):
        return f"reaches {size:.3g}, of which the exponential is over {reach.limit:.5g}"
    return None
