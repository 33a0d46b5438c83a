"""Stratified k-fold cross-validation: what the metric of a training would be on data that it has not seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt import metrics, runtime
from graphopt.data import ArrayData, Batch, Data, NpzData
from graphopt.errors import UsageError, UserError
from graphopt.runtime import Port
from graphopt.target import Target
from graphopt.training.settings import Settings

if TYPE_CHECKING:
    from graphopt.metrics import CustomMetric, Metric


@dataclasses.dataclass(frozen=True)
class CrossValidation:
    """The metric on the fold that was left out, for each fold.

    Attributes:
        metric: its name.
        scores: one per fold, of the weights after the last epoch, so that no choice is made on the fold.
        mean, deviation: of these.
    """

    metric: str
    scores: Sequence[float]
    mean: float
    deviation: float


class Part(ArrayData):
    """Some of the samples of a data set."""

    def __init__(self, whole: ArrayData, rows: np.ndarray) -> None:
        self._whole, self._rows = whole, rows
        self.name, self.files, self.length = whole.name, whole.files, len(rows)

    def batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        end = min(self.length, limit or self.length)
        for start in range(0, end, size):
            yield self.take(np.arange(start, min(start + size, end)))

    def take(self, rows: np.ndarray) -> Batch:
        return self._whole.take(self._rows[rows])

    def labels(self) -> np.ndarray | None:
        labels = self._whole.labels()
        return None if labels is None else labels[self._rows]

    def check(self, inputs: Sequence[Port], *, labels: bool = False) -> None:
        self._whole.check(inputs, labels=labels)

    def digest(self) -> str:
        return f"{self._whole.digest()}[{','.join(map(str, self._rows))}]"


def cross_validate(model: ir.Model, settings: Settings, data: Data, target: Target, count: int) -> CrossValidation:
    """Train on all folds but one, for each fold, and score the model on that one.

    Args:
        model: from which every training begins; never changed.
        settings: how to train; evaluation data and checkpoint are left out.
        data: what to divide.
        target: where to score.
        count: of folds.

    Raises:
        UsageError: fewer than two folds.
        UserError: the data cannot be divided.
    """
    from graphopt.training.evaluation import default_metric
    from graphopt.training.examples import mapped
    from graphopt.training.loop import fit

    if count < 2:
        raise UsageError(f"--folds {count}: cross-validation takes two folds or more")
    whole = mapped(data) if isinstance(data, NpzData) else data
    if not isinstance(whole, ArrayData):
        raise UserError(f"{data.name}: batches of a function cannot be divided into folds; give a .npz file")
    metric: Metric | CustomMetric = metrics.find(settings.metric or default_metric(data, taught=bool(settings.teacher)))
    ports, reference, scores = runtime.model_inputs(model), runtime.open_session(model, target), []
    plain = dataclasses.replace(settings, eval_data="", checkpoint="")
    for fold in folds(whole, count, settings.seed):
        others = np.setdiff1d(np.arange(whole.length), fold)
        candidate = model.clone()
        fit(candidate, plain, data=Part(whole, others))
        session = runtime.open_session(candidate, target)
        scores.append(metrics.evaluate(metric, session, Part(whole, fold), ports, reference).value)
    return CrossValidation(metric.name, scores, float(np.mean(scores)), float(np.std(scores, ddof=1)))


def folds(data: ArrayData, count: int, seed: int) -> list[np.ndarray]:
    """Divide samples into folds with as equal shares of every class as can be.

    Args:
        data: samples; without classes they are divided at random.
        count: of folds.
        seed: of the division.

    Raises:
        UserError: there are fewer samples than folds.
    """
    if data.length < count:
        raise UserError(f"{data.name}: {data.length} samples cannot be divided into {count} folds")
    order = np.random.default_rng(seed).permutation(data.length)
    labels = data.labels()
    if labels is not None and labels.ndim == 1 and labels.dtype.kind in "bui":
        order = order[np.argsort(labels[order], kind="stable")]
    return [np.sort(order[i::count]) for i in range(count)]
