"""Arithmetic whose types grew."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.passes.precision._opset.site import Refusal, Site
from graphopt.passes.precision._opset.table import down

_SHORT = (ir.DataType.INT8, ir.DataType.INT16, ir.DataType.UINT8, ir.DataType.UINT16)


_COMPARABLE = {**dict.fromkeys(_SHORT, ir.DataType.INT32), ir.DataType.UINT32: ir.DataType.INT64}
"""What ONNX Runtime compares and chooses from in the place of other integers."""


@down(14, "Add", "Sub", "Mul", "Div")
def _short_integers(site: Site) -> ir.Value | None:
    """Sums and products of short integers wrap around as those of int32 do once they are cast back."""
    dtype = site.facts.dtype(site.x)
    if dtype not in _SHORT:
        return None
    wide = [site.cast(site.given(index), ir.DataType.INT32) for index in (0, 1)]
    return site.emit("Cast", site.emit(site.node.op_type, *wide), to=int(dtype))


@down(14, "Relu")
def _positive_integers(site: Site) -> ir.Value | None:
    dtype = site.facts.dtype(site.x)
    if dtype is None or not dtype.is_integer():
        return None
    return site.emit("Max", site.x, site.scalar(0, dtype, "zero"))


@down(12, "Clip", "Max", "Min")
def _choose_integers(site: Site) -> ir.Value | None:
    """Clip, Min and Max of integers are younger than Less and Where of integers."""
    dtype = site.facts.dtype(site.x)
    if dtype is None or not dtype.is_integer():
        return None
    wide = _COMPARABLE.get(dtype, dtype)
    value, *others = (given if given is None else site.cast(given, wide) for given in site.node.inputs)
    kinds = ("Max", "Min") if site.node.op_type == "Clip" else (site.node.op_type,) * len(others)
    for kind, other in zip(kinds, others, strict=False):
        if other is not None:
            pair = (value, other) if kind == "Max" else (other, value)
            value = site.emit("Where", site.emit("Less", *pair), other, value)
    if wide != dtype:
        return site.emit("Cast", value, to=int(dtype))
    return site.emit("Identity", value) if value is site.x else value


@down(12, "Pow")
def _exponent_of_same_type(site: Site) -> None:
    base, exponent = (site.facts.dtype(site.given(index)) for index in (0, 1))
    if base is not None and exponent is not None and base != exponent:
        if not base.is_floating_point():
            raise Refusal(f"opset 11 has no {base.name.lower()} to the power of {exponent.name.lower()}")
        site.put(1, site.cast(site.given(1), base))


@down(8, "Sum", "Max", "Min", "Mean")
def _without_broadcasting(site: Site) -> ir.Value | None:
    shapes = {site.facts.dims(value) for value in site.node.inputs if value is not None}
    if (len(shapes) == 1 and None not in shapes and None not in next(iter(shapes))) or len(site.node.inputs) == 1:  # type: ignore[operator]
        return None
    if site.node.op_type != "Sum":
        raise Refusal("opset 7 does not broadcast there, and the shapes are unknown or differ")
    value = site.x
    for index in range(1, len(site.node.inputs)):
        value = site.emit("Add", value, site.given(index))
    return value


@down(11, "Gemm")
def _zero_to_add(site: Site) -> None:
    if site.input(2) is None:
        site.put(2, np.zeros(1, site.dtype(site.x).numpy()), "zero")


@down(20, "Gelu")
def _gelu(site: Site) -> ir.Value:
    """x * P(X <= x) of the normal distribution, by the error function or by tanh (arXiv:1606.08415)."""
    dtype = site.dtype(site.x)

    def scalar(value: float, name: str) -> ir.Value:
        return site.scalar(value, dtype, name)

    if site.get("approximate", "none") == "tanh":
        cube = site.emit("Mul", site.emit("Mul", site.x, site.x), site.x)
        inner = site.emit("Add", site.x, site.emit("Mul", cube, scalar(0.044715, "cubic")))
        curve = site.emit("Tanh", site.emit("Mul", inner, scalar(np.sqrt(2 / np.pi), "root")))
    else:
        curve = site.emit("Erf", site.emit("Div", site.x, scalar(np.sqrt(2), "root")))
    sum_ = site.emit("Add", curve, scalar(1, "one"))
    return site.emit("Mul", site.emit("Mul", site.x, sum_), scalar(0.5, "half"))
