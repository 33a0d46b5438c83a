"""`bench`: a table or one JSON object, and what it refuses."""

from __future__ import annotations

import pytest

TEXT = "g (float[N,8] x) => (float[N,8] y) { a = Neg(x) y = Abs(a) }"


@pytest.fixture
def models(model_file):
    return model_file(TEXT), model_file(TEXT.replace("Abs", "Relu"), "two[b].onnx")


def test_the_object_of_json(graphopt, models):
    ran = graphopt("bench", *models, "--batch", "1,4", "--runs", "3", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["target"] == "cpu"
    rows = ran.json["rows"]
    assert [(row["model"], row["batch"]) for row in rows] == [(str(m), b) for b in (1, 4) for m in models]
    assert list(rows[0]) == ["model", "batch", "median_ms", "p90_ms", "per_second", "speedup", "ci95"]


def test_the_table(graphopt, models):
    ran = graphopt("bench", *models, "--runs", "2", "--target", "reference", "--threads", "1")
    assert (ran.code, ran.err) == (0, "")
    assert "median ms" in ran.out
    assert "1.00x" in ran.out
    assert str(models[1]) in ran.out.replace("\n", "")


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["none.onnx"], 1, "none.onnx: no such file"),
        (["m.onnx", "--target", "gpu"], 2, "unknown target 'gpu'"),
        (["m.onnx", "--batch", "1,x"], 2, "'1,x' is not a list of sizes such as 1,32"),
        (["m.onnx", "--batch", "0"], 2, "sizes start at 1"),
        (["m.onnx", "--runs", "1"], 2, "--runs"),
        (["m.onnx", "--seed", "-1", "--runs", "2"], 2, "--seed"),
        ([], 2, "Missing argument"),
    ],
)
def test_what_the_user_can_fix(graphopt, models, tmp_path, monkeypatch, args, code, message):
    monkeypatch.chdir(tmp_path)
    ran = graphopt("bench", *args)
    assert message in ran.err
    assert ran.code == code
    assert not ran.out
