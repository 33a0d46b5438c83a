"""A student learns from another .onnx file, with labels or without."""

from __future__ import annotations

import numpy as np
import pytest

import graphopt as library
from graphopt import io
from graphopt.errors import UserError


@pytest.fixture
def teacher(files, tmp_path):
    """Train a teacher; return its path."""
    model, train, held, _ = files
    path = tmp_path / "teacher.onnx"
    library.finetune(model, path, data=str(train), eval_data=str(held), epochs=10, batch=32, learning_rate=0.1)
    return path


@pytest.fixture
def student(tmp_path, network):
    """Write a student with other weights than the teacher began with; return its path."""
    io.save(network(seed=5), tmp_path / "student.onnx")
    return tmp_path / "student.onnx"


def test_without_labels_the_student_learns_the_teachers_classes(graphopt, teacher, student, files, samples, tmp_path):
    _, _, held, out = files
    np.savez(tmp_path / "plain.npz", x=samples(512)["x"])
    ran = graphopt(
        "distill", teacher, student, "--data", tmp_path / "plain.npz", "--eval-data", held, "-o", out, "--epochs", 10,
        "--batch", 32, "--learning-rate", 0.1, "--match", "classes", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    change = ran.json["metric"]
    assert change["name"] == "accuracy"
    assert change["after"] > change["before"] + 0.2
    agreement = library.validate(out, teacher, data=str(held), metric="agreement", min_agreement=0.5).score
    assert agreement > 0.85


def test_outputs_are_matched_by_squares(teacher, student, files, samples, tmp_path):
    np.savez(tmp_path / "plain.npz", x=samples(512)["x"])
    done = library.distill(
        teacher, student, files[3], data=str(tmp_path / "plain.npz"), epochs=6, batch=32, learning_rate=0.05
    )
    assert done.history[-1]["loss"] < 0.3 * done.history[0]["loss"]


def test_inner_tensors_are_matched(teacher, student, files):
    _, train, _, out = files
    plain = library.distill(teacher, student, out, data=str(train), epochs=1)
    matched = library.distill(teacher, student, out, data=str(train), epochs=1, features=("r=r",))
    assert matched.history[0]["loss"] > plain.history[0]["loss"]
    assert [output.name for output in io.load(out).graph.outputs] == ["y"], "what was tapped is no output of the file"
    both = library.distill(teacher, student, out, data=str(train), epochs=1, features=("y=y",))
    assert both.history[0]["loss"] > plain.history[0]["loss"], "an output can be matched as well"


def test_attention_maps_are_matched(model_file, files):
    _, train, _, out = files
    text = """g (float[N,8] x) => (float[N,3] y) <int64[4] s = {{0, {channels}, 2, 2}}, int64[2] f = {{0, -1}},
    float[8,{width}] w = {{{numbers}}}, float[{width},3] v = {{{others}}}>
    {{ h = MatMul(x, w)  m = Reshape(h, s)  a = Abs(m)  b = Reshape(a, f)  y = MatMul(b, v) }}"""
    rng = np.random.default_rng(0)
    paths = []
    for channels in (1, 3):
        width = 4 * channels
        numbers, others = (", ".join(map(str, rng.standard_normal(n))) for n in (8 * width, 3 * width))
        made = text.format(channels=channels, width=width, numbers=numbers, others=others)
        paths.append(model_file(made, f"{channels}.onnx"))
    settings = {"data": str(train), "epochs": 6, "batch": 32, "alpha": 0.0, "loss": "none", "match": "mse"}
    done = library.distill(paths[1], paths[0], out, **settings, attention=("a=a",), attention_weight=10.0)
    assert done.history[-1]["loss"] < done.history[0]["loss"]


def test_what_is_matched_must_be_there(teacher, student, files):
    _, train, _, out = files
    with pytest.raises(UserError, match="no tensor 'nowhere'"):
        library.distill(teacher, student, out, data=str(train), epochs=1, attention=("nowhere=r",))
    with pytest.raises(UserError, match="attention maps want"):
        library.distill(teacher, student, out, data=str(train), epochs=1, attention=("r=r",))


def test_a_projection_joins_different_widths(teacher, parse, files, tmp_path):
    narrow = parse(
        "g (float[N,8] x) => (float[N,3] y) <float[8,4] w = {"
        + ",".join(f"{n:.4f}" for n in np.random.default_rng(0).standard_normal(32))
        + "}, float[4,3] v = {1,2,3,4,5,6,7,8,9,1,2,3}> { h = MatMul(x, w)  y = MatMul(h, v) }"
    )
    io.save(narrow, tmp_path / "narrow.onnx")
    done = library.distill(teacher, tmp_path / "narrow.onnx", files[3], data=str(files[1]), epochs=3, features=("h=r",))
    assert done.trained == 2, "the projection is not part of the file"
    assert done.history[-1]["loss"] < done.history[0]["loss"]


def test_the_teacher_runs_in_torch_as_well(teacher, student, files):
    losses = [
        library.distill(teacher, student, files[3], data=str(files[1]), epochs=1, teacher_target=place).history[0][
            "loss"
        ]
        for place in ("cpu", "torch")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_teacher_with_other_outputs(student, files, model_file, tmp_path):
    other = model_file("g (float[N,8] x) => (float[N,8] y) { y = Neg(x) }")
    with pytest.raises(
        UserError, match=r"teacher's output of shape \[\d+, 8\] does not fit the student's of \[\d+, 3\]"
    ):
        library.distill(other, student, files[3], data=str(files[1]), epochs=1)
