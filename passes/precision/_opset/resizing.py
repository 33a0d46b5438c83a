"""Upsample and Resize.

Upsample of opsets 7 and 9 became Resize in 10, which got coordinate modes in 11. What came before 11 reads
`x_original = x_resized / scale` (asymmetric) and takes the pixel at or before it.
"""

from __future__ import annotations

import numpy as np

from graphopt import graphs
from graphopt.passes.precision._opset.site import Refusal, Site
from graphopt.passes.precision._opset.table import down, up


@up(9, "Upsample")
def _scales_to_input(site: Site) -> None:
    site.put(1, np.asarray(site.pop("scales"), np.float32), "scales")


@down(9, "Upsample")
def _scales_to_attribute(site: Site) -> None:
    scales = site.constant(1, "scales input")
    site.put(1, None)
    site.set("scales", scales.tolist())


@up(10, "Upsample")
def _upsample_to_resize(site: Site) -> None:
    site.node.op_type = "Resize"


@down(10, "Resize")
def _resize_to_upsample(site: Site) -> None:
    if (site.constant(1, "scales input") < 1).any():
        raise Refusal("opset 9 makes nothing smaller")
    site.node.op_type = "Upsample"


@up(11, "Resize")
def _spell_out_coordinates(site: Site) -> None:
    """ONNX Runtime takes the pixel after the coordinate where opset 10 makes an image smaller; so do ONNX's tests."""
    scales = graphs.array(site.input(1))
    nearest = site.get("mode", "nearest") == "nearest"
    shrinks = nearest and scales is not None and (scales < 1).any()
    if nearest and scales is None:
        site.unless("computed scales of a Resize are below 1, where opset 10 takes the next pixel")
    if shrinks and scales is not None and (scales > 1).any():
        raise Refusal("it makes one axis smaller and another larger, each with its own nearest pixel")
    site.set("coordinate_transformation_mode", "asymmetric")
    if nearest:
        site.set("nearest_mode", "ceil" if shrinks else "floor")
    site.node.resize_inputs(3)
    site.node.replace_input_with(2, site.node.inputs[1])
    site.node.replace_input_with(1, site.const(np.zeros(0, np.float32), "roi"))


@down(11, "Resize")
def _plain_coordinates(site: Site) -> None:
    mode, coordinates = site.get("mode", "nearest"), site.get("coordinate_transformation_mode", "half_pixel")
    if site.input(3) is not None or mode == "cubic" or coordinates != "asymmetric":
        raise Refusal(f"opset 10 knows scales only, and asymmetric coordinates; it has {coordinates}, mode {mode}")
    if mode == "nearest":
        shrinks = (site.constant(2, "scales input") < 1).any()
        wanted = "ceil" if shrinks else "floor"
        if site.get("nearest_mode", "round_prefer_floor") != wanted or (
            shrinks and (site.constant(2, "scales input") > 1).any()
        ):
            raise Refusal(f"opset 10 knows nearest_mode={wanted} only")
    for name in ("coordinate_transformation_mode", "nearest_mode", "cubic_coeff_a", "exclude_outside"):
        site.node.attributes.pop(name, None)
    site.node.attributes.pop("extrapolation_value", None)
    scales = site.given(2)
    site.put(1, scales)
    site.put(2, None)


@up(13, "Resize")
def _omit_empty(site: Site) -> None:
    """What opset 11 wanted as empty tensors may be omitted since 13, and one of scales and sizes must be."""
    if site.get("coordinate_transformation_mode", "half_pixel") == "tf_half_pixel_for_nn":
        raise Refusal("opset 13 has no coordinate_transformation_mode=tf_half_pixel_for_nn")
    for index in (1, 2):
        array = graphs.array(site.input(index))
        if array is not None and not array.size:
            site.put(index, None)


@down(13, "Resize")
def _empty_for_omitted(site: Site) -> None:
    for index, name in ((1, "roi"), (2, "scales")):
        if site.input(index) is None:
            site.put(index, np.zeros(0, np.float32), name)


@down(18, "Resize")
def _all_axes(site: Site) -> None:
    if site.get("antialias", 0) and site.get("mode", "nearest") != "nearest":
        raise Refusal("opset 17 has no antialias")
    if site.input(3) is not None and site.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Refusal("opset 17 does not keep the aspect ratio")
    axes = site.get("axes")
    if axes is not None:
        rank = site.rank(site.x)
        _spread(site, np.asarray(axes) % rank, rank)
    for name in ("antialias", "axes", "keep_aspect_ratio_policy"):
        site.node.attributes.pop(name, None)


def _spread(site: Site, axes: np.ndarray, rank: int) -> None:
    """Say for every axis what was said for some: the others keep their sizes."""
    roi, scales, sizes = (site.input(index) for index in (1, 2, 3))
    if scales is not None and 0 not in (site.facts.dims(scales) or ()):
        given, every = graphs.array(scales), np.ones(rank, np.float32)
        if given is None:
            site.put(2, site.scatter(site.const(every, "no_scales"), axes, scales))
        else:
            every[axes] = given
            site.put(2, every, "scales")
    if sizes is not None:
        site.put(3, site.scatter(site.emit("Shape", site.x), axes, sizes))
    if roi is not None and 0 not in (site.facts.dims(roi) or ()):
        whole = np.repeat([0, 1], rank).astype(site.dtype(roi).numpy())
        site.put(1, site.scatter(site.const(whole, "whole"), np.concatenate([axes, axes + rank]), roi))


@down(19, "Resize")
def _no_symmetry(site: Site) -> None:
    if site.get("coordinate_transformation_mode") == "half_pixel_symmetric":
        raise Refusal("opset 18 has no coordinate_transformation_mode=half_pixel_symmetric")
