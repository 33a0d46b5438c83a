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


# the whole data set, classes, sizes, the runtime itself


def test_errors_are_those_of_the_whole_data_set(model, reference):
    x = np.zeros((300, 4), np.float32)
    x[250] = [7, 0, 0, 0]  # the only sample that shows the wrong weight
    logits = package.validate(model, reference, data={"x": x}).outputs[0]
    assert logits.max_error == 14.0
    assert logits.mean_error == pytest.approx(14 / (301 * 4)), "and a single sample on top"


def test_cosine_and_agreement(model, reference, data):
    logits, best = package.validate(model, reference, data={"x": X}).outputs
    assert logits.cosine == pytest.approx((300 - 100 - 1) / 401)
    assert logits.agreement == best.agreement == pytest.approx(300 / 401)


def test_scalars_and_text_have_no_classes(model_file):
    path = model_file("g (float[N] x) => (float y, float[N] z) { y = ReduceSum<keepdims = 0>(x) z = Neg(x) }")
    y, z = package.validate(path, path).outputs
    assert (y.agreement, z.agreement, y.cosine) == (None, None, None)


@pytest.mark.parametrize(("least", "code"), [("0.7", 0), ("0.75", 3), ("1", 3)])
def test_the_gate_on_agreement(graphopt, model, reference, data, least, code):
    args = ("validate", model, "--reference", reference, "--data", data)
    ran = graphopt(*args, "--min-agreement", least, "--json")
    assert ran.code == code
    if code:
        assert ran.json["failures"][0] == f"output 'logits': 0.7481 of the classes agree, under {float(least):g}"


def test_agreement_needs_classes(graphopt, model_file):
    path = model_file("g (float[N] x) => (float[N] y) { y = Neg(x) }")
    ran = graphopt("validate", path, "--reference", path, "--min-agreement", "0.5")
    assert "no output has classes on axis 1" in ran.error
    assert ran.code == 1


def test_classes(graphopt, model, reference, data):
    """Class 0 is taken for another, which therefore loses precision."""
    args = ("validate", model, "--reference", reference, "--data", data, "--metric", "accuracy", "--max-drop", "1")
    found = graphopt(*args, "--json").json
    assert [row["label"] for row in found["classes"]] == [0, 1, 2, 3]
    assert [row["support"] for row in found["classes"]] == [100] * 4
    assert [row["recall"] for row in found["classes"]] == [0, 1, 1, 1]
    assert [row["precision"] for row in found["classes"]] == [0, 0.5, 1, 1]
    assert [row["f1"] for row in found["reference_classes"]] == [1] * 4
    assert found["macro"] == pytest.approx({"precision": 2.5 / 4, "recall": 3 / 4, "f1": (2 / 3 + 2) / 4})
    assert found["reference_macro"] == {"precision": 1, "recall": 1, "f1": 1}
    shown = graphopt(*args).out
    assert "1.0000 -> 0.5000" in shown
    assert "macro" in shown
    assert "McNemar p = " in shown
    alone = graphopt("validate", model, "--data", data, "--metric", "accuracy", "--json").json
    assert (len(alone["classes"]), alone["reference_classes"], alone["reference_macro"]) == (4, [], None)


def test_of_many_classes_those_that_lost_most_are_shown(graphopt, model_file, tmp_path):
    text = "g (float[N,30] x) => (float[N,30] y) <float[30] w = {%s}> { y = Mul(x, w) }"
    one = model_file(text % ", ".join(["1.0"] * 30), "one.onnx")
    two = model_file(text % ", ".join(["1.0"] * 17 + ["-1.0"] + ["1.0"] * 12), "two.onnx")
    labels = np.arange(60) % 30
    np.savez(tmp_path / "d.npz", x=np.eye(30, dtype=np.float32)[labels], labels=labels)
    args = ("--data", tmp_path / "d.npz", "--metric", "accuracy", "--max-drop", "1")
    shown = graphopt("validate", two, "--reference", one, *args).out
    assert "the 20 that lost most F1 of 30 classes" in shown
    rows = [line.split()[0] for line in shown.partition("class")[2].splitlines()[1:]]
    assert "17" in rows
    assert "29" not in rows


def test_how_many_samples_would_be_needed(model, reference):
    """A drop of 1 in 100 with a budget of 2 in 100 is open at 300 samples and settled at those that are asked for."""

    def few_wrong(count):
        x = np.eye(4, dtype=np.float32)[np.full(count, 1)]
        x[::100] = np.eye(4, dtype=np.float32)[0]
        return {"x": x, "labels": x.argmax(1)}

    def validated(count):
        return package.validate(model, reference, data=few_wrong(count), metric="accuracy", max_drop=0.02)

    few = validated(300)
    assert not few.met
    assert few.samples_needed > 300
    assert f"about {few.samples_needed:,} samples would settle it, these are 300" in few.failures[0]
    assert validated(100 * round(few.samples_needed / 100 + 1)).met
    assert (
        package.validate(model, reference, data=few_wrong(300), metric="accuracy", max_drop=0.005).samples_needed
        is None
    )


def test_sizes(graphopt, model_file):
    path = model_file("g (float[B,S,4] x) => (float[B,S,4] y) { y = Neg(x) }")
    ran = graphopt("validate", path, "--reference", path, "--batch", "1,3", "--axis", "S=2,5", "--json")
    assert [shape["x"] for shape in ran.json["shapes"]] == [[b, s, 4] for b in (1, 3) for s in (2, 5)]
    assert len(graphopt("validate", path, "--reference", path, "--json").json["shapes"]) == 3
    assert graphopt("validate", path, "--axis", "T=2").code == 2


def test_sizes_of_data(model, reference):
    done = package.validate(model, reference, data={"x": X[:100]}, batch=[7, 50])
    assert [shape["x"][0] for shape in done.shapes] == [64, 36, 7, 50]
    with pytest.raises(UserError, match="leave out --data"):
        package.validate(model, reference, data={"x": X}, axes={"N": [2]})


def test_an_error_at_one_size_only_is_found(model_file):
    fine = model_file("g (float[N,4] x) => (float[N,4] y) { y = Neg(x) }", "fine.onnx")
    hard = model_file(
        "g (float[N,4] x) => (float[N,4] y) <int64 one = {1}, int64 zero = {0}> "
        "{ s = Shape(x) n = Gather(s, zero) c = Equal(n, one) y = If(c) <then_branch = t () => (float[N,4] p) "
        "{ p = Neg(x) }, else_branch = e () => (float[N,4] q) { q = Abs(x) }> }",
        "hard.onnx",
    )
    assert package.validate(hard, fine, batch=[1]).met
    assert not package.validate(hard, fine, batch=[1, 2]).met


def test_one_target_against_another(graphopt, reference):
    ran = graphopt("validate", reference, "--reference-target", "reference", "--json")
    assert (ran.code, ran.json["reference"], ran.json["reference_target"]) == (0, str(reference), "reference")
    ran = graphopt(
        "validate", reference, "--reference-target", "cpu{level=none}", "--target", "cpu{threads=1}", "--json"
    )
    assert (ran.json["target"], ran.json["reference_target"]) == ("cpu{threads=1}", "cpu{level=none}")
    assert ran.json["met"] is True


def test_what_the_runtime_makes_of_the_graph_is_compared(graphopt, reference, monkeypatch):
    ran = graphopt("validate", reference, "--json")
    assert [(row["name"], row["mismatch"]) for row in ran.json["rewriting"]] == [("logits", None), ("best", None)]
    assert ran.json["warnings"] == []
    from graphopt import runtime

    opened = runtime.open_session

    class Wrong(runtime.Session):
        def __init__(self, inner):
            self.inner = inner

        def run(self, feeds, outputs=None):
            return {name: -array for name, array in self.inner.run(feeds, outputs).items()}

    monkeypatch.setattr(
        runtime, "open_session", lambda m, t: Wrong(opened(m, t)) if t.level == "none" else opened(m, t)
    )
    ran = graphopt("validate", reference, "--json")
    assert ran.code == 0, "it warns; --reference-target gates"
    assert "the runtime's own optimizer changes output 'logits'" in ran.json["warnings"][0]
    assert f"graphopt bisect {reference} {reference} --reference-target 'cpu{{level=none}}'" in ran.json["warnings"][0]
