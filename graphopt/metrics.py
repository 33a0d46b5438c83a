"""Task metrics, and their change between two models with a confidence interval."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from graphopt import classes, compare, statistics
from graphopt.data import Data, fitted_batches, resolve
from graphopt.errors import UsageError, UserError, did_you_mean
from graphopt.padding import Padding
from graphopt.runtime import Port, Session

Rows = np.ndarray
"""What a metric keeps of each sample, [N, k]."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric that is a function of one small row per sample, so that data can be streamed and resampled.

    Attributes:
        name: what people type after `--metric`.
        needs: "labels" compares outputs with targets; "reference" compares them with the input model's.
        rows: (outputs, targets or reference outputs) of a batch -> [n, k].
        finish: all rows [N, k] -> the metric.
        higher_is_better: direction.
        binary: whether rows are one 0/1 outcome per sample (gives an interval that is honest for few changes).
        perfect: the value of a model compared with itself, for "reference" metrics.
    """

    name: str
    needs: Literal["labels", "reference"]
    rows: Callable[[np.ndarray, np.ndarray], Rows]
    finish: Callable[[Rows], float] = lambda rows: float(np.mean(rows[:, 0]))
    higher_is_better: bool = True
    binary: bool = False
    perfect: float = 1.0


@dataclasses.dataclass(frozen=True)
class CustomMetric:
    """A user's function, called as f(predict, data) -> float; higher is better, and it has no interval."""

    name: str
    function: Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Score:
    """A metric's value on a data set, with the rows behind it (None for a custom metric)."""

    value: float
    rows: Rows | None


@dataclasses.dataclass(frozen=True)
class Change:
    """How a metric changed from one model to another.

    Attributes:
        name: the metric.
        before, after: its values.
        drop: how much worse `after` is, in the metric's own unit (negative when better).
        ci95: interval of the drop, or None for a custom metric.
        samples: on how many it rests, or None for a custom metric.
        p_value: McNemar's, of "as many samples got right as got wrong", for metrics of right or wrong; else None.
    """

    name: str
    before: float
    after: float
    drop: float
    ci95: statistics.Interval | None
    samples: int | None = None
    p_value: float | None = None

    def within(self, budget: float) -> bool:
        """Tell whether the drop, up to the end of its interval, stays within the budget."""
        return (self.ci95[1] if self.ci95 else self.drop) <= budget

    def samples_needed(self, budget: float) -> int | None:
        """Return about how many samples would settle that this drop is within the budget.

        The interval shrinks with the square root of their number. None when no number would, since the drop
        itself is over the budget, or when there is no interval.
        """
        if self.ci95 is None or self.samples is None or self.drop >= budget:
            return None
        return math.ceil(self.samples * ((self.ci95[1] - self.drop) / (budget - self.drop)) ** 2)


def find(name: str) -> Metric | CustomMetric:
    """Return a built-in metric, or wrap `package.module:function`.

    Raises:
        UsageError: unknown name.
        UserError: the function cannot be imported.
    """
    if ":" in name:
        return CustomMetric(name, resolve(name))
    if name not in METRICS:
        raise UsageError(f"unknown metric '{name}'{did_you_mean(name, METRICS)}, or package.module:function")
    return METRICS[name]


def evaluate(
    metric: Metric | CustomMetric,
    session: Session,
    data: Data,
    inputs: Sequence[Port],
    reference: Session | None = None,
) -> Score:
    """Run a model over a data set and score its first output.

    Args:
        metric: what to compute.
        session: the model.
        data: labelled data for metrics that need labels.
        inputs: the model's inputs, which decide the batch size.
        reference: the model to compare with, for metrics that need one; padding (see `graphopt.padding`) is no difference.

    Raises:
        UserError: outputs and labels do not fit each other.
    """
    if isinstance(metric, CustomMetric):
        return Score(float(metric.function(session.run, data)), None)
    parts, padding = [], None if reference is None else Padding(reference)
    for feeds, labels, count in fitted_batches(data, inputs):
        outputs, expected = session.run(feeds), None
        if reference is not None and padding is not None and metric.needs == "reference":
            expected = reference.run(feeds)
            padding.observe(feeds, expected)
            outputs, expected = (padding.blanked(arrays, feeds) for arrays in (outputs, expected))
        parts.append(batch_rows(metric, outputs, labels, expected, count, data.name))
    return score(metric, parts, data.name)


def batch_rows(
    metric: Metric,
    outputs: Mapping[str, np.ndarray],
    labels: np.ndarray | None,
    expected: Mapping[str, np.ndarray] | None,
    count: int,
    source: str,
) -> Rows:
    """Return what a metric keeps of one batch.

    Args:
        metric: what to compute.
        outputs: of the model, of which the first counts.
        labels: targets, for metrics that need them.
        expected: outputs of the reference, for metrics that need them.
        count: samples, the first ones of the batch.
        source: name of the data, for messages.

    Raises:
        UserError: outputs and labels do not fit each other, or there are no labels.
    """
    output = first_output(outputs, count)
    if metric.needs == "reference":
        assert expected is not None
        return metric.rows(output, first_output(expected, count))
    if labels is None:
        raise UserError(f"{source}: has no labels, which metric '{metric.name}' needs; choose --metric cosine")
    return metric.rows(output, labels)


def score(metric: Metric, parts: Sequence[Rows], source: str) -> Score:
    """Put the rows of all batches together.

    Raises:
        UserError: there are none.
    """
    if not parts:
        raise UserError(f"{source}: yields no batches")
    rows = np.concatenate(parts)
    return Score(metric.finish(rows), rows)


def class_pairs(outputs: Mapping[str, np.ndarray], labels: np.ndarray, count: int) -> np.ndarray | None:
    """Return predicted and actual class of every sample, [N, 2], or None if the labels are no classes."""
    try:
        predicted = _classes(first_output(outputs, count), labels)
    except UserError:
        return None
    return np.stack([predicted.ravel(), labels.ravel()], axis=1)


def change(metric: Metric | CustomMetric, before: Score, after: Score, seed: int) -> Change:
    """Return the change between two scores of the same data, with the 95 % interval of the paired drop."""
    if isinstance(metric, CustomMetric):
        return Change(metric.name, before.value, after.value, before.value - after.value, None)
    sign = 1.0 if metric.higher_is_better else -1.0
    a, b = before.rows, after.rows
    assert a is not None
    assert b is not None
    p_value = None
    if metric.binary and np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all():
        interval = statistics.paired_proportions(a[:, 0], b[:, 0])
        p_value = statistics.mcnemar(a[:, 0], b[:, 0])
    else:
        interval = statistics.bootstrap(
            lambda chosen: sign * (metric.finish(a[chosen]) - metric.finish(b[chosen])), len(a), seed
        )
    return Change(
        metric.name, before.value, after.value, sign * (before.value - after.value), interval, len(a), p_value
    )


def perfect(metric: Metric, like: Score) -> Score:
    """Return the score of a reference compared with itself, shaped like another score of the same data."""
    assert like.rows is not None
    return Score(metric.perfect, np.full_like(like.rows, metric.perfect))


def budget(text: str, before: float) -> float:
    """Read `--max-drop`: "0.005" is absolute, "0.5%" is relative to the input model's score.

    Raises:
        UsageError: it is not a non-negative number.
    """
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        raise UsageError(f"--max-drop: '{text}' is neither a number like 0.005 nor a percentage like 0.5%") from None
    if value < 0 or math.isnan(value):
        raise UsageError(f"--max-drop: '{text}' is negative")
    return value / 100 * abs(before) if text.endswith("%") else value


def first_output(outputs: Mapping[str, np.ndarray], samples: int) -> np.ndarray:
    """Return the output that metrics look at, the first, of that many samples."""
    name, array = next(iter(outputs.items()))
    if array.ndim == 0 or len(array) < samples:
        raise UserError(
            f"the model's first output '{name}' has shape {list(array.shape)}, which does not count {samples} samples; "
            "write a metric of your own: --metric package.module:function"
        )
    return array[:samples]


def _classes(output: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return predicted classes of the shape of `labels`, from classes or from scores on axis 1."""
    if output.shape == labels.shape and output.dtype.kind not in "fc":
        return output
    if output.ndim == labels.ndim + 1 and output.shape[1] > 1:
        predicted = np.asarray(np.argmax(output, axis=1))
        if predicted.shape == labels.shape:
            return predicted
    raise _misfit(output, labels)


def _misfit(output: np.ndarray, labels: np.ndarray) -> UserError:
    return UserError(
        f"labels have shape {list(labels.shape)}, but the model's first output has shape {list(output.shape)}, "
        "which is not one score per class on axis 1; choose another metric or reshape the labels"
    )


def _accuracy(output: np.ndarray, labels: np.ndarray) -> Rows:
    right = _classes(output, labels) == labels
    return np.asarray(right.reshape(len(labels), -1).mean(axis=1, keepdims=True))


def _top5(output: np.ndarray, labels: np.ndarray) -> Rows:
    if output.ndim == labels.ndim:  # classes, without scores
        raise _misfit(output, labels)
    _classes(output, labels)
    best = np.argsort(output, axis=1)[:, -5:]
    right = (best == labels[:, None]).any(axis=1)
    return np.asarray(right.reshape(len(labels), -1).mean(axis=1, keepdims=True))


def _confusion(output: np.ndarray, labels: np.ndarray) -> Rows:
    return np.stack([_classes(output, labels).ravel(), labels.ravel()], axis=1)


def _macro(kind: Literal["precision", "recall", "f1"]) -> Callable[[Rows], float]:
    return lambda rows: classes.macro(rows)[kind]


def _squared_error(output: np.ndarray, labels: np.ndarray) -> Rows:
    if [d for d in output.shape if d != 1] != [d for d in labels.shape if d != 1]:
        raise UserError(
            f"labels have shape {list(labels.shape)}, but the model's first output has shape {list(output.shape)}"
        )
    error = output.astype(np.float64).reshape(len(labels), -1) - labels.reshape(len(labels), -1)
    return np.asarray(np.mean(error * error, axis=1, keepdims=True))


def _agreement(output: np.ndarray, reference: np.ndarray) -> Rows:
    equal = output == reference if output.ndim < 2 else np.argmax(output, axis=1) == np.argmax(reference, axis=1)
    return np.asarray(equal.reshape(len(output), -1).all(axis=1, keepdims=True), float)


def _cosine(output: np.ndarray, reference: np.ndarray) -> Rows:
    if output.dtype.kind in "OUS":
        raise UserError("the model's first output holds text, which has no cosine; choose --metric agreement")
    return compare.cosine(reference, output)[:, None]


METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "labels", _accuracy, binary=True),
        Metric("top5", "labels", _top5, binary=True),
        Metric("precision", "labels", _confusion, finish=_macro("precision")),
        Metric("recall", "labels", _confusion, finish=_macro("recall")),
        Metric("f1", "labels", _confusion, finish=_macro("f1")),
        Metric("mse", "labels", _squared_error, higher_is_better=False),
        Metric("agreement", "reference", _agreement, binary=True),
        Metric("cosine", "reference", _cosine),
    )
}
