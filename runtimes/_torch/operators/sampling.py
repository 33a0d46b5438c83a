"""Operators that read images at places in between: grids, regions, deformed windows."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator

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
    if x.ndim == 3:  # a line is an image of one row
        level = torch.cat([grid, torch.zeros_like(grid)], -1).unsqueeze(1)
        flat = grid_sample(x.unsqueeze(2), level, align_corners=align_corners, mode=mode, padding_mode=padding_mode)
        return flat.squeeze(2)
    if x.ndim not in (4, 5) or (x.ndim == 5 and _MODES[mode] == "bicubic"):
        raise ValueError(f"GridSample over {x.ndim - 2} spatial axes by '{mode}' is not computed")
    kind = torch.promote_types(x.dtype, torch.float32)
    made = functional.grid_sample(x.to(kind), grid.to(kind), _MODES[mode], padding_mode, bool(align_corners))
    return made.to(x.dtype)


@operator("AffineGrid", 20)
def affine_grid(theta: Tensor, size: Host, *, align_corners: int = 0) -> Tensor:
    """The places at which an affine map reads the pixels of a picture."""
    kinds = {"dtype": torch.promote_types(theta.dtype, torch.float32), "device": theta.device}
    axes = [
        torch.linspace(-1, 1, n, **kinds) if align_corners else (torch.arange(n, **kinds) * 2 + 1) / n - 1
        for n in size[2:].tolist()
    ]
    places = torch.meshgrid(*axes, indexing="ij")[::-1]
    flat = torch.stack([*places, torch.ones_like(places[0])], -1).flatten(0, -2)
    made = torch.matmul(flat, theta.to(kinds["dtype"]).transpose(1, 2))
    return made.reshape(theta.shape[0], *places[0].shape, len(places)).to(theta.dtype)


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
    corners = rois.to(torch.promote_types(x.dtype, torch.float32)) * spatial_scale - (0.5 if half else 0.0)
    starts, spans = corners[:, :2].flip(1), (corners[:, 2:] - corners[:, :2]).flip(1)  # vertical first
    parts = torch.tensor([output_height, output_width], device=x.device)
    spans = spans if half else spans.clamp(min=1)
    counts = (spans / parts).ceil().clamp(min=1).to(torch.int64)
    counts = torch.full_like(counts, sampling_ratio) if sampling_ratio else counts
    made, order = [], []
    for pair in counts.unique(dim=0).tolist():  # regions with as many samples together
        chosen = (counts == counts.new_tensor(pair)).all(1).nonzero().squeeze(1)
        axes = [
            start[:, None] + (torch.arange(part * n, device=x.device) + 0.5) * (span / (part * n))[:, None]
            for start, span, part, n in zip(
                starts[chosen].T, spans[chosen].T, (output_height, output_width), pair, strict=True
            )
        ]
        samples = _corners(x, batch_indices[chosen].to(torch.int64), axes[0], axes[1])
        shape = (len(chosen), output_height, pair[0], output_width, pair[1], x.shape[1])
        if mode == "avg":
            made.append(functools.reduce(torch.add, samples).reshape(shape).mean((2, 4)))
        else:
            made.append(functools.reduce(torch.maximum, samples).reshape(shape).amax((2, 4)))
        order.append(chosen)
    if not made:
        return x.new_zeros(0, x.shape[1], output_height, output_width)
    return torch.cat(made)[torch.cat(order).argsort()].movedim(-1, 1).to(x.dtype)


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


def _corners(x: Tensor, images: Tensor, ys: Tensor, xs: Tensor) -> Iterator[Tensor]:
    """Yield what each of the four pixels around places contributes to them, [regions, rows, columns, channels] each."""
    height, width = x.shape[2:]
    inside = ((ys >= -1) & (ys <= height))[:, :, None] & ((xs >= -1) & (xs <= width))[:, None, :]
    (y0, y1, low_y), (x0, x1, low_x) = (_around(p, n) for p, n in ((ys, height), (xs, width)))
    for (row, wy), (column, wx) in itertools.product(((y0, 1 - low_y), (y1, low_y)), ((x0, 1 - low_x), (x1, low_x))):
        weights = wy[:, :, None] * wx[:, None, :] * inside
        yield x[images[:, None, None], :, row[:, :, None], column[:, None, :]] * weights.unsqueeze(-1)


def _around(places: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pixels around places, and the weight of the second one."""
    places = places.clamp(min=0)
    first = places.floor().to(torch.int64).clamp(max=size - 1)
    share = torch.where(first >= size - 1, 0.0, places - first)
    return first, (first + 1).clamp(max=size - 1), share


@operator("MaxRoiPool")
def max_roi_pool(x: Tensor, rois: Tensor, *, pooled_shape: tuple[int, ...], spatial_scale: float = 1.0) -> Tensor:
    """The largest element of each part of each region; zero where a part lies outside."""
    made = []
    for image, *corners in rois.tolist():
        left, top, right, bottom = (_rounded(c * spatial_scale) for c in corners)
        right, bottom = max(right, left) + 1, max(bottom, top) + 1
        region = x[int(image), :, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
        above, before = min(max(-top, 0), bottom - top), min(max(-left, 0), right - left)
        below, after = bottom - top - above - region.shape[1], right - left - before - region.shape[2]
        made.append(functional.pad(region, (before, after, above, below), value=-torch.inf))
    if not made:
        return x.new_zeros(0, x.shape[1], *pooled_shape)
    pooled = torch.stack([functional.adaptive_max_pool2d(region, pooled_shape) for region in made])
    return pooled.masked_fill(pooled == -torch.inf, 0)


def _rounded(number: float) -> int:
    """Return the nearest whole number, of two the one farther from zero."""
    return int(number + math.copysign(0.5, number))


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
    if x.ndim != 4:
        raise ValueError(f"DeformConv over {x.ndim - 2} spatial axes is not computed; it can be over 2")
    n, c, height, width = x.shape
    kh, kw = w.shape[2:]
    out_h, out_w = offset.shape[2:]
    wide = torch.promote_types(x.dtype, torch.float32)
    kinds = {"dtype": wide, "device": x.device}
    offsets = offset.to(wide).reshape(n, offset_group, kh * kw, 2, out_h, out_w)
    rows = torch.arange(kh, **kinds).repeat_interleave(kw) * dilations[0]
    columns = torch.arange(kw, **kinds).repeat(kh) * dilations[1]
    base_y = (torch.arange(out_h, **kinds) * strides[0] - pads[0]).reshape(-1, 1)
    base_x = (torch.arange(out_w, **kinds) * strides[1] - pads[1]).reshape(1, -1)
    ys = offsets[:, :, :, 0] + rows.reshape(-1, 1, 1) + base_y
    xs = offsets[:, :, :, 1] + columns.reshape(-1, 1, 1) + base_x
    images = x.to(wide).reshape(n * offset_group, c // offset_group, height, width)
    images = functional.pad(images, (0, int(width == 1), 0, int(height == 1)))  # a grid has two corners
    grid = torch.stack([xs * 2 / max(width - 1, 1) - 1, ys * 2 / max(height - 1, 1) - 1], -1)
    places = grid.reshape(n * offset_group, kh * kw * out_h, out_w, 2)
    taken = functional.grid_sample(images, places, "bilinear", "zeros", align_corners=True)
    taken = taken.to(x.dtype).reshape(n, offset_group, c // offset_group, kh * kw, out_h, out_w)
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
    if rank == 2 and input.dtype.is_floating_point and list(ends[:2]) == list(ends[2:]):
        return functional.fold(input, image, block, gaps, ends[:2], steps)
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
