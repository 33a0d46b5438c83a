"""Inputs and outputs become 8-bit integers, and no number changes."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import runtime, target
from graphopt.errors import UserError
from graphopt.passbase import PreconditionError
from graphopt.passes.quantization.calibrate import Calibrate
from graphopt.passes.quantization.integer_io import IntegerIo
from graphopt.passes.quantization.quantize_static import QuantizeStatic
from graphopt.passes.surgery.add_preprocessing import AddPreprocessing
from graphopt.pipeline import Pipeline, begin, feeds_for

CPU = target.find("cpu", 1)


@pytest.fixture
def ops():
    """List the operators of a model's main graph."""
    return lambda model: [node.op_type for node in model.graph]


GRIDS = "<float s = {0.1}, uint8 z = {100}, float t = {0.25}, int8 u = {-3}, float[3] many = {0.1,0.2,0.3}, uint8[3] zeros = {0,0,0}>"


def graph(body, inputs="float[N,3,4,4] x", outputs="float[N,3,4,4] y"):
    return f"g ({inputs}) => ({outputs}) {GRIDS} {{ {body} }}"


PLAIN = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) r = Sqrt(d) p = QuantizeLinear(r, t, u) y = DequantizeLinear(p, t, u)"


def verified(pass_, model):
    """Run a pass as the pipeline does, which runs its cases; return the step and the model."""
    start = begin(model, CPU, (), "m")
    pipeline = Pipeline(start, CPU, feeds_for(start, None, 0, "m"))
    step = pipeline.run(pass_)
    return step, pipeline.model


def run(model, **feeds):
    return runtime.open_session(model, CPU).run(feeds)


def test_input_and_output(parse, ops):
    step, model = verified(IntegerIo(), parse(graph(PLAIN)))
    assert (step.status, step.reason) == ("kept", "verified")
    assert ops(model) == ["DequantizeLinear", "Sqrt", "QuantizeLinear"]
    (x,), (y,) = model.graph.inputs, model.graph.outputs
    assert (x.name, x.dtype, y.name, y.dtype) == ("x", ir.DataType.UINT8, "y", ir.DataType.INT8)
    assert json.loads(x.metadata_props["graphopt.integers"]) == {"scale": float(np.float32(0.1)), "zero_point": 100}
    assert x.doc_string == "uint8 q for (q - 100) * 0.100000001"
    assert step.report["outputs"] == {"y": "int8 q for (q + 3) * 0.25"}
    floats = np.random.default_rng(0).uniform(0, 10, (2, 3, 4, 4)).astype(np.float32)
    integers = np.clip(np.rint(floats / np.float32(0.1)) + 100, 0, 255).astype(np.uint8)
    old = run(parse(graph(PLAIN)), x=floats)["y"]
    np.testing.assert_array_equal((run(model, x=integers)["y"].astype(np.float32) + 3) * np.float32(0.25), old)


def test_one_of_them(parse):
    _, model = verified(IntegerIo(inputs=("x",)), parse(graph(PLAIN)))
    assert [model.graph.inputs[0].dtype, model.graph.outputs[0].dtype] == [ir.DataType.UINT8, ir.DataType.FLOAT]
    _, model = verified(IntegerIo(outputs=("y",)), parse(graph(PLAIN)))
    assert [model.graph.inputs[0].dtype, model.graph.outputs[0].dtype] == [ir.DataType.FLOAT, ir.DataType.INT8]


@pytest.mark.parametrize(
    "body",
    [
        "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)",  # the input's integers are the output's
        "v = Transpose<perm = [0,1,3,2]>(x) q = QuantizeLinear(v, s, z) d = DequantizeLinear(q, s, z) y = Neg(d)",
        "q = QuantizeLinear(x, s, z) k = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) "
        "e = DequantizeLinear(k, s, z) y = Add(d, e)",
        "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) r = Relu(d) p = QuantizeLinear(r, t, u) "
        "w = DequantizeLinear(p, t, u) y = Add(w, d)",
    ],
)
def test_ways_to_the_quantizer(parse, ops, body):
    step, model = verified(IntegerIo(), parse(graph(body)))
    assert (step.status, step.reason) == ("kept", "verified")
    assert model.graph.inputs[0].dtype == ir.DataType.UINT8
    assert ops(model).count("QuantizeLinear") == ops(parse(graph(body))).count("QuantizeLinear") - body.count("QuantizeLinear(x") - body.count("QuantizeLinear(v")  # fmt: skip
    assert not IntegerIo()(model).modified


def test_a_dequantized_output_that_is_read_inside_too(parse):
    body = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) r = Relu(d) p = QuantizeLinear(r, t, u) y = DequantizeLinear(p, t, u) v = Neg(y)"  # fmt: skip
    step, model = verified(IntegerIo(), parse(graph(body, outputs="float[N,3,4,4] y, float[N,3,4,4] v")))
    assert (step.status, step.reason) == ("kept", "verified")
    assert [value.dtype for value in model.graph.outputs] == [ir.DataType.INT8, ir.DataType.FLOAT]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Add(d, x)", "Add"),
        ("k = Neg(x) q = QuantizeLinear(k, s, z) d = DequantizeLinear(q, s, z) y = Neg(d)", "Neg"),
        ("k = Mul(x, t) q = QuantizeLinear(k, s, z) d = DequantizeLinear(q, s, z) y = Neg(d)", "something is computed"),
        ("q = QuantizeLinear<axis = 1>(x, many, zeros) d = DequantizeLinear<axis = 1>(q, many, zeros) y = Neg(d)", "more than one scale"),
        ("q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) k = QuantizeLinear(x, t, z) "
         "e = DequantizeLinear(k, t, z) y = Sub(d, e)", "several ways"),
        ("k = Abs(x) m = ReduceMax<keepdims = 0>(k) q = QuantizeLinear(x, m, z) d = DequantizeLinear(q, m, z) y = Neg(d)", "reads it"),
    ],
)  # fmt: skip
def test_what_stays(parse, body, reason):
    model = parse(graph(body))
    result = IntegerIo()(model)
    assert not result.modified
    assert any(reason in row[1] for row in result.skipped), result.skipped
    with pytest.raises(PreconditionError, match="must stay"):
        IntegerIo(inputs=("x",))(model)


def test_names_that_do_not_exist(parse):
    with pytest.raises(UserError, match="no 'xx'; did you mean 'x'"):
        IntegerIo(inputs=("xx",))(parse(graph(PLAIN)))


def test_a_default_value_stays(parse):
    model = parse("g (float[2] x) => (float[2] y) <float[2] x = {1.0,2.0}, float s = {0.1}, uint8 z = {0}> "
                  "{ q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Neg(d) }")  # fmt: skip
    result = IntegerIo()(model)
    assert ("x", "it has a default value") in result.skipped


# Images


@pytest.mark.parametrize(
    ("chain", "grid", "identity"),
    [
        ("c = Cast<to = 1>(x)", (1.0, 0), True),
        ("k = Cast<to = 1>(x) c = Mul(k, f)", (1 / 255, 0), True),
        ("k = Cast<to = 1>(x) m = Sub(k, h) c = Div(m, h)", (1 / 100.3, 100), True),
        ("k = Cast<to = 1>(x) m = Mul(k, f) c = Transpose<perm = [0,1,3,2]>(m)", (1 / 255, 0), True),
        ("c = Cast<to = 1>(x)", (254 / 255, 0), False),
        ("c = Cast<to = 1>(x)", (1.0, 3), False),
        ("k = Cast<to = 1>(x) m = Cast<to = 6>(k) c = Cast<to = 1>(m)", (1.0, 0), False),
    ],
)
def test_conversions_of_images(build, ops, chain, grid, identity):
    text = f"""g (uint8[N,3,4,4] x, float f, float h, float s, uint8 z) => (float[N,3,4,4] y) {{ {chain}
        q = QuantizeLinear(c, s, z) d = DequantizeLinear(q, s, z) y = Neg(d) }}"""
    weights = {"f": np.float32(1 / 255), "h": np.float32(100.3), "s": np.float32(grid[0]), "z": np.uint8(grid[1])}
    step, model = verified(IntegerIo(), build(text, **weights))
    assert step.status == ("kept" if identity else "skipped"), step.reason
    assert ("Cast" in ops(model)) != identity
    every = np.arange(256, dtype=np.uint8)[np.arange(2 * 48) % 256 * 5 % 256].reshape(2, 3, 4, 4)
    np.testing.assert_array_equal(run(model, x=every)["y"], run(build(text, **weights), x=every)["y"])


@pytest.mark.parametrize("pads", ["[0,0,0,0]", "[1,1,1,1]"])
def test_from_images_to_integers(build, ops, pads):
    """Normalization goes into the first layer, unless that pads and every channel has a mean of its own."""
    text = f"""g (float[N,3,8,8] x, float[4,3,3,3] w, float[4] b, float[4,4,1,1] v) => (float[N,4,P,Q] y) {{
        c = Conv<pads = {pads}>(x, w, b) r = Relu(c) y = Conv(r, v) }}"""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 3, 8, 8)).astype(np.uint8)
    images[0, :, 0, :2] = [0, 255]
    for mean, integer in (((0.5, 0.4, 0.3), pads == "[0,0,0,0]"), ((0.45,), True)):
        model = build(text, w=(4, 3, 3, 3), b=(4,), v=(4, 4, 1, 1))
        floats = (images / 255 - np.reshape(mean, (1, -1, 1, 1))) / 0.25
        expected = run(model, x=floats.astype(np.float32))["y"]
        AddPreprocessing(mean=mean, std=(0.25,))(model)
        Calibrate({"x": images}, threads=1)(model)
        QuantizeStatic()(model)
        before = run(model, x=images)["y"]
        if not integer:
            with pytest.raises(PreconditionError, match="Sub"):
                IntegerIo(inputs=("x",))(model)
            continue
        assert IntegerIo(inputs=("x",))(model).report["bypassed"] == ["x"]
        assert "Cast" not in ops(model)
        after = run(model, x=images)["y"]
        assert np.abs(after - before).max() < 0.02 * np.abs(before).max()
        assert np.linalg.norm(after - expected) < 0.05 * np.linalg.norm(expected)


def test_the_command(graphopt, model_file, tmp_path):
    ran = graphopt("integer-io", model_file(graph(PLAIN)), "-o", tmp_path / "o.onnx", "--json")
    assert ran.code == 0
    assert ran.json["steps"][0]["report"]["inputs"] == {"x": "uint8 q for (q - 100) * 0.100000001"}
    ran = graphopt("integer-io", model_file(graph(PLAIN)), "-o", tmp_path / "o.onnx", "--outputs", "z")
    assert ran.code == 1
    assert "no 'z'" in ran.error
