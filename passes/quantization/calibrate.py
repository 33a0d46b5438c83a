"""Record the range of every activation that quantization may need, on sample data.

The data streams through the model once, whatever is asked for. For the extremes alone, ReduceMin and ReduceMax nodes,
added to a copy of the model, leave nothing but scalars to read out; for the other observers (see `_observers`) the
activations themselves are read, a batch at a time, and counted. Memory does not grow with the number of samples. The
ranges stay in the model as metadata (see `_ranges.KEY`), where `quantize-static` finds them.

`save` also writes them to a JSON file that can be read and edited, and `ranges` puts such a file's ranges back:

    {"samples": 512, ..., "activations": {"relu_1": {"min-max": [0.0, 6.0], "mse": [0.0, 4.5]}, ...}}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from graphopt import activations, io, runtime, target
from graphopt.data import Batch, Data, batch_size, open_data
from graphopt.errors import UserError, did_you_mean
from graphopt.passbase import EXACT, Pass, PreconditionError, Result, param
from graphopt.passes.quantization import _ranges
from graphopt.passes.quantization._graphs import infer_types, is_constant, is_float, label
from graphopt.passes.quantization._kernels import Role
from graphopt.passes.quantization._observers import EXTREMES, OBSERVERS, Extremes, Observer
from graphopt.passes.quantization._units import Unit, group

_REDUCTIONS = ("ReduceMin", "ReduceMax", "ReduceSum")
"""The sum is there for NaN, which ONNX Runtime's minimum and maximum pass over in silence."""


@dataclasses.dataclass(frozen=True)
class Calibrate(Pass):
    """Record activation ranges for static quantization.

    Only metadata changes. Ranges of an earlier calibration are replaced. An activation that turns out NaN
    or infinite gets no range, and a row that says so.

    Raises:
        PreconditionError: no data was given.
        UserError: the data does not exist, does not fit the model's inputs, or the model does not run on it; or the
            file of ranges is not one.
        ValueError: a field is out of its bounds.
    """

    contract = EXACT

    data: str | Path | Mapping[str, np.ndarray] | Data = param(
        "", "representative inputs: a .npz file or package.module:factory", source="data"
    )
    samples: int = param(512, "how many samples to use at most")
    batch: int = param(64, "samples per run, where the model leaves the choice")
    observers: tuple[str, ...] = param(("min-max",), f"ways to find a range: {', '.join(OBSERVERS)}")
    percentile: float = param(99.99, "per cent of the elements that the percentile's range keeps at either end")
    bits: int = param(8, "bits of the integers, for mse and entropy")
    save: str = param("", "JSON file to write the ranges to, too")
    ranges: str = param("", "JSON file to take the ranges from, in place of data")
    target: str = param("", "where to run; cpu by default")
    threads: int = param(0, "threads of the runtime; 0 lets it decide")

    def __post_init__(self) -> None:
        for name in ("samples", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in self.observers:
            if name not in OBSERVERS:
                raise ValueError(f"observers: there is no '{name}'{did_you_mean(name, OBSERVERS)}")
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile is {self.percentile}; it must be above 50, and 100 at most")
        if not 2 <= self.bits <= 16:
            raise ValueError(f"bits is {self.bits}; it must be from 2 to 16")

    def requires(self, model: ir.Model) -> None:
        """Refuse to run without data."""
        if self.ranges:
            return
        if isinstance(self.data, str) and not self.data:
            raise PreconditionError("no calibration data; name some with data=FILE.npz, a few hundred typical inputs")
        open_data(self.data).check(runtime.model_inputs(model))

    def call(self, model: ir.Model) -> Result:
        if self.ranges:
            return Result(model, True, {"ranges": _ranges.restore(model, self.ranges)})
        if self.save:
            io.check_writable(self.save)
        infer_types(model)
        before = {name: _ranges.read(model, name) for name in OBSERVERS}
        _ranges.erase(model)
        values = wanted(model)
        if not values:
            nodes = group(model.graph)[1].items()
            return Result(model, any(before.values()), {"ranges": 0, "samples": 0}, [(label(n), why) for n, why in nodes])
        found, count = self._observe(model, values)
        skipped = []
        for value in values:
            seen = found[value]
            if seen.count and seen.is_finite:
                _ranges.write(value, seen.ranges(self.observers, self.percentile, self.bits))
                continue
            node = value.producer()
            where = label(node) if node else f"input '{value.name}'"
            if seen.count:
                skipped.append((where, f"'{value.name}' is NaN or infinite on this data; check the model and the data"))
            else:
                skipped.append((where, f"'{value.name}' was not computed on any sample"))
        if self.save:
            facts = {"samples": count, "data": open_data(self.data).digest(), "percentile": self.percentile, "bits": self.bits}
            io.write_bytes(self.save, _ranges.dump(model, facts))
        modified = {name: _ranges.read(model, name) for name in OBSERVERS} != before
        return Result(model, modified, {"ranges": len(values) - len(skipped), "samples": count}, skipped)

    def _observe(self, model: ir.Model, values: Sequence[ir.Value]) -> tuple[dict[ir.Value, Extremes], int]:
        """Run over the data and return what was seen of each value, and the number of samples."""
        data, ports = open_data(self.data), runtime.model_inputs(model)
        place = target.find(self.target or "cpu", self.threads)
        if set(self.observers) <= set(EXTREMES) and all(value.graph is model.graph for value in values):
            session = runtime.open_session(_observed(model, values), place)
            batches = _whole(data.batches(batch_size(ports, self.batch), self.samples), ports, data.name)
            return _extremes(session, batches, values, data.name)
        observers: dict[ir.Value, Extremes] = {value: Observer() for value in values}
        seen = 0
        stream = activations.observe(model, values, data, place=place, samples=self.samples, batch=self.batch)
        for arrays, count in stream:
            for value, array in arrays.items():
                observer = observers[value]
                assert isinstance(observer, Observer)
                observer.add(array)
            seen += count if values[0] in arrays else 0
        return observers, seen


def wanted(model: ir.Model) -> list[ir.Value]:
    """Return the activations whose range quantization may need, those in bodies of control flow included.

    These are what integer kernels read and yield; where the result of one goes through nothing but a Relu or
    Clip, what comes out of that, so that the runtime's own fusion of the two survives.
    """
    inside = {graph for function in model.functions.values() for graph in (function.graph, *function.subgraphs())}
    graphs = [graph for graph in (model.graph, *model.graph.subgraphs()) if graph not in inside]
    units = [unit for graph in graphs for unit in group(graph)[0]]
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
    session: runtime.Session, batches: Iterable[Batch], values: Sequence[ir.Value], name: str
) -> tuple[dict[ir.Value, Extremes], int]:
    """Run over the batches and return the extremes of each value; and the number of samples."""
    found = {value: Extremes() for value in values}
    samples = 0
    for inputs, _ in batches:
        try:
            results = session.run(inputs)
        except runtime.ExecutionError as error:
            raise UserError(
                f"calibrate: {name}: the model does not run on this data: {error}; check shapes and values"
            ) from None
        scalars = np.array(list(results.values()), np.float32).reshape(len(values), 3)
        for value, (low, high, total) in zip(values, scalars, strict=True):
            found[value].widen(low, high, finite=bool(np.isfinite([low, high]).all()) and not np.isnan(total))
        samples += next((len(array) for array in inputs.values() if array.ndim), 1)
    return found, samples
