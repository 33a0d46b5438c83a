"""Put what is done with outputs into the model: softmax, sigmoid, argmax, top-k, non-maximum suppression

`add-postprocessing MODEL --kind top-k --k 5` replaces the scores of classes by the best five and their classes; with
`--keep` the old output stays, too. The axis of the classes is 1 by default, as in [N, C] and [N, C, H, W].

`--kind nms` picks detections: `--boxes b --scores s` where the model gives boxes [N, A, 4] and scores [N, A, C] or
[N, C, A]; else from one output of columns (box, scores), [N, A, 4+C] or [N, 4+C, A] as in YOLOv8, with `--objectness`
(box, objectness, scores) as in YOLOv5. It gives boxes [n, 4] as corners (left, top, right, bottom), scores [n], classes
[n] and the index in the batch [n], sorted by image, class and falling score. Outputs must be decoded boxes, not offsets
from anchors.

The result is held against numpy, on what the model computed before.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import onnx_ir as ir

from graphopt import graphs, inference
from graphopt.errors import UserError
from graphopt.passbase import Before, Case, Cases, Pass, PreconditionError, Result, param
from graphopt.passes.surgery import _axes, _names, _ports, _post_nms, _post_scores
from graphopt.passes.surgery._post_nms import Columns, Detections
from graphopt.passes.surgery._post_scores import Scores

_TOPK_OPSET = 10
"""Since when k is an input."""
_SOFTMAX_OPSET = 13
"""Since when it works along one axis; before, it took all axes from there on as one."""
_BOX = 4


@dataclass(frozen=True)
class AddPostprocessing(Pass):
    """Let a model give what its callers use."""

    kind: Literal["none", "softmax", "sigmoid", "argmax", "top-k", "nms"] = param("none", "What to do.")
    output_name: str = param("", "Output to do it with; by default the only one.")
    axis: int = param(1, "Axis of the classes.")
    k: int = param(5, "How many of the best, for top-k.")
    keep: bool = param(False, "Whether the output stays beside the new ones.")
    names: tuple[str, ...] = param((), "What to call the new outputs.")
    boxes: str = param("", "Output of boxes, for nms.")
    scores: str = param("", "Output of scores, for nms.")
    box_format: Literal["auto", "xyxy", "cxcywh"] = param(
        "auto", "Corners, or centre and size; by default corners if boxes is given, else centre and size."
    )
    columns_axis: int | None = param(None, "Axis of the columns in the output (or scores), if its shape is unclear.")
    objectness: bool = param(False, "Whether the column behind the box multiplies all scores.")
    classes: int = param(0, "How many of the last columns are scores; by default all behind the box.")
    background: bool = param(False, "Whether the first class is the background; it is left out, and not counted.")
    iou_threshold: float = param(0.45, "Overlap of two boxes of a class above which the worse one is dropped.")
    score_threshold: float = param(0.25, "Scores must be above.")
    max_boxes: int = param(100, "Most boxes of one class in one image.")

    def call(self, model: ir.Model) -> Result:
        """Change in place; the report tells the new outputs."""
        if self.kind == "none":
            raise PreconditionError("nothing to do with the outputs; give kind, such as softmax")
        sources = self._sources(model)
        head = self._detections(model, sources) if self.kind == "nms" else self._scores(model, sources[0])
        taken = graphs.names(model)
        recorder = _ports.Recorder(sources[0].name or "", taken)
        new = head.build(sources, recorder)
        recorder.append_to(model.graph)
        old = [value.name or "" for value in sources]
        outputs = model.graph.outputs
        place = min(list(outputs).index(value) for value in sources) + (len(sources) if self.keep else 0)
        if not self.keep:
            outputs[:] = [value for value in outputs if value not in sources]
        outputs[place:place] = new
        self._name(model, new, [] if self.keep else sources, taken)
        names = [value.name or "" for value in new]
        report: dict[str, Any] = {"outputs": {v.name: _ports.text(inference.dims(v.shape) or ()) for v in new}}
        cases = _cases(head, old, names, keep=self.keep, report=report)
        return Result(model, True, report, cases=cases)

    def _sources(self, model: ir.Model) -> list[ir.Value]:
        known = {value.name or "": value for value in model.graph.outputs}
        if self.boxes or self.scores:
            if self.kind != "nms" or not (self.boxes and self.scores) or self.output_name:
                raise UserError(
                    f"{self.pass_name()}: boxes and scores go together, with kind nms and without output_name"
                )
            if self.boxes == self.scores:
                raise UserError(f"{self.pass_name()}: boxes and scores are the same output; give it as output_name")
            return [_names.find(self.pass_name(), "output", name, known) for name in (self.boxes, self.scores)]
        if self.output_name:
            return [_names.find(self.pass_name(), "output", self.output_name, known)]
        if len(known) != 1:
            which = "boxes and scores, or output_name" if self.kind == "nms" else "output_name"
            raise PreconditionError(f"the model has several outputs ({', '.join(known)}); give {which}")
        return list(known.values())

    def _scores(self, model: ir.Model, value: ir.Value) -> Scores:
        dims = _ports.dims(model, value)
        if not -len(dims) <= self.axis < len(dims):
            raise UserError(f"{self.pass_name()}: output '{value.name}' {_ports.text(dims)} has no axis {self.axis}")
        axis = self.axis % len(dims)
        dtype = value.dtype
        if dtype is None or (self.kind in ("softmax", "sigmoid") and not dtype.is_floating_point()):
            raise PreconditionError(
                f"'{value.name}' is {dtype.name.lower() if dtype else 'of no type'}, not floating point"
            )
        if self.kind == "softmax" and axis != len(dims) - 1:
            _ports.require_opset(model, _SOFTMAX_OPSET, "a softmax along an axis before the last")
        if self.kind == "top-k":
            _ports.require_opset(model, _TOPK_OPSET, "top-k")
            size = dims[axis]
            if self.k < 1 or (isinstance(size, int) and self.k > size):
                raise UserError(
                    f"{self.pass_name()}: k is {self.k}, not from 1 to {size} as '{value.name}' has classes"
                )
        return Scores(self.kind, axis, self.k, dims, dtype)  # type: ignore[arg-type]

    def _detections(self, model: ir.Model, sources: Sequence[ir.Value]) -> Detections:
        _ports.require_opset(model, _post_nms.OPSET, "nms")
        if not (0 <= self.iou_threshold <= 1 and self.max_boxes > 0):
            raise UserError(f"{self.pass_name()}: iou_threshold must be from 0 to 1, and max_boxes at least 1")
        together = len(sources) == 1
        first = _BOX + self.objectness if together else 0
        parts = [self._columns(model, sources, index) for index in range(len(sources))]
        boxes, scores = parts[0], parts[-1]
        if self.objectness and not together:
            raise UserError(
                f"{self.pass_name()}: objectness is a column of a single output; leave boxes and scores out"
            )
        number = self.classes or scores.count - first
        if not self.background < number <= scores.count - first:
            raise UserError(
                f"{self.pass_name()}: {boxes.count} columns of '{sources[0].name}' and {scores.count} of "
                f"'{sources[-1].name}' are not boxes and scores; check columns_axis and classes"
            )
        start = scores.count - number + self.background
        return Detections(
            boxes=_cut(boxes, 0, _BOX),
            scores=_cut(scores, start, scores.count),
            objectness=_cut(scores, _BOX, _BOX + 1) if self.objectness else None,
            centred=self.box_format == "cxcywh" or (self.box_format == "auto" and together),
            iou=self.iou_threshold,
            score=self.score_threshold,
            most=self.max_boxes,
            axis=graphs.fresh("detections", Counter([*_axes.names(model)])),
        )

    def _columns(self, model: ir.Model, sources: Sequence[ir.Value], index: int) -> Columns:
        """Return where all columns of one of the outputs lie.

        Raises:
            PreconditionError: it is no table of numbers for each box, or it is unclear which axis is which.
        """
        value = sources[index]
        dims, dtype = _ports.dims(model, value), value.dtype
        if len(dims) not in (2, 3) or dtype is None or not dtype.is_floating_point():
            raise PreconditionError(
                f"'{value.name}' {_ports.text(dims)} is no table of floating-point numbers for each box"
            )
        sizes = {1: dims[-2], 2: dims[-1]}
        known = {axis: size for axis, size in sizes.items() if isinstance(size, int)}
        if len(sources) > 1 and index == 0:
            axes = [axis for axis, size in sizes.items() if size == _BOX][-1:]
            if not axes:
                raise PreconditionError(
                    f"'{value.name}' {_ports.text(dims)} has no axis of {_BOX} numbers for each box"
                )
        elif self.columns_axis is not None:
            place = self.columns_axis - (len(dims) if self.columns_axis >= 0 else 0)  # from the end
            axes = [axis for axis in sizes if axis - 3 == place]
        elif len(sources) > 1:  # the axis that has another size than that of the boxes
            across = self._columns(model, sources, 0).axis
            number = _ports.dims(model, sources[0])[-2 if across == 2 else -1]
            axes = [axis for axis, size in known.items() if size != number]
        else:  # there are more boxes than columns
            axes = [axis for axis, size in known.items() if size == min(known.values())]
        count = sizes.get(axes[0]) if len(axes) == 1 else None
        if not isinstance(count, int):
            raise PreconditionError(
                f"it is unclear which axis of '{value.name}' {_ports.text(dims)} holds columns, or how many; give "
                "columns_axis, or declare the shape"
            )
        return Columns(index, axes[0], 0, count, count, len(dims) == 3, dtype)

    def _name(self, model: ir.Model, new: list[ir.Value], gone: Sequence[ir.Value], taken: Counter[str]) -> None:
        """Name the new outputs; an output that is gone yields its name."""
        given = self.names or (_post_nms.NAMES if self.kind == "nms" else _post_scores.NAMES[self.kind])
        _names.once(self.pass_name(), given)
        if len(given) != len(new):
            raise UserError(
                f"{self.pass_name()}: {self.kind} gives {len(new)} outputs, not {len(given)}; name them all"
            )
        free = {value.name or "": value for value in gone if not value.is_graph_input()}
        plan: dict[ir.Value, str] = {}
        for value, name in zip(new, given, strict=True):
            if name in free:
                plan[free[name]] = graphs.fresh(f"{name}_before", taken)
                plan[value] = name
            elif self.names and taken[name]:
                raise UserError(f"{self.pass_name()}: there is a '{name}' already; choose another name")
            else:
                plan[value] = graphs.fresh(name, taken)
        graphs.rename(model, plan)


def _cut(columns: Columns, first: int, last: int) -> Columns:
    return dataclasses.replace(columns, first=first, last=last)


def _cases(
    head: Scores | Detections, old: Sequence[str], new: Sequence[str], *, keep: bool, report: dict[str, Any]
) -> Cases:
    def cases(before: Before) -> list[Case]:
        found = []
        for feeds in before.feeds:
            results = before.run(feeds)
            made = head.reference([results[name] for name in old])
            kept = {key: array for key, array in results.items() if keep or key not in old}
            found.append(Case(feeds, {**kept, **dict(zip(new, made, strict=True))}))
        if isinstance(head, Detections):  # a picture of noise may hold nothing: people should know what was checked
            report["detections_verified"] = sum(len(case.expected[new[0]]) for case in found)
        return found

    return cases
