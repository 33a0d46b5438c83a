"""Normalizations.

LayerNormalization and RMSNormalization become what ONNX Runtime finds and fuses again; the functions that ONNX
defines them by square before they subtract the mean, which cancels.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.passes.precision._opset.site import Refusal, Site
from graphopt.passes.precision._opset.table import down, up


@up(9, "BatchNormalization")
def _per_channel(site: Site) -> None:
    if site.pop("spatial", 1) != 1:
        raise Refusal("it normalizes every activation by itself (spatial=0), which opset 9 does not")


@up(14, "BatchNormalization")
@down(14, "BatchNormalization")
def _at_inference(site: Site) -> None:
    if site.get("training_mode", 0) or any(site.used(index) for index in range(1, len(site.node.outputs))):
        raise Refusal("it is in training mode, which opset 14 changed")
    site.node.attributes.pop("training_mode", None)
    site.node.resize_outputs(1)


@down(17, "LayerNormalization")
def _layer_norm(site: Site) -> list[ir.Value]:
    axes, (x, dtype) = _axes(site), _wide(site)
    mean = site.emit("ReduceMean", x, axes=axes, keepdims=1)
    centred = site.emit("Sub", x, mean)
    inverse, normalized = _divide_by_root(site, centred, axes)
    scaled = site.emit("Mul", _narrow(site, normalized, dtype), site.given(1))
    bias = site.input(2)
    y = scaled if bias is None else site.emit("Add", scaled, bias)
    if not site.used(1) and not site.used(2):
        return [y]
    return [y, site.emit("Identity", mean), site.emit("Reciprocal", inverse)]


@down(23, "RMSNormalization")
def _rms_norm(site: Site) -> ir.Value:
    axes, (x, dtype) = _axes(site), _wide(site)
    _, normalized = _divide_by_root(site, x, axes)
    return site.emit("Mul", _narrow(site, normalized, dtype), site.given(1))


def _axes(site: Site) -> list[int]:
    axis = site.get("axis", -1)
    return list(range(axis, 0)) if axis < 0 else list(range(axis, site.rank(site.x)))


def _wide(site: Site) -> tuple[ir.Value, ir.DataType]:
    """Return the input in the type to compute in: float, where it is narrower, unless `stash_type` asks for less."""
    dtype, stash = site.dtype(site.x), ir.DataType(site.get("stash_type", 1))
    wider = stash if stash.itemsize > dtype.itemsize else dtype
    return site.cast(site.x, wider), dtype


def _narrow(site: Site, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    return site.cast(value, dtype)


def _divide_by_root(site: Site, x: ir.Value, axes: list[int]) -> tuple[ir.Value, ir.Value]:
    """Emit x / sqrt(mean(x^2) + epsilon); return the root and the quotient."""
    dtype = site.dtype(x)
    squares = site.emit("Pow", x, site.scalar(2, dtype, "two"))
    if site.version < 18:
        mean = site.emit("ReduceMean", squares, axes=axes, keepdims=1)
    else:
        mean = site.emit("ReduceMean", squares, site.ints(*axes, name="axes"), keepdims=1)
    epsilon = site.scalar(site.get("epsilon", 1e-5), dtype, "epsilon")
    root = site.emit("Sqrt", site.emit("Add", mean, epsilon))
    return root, site.emit("Div", x, root)


@up(21, "GroupNormalization")
def _scale_of_channels(site: Site) -> None:
    """Before opset 21 scale and bias belong to groups, since then to channels."""
    groups, channels = site.get("num_groups"), site.dim(site.x, 1)
    if channels is None:
        raise Refusal("its number of channels is unknown; run infer-shapes first")
    if groups == channels:
        return
    for index, name in ((1, "scale"), (2, "bias")):
        if site.dim(site.given(index), 0) not in (None, groups):
            raise Refusal(f"its {name} is not one value per group, as opset 20 wants it")
        column = site.emit("Reshape", site.given(index), site.ints(-1, 1))
        wide = site.emit("Expand", column, site.ints(1, channels // groups))
        site.put(index, site.emit("Reshape", wide, site.ints(-1)))


@down(21, "GroupNormalization")
def _groups_then_channels(site: Site) -> ir.Value | None:
    groups, rank = site.get("num_groups"), site.rank(site.x)
    if groups == site.dim(site.x, 1):
        site.node.attributes.pop("stash_type", None)
        return None
    dtype = site.dtype(site.x)
    ones, zeros = (site.const(np.full(groups, n, dtype.numpy()), name) for n, name in ((1, "ones"), (0, "zeros")))
    value = _group_norm(site, ones, zeros)
    column = [-1] + [1] * (rank - 2)
    for index, op_type in ((1, "Mul"), (2, "Add")):
        value = site.emit(op_type, value, site.emit("Reshape", site.given(index), site.ints(*column)))
    return value


@down(18, "GroupNormalization")
def _group_as_instance(site: Site) -> ir.Value:
    return _group_norm(site, site.given(1), site.given(2))


def _group_norm(site: Site, scale: ir.Value, bias: ir.Value) -> ir.Value:
    """Emit the normalization of groups as that of instances whose channels they are."""
    grouped = site.emit("Reshape", site.x, site.ints(0, site.get("num_groups"), -1, name="shape"))
    epsilon = site.get("epsilon", 1e-5)
    normalized = site.emit("InstanceNormalization", grouped, scale, bias, epsilon=epsilon)
    return site.emit("Reshape", normalized, site.emit("Shape", site.x))
