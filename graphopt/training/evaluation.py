"""The metric of a model in training, computed on the target's runtime with the weights as they would be written."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from graphopt import metrics, runtime
from graphopt.data import Data
from graphopt.errors import UserError
from graphopt.metrics import CustomMetric, Metric, Score
from graphopt.runtime import ExecutionError, Session
from graphopt.target import Target


def write_back(model: ir.Model, arrays: Mapping[str, np.ndarray]) -> None:
    """Give initializers of the main graph new content, by name; everything else stays."""
    for name, array in arrays.items():
        value = model.graph.initializers[name]
        assert value.dtype is not None
        value.const_value = ir.Tensor(array, dtype=value.dtype, name=name)


class Evaluator:
    """Scores a model that is in training."""

    def __init__(self, model: ir.Model, target: Target, data: Data, metric: str, reference: Session | None) -> None:
        """Prepare to score.

        Args:
            model: with the weights before training; never changed.
            target: where to run it.
            data: what to score it on.
            metric: its name, or "" for that of `default_metric`.
            reference: what to compare with, for metrics that need it; by default the model before training.

        Raises:
            UserError: the data does not fit the model, or has no labels that the metric needs.
        """
        self._model, self._target, self._data = model, target, data
        self._ports = runtime.model_inputs(model)
        self.metric: Metric | CustomMetric = metrics.find(metric or default_metric(data, taught=reference is not None))
        wants = isinstance(self.metric, Metric) and self.metric.needs == "labels"
        data.check(self._ports, labels=wants)
        self._reference = reference or (None if wants else runtime.open_session(model, target))

    def score(self, arrays: Mapping[str, np.ndarray]) -> Score:
        """Return the score with these weights."""
        candidate = self._model.clone()
        write_back(candidate, arrays)
        try:
            session = runtime.open_session(candidate, self._target)
            return metrics.evaluate(self.metric, session, self._data, self._ports, self._reference)
        except ExecutionError as error:
            raise UserError(f"{self._data.name}: the model does not run on this data: {error}") from None

    def is_better(self, new: float, old: float) -> bool:
        """Tell whether one value of the metric is better than another."""
        higher = not isinstance(self.metric, Metric) or self.metric.higher_is_better
        return new > old if higher else new < old


def default_metric(data: Data, *, taught: bool) -> str:
    """Return the metric for a data set: accuracy with classes, mse with other targets, else cosine with a teacher.

    Raises:
        UserError: there is neither a target nor a teacher to compare with.
    """
    first = next(iter(data.batches(1, 1)), None)
    if first is not None and first[1] is not None:
        return "accuracy" if first[1].dtype.kind in "bui" else "mse"
    if not taught:
        raise UserError(f"{data.name}: has no labels, which the metric needs; add them, or leave out --eval-data")
    return "cosine"
