"""Choose better integers for the weights of a quantized graph, without labels

Rounding each number to the nearest integer is not what changes the outputs of a layer least. Layer by layer, in the
order of the graph, the integers (and the scales) of each weight are chosen such that the layer computes what it computes
in the float model, given what the quantized layers before it make of the data.

The work is on second moments of what a layer reads and should compute (`_gptq`), gathered from a sample of positions, so
memory does not grow with the data. Biases take up what is left of the mean error, and keep the scale that integer kernels
want: that of the input times that of the weight.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from graphopt import target
from graphopt.data import open_data
from graphopt.passbase import Result, param
from graphopt.passes.quantization import _adaround, _parts
from graphopt.passes.quantization._gptq import Levels, Objective, gptq, refit, search
from graphopt.passes.quantization._graphs import label
from graphopt.passes.quantization._moments import Moments, by_position, sampled, to_rows
from graphopt.passes.quantization._quantized import Layer
from graphopt.passes.quantization._recovery import Recovery, refusal
from graphopt.passes.quantization._twins import Twin, open_reference, read, stages, twins

_FACTORS = np.linspace(0.5, 1.1, 25)
"""Scales that are tried, by the scale that is there."""

_DAMPING = 0.01
"""Of the moments, as in GPTQ."""

_PULLS = (0.01, 0.1, 1.0, 10.0)
"""How firmly a layer may be held to its float weights, from free to make up for earlier errors to hardly so."""

_TINY = 1e-30

_MOST_INPUTS = 6144
"""Numbers that one output of a layer may read: the moments of more take over 300 MB."""


@dataclasses.dataclass(frozen=True)
class RoundWeights(Recovery):
    """Choose integers and scales of weights by the output of their layers.

    "gptq" rounds number after number and lets those that are left make up for the error; "search" only looks for the best
    scale of each channel; "adaround" learns to round up or down by gradient, which needs torch. Works on a graph of
    QuantizeLinear and DequantizeLinear, whoever wrote it, for integers of any width, but not in the bodies of If, Loop and
    Scan.

    Raises:
        PreconditionError: no data or reference was given, no weight is quantized, or torch is missing for adaround.
        UserError: the reference is another model, or the data does not fit.
        ValueError: a field is out of range.
    """

    method: Literal["gptq", "search", "adaround"] = param("gptq", "how integers are chosen")
    scales: bool = param(True, "look for better scales of weights as well")
    rows: int = param(65536, "output positions per layer to look at, at most")
    steps: int = param(500, "steps of gradient descent per layer, with adaround")
    seed: int = param(0, "of the choice of positions")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "rows", "steps")
        self._at_least(0, "seed")

    def requires(self, model: ir.Model) -> None:
        """See `Recovery.requires`; adaround needs torch as well."""
        super().requires(model)
        if self.method == "adaround":
            _adaround.require_torch("choose method=gptq")

    def call(self, model: ir.Model) -> Result:
        reference = open_reference(self.reference, "round-weights")
        found, skipped = twins(model, reference, "round-weights")
        refused = [refusal(twin) or _is_too_wide(twin) for twin in found]
        skipped += [(label(t.layer.node), reason) for t, reason in zip(found, refused, strict=True) if reason]
        sites = [twin for twin, reason in zip(found, refused, strict=True) if not reason]
        names, gains, modified = _parts.Names(model), [], False
        for number, stage in enumerate(stages(model.graph, sites)):
            rng = np.random.default_rng([self.seed, number])
            for twin, moments in zip(stage, self._gathered(model, reference, stage, rng), strict=True):
                layer = twin.layer
                if not moments.finite:
                    skipped.append((label(layer.node), "it reads or computes NaN or infinity on this data"))
                    continue
                bias = _parts.bias_of(layer)
                centred = isinstance(bias, _parts.Bias) and bias.present
                after, gain = self._rounded(twin, moments, _parts.rows_of(layer), centred=centred)
                gains.append(gain)
                if gain:
                    layer = _parts.write_weight(model.graph, layer, after, names)
                    modified = True
                if centred:
                    inputs, outputs = moments.means()
                    values = (outputs - (after.floats @ inputs[..., None])[..., 0]).reshape(-1)
                    changed, lost = _parts.write_bias(model.graph, layer, values, names)
                    modified |= changed
                    if lost:
                        skipped.append((label(layer.node), f"{lost} numbers of its bias do not fit into int32"))
        report: dict[str, Any] = {"rounded": len(gains)}
        if gains:
            report["mean_gain_db"] = round(float(np.mean(gains)), 2)
        return Result(model, modified, report, skipped)

    def _gathered(
        self, model: ir.Model, reference: ir.Model, stage: Sequence[Twin], rng: np.random.Generator
    ) -> list[Moments]:
        """Return the moments of every layer of a stage."""
        gathered = [Moments() for _ in stage]
        wanted = [(model, [_read(twin) for twin in stage]), (reference, [twin.target for twin in stage])]
        place, per_sample = target.find("cpu", self.threads), max(1, self.rows // self.samples)
        batches = read(wanted, open_data(self.data), place, self.samples, self.batch)
        for number, (samples, (one, other)) in enumerate(batches):
            for twin, moments in zip(stage, gathered, strict=True):
                x, y = by_position(twin.layer.node, one[_read(twin)], other[twin.target])
                kernel, count = twin.layer.weight.integers.shape, max(1, per_sample * samples // 2)
                middle = len(x) // 2 if len(x) > 1 else number % 2
                for half, part in enumerate((slice(0, middle), slice(middle, len(x)))):
                    if part.stop > part.start:
                        moments.add(*sampled(twin.layer.node, kernel, x[part], y[part], count, rng), half)
        return gathered

    def _rounded(
        self, twin: Twin, moments: Moments, before: _parts.Rows, *, centred: bool
    ) -> tuple[_parts.Rows, float]:
        """Return what to store in place of `before`, and by how many dB the error falls: 0 if it stays as it is."""
        layer = twin.layer
        levels = _parts.levels_of(layer)
        wanted = before.floats if twin.weight is None else to_rows(layer.node, twin.weight.astype(np.float64))
        goal = _goal(moments, wanted, centred=centred)
        objective = moments.objective(centred=centred).around(goal).towards(goal, _DAMPING)
        scale = before.scale
        free = self.scales and layer.weight.scale.size == scale.size
        least = _least_scale(layer, moments, goal) if centred else np.zeros_like(scale)
        if free:
            scale = np.maximum(search(objective, goal, scale, levels, _FACTORS), least)
        integers = self._integers(objective, goal, scale, levels)
        if free:
            scale = np.maximum(refit(objective, integers, scale), least).astype(np.float32).astype(np.float64)
        old = objective.error(before.floats)
        better = objective.error(integers * scale[..., None]) < old
        after = _parts.Rows(
            np.where(better[..., None], integers, before.integers), np.where(better, scale, before.scale)
        )
        if not better.any():
            return before, 0.0
        new = objective.error(after.floats)
        return after, float(10 * np.log10(max(old.sum(), _TINY) / max(new.sum(), _TINY)))

    def _integers(self, objective: Objective, goal: np.ndarray, scale: np.ndarray, levels: Levels) -> np.ndarray:
        """Return integers for these scales: nearest ones, for every channel in which no others are better."""
        nearest = levels.nearest(goal / scale[..., None])
        if self.method == "search":
            return nearest
        if self.method == "gptq":
            found = gptq(objective, scale, levels)
        else:
            found, _ = _adaround.learned(objective, goal, scale, levels, self.steps)
        better = objective.error(found * scale[..., None]) < objective.error(nearest * scale[..., None])
        return np.where(better[..., None], found, nearest)


def _read(twin: Twin) -> ir.Value:
    value = twin.layer.node.inputs[0]
    assert value is not None
    return value


def _is_too_wide(twin: Twin) -> str | None:
    """Return why the moments of what a layer reads would not fit into memory, or None."""
    width = to_rows(twin.layer.node, twin.layer.weight.integers).shape[-1]
    return f"one output reads more than {_MOST_INPUTS} numbers" if width > _MOST_INPUTS else None


def _goal(moments: Moments, wanted: np.ndarray, *, centred: bool) -> np.ndarray:
    """Return the real weights to come close to: those of the float model, changed to make up for earlier errors.

    How far they may change is what serves one half of the data best when it is found on the other half.
    """
    both = moments.objective(centred=centred)
    pull = _PULLS[-1]
    if moments.halved:
        halves = [moments.objective([half], centred=centred) for half in (0, 1)]
        errors = [
            sum(float(b.error(a.towards(wanted, pull).best()).sum()) for a, b in (halves, halves[::-1]))
            for pull in _PULLS
        ]
        pull = _PULLS[int(np.argmin(errors))]
    goal: np.ndarray = both.towards(wanted, pull).best()
    return goal


def _least_scale(layer: Layer, moments: Moments, goal: np.ndarray) -> np.ndarray:
    """Return the scales [groups, channels] at which the biases still fit into integers, with room for products."""
    inputs, outputs = moments.means()
    largest = np.abs(outputs - (goal @ inputs[..., None])[..., 0])
    if layer.input is None or layer.input.scale.size != 1:
        return np.zeros_like(largest)
    least: np.ndarray = largest / (float(layer.input.scale.reshape(())) * _parts.LARGEST_BIAS)
    return least
