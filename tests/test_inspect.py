"""`inspect`: what is in a model, read without running it."""

from __future__ import annotations

import onnx
import pytest

TEXT = """<ir_version: 9, opset_import: ["": 18, "local": 1], producer_name: "pytorch", producer_version: "2.9">
g (float[N,4] x, int64[?] i, float[] u, float[4] w) => (float[N,4] y, seq(float[N]) z) <float[4] w = {1.0,2.0,3.0,4.0}> {
    k = Constant<value = float16[2] {1.0, 2.0}>()
    a = Mul(x, w)
    y = local.f(a)
    z = SplitToSequence(i)
}
<domain: "local", opset_import: ["": 18]>
f (x) => (y) { h = Neg(x)  y = Relu(h) }
"""


@pytest.fixture
def path(model_file):
    text = TEXT.replace("    k = Constant<value = float16[2] {1.0, 2.0}>()\n", "")
    path = model_file(text.replace("z = SplitToSequence(i)", "z = SequenceConstruct(x)"))
    model = onnx.load(path)
    model.metadata_props.add(key="licence", value="[bold]none[/bold]")
    onnx.save(model, path)
    return path


def test_the_object_of_json(graphopt, path):
    ran = graphopt("inspect", path, "--json")
    assert (ran.code, ran.err) == (0, "")
    found = ran.json
    assert list(found) == [
        "path", "bytes", "ir_version", "opsets", "producer", "inputs", "outputs", "nodes", "operators", "parameters",
        "functions", "renamed", "metadata", "provenance",
    ]  # fmt: skip
    assert found["bytes"] == path.stat().st_size
    assert (found["ir_version"], found["opsets"]) == (9, {"": 18, "local": 1})
    assert found["producer"] == "pytorch 2.9"
    assert found["inputs"] == [
        {"name": "x", "dtype": "FLOAT", "shape": ["N", 4]},
        {"name": "i", "dtype": "INT64", "shape": [None]},
        {"name": "u", "dtype": "FLOAT", "shape": None},
    ]
    assert [port["dtype"] for port in found["outputs"]] == ["FLOAT", None]
    assert found["nodes"] == 5
    assert found["operators"] == {"Mul": 1, "local::f": 1, "SequenceConstruct": 1, "Neg": 1, "Relu": 1}
    assert found["parameters"] == {"FLOAT": 4}
    assert found["functions"] == ["local::f"]
    assert found["metadata"] == {"licence": "[bold]none[/bold]"}
    assert found["provenance"] is None


def test_in_words(graphopt, path):
    ran = graphopt("inspect", path)
    assert (ran.code, ran.err) == (0, "")
    for text in (
        str(path), "pytorch 2.9", "IR 9, ai.onnx 18, local 1", "x float [N, 4]", "i int64 [?]", "u float any rank",
        "5: ", "4 FLOAT", "local::f", "licence = [bold]none[/bold]", "not a tensor",
    ):  # fmt: skip
        assert text in ran.out, text


def test_values_that_are_defined_twice(graphopt, model_file):
    path = model_file("g (float[N] x) => (float[N] y) { y = Neg(x) b = Abs(y) y = Add(b, y) }")
    assert graphopt("inspect", path, "--json").json["renamed"] == [["y", "y_1"]]
    assert "y, read as y_1; fix it with: graphopt apply MODEL repair -o OUT" in graphopt("inspect", path).out


@pytest.mark.parametrize("value", ["junk", "[1]", "{", ""])
def test_provenance_of_somebody_else(graphopt, path, value):
    model = onnx.load(path)
    model.metadata_props.add(key="graphopt", value=value)
    onnx.save(model, path)
    found = graphopt("inspect", path, "--json").json
    assert found["provenance"] is None
    assert "graphopt" not in found["metadata"]


def test_a_model_that_no_runtime_knows(graphopt, model_file):
    path = model_file(
        '<ir_version: 9, opset_import: ["": 18, "acme": 1]> g (float[N] x) => (float[N] y) { y = acme.F(x) }'
    )
    assert graphopt("inspect", path, "--json").json["operators"] == {"acme::F": 1}


def test_what_the_user_can_fix(graphopt, tmp_path):
    ran = graphopt("inspect", tmp_path / "none.onnx")
    assert ran.code == 1
    assert "no such file" in ran.error
