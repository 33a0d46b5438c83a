from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt import io, runtime, spec, tapping, target
from graphopt.errors import UsageError, UserError
from graphopt.passbase import PreconditionError, Result
from graphopt.passes.quantization import _ranges, calibrate
from graphopt.passes.quantization._ranges import OBSERVERS
from graphopt.passes.quantization.calibrate import Calibrate

NET = """
net (float[N,3,6,6] x, float[4,3,3,3] w, float[4,4,3,3] v) => (float[N,4,6,6] y) {
  a = Conv<pads=[1,1,1,1]>(x, w)
  b = Relu(a)
  c = Conv<pads=[1,1,1,1]>(b, v)
  y = Add(c, b)
}
"""
WEIGHTS = {"w": (4, 3, 3, 3), "v": (4, 4, 3, 3)}


@pytest.fixture
def net(build):
    return build(NET, **WEIGHTS)


def run(model, data, **fields) -> Result:
    return Calibrate(data, threads=1, **fields)(model)


def truth(model, names, feeds):
    """The true extremes of values, from tensors read out whole."""
    by_name = {value.name: value for node in model.graph for value in node.outputs}
    tapped = tapping.tap(model, [by_name[name] for name in names])
    outputs = runtime.open_session(tapped.model, target.find("cpu", 1)).run(feeds)
    return {name: (outputs[name].min(), outputs[name].max()) for name in tapped.names}


def test_ranges_are_the_extremes(net, sample):
    feeds = sample(x=[10, 3, 6, 6])
    result = run(net, feeds, batch=4)
    found = _ranges.read(net)
    assert set(found) == {"x", "b", "c", "y"}
    expected = truth(net, ["b", "c"], feeds)
    expected["x"] = (feeds["x"].min(), feeds["x"].max())
    for name, pair in expected.items():
        np.testing.assert_allclose(found[name], pair, rtol=1e-6, atol=1e-7)
    assert result.modified
    assert result.report == {"ranges": 4, "samples": 10}
    assert result.skipped == []


def test_a_result_that_only_a_relu_reads_is_not_observed(net, sample):
    run(net, sample(x=[2, 3, 6, 6]))
    assert "a" not in _ranges.read(net), "observing it would undo the fusion of Conv and Relu"


def test_moved_elements_are_observed_where_they_come_from(build, sample):
    model = build(
        "g (float[N,2,4,4] x, float[2,2,1,1] w) => (float[N,2,4,4] y) { t = Transpose<perm=[0,1,3,2]>(x) y = Conv(t, w) }",
        w=(2, 2, 1, 1),
    )
    run(model, sample(x=[2, 2, 4, 4]))
    assert set(_ranges.read(model)) == {"x", "y"}


def test_nothing_but_metadata_changes(net, sample):
    feeds = sample(x=[4, 3, 6, 6])
    before = [(node.op_type, node.name) for node in net.graph]
    reference = runtime.open_session(net, target.find("cpu", 1)).run(feeds)
    run(net, feeds)
    after = runtime.open_session(net, target.find("cpu", 1)).run(feeds)
    assert [(node.op_type, node.name) for node in net.graph] == before
    assert [value.name for value in net.graph.outputs] == ["y"]
    np.testing.assert_array_equal(after["y"], reference["y"])


def test_ranges_survive_a_file(net, sample, tmp_path):
    run(net, sample(x=[4, 3, 6, 6]))
    io.save(net, tmp_path / "m.onnx")
    again = io.load(tmp_path / "m.onnx")
    assert _ranges.read(again) == _ranges.read(net)
    assert json.loads(again.graph.inputs[0].metadata_props["graphopt.range"]) == {
        "min-max": list(_ranges.read(net)["x"])
    }


def test_types_that_the_file_leaves_out_are_inferred(net, sample, tmp_path):
    for node in net.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.type = value.shape = None
    run(net, sample(x=[4, 3, 6, 6]))
    io.save(net, tmp_path / "m.onnx")
    assert set(_ranges.read(io.load(tmp_path / "m.onnx"))) == {"x", "b", "c", "y"}


def test_samples_beyond_the_limit_do_not_count(net, sample):
    feeds = sample(x=[10, 3, 6, 6])
    feeds["x"][7] = 1000
    assert run(net, feeds, samples=7, batch=2).report["samples"] == 7
    assert _ranges.read(net)["x"][1] < 10


def test_a_second_calibration_replaces_the_first(net, sample):
    feeds = sample(x=[4, 3, 6, 6])
    run(net, {"x": feeds["x"] * 100})
    run(net, feeds)
    assert _ranges.read(net)["x"][1] < 10


@pytest.mark.parametrize("observers", [("min-max",), ("min-max", "mse")])
@pytest.mark.parametrize("samples", [1, 4, 10])
def test_a_fixed_batch_axis_is_obeyed(build, sample, samples, observers):
    feeds = sample(x=[samples, 3, 6, 6])
    fixed, free = build(NET.replace("N", "4"), **WEIGHTS), build(NET, **WEIGHTS)
    for model in (fixed, free):
        assert run(model, feeds, observers=observers).report["samples"] == samples
    for name, range_ in _ranges.read(free).items():
        assert _ranges.read(fixed)[name] == pytest.approx(range_, rel=1e-5)


def test_several_inputs_and_integer_inputs(build):
    model = build(
        """
        g (int64[N,5] ids, float[N,5,8] bias, float[20,8] table, float[8,4] w) => (float[N,5,4] y) {
          e = Gather(table, ids)
          s = Add(e, bias)
          y = MatMul(s, w)
        }
        """,
        table=(20, 8),
        w=(8, 4),
    )
    rng = np.random.default_rng(0)
    data = {"ids": rng.integers(0, 20, (6, 5)), "bias": rng.normal(size=(6, 5, 8)).astype(np.float32)}
    run(model, data)
    assert set(_ranges.read(model)) == {"e", "bias", "s", "y"}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("position", [0, 17])
def test_activations_that_are_not_finite_get_no_range(net, sample, bad, position):
    feeds = sample(x=[4, 3, 6, 6])
    feeds["x"].reshape(-1)[position] = bad
    result = run(net, feeds)
    assert "x" not in _ranges.read(net)
    where, reason = result.skipped[0]
    assert where == "input 'x'"
    assert reason == "'x' is NaN or infinite on this data; check the model and the data"


def test_subgraphs_that_capture_are_no_obstacle(build, sample):
    model = build(
        """
        g (float[N,2,4,4] x, float[2,2,1,1] w) => (float[N,2,4,4] y) <float zero = {0}> {
          a = Conv(x, w)
          total = ReduceSum<keepdims=0>(x)
          flag = Less(total, zero)
          y = If (flag) <then_branch = t () => (float[N,2,4,4] p) { p = Neg(a) },
                         else_branch = e () => (float[N,2,4,4] q) { q = Abs(a) }>
        }
        """,
        w=(2, 2, 1, 1),
    )
    run(model, sample(x=[2, 2, 4, 4]))
    assert set(_ranges.read(model)) == {"x", "a"}


LOOP = """
g (float[N,4] x, float[4,4] w) => (float[N,4] y) <int64 n = {3}, bool yes = {1}> {
  k = MatMul(x, w)
  y = Loop(n, yes, k) <body = b (int64 i, bool go, float[N,4] s) => (bool on, float[N,4] o) {
    on = Identity(go)
    p = MatMul(s, w)
    o = Tanh(p)
  }>
}
"""


@pytest.mark.parametrize("observers", [("min-max", "moving-average"), OBSERVERS])
def test_bodies_of_loops_are_observed_over_all_iterations(build, sample, observers):
    model, feeds = build(LOOP, w=(4, 4)), sample(x=[6, 4])
    model = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model)))
    assert run(model, feeds, observers=observers).report == {"ranges": 4, "samples": 6}
    state = feeds["x"] @ model.graph.initializers["w"].const_value.numpy()
    seen = []
    for _ in range(3):
        product = state @ model.graph.initializers["w"].const_value.numpy()
        seen.append((state, product))
        state = np.tanh(product)
    for name, arrays in zip(("s", "p"), zip(*seen, strict=True), strict=True):
        expected = np.min(arrays), np.max(arrays)
        for observer in ("min-max", "moving-average"):
            np.testing.assert_allclose(_ranges.read(model, observer)[name], expected, rtol=1e-5)


def test_loops_whose_shapes_change(build, sample):
    """ONNX cannot stack values of different shapes, but it can their extremes."""
    text = """
    g (float[N,4] x, float[4,4] w) => (float[M,4] y) <int64 n = {3}, bool yes = {1}> {
      k = MatMul(x, w)
      y = Loop(n, yes, k) <body = b (int64 i, bool go, float[R,4] s) => (bool on, float[Q,4] o) {
        on = Identity(go)
        p = MatMul(s, w)
        o = Concat<axis=0>(p, s)
      }>
    }
    """
    for observers, names in ((("min-max",), {"x", "k", "s", "p", "o"}), (("min-max", "mse"), {"x", "k"})):
        model = build(text, w=(4, 4))
        model = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model)))
        result = run(model, sample(x=[6, 4]), observers=observers)
        assert set(_ranges.read(model)) == names
        assert len(result.skipped) == 5 - len(names)
        assert all("iterations differ in shape" in reason for _, reason in result.skipped)


def test_a_branch_that_is_never_taken_has_no_range(build, sample):
    model = build(
        """
        g (float[N,4] x, float[4,4] w, bool c) => (float[N,4] y) {
          y = If(c) <then_branch = t () => (float[N,4] p) { p = MatMul(x, w) },
                     else_branch = e () => (float[N,4] q) { q = MatMul(x, w) }>
        }
        """,
        w=(4, 4),
        c=np.array(True),
    )
    for observers in (("min-max",), OBSERVERS):
        result = run(model, sample(x=[4, 4]), observers=observers)
        assert set(_ranges.read(model)) == {"x", "p"}
        assert result.skipped == [("MatMul of 'q'", "'q' was not computed on any sample")]


def test_all_observers_at_once(net, sample):
    feeds = sample(x=[30, 3, 6, 6])
    run(net, feeds, batch=8)
    alone = _ranges.read(net)
    run(net, feeds, batch=8, observers=OBSERVERS)
    assert _ranges.observers(net) == list(OBSERVERS)
    for name, range_ in _ranges.read(net).items():
        assert range_ == pytest.approx(alone[name], rel=1e-6), "extremes are exact either way"
        for observer in OBSERVERS[1:]:
            lo, hi = _ranges.read(net, observer)[name]
            assert range_[0] <= lo <= 0 < hi <= range_[1]


@pytest.mark.parametrize("limit", [1, 5_000, 20_000])
def test_memory_changes_no_range(net, sample, limit, monkeypatch):
    feeds = sample(x=[30, 3, 6, 6])
    run(net, feeds, observers=OBSERVERS, batch=8)
    roomy = {observer: _ranges.read(net, observer) for observer in OBSERVERS}
    monkeypatch.setattr(calibrate.activations.observe, "__kwdefaults__", {"batch": 64, "limit": limit})
    assert run(net, feeds, observers=OBSERVERS, batch=8).report == {"ranges": 4, "samples": 30}
    for observer in OBSERVERS:
        for name, range_ in _ranges.read(net, observer).items():
            assert range_ == pytest.approx(roomy[observer][name], rel=1e-3 if observer in ("mse", "entropy") else 1e-5)


def test_calibration_is_deterministic(net, sample):
    feeds, found = sample(x=[30, 3, 6, 6]), []
    for _ in range(2):
        run(net, feeds, observers=OBSERVERS)
        found.append(_ranges.snapshot(net))
    assert found[0] == found[1]
    assert not run(net, feeds, observers=OBSERVERS).modified


def test_fewer_bits_clip_more(net, sample):
    feeds = sample(x=[30, 3, 6, 6])
    widths = []
    for bits in (16, 8, 4):
        run(net, feeds, observers=("mse",), bits=bits)
        lo, hi = _ranges.read(net, "mse")["x"]
        widths.append(hi - lo)
    assert widths[0] > widths[1] > widths[2]


def test_another_target(net, sample):
    feeds = sample(x=[4, 3, 6, 6])
    run(net, feeds)
    cpu = _ranges.read(net)
    run(net, feeds, target="reference", observers=("min-max", "percentile"))
    for name, range_ in _ranges.read(net).items():
        assert range_ == pytest.approx(cpu[name], rel=1e-5)


def test_a_model_over_the_protobuf_limit(net, sample, monkeypatch):
    monkeypatch.setattr(io, "PROTOBUF_LIMIT", 100)
    for observers in (("min-max",), OBSERVERS):
        assert run(net, sample(x=[4, 3, 6, 6]), observers=observers).report["ranges"] == 4


def test_without_data():
    with pytest.raises(PreconditionError, match=r"no calibration data; name some with data=FILE\.npz"):
        Calibrate()(ir.Model(ir.Graph([], [], nodes=[]), ir_version=9))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"z": np.zeros((2, 3, 6, 6), np.float32)}, "no input 'z'"),
        ({"x": np.zeros((2, 3, 5, 6), np.float32)}, r"\[2, 3, 5, 6\]"),
        ({"x": np.zeros((2, 3, 6, 6))}, "float64"),
        ("nowhere.npz", "no such file"),
    ],
)
def test_wrong_data(net, data, message):
    with pytest.raises(PreconditionError) as caught:
        run(net, data)
    assert isinstance(caught.value.__cause__, UserError)
    assert message.replace("\\", "") in str(caught.value.__cause__)


def test_data_on_which_the_model_fails(build):
    model = build(
        "g (float[N,4] x, int64[2] s) => (float[A,B] y) { r = Reshape(x, s) y = Mul(r, r) }", s=np.array([5, 5])
    )
    with pytest.raises(UserError, match="arrays: the model does not run on this data"):
        run(model, {"x": np.zeros((2, 4), np.float32)})


def test_nothing_to_calibrate(parse):
    model = parse("g (float[N,4] x) => (float[N,4] y) { y = Tanh(x) }")
    result = run(model, {"x": np.zeros((2, 4), np.float32)})
    assert not result.modified
    assert result.report == {"ranges": 0, "samples": 0}
    assert "Tanh" in result.skipped[0][1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("observers=mse,min-mx", "there is no 'min-mx'; did you mean 'min-max'"),
        ("percentile=50", "percentile is 50.0; it must be above 50, and 100 at most"),
        ("percentile=100.1", "percentile is 100.1"),
        ("bits=1", "bits is 1; it must be from 2 to 16"),
        ("save=a.json ranges=a.json", "give one of the two"),
    ],
)
def test_fields_out_of_bounds(fields, message):
    with pytest.raises(UsageError, match=message):
        spec.parse(f"calibrate{{data=d.npz {fields}}}")


def test_no_observers():
    with pytest.raises(ValueError, match="observers is empty; choose some of min-max"):
        Calibrate(observers=())


@pytest.mark.parametrize("field", ["samples", "batch"])
def test_fields_must_be_positive(field):
    with pytest.raises(UsageError, match=f"{field} is 0; it must be at least 1"):
        spec.parse(f"calibrate{{data=d.npz {field}=0}}")
