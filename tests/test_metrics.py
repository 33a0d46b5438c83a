"""Every metric against a value worked out by hand; budgets, intervals, and data that does not fit."""

from __future__ import annotations

import math

import numpy as np
import pytest

from graphopt import metrics
from graphopt.data import ArrayData
from graphopt.errors import UsageError, UserError
from graphopt.metrics import Change, Score
from graphopt.runtime import Port, Session

PORTS = (Port("x", None, ("N",)),)


class Echo(Session):
    """A model whose output is a function of its input x."""

    def __init__(self, function=lambda x: x):
        self._function = function

    def run(self, feeds, outputs=None):
        return {"y": self._function(feeds["x"]), "second": np.zeros(1)}


def evaluate(name, outputs, labels=None, reference=None):
    """Score outputs that a model echoes, against labels or against what the reference makes of them."""
    arrays = {"x": np.asarray(outputs)} | ({} if labels is None else {"labels": np.asarray(labels)})
    truth = Echo(lambda x: np.asarray(reference)) if reference is not None else None
    return metrics.evaluate(metrics.find(name), Echo(), ArrayData("arrays", arrays), PORTS, truth)


SCORES = np.array([[0.1, 0.9, 0], [0.8, 0.1, 0.1], [0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])  # classes 1, 0, 2, 0


@pytest.mark.parametrize(
    ("name", "outputs", "labels", "value"),
    [
        ("accuracy", SCORES, [1, 0, 2, 0], 1.0),
        ("accuracy", SCORES, [1, 0, 2, 1], 0.75),
        ("accuracy", np.array([3, 1, 2]), [3, 1, 0], 2 / 3),  # the model puts out classes itself
        ("accuracy", np.array(["cat", "dog"], object), np.array(["cat", "cat"], object), 0.5),
        ("top5", np.eye(6)[[0, 1]] * 9 + np.arange(6.0), [0, 1], 1.0),
        ("top5", np.tile(np.arange(6.0), (4, 1)), [0, 1, 5, 3], 0.75),
        # class 0: 2 predicted, 1 of them right, 2 actual. class 1: 1, 1, 1. class 2: 1, 0 right, 1 actual.
        ("precision", SCORES, [1, 0, 0, 2], (1 / 2 + 1 + 0) / 3),
        ("recall", SCORES, [1, 0, 0, 2], (1 / 2 + 1 + 0) / 3),
        ("recall", SCORES, [1, 0, 2, 1], (1 / 1 + 1 / 2 + 1) / 3),
        ("precision", SCORES, [1, 0, 2, 1], (1 / 2 + 1 + 1) / 3),
        ("f1", SCORES, [1, 0, 2, 1], (2 / 3 + 2 / 3 + 1) / 3),
        ("mse", np.array([[1.0, 2], [3, 4]]), [[1.0, 4], [3, 4]], 1.0),
        ("mse", np.array([[1.0], [3]]), [2.0, 5], 2.5),
    ],
)
def test_metrics_that_need_labels(name, outputs, labels, value):
    assert evaluate(name, outputs, labels).value == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "outputs", "reference", "value"),
    [
        ("agreement", SCORES, SCORES * 7, 1.0),
        ("agreement", SCORES, SCORES[[0, 1, 2, 2]], 0.75),
        ("agreement", np.array([1, 2]), np.array([1, 3]), 0.5),
        ("cosine", np.array([[1.0, 0], [1, 1]]), np.array([[2.0, 0], [1, 0]]), (1 + math.sqrt(0.5)) / 2),
    ],
)
def test_metrics_that_need_a_reference(name, outputs, reference, value):
    assert evaluate(name, outputs, reference=reference).value == pytest.approx(value, rel=1e-12)


def test_classes_lie_on_axis_one_of_a_segmentation():
    outputs = np.zeros((2, 3, 2, 2))
    outputs[:, 1] = 1.0
    labels = np.ones((2, 2, 2), int)
    labels[0, 0, 0] = 2
    assert evaluate("accuracy", outputs, labels).value == pytest.approx(7 / 8)
    assert evaluate("top5", outputs, labels).value == 1.0


def test_the_interval_of_a_segmentation_counts_samples_not_pixels():
    outputs = np.zeros((4, 7, 3, 3))
    outputs[:, :5] = 1.0
    for name in ("accuracy", "top5"):
        score = evaluate(name, outputs, np.zeros((4, 3, 3), int))
        assert score.rows.shape == (4, 1)
        assert metrics.change(metrics.find(name), score, score, 0).drop == 0


def test_data_is_streamed_in_batches_of_the_models_size():
    sizes = []
    data = ArrayData("arrays", {"x": np.tile(SCORES, (3, 1)), "labels": np.tile([1, 0, 2, 1], 3)})
    session = Echo(lambda x: sizes.append(len(x)) or x)
    ports = (Port("x", None, (4, 3)),)
    assert metrics.evaluate(metrics.find("accuracy"), session, data, ports).value == 0.75
    assert sizes == [4, 4, 4]


@pytest.mark.parametrize(
    ("name", "outputs", "labels"),
    [
        ("accuracy", SCORES, [[1], [0], [2], [0]]),
        ("accuracy", np.zeros((4, 3, 2)), [1, 0, 2, 0]),
        ("top5", SCORES, [[1], [0], [2], [0]]),
        ("f1", np.zeros((4, 3, 2)), [1, 0, 2, 0]),
        ("mse", SCORES, [1.0, 2, 3, 4]),
        ("mse", np.zeros((2, 2, 3)), np.zeros((2, 3, 2))),
    ],
)
def test_labels_of_another_shape_are_refused(name, outputs, labels):
    with pytest.raises(UserError, match=r"labels have shape \[.*\], but the model's first output has shape \["):
        evaluate(name, outputs, labels)


@pytest.mark.parametrize("name", ["accuracy", "precision", "recall", "f1", "top5"])
@pytest.mark.parametrize("outputs", [np.array([0.2, 0.7, 0.9, 0.1]), np.array([[0.2], [0.7], [0.9], [0.1]])])
def test_one_score_per_sample_is_no_class(name, outputs):
    """A sigmoid's output is neither a class nor one score per class: an argmax of it would always be 0."""
    with pytest.raises(UserError, match="one score per class"):
        evaluate(name, outputs, [0, 1, 1, 0])


def test_top5_needs_scores_not_classes():
    with pytest.raises(UserError, match="one score per class"):
        evaluate("top5", np.array([3, 1, 2]), [3, 1, 2])


def test_missing_labels_are_told():
    with pytest.raises(UserError, match="has no labels, which metric 'accuracy' needs"):
        evaluate("accuracy", SCORES)


@pytest.mark.parametrize("name", ["cosine", "agreement"])
def test_an_output_without_samples_is_refused(name):
    total = Echo(np.sum)
    with pytest.raises(UserError, match="first output"):
        metrics.evaluate(metrics.find(name), total, ArrayData("arrays", {"x": SCORES}), PORTS, total)


def test_cosine_of_words_is_refused():
    words = np.array([["a"], ["b"]], object)
    with pytest.raises(UserError, match="first output"):
        evaluate("cosine", words, reference=words)


def test_data_that_yields_nothing_the_second_time_is_told():
    class Once(ArrayData):
        def batches(self, size, limit=None):
            return iter(())

    with pytest.raises(UserError, match="once: yields no batches"):
        metrics.evaluate(metrics.find("cosine"), Echo(), Once("once", {"x": SCORES}), PORTS, Echo())


def test_unknown_metrics_suggest_the_nearest():
    with pytest.raises(UsageError, match=r"unknown metric 'acuracy'; did you mean 'accuracy'\?, or package"):
        metrics.find("acuracy")


def test_a_custom_metric_gets_predict_and_data(tmp_path, monkeypatch):
    (tmp_path / "my_metric.py").write_text(
        "def second(predict, data):\n"
        "    return sum(float(predict(feeds)['y'].sum()) for feeds, _ in data.batches(2))\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    metric = metrics.find("my_metric:second")
    score = metrics.evaluate(metric, Echo(), ArrayData("a", {"x": np.arange(5.0)}), PORTS)
    assert score == Score(10.0, None)
    assert metrics.change(metric, score, Score(9.5, None), 0) == Change("my_metric:second", 10.0, 9.5, 0.5, None)
    for name, message in [
        ("my_metric:third", "module my_metric has no 'third'"),
        ("my_metric:number", "is not a function"),
        ("no_such_module_here:f", "cannot import no_such_module_here"),
        (":f", ":f"),
        ("..:f", "..:f"),
    ]:
        with pytest.raises(UserError, match=message):
            metrics.find(name)


@pytest.mark.parametrize(
    ("text", "before", "value"),
    [("0.005", 0.9, 0.005), ("0.5%", 0.8, 0.004), ("0", 0.9, 0), ("1%", -2.0, 0.02), ("1e-3", 1.0, 0.001)],
)
def test_budgets(text, before, value):
    assert metrics.budget(text, before) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "%", "a little", "-0.1", "-1%", "nan", "0.5%%", "0,5"])
def test_bad_budgets(text):
    with pytest.raises(UsageError, match="--max-drop"):
        metrics.budget(text, 1.0)


def rows(values):
    return Score(float(np.mean(values)), np.asarray(values, float)[:, None])


def test_change_of_a_proportion_has_an_honest_interval():
    change = metrics.change(metrics.find("accuracy"), rows([1] * 50), rows([1] * 50), 0)
    assert change.drop == 0
    assert change.ci95[0] < 0 < change.ci95[1]


def test_change_of_a_metric_that_should_be_low():
    before, after = rows([1.0] * 30), rows([1.5] * 30)
    change = metrics.change(metrics.find("mse"), before, after, 0)
    assert (change.before, change.after, change.drop) == (1.0, 1.5, 0.5)
    assert change.ci95 == pytest.approx((0.5, 0.5))
    assert metrics.change(metrics.find("mse"), after, before, 0).drop == -0.5


def test_change_pairs_the_samples():
    """Samples that vary wildly, but alike before and after, leave the drop certain."""
    base = np.random.default_rng(0).standard_normal(200) * 100
    change = metrics.change(metrics.find("cosine"), rows(base), rows(base - 0.5), 0)
    assert change.ci95 == pytest.approx((0.5, 0.5), abs=1e-9)


@pytest.mark.parametrize(
    ("drop", "ci95", "within"),
    [(0.0, (-0.01, 0.01), True), (0.005, (0, 0.011), False), (0.005, None, True), (0.02, None, False)],
)
def test_within_a_budget_counts_the_interval(drop, ci95, within):
    assert Change("m", 1, 1 - drop, drop, ci95).within(0.01) is within


def test_a_score_that_is_not_a_number_is_within_no_budget():
    assert not Change("m", 1, math.nan, math.nan, None).within(1e9)
    assert not Change("m", 1, math.nan, math.nan, (math.nan, math.nan)).within(1e9)


def test_perfect_is_the_reference_against_itself():
    like = evaluate("cosine", SCORES, reference=SCORES[::-1])
    perfect = metrics.perfect(metrics.find("cosine"), like)
    assert perfect.value == 1.0
    assert perfect.rows.shape == like.rows.shape
