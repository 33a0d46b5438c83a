"""Benchmark models against the first of them: latency, throughput, loading time and memory."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from graphopt import footprint, hardware, inputs, io, runtime, statistics, timing
from graphopt.data import Data, Source, batch_size, open_data
from graphopt.errors import UserError
from graphopt.health import surroundings
from graphopt.runtime import Arrays, ExecutionError
from graphopt.target import Target
from graphopt.target import find as find_target

Verdict = Literal["baseline", "faster", "slower", "equal", "undecided"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One model on one target at one size.

    Attributes:
        model: its path.
        batch: samples per run.
        median_ms, p90_ms: milliseconds per run.
        per_second: samples per second, of all clients together.
        speedup, ci95: against the first row of this size, with its 95 % interval.
        target: where it ran.
        axes: sizes of dynamic axes other than the batch, as asked for.
        clients: threads that ran it at the same time.
        p99_ms: milliseconds per run.
        runs: how many were timed.
        load_ms: milliseconds to make a session from the file, median.
        peak_bytes: most memory that loading it and running it at this size took, in a process of its own; None
            when it was not measured.
        verdict: "baseline"; "faster" or "slower" when the interval excludes 1; "equal" when it lies within the
            wanted width around 1; else "undecided".
    """

    model: str
    batch: int
    median_ms: float
    p90_ms: float
    per_second: float
    speedup: float
    ci95: statistics.Interval
    target: str
    axes: Mapping[str, int]
    clients: int
    p99_ms: float
    runs: int
    load_ms: float
    peak_bytes: int | None
    verdict: Verdict


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What `benchmark` measured.

    Attributes:
        rows: by size, then by contender.
        warnings: why to doubt it, in words.
        failures: which rows were slower than allowed, in words.
        met: whether none was.
    """

    rows: list[Row]
    warnings: list[str]
    failures: list[str]
    met: bool

    def to_json(self) -> dict[str, Any]:
        """Return what `bench --json` prints, but for the target."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class _Size:
    batch: int
    axes: Mapping[str, int]
    clients: int
    feeds: Arrays


@dataclasses.dataclass(frozen=True)
class _Contender:
    path: str | Path
    target: Target

    def open(self) -> runtime.Session:
        return runtime.find(self.target).open_file(self.path, self.target)


def benchmark(
    models: Sequence[str | Path],
    *,
    target: str | Target | Sequence[str | Target] = "cpu",
    batch: Sequence[int] = (1,),
    axes: Mapping[str, Sequence[int]] = MappingProxyType({}),
    clients: Sequence[int] = (1,),
    data: Source | None = None,
    runs: int | None = None,
    seconds: float = 3.0,
    width: float = timing.WIDTH,
    fail_if_slower: float | None = None,
    memory: bool = True,
    seed: int = 0,
) -> Benchmark:
    """Time models against the first of them, interleaved in this process (see `graphopt.timing`).

    Args:
        models: paths of .onnx files with the same inputs.
        target: where to run; with several, every model runs on each.
        batch: batch sizes.
        axes: sizes of other dynamic axes, by name or as `input:axis`; all combinations are measured.
        clients: numbers of threads that run a model at the same time.
        data: what to run on, its first samples; by default seeded random inputs.
        runs: rounds per size; by default as many as it takes.
        seconds: longest time per size.
        width: relative width of the speed-up's interval at which to stop before that.
        fail_if_slower: gate: a row fails if it takes this many percent more time than the first, at an interval
            that excludes 1.
        memory: whether to measure peak memory, in a process for each contender.
        seed: of random inputs and of the order of measurements.

    Raises:
        UserError: a model does not load or does not run on the inputs.
    """
    warnings = _busy()
    places = [find_target(t) if isinstance(t, str) else t for t in _listed(target)]
    contenders = [_Contender(path, place) for place in places for path in models]
    sizes = _sizes(contenders[0], batch, axes, clients, open_data(data) if data is not None else None, seed)
    _check(contenders, sizes)
    peaks = _peaks(contenders, sizes, warnings) if memory else {}
    rows: list[Row] = []
    for index, size in enumerate(sizes):
        openings = timing.race(
            [contender.open for contender in contenders],
            size.feeds,
            seconds=seconds,
            width=width,
            rounds=runs,
            clients=size.clients,
            seed=seed,
        )
        rows += [
            _row(contender, size, openings, number, peaks.get((number, index)), width)
            for number, contender in enumerate(contenders)
        ]
    warnings += [_doubt(row) for row in rows if row.verdict == "undecided"]
    failures = [] if fail_if_slower is None else [f for row in rows if (f := _failure(row, fail_if_slower))]
    return Benchmark(rows, warnings, failures, not failures)


def _row(
    contender: _Contender, size: _Size, openings: Sequence[timing.Opening], number: int, peak: int | None, width: float
) -> Row:
    seconds = timing.run_seconds(openings, number)
    cost = timing.cost(openings, number)
    speedup, interval = timing.speedup(openings, number) if number else (1.0, (1.0, 1.0))
    p50, p90, p99 = np.percentile(seconds, [50, 90, 99]) * 1e3
    return Row(
        model=str(contender.path),
        batch=size.batch,
        median_ms=float(p50),
        p90_ms=float(p90),
        per_second=size.batch / cost,
        speedup=speedup,
        ci95=interval,
        target=str(contender.target),
        axes=size.axes,
        clients=size.clients,
        p99_ms=float(p99),
        runs=len(seconds),
        load_ms=float(np.median([opening.load_seconds[number] for opening in openings])) * 1e3,
        peak_bytes=peak,
        verdict=_verdict(interval, width) if number else "baseline",
    )


def _verdict(interval: statistics.Interval, width: float) -> Verdict:
    low, high = interval
    if low > 1 or high < 1:
        return "faster" if low > 1 else "slower"
    return "equal" if low >= 1 - width and high <= 1 + width else "undecided"


def _doubt(row: Row) -> str:
    return (
        f"{row.model} at batch {row.batch}: too noisy to decide, the speed-up is {row.ci95[0]:.3f} to {row.ci95[1]:.3f}; "
        "close other programs, or give it more --seconds"
    )


def _failure(row: Row, percent: float) -> str | None:
    more = (1 / row.speedup - 1) * 100
    if row.verdict != "slower" or more <= percent:
        return None
    return f"{row.model} at batch {row.batch} takes {more:.1f} % more time; {percent:g} % is allowed"


def _listed(target: str | Target | Sequence[str | Target]) -> Sequence[str | Target]:
    return [target] if isinstance(target, (str, Target)) else target


def _sizes(
    first: _Contender,
    batch: Sequence[int],
    axes: Mapping[str, Sequence[int]],
    clients: Sequence[int],
    data: Data | None,
    seed: int,
) -> list[_Size]:
    """Make the inputs of every combination of sizes, on which the first contender runs."""
    model = io.load(first.path)
    ports = runtime.model_inputs(model)
    session = _open(first)
    if data is not None:
        data.check(ports)
    found = []
    for size, *others in itertools.product(batch, *axes.values()):
        chosen = dict(zip(axes, others, strict=True))
        if data is None:
            feeds = inputs.of_batch(model, session, size, seed, chosen)
        else:
            actual = batch_size(ports, size)
            feeds = next(data.batches(actual, actual))[0]
        found += [_Size(inputs.batch_of(feeds, ports), chosen, many, feeds) for many in clients]
    return found


def _check(contenders: Sequence[_Contender], sizes: Sequence[_Size]) -> None:
    """Run every contender once at every size, before anything is measured."""
    for contender in contenders:
        session = _open(contender)
        for size in sizes:
            try:
                session.run(size.feeds)
            except ExecutionError as error:
                raise UserError(
                    f"{contender.path}: does not run on inputs of {contenders[0].path}: {error}; "
                    "compare models with the same inputs"
                ) from None


def _open(contender: _Contender) -> runtime.Session:
    io.load(contender.path)  # refuses in one line what no runtime should be given
    try:
        return contender.open()
    except ExecutionError as error:
        raise UserError(f"{contender.path}: {error}; repair it with: graphopt apply MODEL repair -o OUT") from None


def _peaks(contenders: Sequence[_Contender], sizes: Sequence[_Size], warnings: list[str]) -> dict[tuple[int, int], int]:
    """Return the peak memory of (contender, size), by their numbers."""
    order = sorted(range(len(sizes)), key=lambda index: sum(array.nbytes for array in sizes[index].feeds.values()))
    found = {}
    for number, contender in enumerate(contenders):
        try:
            peaks = footprint.peak_bytes(contender.path, contender.target, [sizes[index].feeds for index in order])
        except footprint.Unmeasurable as reason:
            warnings.append(f"{contender.path}: peak memory was not measured: {reason}")
            continue
        found.update({(number, index): peak for index, peak in zip(order, peaks, strict=True)})
    return found


def _busy() -> list[str]:
    """Say so if other programs keep the processor busy."""
    machine = hardware.machine()
    if machine.load is None:
        return []
    finding = surroundings.load(machine.load[0], machine.threads)
    return [finding.message] if finding.status == "warning" else []
