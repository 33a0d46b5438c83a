"""Score models by a metric, against the float model."""

from __future__ import annotations

from graphopt import metrics
from graphopt.data import Data
from graphopt.runtime import Port, Session


class Referee:
    """Scores models by a metric, all on the same data.

    Attributes:
        name: of the metric.
        before: the float model's score.
    """

    def __init__(
        self, metric: metrics.Metric | metrics.CustomMetric, data: Data, reference: Session, ports: tuple[Port, ...]
    ) -> None:
        """Score the float model.

        Raises:
            UserError: the data does not fit the model, or has no labels where the metric needs them.
        """
        data.check(ports, labels=isinstance(metric, metrics.Metric) and metric.needs == "labels")
        self._metric, self._data, self._reference, self._ports = metric, data, reference, ports
        self.name, self.before = metric.name, self.score(reference)

    def score(self, session: Session) -> float:
        """Return a model's score."""
        return metrics.evaluate(self._metric, session, self._data, self._ports, self._reference).value

    def drop(self, session: Session) -> float:
        """Return by how much a model is worse than the float model."""
        lower = isinstance(self._metric, metrics.Metric) and not self._metric.higher_is_better
        return (self.score(session) - self.before) * (1 if lower else -1)
