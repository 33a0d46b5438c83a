"""Every pass in the registry, without this file knowing any: its shape, its command, and what it does to a battery of graphs.

A new pass is picked up by being there. On every graph it must be kept with the same numbers, or find nothing to
do, or say what it lacks; it must never be rolled back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import cli, registry, runtime, target
from graphopt.console import plain
from graphopt.data import ArrayData
from graphopt.passbase import Contract, Pass
from graphopt.pipeline import Pipeline, begin, feeds_for

PASSES = list(registry.entries("pass"))
CPU = target.find("cpu")

GRAPHS = {
    "chain": """g (float[N,4] x) => (float[N,3] y) <float[4,3] w = {1.0,-2.0,3.0,0.5,1.5,-1.0,2.0,0.1,0.2,-0.3,0.4,1.0}> {
        n = Identity(x)
        m = MatMul(n, w)
        y = Relu(m)
    }""",
    "convolution and batch normalization": """g (float[N,2,8,8] x) => (float[N,2,8,8] y)
        <float[2,2,1,1] w = {1.0,0.5,-1.0,2.0}, float[2] s = {1.5,0.5}, float[2] b = {0.1,-0.2},
         float[2] m = {0.3,0.1}, float[2] v = {1.0,2.0}> {
        c = Conv(x, w)
        n = BatchNormalization(c, s, b, m, v)
        y = Relu(n)
    }""",
    "if": """g (float[N,4] x, bool c) => (float[N,4] y) <float[4] w = {1.0,2.0,3.0,4.0}> {
        a = Mul(x, w)
        b = If(c) <
            then_branch = t () => (float[N,4] p) { i = Identity(a)  p = Add(i, w) },
            else_branch = e () => (float[N,4] q) <float[4] w2 = {1.0,2.0,3.0,4.0}> { r = Neg(a)  q = Mul(r, w2) }>
        y = Identity(b)
    }""",
    "if with a constant condition": """g (float[N,4] x) => (float[N,4] y) {
        c = Constant<value = bool {1}>()
        y = If(c) <then_branch = t () => (float[N,4] p) { p = Neg(x) },
                   else_branch = e () => (float[N,4] q) { q = Abs(x) }>
    }""",
    "loop": """g (float[N,4] x) => (float[N,4] y, float[3,N,4] s) <int64 n = {3}, bool yes = {1}, float[4] w = {1.0,2.0,3.0,4.0}> {
        k = Mul(x, w)
        y, s = Loop(n, yes, x) <body = b (int64 i, bool go, float[N,4] a) => (bool on, float[N,4] o, float[N,4] scan) {
            on = Identity(go)
            z = Add(a, k)
            o = Tanh(z)
            z2 = Add(a, k)
            scan = Neg(z2)
        }>
    }""",
    "functions": """<ir_version: 9, opset_import: ["": 18, "local": 1]>
    g (float[N,4] x) => (float[N,4] y) <float[4] w = {1.0,2.0,3.0,4.0}> {
        a = local.scale(x, w)
        b = local.scale(x, w)
        c = local.relu6<top = 2.0>(a)
        y = Add(c, b)
    }
    <domain: "local", opset_import: ["": 18]>
    scale (x, w) => (y) { i = Identity(x)  unused = Neg(x)  y = Mul(i, w) }
    <domain: "local", opset_import: ["": 18]>
    relu6 <top> (x) => (y) { z = Constant<value = float {0.0}>()  t = Constant<value_float: float = @top>()  y = Clip(x, z, t) }""",
    "shared initializers": """g (float[N,4] x) => (float[N,4] y, float[N,4] z)
        <float[4] w = {1.0,2.0,3.0,4.0}, float[4] copy = {1.0,2.0,3.0,4.0}, float[4] unused = {9.0,9.0,9.0,9.0}> {
        a = Mul(x, w)
        b = Add(x, copy)
        y = Add(a, w)
        z = Add(b, w)
    }""",
    "optional inputs and outputs": """g (float[N,4] x) => (float[N,4] y, float[N,2] z) <float top = {0.5}, int64[1] k = {2}> {
        a = Clip(x, , top)
        v, i = TopK<axis = 1>(a, k)
        y = Clip(a)
        z = Identity(v)
    }""",
    "outputs used inside": """g (float[N,4] x) => (float[N,4] a, float[N,4] b, float[N,4] c) {
        a = Exp(x)
        b = Identity(a)
        d = Neg(b)
        c = Neg(d)
    }""",
    "an input that is an output": """g (float[N,4] x) => (float[N,4] y, float[N,4] z) { y = Identity(x)  z = Identity(y) }""",
    "an initializer that is an output": """g (float[N,4] x) => (float[N,4] y, float[4] w) <float[4] w = {1.0,2.0,3.0,4.0}> {
        y = Add(x, w)
    }""",
    "no inputs": """g () => (float[2] y) <float[2] w = {1.0, 2.0}> { a = Neg(w)  y = Exp(a) }""",
    "dynamic axes": """g (float[B,S,4] x, int64[B,S] ids) => (float[B,T,2] y, float[B,S,2] z)
        <float[4,2] w = {1.0,2.0,3.0,4.0,-1.0,-2.0,-3.0,-4.0}, float[2,2] table = {0.5,1.0,1.5,2.0}, int64[1] one = {1}> {
        s = Shape(x)
        m = MatMul(x, w)
        e = Gather(table, ids)
        z = Add(m, e)
        two = Constant<value_ints = [0, 2]>()
        d = Gather(s, two)
        three = Constant<value_ints = [-1]>()
        head = Slice(s, three, one)
        rep = Constant<value_ints = [1, 2, 1]>()
        t = Tile(z, rep)
        y = Identity(t)
    }""",
    "unknown rank": "g (float[] x) => (float[] y) { a = Relu(x)  b = Relu(x)  y = Add(a, b) }",
    "overridable initializer": """g (float[N,4] x, float[4] w, float[4] v) => (float[N,4] y)
        <float[4] w = {1.0,2.0,3.0,4.0}, float[4] v = {1.0,2.0,3.0,4.0}, float two = {2.0}> {
        a = Mul(x, w)
        s = Add(w, v)
        d = Mul(s, two)
        y = Add(a, d)
    }""",
    "constants to fold": """g (float[N,4] x) => (float[N,4] y) <float[2,2] w = {1.0,2.0,3.0,4.0}, int64[1] shape = {4}> {
        r = Reshape(w, shape)
        e = Exp(r)
        zero = Constant<value = float {0.0}>()
        f = Add(e, zero)
        y = Mul(x, f)
    }""",
    "random numbers are not constants": """g (float[N,4] x) => (float[N,4] y, int64[2] z) {
        r = RandomNormal<shape = [2, 3]>()
        r2 = RandomNormal<shape = [2, 3]>()
        z = Shape(r)
        y = Neg(x)
    }""",
    "equal nodes with different attributes": """g (float[N,4] x) => (float[N,4] y) {
        a = Softmax<axis = 0>(x)
        b = Softmax<axis = 1>(x)
        c = Softmax<axis = 1>(x)
        d = Sub(a, b)
        e = Sub(b, a)
        f = Sub(d, e)
        y = Mul(f, c)
    }""",
    "integers and bools": """g (int64[N] i, bool[N] m) => (int64[N] y) <int64[3] k = {5,6,7}, int64 zero = {0}> {
        a = Gather(k, i)
        b = Add(a, zero)
        n = Not(m)
        y = Where(n, a, b)
    }""",
    "half precision": """g (float16[N,4] x) => (float16[N,4] y) <float[4] full = {1.0,2.0,3.0,4.0}> {
        w = Cast<to = 10>(full)
        a = Mul(x, w)
        y = Relu(a)
    }""",
    "sequences": """g (float[N,4] x) => (seq(float[N,K]) y, float[N,2] z) <int64[2] k = {1,3}, int64 first = {0}, int64[2] h = {2,2}> {
        y = SplitToSequence<axis = 1>(x, k)
        s = SplitToSequence<axis = 1>(x, h)
        z = SequenceAt(s, first)
    }""",
    "old opset": """<ir_version: 3, opset_import: ["": 9]>
    g (float[N,4] x, float[4] w) => (float[N,4] y) <float[4] w = {1.0,2.0,3.0,4.0}> { a = Mul(x, w)  d = Dropout(a)  y = Clip<min = 0.0>(d) }""",
    "contrib operators": """<ir_version: 9, opset_import: ["": 18, "com.microsoft": 1]>
    g (float[N,4] x) => (float[N,4] y) { a = com.microsoft.Gelu(x)  y = Identity(a) }""",
    "nothing to do": "g (float[N,4] x) => (float[N,4] y) { y = Neg(x) }",
}


@pytest.fixture(scope="module")
def opened(parse):
    """Open a graph of the battery once: what it takes to make a pipeline of it."""

    @functools.cache
    def once(name):
        start = begin(parse(GRAPHS[name]), CPU, (), name)
        return start, feeds_for(start, None, 0, name)

    return once


@pytest.fixture(params=GRAPHS)
def pipe(request, opened):
    start, feeds = opened(request.param)
    return Pipeline(start, CPU, feeds)


def configured(name, pipe):
    """Return the pass with defaults, and with data where it asks for some."""
    pass_ = registry.find("pass", name)()
    if any(field.name == "data" and field.metadata.get("source") for field in dataclasses.fields(pass_)):
        feeds = pipe._cases[0].feeds
        samples = feeds and all(array.ndim for array in feeds.values())
        return dataclasses.replace(pass_, data=ArrayData("generated", feeds)) if samples else pass_
    return pass_


def stored(model):
    """Return the model as a file holds it, but for names of constants' tensors: onnx_ir sets them when it looks."""
    proto = ir.to_proto(model)
    homes = [proto.graph, *proto.functions]
    for home in homes:  # grows on the way
        for node in home.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    attribute.t.ClearField("name")
                if attribute.HasField("g"):
                    homes.append(attribute.g)
    return proto


def without_types(model):
    proto = stored(model)
    for home in (proto.graph, *proto.functions):
        del home.value_info[:]
    return proto


def test_the_battery_itself_can_be_verified(pipe):
    assert pipe.model


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_is_a_frozen_dataclass_with_a_contract(name):
    cls = registry.find("pass", name)
    assert issubclass(cls, Pass)
    assert cls.pass_name() == name
    assert cls.__dataclass_params__.frozen
    assert isinstance(cls.contract, Contract)
    assert cls.contract.kind in ("exact", "lossy")
    assert cls() == cls()
    hash(cls())


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_is_described(name):
    entry = registry.entry("pass", name)
    assert 10 < len(entry.summary) < 120, entry.summary
    assert "\n" not in entry.summary
    for field in dataclasses.fields(registry.find("pass", name)):
        text = field.metadata.get("help", "")
        assert text, f"{field.name} has no help; declare it with param()"
        assert "\n" not in text
        assert field.default is not dataclasses.MISSING
        assert field.name not in ("model", "output", "as_json"), "taken by the generated command"


@pytest.mark.parametrize("name", PASSES)
def test_the_generated_command_explains_itself(name, graphopt):
    ran = graphopt(name, "--help")
    assert (ran.code, ran.err) == (0, "")
    for field in dataclasses.fields(registry.find("pass", name)):
        assert f"--{field.name.replace('_', '-')}" in ran.out
    assert "--output" in ran.out
    shown = graphopt("passes", name, "--json").json
    assert shown["name"] == name
    assert [row["name"] for row in shown["fields"]] == [
        field.name for field in dataclasses.fields(registry.find("pass", name))
    ]
    assert graphopt("passes", name).out.startswith(f"{name} (")


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_is_listed(name, graphopt):
    assert name in {row["name"] for row in graphopt("passes", "--json").json["passes"]}
    assert name in graphopt("--help").out
    assert isinstance(cli.cli.get_command(None, name), cli.click.Command)


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_is_never_rolled_back(name, pipe):
    """Kept or skipped with a reason; and an exact pass that was kept has nothing left to do."""
    pass_, before = configured(name, pipe), stored(pipe.model)
    original = pipe.model
    step = pipe.run(pass_)
    assert stored(original) == before, "the pipeline hands out copies"
    json.dumps(plain(step.to_json()))
    assert step.status != "reverted", step.reason
    assert isinstance(step.report, dict)
    for row in step.skipped:
        assert all(isinstance(text, str) and text for text in row), row
    if step.status == "kept" and pass_.contract.kind == "exact":
        again = pipe.run(pass_)
        assert (again.status, again.reason) == ("skipped", "nothing to do"), again.report
    elif step.reason != "nothing to do":
        assert step.reason
        pytest.skip(f"{name}: {step.reason}")


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_is_truthful_and_deterministic(name, pipe):
    """What claims a change made one, what claims none made none, and the same input gives the same output.

    Types of inner values that the machinery of patterns derived along the way are no change.
    """
    pass_, before = configured(name, pipe), pipe.model
    results = []
    for _ in range(2):
        candidate = before.clone()
        try:
            result = pass_(candidate)
        except ir.passes.PreconditionError as refusal:
            pytest.skip(f"{name}: {refusal}")
        assert result.model is candidate
        results.append(stored(candidate))
        if result.modified:
            assert results[-1] != stored(before), result.report
        else:
            assert without_types(candidate) == without_types(before), result.report
    assert results[0] == results[1]


@pytest.mark.parametrize("name", PASSES)
def test_defaults_that_callers_may_override_stay_so(name, opened):
    """A graph input with an initializer is a default; a pass must not bake it in or drop it, unless it says so."""
    start, feeds = opened("overridable initializer")
    pipe = Pipeline(start, CPU, feeds)
    with contextlib.suppress(ir.passes.PreconditionError):
        if getattr(configured(name, pipe)(start.model.clone()), "cases", None):
            pytest.skip(f"{name} changes inputs")
    step = pipe.run(configured(name, pipe))
    override = {"x": np.ones((2, 4), np.float32), "w": np.full(4, 7, np.float32), "v": np.full(4, 2, np.float32)}
    expected = start.session.run(override)["y"]
    if step.status != "kept":
        pytest.skip(f"{name}: {step.reason}")
    actual = runtime.open_session(pipe.model, CPU).run(override)["y"]
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_without_its_data_says_so(name, graphopt, model_file, tmp_path):
    """Run alone from the command line with no options, a pass works or says in one line what it lacks."""
    path = model_file(GRAPHS["chain"])
    ran = graphopt(name, path, "-o", tmp_path / "out.onnx", "--json")
    assert ran.code in (0, 1), ran.err
    if ran.code == 0:
        assert ran.json["steps"][0]["pass"] == name
        assert (tmp_path / "out.onnx").exists()
    else:
        assert ran.error.startswith(f"{name}: ")
        assert not (tmp_path / "out.onnx").exists()
