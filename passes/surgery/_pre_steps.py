"""What add-preprocessing computes: the steps, and the operators that they are in a graph."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from graphopt.passes.surgery import _ports

Mode = Literal["linear", "nearest", "cubic"]
Fit = Literal["stretch", "crop", "pad"]

RESIZE_OPSET = 11
"""Since when Resize takes sizes and counts coordinates from the middle of a pixel."""
OPTIONAL_OPSET = 13
"""Since when inputs of Resize can be left out."""
SMOOTH_OPSET = 18
"""Since when Resize can smooth."""


@dataclasses.dataclass(frozen=True)
class Resizing:
    """How images are brought to size.

    Attributes:
        size: height and width in the end.
        fit: "stretch" to just this size; or keep the aspect ratio, and "crop" what is over or "pad" with black.
        mode: interpolation.
        antialias: whether to smooth when images get smaller.
    """

    size: tuple[int, int]
    fit: Fit
    mode: Mode
    antialias: bool

    @property
    def least_opset(self) -> int:
        """The oldest operators that can do it."""
        return SMOOTH_OPSET if self.antialias else RESIZE_OPSET

    @property
    def cubic_coefficient(self) -> float:
        """The one of Pillow and PyTorch, which differs when they smooth."""
        return -0.5 if self.antialias else -0.75


@dataclasses.dataclass(frozen=True)
class Steps:
    """From the images that callers give to what the model takes, in this order.

    Attributes:
        given: element type of the images.
        perm: transposition into the layout of the model, or None.
        channel_axis: axis of the channels in the model's layout; None where nothing depends on it.
        reverse: whether to reverse the order of the channels.
        resizing: how to bring them to size, or None.
        mean: subtracted, in the units of the images; scalar, or broadcast against the model's input.
        factor: multiplied with what is left, likewise.
        taken: element type of the model's input.
    """

    given: ir.DataType
    perm: tuple[int, ...] | None
    channel_axis: int | None
    reverse: bool
    resizing: Resizing | None
    mean: np.ndarray
    factor: np.ndarray
    taken: ir.DataType

    @property
    def spatial(self) -> tuple[int, int]:
        """The axes of height and width in the model's layout, of a batch of images or of a single one."""
        return (1, 2) if self.channel_axis in (0, 3) else (0, 1) if self.channel_axis == 2 else (2, 3)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be done at all."""
        return self.given == self.taken and not (
            self.perm or self.reverse or self.resizing or self._shifts or self._scales
        )

    @property
    def _shifts(self) -> bool:
        return bool(np.any(self.mean))

    @property
    def _scales(self) -> bool:
        return bool(np.any(self.factor != 1))

    def build(self, images: ir.Value, rank: int, opset: int, to: _ports.Recorder) -> ir.Value:
        """Record the operators; return the value that the model takes."""
        value = images
        if self.perm:  # first, where elements are small
            value = to.add("Transpose", [value], "turned", {"perm": list(self.perm)})
        if self.reverse:
            assert self.channel_axis is not None
            value = to.add("Gather", [value, to.constant([2, 1, 0], "order")], "reversed", {"axis": self.channel_axis})
        dtype = self.given
        if self.resizing or self._shifts or self._scales:
            exact = self.taken == ir.DataType.DOUBLE and not self.resizing
            dtype, value = self._cast(value, dtype, ir.DataType.DOUBLE if exact else ir.DataType.FLOAT, to)
        if self.resizing:
            value = self._resize(value, self.resizing, rank, opset, to)
            if not self.taken.is_floating_point():
                value = self._round(value, to)
        if self._shifts:
            value = to.add("Sub", [value, to.constant(self.mean, "mean", dtype)], "centred")
        if self._scales:
            value = to.add("Mul", [value, to.constant(self.factor, "factor", dtype)], "scaled")
        return self._cast(value, dtype, self.taken, to)[1]

    def _cast(
        self, value: ir.Value, old: ir.DataType, new: ir.DataType, to: _ports.Recorder
    ) -> tuple[ir.DataType, ir.Value]:
        return new, value if old == new else to.add("Cast", [value], new.name.lower(), {"to": int(new)})

    def _resize(self, value: ir.Value, how: Resizing, rank: int, opset: int, to: _ports.Recorder) -> ir.Value:
        attributes: dict[str, object] = {"mode": how.mode, "coordinate_transformation_mode": "half_pixel"}
        if how.mode == "nearest":
            attributes["nearest_mode"] = "round_prefer_ceil"
        if how.mode == "cubic":
            attributes["cubic_coeff_a"] = how.cubic_coefficient
        if how.antialias:
            attributes |= {"antialias": 1, "exclude_outside": 1}
        size = to.constant(how.size, "size")
        if how.fit != "stretch":
            size = self._covering(value, size, how.fit, to)
        nothing: ir.Value | None = None
        if opset < OPTIONAL_OPSET:
            nothing = to.constant([], "nothing", ir.DataType.FLOAT)
        sizes = self._all_sizes(value, size, rank, to)
        value = to.add("Resize", [value, nothing, nothing, sizes], "resized", attributes)
        return value if how.fit == "stretch" else self._frame(value, size, how, rank, to)

    def _covering(self, value: ir.Value, size: ir.Value, fit: Fit, to: _ports.Recorder) -> ir.Value:
        """Return the size of the same aspect ratio that just covers the wanted one, or just fits into it.

        Resize has a policy for it, but runtimes disagree on what happens where a rounded size equals the old one.
        """
        old = to.add(
            "Gather", [to.add("Shape", [value], "shape"), to.constant(self.spatial, "axes")], "old", {"axis": 0}
        )
        old, new = (to.add("Cast", [v], "sides", {"to": int(ir.DataType.FLOAT)}) for v in (old, size))
        ratio = to.add("ReduceMax" if fit == "crop" else "ReduceMin", [to.add("Div", [new, old], "ratios")], "ratio")
        half, one = (to.constant(number, "number", ir.DataType.FLOAT) for number in (0.5, 1))
        rounded = to.add("Floor", [to.add("Add", [to.add("Mul", [old, ratio], "sides"), half], "sides")], "sides")
        return to.add("Cast", [to.add("Max", [rounded, one], "sides")], "sides", {"to": int(ir.DataType.INT64)})

    def _all_sizes(self, value: ir.Value, size: ir.Value, rank: int, to: _ports.Recorder) -> ir.Value:
        """Return the sizes of all axes.

        Resize can also be told which axes it is about, but ONNX Runtime (1.31) spoils such a node when it moves a
        Transpose past it: "Number of elements of input 'sizes' (0) does not match the number of axes".
        """
        shape = to.add("Shape", [value], "shape")
        first = self.spatial[0]
        parts: list[ir.Value] = []
        for axes, name in ((range(first), "head"), (range(first + 2, rank), "tail")):
            if axes:
                parts.append(to.add("Gather", [shape, to.constant(list(axes), f"{name}_axes")], name, {"axis": 0}))
        parts.insert(1 if first else 0, size)
        return to.add("Concat", parts, "sizes", {"axis": 0})

    def _frame(self, value: ir.Value, size: ir.Value, how: Resizing, rank: int, to: _ports.Recorder) -> ir.Value:
        """Cut off what is over, or pad with zeros, half of it on each side.

        CenterCropPad does the same, but ONNX Runtime (1.31) spoils it, too, when it moves a Transpose past it.
        """
        frame = to.constant(how.size, "frame")
        over = to.add("Sub", [size, frame] if how.fit == "crop" else [frame, size], "over")
        before = to.add("Div", [over, to.constant([2], "sides")], "before")
        if how.fit == "crop":
            end = to.add("Add", [before, frame], "end")
            return to.add("Slice", [value, before, end, to.constant(self.spatial, "axes")], "framed")
        first = self.spatial[0]
        ends = [to.constant([0] * count, "none") for count in (first, rank - first - 2) if count]
        parts: list[ir.Value] = []
        for side in (before, to.add("Sub", [over, before], "after")):
            parts += [*ends[: first > 0], side, *ends[first > 0 :]]
        return to.add("Pad", [value, to.add("Concat", parts, "pads", {"axis": 0})], "framed")

    def _round(self, value: ir.Value, to: _ports.Recorder) -> ir.Value:
        bounds = [
            to.constant(bound, name, ir.DataType.FLOAT)
            for bound, name in ((self.taken.min, "least"), (self.taken.max, "most"))
        ]
        return to.add("Clip", [to.add("Round", [value], "rounded"), *bounds], "clipped")


def model_of(steps: Steps, images: Sequence[int | str | None], opset: int) -> ir.Model:
    """Return the steps as a model of their own, from input "x" to output "y".

    Args:
        steps: what to compute.
        images: shape of the images.
        opset: version of the operators.
    """
    value = ir.Value(name="x", type=ir.TensorType(steps.given), shape=ir.Shape(images))
    recorder = _ports.Recorder("x", Counter(["x", "y"]))
    result = recorder.add("Identity", [steps.build(value, len(images), opset, recorder)], "done")
    result.name, result.type = "y", ir.TensorType(steps.taken)
    graph = ir.Graph(
        [value],
        [result],
        nodes=recorder.nodes,
        initializers=recorder.initializers,
        opset_imports={"": opset},
        name="preprocessing",
    )
    return ir.Model(graph, ir_version=8)
