"""Integers on scales of run time."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import compare, runtime, spec, target
from graphopt.errors import UsageError
from graphopt.passes.quantization.quantize_dynamic import QuantizeDynamic

CPU = target.find("cpu", 1)
PLAIN = target.find("reference")
NET = """
    g (float[N,T,32] x, float[32,48] w1, float[48] b1, float[16,48] w2, float[16] b2) => (float[N,T,48] y, float[M,16] z) {
      [one] h = MatMul(x, w1)
      y = Add(h, b1)
      r = Relu(y)
      f = Reshape(r, shape)
      [two] z = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(f, w2, b2)
    }
"""
SHAPES = {"w1": (32, 48), "b1": (48,), "w2": (16, 48), "b2": (16,)}


@pytest.fixture
def net(build):
    text = NET.replace("float[16] b2)", "float[16] b2, int64[2] shape)")
    return build(text, **SHAPES, shape=np.array([-1, 48]))


@pytest.fixture
def feeds(sample):
    return sample(x=[3, 5, 32])


def sqnr(model, reference, feeds, place=CPU):
    done = runtime.open_session(model, place).run(feeds)
    return min(compare.sqnr(reference[name], done[name]) for name in reference)


@pytest.mark.parametrize(
    ("fields", "least"),
    [
        ({}, 33),
        ({"rows": ("all",)}, 35),
        ({"per_channel": False}, 31),
        ({"weights": "uint8"}, 33),
        ({"reduce_range": True}, 30),
        ({"rows": ("all",), "weights": "uint8"}, 35),
    ],
)
@pytest.mark.parametrize("place", [CPU, PLAIN], ids=["cpu", "reference"])
def test_nearly_the_same(net, feeds, fields, least, place):
    reference = runtime.open_session(net, CPU).run(feeds)
    result = QuantizeDynamic(**fields)(net)
    assert result.report == {"quantized": {"Gemm": 1, "MatMul": 1}}
    assert {node.op_type for node in net.graph} & {"MatMul", "Gemm"} == set()
    assert sqnr(net, reference, feeds, place) > least


def test_rows_do_not_mind_other_rows(net, feeds):
    loud = {"x": feeds["x"].copy()}
    loud["x"][0, 0] *= 1000
    reference = runtime.open_session(net, CPU).run(loud)["y"][1:]
    found = {}
    for rows in (False, True):
        model = net.clone()
        QuantizeDynamic(rows=("all",) if rows else ())(model)
        found[rows] = compare.sqnr(reference, runtime.open_session(model, CPU).run(loud)["y"][1:])
    assert found[True] > 35
    assert found[False] < 10


def test_rows_for_some_nodes(net):
    with pytest.raises(UsageError, match="rows: no node is called 'tow'; did you mean 'two'"):
        QuantizeDynamic(rows=("tow",))(net)
    QuantizeDynamic(rows=("two",))(net)
    made = [node.op_type for node in net.graph]
    assert made.count("DynamicQuantizeLinear") == made.count("QuantizeLinear") == 1


def test_rows_of_zeros(net, feeds):
    QuantizeDynamic(rows=("all",))(net)
    done = runtime.open_session(net, CPU).run({"x": np.zeros_like(feeds["x"])})
    assert np.isfinite(done["z"]).all()


def test_an_activation_is_quantized_once(build, sample):
    model = build(
        "g (float[N,8] x, float[8,8] q, float[8,8] k) => (float[N,8] a, float[N,8] b) { a = MatMul(x, q) b = MatMul(x, k) }",
        q=(8, 8),
        k=(8, 8),
    )
    QuantizeDynamic()(model)
    assert [node.op_type for node in model.graph].count("DynamicQuantizeLinear") == 1


def test_fused(net, feeds):
    reference = runtime.open_session(net, CPU).run(feeds)
    QuantizeDynamic()(net)
    spec.build("fuse", {})(net)
    assert "DynamicQuantizeMatMul" in {node.op_type for node in net.graph}
    assert sqnr(net, reference, feeds) > 33


def test_bodies(build, sample):
    model = build(
        """
        g (float[N,8] x, bool flag, float[8,8] w) => (float[N,8] y) {
          y = If (flag) <then_branch = t () => (float[N,8] p) { p = MatMul(x, w) },
                         else_branch = e () => (float[N,8] q) { q = Neg(x) }>
        }
        """,
        w=(8, 8),
    )
    feeds = {**sample(x=[4, 8]), "flag": np.array(True)}
    reference = runtime.open_session(model, CPU).run(feeds)
    assert QuantizeDynamic()(model).modified
    assert sqnr(model, reference, feeds) > 30


def test_reasons(build):
    model = build(
        """
        g (float[N,3,8,8] x, float[4,3,1,1] w, float[8,8] v) => (float[N,4,8,8] y, float[N,3,8,8] z) {
          y = Conv(x, w)
          [kept] m = MatMul(x, v)
          z = MatMul(m, x)
        }
        """,
        w=(4, 3, 1, 1),
        v=(8, 8),
    )
    reasons = dict(QuantizeDynamic(exclude=("kept",))(model).skipped)
    assert "slower" in reasons["Conv of 'y'"]
    assert reasons["kept"] == "excluded"
    assert reasons["MatMul of 'z'"] == "it multiplies two activations"
    with pytest.raises(UsageError, match="did you mean 'kept'"):
        QuantizeDynamic(exclude=("kpt",))(model)


def test_old_opsets_are_raised(build, sample):
    model = build("g (float[N,8] x, float[8,8] w) => (float[N,8] y) { y = MatMul(x, w) }", w=(8, 8))
    model.opset_imports[""] = 9
    QuantizeDynamic()(model)
    assert model.opset_imports[""] == 11


def test_a_shared_weight_is_stored_once(build):
    model = build(
        "g (float[N,8] x, float[8,8] w) => (float[N,8] y) { a = MatMul(x, w) r = Relu(a) y = MatMul(r, w) }", w=(8, 8)
    )
    QuantizeDynamic()(model)
    assert [v.dtype for v in model.graph.initializers.values()].count(ir.DataType.INT8) == 1
    assert "w" not in model.graph.initializers


TABLE = """
    g (int64[N,T] ids, float[2048,40] table, float[4,40] small) => (float[N,T,40] y) {
      [large] a = Gather(table, ids)
      [tiny] b = Gather(small, ids)
      y = Add(a, b)
    }
"""


@pytest.mark.parametrize(("per_channel", "place", "least"), [(True, CPU, 40), (True, PLAIN, 40), (False, CPU, 30)])
def test_tables(build, per_channel, place, least):
    rows = np.random.default_rng(0).normal(size=(2048, 40)).astype(np.float32)
    rows[0] = 0
    model = build(TABLE, table=rows, small=(4, 40))
    feeds = {"ids": np.array([[0, 1, -1], [2, 3, -2]])}
    feeds["ids"][feeds["ids"] > 3] = 3
    reference = runtime.open_session(model, CPU).run(feeds)
    result = QuantizeDynamic(per_channel=per_channel)(model)
    assert result.report == {"quantized": {"Gather": 1}}
    assert dict(result.skipped)["tiny"] == "a table of fewer than 65,536 numbers is not worth it"
    assert "table" not in model.graph.initializers
    assert sqnr(model, reference, feeds, place) > least


@pytest.mark.parametrize(
    ("more", "fields", "reason"),
    [
        (", float[2048,40] z) { z = Neg(table)", {}, "its table is used in float, too"),
        (
            ", float[N,T,40] z) { [other] z = Gather(table, ids)",
            {"exclude": ("other",)},
            "its table is used in float, too",
        ),
        (") {", {"ops": ("MatMul",)}, "Gather is not among the operators to quantize"),
    ],
)
def test_tables_that_stay(build, more, fields, reason):
    text = TABLE.replace(") {", more, 1)
    model = build(text, table=(2048, 40), small=(4, 40))
    result = QuantizeDynamic(**fields)(model)
    assert not result.modified
    assert dict(result.skipped)["large"] == reason


def test_a_table_in_a_body_is_stored_once(build):
    model = build(
        """
        g (int64[N] ids, bool flag, float[2048,40] table) => (float[N,40] y) {
          a = Gather(table, ids)
          b = If (flag) <then_branch = t () => (float[N,40] p) { p = Gather(table, ids) },
                         else_branch = e () => (float[N,40] q) { q = Neg(a) }>
          y = Add(a, b)
        }
        """,
        table=(2048, 40),
    )
    feeds = {"ids": np.array([3, 5]), "flag": np.array(True)}
    reference = runtime.open_session(model, CPU).run(feeds)
    assert QuantizeDynamic()(model).report == {"quantized": {"Gather": 2}}
    assert [v.dtype for v in model.graph.initializers.values()].count(ir.DataType.INT8) == 1
    assert sqnr(model, reference, feeds) > 40


LSTM = """
    g (float[T,N,24] x, float[D,80,24] w, float[D,80,20] r, float[D,160] b, int32[N] lengths)
      => (float[T,D,N,20] y, float[D,N,20] h) { [cell] y, h = LSTM<hidden_size = 20, direction = "way">(x, w, r, b, lengths) }
"""


@pytest.mark.parametrize("way", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("fields", [{}, {"per_channel": False}, {"weights": "uint8"}, {"reduce_range": True}])
def test_an_lstm(build, sample, way, fields):
    count = 2 if way == "bidirectional" else 1
    text = LSTM.replace("way", way).replace("float[D,", f"float[{count},").replace("[T,D,", f"[T,{count},")
    model = build(text, w=(count, 80, 24), r=(count, 80, 20), b=(count, 160))
    feeds = {**sample(x=[7, 3, 24]), "lengths": np.array([7, 4, 1], np.int32)}
    reference = runtime.open_session(model, CPU).run(feeds)
    assert not QuantizeDynamic(**fields)(model).modified
    assert QuantizeDynamic(ops=("LSTM",), **fields)(model).report == {"quantized": {"LSTM": 1}}
    assert [node.op_type for node in model.graph] == ["DynamicQuantizeLSTM"]
    assert not {"w", "r"} & set(model.graph.initializers)
    assert sqnr(model, reference, feeds) > 25


def test_recurrences_that_stay(build):
    text = """
        g (float[T,N,8] x, float[1,12,8] w, float[1,12,4] r, float[1,16,8] v, float[1,16,4] q)
          => (float[T,1,N,4] y, float[T,1,N,4] z) {
          [gru] y = GRU<hidden_size = 4>(x, w, r)
          s = Neg(v)
          [lstm] z = LSTM<hidden_size = 4>(x, s, q)
        }
    """
    model = build(text, w=(1, 12, 8), r=(1, 12, 4), v=(1, 16, 8), q=(1, 16, 4))
    assert "name LSTM in ops" in dict(QuantizeDynamic()(model).skipped)["lstm"]
    assert dict(QuantizeDynamic(ops=("LSTM",))(model).skipped) == {
        "gru": "ONNX Runtime has no operator for it in integers on scales of run time",
        "lstm": "its weights are computed, not constant",
    }


def test_a_default_that_is_used_up_is_no_input_any_more(parse):
    model = parse(
        "g (float[N,2] x, float[2,2] w) => (float[N,2] y) <float[2,2] w = {1.0,2.0,3.0,4.0}> { y = MatMul(x, w) }"
    )
    assert QuantizeDynamic()(model).modified
    assert [value.name for value in model.graph.inputs] == ["x"]
