"""Outputs become what callers use."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import runtime, target
from graphopt.errors import UserError
from graphopt.passes.surgery._post_nms import Columns, Detections
from graphopt.passes.surgery.add_postprocessing import AddPostprocessing

CPU = target.find("cpu")
SCORES = "g (float[N,6] x) => (float[N,6] y) { y = Neg(x) }"
MAPS = "g (float[N,6,H,W] x) => (float[N,6,H,W] y) { y = Neg(x) }"
TWO = "g (float[N,6] x) => (float[N,6] y, float[N,6] z) { y = Neg(x)  z = Abs(y) }"


def old(opset, text):
    return f'<ir_version: 8, opset_import: ["": {opset}]>\n{text}'


def run(model, feeds):
    return runtime.open_session(model, CPU).run(feeds)


def described(model):
    return {value.name: f"{value.dtype.name}{value.shape}" for value in model.graph.outputs}


def detector(boxes, scores, through="Identity"):
    """Return a graph that gives its inputs back as boxes and scores."""
    return f"""g (float[{boxes}] i, float[{scores}] j) => (float[{boxes}] b, float[{scores}] s) {{
        b = {through}(i)  s = {through}(j)
    }}"""


def table(shape):
    return f"g (float[{shape}] x) => (float[{shape}] y) {{ y = Identity(x) }}"


def random_boxes(rng, *shape):
    """Return corners of boxes that overlap often, [..., 4]."""
    corner = rng.random((*shape, 2)) * 4
    return np.concatenate([corner, corner + 0.5 + rng.random((*shape, 2)) * 3], -1).astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "outputs"),
    [
        ("softmax", {"probabilities": "FLOAT[N,6]"}),
        ("sigmoid", {"probabilities": "FLOAT[N,6]"}),
        ("argmax", {"classes": "INT64[N]"}),
        ("top-k", {"scores": "FLOAT[N,5]", "classes": "INT64[N,5]"}),
    ],
)
def test_scores(operate, kind, outputs):
    model, step = operate(AddPostprocessing(kind=kind), SCORES)
    assert described(model) == outputs
    assert list(step.report["outputs"]) == list(outputs)
    model, _ = operate(AddPostprocessing(kind=kind, keep=True), SCORES)
    assert described(model) == {"y": "FLOAT[N,6]", **outputs}


def test_numbers(operate):
    x = -np.array([[0.0, 1.0, 3.0, 3.0, -2.0, 1.0]], np.float32)
    for kind, expected in (
        ("softmax", np.exp(-x) / np.exp(-x).sum()),
        ("sigmoid", 1 / (1 + np.exp(x))),
        ("argmax", np.array([2])),
    ):
        model, _ = operate(AddPostprocessing(kind=kind), SCORES)
        (actual,) = run(model, {"x": x}).values()
        np.testing.assert_allclose(actual, expected, rtol=1e-6)
    model, _ = operate(AddPostprocessing(kind="top-k", k=4), SCORES)
    actual = run(model, {"x": x})
    np.testing.assert_array_equal(actual["scores"], [[3, 3, 1, 1]])
    np.testing.assert_array_equal(actual["classes"], [[2, 3, 1, 5]])


@pytest.mark.parametrize("kind", ["softmax", "argmax", "top-k"])
@pytest.mark.parametrize("axis", [1, -1, 2])
def test_maps(operate, kind, axis):
    model, _ = operate(AddPostprocessing(kind=kind, axis=axis, k=2), MAPS)
    if kind == "argmax":
        assert described(model) == {
            "classes": f"INT64{ {1: '[N,H,W]', 2: '[N,6,W]', -1: '[N,6,H]'}[axis] }".replace(" ", "")
        }


def test_one_of_several_outputs(operate):
    model, _ = operate(AddPostprocessing(kind="argmax", output_name="y"), TWO)
    assert list(described(model)) == ["classes", "z"]
    model, _ = operate(AddPostprocessing(kind="top-k", output_name="y", keep=True, names=("a", "b")), TWO)
    assert list(described(model)) == ["y", "a", "b", "z"]


def test_the_old_name_is_free_again(operate):
    model, _ = operate(AddPostprocessing(kind="softmax", output_name="y", names=("y",)), TWO)
    assert list(described(model)) == ["y", "z"]
    model, _ = operate(AddPostprocessing(kind="argmax"), SCORES.replace("y", "classes"))
    assert described(model) == {"classes": "INT64[N]"}


def test_names_in_use_get_a_number(operate):
    model, _ = operate(AddPostprocessing(kind="argmax", keep=True), SCORES.replace("x", "classes"))
    assert list(described(model)) == ["y", "classes_1"]


def test_an_input_that_is_the_output(operate):
    text = "g (float[N,6] x) => (float[N,6] x) { z = Neg(x) }"
    model, _ = operate(AddPostprocessing(kind="argmax"), text)
    assert list(described(model)) == ["classes"]


def test_whole_numbers_and_halves(operate, parse):
    model, _ = operate(AddPostprocessing(kind="top-k", k=2), "g (int32[N,6] x) => (int32[N,6] y) { y = Identity(x) }")
    assert described(model) == {"scores": "INT32[N,2]", "classes": "INT64[N,2]"}
    for kind in ("softmax", "sigmoid", "top-k"):
        model, _ = operate(AddPostprocessing(kind=kind), "g (float16[N,6] x) => (float16[N,6] y) { y = Identity(x) }")
        assert model.graph.outputs[0].dtype == ir.DataType.FLOAT16


@pytest.mark.parametrize(
    ("boxes", "scores", "fields"),
    [
        ("N,9,4", "N,9,3", {}),
        ("N,9,4", "N,3,9", {}),
        ("N,4,9", "N,3,9", {}),
        ("9,4", "9,3", {}),
        ("4,9", "3,9", {}),
        ("N,A,4", "N,A,3", {}),
        ("N,9,4", "N,9,3", {"background": True}),
        ("N,9,4", "N,9,3", {"classes": 2}),
        ("N,4,4", "N,4,4", {"columns_axis": 1}),
        ("N,9,4", "N,9,20", {}),
        ("N,9,4", "N,9,9", {"columns_axis": -1}),
        ("9,4", "9,9", {"columns_axis": 1}),
        ("N,9,4", "N,4,9", {}),
        ("N,4,A", "N,4,A", {}),
    ],
)
def test_boxes_and_scores(operate, boxes, scores, fields):
    text = detector(boxes, scores)
    model, _ = operate(AddPostprocessing(kind="nms", boxes="b", scores="s", score_threshold=0.3, **fields), text)
    assert described(model) == {
        "boxes": "FLOAT[detections,4]",
        "scores": "FLOAT[detections]",
        "classes": "INT64[detections]",
        "batch_index": "INT64[detections]",
    }


def test_the_best_box_wins(operate):
    """Two boxes overlap by 0.6, one lies elsewhere, one scores too little."""
    boxes = np.array([[[0, 0, 4, 4], [0, 0, 4, 2.4], [9, 9, 5, 5], [20, 20, 21, 21]]], np.float32)
    scores = np.array([[[0.5, 0.1], [0.9, 0.1], [0.6, 0.8], [0.2, 0.3]]], np.float32)
    model, _ = operate(
        AddPostprocessing(kind="nms", boxes="b", scores="s"),
        detector("N,A,4", "N,A,2"),
    )
    found = run(model, {"i": boxes, "j": scores})
    np.testing.assert_array_equal(found["classes"], [0, 0, 1, 1])
    np.testing.assert_allclose(found["scores"], [0.9, 0.6, 0.8, 0.3])
    np.testing.assert_array_equal(found["boxes"], boxes[0][[1, 2, 2, 3]])
    model, _ = operate(
        AddPostprocessing(kind="nms", boxes="b", scores="s", iou_threshold=0.7, max_boxes=3), detector("N,A,4", "N,A,2")
    )
    np.testing.assert_allclose(run(model, {"i": boxes, "j": scores})["scores"], [0.9, 0.6, 0.5, 0.8, 0.3])


def test_no_detections(operate):
    model, step = operate(
        AddPostprocessing(kind="nms", boxes="b", scores="s", score_threshold=99), detector("N,9,4", "N,9,3")
    )
    assert step.report["detections_verified"] == 0
    found = run(model, {"i": np.zeros((2, 9, 4), np.float32), "j": np.zeros((2, 9, 3), np.float32)})
    assert {name: array.shape for name, array in found.items()} == {
        "boxes": (0, 4), "scores": (0,), "classes": (0,), "batch_index": (0,)}  # fmt: skip


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_against_the_runtime(operate, seed, centred):
    """On boxes that suppress each other, which noise through a network seldom gives."""
    rng = np.random.default_rng(seed)
    boxes, scores = random_boxes(rng, 2, 40), rng.random((2, 40, 3), np.float32)
    if centred:
        boxes = np.concatenate([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], -1)
    form = "cxcywh" if centred else "xyxy"
    pass_ = AddPostprocessing(kind="nms", boxes="b", scores="s", box_format=form, max_boxes=7)
    found = run(operate(pass_, detector("N,40,4", "N,40,3"))[0], {"i": boxes, "j": scores})
    whole = [Columns(i, 2, 0, n, n, True, ir.DataType.FLOAT) for i, n in ((0, 4), (1, 3))]
    expected = Detections(*whole, None, centred, 0.45, 0.25, 7, "n").reference([boxes, scores])
    assert 0 < len(expected[0]) < 2 * 40 * 3 / 2
    for name, array in zip(("boxes", "scores", "classes", "batch_index"), expected, strict=True):
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("shape", "turned"), [("N,30,9", False), ("N,9,30", True), ("30,9", False)])
@pytest.mark.parametrize("fields", [{}, {"objectness": True}, {"objectness": True, "classes": 2}, {"classes": 3}])
def test_one_table(operate, shape, turned, fields):
    """YOLOv8 gives [N, 4 + classes, boxes]; YOLOv5 [N, boxes, 5 + classes]; landmarks may lie between."""
    rng = np.random.default_rng(0)
    x = rng.random((1, 30, 9), np.float32)
    given = x.swapaxes(1, 2).copy() if turned else x if shape.startswith("N") else x[0]
    found = run(operate(AddPostprocessing(kind="nms", **fields), table(shape))[0], {"x": given})
    first = 9 - fields["classes"] if fields.get("classes") else 5 if fields.get("objectness") else 4
    scores = x[..., first:] * (x[..., 4:5] if fields.get("objectness") else 1)
    kept = scores[0, :, found["classes"][0]].max()
    np.testing.assert_allclose(found["scores"][0], kept, rtol=1e-6)
    assert found["classes"].max() < 9 - first


@pytest.mark.parametrize(
    ("pass_", "text", "reason"),
    [
        (AddPostprocessing(), SCORES, "give kind, such as softmax"),
        (AddPostprocessing(kind="softmax"), TWO, "several outputs .y, z.; give output_name"),
        (AddPostprocessing(kind="nms"), TWO, "give boxes and scores, or output_name"),
        (AddPostprocessing(kind="softmax", output_name="q"), SCORES, "there is no output 'q'"),
        (AddPostprocessing(kind="softmax", axis=2), SCORES, "has no axis 2"),
        (AddPostprocessing(kind="argmax"), "g (float[] x) => (float[] y) { y = Neg(x) }", "rank of 'y' is unknown"),
        (AddPostprocessing(kind="softmax"), "g (int32[N,6] x) => (int32[N,6] y) { y = Neg(x) }", "is int32, not floating"),
        (AddPostprocessing(kind="top-k", k=7), SCORES, "k is 7, not from 1 to 6"),
        (AddPostprocessing(kind="top-k", k=0), SCORES, "k is 0"),
        (AddPostprocessing(kind="top-k", names=("a",)), SCORES, "gives 2 outputs, not 1"),
        (AddPostprocessing(kind="top-k", names=("a", "a")), SCORES, "given twice"),
        (AddPostprocessing(kind="argmax", names=("x",)), SCORES, "there is a 'x' already"),
        (AddPostprocessing(kind="argmax", names=("y",), keep=True), SCORES, "there is a 'y' already"),
        (AddPostprocessing(kind="softmax"), old(12, MAPS), "needs opset 13"),
        (AddPostprocessing(kind="top-k"), old(9, SCORES), "needs opset 10"),
        (AddPostprocessing(kind="nms"), old(10, SCORES), "nms needs opset 11"),
        (AddPostprocessing(kind="argmax", boxes="y", scores="z"), TWO, "go together, with kind nms"),
        (AddPostprocessing(kind="nms", boxes="y"), TWO, "go together"),
        (AddPostprocessing(kind="nms", boxes="y", scores="y"), TWO, "are the same output"),
        (AddPostprocessing(kind="nms", iou_threshold=2), table("N,9,6"), "must be from 0 to 1"),
        (AddPostprocessing(kind="nms"), table("N,9,4"), "are not boxes and scores"),
        (AddPostprocessing(kind="nms", classes=3), table("N,9,6"), "are not boxes and scores"),
        (AddPostprocessing(kind="nms", classes=-1), table("N,9,6"), "are not boxes and scores"),
        (AddPostprocessing(kind="nms", classes=1, background=True), table("N,9,6"), "are not boxes and scores"),
        (AddPostprocessing(kind="nms"), table("N,9,9"), "unclear which axis"),
        (AddPostprocessing(kind="nms", columns_axis=0), table("N,9,9"), "unclear which axis"),
        (AddPostprocessing(kind="nms", columns_axis=5), table("N,9,9"), "unclear which axis"),
        (AddPostprocessing(kind="nms"), table("N,A,B"), "unclear which axis"),
        (AddPostprocessing(kind="nms", boxes="b", scores="s"), detector("N,9,4", "N,9,9"), "unclear which axis of 's'"),
        (AddPostprocessing(kind="nms", boxes="b", scores="s"), detector("N,9,5", "N,9,3"), "'b' .* has no axis of 4"),
        (AddPostprocessing(kind="nms"), table("N,9,9,9"), "no table"),
        (AddPostprocessing(kind="nms", boxes="b", scores="s", objectness=True), detector("N,9,4", "N,9,3"),
         "objectness is a column of a single output"),
    ],
)  # fmt: skip
def test_refusals(operate, pass_, text, reason):
    with pytest.raises(UserError, match=reason):
        operate(pass_, text)


def test_older_operators(operate):
    operate(AddPostprocessing(kind="softmax"), old(11, SCORES))
    operate(AddPostprocessing(kind="argmax", axis=-1), old(8, MAPS))
    operate(AddPostprocessing(kind="nms"), old(11, table("N,9,6")))


def test_digits(graphopt, digits, tmp_path):
    out = tmp_path / "out.onnx"
    ran = graphopt(
        "add-postprocessing", digits / "digits.onnx", "-o", out, "--kind", "argmax", "--names", "digit", "--json"
    )
    assert ran.code == 0, ran.err
    data = np.load(digits / "test.npz")
    found = runtime.find(CPU).open_file(out, CPU).run({"image": data["image"]})["digit"]
    assert np.mean(found == data["labels"]) > 0.99
    assert graphopt("add-postprocessing", digits / "digits.onnx", "-o", out, "--kind", "best").code == 2
