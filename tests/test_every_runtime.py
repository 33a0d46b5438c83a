"""Every runtime in the registry computes the same numbers, and refuses in the same way."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import compare, io, registry, runtime, target
from graphopt.errors import UserError
from graphopt.runtime import ExecutionError, Port

RUNTIMES = list(registry.entries("runtime"))

X = np.array([[1.0, -2.0, 3.0], [0.5, 0.0, -1.0]], np.float32)

GRAPHS = {
    "arithmetic": (
        "g (float[N,3] x) => (float[N,3] y, float[N] z) <float[3] w = {1.0, 2.0, 3.0}, int64[1] axis = {1}> "
        "{ a = Mul(x, w)  y = Sub(a, x)  z = ReduceSum<keepdims = 0>(y, axis) }",
        {"y": X * [1, 2, 3] - X, "z": (X * [1, 2, 3] - X).sum(1)},
    ),
    "control flow": (
        "g (float[N,3] x) => (float[N,3] y) { k = Constant<value = bool {1}>() "
        "y = If(k) <then_branch = t () => (float[N,3] p) { p = Neg(x) }, "
        "else_branch = e () => (float[N,3] q) { q = Abs(x) }> }",
        {"y": -X},
    ),
    "a function": (
        '<ir_version: 9, opset_import: ["": 18, "local": 1]> g (float[N,3] x) => (float[N,3] y) { y = local.f(x) } '
        '<domain: "local", opset_import: ["": 18]> f (x) => (y) { z = Neg(x)  y = Relu(z) }',
        {"y": np.maximum(-X, 0)},
    ),
    "a default input": (
        "g (float[N,3] x, float[3] w) => (float[N,3] y) <float[3] w = {1.0, 2.0, 3.0}> { y = Mul(x, w) }",
        {"y": X * [1, 2, 3]},
    ),
    "a sequence": (
        "g (float[N,3] x) => (seq(float[N,K]) y) <int64[2] k = {1, 2}> { y = SplitToSequence<axis = 1>(x, k) }",
        {"y[0]": X[:, :1], "y[1]": X[:, 1:]},
    ),
    "integers and bools": (
        "g (float[N,3] x) => (int64[N] i, bool[N,3] b) <float zero = {0.0}> "
        "{ i = ArgMax<axis = 1, keepdims = 0>(x)  b = Greater(x, zero) }",
        {"i": np.array([2, 0]), "b": X > 0},
    ),
}


@pytest.fixture(params=RUNTIMES)
def open_session(request):
    """Open a model on one of the runtimes, on the processor."""
    place = dataclasses.replace(target.find("cpu"), runtime=request.param)

    def opened(model):
        try:
            return runtime.open_session(model, place)
        except UserError as missing:
            pytest.skip(f"{request.param}: {missing}")

    opened.place = place
    return opened


@pytest.mark.parametrize("name", GRAPHS)
def test_every_runtime_computes_the_same(parse, open_session, name):
    text, expected = GRAPHS[name]
    actual = open_session(parse(text)).run({"x": X})
    assert list(actual) == list(expected)
    for key, array in expected.items():
        wanted = array.astype(np.float32) if array.dtype == np.float64 else array
        assert compare.mismatch(wanted, actual[key], 1e-6) is None


def test_some_outputs_only(parse, open_session):
    text, expected = GRAPHS["arithmetic"]
    assert list(open_session(parse(text)).run({"x": X}, ["z"])) == ["z"]
    (z,) = open_session(parse(text)).run({"x": X}, ["z"]).values()
    np.testing.assert_allclose(z, expected["z"], rtol=1e-6)


def test_a_default_input_can_be_overridden(parse, open_session):
    session = open_session(parse(GRAPHS["a default input"][0]))
    np.testing.assert_allclose(session.run({"x": X, "w": np.full(3, 5, np.float32)})["y"], X * 5, rtol=1e-6)


def test_the_model_is_not_changed(parse, open_session):
    for text, _ in GRAPHS.values():
        model = parse(text)
        before = io.to_proto(model)
        open_session(model).run({"x": X})
        assert io.to_proto(model) == before


def test_feeds_are_not_changed(parse, open_session):
    feeds = {"x": X.copy()}
    feeds["x"].flags.writeable = False
    open_session(parse(GRAPHS["arithmetic"][0])).run(feeds)
    np.testing.assert_array_equal(feeds["x"], X)


@pytest.mark.parametrize(
    "feeds",
    [{}, {"z": X}, {"x": X.astype(np.float64)}, {"x": X[:, :2]}, {"x": X.astype(str)}],
    ids=["none", "another name", "another type", "another shape", "text"],
)
def test_running_on_the_wrong_inputs_is_an_execution_error(parse, open_session, feeds):
    session = open_session(parse(GRAPHS["arithmetic"][0]))
    with pytest.raises(ExecutionError) as error:
        session.run(feeds)
    assert "\n" not in str(error.value)
    assert str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[N,3] x) => (float[N,3] y) { y = NoSuchOperator(x) }",
        '<ir_version: 9, opset_import: ["": 18, "acme": 1]> g (float[N,3] x) => (float[N,3] y) { y = acme.Magic(x) }',
    ],
)
def test_a_model_it_does_not_know_is_an_execution_error(parse, open_session, text):
    with pytest.raises(ExecutionError) as error:
        open_session(parse(text)).run({"x": X})
    assert "\n" not in str(error.value)


def test_the_graph_as_the_runtime_rewrites_it(parse, open_session):
    found = runtime.find(open_session.place)
    try:
        rewritten = found.optimized(
            parse("g (float[N,3] x) => (float[N,3] y) { a = Identity(x)  y = Neg(a) }"), open_session.place
        )
    except UserError as missing:
        pytest.skip(str(missing))
    if rewritten is not None:
        assert [node.op_type for node in rewritten.graph] == ["Neg"]


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_runtime_is_described(name):
    assert registry.entry("runtime", name).summary
    assert issubclass(registry.find("runtime", name), runtime.Runtime)


@pytest.mark.parametrize("name", target.TARGETS)
def test_every_target_names_a_runtime(name):
    found = target.find(name, threads=3)
    assert found.name == name
    assert found.threads == 3
    assert found.runtime in RUNTIMES


def test_a_provider_that_is_not_installed_is_the_users_to_mend(parse):
    place = dataclasses.replace(target.find("cpu"), name="moon", provider="MoonExecutionProvider")
    with pytest.raises(
        UserError, match=r"target 'moon' needs MoonExecutionProvider, but this onnxruntime offers .*CPU"
    ):
        runtime.open_session(parse(GRAPHS["arithmetic"][0]), place)


def test_ports(parse):
    model = parse(
        "g (float[N,3] x, int64[?] i, float[] u, bool s, seq(float[N]) q, float[2] w) => (float[N,3] y) "
        "<float[2] w = {1.0, 2.0}> { y = Neg(x) }"
    )
    assert runtime.model_inputs(model) == (
        Port("x", ir.DataType.FLOAT, ("N", 3)),
        Port("i", ir.DataType.INT64, (None,)),
        Port("u", ir.DataType.FLOAT, None),
        Port("s", ir.DataType.BOOL, ()),
        Port("q", None, ("N",)),
    )
    assert [port.name for port in runtime.ports(model.graph.outputs)] == ["y"]
