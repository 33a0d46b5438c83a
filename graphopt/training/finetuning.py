"""Fine-tune, distil or train from scratch: from an .onnx file to an .onnx file, with the proof of what it brought."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt import classes, io, metrics, runtime, spec
from graphopt.classes import ClassScore
from graphopt.data import Data, batch_size, fitted_batches, open_data
from graphopt.errors import UserError
from graphopt.metrics import Change, Metric
from graphopt.pipeline import Pipeline, begin, feeds_for
from graphopt.runtime import Port, Session
from graphopt.target import find as find_target
from graphopt.training.events import is_first
from graphopt.training.folds import CrossValidation, cross_validate
from graphopt.training.settings import Settings

_NAME = "finetune"
_MOST_CLASSES = 100


@dataclasses.dataclass(frozen=True)
class Finetuned:
    """What a training did; the field names are those of the JSON report.

    Attributes:
        input, output: paths; `output` is None when nothing was written.
        history: one row per epoch: epoch, loss, learning_rate, metric, seconds.
        best: the epoch whose weights were taken; 0 when none was better than those before.
        metric: how the metric changed on the evaluation data, or None without.
        classes: precision, recall and F1 of every class afterwards, where the labels are classes.
        confusion: labels, and how many samples of each (rows) were taken for each (columns).
        cross_validation: the metric of each fold, or None.
        trained: how many initializers were trained.
        refused: `(initializer, reason)` of those that could not be.
        resumed: whether it went on from a checkpoint.
        reason: what the step says.
        notes: what else is worth knowing.
        seconds: how long it took.
    """

    input: str
    output: str | None
    history: Sequence[Mapping[str, Any]]
    best: int
    metric: Change | None
    classes: Sequence[ClassScore]
    confusion: Mapping[str, Any] | None
    cross_validation: CrossValidation | None
    trained: int
    refused: Sequence[tuple[str, str]]
    resumed: bool
    reason: str
    notes: Sequence[str]
    seconds: float

    @property
    def met(self) -> bool:
        """Tell whether a model was written."""
        return self.output is not None

    def to_json(self) -> dict[str, Any]:
        """Return the object of `finetune --json`."""
        return {**dataclasses.asdict(self), "met": self.met}


def finetune(
    model: str | Path, output: str | Path, *, target: str = "cpu", folds: int = 0, resume: bool = True, **settings: Any
) -> Finetuned:
    """Train the weights of a model and write it.

    The graph stays as it is; initializers get new content. With `eval_data` the weights of the best epoch are taken,
    and the change of the metric is told with its interval. If no epoch is better than the weights before, these are
    written.

    Args:
        model: path of the .onnx file.
        output: path to write.
        target: where the result is verified and scored.
        folds: besides, estimate the metric by stratified cross-validation with that many trainings.
        resume: whether to go on from the checkpoint of a training like this one that was interrupted; it lies beside
            the output unless the settings name another place, and is gone in the end.
        settings: fields of `graphopt.training.settings.Settings`: `data`, `eval_data`, `epochs`, `teacher`, ...

    Raises:
        UserError: anything the caller can fix; nothing is written.
    """
    start = time.perf_counter()
    pass_: Any = spec.build(_NAME, {"checkpoint": f"{output}.checkpoint", **settings})
    if not pass_.data:
        raise UserError(f"{_NAME}: needs training data; add --data FILE")
    place, loaded = find_target(target), io.load(model)
    data = open_data(pass_.data)
    evaluation = open_data(pass_.eval_data) if pass_.eval_data else None
    teacher = io.load(pass_.teacher) if pass_.teacher else None
    sources = [*loaded.meta[io.FILES], *(teacher.meta[io.FILES] if teacher else ())]
    files = [file for source in (data, evaluation) if source for file in source.files]
    checkpoint = Path(pass_.checkpoint)
    for path in (output, checkpoint):
        io.check_writable(path, [*sources, *files])
    if not resume:
        checkpoint.unlink(missing_ok=True)
    opened = begin(loaded, place, (), str(model))
    ports = runtime.model_inputs(opened.model)
    pipeline = Pipeline(opened, place, feeds_for(opened, data, pass_.seed, str(model)), pass_.seed)
    validated = cross_validate(opened.model, pass_, data, place, folds) if folds else None
    before = pipeline.session
    step = pipeline.run(pass_, strict=True)
    if step.status == "reverted":
        raise UserError(f"{model}: {step.reason}")
    done = step.report
    written = None
    if is_first():
        hashes = {"model": io.sha256(loaded.meta[io.FILES]), "data": data.digest()}
        hashes |= {"teacher": io.sha256(teacher.meta[io.FILES])} if teacher else {}
        pipeline.model.metadata_props[io.PROVENANCE] = io.provenance(pipeline.kept, hashes, pass_.seed)
        io.save(pipeline.model, output)
        written = str(output)
        checkpoint.unlink(missing_ok=True)
    change, rows, confusion = _judged(pass_, evaluation, before, pipeline.session, ports)
    return Finetuned(
        str(model),
        written,
        done.get("history", []),
        done.get("best", 0),
        change,
        rows,
        confusion,
        validated,
        done.get("trained", 0),
        list(step.skipped),
        done.get("resumed", False),
        step.reason,
        _notes(ports, pass_.batch),
        time.perf_counter() - start,
    )


def distill(
    teacher: str | Path,
    student: str | Path,
    output: str | Path,
    *,
    target: str = "cpu",
    folds: int = 0,
    resume: bool = True,
    **settings: Any,
) -> Finetuned:
    """Train a student to compute what its teacher computes, with labels or without, and write it.

    Args:
        teacher: path of the .onnx file to learn from.
        student: path of the .onnx file to train.
        output: path to write.
        target: where the result is verified and scored.
        folds, resume, settings: see `finetune`.

    Raises:
        UserError: anything the caller can fix; nothing is written.
    """
    return finetune(student, output, target=target, folds=folds, resume=resume, teacher=str(teacher), **settings)


def _notes(ports: Sequence[Port], batch: int) -> list[str]:
    fixed = batch_size(ports, 0)
    if fixed in (0, batch):
        return []
    return [
        f"the model fixes its batch to {fixed}, in place of {batch}; graphopt make-dynamic opens it, which is faster"
    ]


def _judged(
    settings: Settings, data: Data | None, before: Session, after: Session, ports: Sequence[Port]
) -> tuple[Change | None, list[ClassScore], dict[str, Any] | None]:
    """Return the change of the metric, and the classes that were confused, on the evaluation data."""
    if data is None:
        return None, [], None
    from graphopt.training.evaluation import default_metric

    metric = metrics.find(settings.metric or default_metric(data, taught=bool(settings.teacher)))
    reference = before
    if settings.teacher and isinstance(metric, Metric) and metric.needs == "reference":
        reference = runtime.open_session(io.load(settings.teacher), find_target(settings.teacher_target))
    parts, pairs = [], []
    for feeds, labels, count in fitted_batches(data, ports):
        outputs = after.run(feeds)
        if isinstance(metric, Metric):
            expected = reference.run(feeds) if metric.needs == "reference" else None
            parts.append(metrics.batch_rows(metric, outputs, labels, expected, count, data.name))
        pairs.append(None if labels is None else metrics.class_pairs(outputs, labels, count))
    old = metrics.evaluate(metric, before, data, ports, reference)
    if isinstance(metric, Metric):
        new = metrics.score(metric, parts, data.name)
    else:
        new = metrics.evaluate(metric, after, data, ports)
    change = metrics.change(metric, old, new, settings.seed)
    known = [found for found in pairs if found is not None]
    if len(known) < len(pairs):
        return change, [], None
    together = np.concatenate(known)
    rows = classes.class_scores(together)
    return change, rows, classes.confusion(together) if len(rows) <= _MOST_CLASSES else None
