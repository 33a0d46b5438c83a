"""Compare a model with a reference, output by output and on a task."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np

from graphopt import classes, inputs, io, metrics, pipeline, runtime
from graphopt.classes import ClassScore
from graphopt.data import Data, Source, batch_size, fitted_batches, open_data
from graphopt.errors import UserError
from graphopt.metrics import Change, CustomMetric, Metric, Score
from graphopt.outputs import OutputError, OutputErrors
from graphopt.padding import Padding
from graphopt.runtime import Arrays, ExecutionError, Port
from graphopt.target import Target
from graphopt.target import find as find_target

_RTOL = 1e-4
_SUSPICIOUS = 30.0
"""Signal-to-noise ratio in dB below which a runtime's own rewriting is not explained by rounding any more."""


@dataclasses.dataclass(frozen=True)
class Validation:
    """The result of `validate`.

    Attributes:
        model, reference: paths; without a reference the model is only loaded, run and scored.
        outputs: one row per output, empty without a reference.
        score: the metric of the model alone, or None.
        metric: the change of the metric from the reference, or None.
        failures: gates that were not met, in words.
        met: whether all gates were met.
        target, reference_target: where they ran.
        classes, reference_classes: precision, recall and F1 of every class, where labels are classes.
        macro, reference_macro: their averages over classes.
        samples_needed: about how many samples would settle the budget, where that is open.
        rewriting: how far the outputs are from those of the same file when the runtime does not rewrite its graph.
        shapes: input shapes on which the models were compared, each distinct one once.
        padding: the input that marks padding, which was not compared (see `graphopt.padding`), or None.
        warnings: what the user should know, in words.
    """

    model: str
    reference: str | None
    outputs: list[OutputError]
    score: float | None
    metric: Change | None
    failures: list[str]
    met: bool
    target: str
    reference_target: str | None
    classes: list[ClassScore]
    reference_classes: list[ClassScore]
    macro: dict[str, float] | None
    reference_macro: dict[str, float] | None
    samples_needed: int | None
    rewriting: list[OutputError]
    shapes: list[dict[str, list[int]]]
    padding: str | None
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return the object of `validate --json`."""
        return dataclasses.asdict(self)


def validate(
    model: str | Path,
    reference: str | Path | None = None,
    *,
    data: Source | None = None,
    metric: str | None = None,
    max_drop: str | float | None = None,
    min_sqnr: float | None = None,
    min_agreement: float | None = None,
    target: str | Target = "cpu",
    reference_target: str | Target | None = None,
    batch: Sequence[int] = (),
    axes: Mapping[str, Sequence[int]] = MappingProxyType({}),
    seed: int = 0,
) -> Validation:
    """Check that a model loads, runs, and computes what its reference computes.

    Args:
        model: path of the .onnx file.
        reference: path of the model it should agree with; with a `reference_target`, by default the model itself.
        data: what to run on, labelled for most metrics; by default seeded random inputs.
        metric: a built-in name or `package.module:function`.
        max_drop: gate on the metric's drop against the reference: absolute, or "0.5%" relative.
        min_sqnr: gate on the signal-to-noise ratio of every output, dB. Without any gate the outputs
            must be equal within the tolerance of exact passes.
        min_agreement: gate on the share of samples whose class (largest score) is the same, 0 to 1.
        target: where to run.
        reference_target: where to run the reference, such as "cpu{level=none}" or another provider.
        batch: batch sizes to compare at; by default a few.
        axes: sizes of other dynamic axes to compare at, all combinations; without data only.
        seed: of random inputs and resampling.

    Raises:
        UserError: anything the caller can fix.
    """
    if reference is None and reference_target is not None:
        reference = model
    gated = max_drop is not None or min_sqnr is not None or min_agreement is not None
    if reference is None and gated:
        raise UserError("a gate compares with a reference; add --reference")
    if data is None and metric is not None:
        raise UserError(f"metric '{metric}' needs data; add --data")
    if data is not None and axes:
        raise UserError("--axis chooses sizes of generated inputs; leave out --data, or prepare data of those sizes")
    if max_drop is not None and metric is None:
        raise UserError("--max-drop limits a metric; add --metric, such as accuracy")
    place = find_target(target) if isinstance(target, str) else target
    there = find_target(reference_target) if isinstance(reference_target, str) else reference_target or place
    start = pipeline.begin(io.load(model), place, (), str(model))
    source = open_data(data) if data is not None else None
    feeds = _feeds(start, source, batch, axes, seed, str(model))
    ports = runtime.model_inputs(start.model)
    truth = pipeline.begin(io.load(reference), there, (), str(reference)) if reference is not None else None
    chosen = metrics.find(metric) if metric else None
    if source and chosen:
        labels = isinstance(chosen, Metric) and chosen.needs == "labels"
        source.check(ports, labels=labels)
        if isinstance(chosen, Metric) and not labels and truth is None:
            raise UserError(f"metric '{metric}' compares with a reference; add --reference")
    tally = _Tally(start, truth, chosen, source.name if source else None)
    if source:
        tally.read(source, ports)
    for arrays in feeds:
        tally.compare(arrays)
    after, before = tally.scores(source)
    change = metrics.change(chosen, before, after, seed) if chosen and before and after else None
    outputs = tally.errors.rows()
    failures, needed = [], None
    if change and max_drop is not None:
        budget = metrics.budget(str(max_drop), change.before)
        if not change.within(budget):
            needed = change.samples_needed(budget)
            failures.append(_over_budget(change, budget, needed))
    if min_sqnr is not None:
        failures += [
            f"output '{o.name}': {o.sqnr:.1f} dB, under {min_sqnr:g} dB" for o in outputs if not o.sqnr >= min_sqnr
        ]
    if min_agreement is not None:
        failures += _disagreeing(outputs, min_agreement)
    if not gated:
        failures += [f"output '{o.name}': {o.mismatch}" for o in outputs if o.mismatch]
    rewriting = _rewriting(start, place, feeds or inputs.from_data(cast(Data, source), ports, 1))
    pairs, other_pairs = tally.class_pairs()
    return Validation(
        model=str(model),
        reference=None if reference is None else str(reference),
        outputs=outputs,
        score=after.value if after else None,
        metric=change,
        failures=failures,
        met=not failures,
        target=str(place),
        reference_target=None if reference is None else str(there),
        classes=[] if pairs is None else classes.class_scores(pairs),
        reference_classes=[] if other_pairs is None else classes.class_scores(other_pairs),
        macro=None if pairs is None else classes.macro(pairs),
        reference_macro=None if other_pairs is None else classes.macro(other_pairs),
        samples_needed=needed,
        rewriting=rewriting,
        shapes=tally.shapes,
        padding=tally.padding,
        warnings=_suspicions(rewriting, str(model)),
    )


class _Tally:
    """What is added up over all runs of a model and its reference."""

    def __init__(
        self,
        start: pipeline.Start,
        truth: pipeline.Start | None,
        metric: Metric | CustomMetric | None,
        source: str | None,
    ) -> None:
        self._start, self._truth, self._metric, self._source = start, truth, metric, source
        self.errors = OutputErrors(_RTOL)
        self.shapes: list[dict[str, list[int]]] = []
        self._padding = Padding(truth.session) if truth else None
        self._rows: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        self._pairs: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])

    @property
    def padding(self) -> str | None:
        """The input that marks padding."""
        return self._padding.mask if self._padding else None

    def compare(self, feeds: Arrays, samples: int | None = None) -> tuple[Arrays, Arrays | None]:
        """Run both models once, add up the errors of the outputs, and return them."""
        try:
            actual = self._start.session.run(feeds)
        except ExecutionError as error:
            raise UserError(f"{self._source}: the model does not run on this data: {error}") from None
        try:
            expected = self._truth.session.run(feeds) if self._truth else None
        except ExecutionError as error:
            raise UserError(f"the models do not take the same inputs: {error}") from None
        shapes = {name: list(array.shape) for name, array in feeds.items()}
        if shapes not in self.shapes:
            self.shapes.append(shapes)
        if self._padding and expected is not None:
            if list(expected) != list(actual):
                raise UserError(
                    f"the models have different outputs: {', '.join(actual)} and {', '.join(expected)} in the reference"
                )
            self._padding.observe(feeds, expected)
            actual, expected = (self._padding.blanked(arrays, feeds) for arrays in (actual, expected))
            self.errors.add(expected, actual, samples)
        return actual, expected

    def read(self, data: Data, ports: Sequence[Port]) -> None:
        """Run both models on a whole data set, and keep what the metric needs."""
        for feeds, labels, count in fitted_batches(data, ports):
            actual, expected = self.compare(feeds, count)
            if not isinstance(self._metric, Metric):
                continue
            for outputs, rows, pairs in zip((actual, expected), self._rows, self._pairs, strict=True):
                if outputs is None:
                    continue
                rows.append(metrics.batch_rows(self._metric, outputs, labels, expected, count, data.name))
                found = metrics.class_pairs(outputs, labels, count) if labels is not None else None
                if found is not None:
                    pairs.append(found)

    def scores(self, data: Data | None) -> tuple[Score | None, Score | None]:
        """Return the metric of the model and of the reference, where there are any."""
        if data is None or self._metric is None:
            return None, None
        if isinstance(self._metric, CustomMetric):
            ports = runtime.model_inputs(self._start.model)
            scored = [
                metrics.evaluate(self._metric, s.session, data, ports) if s else None
                for s in (self._start, self._truth)
            ]
            return scored[0], scored[1]
        after = metrics.score(self._metric, self._rows[0], data.name)
        return after, metrics.score(self._metric, self._rows[1], data.name) if self._truth else None

    def class_pairs(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return predicted and actual classes of the model and of the reference, [N, 2], where labels are classes."""
        mine, others = (np.concatenate(pairs) if pairs else None for pairs in self._pairs)
        return mine, others


def _feeds(
    start: pipeline.Start,
    data: Data | None,
    batch: Sequence[int],
    axes: Mapping[str, Sequence[int]],
    seed: int,
    name: str,
) -> list[dict[str, np.ndarray]]:
    """Return inputs of the sizes asked for, or of a few sizes; of data that will be read anyway, a single sample."""
    ports = runtime.model_inputs(start.model)
    if data is not None:
        data.check(ports)
        wanted = batch or ((1,) if batch_size(ports, 0) == 0 else ())
        return [feeds for size in wanted for feeds, _, _ in itertools.islice(fitted_batches(data, ports, size), 1)]
    if not batch and not axes:
        return pipeline.feeds_for(start, None, seed, name)
    sizes = itertools.product(batch or (1,), *axes.values())
    return [
        inputs.of_batch(start.model, start.session, size, seed, dict(zip(axes, others, strict=True)))
        for size, *others in sizes
    ]


def _rewriting(start: pipeline.Start, target: Target, feeds: Sequence[Arrays]) -> list[OutputError]:
    """Compare the model with itself as the runtime executes it when it does not rewrite the graph."""
    if target.level == "none" or target.runtime == "reference":
        return []
    try:
        plain = runtime.open_session(start.model, dataclasses.replace(target, level="none"))
    except ExecutionError:  # some models run only after rewriting
        return []
    errors = OutputErrors(_RTOL)
    for arrays in feeds:
        try:
            errors.add(plain.run(arrays), start.session.run(arrays))
        except ExecutionError:
            return []
    return errors.rows()


def _suspicions(rewriting: Sequence[OutputError], model: str) -> list[str]:
    return [
        f"the runtime's own optimizer changes output '{o.name}' ({o.mismatch}; {o.sqnr:.1f} dB left): it may contain a "
        f"wrong fusion; look at: graphopt bisect {model} {model} --reference-target 'cpu{{level=none}}'"
        for o in rewriting
        if o.mismatch and not o.sqnr >= _SUSPICIOUS
    ]


def _over_budget(change: Change, budget: float, needed: int | None) -> str:
    end = f", up to {change.ci95[1]:.4f} (95 %)" if change.ci95 else ""
    more = f"; about {needed:,} samples would settle it, these are {change.samples:,}" if needed else ""
    return f"{change.name} drops by {change.drop:.4f}{end}; the budget is {budget:g}{more}"


def _disagreeing(outputs: Sequence[OutputError], least: float) -> list[str]:
    found = [o for o in outputs if o.agreement is not None or o.mismatch]
    if not any(o.agreement is not None for o in found):
        raise UserError("no output has classes on axis 1, which --min-agreement compares; use --min-sqnr")
    return [
        f"output '{o.name}': {o.agreement or 0:.4f} of the classes agree, under {least:g}"
        for o in found
        if not (o.agreement or 0) >= least
    ]
