"""bfloat16: where it runs, where it is refused, and that its error is kept."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt import compare, runtime, target
from graphopt.passbase import PreconditionError
from graphopt.passes.precision.to_bfloat16 import ToBfloat16

BRAIN, SINGLE = ir.DataType.BFLOAT16, ir.DataType.FLOAT
REFERENCE = target.find("reference")
W = "float[4,4] w = {1.0,-2.0,3.0,0.5,1.5,-1.0,2.0,0.1,0.2,-0.3,0.4,1.0,0.7,0.3,-0.6,0.9}"
CHAIN = f"g (float[N,4] x) => (float[N,4] y) <{W}> {{ a = MatMul(x, w)  b = Relu(a)  y = MatMul(b, w) }}"


def kinds(model):
    return {n.op_type: n.outputs[0].dtype for n in model.graph.all_nodes()}


def test_on_the_reference_evaluator(parse):
    model, before = parse(CHAIN), parse(CHAIN)
    result = ToBfloat16(target="reference")(model)
    assert result.report == {"bfloat16": 3, "float32": 0, "casts": 2, "sqnr": result.report["sqnr"]}
    assert result.report["sqnr"] >= 20
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert model.graph.initializers["w"].const_value.dtype == BRAIN
    feeds = {"x": np.random.default_rng(5).standard_normal((3, 4)).astype(np.float32)}
    expected, actual = (runtime.open_session(m, REFERENCE).run(feeds)["y"] for m in (before, model))
    assert 20 < compare.sqnr(expected, actual) < 60, "eight bits, and not more"


def test_from_the_command_line_on_the_reference_evaluator(graphopt, model_file, tmp_path):
    path, out = model_file(CHAIN), tmp_path / "brain.onnx"
    ran = graphopt("to-bfloat16", path, "-o", out, "--target", "reference", "--no-keep-io", "--json")
    assert ran.code == 0, ran.err
    assert onnx.load(out).graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16


def test_a_cpu_refuses_it_and_says_what_it_lacks(graphopt, model_file, tmp_path):
    ran = graphopt("to-bfloat16", model_file(CHAIN), "-o", tmp_path / "brain.onnx")
    assert ran.code == 1
    assert "does not run on target 'cpu'" in ran.error
    assert "MatMul" in ran.error or "Relu" in ran.error
    assert not (tmp_path / "brain.onnx").exists()


def test_large_numbers_are_no_trouble(parse):
    model = parse(CHAIN.replace("b = Relu(a)", "k = Constant<value_float = 1e20>()  b = Mul(a, k)"))
    result = ToBfloat16(target="reference")(model)
    assert kinds(model)["Mul"] == BRAIN, result.skipped


def test_numbers_at_the_end_of_the_range_do_not_overflow(parse):
    """The lowest float32, which masks add, is infinite in bfloat16."""
    model = parse(
        f"g (float[N,4] x, bool[N,4] m) => (float[N,4] y) <{W}, float low = {{-3.4028234663852886e38}}> "
        "{ s = MatMul(x, w)  t = Where(m, s, low)  p = Softmax<axis = -1>(t)  y = MatMul(p, w) }"
    )
    ToBfloat16(target="reference", min_sqnr=10.0)(model)
    fill = model.graph.initializers["low"].const_value.numpy()
    assert fill.dtype == ml_dtypes.bfloat16
    assert np.isfinite(fill)


def test_convolution_has_it_since_opset_22(parse):
    text = """g (float[1,2,4,4] x) => (float[1,2,4,4] y)
        <float[2,2,1,1] w = {1.0,0.5,-1.0,2.0}, float[4,4] v = {1.0,0.0,0.0,0.5,0.0,1.0,0.0,0.0,0.0,0.0,1.0,0.0,0.0,0.0,0.0,1.0}>
        { c = Conv(x, w)  a = MatMul(c, v)  b = Relu(a)  y = MatMul(b, v) }"""
    model = parse(text)
    result = ToBfloat16(target="reference")(model)
    assert kinds(model)["Conv"] == SINGLE
    assert "opset 22 has it with: see convert-opset" in dict(result.skipped)["Conv of 'c'"]
    model = parse('<ir_version: 10, opset_import: ["": 22]> ' + text)
    ToBfloat16(target="reference")(model)
    assert kinds(model)["Conv"] == BRAIN


def test_an_opset_too_old(parse):
    with pytest.raises(PreconditionError, match="convert-opset --to 13"):
        ToBfloat16()(
            parse('<ir_version: 6, opset_import: ["": 12]> g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }')
        )


def test_the_error_is_kept(parse):
    chain = "".join(f"a{i + 1} = MatMul(a{i}, w)  " for i in range(8))
    text = f"g (float[N,4] x) => (float[N,4] y) <{W}> {{ a0 = Tanh(x)  {chain} y = Tanh(a8) }}"
    floor = ToBfloat16(target="reference")(parse(text)).report["sqnr"] + 3
    report = ToBfloat16(target="reference", min_sqnr=floor)(parse(text)).report
    assert 0 < report["float32"] < 9
    assert report["sqnr"] >= floor
