"""`validate`: errors of every output, the change of a metric, and gates."""

from __future__ import annotations

import math

import numpy as np
import pytest

import graphopt as package
from graphopt.errors import UserError

TEXT = """g (float[N,4] x) => (float[N,4] logits, int64[N] best)
<float[4] w = {1.0, 1.0, 1.0, 1.0}> { logits = Mul(x, w) best = ArgMax<axis = 1, keepdims = 0>(logits) }"""
LABELS = np.arange(400) % 4
X = np.eye(4, dtype=np.float32)[LABELS]


@pytest.fixture
def reference(model_file):
    return model_file(TEXT, "reference.onnx")


@pytest.fixture
def model(model_file):
    """A model that gets one class of four wrong."""
    return model_file(TEXT.replace("{1.0,", "{-1.0,"), "model.onnx")


@pytest.fixture
def data(tmp_path):
    np.savez(tmp_path / "test.npz", x=X, labels=LABELS)
    return tmp_path / "test.npz"


def test_without_a_reference_a_model_that_runs_is_fine(graphopt, model):
    ran = graphopt("validate", model, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["met"] is True
    assert ran.json["outputs"] == []
    assert "the model loads and runs" in graphopt("validate", model).out


def test_the_metric_of_the_model_alone(graphopt, model, data):
    ran = graphopt("validate", model, "--data", data, "--metric", "accuracy", "--json")
    assert ran.code == 0
    assert ran.json["score"] == 0.75
    assert ran.json["metric"] is None
    assert "accuracy 0.7500" in graphopt("validate", model, "--data", data, "--metric", "accuracy").out


def test_equal_models(graphopt, reference, data):
    ran = graphopt("validate", reference, "--reference", reference, "--data", data, "--json")
    assert ran.code == 0
    for row in ran.json["outputs"]:
        assert (row["max_error"], row["mean_error"], row["sqnr"], row["mismatch"]) == (0, 0, None, None)
    shown = graphopt("validate", reference, "--reference", reference).out
    assert "the model loads and runs and meets its gates" in shown


def test_errors_of_every_output(model, reference):
    one = np.array([[1, 2, 0, 0], [3, 0, 0, 4]], np.float32)  # the first weight is -1: errors of 2 and 6
    done = package.validate(model, reference, data={"x": one})
    logits, best = done.outputs
    assert (logits.name, logits.max_error) == ("logits", 6.0)
    assert logits.sqnr == pytest.approx(
        10 * math.log10((5 + 25 + 5) / (4 + 36 + 4))
    )  # one of the feeds is a single sample
    assert (best.name, best.mismatch) == ("best", None)
    assert not done.met
    assert done.failures[0].startswith("output 'logits': largest error 6")


def test_equality_is_the_gate_when_there_is_no_other(graphopt, model, reference, data):
    ran = graphopt("validate", model, "--reference", reference, "--data", data, "--json")
    assert ran.code == 3
    assert ran.json["met"] is False
    assert "output 'logits': largest error" in ran.json["failures"][0]
    ran = graphopt("validate", model, "--reference", reference, "--data", data)
    assert ran.code == 3
    assert "gate not met: output 'logits'" in ran.out


@pytest.mark.parametrize(
    ("gate", "code"),
    [
        (["--max-drop", "0.4"], 0),
        (["--max-drop", "0.26"], 3),
        (["--max-drop", "0.1"], 3),
        (["--max-drop", "40%"], 0),
        (["--max-drop", "10%"], 3),
        (["--min-sqnr", "-3"], 0),
        (["--min-sqnr", "20"], 3),
        (["--max-drop", "0.4", "--min-sqnr", "20"], 3),
    ],
)
def test_gates(graphopt, model, reference, data, gate, code):
    ran = graphopt("validate", model, "--reference", reference, "--data", data, "--metric", "accuracy", *gate, "--json")
    assert ran.code == code
    assert ran.json["met"] is (code == 0)
    assert bool(ran.json["failures"]) is (code == 3)
    metric = ran.json["metric"]
    assert (metric["before"], metric["after"], metric["drop"]) == (1.0, 0.75, 0.25)
    assert ran.json["score"] == 0.75
    assert metric["ci95"][0] < 0.25 < metric["ci95"][1]


def test_a_drop_within_its_interval_is_told(graphopt, model, reference, data):
    ran = graphopt(
        "validate", model, "--reference", reference, "--data", data, "--metric", "accuracy", "--max-drop", "0.26"
    )
    assert "gate not met: accuracy drops by 0.2500, up to 0.2" in ran.out


def test_a_metric_that_compares_with_the_reference(graphopt, model, reference, data):
    ran = graphopt(
        "validate",
        model,
        "--reference",
        reference,
        "--data",
        data,
        "--metric",
        "agreement",
        "--max-drop",
        "1",
        "--json",
    )
    assert (ran.json["metric"]["before"], ran.json["metric"]["after"]) == (1.0, 0.75)


@pytest.mark.parametrize("weights", ["inf, 1.0", "nan, 1.0"])
def test_outputs_that_are_not_finite(graphopt, model_file, weights, tmp_path):
    """Infinities in the same places are equal, and no warning is printed about them."""
    text = "g (float[N,2] x) => (float[N,2] y) { z = Constant<value = float {0.0}>() a = Div(x, z) y = Add(a, x) }"
    one, two = model_file(text, "one.onnx"), model_file(text.replace("Add(a, x)", "Sub(a, x)"), "two.onnx")
    np.savez(tmp_path / "d.npz", x=np.ones((4, 2), np.float32) * (0 if "nan" in weights else 1))
    for other in (one, two):
        ran = graphopt("validate", one, "--reference", other, "--data", tmp_path / "d.npz", "--json")
        assert (ran.code, ran.err) == (0, "")
        assert ran.json["outputs"][0]["mismatch"] is None


def test_new_infinities_fail(graphopt, model_file):
    text = "g (float[N,2] x) => (float[N,2] y) { z = Constant<value = float {1.0}>() y = Div(x, z) }"
    one, two = model_file(text, "one.onnx"), model_file(text.replace("{1.0}", "{0.0}"), "two.onnx")
    for gate in ([], ["--min-sqnr", "1"]):
        ran = graphopt("validate", two, "--reference", one, *gate, "--json")
        assert (ran.code, ran.err) == (3, "")


def test_another_type_or_shape_fails(graphopt, model_file):
    one = model_file("g (float[N,5] x) => (float[N,5] y) { y = Neg(x) }", "one.onnx")
    typed = model_file("g (float[N,5] x) => (double[N,5] y) { n = Neg(x) y = Cast<to = 11>(n) }", "typed.onnx")
    shaped = model_file("g (float[N,5] x) => (float[5,N] y) { n = Neg(x) y = Transpose(n) }", "shaped.onnx")
    for other, reason in ((typed, "type float64 instead of float32"), (shaped, "shape [5, ")):
        ran = graphopt("validate", other, "--reference", one, "--json")
        assert ran.code == 3
        assert reason in ran.json["failures"][0]
    ran = graphopt("validate", shaped, "--reference", one, "--min-sqnr", "1")
    assert ran.code == 3, "outputs of another shape have no signal in common"


WRONG = {
    "a missing model": (["none.onnx"], 1, "none.onnx: no such file"),
    "a missing reference": (["model.onnx", "--reference", "none.onnx"], 1, "none.onnx: no such file"),
    "a gate without a reference": (["model.onnx", "--min-sqnr", "3"], 1, "a gate compares with a reference; add --reference"),
    "a metric without data": (["model.onnx", "--metric", "accuracy"], 1, "needs data; add --data"),
    "a budget without a metric": (["model.onnx", "--reference", "reference.onnx", "--max-drop", "1"], 1, "add --metric"),
    "an unknown metric": (["model.onnx", "--data", "test.npz", "--metric", "acuracy"], 2, "did you mean 'accuracy'?"),
    "an unknown target": (["model.onnx", "--target", "gpu"], 2, "unknown target 'gpu'"),
    "a metric that needs a reference": (["model.onnx", "--data", "test.npz", "--metric", "cosine"], 1, "add --reference"),
    "no labels": (["model.onnx", "--data", "bare.npz", "--metric", "accuracy"], 1, "has no 'labels' array"),
    "a bad budget": (["model.onnx", "--reference", "reference.onnx", "--data", "test.npz", "--metric", "accuracy",
                      "--max-drop", "low"], 2, "--max-drop: 'low' is neither"),
    "other outputs": (["model.onnx", "--reference", "other.onnx"], 1,
                      "different outputs: logits, best and logits in the reference"),
    "other inputs": (["model.onnx", "--reference", "foreign.onnx"], 1, "the models do not take the same inputs"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_the_user_can_fix(graphopt, model, reference, data, model_file, tmp_path, monkeypatch, name):
    args, code, message = WRONG[name]
    model_file("g (float[N,4] x) => (float[N,4] logits) { logits = Neg(x) }", "other.onnx")
    model_file("g (float[N,9] z) => (float[N,9] logits, int64 best) { logits = Neg(z) best = Size(z) }", "foreign.onnx")
    np.savez(tmp_path / "bare.npz", x=X)
    monkeypatch.chdir(tmp_path)
    ran = graphopt("validate", *args)
    assert message in ran.error
    assert ran.code == code


def test_as_a_library(model, reference):
    done = package.validate(model, reference, data={"x": X, "labels": LABELS}, metric="accuracy", max_drop=0.4)
    assert done.met
    assert done.metric.drop == 0.25
    with pytest.raises(UserError, match="add --reference"):
        package.validate(model, max_drop=0.1)
