"""Put the preparation of images into the model: type, scale, mean and deviation, size, layout, order of channels

`add-preprocessing MODEL --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --layout nhwc --resize any` takes 8-bit images
of any size as they come from a decoder. In this order: transpose to the layout of the model, reverse the channels,
resize, and (x * scale - mean) / std with one mean and deviation per channel, in the model's order of channels, as
training code states them. Sizes are counted by half pixels as in OpenCV, Pillow and PyTorch; resized pixels are not
rounded to whole numbers, unless the model takes whole numbers.

Scale, deviation, mean and the order of channels go into the weights of the first layers where the result is the same.
The mean stays a subtraction where a convolution pads with zeros, because these stand for the mean. Folding changes the
order of rounding: where an output is so small that this is seen, verification fails, and `--no-fold` is left.

The result is held against running the model on images that numpy prepares.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from graphopt import graphs, inference
from graphopt.errors import UserError
from graphopt.passbase import Pass, PreconditionError, Result, param
from graphopt.passes.surgery import _axes, _names, _ports, _pre_cases, _pre_fold
from graphopt.passes.surgery._pre_cases import Plan
from graphopt.passes.surgery._pre_steps import Fit, Mode, Resizing, Steps

_COLOURS = (1, 3, 4)
"""Numbers of channels that tell an image from other tensors."""
_DEFAULT_TOPS = {ir.DataType.UINT8: 255.0, ir.DataType.UINT16: 65535.0}
"""The value of a white pixel; 1 for other types."""
_BROADCAST_OPSET = 7


@dataclass(frozen=True)
class AddPreprocessing(Pass):
    """Let a model take images as they come from a decoder."""

    input_name: str = param("", "Input to change; by default the only one that looks like images.")
    dtype: Literal["uint8", "uint16", "float16", "float32"] = param("uint8", "Element type of the images.")
    scale: float | None = param(None, "Factor of pixels; by default 1/255 for uint8, 1/65535 for uint16, else 1.")
    mean: tuple[float, ...] = param((), "Subtracted after scaling: one number, or one per channel.")
    std: tuple[float, ...] = param((), "Divided by after that, likewise.")
    reverse_channels: bool = param(False, "Whether images have their three channels in reverse order (BGR for RGB).")
    layout: Literal["same", "nhwc", "nchw"] = param("same", "Layout of the images; same as the model's by default.")
    model_layout: Literal["auto", "nhwc", "nchw"] = param(
        "auto", "Layout of the model's input, if its shape is unclear."
    )
    resize: tuple[str, ...] = param((), "Size of the images as height,width, or any; they are resized for the model.")
    to: tuple[int, ...] = param((), "Height,width to resize to, where the model takes any.")
    fit: Fit = param("stretch", "stretch, or keep the aspect ratio and crop the middle or pad with black.")
    mode: Mode = param("linear", "Interpolation.")
    antialias: bool = param(False, "Whether to smooth when images get smaller, as Pillow does.")
    fold: bool = param(True, "Whether weights may take over normalization and the order of channels.")

    def call(self, model: ir.Model) -> Result:
        """Change in place; the report tells the new input, what was folded, and which operators were added."""
        value = self._input(model)
        plan = self._plan(model, value)
        if plan.steps.is_empty:
            return Result(model, False, skipped=[(value.name or "", "takes such images already")])
        _ports.check_input(value)
        _ports.require_opset(model, self._least_opset(plan.steps), "preprocessing")
        taken = graphs.names(model)
        left, folded, skipped = _pre_fold.fold(model, value, plan.steps, taken) if self.fold else (plan.steps, [], [])
        new = ir.Value(name=value.name, type=ir.TensorType(plan.steps.given), shape=ir.Shape(plan.images))
        recorder = _ports.Recorder(value.name or "", taken)
        inner = left.build(new, len(plan.images), _ports.opset(model), recorder)
        if folded:
            value.metadata_props.clear()  # facts about the old input are not true of what the layers read now
        _ports.replace_input(model.graph, value, new, inner)
        recorder.prepend_to(model.graph)
        report = {
            "input": f"{value.name}: {plan.steps.given.name.lower()}{_ports.text(plan.images)}",
            "folded": folded,
            "added": [node.op_type for node in recorder.nodes],
        }
        return Result(model, True, report, skipped, cases=_pre_cases.of(value.name or "", plan, _ports.opset(model)))

    def _input(self, model: ir.Model) -> ir.Value:
        known = {value.name or "": value for value in model.graph.inputs}
        if self.input_name:
            return _names.find(self.pass_name(), "input", self.input_name, known)
        required = [value for value in known.values() if not value.is_initializer()]
        colours = _COLOURS if len(required) == 1 else _COLOURS[1:]
        found = [value for value in required if _looks_like_images(value, colours)]
        if len(found) == 1:
            return found[0]
        which = "no input looks like images (rank 4, with 1, 3 or 4 channels)"
        if found:
            which = f"several inputs look like images: {', '.join(value.name or '' for value in found)}"
        raise PreconditionError(f"{which}; name one with input_name")

    def _plan(self, model: ir.Model, value: ir.Value) -> Plan:
        """Work out the steps, and the shape of the images.

        Raises:
            PreconditionError, UserError: they do not fit the input.
        """
        dims = _ports.dims(model, value)
        given, taken = ir.DataType[self.dtype.replace("float32", "float").upper()], value.dtype
        if taken is None or not (taken.is_floating_point() or taken == given):
            raise PreconditionError(
                f"'{value.name}' takes {taken.name.lower() if taken else 'no tensor'}, into which images of "
                f"{self.dtype} cannot be made"
            )
        axis = self._channel_axis(dims)
        if axis is None and (len(self.mean) > 1 or len(self.std) > 1 or self._moves):
            raise PreconditionError(
                f"it is unclear which axis of '{value.name}' {_ports.text(dims)} holds channels; give model_layout"
            )
        scale, mean, factor = self._normalization(value, given, dims, axis)
        perm = None
        if axis is not None and self.layout not in ("same", "nhwc" if axis in (2, 3) else "nchw"):
            perm = _permutation(len(dims), self.layout)
        if self.reverse_channels and (axis is None or dims[axis] != 3):
            raise self._wrong(value, "has not 3 channels, whose order could be reversed; leave reverse_channels out")
        steps = Steps(given, perm, axis, self.reverse_channels, None, mean, factor, taken)
        images, resizing = list(dims), None
        if self.resize:
            images, resizing = self._sizes(model, value, dims, steps.spatial)
        elif self.to or self.antialias or (self.fit, self.mode) != ("stretch", "linear"):
            raise UserError(f"{self.pass_name()}: to, fit, mode and antialias belong to resize; give it, such as any")
        if perm:
            images = [images[perm.index(place)] for place in range(len(perm))]
        top = _DEFAULT_TOPS.get(given, 1 / abs(scale))
        return Plan(dataclasses.replace(steps, resizing=resizing), tuple(images), top)

    @property
    def _moves(self) -> bool:
        return bool(self.reverse_channels or self.layout != "same" or self.resize)

    def _channel_axis(self, dims: tuple[inference.Dim, ...]) -> int | None:
        axes = {2: (1, 1), 3: (0, 2), 4: (1, 3)}.get(len(dims))
        if axes is None:
            return None
        if len(dims) == 2:
            return None if self._moves else 1
        if self.model_layout != "auto":
            return axes[self.model_layout == "nhwc"]
        found = [axis for axis in axes if dims[axis] in _COLOURS]
        return found[0] if len(found) == 1 else None

    def _normalization(
        self, value: ir.Value, given: ir.DataType, dims: tuple[inference.Dim, ...], axis: int | None
    ) -> tuple[float, np.ndarray, np.ndarray]:
        """Return the scale, and the mean and factor of `Steps`."""
        assert value.dtype is not None
        if not value.dtype.is_floating_point():
            if self.scale is not None or self.mean or self.std:
                raise self._wrong(value, "takes whole numbers; leave out scale, mean and std")
            return 1.0, np.array(0.0), np.array(1.0)
        scale = 1 / _DEFAULT_TOPS.get(given, 1.0) if self.scale is None else self.scale
        if not np.isfinite(scale) or scale == 0 or 0 in self.std or not np.isfinite([*self.mean, *self.std]).all():
            raise UserError(f"{self.pass_name()}: scale and std must be finite and not 0, and mean finite")
        arrays = []
        for name, numbers, default in (("mean", self.mean, 0.0), ("std", self.std, 1.0)):
            array = np.array(numbers or default, np.float64)
            if array.size > 1 and (axis is None or (isinstance(dims[axis], int) and dims[axis] != array.size)):
                raise self._wrong(value, f"has not {array.size} channels as {name}; give as many numbers, or one")
            if np.unique(array).size == 1:
                array = array.ravel()[0]
            else:
                array = array.reshape([-1 if place == axis else 1 for place in range(len(dims))])
            arrays.append(array)
        return scale, np.asarray(arrays[0] / scale), np.asarray(scale / arrays[1])

    def _sizes(
        self, model: ir.Model, value: ir.Value, dims: tuple[inference.Dim, ...], spatial: tuple[int, int]
    ) -> tuple[list[inference.Dim], Resizing | None]:
        """Return the shape of the images in the model's layout, and how they are resized."""
        wanted = [self.to[i] if len(self.to) == 2 else None for i in range(2)]
        for i, axis in enumerate(spatial):
            dim = dims[axis]
            if isinstance(dim, int) and wanted[i] not in (None, dim):
                raise self._wrong(
                    value, f"takes images of {_ports.text([dims[a] for a in spatial])} only; leave out to"
                )
            wanted[i] = dim if isinstance(dim, int) else wanted[i]
        height, width = wanted
        if len(self.to) not in (0, 2) or height is None or width is None or min(height, width) < 1:
            raise self._wrong(value, "takes images of any size; give the one to resize to, as in --to 224,224")
        if self.antialias and self.mode == "nearest":
            raise UserError(f"{self.pass_name()}: antialias does not go with mode nearest; take linear or cubic")
        if self.mode == "cubic" and (len(dims), spatial) != (4, (2, 3)):
            raise self._wrong(value, "is not of layout nchw, which cubic interpolation needs; take linear")
        resizing = Resizing((height, width), self.fit, self.mode, self.antialias)
        images = list(dims)
        if self.resize == ("any",):
            taken = Counter([*_axes.names(model)])
            for axis, name in zip(spatial, ("height", "width"), strict=True):
                images[axis] = graphs.fresh(name, taken)
            return images, resizing
        if len(self.resize) != 2 or not all(side.isdecimal() and int(side) for side in self.resize):
            raise UserError(f"{self.pass_name()}: resize is 'any' or height,width, not '{','.join(self.resize)}'")
        for axis, side in zip(spatial, self.resize, strict=True):
            images[axis] = int(side)
        return images, None if (images[spatial[0]], images[spatial[1]]) == (height, width) else resizing

    def _wrong(self, value: ir.Value, what: str) -> UserError:
        return UserError(f"{self.pass_name()}: input '{value.name}' {what}")

    def _least_opset(self, steps: Steps) -> int:
        return steps.resizing.least_opset if steps.resizing else _BROADCAST_OPSET


def _looks_like_images(value: ir.Value, colours: Sequence[int]) -> bool:
    dims = inference.dims(value.shape) or ()
    if not isinstance(value.type, ir.TensorType) or len(dims) != 4:
        return False
    numeric = value.type.dtype.is_floating_point() or value.type.dtype == ir.DataType.UINT8
    return numeric and any(dims[axis] in colours for axis in (1, 3))


def _permutation(rank: int, layout: str) -> tuple[int, ...]:
    """Return what transposes images of this layout into the other one."""
    moved = (rank - 1, *range(rank - 3, rank - 1)) if layout == "nhwc" else (*range(rank - 2, rank), rank - 3)
    return (*range(rank - 3), *moved)
