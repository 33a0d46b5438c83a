"""The main job: run a recipe, and keep only what is measured to be worth keeping."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from graphopt import inputs, io, metrics, runtime
from graphopt import recipe as recipes
from graphopt.data import Data, Source, batch_size, open_data
from graphopt.errors import UserError
from graphopt.latency import Latency
from graphopt.metrics import Change, Metric
from graphopt.passbase import FACT_PREFIX, Pass
from graphopt.pipeline import Judge, Pipeline, Start, Step, Unverifiable, begin, feeds_for, measure
from graphopt.referee import Exam, Referee
from graphopt.target import Target
from graphopt.target import find as find_target

STRIP = "strip-metadata"
"""The pass that `keep_metadata` leaves out."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What `optimize` did; DESIGN section 6 is its JSON form.

    Attributes:
        input, output: paths.
        target: where it was measured.
        steps: one per pass of the recipe.
        metric: the metric before and after, or None without data.
        latency: before and after, or None when the model could not be run.
        bytes, nodes: before and after; bytes count external data.
        met: whether the budget held and the model is not slower.
        seconds: how long it took.
        notes: what the user should know, one sentence each.
    """

    input: str
    output: str
    target: str
    steps: list[Step]
    metric: Change | None
    latency: Latency | None
    bytes: tuple[int, int]
    nodes: tuple[int, int]
    met: bool
    seconds: float
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return the object of `optimize --json`."""
        return {**dataclasses.asdict(self), "steps": [step.to_json() for step in self.steps]}


def optimize(
    model: str | Path,
    output: str | Path,
    *,
    data: Source | None = None,
    eval_data: Source | None = None,
    metric: str | None = None,
    max_drop: str | float = "0.01",
    target: str | Target = "cpu",
    recipe: str | None = None,
    batch: int = 1,
    seed: int = 0,
    keep_metadata: bool = False,
    portable: bool = False,
    on_step: Callable[[Step], None] | None = None,
) -> Report:
    """Make a model smaller and faster, prove that it still does its job, and write it.

    Exact passes are verified against the input model's outputs; those that are there for speed alone are kept only if
    the model measures faster. Lossy passes need `data`; they are kept
    only if the metric stays within `max_drop` up to the end of its 95 % interval, and the measured
    latency on the target is better (or equal, for a smaller file). The output is never slower than the
    input: if the whole measures slower, the lossless model is taken, or the input as it was.

    Args:
        model: path of the .onnx file.
        output: path to write.
        data: calibration data (see `graphopt.data.open_data`).
        eval_data: data for the metric, labelled if the metric needs labels; without it the fidelity to
            the input model on `data` is held to the budget instead.
        metric: a built-in name or `package.module:function`; by default accuracy with `eval_data`, else cosine.
        max_drop: largest accepted drop: 0.005 is absolute in the metric's unit, "0.5%" relative.
        target: where the model will run.
        recipe: name or file of the recipe; by default the target's own.
        batch: samples per run when measuring latency, where the model does not fix its batch.
        seed: of random inputs and of resampling.
        keep_metadata: keep what exporters leave in the nodes' metadata.
        portable: integers that come to the same on every processor, those without VNNI included; a note says what was done.
        on_step: called after each pass.

    Raises:
        UserError: anything the caller can fix; nothing is written.
    """
    start = time.perf_counter()
    place = find_target(target) if isinstance(target, str) else target
    calibration = open_data(data) if data is not None else None
    exam = _exam(metric, eval_data, calibration, str(max_drop))
    passes = [
        _for_target(_with_data(p, calibration), place, portable=portable)
        for p in recipes.load(recipe or place.recipe)
        if not (keep_metadata and p.pass_name() == STRIP)
    ]
    loaded = io.load(model)
    sources = (calibration, exam.data if exam else None)
    io.check_writable(output, [*loaded.meta[io.FILES], *(file for data in sources if data for file in data.files)])
    opened = begin(loaded, place, passes, str(model))
    ports = runtime.model_inputs(opened.model)
    if exam:
        exam.data.check(ports, labels=isinstance(exam.metric, Metric) and exam.metric.needs == "labels")
    notes = _advice(calibration, exam, eval_data is not None)
    try:
        feeds = feeds_for(opened, calibration, seed, str(model))
        pipeline = Pipeline(opened, place, feeds, seed)
    except Unverifiable as reason:
        size = io.save(loaded, output)
        return _unverified(
            str(model), str(output), place, passes, loaded, size, str(reason), time.perf_counter() - start
        )
    timing = _timing_feeds(opened, calibration, feeds, batch, seed)
    referee = Referee(opened, place, ports, exam, timing, inputs.batch_of(timing, ports), seed)
    marks = [pipeline.mark()]
    ran, waiting = passes[: len(opened.steps)], passes[len(opened.steps) :]
    while waiting:
        pass_ = waiting.pop(0)
        lossy = pass_.contract.kind == "lossy"
        if lossy and len(marks) == 1:
            marks.append(pipeline.mark())
        step = pipeline.run(pass_, _judge(referee, pass_, pipeline))
        ran.append(pass_)
        waiting[:0] = [part for part in step.parts if part not in ran]
        if on_step:
            on_step(step)
    latency = referee.latency(pipeline.model)
    while latency.ci95[1] < 1 and marks:
        pipeline.rollback(marks.pop(), f"the whole model measured {latency.speedup:.2f}x the speed of the input")
        latency = referee.latency(pipeline.model)
    change = referee.change(pipeline.session)
    pairs = zip(ran, pipeline.steps, strict=True)
    lossy = any(pass_.contract.kind == "lossy" and step.status == "kept" for pass_, step in pairs)
    finished = _without_facts(pipeline.model)
    hashes = {"model": io.sha256(loaded.meta[io.FILES])} | ({"data": calibration.digest()} if calibration else {})
    finished.metadata_props[io.PROVENANCE] = io.provenance(pipeline.kept, hashes, seed)
    size = io.save(finished, output)
    if portable:
        notes += _portability(pipeline.steps)
    if not pipeline.kept:
        notes.insert(0, "nothing helped: the output is the input, verified")
    return Report(
        input=str(model),
        output=str(output),
        target=place.name,
        steps=pipeline.steps,
        metric=change,
        latency=latency,
        bytes=(io.file_bytes(loaded), size),
        nodes=(measure(loaded)[0], measure(finished)[0]),
        met=latency.ci95[1] >= 1 and (change is None or not lossy or change.within(referee.budget)),
        seconds=time.perf_counter() - start,
        notes=notes,
    )


def _judge(referee: Referee, pass_: Pass, pipeline: Pipeline) -> Judge:
    """Return who decides about a pass: by its contract, the metric and speed, or one of both."""
    if pass_.contract.improves:
        current = pipeline.session
        return lambda candidate, session: referee.judge_metric(current, session)
    judge = referee.judge if pass_.contract.kind == "lossy" else referee.judge_speed
    return functools.partial(judge, pipeline.model)


def _exam(metric: str | None, eval_data: Source | None, calibration: Data | None, max_drop: str) -> Exam | None:
    """Decide what the model's quality is measured by, from what the user gave."""
    metrics.budget(max_drop, 1.0)
    data = open_data(eval_data) if eval_data is not None else calibration
    if data is None:
        if metric is not None:
            raise UserError(f"metric '{metric}' needs data; add --eval-data")
        return None
    return Exam(metrics.find(metric or ("cosine" if eval_data is None else "accuracy")), data, max_drop)


def _timing_feeds(
    opened: Start, data: Data | None, feeds: list[dict[str, np.ndarray]], batch: int, seed: int
) -> dict[str, np.ndarray]:
    """Return the inputs on which latency is measured: the first samples of the data, or generated ones.

    A model that runs on none of the wanted batch size is timed on the `feeds` it was verified on.
    """
    if data is None:
        try:
            return inputs.of_batch(opened.model, opened.session, batch, seed)
        except UserError:
            return feeds[0]
    size = batch_size(runtime.model_inputs(opened.model), batch)
    return next(data.batches(size, size))[0]


def _with_data(pass_: Pass, data: Data | None) -> Pass:
    """Hand the calibration data to a pass that asks for a data source and names none."""
    wants = {f.name: f.default for f in dataclasses.fields(cast(Any, pass_)) if f.metadata.get("source")}
    if data is None or "data" not in wants or getattr(pass_, "data") != wants["data"]:  # noqa: B009
        return pass_
    return dataclasses.replace(cast(Any, pass_), data=data)  # type: ignore[no-any-return]


def _for_target(pass_: Pass, place: Target, *, portable: bool) -> Pass:
    """Tell a pass that asks for it where the model will run, unless it names a target, and whether elsewhere, too."""
    wants = {f.name: f.default for f in dataclasses.fields(cast(Any, pass_))}
    told: dict[str, Any] = {}
    if "target" in wants and getattr(pass_, "target") == wants["target"]:  # noqa: B009
        told["target"] = place.name
    if portable and "portable" in wants:
        told["portable"] = True
    return dataclasses.replace(cast(Any, pass_), **told) if told else pass_


def _portability(steps: list[Step]) -> list[str]:
    """Return what the passes that were kept say of other processors; without any, there are no integers to differ."""
    found = [step.report["portable"] for step in steps if step.status == "kept" and "portable" in step.report]
    return [f"portable: {line}" for line in found] or [
        "portable: nothing was quantized, so there is nothing to saturate"
    ]


def _advice(calibration: Data | None, exam: Exam | None, labelled: bool) -> list[str]:
    if calibration is None:
        return ["no calibration data: only lossless passes ran; --data (a few hundred inputs) adds int8 quantization"]
    if exam and not labelled:
        return [
            f"no evaluation data: fidelity to the input model is held to the budget by {exam.metric.name}; "
            "--eval-data with labels adds the task metric"
        ]
    return []


def _without_facts(model: ir.Model) -> ir.Model:
    """Return the model without the facts that passes left for each other."""
    clean = model.clone()
    clean.meta.update(model.meta)
    stores = [clean.metadata_props]
    for graph in clean.graphs():
        stores += [v.metadata_props for v in (*graph.inputs, *graph.initializers.values())]
    for node in io.nodes(clean):
        stores += [node.metadata_props, *(v.metadata_props for v in node.outputs)]
    for store in stores:
        for key in [key for key in store if key.startswith(FACT_PREFIX)]:
            del store[key]
    return clean


def _unverified(
    source: str, output: str, place: Target, passes: list[Pass], model: ir.Model, size: int, reason: str, seconds: float
) -> Report:
    """Describe a run in which nothing could be verified, so that nothing was changed."""
    before = measure(model)
    unchanged = (before[0], before[0]), (before[1], before[1])
    why = "nothing can be verified on this model"
    return Report(
        input=source,
        output=output,
        target=place.name,
        steps=[Step(p.pass_name(), "skipped", why, 0.0, *unchanged) for p in passes],
        metric=None,
        latency=None,
        bytes=(io.file_bytes(model), size),
        nodes=unchanged[0],
        met=True,
        seconds=seconds,
        notes=[f"{reason}; no pass is kept unverified, so the model is written as it was"],
    )
