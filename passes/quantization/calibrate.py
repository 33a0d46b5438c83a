"""Record the range of every activation that quantization may need, on sample data.

The data streams through the model once, whatever is asked for. For the extremes alone, ReduceMin and ReduceMax nodes,
added to a copy of the model, leave nothing but scalars to read out; for the other observers (see `_observers`) the
activations themselves are read, a few samples at a time, and counted while the next samples run. Memory does not grow
with the number of samples. The ranges stay in the model as metadata (see `_ranges.KEY`), where `quantize-static` finds
them.

`save` also writes them to a JSON file that can be read and edited, and `ranges` puts such a file's ranges back, with no
need of data. Only `activations` counts then; a file may leave activations and observers out:

    {
      "data": "9f86d081...",                    the SHA-256 of the data's content
      "samples": 512, "observers": ["min-max", "mse"], "percentile": 99.99, "bits": 8,
      "activations": {
        "relu_1": {"min-max": [0.0, 6.02], "mse": [0.0, 4.5]},
        ...
      }
    }
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphopt import activations, io, runtime, scopes, target
from graphopt.data import Data, open_data
from graphopt.errors import UserError, did_you_mean
from graphopt.passbase import EXACT, Pass, PreconditionError, Result, param
from graphopt.passes.quantization import _ranges
from graphopt.passes.quantization._graphs import infer_types, is_constant, is_float, label
from graphopt.passes.quantization._kernels import Role
from graphopt.passes.quantization._observers import EXTREMES, Observer
from graphopt.passes.quantization._ranges import OBSERVERS
from graphopt.passes.quantization._units import Unit, group

_NOT_FINITE = "'{}' is NaN or infinite on this data; check the model and the data"
_NOT_RUN = "'{}' was not computed on any sample"
_HIDDEN = "'{}' cannot be read out of the body that it is in, as where iterations differ in shape; try min-max alone"


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
    batch: int = param(64, "samples per run at most, where the model leaves the choice; moving-average is over batches")
    observers: tuple[str, ...] = param(("min-max",), f"ways to find a range: {', '.join(OBSERVERS)}")
    percentile: float = param(99.99, "per cent of the elements that the percentile's range keeps at either end")
    bits: int = param(8, "bits of the integers, for mse and entropy")
    save: str = param("", "JSON file to write the ranges to, too", source="file")
    ranges: str = param("", "JSON file to take the ranges from, in place of data", source="file")
    target: str = param("", "where to run; cpu by default")
    threads: int = param(0, "threads of the runtime; 0 lets it decide")

    def __post_init__(self) -> None:
        for name in ("samples", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.observers:
            raise ValueError(f"observers is empty; choose some of {', '.join(OBSERVERS)}")
        for name in self.observers:
            if name not in OBSERVERS:
                raise ValueError(f"observers: there is no '{name}'{did_you_mean(name, OBSERVERS)}")
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile is {self.percentile}; it must be above 50, and 100 at most")
        if not 2 <= self.bits <= 16:
            raise ValueError(f"bits is {self.bits}; it must be from 2 to 16")
        if self.save and self.ranges:
            raise ValueError("save would write what ranges reads; give one of the two")

    def requires(self, model: ir.Model) -> None:
        """Refuse to run without data."""
        if self.ranges:
            return
        if isinstance(self.data, str) and not self.data:
            raise PreconditionError("no calibration data; name some with data=FILE.npz, a few hundred typical inputs")
        open_data(self.data).check(runtime.model_inputs(model))

    def call(self, model: ir.Model) -> Result:
        before = _ranges.snapshot(model)
        if self.ranges:
            report = {"ranges": _ranges.restore(model, self.ranges)}
            return Result(model, _ranges.snapshot(model) != before, report)
        data = open_data(self.data)
        if self.save:
            io.check_writable(self.save, data.files)
        infer_types(model)
        values = wanted(model)
        seen, samples = self._observe(model, values, data) if values else ({}, 0)
        _ranges.erase(model)
        skipped = [] if values else [(label(node), reason) for node, reason in group(model.graph)[1].items()]
        for value, ranges in zip(values, self._found(seen.get(value) for value in values), strict=True):
            if isinstance(ranges, str):
                node = value.producer()
                skipped.append((label(node) if node else f"input '{value.name}'", ranges.format(value.name)))
            else:
                _ranges.write(value, ranges)
        report = {"ranges": sum(_ranges.KEY in value.metadata_props for value in values), "samples": samples}
        if self.save:
            asked = {"observers": self.observers, "percentile": self.percentile, "bits": self.bits}
            facts = {"data": data.digest(), "samples": samples, **asked}
            io.write_bytes(self.save, _ranges.dump(model, facts))
        return Result(model, _ranges.snapshot(model) != before, report, skipped)

    def _observe(self, model: ir.Model, values: Sequence[ir.Value], data: Data) -> tuple[dict[ir.Value, Observer], int]:
        """Run over the data and return what was seen of the values, and the number of samples.

        Values in bodies are left out where those of a loop cannot be stacked, because their shapes change.
        """
        place = target.find(self.target or "cpu", self.threads)
        size, limit = self.batch, self.samples
        if set(self.observers) <= set(EXTREMES):
            every = dict.fromkeys(values)
            return _widened(activations.extremes(model, every, data, place=place, samples=limit, batch=size), size)

        def counted(chosen: Sequence[ir.Value]) -> tuple[dict[ir.Value, Observer], int]:
            return _counted(activations.observe(model, chosen, data, place=place, samples=limit, batch=size), size)

        try:
            return counted(values)
        except UserError:
            outer = [value for value in values if value.graph is model.graph]
            if not outer or len(outer) == len(values):
                raise
            return counted(outer)

    def _found(self, seen: Iterable[Observer | None]) -> list[dict[str, _ranges.Range] | str]:
        """Return the ranges of each observer, or why there are none."""

        def find(observer: Observer | None) -> dict[str, _ranges.Range] | str:
            if observer is None:
                return _HIDDEN
            if observer.is_empty:
                return _NOT_RUN
            if not observer.is_finite:
                return _NOT_FINITE
            return observer.ranges(self.observers, self.percentile, self.bits)

        with concurrent.futures.ThreadPoolExecutor(self.threads or None) as workers:
            return list(workers.map(find, seen))


def wanted(model: ir.Model) -> list[ir.Value]:
    """Return the activations whose range quantization may need, those in bodies of control flow included.

    These are what integer kernels read and yield; where the result of one goes through nothing but a Relu or
    Clip, what comes out of that, so that the runtime's own fusion of the two survives.
    """
    units = [unit for graph in scopes.main_and_bodies(model) for unit in group(graph)[0]]
    carried = {value: unit for unit in units if unit.role in (Role.CARRIER, Role.RESCALE) for value in unit.outputs}
    computing = [unit for unit in units if unit.role in (Role.ANCHOR, Role.ARITHMETIC)]
    values = dict.fromkeys(_source(v, carried) for unit in computing for v in (*unit.inputs, *unit.outputs))
    return [value for value in values if is_float(value) and not is_constant(value)]


def _source(value: ir.Value, carried: Mapping[ir.Value, Unit]) -> ir.Value:
    """Return where a value's elements come from: integers that are moved keep the scale they have there."""
    while value in carried:
        value = carried[value].inputs[0]
    return value


def _widened(
    stream: Iterator[tuple[dict[ir.Value, activations.Pair], int]], batch: int
) -> tuple[dict[ir.Value, Observer], int]:
    """Return what extremes alone tell, and the number of samples."""
    seen: dict[ir.Value, Observer] = {}
    samples = 0
    for pairs, count in stream:
        for value, (low, high) in pairs.items():
            seen.setdefault(value, Observer(batch)).widen(float(low), float(high), count)
        samples += count
    return seen, samples


def _counted(
    stream: Iterator[tuple[dict[ir.Value, np.ndarray], int]], batch: int
) -> tuple[dict[ir.Value, Observer], int]:
    """Return what all elements tell, and the number of samples, all of which each value has seen."""
    seen: dict[ir.Value, Observer] = {}
    samples: dict[ir.Value, int] = {}
    for arrays, count in stream:
        for value, array in arrays.items():
            seen.setdefault(value, Observer(batch)).add(array, count)
        first = next(iter(arrays))
        samples[first] = samples.get(first, 0) + count
    return seen, max(samples.values())
