"""What detectors end with."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from graphopt.runtimes._torch.table import Host, operator


@operator("NonMaxSuppression", 10)
def non_max_suppression(
    boxes: Host,
    scores: Host,
    max_output_boxes_per_class: Host | None = None,
    iou_threshold: Host | None = None,
    score_threshold: Host | None = None,
    *,
    center_point_box: int = 0,
) -> Tensor:
    """The indices (image, class, box) of boxes that no better one of their class covers."""
    most = 0 if max_output_boxes_per_class is None else int(max_output_boxes_per_class.reshape(-1)[0])
    overlap = 0.0 if iou_threshold is None else float(iou_threshold.reshape(-1)[0])
    least = None if score_threshold is None else score_threshold.reshape(-1)[0]
    found = []
    for image in range(scores.shape[0]):
        corners = _corners(boxes[image], center_point_box)
        for kind in range(scores.shape[1]):
            kept = _chosen(corners, scores[image, kind], most, overlap, least)
            found += [(image, kind, box) for box in kept]
    return torch.tensor(found, dtype=torch.int64).reshape(-1, 3)


def _corners(boxes: Host, centred: int) -> Host:
    """Return boxes as smallest and largest coordinates, [N, 4]."""
    one, other = boxes[:, :2], boxes[:, 2:]
    if centred:
        one, other = one - other / 2, one + other / 2
    return np.concatenate([np.minimum(one, other), np.maximum(one, other)], 1)


def _chosen(corners: Host, scores: Host, most: int, overlap: float, least: Host | None) -> list[int]:
    """Return the boxes of a class that stay, the best ones first."""
    order = np.argsort(-scores, kind="stable")
    order = order if least is None else order[scores[order] > least]
    areas = (corners[:, 2:] - corners[:, :2]).prod(1)
    kept: list[int] = []
    while len(order) and len(kept) < most:
        best, order = order[0], order[1:]
        kept.append(int(best))
        low = np.maximum(corners[order, :2], corners[best, :2])
        high = np.minimum(corners[order, 2:], corners[best, 2:])
        shared = (high - low).clip(min=0).prod(1)
        order = order[shared <= overlap * (areas[order] + areas[best] - shared)]
    return kept
