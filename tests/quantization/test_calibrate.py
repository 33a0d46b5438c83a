from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import io, runtime, spec, tapping, target
from graphopt.errors import UsageError, UserError
from graphopt.passbase import PreconditionError, Result
from graphopt.passes.quantization import _ranges, calibrate
from graphopt.passes.quantization._graphs import infer_types
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
    assert json.loads(again.graph.inputs[0].metadata_props["graphopt.range"]) == {"min-max": list(_ranges.read(net)["x"])}


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


@pytest.mark.parametrize(("samples", "used"), [(4, 4), (10, 8)])
def test_a_fixed_batch_axis_is_obeyed(build, sample, samples, used):
    model = build(NET.replace("N", "4"), **WEIGHTS)
    assert run(model, sample(x=[samples, 3, 6, 6])).report["samples"] == used


def test_too_few_samples_for_a_fixed_batch_axis(build, sample):
    model = build(NET.replace("N", "4"), **WEIGHTS)
    with pytest.raises(UserError, match="fewer samples than one run takes, which is 4; add samples"):
        run(model, sample(x=[3, 3, 6, 6]))


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


def test_late_observers_come_first(net):
    """ONNX Runtime works from the last node; were the order the other way, it would keep every activation."""
    infer_types(net)
    values = calibrate.wanted(net)
    assert len(values) == 4
    observers = [node for node in calibrate._observed(net, values).graph if node.op_type.startswith("Reduce")]
    assert [node.inputs[0].name for node in observers[::3]] == [value.name for value in reversed(values)]


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
    with pytest.raises(UserError, match="calibrate: arrays: the model does not run on this data"):
        run(model, {"x": np.zeros((2, 4), np.float32)})


def test_nothing_to_calibrate(parse):
    model = parse("g (float[N,4] x) => (float[N,4] y) { y = Tanh(x) }")
    result = run(model, {"x": np.zeros((2, 4), np.float32)})
    assert not result.modified
    assert result.report == {"ranges": 0, "samples": 0}
    assert "Tanh" in result.skipped[0][1]


@pytest.mark.parametrize("field", ["samples", "batch"])
def test_fields_must_be_positive(field):
    with pytest.raises(UsageError, match=f"{field} is 0; it must be at least 1"):
        spec.parse(f"calibrate{{data=d.npz {field}=0}}")
