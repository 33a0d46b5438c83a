"""Fold a Pad into the convolution or pooling after it

Conv(Pad(x, p)) = Conv(x) with pads increased by p, where the Pad writes zeros along spatial axes. Likewise:

* AveragePool that counts its padding, or has none of its own; it counts padding from then on.
* MaxPool, whose padding counts as minus infinity: where that is what the Pad writes, or it writes a number not above 0 and
  no element of x is below 0, as after a Relu. Then every window must hold an element of x, hence pads must be smaller
  than the kernel, which runtimes ask for anyway.

Not so with ceil_mode, by which the number of windows depends on what is padding.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt import graphs, scopes
from graphopt.inference import Dim
from graphopt.passbase import Result
from graphopt.passes.structural._informed import Facts, Informed

_NOT_NEGATIVE = ("Abs", "Exp", "HardSigmoid", "Relu", "Sigmoid", "Softmax", "Softplus", "Sqrt")
_KEEPS_SIGN = (
    "AveragePool", "Flatten", "GlobalAveragePool", "GlobalMaxPool", "Identity", "MaxPool", "Reshape", "Slice",
    "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
"""Operators whose results are not negative if the first input is not."""


class _Refused(Exception):
    """This Pad must stay; the message says why."""


@dataclass(frozen=True)
class FoldPads(Informed):
    """Fold Pads into convolutions and pooling."""

    def apply(self, model: ir.Model, facts: Facts) -> Result:
        """Fold in place, from the outputs on, so that chains fold too; the report counts them by what took them in."""
        folded: Counter[str] = Counter()
        skipped = []
        for root in scopes.roots(model):
            opset = root.opset_imports.get("", 0)
            for node in reversed(list(root.all_nodes())):
                if not graphs.is_op(node, "Pad"):
                    continue
                for user in list(dict.fromkeys(node.outputs[0].consumers())):
                    try:
                        _fold(node, user, opset, facts)
                    except _Refused as reason:
                        skipped.append((graphs.label(node), f"{graphs.label(user)}: {reason}"))
                    else:
                        folded[user.op_type] += 1
                graphs.discard(node.outputs[0])
        return Result(model, bool(folded), dict(folded), skipped)


def _fold(pad: ir.Node, user: ir.Node, opset: int, facts: Facts) -> None:
    source, padded = pad.inputs[0], pad.outputs[0]
    if not graphs.is_op(user, "Conv", "AveragePool", "MaxPool") or user.graph is not pad.graph or source is None:
        raise _Refused("it has no pads that could take it in")
    if graphs.has_parameters(user) or graphs.has_parameters(pad):
        raise _Refused("the caller of the function sets attributes")
    if list(user.inputs).index(padded) or list(user.inputs).count(padded) > 1:
        raise _Refused("it pads the weights")
    dims = facts[padded].dims() if padded in facts else None
    more, value = _padding(pad, opset, dims)
    own = _own_pads(user, dims, len(more) // 2)
    if user.op_type == "Conv":
        if value != 0:
            raise _Refused("it does not pad with zeros")
    else:
        _check_pool(user, own + more, opset)
    if user.op_type == "AveragePool":
        if value != 0:
            raise _Refused("it does not pad with zeros")
        if own.any() and not user.attributes.get_int("count_include_pad", 0):
            raise _Refused("the average leaves its own padding out")
        user.attributes.add(ir.AttrInt64("count_include_pad", 1))
    elif user.op_type == "MaxPool" and value != -np.inf and not (value <= 0 and _is_not_negative(source, facts)):
        raise _Refused("the maximum might be of the padding")
    user.attributes.add(ir.AttrInt64s("pads", (own + more).tolist()))
    user.attributes.pop("auto_pad", None)
    user.replace_input_with(0, source)


def _padding(pad: ir.Node, opset: int, dims: tuple[Dim, ...] | None) -> tuple[np.ndarray, float]:
    """Return begins and ends of the spatial axes, and what is written there."""
    mode = pad.attributes.get("mode")
    if mode is not None and mode.as_string() != "constant":
        raise _Refused(f"it pads in mode {mode.as_string()}")
    if opset >= 11:
        pads, axes = (graphs.array(pad.inputs[i]) if len(pad.inputs) > i else None for i in (1, 3))
        filling = pad.inputs[2] if len(pad.inputs) > 2 else None
        array = graphs.array(filling) if filling is not None else np.zeros(1)
        if array is None or array.size != 1 or (axes is None and len(pad.inputs) > 3 and pad.inputs[3] is not None):
            raise _Refused("its pads, axes or filling are not constants")
        value = float(array.reshape(()))
    else:
        found = pad.attributes.get("pads")
        pads, axes = None if found is None else np.array(found.as_ints(), np.int64), None
        value = pad.attributes.get_float("value", 0.0)
    if pads is None:
        raise _Refused("its pads are not constants")
    if axes is not None:
        if dims is None:
            raise _Refused("its rank is not known")
        full = np.zeros((2, len(dims)), np.int64)
        full[:, axes] = pads.reshape(2, -1)
        pads = full.ravel()
    begins, ends = np.split(pads, 2)
    if begins[:2].any() or ends[:2].any():
        raise _Refused("it pads the batch or the channels")
    if (pads < 0).any():
        raise _Refused("it cuts something off")
    return np.concatenate([begins[2:], ends[2:]]), value


def _own_pads(user: ir.Node, dims: tuple[Dim, ...] | None, spatial: int) -> np.ndarray:
    """Return the padding that a node does itself, begins and ends of the spatial axes."""
    auto = user.attributes.get_string("auto_pad", "NOTSET")
    if auto == "NOTSET":
        found = user.attributes.get("pads")
        pads = np.zeros(2 * spatial, np.int64) if found is None else np.array(found.as_ints(), np.int64)
        if len(pads) != 2 * spatial:
            raise _Refused("their ranks differ")
        return pads
    if auto == "VALID":
        return np.zeros(2 * spatial, np.int64)
    sizes = [] if dims is None else [size for size in dims[2:] if isinstance(size, int)]
    kernel = _kernel(user)
    if len(sizes) != spatial or kernel is None or len(kernel) != spatial:
        raise _Refused("the padding that auto_pad asks for is not known")
    steps, gaps = (np.array(user.attributes.get_ints(name, [1] * spatial)) for name in ("strides", "dilations"))
    outputs = -(-np.array(sizes) // steps)
    total = np.maximum((outputs - 1) * steps + (kernel - 1) * gaps + 1 - sizes, 0)
    small, large = total // 2, total - total // 2
    return np.concatenate([small, large] if auto == "SAME_UPPER" else [large, small])


def _kernel(user: ir.Node) -> np.ndarray | None:
    found = user.attributes.get("kernel_shape")
    if found is not None:
        return np.array(found.as_ints(), np.int64)
    weights = graphs.constant(user.inputs[1]) if len(user.inputs) > 1 else None
    return None if weights is None else np.array(weights.shape.numpy()[2:], np.int64)


def _check_pool(user: ir.Node, pads: np.ndarray, opset: int) -> None:
    kernel = _kernel(user)
    if user.attributes.get_int("ceil_mode", 0):
        raise _Refused("it rounds the number of windows up")
    if any(gap != 1 for gap in user.attributes.get_ints("dilations", [1])):
        raise _Refused("its windows have gaps")
    if kernel is None or (pads >= np.concatenate([kernel, kernel])).any():
        raise _Refused("the padding is not smaller than the kernel")
    if any(graphs.is_needed(output) for output in user.outputs[1:]):
        raise _Refused("it returns places, which count the padding")
    if user.op_type == "AveragePool" and opset < 7:
        raise _Refused("it cannot count padding before opset 7")


def _is_not_negative(value: ir.Value, facts: Facts) -> bool:
    """Tell whether no element can be below 0."""
    while True:
        type_ = facts[value].type if value in facts else None
        if type_ is not None and type_.dtype in _UNSIGNED:
            return True
        node = value.producer()
        if node is None or graphs.has_parameters(node):
            return False
        if graphs.is_op(node, *_NOT_NEGATIVE):
            return True
        if graphs.is_op(node, "Clip"):
            bound = graphs.array(node.inputs[1]) if len(node.inputs) > 1 else None
            lowest = node.attributes.get_float("min", -1.0) if bound is None else float(bound.reshape(()))
            return lowest >= 0
        source = node.inputs[0] if graphs.is_op(node, *_KEEPS_SIGN) else None
        if source is None:
            return False
        value = source


_UNSIGNED = frozenset({ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64})
