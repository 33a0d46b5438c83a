"""Does a lossy step pay? The referee's decisions, with clocks and models that do as they are told."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from graphopt import metrics, pipeline, referee, target
from graphopt.data import ArrayData
from graphopt.errors import UserError
from graphopt.latency import Latency
from graphopt.referee import Exam, Referee
from graphopt.runtime import ExecutionError, Port, Session

PORTS = (Port("x", None, ("N",)),)
LABELS = np.arange(200) % 4
X = np.eye(4, dtype=np.float32)[LABELS]


class Wrong(Session):
    """A classifier that gets some of the 200 samples wrong."""

    def __init__(self, wrong=0):
        self.wrong = wrong

    def run(self, feeds, outputs=None):
        scores = feeds["x"].copy()
        index = np.arange(len(scores))
        return {"y": np.where((index < self.wrong)[:, None], np.roll(scores, 1, axis=1), scores)}


def make(max_drop="0.02", metric="accuracy", origin=None, exam=True, labels=LABELS):
    data = ArrayData("arrays", {"x": X} | ({} if labels is None else {"labels": labels}))
    start = SimpleNamespace(session=origin or Wrong(), model="origin")
    chosen = Exam(metrics.find(metric), data, max_drop) if exam else None
    return Referee(start, target.find("cpu"), (Port("x", None, (200, 4)),), chosen, {"x": X}, 1, seed=0)


@pytest.fixture
def clock(monkeypatch):
    """Decide what every latency comparison measures, and how many bytes models have."""

    def measured(speedup, low, high, before=1000, after=1000):
        latency = Latency(1, speedup, 1.0, speedup, (low, high))
        monkeypatch.setattr(referee, "compare_latency", lambda *args, **kwargs: latency)
        monkeypatch.setattr(pipeline, "measure", lambda model: (1, before if model == "origin" else after))

    measured(1.5, 1.4, 1.6)
    return measured


def test_faster_and_within_the_budget_is_kept(clock):
    verdict = make().judge("current", "candidate", Wrong())
    assert verdict.keep
    assert verdict.reason == "accuracy 1.0000 to 1.0000, 1.50x the speed (1.40 to 1.60)"


def test_a_drop_over_the_budget_is_not_kept_however_fast(clock):
    verdict = make().judge("current", "candidate", Wrong(20))
    assert not verdict.keep
    assert verdict.reason == "accuracy 1.0000 to 0.9000: a drop of 0.1000 is over the budget of 0.02"


def test_a_drop_that_may_be_over_the_budget_is_not_kept(clock):
    verdict = make("0.02").judge("current", "candidate", Wrong(3))
    assert not verdict.keep
    assert "a drop of 0.0150 may be up to 0.0" in verdict.reason
    assert "evaluation samples would settle it" in verdict.reason
    assert make("0.05").judge("current", "candidate", Wrong(3)).keep


def test_a_relative_budget_is_relative_to_the_input_model(clock):
    assert make("20%", origin=Wrong(100)).budget == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("measured", "keep"),
    [
        ((1.5, 1.01, 2.0, 1000, 1000), True),
        ((1.01, 0.99, 1.03, 1000, 1000), False),
        ((1.00, 0.98, 1.02, 1000, 300), True),
        ((1.00, 0.98, 1.02, 1000, 900), True),
        ((1.00, 0.98, 1.02, 1000, 901), False),
        ((1.00, 0.90, 1.10, 1000, 300), False),
        ((0.90, 0.85, 0.95, 1000, 300), False),
        ((0.985, 0.98, 0.99, 1000, 300), False),
    ],
)
def test_what_pays(clock, measured, keep):
    """Certainly faster, or as fast and clearly smaller."""
    clock(*measured)
    verdict = make().judge("current", "candidate", Wrong())
    assert verdict.keep is keep
    assert verdict.reason.startswith("does not pay on this target: ") is not keep


def test_without_an_exam_only_the_clock_counts(clock):
    judge = make(exam=False)
    assert judge.change(Wrong(200)) is None
    assert judge.judge("current", "candidate", Wrong(200)).keep


def test_the_input_model_against_itself():
    origin = Wrong(10)
    change = make(origin=origin).change(origin)
    assert (change.before, change.after, change.drop) == (0.95, 0.95, 0)


def test_a_score_is_computed_once_per_session():
    runs = []

    class Counting(Wrong):
        def run(self, feeds, outputs=None):
            runs.append(1)
            return super().run(feeds)

    judge, session = make(), Counting()
    assert judge.change(session) is judge.change(session)
    assert len(runs) == 1


def test_sessions_that_are_gone_leave_no_scores_behind():
    """A later session may get the address of an earlier one; it must not get its score."""
    judge = make()
    for wrong in (100, 0, 50, 10, 0):
        session = Wrong(wrong)
        assert judge.change(session).after == 1 - wrong / 200
        del session


def test_fidelity_without_labels(clock):
    judge = make(metric="agreement", labels=None)
    assert judge.judge("current", "candidate", Wrong()).keep
    assert "agreement 1.0000 to 0.9000" in judge.judge("current", "candidate", Wrong(20)).reason


def test_data_on_which_the_model_does_not_run():
    class Refusing(Session):
        def run(self, feeds, outputs=None):
            raise ExecutionError("index out of range")

    with pytest.raises(UserError, match="arrays: the model does not run on this data: index out of range"):
        make(origin=Refusing())


@pytest.mark.parametrize(
    ("measured", "keep"), [((1.1, 1.05, 1.2), True), ((1.02, 0.99, 1.05), False), ((0.9, 0.8, 0.95), False)]
)
def test_exact_candidates_are_judged_by_speed_alone(clock, measured, keep):
    """Their metric is that of the model that they replace, whatever a small sample might say; as fast is not faster."""
    clock(*measured, after=1)
    verdict = make().judge_speed("current", "candidate", Wrong(200))
    assert verdict.keep is keep
    assert verdict.reason.startswith("verified, " if keep else "does not pay on this target: ")
