"""Non-maximum suppression of detections: the operators, and what it means in numpy.

Of the boxes of a class whose score is above a threshold the best is kept, and every other one dropped that overlaps it
by more than another threshold (intersection over union); then the best of what is left, and so on. This is the greedy
algorithm of ONNX's NonMaxSuppression, for each image and class. Equal scores keep their order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.passes.surgery import _ports

NAMES = ("boxes", "scores", "classes", "batch_index")
"""What the outputs are called by default."""
OPSET = 11
"""Since when GatherND exists."""

_CORNERS = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [-0.5, 0, 0.5, 0], [0, -0.5, 0, 0.5]])
"""(centre x, centre y, width, height) times this are (left, top, right, bottom)."""


@dataclasses.dataclass(frozen=True)
class Columns:
    """Where numbers lie in an output.

    Attributes:
        source: which of the outputs it is.
        axis: of the columns, counted in a batch: 1 or 2; the boxes lie along the other one.
        first, last: the columns from `first` up to, not including, `last`.
        count: of all columns.
        batched: whether there is an axis of images before; else there is one image.
        dtype: element type of the output.
    """

    source: int
    axis: int
    first: int
    last: int
    count: int
    batched: bool
    dtype: ir.DataType

    def build(self, values: Sequence[ir.Value], axis: int, name: str, to: _ports.Recorder) -> ir.Value:
        """Record what brings these columns to `axis` of a batch, in single precision."""
        value = values[self.source]
        if not self.batched:
            shape = [1, self.count, -1] if self.axis == 1 else [1, -1, self.count]
            value = to.add("Reshape", [value, to.constant(shape, "batched")], name)
        if (self.first, self.last) != (0, self.count):
            bounds = [to.constant([n], "bound") for n in (self.first, self.last, self.axis)]
            value = to.add("Slice", [value, *bounds], name)
        if self.axis != axis:
            value = to.add("Transpose", [value], name, {"perm": [0, 2, 1]})
        if self.dtype != ir.DataType.FLOAT:
            value = to.add("Cast", [value], name, {"to": int(ir.DataType.FLOAT)})
        return value

    def read(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Return these columns, [images, boxes, columns]."""
        array = arrays[self.source] if self.batched else arrays[self.source][None]
        array = array.astype(np.float32)
        return (array if self.axis == 2 else array.swapaxes(1, 2))[..., self.first : self.last]


@dataclasses.dataclass(frozen=True)
class Detections:
    """How detections are picked.

    Attributes:
        boxes, scores: where they lie.
        objectness: where the factor of all scores of a box lies, or None.
        centred: whether boxes are (centre x, centre y, width, height) rather than two corners.
        iou: overlap above which the worse box is dropped.
        score: least score, exclusive.
        most: boxes of one class in one image.
        axis: name of the axis of detections.
    """

    boxes: Columns
    scores: Columns
    objectness: Columns | None
    centred: bool
    iou: float
    score: float
    most: int
    axis: str

    def build(self, values: Sequence[ir.Value], to: _ports.Recorder) -> list[ir.Value]:
        """Record the operators; return boxes, scores, classes and places in the batch with types and shapes."""
        boxes = self.boxes.build(values, 2, "boxes", to)
        scores = self.scores.build(values, 1, "scores", to)
        if self.objectness:
            scores = to.add("Mul", [scores, self.objectness.build(values, 1, "objectness", to)], "scores")
        limits = [
            to.constant([self.most], "most"),
            to.constant([self.iou], "iou", ir.DataType.FLOAT),
            to.constant([self.score], "least", ir.DataType.FLOAT),
        ]
        picked = to.add(
            "NonMaxSuppression", [boxes, scores, *limits], "picked", {"center_point_box": int(self.centred)}
        )
        image, class_, place = (
            to.add("Gather", [picked, to.constant(column, "column")], name, {"axis": 1})
            for column, name in ((0, "image"), (1, "class"), ([0, 2], "place"))
        )
        found = to.add("GatherND", [boxes, place], "found")
        if self.centred:
            found = to.add("MatMul", [found, to.constant(_CORNERS, "corners", ir.DataType.FLOAT)], "found")
        outputs = [found, to.add("GatherND", [scores, picked], "best"), class_, image]
        for value, dtype in zip(outputs, (ir.DataType.FLOAT,) * 2 + (ir.DataType.INT64,) * 2, strict=True):
            value.type, value.shape = ir.TensorType(dtype), ir.Shape([self.axis, 4] if value is found else [self.axis])
        return outputs

    def reference(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return boxes, scores, classes and places in the batch for arrays of the outputs."""
        boxes, scores = self.boxes.read(arrays), self.scores.read(arrays)
        if self.objectness:
            scores = scores * self.objectness.read(arrays)
        if self.centred:
            boxes = (boxes.astype(np.float64) @ _CORNERS).astype(np.float32)
        corners = boxes.astype(np.float64)
        if not self.centred:  # any two opposite ones
            corners = np.concatenate([np.minimum(*np.split(corners, 2, 2)), np.maximum(*np.split(corners, 2, 2))], 2)
        picked = [
            (image, class_, place)
            for image in range(len(boxes))
            for class_ in range(scores.shape[2])
            for place in self._pick(corners[image], scores[image, :, class_])
        ]
        image, class_, place = np.array(picked, np.int64).reshape(-1, 3).T
        return [boxes[image, place], scores[image, place, class_], class_, image]

    def _pick(self, boxes: np.ndarray, scores: np.ndarray) -> list[int]:
        """Return which boxes of one class to keep, the best first."""
        left = [place for place in np.argsort(-scores, kind="stable") if scores[place] > np.float32(self.score)]
        kept: list[int] = []
        while left and len(kept) < self.most:
            best = left.pop(0)
            kept.append(int(best))
            left = [place for place in left if _overlap(boxes[best], boxes[place]) <= np.float32(self.iou)]
        return kept


def _overlap(one: np.ndarray, two: np.ndarray) -> float:
    """Return the intersection over union of two boxes (left, top, right, bottom)."""
    sides = np.minimum(one[2:], two[2:]) - np.maximum(one[:2], two[:2])
    if sides.min() <= 0:
        return 0.0
    both = float(sides.prod())
    return both / (float(np.prod(one[2:] - one[:2]) + np.prod(two[2:] - two[:2])) - both)
