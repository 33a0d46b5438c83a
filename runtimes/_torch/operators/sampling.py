"""Operators that read images at places in between: grids, regions, deformed windows."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor
from torch.nn import functional

from graphopt.runtimes._torch.table import Host, operator

_MODES = {"linear": "bilinear", "bilinear": "bilinear", "nearest": "nearest", "cubic": "bicubic", "bicubic": "bicubic"}


@operator("GridSample", 16)
def grid_sample(
    x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> Tensor:
    """The values of X [N, C, ...] at the places of a grid, which reach from -1 to 1."""
    if x.ndim == 4 or (x.ndim == 5 and _MODES[mode] != "bicubic"):
        return functional.grid_sample(x, grid.to(x.dtype), _MODES[mode], padding_mode, bool(align_corners))
    raise ValueError(f"GridSample of {x.ndim - 2} spatial axes by '{mode}' is not computed")


@operator("AffineGrid", 20)
def affine_grid(theta: Tensor, size: Host, *, align_corners: int = 0) -> Tensor:
    """The places at which an affine map reads the pixels of a picture."""
    return functional.affine_grid(theta, size.tolist(), bool(align_corners))


@operator("RoiAlign", 16)
def roi_align(
    x: Tensor,
    rois: Tensor,
    batch_indices: Tensor,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    """The mean or the largest sample of each part of each region (He et al., Mask R-CNN, arXiv:1703.06870)."""
    half = coordinate_transformation_mode == "half_pixel"
    made = []
    for roi, image in zip(rois.tolist(), x[batch_indices.to(torch.int64)], strict=True):
        x1, y1, x2, y2 = (v * spatial_scale - (0.5 if half else 0.0) for v in roi)
        width, height = x2 - x1, y2 - y1
        if not half:
            width, height = max(width, 1.0), max(height, 1.0)
        rows, columns = (
            sampling_ratio or math.ceil(span / parts)
            for span, parts in ((height, output_height), (width, output_width))
        )
        ys = y1 + (torch.arange(output_height * rows) + 0.5) * height / (output_height * rows)
        xs = x1 + (torch.arange(output_width * columns) + 0.5) * width / (output_width * columns)
        corners = _corners(image, ys.to(x.dtype).to(x.device), xs.to(x.dtype).to(x.device))
        shape = (x.shape[1], output_height, rows, output_width, columns)
        if mode == "avg":
            made.append(sum(corners).reshape(shape).mean((2, 4)))
        else:
            made.append(torch.stack(corners).amax(0).reshape(shape).amax((2, 4)))
    return torch.stack(made) if made else x.new_zeros(0, x.shape[1], output_height, output_width)


@operator("RoiAlign", 10)
def roi_align_10(
    x: Tensor,
    rois: Tensor,
    batch_indices: Tensor,
    *,
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    """RoiAlign whose pixels have their places at their corners."""
    return roi_align(
        x,
        rois,
        batch_indices,
        coordinate_transformation_mode="output_half_pixel",
        mode=mode,
        output_height=output_height,
        output_width=output_width,
        sampling_ratio=sampling_ratio,
        spatial_scale=spatial_scale,
    )


def _corners(image: Tensor, ys: Tensor, xs: Tensor) -> list[Tensor]:
    """Return what each of the four pixels around places contributes to them, [channels, rows, columns] each."""
    height, width = image.shape[1:]
    inside = ((ys >= -1) & (ys <= height))[:, None] & ((xs >= -1) & (xs <= width))[None, :]
    (y0, y1, low_y), (x0, x1, low_x) = (_around(p, n) for p, n in ((ys, height), (xs, width)))
    parts = []
    for (row, wy), (column, wx) in itertools.product(((y0, 1 - low_y), (y1, low_y)), ((x0, 1 - low_x), (x1, low_x))):
        parts.append(image[:, row[:, None], column[None, :]] * (wy[:, None] * wx[None, :]) * inside)
    return parts


def _around(places: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pixels around places, and the weight of the second one."""
    places = places.clamp(min=0)
    first = places.floor().to(torch.int64)
    last = first >= size - 1
    first = first.clamp(max=size - 1)
    return first, (first + 1).clamp(max=size - 1), torch.where(last, 0.0, places - first).to(places.dtype)


@operator("MaxRoiPool")
def max_roi_pool(x: Tensor, rois: Tensor, *, pooled_shape: tuple[int, ...], spatial_scale: float = 1.0) -> Tensor:
    """The largest element of each part of each region."""
    made = []
    for image, *corners in rois.tolist():
        x1, y1, x2, y2 = (math.floor(c * spatial_scale + 0.5) for c in corners)
        rows, columns = (
            _spans(first, last, parts, size)
            for first, last, parts, size in (
                (y1, y2, pooled_shape[0], x.shape[2]),
                (x1, x2, pooled_shape[1], x.shape[3]),
            )
        )
        cells = [
            x[int(image), :, a:b, c:d].amax((1, 2)) if b > a and d > c else x.new_zeros(x.shape[1])
            for (a, b), (c, d) in itertools.product(rows, columns)
        ]
        made.append(torch.stack(cells, 1).reshape(x.shape[1], *pooled_shape))
    return torch.stack(made)


def _spans(first: int, last: int, parts: int, size: int) -> list[tuple[int, int]]:
    each = max(last - first + 1, 1) / parts
    bounds = [(math.floor(i * each) + first, math.ceil((i + 1) * each) + first) for i in range(parts)]
    return [(min(max(a, 0), size), min(max(b, 0), size)) for a, b in bounds]


@operator("DeformConv", 19)
def deform_conv(
    x: Tensor,
    w: Tensor,
    offset: Tensor,
    b: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    dilations: tuple[int, ...] = (1, 1),
    group: int = 1,
    kernel_shape: tuple[int, ...] | None = None,
    offset_group: int = 1,
    pads: tuple[int, ...] = (0, 0, 0, 0),
    strides: tuple[int, ...] = (1, 1),
) -> Tensor:
    """Convolution whose windows read where offsets say (Dai et al., arXiv:1703.06211; masks: arXiv:1811.11168)."""
    del kernel_shape
    n, c, height, width = x.shape
    kh, kw = w.shape[2:]
    out_h, out_w = offset.shape[2:]
    kinds = {"dtype": x.dtype, "device": x.device}
    offsets = offset.reshape(n, offset_group, kh * kw, 2, out_h, out_w)
    rows = torch.arange(kh, **kinds).repeat_interleave(kw) * dilations[0]
    columns = torch.arange(kw, **kinds).repeat(kh) * dilations[1]
    base_y = (torch.arange(out_h, **kinds) * strides[0] - pads[0]).reshape(-1, 1)
    base_x = (torch.arange(out_w, **kinds) * strides[1] - pads[1]).reshape(1, -1)
    ys = offsets[:, :, :, 0] + rows.reshape(-1, 1, 1) + base_y
    xs = offsets[:, :, :, 1] + columns.reshape(-1, 1, 1) + base_x
    grid = torch.stack([xs * 2 / max(width - 1, 1) - 1, ys * 2 / max(height - 1, 1) - 1], -1)
    images = x.reshape(n * offset_group, c // offset_group, height, width)
    places = grid.reshape(n * offset_group, kh * kw * out_h, out_w, 2)
    taken = functional.grid_sample(images, places, "bilinear", "zeros", align_corners=True)
    taken = taken.reshape(n, offset_group, c // offset_group, kh * kw, out_h, out_w)
    if mask is not None:
        taken = taken * mask.reshape(n, offset_group, 1, kh * kw, out_h, out_w)
    columns_of = taken.reshape(n, group, c // group * kh * kw, out_h * out_w)
    weights = w.reshape(group, w.shape[0] // group, -1)
    made = torch.matmul(weights, columns_of).reshape(n, w.shape[0], out_h, out_w)
    return made if b is None else made + b.reshape(-1, 1, 1)


@operator("Col2Im", 18)
def col2im(
    input: Tensor,
    image_shape: Host,
    block_shape: Host,
    *,
    dilations: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> Tensor:
    """Blocks added up where they lie in an image."""
    rank = len(block_shape)
    gaps, steps, ends = dilations or (1,) * rank, strides or (1,) * rank, pads or (0,) * (2 * rank)
    block, image = block_shape.tolist(), image_shape.tolist()
    whole = [size + ends[i] + ends[i + rank] for i, size in enumerate(image)]
    counts = [(whole[i] - gaps[i] * (block[i] - 1) - 1) // steps[i] + 1 for i in range(rank)]
    place = torch.zeros((), dtype=torch.int64)
    for axis in range(rank):  # where each element of each block lies
        inner = (torch.arange(block[axis]) * gaps[axis]).reshape(-1, *(1,) * (rank - 1 - axis), *(1,) * rank)
        outer = (torch.arange(counts[axis]) * steps[axis]).reshape(-1, *(1,) * (rank - 1 - axis))
        place = place * whole[axis] + inner + outer
    channels = input.shape[1] // math.prod(block)
    flat = input.new_zeros(input.shape[0], channels, math.prod(whole))
    index = place.reshape(-1).to(input.device).expand(input.shape[0], channels, -1)
    made = flat.scatter_add(2, index, input.reshape(input.shape[0], channels, -1))
    made = made.reshape(input.shape[0], channels, *whole)
    for axis in range(rank):
        made = made.narrow(2 + axis, ends[axis], image[axis])
    return made
