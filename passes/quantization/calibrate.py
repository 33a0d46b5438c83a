"""Record the range of every activation that quantization may need, on sample data.

The smallest and the largest element of each activation are found inside the runtime: ReduceMin and
ReduceMax nodes, added to a copy of the model, leave nothing but scalars to read out, so the data streams
through once and memory does not grow with the number of samples. The ranges stay in the model as
metadata (see `_ranges.KEY`), where `quantize-static` finds them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from graphopt import runtime, target
from graphopt.data import Batch, Data, batch_size, open_data
from graphopt.errors import UserError
from graphopt.passbase import EXACT, Pass, PreconditionError, Result, param
from graphopt.passes.quantization import _ranges
from graphopt.passes.quantization._graphs import infer_types, is_constant, is_float, label
from graphopt.passes.quantization._kernels import Role
from graphopt.passes.quantization._units import Unit, group

_REDUCTIONS = ("ReduceMin", "ReduceMax", "ReduceSum")
"""The sum is there for NaN, which ONNX Runtime's minimum and maximum pass over in silence."""


@dataclasses.dataclass(frozen=True)
class Calibrate(Pass):
    """Record activation ranges (smallest and largest element) for static quantization.

    Only metadata changes. Ranges of an earlier calibration are replaced. An activation that turns out NaN
    or infinite gets no range, and a row that says so.

    Raises:
        PreconditionError: no data was given.
        UserError: the data does not exist, does not fit the model's inputs, or the model does not run on it.
        ValueError: a field is not positive.
    """

    contract = EXACT

    data: str | Path | Mapping[str, np.ndarray] | Data = param(
        "", "representative inputs: a .npz file or package.module:factory", source="data"
    )
    samples: int = param(512, "how many samples to use at most")
    batch: int = param(64, "samples per run, where the model leaves the choice")
    threads: int = param(0, "threads of the runtime; 0 lets it decide")

    def __post_init__(self) -> None:
        for name in ("samples", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def requires(self, model: ir.Model) -> None:
        """Refuse to run without data."""
        if isinstance(self.data, str) and not self.data:
            raise PreconditionError("no calibration data; name some with data=FILE.npz, a few hundred typical inputs")
        open_data(self.data).check(runtime.model_inputs(model))

    def call(self, model: ir.Model) -> Result:
        infer_types(model)
        before = _ranges.read(model)
        _ranges.erase(model)
        values = wanted(model.graph)
        if not values:
            rows = [(label(node), reason) for node, reason in group(model.graph)[1].items()]
            return Result(model, bool(before), {"ranges": 0, "samples": 0}, rows)
        session = runtime.open_session(_observed(model, values), target.find("cpu", self.threads))
        data, ports = open_data(self.data), runtime.model_inputs(model)
        batches = _whole(data.batches(batch_size(ports, self.batch), self.samples), ports, data.name)
        lows, highs, bad, count = _extremes(session, batches, len(values), data.name)
        skipped = []
        for value, lo, hi, broken in zip(values, lows, highs, bad, strict=True):
            if broken or not np.isfinite([lo, hi]).all():
                node = value.producer()
                where = label(node) if node else f"input '{value.name}'"
                skipped.append((where, f"'{value.name}' is NaN or infinite on this data; check the model and the data"))
            else:
                _ranges.write(value, lo, hi)
        modified = _ranges.read(model) != before
        return Result(model, modified, {"ranges": len(values) - len(skipped), "samples": count}, skipped)


def wanted(graph: ir.Graph) -> list[ir.Value]:
    """Return the activations whose range quantization may need, in the order of the graph.

    These are what integer kernels read and yield; where the result of one goes through nothing but a Relu or
    Clip, what comes out of that, so that the runtime's own fusion of the two survives.
    """
    units, _ = group(graph)
    carried = {value: unit for unit in units if unit.role in (Role.CARRIER, Role.RESCALE) for value in unit.outputs}
    computing = [unit for unit in units if unit.role in (Role.ANCHOR, Role.ARITHMETIC)]
    values = dict.fromkeys(_source(v, carried) for unit in computing for v in (*unit.inputs, *unit.outputs))
    return [value for value in values if is_float(value) and not is_constant(value)]


def _source(value: ir.Value, carried: Mapping[ir.Value, Unit]) -> ir.Value:
    """Return where a value's elements come from: integers that are moved keep the scale they have there."""
    while value in carried:
        value = carried[value].inputs[0]
    return value


def _observed(model: ir.Model, values: Sequence[ir.Value]) -> ir.Model:
    """Return a copy of the model whose outputs are the reductions of `values`, three scalars each.

    ONNX Runtime 1.31 starts from the last node without successors and works back to what it needs, so nodes
    that observe early activations come last: each then runs, and frees its activation, as soon as it can.
    """
    copy = model.clone()
    graph = copy.graph
    there = {value.name: value for value in (*graph.inputs, *(v for node in graph for v in node.outputs))}
    observers = [
        ir.Node("", op, [there[value.name]], [ir.Attr("keepdims", ir.AttributeType.INT, 0)], name=f"{op}:{value.name}")
        for value in values
        for op in _REDUCTIONS
    ]
    graph.outputs.clear()
    for node in observers:
        node.outputs[0].name = f"graphopt:{node.name}"
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        node.outputs[0].shape = ir.Shape([])
        graph.outputs.append(node.outputs[0])
    graph.extend(reversed(observers))
    common.RemoveUnusedNodesPass()(copy)
    return copy


def _whole(batches: Iterable[Batch], ports: Sequence[runtime.Port], name: str) -> Iterable[Batch]:
    """Pass on the batches that a model with a fixed first axis accepts: the last one may be too small.

    Raises:
        UserError: no batch is large enough.
    """
    fixed = {port.name: port.shape[0] for port in ports if port.shape and isinstance(port.shape[0], int)}
    if len(set(fixed.values())) > 1:  # then it counts something other than samples
        fixed = {}
    used = False
    for inputs, labels in batches:
        if all(len(inputs.get(key, ())) >= size for key, size in fixed.items()):
            used = True
            yield inputs, labels
    if not used:
        size = next(iter(fixed.values()), 1)
        raise UserError(f"calibrate: {name}: fewer samples than one run takes, which is {size}; add samples")


def _extremes(
    session: runtime.Session, batches: Iterable[Batch], count: int, name: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Run over the batches and return per value the minimum, the maximum and whether NaN came up; and the samples."""
    lows, highs = np.full(count, np.inf, np.float32), np.full(count, -np.inf, np.float32)
    bad = np.zeros(count, bool)
    samples = 0
    for inputs, _ in batches:
        try:
            results = session.run(inputs)
        except runtime.ExecutionError as error:
            raise UserError(
                f"calibrate: {name}: the model does not run on this data: {error}; check shapes and values"
            ) from None
        low, high, total = np.array(list(results.values()), np.float32).reshape(count, 3).T
        lows, highs = np.minimum(lows, low), np.maximum(highs, high)
        bad |= np.isnan(total)
        samples += next((len(array) for array in inputs.values() if array.ndim), 1)
    return lows, highs, bad, samples
