"""Other attributes that became inputs, or that one version has and another has not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt import graphs
from graphopt.passes.precision._opset.site import Refusal, Site
from graphopt.passes.precision._opset.table import down, up

_CONSTANTS = ("value_float", "value_floats", "value_int", "value_ints", "value_string", "value_strings")


@down(12, "Constant")
def _constant_as_tensor(site: Site) -> None:
    """Before opset 12 a constant is a tensor."""
    given = site.node.attributes.keys() & set(_CONSTANTS)
    if given:
        site.get(*given)
        tensor = graphs.constant(site.node.outputs[0])
        site.pop(*given)
        site.set("value", tensor)


@up(12, "Dropout")
def _dropout_ratio_to_input(site: Site) -> None:
    ratio = site.pop("ratio")
    if ratio is not None:
        dtype = site.facts.dtype(site.x) or ir.DataType.FLOAT
        site.put(1, np.asarray(ratio, dtype.numpy()), "ratio")


@down(12, "Dropout")
def _dropout_without_training(site: Site) -> None:
    if site.input(2) is not None and site.constant(2, "training mode").any():
        raise Refusal("it drops elements (training_mode), which no opset before 12 does at inference")
    ratio = graphs.array(site.input(1))
    site.put(2, None)
    if site.input(1) is not None:
        site.put(1, None)
    site.node.attributes.pop("seed", None)
    if ratio is not None:
        site.set("ratio", float(ratio))


@up(10, "Dropout")
@down(10, "Dropout")
@up(12, "Dropout")
@down(12, "Dropout")
def _dropout_without_mask(site: Site) -> None:
    if site.used(1):
        raise Refusal("its mask is used, which opset 10 made boolean and opset 12 true at inference")
    site.node.resize_outputs(1)


@up(11, "Clip")
def _bounds_to_inputs(site: Site) -> None:
    low, high = site.pop("min"), site.pop("max")
    if low is not None or high is not None:
        dtype = site.dtype(site.x)
        for index, name, bound in ((1, "min", low), (2, "max", high)):
            if bound is not None:
                site.put(index, np.asarray(bound).astype(dtype.numpy()), name)


@down(11, "Clip")
def _bounds_to_attributes(site: Site) -> ir.Value | None:
    """Bounds that vary are a Max and a Min."""
    given = {
        name: (i, graphs.array(site.input(i))) for name, i in (("max", 2), ("min", 1)) if site.input(i) is not None
    }
    if all(array is not None for _, array in given.values()):
        for name, (index, array) in given.items():
            site.put(index, None)
            site.set(name, float(array))  # type: ignore[arg-type]
        return None
    if site.version < 8:
        raise Refusal("its bounds are computed, and must be constant before opset 8")
    value = site.x
    for name, op_type in (("min", "Max"), ("max", "Min")):
        if name in given:
            value = site.emit(op_type, value, site.given(given[name][0]))
    return value


@up(11, "Pad")
def _pads_to_inputs(site: Site) -> None:
    value = site.get("value", 0.0)
    if value:
        site.put(2, np.asarray(value).astype(site.dtype(site.x).numpy()), "value")
    site.node.attributes.pop("value", None)
    site.put(1, np.asarray(site.pop("pads"), np.int64), "pads")


@down(11, "Pad")
def _pads_to_attributes(site: Site) -> None:
    pads = site.constant(1, "pads input")
    value = None if site.input(2) is None else site.constant(2, "value")
    site.put(2, None)
    site.node.replace_input_with(1, None)
    site.put(1, None)
    site.set("pads", pads.tolist())
    if value is not None:
        site.set("value", float(value.ravel()[0]))


@down(18, "Pad")
def _pads_of_all_axes(site: Site) -> None:
    if site.input(3) is None:
        return
    axes, pads, rank = site.constant(3, "axes input"), graphs.array(site.input(1)), site.rank(site.x)
    places = np.concatenate([axes % rank, axes % rank + rank])
    every = np.zeros(2 * rank, np.int64)
    site.put(3, None)
    if pads is None:
        site.put(1, site.scatter(site.const(every, "no_pads"), places, site.given(1)))
    else:
        every[places] = pads
        site.put(1, every, "pads")


@down(19, "Pad")
def _no_wrapping(site: Site) -> None:
    if site.get("mode") == "wrap":
        raise Refusal("opset 18 does not wrap around (mode=wrap)")


@down(14, "Reshape")
def _zero_copies(site: Site) -> None:
    """With allowzero a 0 in the shape is the size 0, without it the size that the input has there."""
    if not site.get("allowzero", 0):
        return
    shape = graphs.array(site.input(1))
    if shape is not None and (shape == 0).any():
        raise Refusal("its shape holds a 0 that is a size (allowzero=1)")
    if shape is None:
        site.unless("a computed shape of a Reshape holds a 0 that is a size (allowzero=1): an empty tensor")
    site.pop("allowzero")


@down(15, "Shape")
def _slice_of_shape(site: Site) -> ir.Value | None:
    start, end = site.pop("start", 0), site.pop("end", np.iinfo(np.int64).max)
    if (start, end) == (0, np.iinfo(np.int64).max):
        return None
    whole = site.emit("Shape", site.x)
    return site.emit("Slice", whole, site.ints(start, name="start"), site.ints(int(end), name="end"))


@up(16, "RoiAlign")
def _without_half_pixel(site: Site) -> None:
    site.set("coordinate_transformation_mode", "output_half_pixel")


@down(16, "RoiAlign")
def _only_without_half_pixel(site: Site) -> None:
    if site.get("coordinate_transformation_mode", "half_pixel") != "output_half_pixel":
        raise Refusal("opset 15 does not shift coordinates by half a pixel")
    site.pop("coordinate_transformation_mode")


_MODES = {"bilinear": "linear", "bicubic": "cubic", "nearest": "nearest"}


@up(20, "GridSample")
def _modes_of_any_rank(site: Site) -> None:
    site.set("mode", _MODES[site.get("mode", "bilinear")])


@down(20, "GridSample")
def _modes_of_images(site: Site) -> None:
    rank = site.facts.rank(site.x)
    if rank not in (None, 4):
        raise Refusal(f"opset 19 samples images (rank 4), not tensors of rank {rank}")
    mode = site.get("mode", "linear")
    site.set("mode", {new: old for old, new in _MODES.items()}[mode])


@down(16, "ScatterElements", "ScatterND")
def _no_reduction(site: Site) -> None:
    if site.get("reduction", "none") != "none":
        raise Refusal("opset 15 does not reduce what meets in one place")


@down(18, "ScatterElements", "ScatterND")
def _sums_and_products(site: Site) -> None:
    if site.get("reduction", "none") in ("max", "min"):
        raise Refusal(f"opset 17 knows no reduction={site.get('reduction')}")


@up(9, "Scan")
@down(9, "Scan")
def _scan_over_batches(site: Site) -> None:
    del site
    raise Refusal("Scan of opset 8 runs over batches, that of opset 9 does not")


@down(28, "Mod")
def _remainder_of_floats(site: Site) -> None:
    dtype = site.facts.dtype(site.x)
    if not site.get("fmod", 0) and dtype is not None and dtype.is_floating_point():
        raise Refusal("before opset 28 floats have remainders as of C only (fmod=1)")
