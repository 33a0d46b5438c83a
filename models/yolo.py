"""YOLO: a detector that tells boxes and scores at every cell of three grids, without anchor boxes.

Redmon et al. (2016), "You Only Look Once: Unified, Real-Time Object Detection", arXiv:1506.02640, in its eighth
version (Jocher et al., 2023, without a paper), which joins: split blocks after Wang et al. (2020), "CSPNet",
arXiv:1911.11929; pooling at several sizes after He et al. (2014), arXiv:1406.4729; a path down and up the scales
after Liu et al. (2018), "Path Aggregation Network for Instance Segmentation", arXiv:1803.01534; boxes as distances
to a point after Tian et al. (2019), "FCOS", arXiv:1904.01355, each distance a distribution after Li et al. (2020),
"Generalized Focal Loss", arXiv:2006.04388. Written from these papers.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional

from graphopt.models._convolution import conv_norm
from graphopt.models._settling import settled

DYNAMIC = {"image": {0: "batch"}}
OUTPUTS = ("predictions",)

STRIDES = (8, 16, 32)
BINS = 16  # values that a distance can take, 0 to 15 cells

_conv = functools.partial(conv_norm, activation=nn.SiLU)


class Bottleneck(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Two convolutions, inside a shortcut or not."""

    def __init__(self, channels: int, residual: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(channels, channels), _conv(channels, channels))
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` [batch, channels, height, width] to the same shape."""
        return x + self.body(x) if self.residual else self.body(x)


class SplitBlock(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Split the channels, pass one half through bottlenecks, and join all that came between (YOLO's C2f)."""

    def __init__(self, inputs: int, outputs: int, depth: int, residual: bool) -> None:
        super().__init__()
        half = outputs // 2
        self.first = _conv(inputs, outputs, 1)
        self.bottlenecks = nn.ModuleList(Bottleneck(half, residual) for _ in range(depth))
        self.last = _conv((2 + depth) * half, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` [batch, inputs, height, width] to [batch, outputs, height, width]."""
        parts = list(self.first(x).chunk(2, 1))
        for bottleneck in self.bottlenecks:
            parts.append(bottleneck(parts[-1]))
        return self.last(torch.cat(parts, 1))


class PoolPyramid(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """See the surroundings of every cell at four sizes, by pooling again and again (YOLO's SPPF)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _conv(channels, channels // 2, 1)
        self.last = _conv(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` [batch, channels, height, width] to the same shape."""
        pools = [self.first(x)]
        for _ in range(3):
            pools.append(functional.max_pool2d(pools[-1], 5, 1, 2))
        return self.last(torch.cat(pools, 1))


class Head(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Boxes and scores of every cell of one grid."""

    def __init__(self, channels: int, hidden: int, classes: int, stride: int) -> None:
        super().__init__()
        sides = 4 * BINS
        self.distances = nn.Sequential(_conv(channels, sides), _conv(sides, sides), nn.Conv2d(sides, sides, 1))
        self.scores = nn.Sequential(_conv(channels, hidden), _conv(hidden, hidden), nn.Conv2d(hidden, classes, 1))
        self.stride = stride

    def centres(self, height: int, width: int, like: Tensor) -> Tensor:
        """Return the middles of all cells, [2, height * width]: x and y in cells, row by row."""
        x = torch.arange(width, dtype=like.dtype, device=like.device) + 0.5
        y = torch.arange(height, dtype=like.dtype, device=like.device) + 0.5
        return torch.stack((x.expand(height, width), y[:, None].expand(height, width))).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` [batch, channels, height, width] to [batch, 4 + classes, height * width].

        The first four rows are the middle, the width and the height of a box in pixels of the image, the others the
        probabilities of the classes.
        """
        bins = torch.arange(BINS, dtype=x.dtype, device=x.device)[:, None]
        shares = self.distances(x).flatten(2).unflatten(1, (4, BINS)).softmax(2)
        before, after = (shares * bins).sum(2).chunk(2, 1)  # left and top, right and bottom: [batch, 2, cells] each
        middles = self.centres(x.shape[2], x.shape[3], x) + (after - before) / 2
        boxes = torch.cat((middles, before + after), 1) * self.stride
        return torch.cat((boxes, self.scores(x).flatten(2).sigmoid()), 1)


class YOLO(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Find objects in colour images whose height and width are multiples of 32."""

    def __init__(self, classes: int, width: int, depth: int) -> None:
        super().__init__()
        stem, fine, middle, coarse = 2 * width, 4 * width, 8 * width, 16 * width
        self.to_fine = nn.Sequential(
            _conv(3, width, stride=2),
            _conv(width, stem, stride=2),
            SplitBlock(stem, stem, depth, residual=True),
            _conv(stem, fine, stride=2),
            SplitBlock(fine, fine, 2 * depth, residual=True),
        )
        self.to_middle = nn.Sequential(
            _conv(fine, middle, stride=2), SplitBlock(middle, middle, 2 * depth, residual=True)
        )
        self.to_coarse = nn.Sequential(
            _conv(middle, coarse, stride=2), SplitBlock(coarse, coarse, depth, residual=True), PoolPyramid(coarse)
        )
        self.enlarge = nn.Upsample(scale_factor=2, mode="nearest")
        self.join_middle = SplitBlock(coarse + middle, middle, depth, residual=False)
        self.join_fine = SplitBlock(middle + fine, fine, depth, residual=False)
        self.halve_fine = _conv(fine, fine, stride=2)
        self.rejoin_middle = SplitBlock(fine + middle, middle, depth, residual=False)
        self.halve_middle = _conv(middle, middle, stride=2)
        self.rejoin_coarse = SplitBlock(middle + coarse, coarse, depth, residual=False)
        hidden = max(fine, min(classes, 100))
        scales = zip((fine, middle, coarse), STRIDES, strict=True)
        self.heads = nn.ModuleList(Head(channels, hidden, classes, stride) for channels, stride in scales)

    def forward(self, image: Tensor) -> Tensor:
        """Return boxes and scores of `image` [batch, 3, height, width] as [batch, 4 + classes, anchors].

        An anchor is a cell of the grids with strides 8, 16 and 32, in this order; its column is what `Head` says.
        """
        fine = self.to_fine(image)
        middle = self.to_middle(fine)
        coarse = self.to_coarse(middle)
        middle = self.join_middle(torch.cat((self.enlarge(coarse), middle), 1))
        fine = self.join_fine(torch.cat((self.enlarge(middle), fine), 1))
        middle = self.rejoin_middle(torch.cat((self.halve_fine(fine), middle), 1))
        coarse = self.rejoin_coarse(torch.cat((self.halve_middle(middle), coarse), 1))
        grids = (head(x) for head, x in zip(self.heads, (fine, middle, coarse), strict=True))
        return torch.cat(list(grids), 2)


def yolo(classes: int = 80, width: int = 8, depth: int = 1) -> nn.Module:
    """A detector; `yolo(80, 16, 1)` is as wide and as deep as YOLOv8n, `yolo(80, 32, 1)` as YOLOv8s."""
    return settled(YOLO(classes, width, depth), example_inputs(8))


def example_inputs(batch: int = 2, size: int = 64) -> dict[str, Tensor]:
    """Noise: `image` float32 [batch, 3, size, size]."""
    return {"image": torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))}
