"""Inner values and their extremes, read while a model runs over data."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_ir.passes import common

from graphopt import activations, io, runtime, target
from graphopt.data import ArrayData, FactoryData
from graphopt.errors import UserError

CPU = target.find("cpu", 1)

NET = """
g (float[N,4,6] x) => (float[N,4,6] y) {
  a = Neg(x)
  b = Exp(a)
  y = Add(b, x)
}
"""
LOOP = """
g (float[N,4] x) => (float[N,4] y) <int64 n = {3}, bool yes = {1}> {
  k = Abs(x)
  y = Loop(n, yes, k) <body = b (int64 i, bool go, float[N,4] s) => (bool on, float[N,4] o) {
    on = Identity(go)
    t = Sin(s)
    o = Add(t, k)
  }>
}
"""


@pytest.fixture
def parsed(parse):
    """Make a model of ONNX text in which shapes are known."""

    def make(text):
        model = parse(text)
        common.ShapeInferencePass()(model)
        return model

    return make


def drawn(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def values(model, *names):
    graphs = [model.graph, *model.graph.subgraphs()]
    found = {v.name: v for g in graphs for v in (*g.inputs, *(o for node in g for o in node.outputs))}
    return [found[name] for name in names]


def observe(model, asked, data, **options):
    data = data if not isinstance(data, dict) else ArrayData("d", data)
    options = {"samples": 1000, "batch": 4} | options
    return list(activations.observe(model, asked, data, place=CPU, **options))


def joined(runs, value):
    return np.concatenate([arrays[value] for arrays, _ in runs if value in arrays])


def test_every_value_sees_every_sample_once_and_in_order(parsed):
    model, x = parsed(NET), drawn(10, 4, 6)
    asked = values(model, "x", "a", "b")
    runs = observe(model, asked, {"x": x})
    assert [count for _, count in runs] == [4, 4, 2]
    for value, true in zip(asked, [x, -x, np.exp(-x)], strict=True):
        np.testing.assert_allclose(joined(runs, value), true, rtol=1e-6)


def test_samples_are_limited(parsed):
    model = parsed(NET)
    assert sum(count for _, count in observe(model, values(model, "a"), {"x": drawn(10, 4, 6)}, samples=7)) == 7


@pytest.mark.parametrize(
    ("limit", "counts", "groups"),
    [(10_000, [4, 4, 2], 1), (3 * 2 * 96, [2, 2, 2, 2, 2], 1), (100, [1] * 10, 3), (1, [1] * 10, 3)],
)
def test_memory_is_bounded_by_smaller_runs_and_then_by_groups(parsed, limit, counts, groups):
    model, x = parsed(NET), drawn(10, 4, 6)
    asked = values(model, "a", "b", "y")
    runs = observe(model, asked, {"x": x}, limit=limit)
    assert max(sum(array.nbytes for array in arrays.values()) for arrays, _ in runs) <= max(limit, 96)
    for value in asked:
        assert [count for arrays, count in runs if value in arrays] == counts
    assert len({tuple(arrays) for arrays, _ in runs}) == groups
    np.testing.assert_allclose(joined(runs, asked[1]), np.exp(-x), rtol=1e-6)


def test_runs_never_cross_batches(parsed):
    model = parsed(NET)
    runs = observe(model, values(model, "a", "b", "y"), {"x": drawn(8, 4, 6)}, limit=3 * 3 * 96, batch=4)
    assert [count for _, count in runs] == [3, 1, 3, 1]


def test_a_fixed_first_axis_is_filled_up_and_the_filling_left_out(parsed):
    model, x = parsed(NET.replace("[N", "[4")), drawn(6, 4, 6)
    asked = values(model, "a", "b")
    for limit in (1 << 20, 1):
        runs = observe(model, asked, {"x": x}, limit=limit)
        np.testing.assert_array_equal(joined(runs, asked[0]), -x)


def test_unknown_shapes_are_measured(parse):
    model, x = parse("g (float[N,4,6] x) => (float[] y) { a = Neg(x)  y = Exp(a) }"), drawn(5, 4, 6)
    asked = values(model, "a", "y")
    assert asked[0].shape is None
    runs = observe(model, asked, {"x": x}, limit=2 * 96 * 2)
    assert [count for _, count in runs] == [2, 2, 1]
    np.testing.assert_array_equal(joined(runs, asked[0]), -x)


def test_batches_of_a_factory_are_cut_only_where_all_inputs_count_samples(parsed):
    model = parsed("g (float[N,4] x, float[K] w) => (float[N,4] y) { y = Add(x, w) }")
    x, w = drawn(6, 4), drawn(4)
    data = FactoryData("f", lambda: iter([({"x": x[:4], "w": w}, None), ({"x": x[4:], "w": w}, None)]))
    asked = values(model, "y")
    runs = observe(model, asked, data, limit=1)
    assert [count for _, count in runs] == [4, 2]
    np.testing.assert_array_equal(joined(runs, asked[0]), x + w)


def test_values_in_loops_and_branches(parsed):
    model, x = parsed(LOOP), drawn(6, 4)
    asked = values(model, "k", "t", "s")
    for limit in (1 << 20, 1):
        runs = observe(model, asked, {"x": x}, limit=limit)
        first = runs[0][0][asked[0]]
        np.testing.assert_allclose(joined(runs, asked[0]), np.abs(x))
        stacked = np.concatenate([a[asked[1]] for a, _ in runs if asked[1] in a], axis=1)
        assert stacked.shape == (3, 6, 4)
        np.testing.assert_allclose(stacked[0], np.sin(np.abs(x)), rtol=1e-6)
        assert first.ndim == 2


def test_a_model_over_the_protobuf_limit(parsed, monkeypatch):
    monkeypatch.setattr(io, "PROTOBUF_LIMIT", 100)
    model = parsed("g (float[N,32] x) => (float[N,32] y) <float[32] w = {%s}> { a = Mul(x, w)  y = Neg(a) }" % ("2," * 31 + "2"))  # fmt: skip
    x = drawn(3, 32)
    asked = values(model, "a")
    assert io.total_bytes(model) > 100
    np.testing.assert_array_equal(joined(observe(model, asked, {"x": x}), asked[0]), 2 * x)
    low, high = activations.channel_extremes(model, {asked[0]: 1}, ArrayData("d", {"x": x}), place=CPU, samples=9)[
        asked[0]
    ]
    np.testing.assert_array_equal((low, high), (2 * x.min(0), 2 * x.max(0)))


def test_what_does_not_run_is_a_user_error(parsed):
    model = parsed("g (float[N,4] x) => (float[A,B] y) <int64[2] s = {5,5}> { a = Neg(x)  y = Reshape(a, s) }")
    with pytest.raises(UserError, match="d: the model does not run on this data"):
        observe(model, values(model, "a", "y"), {"x": drawn(2, 4)})
    with pytest.raises(UserError, match="d: the model does not run on this data"):
        activations.channel_extremes(
            model, {values(model, "y")[0]: None}, ArrayData("d", {"x": drawn(2, 4)}), place=CPU, samples=9
        )


def test_a_caller_may_stop_early(parsed):
    model = parsed(NET)
    stream = activations.observe(
        model, values(model, "a"), ArrayData("d", {"x": drawn(10, 4, 6)}), place=CPU, samples=10, batch=2
    )
    assert next(stream)[1] == 2
    stream.close()


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3, None])
def test_extremes_of_channels(parsed, opset, axis):
    model, x = parsed(f'<ir_version: 8, opset_import: ["": {opset}]> {NET}'), drawn(10, 4, 6)
    asked = values(model, "x", "b")
    found = activations.channel_extremes(
        model, dict.fromkeys(asked, axis), ArrayData("d", {"x": x[:8]}), place=CPU, samples=8, batch=4
    )
    for value, true in zip(asked, [x[:8], np.exp(-x[:8])], strict=True):
        low, high = found[value]
        if axis in (0, -3):  # whose entries are then places in the batch
            true = np.stack([true[:4], true[4:]], axis=1)
        rest = None if axis is None else tuple(i for i in range(true.ndim) if i != axis % 3)
        np.testing.assert_allclose(low, true.min(rest), rtol=1e-6)
        np.testing.assert_allclose(high, true.max(rest), rtol=1e-6)


def test_extremes_of_a_vector_by_element(parsed):
    model, x = parsed("g (float[N] x) => (float[N] y) { y = Neg(x) }"), drawn(8)
    found = activations.channel_extremes(
        model, {values(model, "y")[0]: 0}, ArrayData("d", {"x": x}), place=CPU, samples=8, batch=4
    )
    low, high = next(iter(found.values()))
    np.testing.assert_array_equal((low, high), (np.minimum(-x[:4], -x[4:]), np.maximum(-x[:4], -x[4:])))


def test_extremes_inside_loops_count_every_iteration(parsed):
    model, x = parsed(LOOP), drawn(6, 4)
    (t,) = values(model, "t")
    data = ArrayData("d", {"x": x})
    arrays = observe(model, [t], {"x": x}, batch=6)[0][0][t]
    for axis in (1, -1, None):
        low, high = activations.channel_extremes(model, {t: axis}, data, place=CPU, samples=6)[t]
        rest = None if axis is None else (0, 1)
        np.testing.assert_allclose((low, high), (arrays.min(rest), arrays.max(rest)), rtol=1e-6)


def test_branches_not_taken_have_no_channels_and_endless_extremes(parsed):
    model = parsed(
        """
        g (float[N,4] x, bool[N] c) => (float[N,4] y) {
          d = ReduceMax<keepdims=0>(i)
          i = Cast<to=6>(c)
          e = Cast<to=9>(d)
          y = If(e) <then_branch = t () => (float[N,4] p) { p = Neg(x) },
                     else_branch = f () => (float[N,4] q) { q = Abs(x) }>
        }
        """
    )
    model.graph.sort()
    asked = values(model, "p", "q")
    data = ArrayData("d", {"x": drawn(4, 4), "c": np.zeros(4, bool)})
    options = {"place": CPU, "samples": 4}
    assert list(activations.channel_extremes(model, dict.fromkeys(asked, 1), data, **options)) == [asked[1]]
    pairs, count = next(activations.extremes(model, dict.fromkeys(asked), data, **options))
    assert pairs[asked[0]] == (np.inf, -np.inf)
    assert count == 4


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_show_in_their_channel(parsed, bad):
    model, x = parsed("g (float[N,4] x) => (float[N,4] y) { y = Neg(x) }"), drawn(8, 4)
    x[3, 2] = bad
    low, high = next(
        iter(
            activations.channel_extremes(
                model, {values(model, "y")[0]: 1}, ArrayData("d", {"x": x}), place=CPU, samples=8, batch=4
            ).values()
        )
    )
    assert np.isfinite(np.delete((low, high), 2, axis=1)).all()
    assert not np.isfinite(low[2] + high[2])


def test_an_axis_of_a_value_of_unknown_rank(parse):
    model = parse("g (float[N,4] x) => (float[] y) { y = Neg(x) }")
    with pytest.raises(ValueError, match="'y' has no known rank, so there is no axis 1 to keep; infer shapes first"):
        activations.channel_extremes(
            model, {values(model, "y")[0]: 1}, ArrayData("d", {"x": drawn(2, 4)}), place=CPU, samples=2
        )


def test_the_model_is_not_changed(parsed):
    model = parsed(LOOP)
    before = io.to_proto(model).SerializeToString(deterministic=True)
    data = ArrayData("d", {"x": drawn(2, 4)})
    observe(model, values(model, "t", "k"), data)
    activations.channel_extremes(model, dict.fromkeys(values(model, "t", "k"), 1), data, place=CPU, samples=2)
    assert io.to_proto(model).SerializeToString(deterministic=True) == before


def test_late_values_are_reduced_first(parsed, monkeypatch):
    """ONNX Runtime works from the last node; were the order the other way, it would keep every activation."""
    opened = []
    real = runtime.open_session
    monkeypatch.setattr(runtime, "open_session", lambda model, place: opened.append(model) or real(model, place))
    model = parsed(NET)
    asked = values(model, "a", "b", "y")
    activations.channel_extremes(
        model, dict.fromkeys(asked), ArrayData("d", {"x": drawn(2, 4, 6)}), place=CPU, samples=2
    )
    reductions = [node for node in opened[0].graph if node.op_type.startswith("Reduce")]
    assert [node.inputs[0].name for node in reductions[::3]] == ["y", "b", "a"]
    assert len(opened[0].graph.outputs) == 9, "and nothing else is computed"
